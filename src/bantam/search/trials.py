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
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from bantam.search import pruners, storage
from bantam.training import folder as record


def reporter(hydra: Any) -> Callable[[int, float], bool]:
    """For a job that is a trial: takes an epoch and its accuracy in percent, says whether to give up.

    It goes through the storage alone, so the job may run in another process or on another machine.
    """
    database = storage.open_storage(hydra)
    judge = pruners.build(hydra)
    study = optuna.load_study(study_name=hydra.sweeper.study_name, storage=database, pruner=judge)
    study_id = database.get_study_id_from_name(study.study_name)
    trial_id = database.get_trial_id_from_study_id_trial_number(study_id, hydra.job.num)

    def give_up(epoch: int, accuracy: float) -> bool:
        try:
            database.set_trial_intermediate_value(trial_id, epoch, accuracy)
            return judge.prune(study, database.get_trial(trial_id))
        except UpdateFinishedTrialError:
            return True  # it was taken for dead, and runs again elsewhere
        finally:
            database.remove_session()  # Ctrl-C within a transaction would leave the storage locked

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
    database: Any = study._storage  # there is no public way to it
    database.record_heartbeat(trial._trial_id)


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
                put_back(study, trial, storage.MOST_RETRIES)


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
