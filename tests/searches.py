"""Searches for the tests: jobs that only pretend to train, and looking into real ones from outside."""

import functools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from commands import PROJECT, Forked
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig
from sqlalchemy.exc import SQLAlchemyError

from bantam.search import worker
from bantam.search.checks import check
from bantam.search.space import Search
from bantam.search.study import open_study
from bantam.training import folder as record


def hydra(*overrides: str) -> DictConfig:
    """The node `hydra` of a multirun."""
    with initialize_config_dir(str(PROJECT / "conf")):
        cfg = (
            GlobalHydra.instance().config_loader().load_configuration("config", list(overrides), RunMode.MULTIRUN)
        )
    node: DictConfig = cfg.hydra
    return node


class Jobs:
    """A launcher whose jobs write the result of a training without training.

    `result` makes it of a trial's settings; what it raises, the launcher raises.
    """

    def __init__(self, folder: Path, result: Callable[[int, dict[str, str]], dict[str, Any]]) -> None:
        self.folder, self.result = folder, result
        self.launched: list[int] = []

    def launch(self, overrides: list[list[str]], initial_job_idx: int) -> None:
        self.launched.append(initial_job_idx)
        settings = dict(item.split("=", 1) for item in overrides[0])
        result = self.result(initial_job_idx, settings)
        folder = self.folder / settings.get("hydra.sweep.subdir", str(initial_job_idx))
        (folder / ".hydra").mkdir(parents=True)
        record.write_result(folder, {"verdict": "not judged", "reason": "", **result})


def rate(number: int, settings: dict[str, str]) -> dict[str, Any]:
    """A pretended accuracy that rises with the learning rate and the width."""
    return {"objective": 90 + 10 * float(settings["optimizer.lr"]) + float(settings.get("model.width", 0)) / 10}


SPACE = ("optimizer.lr=interval(0.01,0.1)", "model.width=range(8,21)")


TWO = ("hydra.sweeper.objectives=[accuracy,parameters]", "hydra/sweeper/pruner=dominated")


def sized(number: int, settings: dict[str, str]) -> dict[str, Any]:
    """A pretended accuracy that rises with the width and, above 12, falls."""
    width = int(settings["model.width"])
    return {"objective": 90 + min(width, 24 - width) / 10}


def work(wanted: Search) -> list[optuna.trial.FrozenTrial]:
    """Check and search in this very process; returns the trials."""
    check(wanted)
    open_study(wanted)
    worker.run_trials(wanted, float("inf"))
    return open_study(wanted).trials


LINE = (
    "-m",
    "hparams_search=optuna",
    "data=fashion_mnist",
    "data.validation=100",
    "threads=1",
    "report=false",
    "epochs=2",
    "model.width=range(3,6)",
    "hydra.sweeper.sampler.seed=1",
    "hydra.sweeper.heartbeat=1",
)
"""A search on few images, where BANTAM_DATA says that they are."""


@dataclass(frozen=True)
class Finished:
    """A search that has ended."""

    folder: Path
    """Where its command was typed."""
    output: str


def workers(process: Forked) -> list[int]:
    """The process numbers of a search's workers: the forks of a process that it started."""

    def children(parents: list[int]) -> list[int]:
        command = ["ps", "-o", "pid=", "--ppid", ",".join(map(str, parents))]
        return [int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()]

    helpers = children([process.pid])
    return children(helpers) if helpers else []


def stored(folder: Path, storage: str = "") -> optuna.Study:
    """The study in a folder or at an address, read as optuna-dashboard would."""
    address = storage or f"sqlite:///{folder}/multirun/optuna/study.db"
    return optuna.load_study(study_name="optuna", storage=opened(address))


@functools.cache
def opened(address: str) -> optuna.storages.BaseStorage:
    """A storage, opened once however often a test looks into it."""
    if address.startswith("journal://"):
        backend = optuna.storages.journal.JournalFileBackend(address.removeprefix("journal://"))
        return optuna.storages.JournalStorage(backend)
    return optuna.storages.RDBStorage(address)


def wait_for(condition: Callable[[], Any], seconds: float = 600) -> None:
    """Wait until something has happened; what is not there yet has not happened."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if condition():
                return
        except (KeyError, SQLAlchemyError, optuna.exceptions.StorageInternalError):
            pass
        time.sleep(0.2)
    raise TimeoutError


class Postgresql:
    """A server of PostgreSQL that can be restarted, with a database of its own."""

    def __init__(self, programs: Path, folder: Path) -> None:
        """Make the database."""
        user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
        if user:
            shutil.chown(folder, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.programs, self.folder, self.log = programs, folder, (folder / "log").open("wb")
        self.quiet: dict[str, Any] = {"user": user, "stdout": self.log, "stderr": self.log, "cwd": folder}
        made = [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "bantam"]
        subprocess.run(made, check=True, **self.quiet)
        self.address = f"postgresql+psycopg://bantam@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        listen = ["-h", "127.0.0.1", "-p", self.port, "-k", str(self.folder), "-c", "fsync=off"]
        command = [self.programs / "postgres", "-D", self.folder / "data", *listen]
        self.server = subprocess.Popen(command, **self.quiet)
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", self.port]
        wait_for(lambda: subprocess.run(ready).returncode == 0, 60)

    def stop(self) -> None:
        """Stop the server as `pg_ctl restart` does: connections are closed."""
        self.server.send_signal(signal.SIGINT)  # what PostgreSQL calls a fast shutdown
        self.server.wait(60)

    def close(self) -> None:
        """Close the log."""
        self.log.close()
