"""What several test modules need: composing a configuration and finding the real MNIST."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from bantam import config
from bantam.search import sweeper
from bantam.training.run import Place

PROJECT = Path(__file__).parent.parent
SMALL = ("data=mnist5k", "model.width=4", "epochs=1", "pictures=false", "threads=1")
"""Overrides that make a run a matter of seconds, on a busy machine too: one thread waits for no other."""

config.register()
sweeper.register()


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """Compose `conf/` with overrides, as the command line does."""

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(PROJECT / "conf")):
            return compose("config", list(overrides))

    return compose_with


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A single run's empty folder."""
    return Place(tmp_path, {"model": "v2", "optimizer": "sgd", "scheduler": "step"}, 1, None)


@pytest.fixture
def mnist_root() -> str:
    """The folder that holds the real MNIST; the test is skipped where it is absent."""
    root = os.environ.get("BANTAM_DATA", str(PROJECT / "data"))
    if not (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip("the real MNIST is not on this machine: set BANTAM_DATA")
    return str(Path(root).absolute())


@pytest.fixture
def bantam(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one of the project's commands, such as `bantam("train.py", "seed=2")`, in an empty folder."""

    def call(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PROJECT / script), *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call
