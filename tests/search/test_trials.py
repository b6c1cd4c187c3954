import contextlib
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import open_dict, read_write
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from searches import SPACE, work

from bantam.search import storage, trials, watch, worker
from bantam.search.checks import check
from bantam.search.space import Search
from bantam.search.study import open_study


class Clock:
    """The time by which a process sees how long trials are silent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(trials.time, "monotonic", lambda: self.now)


def look_for(seconds: float, silence: trials.Silence, clock: Clock, study: Study) -> list[int]:
    """Look every second for so long; returns the trials that have been silent for too long at the end."""
    found = silence.too_long(study.get_trials(deepcopy=False))
    for _ in range(int(seconds)):
        clock.now += 1
        found = silence.too_long(study.get_trials(deepcopy=False))
    return [trial.number for trial in found]


@pytest.mark.whole
def test_a_trial_whose_process_died_at_once_is_run_again(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", "hydra.sweeper.heartbeat=15", space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    study.ask()
    with monkeypatch.context() as patched:
        clock = Clock(patched)
        silence = trials.Silence(15)
        assert look_for(60, silence, clock, study) == []
        assert look_for(1, silence, clock, study) == [0]
    watch.end_silent(wanted, study, study.trials[0])
    assert trials.states(work(wanted)) == ["stopped", "complete", "complete"]


@pytest.mark.whole
def test_a_trial_whose_process_died_with_its_settings_is_run_again(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the settings were chosen, before the first heartbeat."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    wanted = searching("hydra.sweeper.n_trials=1", "hydra.sweeper.heartbeat=1", space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    with monkeypatch.context() as patched:
        patched.setattr(worker, "count_costs", die)
        patched.setattr(trials, "heartbeat", lambda *_: contextlib.nullcontext())
        with pytest.raises(Killed):
            worker.run_trials(wanted, float("inf"))
    assert study.trials[0].params
    assert trials.states(study.trials) == ["running"]
    with monkeypatch.context() as patched:
        assert look_for(5, trials.Silence(1), Clock(patched), study) == [0]
    watch.end_silent(wanted, study, study.trials[0])
    listed = work(wanted)
    assert trials.states(listed) == ["stopped", "complete"]
    assert listed[1].params == listed[0].params


@pytest.mark.whole
def test_a_heartbeat_that_changes_is_alive_whatever_the_clocks_say(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(searching("hydra.sweeper.n_trials=2", space=SPACE[:1]))
    alive, dead = study.ask(), study.ask()
    began(study, alive.number, "+1 hour")  # by the clock of a machine in another time zone
    began(study, dead.number, "+1 hour")
    clock = Clock(monkeypatch)
    silence = trials.Silence(15)
    for beat in range(5):
        alive.set_user_attr("heartbeat", beat)
        silent = look_for(15, silence, clock, study)
    assert silent == [dead.number]


def began(study: Study, number: int, later: str) -> None:
    """Have a trial begin at another time than it did."""
    storage: Any = study._storage
    with storage._backend.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE trials SET datetime_start = datetime(datetime_start, '{later}') WHERE number = {number}"
        )


@pytest.mark.whole
def test_the_time_in_which_nobody_looked_is_no_silence(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z on the whole search, or a computer that sleeps: nothing was alive, and nothing has died."""
    study = open_study(searching("hydra.sweeper.n_trials=1", space=SPACE[:1]))
    study.ask()
    clock = Clock(monkeypatch)
    silence = trials.Silence(15)
    assert look_for(30, silence, clock, study) == []
    clock.now += 3600
    assert look_for(10, silence, clock, study) == []
    assert look_for(30, silence, clock, study) == [0]


@pytest.mark.whole
def test_a_trial_that_was_stopped_is_queued_once_with_its_settings_alone(searching: Callable[..., Search]) -> None:
    study = open_study(searching("hydra.sweeper.n_trials=2", space=SPACE[:1]))
    trial = study.ask()
    rate = trial.suggest_float("optimizer.lr", 0.01, 0.1)
    trial.set_user_attr("parameters", 9000)
    trial.set_constraint("parameters", -999)
    study.tell(trial, state=TrialState.FAIL)  # and here its process is killed
    for _ in range(3):  # whoever looks
        listed = trials.requeue(study)
    assert trials.states(listed) == ["stopped", "waiting"]
    again = listed[1]
    assert again.user_attrs == {"retry_history": [0]}
    assert again.system_attrs == {"fixed_params": {"optimizer.lr": rate}}
    assert again.constraints == {}


@pytest.mark.whole
def test_a_known_setting_is_not_lost_where_its_process_died_at_once(searching: Callable[..., Search]) -> None:
    known = "hydra.sweeper.enqueue=[{optimizer.lr:0.025,model.width:16}]"
    wanted = searching(known, "hydra.sweeper.n_trials=2")
    study = open_study(wanted)
    study.tell(study.ask(), state=TrialState.FAIL)  # killed before it asked for its settings
    listed = work(wanted)
    assert trials.states(listed)[:2] == ["stopped", "complete"]
    assert listed[1].params == {"optimizer.lr": 0.025, "model.width": 16}


@pytest.mark.whole
def test_two_processes_that_queue_a_trial_at_once_run_it_once(searching: Callable[..., Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", space=SPACE[:1])
    study = open_study(wanted)
    trial = study.ask()
    trial.suggest_float("optimizer.lr", 0.01, 0.1)
    study.tell(trial, state=TrialState.FAIL)
    for _ in range(2):  # both have seen that nobody had queued it
        study.enqueue_trial(trial.params, user_attrs={"retry_history": [0]})
    listed = work(wanted)
    assert trials.states(listed) == ["stopped", "complete", "surplus", "complete"]
    assert wanted.launcher.launched == [1, 3]


@pytest.mark.whole
def test_a_trial_whose_process_died_after_its_training_is_not_trained_again(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    wanted = searching("hydra.sweeper.n_trials=1", space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    with monkeypatch.context() as patched:
        patched.setattr(trials, "end", die)
        with pytest.raises(Killed):
            worker.run_trials(wanted, float("inf"))
    watch.end_silent(wanted, study, study.trials[0])
    assert trials.states(work(wanted)) == ["complete"]
    assert wanted.launcher.launched == [0]


def test_trials_of_older_studies_have_their_states() -> None:
    """They say `given up`, and Optuna's callback noted what ran again."""

    def old(number: int, state: TrialState, **attributes: Any) -> FrozenTrial:
        retried = {"retry_history": attributes.pop("retry_history")} if "retry_history" in attributes else {}
        values = [90.0] if state == TrialState.COMPLETE else None
        trial = create_trial(state=state, values=values, user_attrs=attributes, system_attrs=retried)
        trial.number = number
        return trial

    listed = [
        old(0, TrialState.COMPLETE, **{"given up": True}),
        old(1, TrialState.COMPLETE, **{"given up": False}),
        old(2, TrialState.FAIL),
        old(3, TrialState.COMPLETE, retry_history=[2]),
        old(4, TrialState.FAIL, reason="diverged: nan"),
        old(5, TrialState.FAIL, retry_history=[6, 7, 8]),
    ]
    assert trials.states(listed) == ["pruned", "complete", "stopped", "complete", "failed", "failed"]


@pytest.mark.whole
def test_the_list_of_trials_tells_what_became_of_each(searching: Callable[..., Search], tmp_path: Path) -> None:
    listed = work(searching("hydra.sweeper.n_trials=4", space=("model.width=range(14,19)", SPACE[0])))
    trials.write(tmp_path / "study", listed)
    with (tmp_path / "study" / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(listed)
    for row, trial in zip(rows, listed, strict=True):
        assert int(row["model.width"]) == trial.params["model.width"]
        assert int(row["parameters"]) == trial.user_attrs["parameters"]
        if row["state"] == "over budget":
            assert row["reason"].endswith("too many")
            assert row["objective"] == row["folder"] == ""
        else:
            assert float(row["objective"]) == trial.value
            assert row["folder"] == row["number"]


def test_jobs_of_one_process_open_the_storage_once(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", space=SPACE[:1])
    study = open_study(wanted)
    opened = []
    open_storage = storage.open_storage

    def watched(*given: Any, **named: Any) -> BaseStorage:
        opened.append(given)
        return open_storage(*given, **named)

    monkeypatch.setattr(storage, "open_storage", watched)
    for number in range(2):
        study.ask()
        job = wanted.hydra.copy()
        with read_write(job), open_dict(job):
            job.job.num, job.sweep.subdir = number, str(number)
        should_prune = trials.reporter(job)
        assert not should_prune(1, 90.0 + number)
        assert study.trials[number].intermediate_values == {1: 90.0 + number}
    assert len(opened) == 1
