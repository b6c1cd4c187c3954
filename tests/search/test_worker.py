from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import TrialState
from searches import SPACE, TWO, rate, sized, work

from bantam.search import outcome, trials, worker
from bantam.search.space import Search, check
from bantam.search.study import hopeless, open_study


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        ("hydra/sweeper/sampler=multivariate_tpe", TrialState.PRUNED),
        ("hydra/sweeper/sampler=random", TrialState.PRUNED),
        ("hydra/sweeper/sampler=gp", TrialState.COMPLETE),
        ("hydra/sweeper/sampler=nsgaii", TrialState.COMPLETE),
        ("hydra/sweeper/sampler=nsgaiii", TrialState.COMPLETE),
    ],
)
def test_a_network_over_the_budget_never_becomes_a_job(
    searching: Callable[..., Search], sampler: str, told: TrialState
) -> None:
    wanted = searching(sampler, "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.seed=3")
    listed = work(wanted)
    over = [trial for trial in listed if trial.params["model.width"] > 16]
    assert over
    assert {trial.state for trial in over} == {told}
    for trial in listed:
        assert trial.constraints["parameters"] == trial.user_attrs["parameters"] - 10_000 + 1
        assert (trial.constraints["parameters"] > 0) == (trial in over)
    assert wanted.launcher.launched == [trial.number for trial in listed if trial not in over]
    assert not any((wanted.folder / str(trial.number)).exists() for trial in over)
    counts = trials.count(listed)
    assert (counts["complete"], counts["over budget"]) == (6, len(over))
    best = outcome.best(listed)
    assert best is not None
    assert best.params["model.width"] <= 16


def test_failures_are_told_and_the_search_goes_on(searching: Callable[..., Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number == 0:
            return {"verdict": "diverged", "reason": "the loss became nan", "objective": None}
        if number == 1:
            raise RuntimeError("no such node")
        if number == 2:
            return {"verdict": "failed", "reason": "KeyError: 'x'"}
        return rate(number, settings)

    wanted = searching("hydra.sweeper.n_trials=12", result=result, space=SPACE[:1])
    listed = work(wanted)
    words = trials.states(listed)
    assert words == ["failed"] * 3 + ["complete"] * 9
    assert [trials.reason(trial, "failed") for trial in listed[:3]] == [
        "diverged: the loss became nan",
        "RuntimeError: no such node",
        "failed: KeyError: 'x'",
    ]
    assert hopeless(wanted, listed) == ""


def test_pruned_trials_are_finished_trainings(searching: Callable[..., Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        early = {"verdict": "pruned", "reason": "pruned after epoch 2", "objective": None}
        return early if number % 2 else rate(number, settings)

    listed = work(searching("hydra.sweeper.n_trials=4", result=result, space=SPACE[:1]))
    assert trials.states(listed) == ["complete", "pruned", "complete", "pruned"]
    assert listed[1].state == TrialState.PRUNED


def test_an_interrupted_trial_is_run_again(searching: Callable[..., Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number == 1:
            raise KeyboardInterrupt
        return rate(number, settings)

    stopped = work(searching("hydra.sweeper.n_trials=2", result=result, space=SPACE[:1]))
    assert trials.states(stopped) == ["complete", "stopped", "waiting"]
    listed = work(searching("hydra.sweeper.n_trials=2", result=result, space=SPACE[:1]))
    assert trials.states(listed) == ["complete", "stopped", "complete"]
    assert listed[2].params == listed[1].params


def test_a_failed_trial_beside_two_objectives_is_failed(searching: Callable[..., Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number == 0:
            return {"verdict": "diverged", "reason": "nan", "objective": None}
        return sized(number, settings)

    listed = work(searching(*TWO, "hydra.sweeper.n_trials=4", result=result, space=("model.width=range(8,17)",)))
    assert trials.states(listed) == ["failed", "complete", "complete", "complete"]


def test_two_workers_that_begin_the_same_last_trial_finish_one(searching: Callable[..., Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    interrupt = worker.Interrupt()
    asked = [study.ask() for _ in range(3)]
    for trial in asked:
        worker.run_trial(wanted, study, trial, interrupt)
    assert [trial.value > 90 for trial in study.trials[:2]] == [True, True]
    assert wanted.launcher.launched == [0, 1]
    assert trials.states(study.trials)[2] == "surplus"
