import contextlib
import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.study import Study
from searches import SPACE, work

from bantam.search import trials, watch, worker
from bantam.search.space import Search, check
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
        patched.setattr(worker, "count_parameters", die)
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
