"""Single runs in a test: where they are, how they are trained, and what their history says."""

import csv
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bantam.training.run import run
from bantam.training.setup import RunInfo, prepare


def history(folder: Path) -> list[dict[str, str]]:
    """The rows of history.csv without their timings."""
    with (folder / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def at(folder: Path, **changes: Any) -> RunInfo:
    folder.mkdir(exist_ok=True)
    choices = {"model": "v2", "experiment": None, "optimizer": "sgd", "scheduler": "step"}
    return RunInfo(folder, {**choices, **changes}, 1, None)


def train(cfg: DictConfig, info: RunInfo) -> float:
    return run(prepare(cfg, info))
