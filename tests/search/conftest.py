"""Searches for the tests: one that is called, one that is a command, and a database for many."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from commands import PROJECT, Bantam, Forked, Forks
from finished import once
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from searches import LINE, SPACE, Finished, Jobs, Postgresql, rate, workers

from bantam.search.space import Search, read


@pytest.fixture(autouse=True)
def few_images(few_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands find the few images of `LINE`."""
    monkeypatch.setenv("BANTAM_DATA", str(few_root))


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[Callable[..., Search]]:
    """Make a search whose jobs pretend, as `python train.py -m hydra/sweeper=bantam <overrides>` would."""

    def make(
        *overrides: str,
        result: Callable[[int, dict[str, str]], dict[str, Any]] = rate,
        space: tuple[str, ...] = SPACE,
        folder: str = "study",
        validation: int | None = 1000,
    ) -> Search:
        held_out = [] if validation is None else [f"data.validation={validation}"]
        line = ["data=mnist5k", *held_out, *space, *overrides]
        hydra = [
            "hydra/sweeper=bantam",
            f"hydra.sweep.dir={tmp_path}/{folder}",
            "hydra.sweep.subdir=${hydra.job.num}",
        ]
        if not any(item.startswith("hydra.sweeper.sampler") for item in overrides):
            hydra.append("hydra.sweeper.sampler.seed=1")
        with initialize_config_dir(str(PROJECT / "conf")):
            loader = GlobalHydra.instance().config_loader()
            cfg = loader.load_configuration("config", [*line, *hydra], run_mode=RunMode.MULTIRUN)
            HydraConfig.instance().set_config(cfg)
        context = HydraContext(config_loader=loader, callbacks=Callback())  # type: ignore[arg-type]
        task = [item for item in line if not item.startswith("hydra")]
        (tmp_path / folder).mkdir(exist_ok=True)
        jobs = Jobs(tmp_path / folder, result)
        return read(cfg, context, jobs, task)  # type: ignore[arg-type]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield make
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def started(bantam: Bantam) -> Iterator[Callable[..., Forked]]:
    """Start a search whose trainings wait after an epoch; the workers that it left are killed at the end."""
    processes = []

    def start(*overrides: str) -> Forked:
        processes.append(bantam.start("train.py", *LINE, *overrides, hold=1))
        return processes[-1]

    yield start
    for process in processes:
        for worker in workers(process):
            os.kill(worker, signal.SIGKILL)


@pytest.fixture(scope="session")
def finished_search(tmp_path_factory: pytest.TempPathFactory, forks: Forks, few_root: Path) -> Finished:
    """A search of three trials that has ended: its folder, and what it printed."""

    def search(folder: Path) -> None:
        commands = Bantam(folder, forks)
        line = (*LINE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
        done = commands("train.py", *line, BANTAM_DATA=str(few_root))
        commands.close()
        assert done.returncode == 0, done.stderr
        (folder / "output").write_text(done.stdout)

    folder = once(tmp_path_factory, "finished-search", search)
    return Finished(folder, (folder / "output").read_text())


@pytest.fixture
def finished(finished_search: Finished, tmp_path: Path) -> Finished:
    """That search, copied into the test's own folder."""
    shutil.copytree(finished_search.folder / "multirun", tmp_path / "multirun")
    return Finished(tmp_path, finished_search.output)


@pytest.fixture
def postgresql() -> Iterator[Postgresql]:
    """Debian's PostgreSQL on loopback, empty and for this test alone."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not binaries:
        pytest.skip("PostgreSQL is not on this machine: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgresql]'")
    folder = Path(tempfile.mkdtemp(prefix="bantam-postgresql-"))
    server = Postgresql(binaries[-1].parent, folder)
    server.start()
    yield server
    server.stop()
    server.close()
    shutil.rmtree(folder)
