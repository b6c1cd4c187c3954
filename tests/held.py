"""Trainings that wait after an epoch until a test lets them go, so that no test depends on how fast they are."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LONGEST = 300
"""Seconds after which a training goes on anyway: its test has ended without it."""

ALL = "all"
"""Name under which every run is let go."""


def hold(epochs: int, folder: str) -> None:
    """Make each training of this process and its workers wait when so many epochs are done and written down.

    A run whose folder is called NAME shows that by making `folder`/NAME.waits, and waits for `folder`/NAME or
    `folder`/all.
    """
    from bantam.training import loop, run

    plain_run, train = run.run, loop.train
    names: list[str] = []

    def named_run(prepared: Any, *others: Any) -> float:
        info = next(value for value in (getattr(prepared, "info", None), *others) if hasattr(value, "folder"))
        names.append(info.folder.name)
        return plain_run(prepared, *others)

    def held_train(*arguments: Any, **named: Any) -> Iterator[loop.Epoch]:
        for epoch in train(*arguments, **named):
            yield epoch
            if epoch.epoch == epochs:
                wait(Path(folder), names[-1])

    replace(plain_run, named_run)
    replace(train, held_train)


def replace(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Replace a function under every name that Bantam's modules have for it."""
    for module in [module for name, module in sys.modules.items() if name.startswith("bantam.")]:
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)


def wait(folder: Path, name: str) -> None:
    """Say that a run waits, and do so until it is let go."""
    (folder / f"{name}.waits").touch()
    until = time.monotonic() + LONGEST
    while not (folder / name).exists() and not (folder / ALL).exists() and time.monotonic() < until:
        time.sleep(0.02)
