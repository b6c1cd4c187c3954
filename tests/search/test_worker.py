import csv
import errno
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from epochs import epoch
from omegaconf import DictConfig
from optuna.trial import TrialState
from searches import SPACE, TWO, rate, sized, wait_for, work

from bantam import budget
from bantam.search import outcome, processes, trials, worker
from bantam.search.checks import check
from bantam.search.faults import MachineFault
from bantam.search.space import Search
from bantam.search.study import hopeless, open_study
from bantam.training import costs
from bantam.training import folder as record


@pytest.mark.whole
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
    copies = [trial for trial in listed if "same_as" in trial.user_attrs]  # the Gaussian process asks at the ends
    assert wanted.launcher.launched == [t.number for t in listed if t not in over + copies]
    assert not any((wanted.folder / str(trial.number)).exists() for trial in over)
    counts = trials.count(listed)
    assert (counts["complete"], counts["over budget"]) == (6, len(over))
    best = outcome.best(listed)
    assert best is not None
    assert best.params["model.width"] <= 16


@pytest.mark.whole
@pytest.mark.parametrize("sampler", ["multivariate_tpe", "gp", "nsgaii"])
def test_every_limit_of_the_budget_is_a_constraint(searching: Callable[..., Search], sampler: str) -> None:
    wanted = searching(
        f"hydra/sweeper/sampler={sampler}",
        "budget.multiply_adds=1500000",
        "budget.bytes=33000",
        "hydra.sweeper.n_trials=6",
    )
    listed = work(wanted)
    limits = {"parameters": 10_000, "multiply_adds": 1_500_000, "bytes": 33_000}
    assert any(trials.over_budget(trial) for trial in listed)
    for trial in listed:
        assert set(budget.COSTS) <= set(trial.user_attrs)
        assert trial.constraints == {key: trial.user_attrs[key] - limit + 1 for key, limit in limits.items()}
    over = [trial for trial in listed if any(trial.user_attrs[key] >= limit for key, limit in limits.items())]
    assert [trial for trial in listed if trials.over_budget(trial)] == over
    copies = [trial for trial in listed if "same_as" in trial.user_attrs]  # the Gaussian process asks at the ends
    assert wanted.launcher.launched == [t.number for t in listed if t not in over + copies]
    for trial in over:
        amounts = (
            f"{trial.user_attrs[key]:,} {budget.COSTS[key]}, {trial.user_attrs[key] - limit + 1:,} too many"
            for key, limit in limits.items()
            if trial.user_attrs[key] >= limit
        )
        assert trials.reason(trial, "over budget") == ", ".join(amounts)


@pytest.mark.whole
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


@pytest.mark.whole
def test_pruned_trials_are_finished_trainings(searching: Callable[..., Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        early = {"verdict": "pruned", "reason": "pruned after epoch 2", "objective": None}
        return early if number % 2 else rate(number, settings)

    listed = work(searching("hydra.sweeper.n_trials=4", result=result, space=SPACE[:1]))
    assert trials.states(listed) == ["complete", "pruned", "complete", "pruned"]
    assert listed[1].state == TrialState.PRUNED


@pytest.mark.whole
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


@pytest.mark.whole
def test_a_failed_trial_beside_two_objectives_is_failed(searching: Callable[..., Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number == 0:
            return {"verdict": "diverged", "reason": "nan", "objective": None}
        return sized(number, settings)

    listed = work(searching(*TWO, "hydra.sweeper.n_trials=4", result=result, space=("model.width=range(8,17)",)))
    assert trials.states(listed) == ["failed", "complete", "complete", "complete"]


@pytest.mark.whole
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


@pytest.mark.whole
def test_settings_that_were_trained_are_not_trained_again(searching: Callable[..., Search]) -> None:
    wanted = searching(
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.n_trials=12",
        space=("model.width=8,12",),
        result=sized,
    )
    listed = work(wanted)
    assert trials.count(listed) == {"complete": 12}
    assert len(wanted.launcher.launched) == 2
    assert len({trial.value for trial in listed if trial.params["model.width"] == 12}) == 1
    copies = [trial for trial in listed if "same_as" in trial.user_attrs]
    assert len(copies) == 10
    originals = {trial.params["model.width"]: trial.number for trial in listed if trial not in copies}
    for copy in copies:
        assert copy.user_attrs["same_as"] == originals[copy.params["model.width"]]
        reason = f"the settings of trial {copy.user_attrs['same_as']}, whose result it has"
        assert trials.reason(copy, "complete") == reason
    best = outcome.best(listed)
    assert best is not None
    assert best.number == originals[12]
    trials.write(wanted.folder, listed)
    with (wanted.folder / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["folder"] for row in rows} == {str(number) for number in originals.values()}


@pytest.mark.whole
@pytest.mark.parametrize("objectives", [(), TWO])
def test_settings_that_were_pruned_are_pruned_again_without_training(
    searching: Callable[..., Search], objectives: tuple[str, ...]
) -> None:
    wanted: Search

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        folder = wanted.folder / str(number)
        folder.mkdir()
        record.write_history(folder, [epoch(1, 85.0, validation=True)])
        return {"verdict": "pruned", "reason": "pruned after epoch 1", "objective": None}

    wanted = searching("hydra.sweeper.n_trials=3", *objectives, space=("model.width=range(8,9)",), result=result)
    listed = work(wanted)
    assert trials.states(listed) == ["pruned"] * 3
    assert wanted.launcher.launched == [0]


@pytest.mark.whole
def test_known_settings_that_were_queued_twice_are_trained_once_in_a_space_without_steps_too(
    searching: Callable[..., Search],
) -> None:
    wanted = searching("hydra.sweeper.n_trials=3", space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    for _ in range(2):
        study.enqueue_trial({"optimizer.lr": 0.05})
    listed = work(wanted)
    assert trials.count(listed) == {"complete": 3}
    assert listed[1].user_attrs["same_as"] == 0
    assert listed[1].value == listed[0].value
    assert wanted.launcher.launched == [0, 2]


def test_settings_that_another_process_trains_are_waited_for(searching: Callable[..., Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", space=("model.width=range(8,9)",), result=sized)
    check(wanted)
    study = open_study(wanted)
    first, second = study.ask(), study.ask()
    first.suggest_int("model.width", 8, 8)
    thread = threading.Thread(target=worker.run_trial, args=(wanted, study, second, worker.Interrupt()))
    thread.start()
    wait_for(lambda: "parameters" in study.trials[1].user_attrs, 60)
    assert thread.is_alive()
    assert wanted.launcher.launched == []
    study.tell(first, 91.5)
    thread.join(60)
    assert study.trials[1].value == 91.5
    assert wanted.launcher.launched == []


@pytest.mark.whole
def test_the_result_of_a_trial_that_others_have_ended_is_dropped(
    searching: Callable[..., Search], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process was suspended for longer than the grace period: the trial runs again elsewhere."""
    wanted: Search

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number == 0:
            study = open_study(wanted)
            study.tell(0, state=TrialState.FAIL)
            trials.requeue(study)
        return rate(number, settings)

    wanted = searching("hydra.sweeper.n_trials=2", result=result, space=SPACE[:1])
    listed = work(wanted)
    assert trials.states(listed) == ["stopped", "complete", "complete"]
    assert listed[1].params == listed[0].params
    assert "Trial 0 was ended by others while this process was silent: result dropped." in capsys.readouterr().out


def full(number: int, settings: dict[str, str]) -> dict[str, Any]:
    raise OSError(errno.ENOSPC, "No space left on device", "history.csv")


def recorded(number: int, settings: dict[str, str]) -> dict[str, Any]:
    reason = "OSError: [Errno 28] No space left on device: 'history.csv'"
    return {"verdict": "failed", "reason": reason, "objective": None}


@pytest.mark.whole
@pytest.mark.parametrize("fault", [full, recorded])
def test_a_full_disk_is_not_the_trials_fault(
    searching: Callable[..., Search], fault: Callable[[int, dict[str, str]], dict[str, Any]]
) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", result=fault, space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    with pytest.raises(MachineFault, match="No space left on device"):
        worker.run_trials(wanted, float("inf"))
    assert trials.states(study.trials) == ["stopped", "waiting"]
    listed = work(searching("hydra.sweeper.n_trials=2", space=SPACE[:1]))
    assert trials.states(listed) == ["stopped", "complete", "complete"]
    assert listed[1].params == listed[0].params


@pytest.mark.whole
def test_a_job_that_was_killed_is_run_again_but_not_for_ever(searching: Callable[..., Search]) -> None:
    class TerminatedWorkerError(Exception):
        """As joblib's."""

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if float(settings["optimizer.lr"]) < 0.05:
            raise TerminatedWorkerError
        return rate(number, settings)

    known = "hydra.sweeper.enqueue=[{optimizer.lr:0.02},{optimizer.lr:0.06}]"
    listed = work(searching(known, "hydra.sweeper.n_trials=2", result=result, space=SPACE[:1]))
    states = trials.states(listed)
    assert states.count("complete") + states.count("failed") == 2
    bad = [state for trial, state in zip(listed, states, strict=True) if trial.params["optimizer.lr"] == 0.02]
    assert bad == ["stopped", "stopped", "stopped", "failed"]


def test_no_trial_begins_after_its_time(searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        nonlocal now
        now += 10
        return rate(number, settings)

    wanted = searching("hydra.sweeper.n_trials=9", result=result, space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    worker.run_trials(wanted, until=15.0)
    assert trials.states(study.trials) == ["complete", "complete"]


def test_networks_that_are_alike_are_counted_once(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    count = costs._count

    def watched(cfg: DictConfig, choices: Mapping[str, Any]) -> tuple[list[budget.Layer], dict[str, int]]:
        counted.append(int(cfg.model.width))
        return count(cfg, choices)

    search = searching(space=("optimizer.lr=interval(0.01,0.1)", "model.width=range(8,10)"))
    monkeypatch.setattr(costs, "_counted", {})
    monkeypatch.setattr(costs, "_count", watched)
    for width, lr in ((8, 0.01), (9, 0.01), (8, 0.02), (9, 0.03)):
        found, excess = worker.count_costs(search, {"model.width": width, "optimizer.lr": lr})
        assert found["parameters"] - 10_000 + 1 == excess["parameters"]
    assert counted == [8, 9]


def test_a_worker_that_gets_two_signals_ends_the_call_that_it_is_in(searching: Callable[..., Search]) -> None:
    interrupt, ended = worker.Interrupt(), False  # `searching` restores the handlers that were there
    interrupt.training = True

    def call() -> None:
        nonlocal ended
        with processes.uninterrupted():
            for number in processes.SIGNALS:
                os.kill(os.getpid(), number)
            ended = True

    with pytest.raises(KeyboardInterrupt):
        call()
    assert ended
    assert interrupt.asked
