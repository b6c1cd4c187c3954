"""Bantam from Python: `train` does in this process what train.py does, `load` takes the network of a run."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from bantam import config, errors, launch, overrides, resolve
from bantam.search import sweeper
from bantam.training import predict, saved, terminal
from bantam.training.finished import Run

_training = threading.Lock()
"""Held while this process trains: the threads of PyTorch and its random numbers are the process's own."""


@errors.told_shortly
def train(*words: str, config_dir: str | os.PathLike[str] | None = None) -> Run | None:
    """Train with the overrides of train.py, `bantam.train("experiment=champion", "epochs=1")`; returns the run.

    `config_dir` is a folder of options beside conf/, as --config-dir. "resume=<folder>" continues a run; with
    "dry_run=true" it is shown, and None returned. Raises ValueError with one sentence for what cannot be trained,
    and KeyboardInterrupt where it was stopped: the run can be resumed.
    """
    with _alone(words):
        composed, folder = _composed(words, Path(config_dir) if config_dir is not None else None)
        prepared = launch.prepare_typed(composed, folder)
        if composed.dry_run:
            terminal.describe(prepared)
            return None
        if composed.resume is None:
            launch.make(folder, "hydra.run.dir")
            saved.begin(folder, composed)
            saved.save(folder, prepared.cfg)
        from bantam.training.run import run

        run(prepared)
    return Run(folder)


@errors.told_shortly
def load(folder: str | os.PathLike[str]) -> predict.Network:
    """The network of a finished run, an nn.Module in evaluation mode, with the weights that the run saved.

    Raises ValueError with one sentence where the folder holds none.
    """
    return predict.load(Path(folder))


def _composed(words: Sequence[str], config_dir: Path | None) -> tuple[DictConfig, Path]:
    """What the overrides compose, and the folder of the run.

    A folder that is called as the second in which it is made may be there already: the next second has another.
    """
    while True:
        composed = launch.compose(words, config_dir, RunMode.RUN)
        folder = launch.folder_of(composed)
        named = composed.get("resume") or any(word.startswith("hydra.run.dir=") for word in words)
        if named or not (folder / ".hydra").exists():
            return composed, folder
        time.sleep(0.1)


@contextmanager
def _alone(words: Sequence[str]) -> Iterator[None]:
    """Train alone in this process, and leave its threads and random numbers as they were."""
    _refuse_other_than_overrides(words)
    if not _training.acquire(blocking=False):
        raise ValueError("this process is training already: wait until that has ended, or use another process")
    given = overrides.from_python.set(words)
    threads = torch.get_num_threads()
    try:
        config.register()
        sweeper.register()
        resolve.forget()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(threads)
        resolve.forget()
        overrides.from_python.reset(given)
        _training.release()


def _refuse_other_than_overrides(words: Sequence[object]) -> None:
    """Raise ValueError for what is no override of a single run."""
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f'{word!r} is no text: give overrides as in bantam.train("model=v2", "epochs=1")')
    for parsed in OverridesParser.create().parse_overrides(list(words)):  # type: ignore[arg-type]
        if parsed.is_sweep_override():
            raise ValueError(f"{parsed.input_line} stands for several runs: call bantam.train once for each")
