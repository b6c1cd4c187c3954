"""Trials as they stand in the storage: heartbeats, the queue, how they end, their states, and `trials.csv`."""

import csv
import io
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from bantam.budget import COSTS
from bantam.search import distributions, faults, pruners, storage
from bantam.training import folder as files
from bantam.trials_csv import COLUMNS, OF_SEEDS

MAX_RETRIES = 3
"""How often a trial is run again whose process died: one that kills its process must not do so for ever."""

GRACE_PERIOD = 4
"""Heartbeats that may be missed before a trial's process counts as dead."""

FINISHED = ("complete", "pruned", "failed")
"""States of a training that came to its end, which `n_trials` counts."""


def reporter(hydra: DictConfig) -> Callable[[int, float], bool]:
    """For a job that is a trial: takes an epoch and its accuracy in percent, says whether to prune.

    It goes through the storage alone, so the job may run in another process or on another machine.
    """
    database, study = _opened(hydra)
    study.pruner = pruner = pruners.build(hydra.sweeper.pruner, *hydra.sweeper.objectives[1:])
    first = str(hydra.sweep.subdir) == str(hydra.job.num)  # further seeds of a trial are in folders in its own
    study_id = database.get_study_id_from_name(study.study_name)
    trial_id = database.get_trial_id_from_study_id_trial_number(study_id, hydra.job.num)
    before = 0 if first else database.get_trial(trial_id).user_attrs["steps"]

    def should_prune(epoch: int, accuracy: float) -> bool:
        try:
            database.set_trial_intermediate_value(trial_id, before + epoch, accuracy)
            return first and pruner.prune(study, database.get_trial(trial_id))
        except UpdateFinishedTrialError:
            return True  # it was taken for dead, and runs again elsewhere
        finally:
            database.remove_session()  # an error within a transaction would leave the storage locked

    return should_prune


_studies: dict[tuple[str, str, int], tuple[BaseStorage, Study]] = {}
"""Of the jobs of this process, by address, name and process number: what they have read need not be read again."""


def _opened(hydra: DictConfig) -> tuple[BaseStorage, Study]:
    """The storage and the study of a job; a process that was forked since opens its own, for its connections."""
    name = str(hydra.sweeper.study_name)
    key = (storage.address(hydra), name, os.getpid())
    if key not in _studies:
        database = storage.open_storage(hydra, wait=True)
        _studies[key] = database, optuna.load_study(study_name=name, storage=database)
    return _studies[key]


@contextmanager
def heartbeat(trial: Trial, seconds: float) -> Iterator[None]:
    """Show every so many seconds, in a thread, that a trial's process lives."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while True:
            # Where the storage is away, the next beat may reach it.
            with suppress(SQLAlchemyError, StorageInternalError, OSError):
                try:
                    trial.set_user_attr("heartbeat", count)
                except UpdateFinishedTrialError:
                    return
            count += 1
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Silence:
    """How long the running trials have shown no sign of life, by the clock of the process that looks.

    A heartbeat counts where it changes while this process watches: the clocks of two machines are never compared.
    """

    def __init__(self, heartbeat: float) -> None:
        """`heartbeat` is the seconds between two; the time between two looks counts for no more."""
        self.heartbeat = heartbeat
        self._last_look = time.monotonic()
        self._signs: dict[int, Any] = {}
        self._seconds: dict[int, float] = {}

    def too_long(self, listed: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Look at all trials; returns those that run and have been silent for longer than the grace period."""
        now = time.monotonic()
        passed, self._last_look = min(now - self._last_look, self.heartbeat), now
        running = [trial for trial in listed if trial.state == TrialState.RUNNING]
        for trial in running:
            signs = (trial.user_attrs.get("heartbeat"), len(trial.params), trial.last_step)
            silent = self._signs.get(trial.number) == signs
            self._seconds[trial.number] = self._seconds[trial.number] + passed if silent else 0.0
            self._signs[trial.number] = signs
        return [trial for trial in running if self._seconds[trial.number] > GRACE_PERIOD * self.heartbeat]


@dataclass(frozen=True)
class Ending:
    """How a trial ends: what Optuna is told, and what is noted with it."""

    state: TrialState
    values: tuple[float, ...] | None = None
    """Percent; with two objectives percent and the cost."""
    notes: dict[str, Any] = field(default_factory=dict)
    """User attributes; one with a `reason` came to an end of its own."""


STOPPED = Ending(TrialState.FAIL, None, {"interrupted": True})
"""Of a trial that is queued again, since nothing speaks against its settings."""

SURPLUS = Ending(TrialState.FAIL, None, {"surplus": True})
"""Of a trial that another one makes superfluous."""


def ending(folder: Path, *cost: int) -> Ending:
    """How the training in a trial's folder ended; `cost` is that of its network, where it is an objective.

    Raises ValueError where it did not end.
    """
    result = files.read_result(folder)
    if result["verdict"] == "pruned":
        notes = {"pruned": True, "reason": result["reason"]}
        if cost:
            # TPE cannot read pruned trials beside two objectives: it learns from the last accuracy.
            return Ending(TrialState.COMPLETE, (files.read_history(folder)[-1].accuracy, *cost), notes)
        return Ending(TrialState.PRUNED, None, notes)
    if result.get("objective") is None and faults.is_recorded(str(result["reason"])):
        return Ending(TrialState.FAIL, None, {"interrupted": True, "fault": str(result["reason"])})
    if result.get("objective") is None:
        return Ending(TrialState.FAIL, None, {"reason": f"{result['verdict']}: {result['reason']}"})
    return Ending(TrialState.COMPLETE, (float(result["objective"]), *cost))


def same(trial: FrozenTrial, state: str) -> Ending:
    """How a trial ends whose settings another one has been trained with."""
    original = trial.user_attrs.get("same_as", trial.number)
    notes = {"same_as": original, "reason": f"the settings of trial {original}, whose result it has"}
    if state == "pruned":
        notes["pruned"] = True
    if "objectives" in trial.user_attrs:
        notes["objectives"] = trial.user_attrs["objectives"]
    values = tuple(trial.values) if trial.state == TrialState.COMPLETE else None
    return Ending(trial.state, values, notes)


def end(study: Study, number: int, how: Ending) -> bool:
    """Tell the storage how a trial ended; returns False where others have ended it before."""
    try:
        trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        for key, value in how.notes.items():
            study._storage.set_trial_user_attr(trial_id, key, value)
        study.tell(number, how.values, state=how.state)
    except (UpdateFinishedTrialError, ValueError):
        if not study.get_trials(deepcopy=False)[number].state.is_finished():
            raise
        return False
    return True


class Trials(list[FrozenTrial]):
    """All trials of a study as they are at one moment; their states are determined once, for they may be many."""

    @cached_property
    def states(self) -> list[str]:
        interrupted = {trial.number for trial in self if trial.user_attrs.get("interrupted")}
        return [_state(self, trial, self.queued_again, interrupted) for trial in self]

    @cached_property
    def queued_again(self) -> set[int]:
        """The numbers of the trials that run again under another one."""
        return {number for trial in self for number in history(trial)}


def read(study: Study) -> Trials:
    """All trials of a study."""
    return Trials(study.get_trials(deepcopy=False))


def requeue(study: Study) -> Trials:
    """Queue every stopped trial again that nobody has queued; returns all trials.

    Whoever looks at the study does this, so that nothing is lost where a process dies between the two steps of
    ending a trial and queueing it. Two processes may do it at once: `superseded` tells which of the two runs.
    """
    listed = read(study)
    again = listed.queued_again
    for trial, state in zip(listed, listed.states, strict=True):
        if state == "stopped" and settings(trial) and trial.number not in again:
            study.enqueue_trial(settings(trial), user_attrs={"retry_history": [*history(trial), trial.number]})
            listed = read(study)
    return listed


def settings(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's settings, those that it was queued with and has not taken up yet among them."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def superseded(listed: Sequence[FrozenTrial], trial: FrozenTrial) -> bool:
    """Whether an earlier trial runs the same stopped trial again."""
    before = history(trial)[-1:]
    return bool(before) and any(history(other)[-1:] == before for other in listed[: trial.number])


def history(trial: FrozenTrial) -> list[int]:
    """The numbers under which a trial ran before, the last one last."""
    old = trial.system_attrs.get("retry_history", ())  # Optuna's own, in older studies
    return list(trial.user_attrs.get("retry_history", old))


def ended(listed: Iterable[FrozenTrial]) -> set[int]:
    """The numbers of the trials that have ended."""
    return {trial.number for trial in listed if trial.state.is_finished()}


def over_budget(trial: FrozenTrial) -> bool:
    """Whether a trial's network was refused for its size."""
    return max(trial.constraints.values(), default=0.0) > 0


def states(listed: Iterable[FrozenTrial]) -> list[str]:
    """The state of each trial, in a word.

    waiting, running, complete, pruned, failed, over budget, stopped (it runs again under another
    number) or surplus (begun or queued by two processes at once when only one was missing).
    """
    return listed.states if isinstance(listed, Trials) else Trials(listed).states


def _state(listed: Sequence[FrozenTrial], trial: FrozenTrial, again: set[int], interrupted: set[int]) -> str:
    notes = trial.user_attrs
    if notes.get("surplus") or (trial.state == TrialState.WAITING and superseded(listed, trial)):
        return "surplus"
    if trial.number in again:
        return "stopped"
    if over_budget(trial):
        return "over budget"
    if trial.state in (TrialState.COMPLETE, TrialState.FAIL) and (notes.get("pruned") or notes.get("given up")):
        # Beside two objectives Optuna is told otherwise, see `ending`; or its process died when it had noted this.
        return "pruned"
    if trial.state == TrialState.FAIL:
        deaths = len({trial.number, *history(trial)} - interrupted)
        return "failed" if notes.get("reason") or deaths > MAX_RETRIES else "stopped"
    return NAMES[trial.state]


NAMES = {state: state.name.lower() for state in TrialState}


def count(listed: Sequence[FrozenTrial]) -> Counter[str]:
    """How many trials are in each state."""
    return Counter(states(listed))


def reason(trial: FrozenTrial, state: str) -> str:
    """Why a trial is in its state, in one sentence; empty where there is nothing to say."""
    if state == "failed":
        return str(trial.user_attrs.get("reason") or "its process died")
    if state == "stopped":
        return "its process was stopped: it is run again under another number"
    return str(trial.user_attrs.get("reason", ""))


def objective(trial: FrozenTrial, state: str) -> float | None:
    """A trial's accuracy in percent; None where it was not trained to its end."""
    return trial.values[0] if state == "complete" else None


def seconds(trial: FrozenTrial) -> float | None:
    """How long a trial took, None as long as it runs."""
    return trial.duration.total_seconds() if trial.duration else None


def _of_seeds(values: Sequence[float]) -> tuple[Any, ...]:
    mean = statistics.fmean(values) if values else ""
    return mean, statistics.stdev(values) if len(values) > 1 else "", " ".join(map(repr, values))


def write(folder: Path, listed: Sequence[FrozenTrial]) -> None:
    """Write `trials.csv`: a row a trial, its settings under their configuration keys."""
    settings = [distributions.by_key(trial.params) for trial in listed]
    keys = list(dict.fromkeys(key for own in settings for key in own))
    several = any("objectives" in trial.user_attrs for trial in listed)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    first, last = COLUMNS[: COLUMNS.index("reason") + 1], COLUMNS[COLUMNS.index("reason") + 1 :]
    rows.writerow((*first, *keys, *(name for name in last if several or name not in OF_SEEDS)))
    for trial, state, own_settings in zip(listed, states(listed), settings, strict=True):
        if state in ("waiting", "surplus"):
            continue
        took, value, own = seconds(trial), objective(trial, state), trial.user_attrs.get("same_as", trial.number)
        rows.writerow(
            [
                trial.number,
                state,
                reason(trial, state),
                *(own_settings.get(key, "") for key in keys),
                *(trial.user_attrs.get(key, "") for key in COSTS),
                "" if value is None else value,
                *_of_seeds(trial.user_attrs.get("objectives", [])) * several,
                "" if took is None else round(took, 3),
                own if (folder / str(own)).is_dir() else "",
            ]
        )
    files.write(folder / "trials.csv", text.getvalue().encode())
