"""What does a search itself take, beside its trainings, when it has many trials?

    python benchmarks/overhead.py

A study is filled with trials that have ended, in SQLite, then in a journal. Measured are a look of the process
that watches, and the pause of a worker between two trainings, which take no time here. The pause is measured with
the default sampler and with one that reads no trials: what the two differ by is Optuna's own.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, RunMode
from optuna.trial import TrialState, create_trial
from rich.console import Console
from rich.table import Table

from bantam import config
from bantam.search import sweeper, terminal, trials, watch, worker
from bantam.search.space import Search, read
from bantam.search.study import open_study

CONF = Path(__file__).resolve().parent.parent / "conf"

SPACE = [
    "optimizer.lr=tag(log, interval(0.005, 0.3))",
    "optimizer.momentum=interval(0.7, 0.97)",
    "scheduler.step_size=range(2, 11)",
    "scheduler.gamma=interval(0.05, 0.7)",
    "model.width=range(8, 17)",
]


class NoTraining:
    """A launcher whose jobs end at once, with the result of a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began: list[float] = []
        self.ended: list[float] = []

    def launch(self, overrides: list[list[str]], initial_job_idx: int) -> None:
        from bantam.training import folder as files

        self.began.append(time.perf_counter())
        folder = self.folder / str(initial_job_idx)
        folder.mkdir()
        files.write_result(folder, {"verdict": "not judged", "reason": "", "objective": 90.0})
        self.ended.append(time.perf_counter())

    def pause(self) -> float:
        """Median of the milliseconds between the end of a job and the beginning of the next."""
        return 1000 * statistics.median(b - e for b, e in zip(self.began[1:], self.ended, strict=False))


def searching(folder: Path, storage: str, sampler: str, n_trials: int) -> Search:
    """A search in a folder whose jobs train nothing."""
    line = ["data=mnist5k", "data.validation=1000", *SPACE]
    settings = [
        "hydra/sweeper=bantam",
        f"hydra/sweeper/sampler={sampler}",
        f"hydra.sweep.dir={folder}",
        "hydra.sweep.subdir=${hydra.job.num}",
        f"hydra.sweeper.n_trials={n_trials}",
        f"hydra.sweeper.storage={storage or 'null'}",
    ]
    with initialize_config_dir(str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration("config", [*line, *settings], run_mode=RunMode.MULTIRUN)
        HydraConfig.instance().set_config(cfg)
    context = HydraContext(config_loader=loader, callbacks=SimpleNamespace())  # type: ignore[arg-type]
    return read(cfg, context, NoTraining(folder), line)  # type: ignore[arg-type]


def fill(search: Search, study: optuna.Study, count: int) -> None:
    """Add trials that have ended, a third of them pruned."""
    sampler = optuna.samplers.RandomSampler(seed=1)
    other = optuna.create_study(sampler=sampler, direction="maximize")
    made = []
    for number in range(count):
        params = other.ask(dict(search.space)).params
        pruned = number % 3 == 0
        made.append(
            create_trial(
                params=params,
                distributions=dict(search.space),
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                value=None if pruned else 90 + number / count,
                intermediate_values={epoch: 90.0 + epoch for epoch in range(1, 6 if pruned else 16)},
                user_attrs={"parameters": 9000, "heartbeat": 3, **({"pruned": True} if pruned else {})},
            )
        )
    study.add_trials(made)


def timed(call: Any, times: int) -> float:
    """Median of the milliseconds that a call takes."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        took.append(1000 * (time.perf_counter() - start))
    return statistics.median(took)


def look(search: Search, study: optuna.Study, shown: set[int]) -> None:
    """What the watching process does every half second, as `watch._looks` and `watch._show` do it."""
    listed = trials.requeue(study)
    watch.hopeless(search, listed, ())
    watch.missing(search, trials.count(listed))
    terminal.show_ended(listed, shown)
    terminal.progress(search, listed, terminal.summary(search, listed, 1.0, 2))


def measure(count: int, storage: str, turns: int) -> tuple[float, float, float, float]:
    """Milliseconds: to open a study of so many trials, of a look, and of a pause with and without a model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "study")
        folder.mkdir()
        address = f"journal://{name}/study.log" if storage == "journal" else ""
        search = searching(folder, address, "random", count + turns)
        study = open_study(search)
        fill(search, study, count)
        opened = timed(lambda: open_study(search).get_trials(deepcopy=False), 1)
        shown = trials.ended(trials.read(study))
        looked = timed(lambda: look(search, study, shown), turns)
        pauses = []
        for sampler, done in (("random", turns + 1), ("multivariate_tpe", 2 * turns + 2)):
            search = searching(folder, address, sampler, count + done)
            worker.run_trials(search, float("inf"))
            pauses.append(search.launcher.pause())  # type: ignore[attr-defined]
        return opened, looked, *pauses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--turns", type=int, default=10, help="looks and trainings to measure")
    arguments = parser.parse_args()
    config.register()
    sweeper.register()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = Table(box=None, title=f"milliseconds; medians of {arguments.turns}")
    for column in ("storage", "trials", "open", "look", "pause, random", "pause, TPE"):
        table.add_column(column, justify="left" if column == "storage" else "right")
    for storage in ("SQLite", "journal"):
        for count in arguments.trials:
            table.add_row(
                storage, f"{count:,}", *(f"{ms:,.0f}" for ms in measure(count, storage, arguments.turns))
            )
    Console().print(table)


if __name__ == "__main__":
    main()
