"""What is made once a session, by one of the processes that test side by side, for tests that only look at it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, by this process or another; nobody may change it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            part = shared / f"{name}-part"
            shutil.rmtree(part, ignore_errors=True)  # of a process that failed
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder
