"""How long does an image take? A finished run's network in PyTorch, in Bantam's blocks, in ONNX Runtime.

    python export.py docs/results/champion/0
    python benchmarks/inference.py docs/results/champion/0

One image at a time and batches of 200, on one thread. All four begin with images as bytes, so that all of them
normalise. They take turns; the table has the median of the rounds in microseconds an image, and how many times
longer or shorter that is than PyTorch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bantam import config
from bantam.export.graph import FromBytes, Session, as_pictures
from bantam.export.run import FLOAT, INT8
from bantam.search import sweeper
from bantam.training import saved
from bantam.training.folder import read_weights
from bantam.training.setup import RunInfo, prepare_finished

BATCHES = (1, 200)
SECONDS = 0.2
"""How long each of them computes in a round."""


def networks(folder: Path) -> tuple[dict[str, Callable[[Any], Any]], torch.Tensor]:
    """What computes the logits of images in bytes, by its name, and images."""
    own = saved.load(folder)
    cfg = own.checked.copy()
    cfg.threads, cfg.precision = 1, "float32"
    prepared = prepare_finished(cfg, RunInfo(folder, dict(own.choices), 1, None))
    read_weights(folder, prepared.result_model)
    found: dict[str, Callable[[Any], Any]] = {"PyTorch": FromBytes(prepared.result_model, prepared.data).eval()}
    if prepared.kernels == "native":
        found["Bantam's blocks"] = FromBytes(prepared.scoring_model, prepared.data).eval()
    for name, file in (("ONNX Runtime, float32", FLOAT), ("ONNX Runtime, int8", INT8)):
        session = Session((folder / file).read_bytes(), name)
        found[name] = partial(_of_arrays, session)
    return found, as_pictures(prepared.data.held_out_images)


def _of_arrays(session: Session, images: torch.Tensor) -> Any:
    return session(images.numpy())


@torch.no_grad()
def microseconds(network: Callable[[Any], Any], images: torch.Tensor, batch: int) -> float:
    """Mean time of an image in batches of this size."""
    batches = torch.split(images[: 2000 if batch > 1 else 200], batch)
    network(batches[0])
    start, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < SECONDS:
        for part in batches[:10]:
            network(part)
            count += len(part)
    return 1e6 * seconds / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a finished run that has been exported")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    config.register()
    sweeper.register()
    found, images = networks(arguments.folder)
    times: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in found for batch in BATCHES}
    for _ in range(arguments.rounds):
        for (name, batch), measured in times.items():
            measured.append(microseconds(found[name], images, batch))
    table = Table("", *(f"batches of {batch}, µs an image" for batch in BATCHES))
    for name in found:
        cells = []
        for batch in BATCHES:
            median = statistics.median(times[name, batch])
            cells.append(f"{median:.1f} ({statistics.median(times['PyTorch', batch]) / median:.2f}× as fast)")
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
