"""How fast is an epoch? V2 with the study's augmentation, by Bantam's engine and in the study's way.

    python benchmarks/throughput.py

The study's way is what its notebooks do: torchvision's transforms on PIL images in a DataLoader,
torch.nn.Dropout, float32, NCHW, the loss read in every step for the progress bar; with as many loader
workers as a first short trial finds best. Bantam's is the configuration's default. Both train one epoch of
MNIST in batches of 128, as one run on all cores, and as a sweep: a process a core, at the same time.
Each measurement is a process of its own, warmed up before the clock starts; the two ways take
turns, and the medians are compared.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from joblib import cpu_count
from limit import steps
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from bantam import config
from bantam.models import V2, Dropout
from bantam.training.setup import RunInfo, prepare

ROOT = os.environ.get("BANTAM_DATA", "data")
BATCH = 128
WARM_UP = 20 * BATCH
"""Images that are trained on before the clock starts."""


def plain_v2() -> nn.Module:
    """V2 with PyTorch's own dropout."""
    model = V2()
    for name, layer in model.named_children():
        if isinstance(layer, Dropout):
            setattr(model, name, nn.Dropout(layer.p))
    return model


def study(images: int, loader_workers: int, wait: Any) -> float:
    """Seconds for an epoch in the study's way."""
    torch.manual_seed(1)
    transform = transforms.Compose(
        [
            transforms.ColorJitter(brightness=0.1, contrast=0.1),
            transforms.RandomRotation((-7.0, 7.0), fill=(0,)),
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
        ]
    )
    mnist = datasets.MNIST(ROOT, train=True, transform=transform)
    model = plain_v2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.025, momentum=0.8)
    loss_function = nn.CrossEntropyLoss()

    def epoch(count: int) -> None:
        loader = DataLoader(
            Subset(mnist, range(count)), batch_size=BATCH, shuffle=True, num_workers=loader_workers
        )
        model.train()
        correct, processed = 0, 0
        for x, labels in loader:
            optimizer.zero_grad()
            logits = model(x)
            loss = loss_function(logits, labels)
            loss.backward()
            optimizer.step()
            correct += int((logits.argmax(dim=1) == labels).sum())
            processed += len(x)
            _ = f"loss={loss.item()} accuracy={100 * correct / processed:.2f}"

    epoch(WARM_UP)
    wait()
    start = time.perf_counter()
    epoch(images)
    return time.perf_counter() - start


def bantam(images: int, overrides: list[str], wait: Any) -> float:
    """Seconds for an epoch with the engine that `python train.py` uses, without scoring."""
    with initialize_config_dir(str(Path(__file__).resolve().parent.parent / "conf")):
        cfg = compose(
            "config", ["data=mnist", f"data.root={ROOT}", f"threads={torch.get_num_threads()}", *overrides]
        )
    choices = {"model": "v2", "optimizer": "sgd", "scheduler": "step", "augmentation": "study", "data": "mnist"}
    prepared = prepare(cfg, RunInfo(Path("none"), choices, 1, None))

    steps(prepared, WARM_UP // BATCH)
    wait()
    return steps(prepared, -(-images // BATCH))


def measure(way: str, processes: int, threads: int, images: int, extra: list[str]) -> tuple[float, float]:
    """Images per second of so many processes together, and the most memory that one of them took, in GiB."""
    command = [sys.executable, __file__, "--one", way, "--threads", str(threads), "--images", str(images), *extra]
    crew = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in crew:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{' '.join(command)} failed")
    start = time.perf_counter()
    for process in crew:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    seconds, memory = [], []
    for process in crew:
        assert process.stdout is not None
        took, kibibytes = process.stdout.readline().split()
        seconds.append(float(took))
        memory.append(float(kibibytes) / 2**20)
    together = time.perf_counter() - start
    for process in crew:
        process.wait()
    # Side by side it takes as long as the slowest, from the first that begins to the last that is done.
    return processes * images / (together if processes > 1 else seconds[0]), max(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each, taking turns")
    parser.add_argument("--images", type=int, default=60_000, help="images in an epoch")
    parser.add_argument("--one", choices=("study", "bantam"), help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--loader-workers", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", help="overrides for Bantam's configuration, such as precision=float32"
    )
    arguments = parser.parse_args()
    if arguments.one:
        config.register()
        torch.set_num_threads(arguments.threads)

        def wait() -> None:
            print("ready", flush=True)
            sys.stdin.readline()

        if arguments.one == "study":
            seconds = study(arguments.images, arguments.loader_workers, wait)
        else:
            seconds = bantam(arguments.images, arguments.overrides, wait)
        print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return

    cores, console = cpu_count(), Console()
    table = Table(box=None, title=f"V2, {arguments.images:,} images, medians of {arguments.repeats}")
    for column in ("", "study, images/s", "Bantam, images/s", "ratio", "GiB a process of Bantam"):
        table.add_column(column, justify="left" if not column else "right")
    for title, processes, threads in (("one run, all cores", 1, cores), (f"sweep, {cores} processes", cores, 1)):
        few = min(arguments.images, 12_800)
        with console.status(f"{title}: how many loader workers?"):
            by_workers = {
                workers: measure("study", processes, threads, few, ["--loader-workers", str(workers)])[0]
                for workers in range(cores + 1)
            }
        best = max(by_workers, key=lambda workers: by_workers[workers])
        found = ", ".join(f"{workers}: {rate:,.0f}" for workers, rate in by_workers.items())
        console.print(f"{title}: images/s by loader workers {found}; taken: {best}")
        studies, bantams = [], []
        for repeat in range(arguments.repeats):
            with console.status(f"{title}: turn {repeat + 1} of {arguments.repeats}"):
                studies.append(
                    measure("study", processes, threads, arguments.images, ["--loader-workers", str(best)])[0]
                )
                bantams.append(measure("bantam", processes, threads, arguments.images, arguments.overrides))
        ours, theirs = statistics.median(rate for rate, _ in bantams), statistics.median(studies)
        most = max(memory for _, memory in bantams)
        table.add_row(title, f"{theirs:,.0f}", f"{ours:,.0f}", f"{ours / theirs:.2f}", f"{most:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
