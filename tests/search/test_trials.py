import contextlib
import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from searches import SPACE, wait_for, work

from bantam.search import trials, worker
from bantam.search.space import Search, check
from bantam.search.study import open_study


def test_a_trial_whose_process_died_at_once_is_run_again(searching: Callable[..., Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", space=SPACE[:1])
    check(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asked outside of optimize, on purpose: there is no sign of life
        open_study(wanted).ask()
    trials.put_back_dead(open_study(wanted), silence=60)
    assert trials.states(open_study(wanted).trials) == ["running"]
    trials.put_back_dead(open_study(wanted), silence=0)
    assert trials.states(work(wanted)) == ["stopped", "complete", "complete"]


def test_a_trial_whose_process_died_with_its_settings_is_run_again(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the settings were chosen, before Optuna's thread had shown a sign of life."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    wanted = searching("hydra.sweeper.n_trials=1", "hydra.sweeper.heartbeat=1", space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    with monkeypatch.context() as patched:
        patched.setattr(worker, "_weigh", die)
        patched.setattr("optuna.study._optimize.get_heartbeat_thread", lambda *_: contextlib.nullcontext())
        with pytest.raises(Killed):
            worker.work(wanted, float("inf"))
    assert study.trials[0].params
    assert trials.states(study.trials) == ["running"]
    wait_for(lambda: trials.put_back_dead(study, silence=600) or len(study.trials) == 2, 60)
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
