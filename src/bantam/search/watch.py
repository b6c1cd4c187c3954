"""The process that watches a search: it starts workers, replaces those that end, and shows what they do."""

import math
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import optuna
import torch
from hydra.core.utils import JobRuntime
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from joblib import cpu_count
from omegaconf import DictConfig
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.live import Live
from sqlalchemy.exc import SQLAlchemyError

from bantam import errors, snapshot, tracking
from bantam.search import confirm, outcome, processes, storage, terminal, trials
from bantam.search.checks import check
from bantam.search.composition import composed
from bantam.search.faults import EXIT_CODE
from bantam.search.space import Search, known_settings, read
from bantam.search.study import ending, hopeless, missing, open_study
from bantam.search.trials import Ending, Silence, Trials
from bantam.search.worker import Task, work
from bantam.training import saved

MAX_CRASHES = 3
"""Workers that may break, other than by being killed, before the search stops."""

LOOK_SECONDS = 0.5
"""Between two looks at the study."""

PAGE_SECONDS = 20.0
"""After which a search that goes on gets a page; a shorter one with its last trials, and at its end."""


def search(config: DictConfig, context: HydraContext, launcher: Launcher, arguments: list[str]) -> None:
    """Search, or continue a search, as the command line says. Raises ValueError for what cannot work."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = read(config, context, launcher, arguments)
    check(search)
    for sentence in [*search.notes, *known_settings(search)[1]]:
        terminal.show_sentence(sentence)
    if speaks_against := storage.warning(search.hydra):
        terminal.show_sentence(speaks_against)
    try:
        search.folder.mkdir(parents=True, exist_ok=True)
        try:
            with processes.imports():  # as the first use of a database does
                study = open_study(search)
        except ValueError:
            with suppress(OSError):  # it holds something
                search.folder.rmdir()
            raise
        terminal.show_images(search)
        try:
            watch(search, study)
        except ValueError:
            write_report(search)  # what stopped it wants to be looked at too
            raise
        if not write_report(search):
            raise SystemExit(1)
    except (SQLAlchemyError, StorageInternalError) as error:
        where = storage.shown(storage.address(search.hydra))
        raise ValueError(
            f"hydra.sweeper.storage={where} failed ({storage.first_line(error)}): {terminal.continues(search)}"
        ) from error
    except OSError as error:
        raise ValueError(f"{search.folder} cannot be written ({error}): {terminal.continues(search)}") from error


def write_report(search: Search) -> bool:
    """Write the report of what was found, unless `report=false` or no trial has ended; says whether it could."""
    if search.config.report and (search.folder / "trials.csv").exists():
        from bantam.report import page  # draws with packages that no worker needs

        return page.at_end(search.folder)
    return True


def watch(search: Search, study: Study) -> None:
    """Start workers, show what they do, replace those that end, and sum up. Raises ValueError if stuck."""
    for number in processes.SIGNALS:
        signal.signal(number, processes.stop)
    listed = trials.requeue(study)
    counts = trials.count(listed)
    if missing(search, counts) <= 0 and not counts["running"]:
        terminal.show_nothing_to_do(search)
        finish(search, study)
        return
    terminal.show_continuing(search, listed)
    workers: dict[int, BaseProcess] = {}
    try:
        _show(search, study, workers, listed)
    except processes.Stopped as stopped:
        processes.stop_workers(workers.values())
        listed = trials.requeue(study)
        outcome.write(search, listed, stopped.signal.name)
        terminal.show_interruption(search, stopped.signal.name)
        if trials.ended(listed):
            write_report(search)
        raise SystemExit(128 + stopped.signal) from None
    except BaseException as error:
        processes.stop_workers(workers.values())
        with suppress(SQLAlchemyError, StorageInternalError, OSError):
            outcome.write(search, trials.requeue(study), str(error))
        raise
    finish(search, study)


def _show(search: Search, study: Study, workers: dict[int, BaseProcess], listed: Trials) -> None:
    """Keep the live table up to date until the search is done, and print a line for each trial that ends."""
    started, side_by_side = time.monotonic(), _side_by_side(search)
    shown = trials.ended(listed)
    pages = Pages(search, started)
    logged = _log_sizes(search)
    try:
        table = Live(console=terminal.console, transient=True, refresh_per_second=2)
        with table, terminal.lines(search) as line:
            for listed in _looks(search, study, workers, started):
                ended = terminal.show_ended(listed, shown)
                _show_tracebacks(search, logged)
                if ended:
                    shown |= ended
                    line.was_written()
                    trials.write(search.folder, listed)  # for whoever looks before the end
                counts = trials.count(listed)
                pages.look(bool(ended), counts["running"] > 0 and missing(search, counts) <= 0)
                summary = terminal.summary(search, listed, time.monotonic() - started, side_by_side)
                table.update(terminal.progress(search, listed, summary))
                line.update(f"{search.name}: {summary}")
    finally:
        _show_tracebacks(search, logged)
        pages.join()  # before the one at the end


TRACEBACK = re.compile(rb"Traceback \(most recent call last\):\n(?:[ \t].*\n|\n(?=[ \t]))*\S.*\n")
"""One in a worker's log."""


def _log_sizes(search: Search) -> dict[Path, int]:
    """How long the logs of the workers are."""
    return {log: log.stat().st_size for log in search.folder.glob("worker-*.log")}


def _show_tracebacks(search: Search, seen: dict[Path, int]) -> None:
    """Print the tracebacks that workers have logged since the sizes that were seen, where that is asked for."""
    if not errors.wants_tracebacks():
        return
    for log in sorted(_log_sizes(search)):
        text = log.read_bytes()[seen.get(log, 0) :]
        end = 0
        for found in TRACEBACK.finditer(text):
            terminal.show_sentence(found[0].decode(errors="replace"))
            end = found.end()
        seen[log] = seen.get(log, 0) + end


class Pages:
    """The report of a search that goes on, written in a thread: the live table does not wait for it."""

    def __init__(self, search: Search, started: float) -> None:
        """`started` is the time on `time.monotonic` at which the search began, or went on."""
        self.search, self.started = search, started
        self.thread, self.due = Thread(), False

    def look(self, ended: bool, last: bool) -> None:
        """Take notice of trials that have ended, and of whether those that run are the last ones."""
        self.due |= ended and bool(self.search.config.report)
        # With the last trials, not behind them: there whoever waits would wait for the imports too.
        timely = last or time.monotonic() - self.started > PAGE_SECONDS
        if self.due and timely and not self.thread.is_alive():
            self.due = False
            self.thread = Thread(target=self._write, daemon=True)
            self.thread.start()

    def join(self) -> None:
        """Wait for a page that is being written."""
        if self.thread.is_alive():
            self.thread.join()

    def _write(self) -> None:
        with suppress(Exception):  # when the search ends, what is wrong is said
            from bantam.report import page

            if not page.while_running(self.search.folder):
                self.due = True


def _looks(search: Search, study: Study, workers: dict[int, BaseProcess], started: float) -> Iterator[Trials]:
    """Keep the workers at work and yield the trials at every look, until the search is done."""
    until = started + (search.settings.timeout or math.inf)
    options = snapshot.take(search.context.config_loader)
    found = getattr(search.launcher, "found", {})
    composing = search.space, search.fixed, search.plain, search.choices, options, composed
    task = Task(search.config, *composing, str(JobRuntime.instance().get("name")), until, found)
    silence = Silence(search.settings.heartbeat)
    listed = trials.read(study)
    before = trials.ended(listed)
    idle_since = math.inf
    crashes = 0
    while True:
        for trial in silence.too_long(listed):
            end_silent(search, study, trial)
        listed = trials.requeue(study)
        yield listed
        crashes += _remove_ended(search, workers, crashes)
        reason = hopeless(search, listed, before)
        if reason:
            raise ValueError(reason)
        counts, late = trials.count(listed), time.monotonic() > until
        wanted = missing(search, counts)
        if wanted > 0 and not late:
            for slot in range(min(_side_by_side(search), wanted + counts["running"])):
                if slot not in workers:
                    workers[slot] = processes.start_worker(_log(search, slot), work, task)
        elif not workers:
            idle_since = min(idle_since, time.monotonic())
            # Others may still be at work on this study; what shows no heartbeat will be ended.
            patience = trials.GRACE_PERIOD * search.settings.heartbeat
            if counts["running"] == 0 or (late and time.monotonic() > idle_since + patience):
                return
        if wanted > 0 or not workers:
            time.sleep(LOOK_SECONDS)
        else:  # the last trials: their workers end
            wait([worker.sentinel for worker in workers.values()], LOOK_SECONDS)


def end_silent(search: Search, study: Study, trial: FrozenTrial) -> None:
    """End a trial whose process has died: as its training has ended, or stopped, so that it is queued again."""
    try:
        how = ending(search, study, trial.number, trial.user_attrs)
    except ValueError:
        how = Ending(TrialState.FAIL)
    trials.end(study, trial.number, how)


def _remove_ended(search: Search, workers: dict[int, BaseProcess], crashes: int) -> int:
    """Forget the workers that have ended; returns how many of them crashed.

    Raises ValueError for too many, and for one whose machine cannot train.
    """
    crashed = 0
    for slot, worker in list(workers.items()):
        if worker.exitcode is None:
            continue
        del workers[slot]
        crashed += worker.exitcode > 0
        log = _log(search, slot)
        last = "".join(log.read_text(errors="replace").strip().splitlines()[-1:])
        if worker.exitcode == EXIT_CODE:
            raise ValueError(f"{last}: when that is mended, {terminal.continues(search)}")
        if crashes + crashed > MAX_CRASHES:
            raise ValueError(f"workers keep breaking: {last} ({log})")
    return crashed


def _log(search: Search, slot: int) -> Path:
    """What a worker prints."""
    return search.folder / f"worker-{slot}.log"


def _side_by_side(search: Search) -> int:
    """How many processes train side by side."""
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return int(search.settings.n_jobs or (cpu_count() if cpu else 1))


def finish(search: Search, study: Study) -> None:
    """Write what was found, print how to run it, and confirm it where that is asked for."""
    listed = trials.read(study)
    outcome.keep_best_weights(search, listed)
    left = missing(search, trials.count(listed))
    outcome.remove_leftovers(search, listed)
    found = outcome.write(search, listed, "timeout" if left > 0 else "enough")
    terminal.show_counts(search, listed, left)
    if not found:
        raise ValueError(f"no trial of the study {search.name} was trained to its end: see trials.csv")
    terminal.show_result(search, found)
    if search.prepared.trackers:  # of networks over the budget they do not know yet
        tracking.send([search.folder], search.prepared.trackers, saved.tracker_overrides(search.plain))
    top, seeds = search.settings.confirm.top, search.settings.confirm.seeds
    if top:
        confirm.confirm(search.folder, top, seeds, Path(sys.argv[0]))
    elif not any(outcome.damage_of(search.folder / str(trial.number)) for trial in found):
        terminal.show_confirmation(search)
