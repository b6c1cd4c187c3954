"""The trials of a search as they stand in its storage: reported to, counted, and listed in `trials.csv`."""

import csv
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from hydra.utils import instantiate
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from bantam import budget
from bantam.training import folder as record

MOST_RETRIES = 3
"""How often a trial is run again whose process died: one that kills its process must not do so for ever."""

SILENT = 4
"""Heartbeats after which a trial's process counts as dead."""

LOCK_SECONDS = 120
"""How long a process waits for another one to be done with an SQLite file."""


def open_storage(hydra: Any) -> RDBStorage:
    """Open the storage of a search, and make it where there is none.

    Raises ValueError where it cannot be reached or written.
    """
    url = address(hydra)
    sqlite = url.startswith("sqlite")
    for attempt in range(5):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
                storage = RDBStorage(
                    url,
                    engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}} if sqlite else {},
                    heartbeat_interval=hydra.sweeper.heartbeat,
                    grace_period=SILENT * hydra.sweeper.heartbeat,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MOST_RETRIES),
                )
            break
        except (SQLAlchemyError, RuntimeError, ImportError, ValueError) as error:
            # Processes that start together may both create the tables, or note their version: the later one
            # tries again.
            race = isinstance(error, IntegrityError) or (
                isinstance(error, SQLAlchemyError) and "already exists" in str(error)
            )
            if attempt == 4 or not race:
                reason = str(getattr(error, "orig", None) or error.__cause__ or error).strip().splitlines()[0]
                raise ValueError(f"hydra.sweeper.storage={shown(url)} cannot be opened: {reason}") from error
    if sqlite:
        # Optuna reads and then writes within one transaction, to claim a trial for example. SQLite
        # locks at the first write only, so two processes would claim the same one.
        @event.listens_for(storage.engine, "connect")
        def leave_transactions_to_us(connection: Any, _: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(storage.engine, "begin")
        def lock_before_reading(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        storage.remove_session()
        storage.engine.dispose()  # the connections that were made before
    return storage


def address(hydra: Any) -> str:
    """The URL of a search's storage."""
    return hydra.sweeper.storage or f"sqlite:///{Path(hydra.sweep.dir).absolute()}/study.db"


def shown(url: str) -> str:
    """A storage's URL without its password."""
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{host}"


def pruner(hydra: Any) -> optuna.pruners.BasePruner:
    """Build the pruner. Raises ValueError where Optuna refuses its settings."""
    try:
        built: optuna.pruners.BasePruner = instantiate(
            hydra.sweeper.pruner, _execution_whitelist_=("optuna.pruners.*", "bantam.search.trials.Dominated")
        )
    except Exception as error:  # Hydra wraps whatever the constructor raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"hydra.sweeper.pruner cannot be built: {reason}") from error
    return built


class Dominated(optuna.pruners.BasePruner):
    """Gives a trial up that smaller ones were ahead of; it works with two objectives, as Optuna's pruners do not.

    That is where, at the same epoch, at least `n_min_trials` trials that have ended, with no more parameters,
    were better. Every trial gets `n_warmup_steps` epochs.
    """

    def __init__(self, n_warmup_steps: int = 10, n_min_trials: int = 3) -> None:
        self.n_warmup_steps, self.n_min_trials = n_warmup_steps, n_min_trials

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial that has just reported an epoch is to be given up."""
        epoch, parameters = trial.last_step, trial.user_attrs.get("parameters")
        if epoch is None or parameters is None or epoch < self.n_warmup_steps:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        ahead = [
            other
            for other in ended
            if other.user_attrs.get("parameters", parameters + 1) <= parameters
            and other.intermediate_values.get(epoch, 0.0) > trial.intermediate_values[epoch]
        ]
        return len(ahead) >= self.n_min_trials


def reporter(hydra: Any) -> Callable[[int, float], bool]:
    """For a job that is a trial: takes an epoch and its accuracy in percent, says whether to give up.

    It goes through the storage alone, so the job may run in another process or on another machine.
    """
    storage = open_storage(hydra)
    judge = pruner(hydra)
    study = optuna.load_study(study_name=hydra.sweeper.study_name, storage=storage, pruner=judge)
    study_id = storage.get_study_id_from_name(study.study_name)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, hydra.job.num)

    def give_up(epoch: int, accuracy: float) -> bool:
        try:
            storage.set_trial_intermediate_value(trial_id, epoch, accuracy)
            return judge.prune(study, storage.get_trial(trial_id))
        except UpdateFinishedTrialError:
            return True  # it was taken for dead, and runs again elsewhere
        finally:
            storage.remove_session()  # Ctrl-C within a transaction would leave the storage locked

    return give_up


def put_back(study: optuna.Study, trial: FrozenTrial, most: int | None = None) -> None:
    """Queue a trial's settings again, under another number, at most `most` times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(most)(study, trial)


def sign_of_life(study: optuna.Study, trial: optuna.Trial) -> None:
    """Note that a trial's process lives, before the trial has settings.

    Optuna's own thread may come to it later, and a process that was killed between the two left a trial
    that nobody took for dead, and for which the search waited for ever.
    """
    storage: Any = study._storage  # there is no public way to it
    storage.record_heartbeat(trial._trial_id)


def put_back_dead(study: optuna.Study, silence: float) -> None:
    """Fail the trials whose process has been silent for `silence` seconds, and queue them again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    # Optuna overlooks a trial whose process died before its first sign of life, and so its settings.
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        age = (datetime.now() - (trial.datetime_start or datetime.now())).total_seconds()
        if not trial.params and age > silence:
            with suppress(ValueError):  # another process was faster
                study.tell(trial.number, state=TrialState.FAIL)
                put_back(study, trial, MOST_RETRIES)


def over_budget(trial: FrozenTrial) -> bool:
    """Whether a trial's network was refused for its size."""
    return any(value > 0 for value in trial.constraints.values())


def states(trials: Iterable[FrozenTrial]) -> list[str]:
    """What became of each trial, in a word.

    waiting, running, complete, pruned, failed, over budget, stopped (it runs again under another
    number) or surplus (begun by two processes at once when only one was missing).
    """
    trials = list(trials)
    again = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    words = []
    for trial in trials:
        if trial.user_attrs.get("surplus"):
            words.append("surplus")
        elif trial.number in again:
            words.append("stopped")
        elif over_budget(trial):
            words.append("over budget")
        elif trial.state == TrialState.COMPLETE and trial.user_attrs.get("given up"):
            words.append("pruned")  # beside two objectives Optuna is told otherwise, see `search.train`
        else:
            words.append({TrialState.FAIL: "failed"}.get(trial.state, trial.state.name.lower()))
    return words


FINISHED = ("complete", "pruned", "failed")
"""States of a training that came to its end, which `n_trials` counts."""


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


def write(folder: Path, trials: Sequence[FrozenTrial]) -> None:
    """Write `trials.csv`: a row a trial, its settings under their configuration keys."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    text = io.StringIO(newline="")
    columns = ("number", "state", "reason", *keys, "parameters", "objective", "seconds", "folder")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    for trial, state in zip(trials, states(trials), strict=True):
        if state in ("waiting", "surplus"):
            continue
        took = seconds(trial)
        rows.writerow(
            [
                trial.number,
                state,
                reason(trial, state),
                *(trial.params.get(key, "") for key in keys),
                trial.user_attrs.get("parameters", ""),
                "" if objective(trial, state) is None else objective(trial, state),
                "" if took is None else round(took, 3),
                trial.number if (folder / str(trial.number)).is_dir() else "",
            ]
        )
    record.write(folder / "trials.csv", text.getvalue().encode())


def count(trials: Sequence[FrozenTrial]) -> Counter[str]:
    """How many trials are in each state."""
    return Counter(states(trials))


def best(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The completed trial with the highest accuracy, the first of equals."""
    done = [t for t, state in zip(trials, states(trials), strict=True) if state == "complete"]
    return max(done, key=lambda trial: trial.values[0], default=None)


def front(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The completed trials that no other beats in accuracy with as few parameters, by parameters."""
    done = [
        t
        for t, state in zip(trials, states(trials), strict=True)
        if state == "complete" and "parameters" in t.user_attrs
    ]
    return [done[i] for i in budget.front([(t.user_attrs["parameters"], t.values[0]) for t in done])]
