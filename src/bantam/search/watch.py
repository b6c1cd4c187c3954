"""The process that watches a search: it starts workers, replaces those that end, and shows what they do."""

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import torch
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from joblib import cpu_count
from omegaconf import DictConfig
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.live import Live
from sqlalchemy.exc import SQLAlchemyError

from bantam.search import confirm, outcome, storage, terminal, trials
from bantam.search import processes as crew
from bantam.search.space import Search, check, split
from bantam.search.study import missing, open_study, stuck
from bantam.search.worker import work

MOST_CRASHES = 3
"""Workers that may break, other than by being killed, before the search stops."""


def sweep(config: DictConfig, context: HydraContext, launcher: Launcher, arguments: list[str]) -> None:
    """Search, or continue a search, as the command line says. Raises ValueError for what cannot work."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = Search(config, context, launcher, *split(config.hydra.sweeper, arguments))
    try:
        if crew.UNTIL in os.environ:
            work(search, float(os.environ[crew.UNTIL]))
        else:
            check(search)
            try:
                watch(search)
            except ValueError:
                end(search)  # what stopped it wants to be looked at too
                raise
            end(search)
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"hydra.sweeper.storage={storage.shown(storage.address(search.hydra))} failed ({cause}): "
            "the same command line continues the search"
        ) from error


def end(search: Search) -> None:
    """Write the report of what was found, unless `report=false` or no trial has ended."""
    if search.config.report and (search.folder / "trials.csv").exists():
        from bantam.report import page as report  # draws with packages that no worker needs

        report.at_end(search.folder)


def watch(search: Search) -> None:
    """Start workers, show what they do, replace those that die, and sum up. Raises ValueError if stuck."""
    search.folder.mkdir(parents=True, exist_ok=True)
    study = open_study(search)
    workers: dict[int, BaseProcess] = {}
    console = Console(highlight=False)
    for number in crew.SIGNALS:
        signal.signal(number, signal.default_int_handler)
    started = time.time()
    told = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    counts = trials.count(study.get_trials(deepcopy=False))
    if missing(search, counts) <= 0 and not counts["running"]:
        console.print(
            f"The study {study.study_name} has its {search.settings.n_trials} trials: "
            "raise hydra.sweeper.n_trials to go on, or begin another one with hydra.sweeper.study_name=…"
        )
        finish(search, study, console)
        return
    try:
        with Live(console=console, transient=True, refresh_per_second=2) as live:
            for listed in _looks(search, study, workers, started):
                before = len(told)
                terminal.tell(listed, told, console)
                if len(told) > before:
                    trials.write(search.folder, listed)  # for whoever looks before the end
                live.update(terminal.status(search, listed, started, workers_wanted(search)))
    except KeyboardInterrupt:
        crew.dismiss(workers.values())
        terminal.tell(study.get_trials(deepcopy=False), told, console)
        trials.write(search.folder, study.get_trials(deepcopy=False))
        console.print("Interrupted. The same command line continues the search.")
        raise SystemExit(130) from None
    except BaseException:
        crew.dismiss(workers.values())
        with suppress(SQLAlchemyError, StorageInternalError):
            trials.write(search.folder, study.get_trials(deepcopy=False))
        raise
    finish(search, study, console)


def _looks(
    search: Search, study: Study, workers: dict[int, BaseProcess], started: float
) -> Iterator[list[FrozenTrial]]:
    """Keep the workers at work and yield the trials every half second, until the search is done."""
    until = started + (search.settings.timeout or math.inf)
    silence = storage.SILENT * search.settings.heartbeat
    idle_since = math.inf
    crashes = 0
    while True:
        trials.put_back_dead(study, silence)
        listed = study.get_trials(deepcopy=False)
        counts = trials.count(listed)
        yield listed
        for slot, worker in list(workers.items()):
            code = worker.exitcode
            if code is not None:
                del workers[slot]
                crashes += code > 0
                if crashes > MOST_CRASHES:
                    log = _log(search, slot)
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise ValueError(f"workers keep breaking: {''.join(last)} ({log})")
        reason = stuck(search, listed)
        if reason:
            raise ValueError(reason)
        unfinished = missing(search, counts) + counts["running"]
        late = time.time() > until
        if missing(search, counts) > 0 and not late:
            for slot in range(min(workers_wanted(search), unfinished)):
                if slot not in workers:
                    workers[slot] = crew.hire(_log(search, slot), until)
        elif not workers:
            idle_since = min(idle_since, time.time())
            # Others may still be at work on this study; whoever is silent is dead, and its trial told so.
            if counts["running"] == 0 or (late and time.time() > idle_since + silence):
                return
        time.sleep(0.5)


def _log(search: Search, slot: int) -> Path:
    """What a worker prints."""
    return search.folder / f"worker-{slot}.log"


def workers_wanted(search: Search) -> int:
    """How many processes train side by side."""
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return int(search.settings.n_jobs or (cpu_count() if cpu else 1))


def finish(search: Search, study: Study, console: Console) -> None:
    """Write what was found, print how to run it, and confirm it where that is asked for."""
    outcome.keep_best_weights(search, study)
    listed = study.get_trials(deepcopy=False)
    found = outcome.write(search, study, listed)
    terminal.summary(search, study.study_name, listed, console)
    if not found:
        raise ValueError(f"no trial of the study {study.study_name} was trained to its end: see trials.csv")
    terminal.found(search, found, console)
    if search.settings.confirm.top:
        top, seeds = search.settings.confirm.top, search.settings.confirm.seeds
        confirm.confirm(search.folder, top, seeds, Path(sys.argv[0]))
