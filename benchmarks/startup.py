"""How long until something happens? Seconds from the command to its answer.

    python benchmarks/startup.py

Measured, taking turns: `import torch` alone for comparison, a refused typo, `--help`, a refused budget, a dry run
and the first step of training, on the images that come with a package, and a dry run on MNIST, which must be
there.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

TRAIN = str(Path(__file__).resolve().parent.parent / "train.py")


def seconds(arguments: list[str], folder: str) -> float:
    """How long a command takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - start


def until_first_step(folder: str) -> float:
    """How long a command takes that trains one epoch, without that epoch and what comes after it."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        command = [sys.executable, TRAIN, "data=mnist5k", "epochs=1", "pictures=false", f"hydra.run.dir={run}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch  1/1" in line:
                break
        took = time.perf_counter() - start
        process.communicate()
        with (Path(run) / "run" / "history.csv").open(newline="") as stream:
            (epoch,) = csv.DictReader(stream)
        return took - float(epoch["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="times that each is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "import torch": lambda: seconds(["-c", "import torch"], folder),
            "a refused typo": lambda: seconds([TRAIN, "optimizer.lrr=1"], folder),
            "--help": lambda: seconds([TRAIN, "--help"], folder),
            "a refused budget": lambda: seconds([TRAIN, "model.width=17"], folder),
            "dry_run=true data=mnist5k": lambda: seconds([TRAIN, "dry_run=true", "data=mnist5k"], folder),
            "dry_run=true data=mnist": lambda: seconds([TRAIN, "dry_run=true", "data=mnist"], folder),
            "the first step": lambda: until_first_step(folder),
        }
        measured: dict[str, list[float]] = {name: [] for name in cases}
        console = Console()
        for turn in range(arguments.repeats + 1):
            with console.status(f"turn {turn} of {arguments.repeats}"):
                for name, case in cases.items():
                    took = case()
                    if turn:  # the first one warms the disk's cache
                        measured[name].append(took)
    table = Table(box=None)
    table.add_column("")
    table.add_column("seconds, median", justify="right")
    table.add_column("× import torch", justify="right")
    torch_alone = statistics.median(measured["import torch"])
    for name, times in measured.items():
        table.add_row(name, f"{statistics.median(times):.2f}", f"{statistics.median(times) / torch_alone:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
