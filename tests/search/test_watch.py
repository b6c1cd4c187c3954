"""Searches: with jobs that only pretend to train where that is enough, with real command lines where not."""

import contextlib
import csv
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import PROJECT
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf
from optuna.trial import TrialState
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from bantam.search import trials
from bantam.search import watch as search
from bantam.training import folder as record
from bantam.training.loop import Epoch


class Jobs:
    """A launcher whose jobs write the result of a training without training.

    `result` makes it of a trial's settings; what it raises, the launcher raises.
    """

    def __init__(self, folder: Path, result: Callable[[int, dict[str, str]], dict[str, Any]]) -> None:
        self.folder, self.result = folder, result
        self.launched: list[int] = []

    def launch(self, overrides: list[list[str]], initial_job_idx: int) -> None:
        self.launched.append(initial_job_idx)
        result = self.result(initial_job_idx, dict(item.split("=", 1) for item in overrides[0]))
        folder = self.folder / str(initial_job_idx)
        (folder / ".hydra").mkdir(parents=True)
        record.write_result(folder, {"verdict": "not judged", "reason": "", **result})


def rate(number: int, settings: dict[str, str]) -> dict[str, Any]:
    """A pretended accuracy that rises with the learning rate and the width."""
    return {"objective": 90 + 10 * float(settings["optimizer.lr"]) + float(settings.get("model.width", 0)) / 10}


SPACE = ("optimizer.lr=interval(0.01,0.1)", "model.width=range(8,21)")


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[Callable[..., search.Search]]:
    """Make a search whose jobs pretend, as `python train.py -m hydra/sweeper=bantam <overrides>` would."""

    def make(
        *overrides: str,
        result: Callable[[int, dict[str, str]], dict[str, Any]] = rate,
        space: tuple[str, ...] = SPACE,
        folder: str = "study",
    ) -> search.Search:
        line = ["data=mnist5k", "data.validation=1000", *space, *overrides]
        hydra = [
            "hydra/sweeper=bantam",
            f"hydra.sweep.dir={tmp_path}/{folder}",
            "hydra.sweep.subdir=${hydra.job.num}",
        ]
        if not any(item.startswith("hydra.sweeper.sampler") for item in overrides):
            hydra.append("hydra.sweeper.sampler.seed=1")
        with initialize_config_dir(str(PROJECT / "conf")):
            loader = GlobalHydra.instance().config_loader()
            cfg = loader.load_configuration("config", [*line, *hydra], run_mode=RunMode.MULTIRUN)
            HydraConfig.instance().set_config(cfg)
        context = HydraContext(config_loader=loader, callbacks=Callback())  # type: ignore[arg-type]
        task = [item for item in line if not item.startswith("hydra")]
        (tmp_path / folder).mkdir(exist_ok=True)
        jobs = Jobs(tmp_path / folder, result)
        return search.Search(cfg, context, jobs, *search.space(cfg.hydra.sweeper, task))  # type: ignore[arg-type]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield make
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def work(wanted: search.Search) -> list[optuna.trial.FrozenTrial]:
    """Check and search in this very process; returns the trials."""
    search.check(wanted)
    search.open_study(wanted)
    search.work(wanted, float("inf"))
    return search.open_study(wanted).trials


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
    searching: Callable[..., search.Search], sampler: str, told: TrialState
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
    best = trials.best(listed)
    assert best is not None
    assert best.params["model.width"] <= 16


@pytest.mark.parametrize("sampler", ["gp", "nsgaii", "multivariate_tpe"])
def test_the_sampler_learns_where_the_budget_ends(searching: Callable[..., search.Search], sampler: str) -> None:
    """The wider, the better and, above 16, the more over the budget: half of the space is no use."""
    few = {"gp": "n_startup_trials=5", "nsgaii": "population_size=8", "multivariate_tpe": "n_startup_trials=5"}
    wanted = searching(
        f"hydra/sweeper/sampler={sampler}",
        f"hydra.sweeper.sampler.{few[sampler]}",
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.n_trials=20",
        space=("model.width=range(8,31)", "optimizer.lr=interval(0.01,0.1)"),
    )
    over = [trials.over_budget(trial) for trial in work(wanted)]
    half = len(over) // 2
    assert sum(over[half:]) < sum(over[:half])
    assert sum(over[half:]) / len(over[half:]) < 0.5  # by chance it would be 0.6


def test_a_space_without_a_network_in_the_budget_ends_with_one_error(
    searching: Callable[..., search.Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_OVER_BUDGET", 10)
    wanted = searching(space=("model.width=range(17,21)", "optimizer.lr=interval(0.01,0.1)"))
    listed = work(wanted)
    assert len(listed) == search.MOST_OVER_BUDGET
    assert wanted.launcher.launched == []
    assert "10 networks in a row were over the budget, the smallest with 10,897 parameters" in search.stuck(
        wanted, listed
    )


def test_n_trials_counts_every_finished_training_over_all_continuations(
    searching: Callable[..., search.Search],
) -> None:
    first = work(searching("hydra.sweeper.n_trials=3"))
    again = work(searching("hydra.sweeper.n_trials=3"))
    more = work(searching("hydra.sweeper.n_trials=7"))
    assert len(first) == len(again)
    assert trials.count(first)["complete"] == 3
    assert trials.count(more)["complete"] == 7
    settings = [tuple(trial.params.values()) for trial in more]
    assert len(set(settings)) == len(settings)  # the seed is fixed, and no trial is repeated


def test_one_seed_gives_the_same_search_twice(searching: Callable[..., search.Search]) -> None:
    first = work(searching("hydra.sweeper.n_trials=3"))
    second = work(searching("hydra.sweeper.n_trials=3", folder="other"))
    assert [trial.params for trial in first] == [trial.params for trial in second]


def test_failures_are_told_and_the_search_goes_on(searching: Callable[..., search.Search]) -> None:
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
    assert search.stuck(wanted, listed) == ""


def test_a_search_in_which_everything_fails_stops_with_the_first_error(
    searching: Callable[..., search.Search],
) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        return {"verdict": "diverged", "reason": f"nan in trial {number}", "objective": None}

    wanted = searching("hydra.sweeper.n_trials=20", "hydra.sweeper.max_failure_rate=0.2", result=result)
    listed = work(wanted)
    assert trials.count(listed)["failed"] == 5
    reason = search.stuck(wanted, listed)
    assert reason.startswith(
        "5 trials failed, more than hydra.sweeper.max_failure_rate=0.2 of 20 allows; the first"
    )
    assert "nan in trial" in reason


def test_pruned_trials_are_finished_trainings(searching: Callable[..., search.Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        early = {"verdict": "pruned", "reason": "given up after epoch 2", "objective": None}
        return early if number % 2 else rate(number, settings)

    listed = work(searching("hydra.sweeper.n_trials=4", result=result, space=SPACE[:1]))
    assert trials.states(listed) == ["complete", "pruned", "complete", "pruned"]
    assert listed[1].state == TrialState.PRUNED


def test_an_interrupted_trial_is_run_again(searching: Callable[..., search.Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number == 1:
            raise KeyboardInterrupt
        return rate(number, settings)

    stopped = work(searching("hydra.sweeper.n_trials=2", result=result, space=SPACE[:1]))
    assert trials.states(stopped) == ["complete", "stopped", "waiting"]
    listed = work(searching("hydra.sweeper.n_trials=2", result=result, space=SPACE[:1]))
    assert trials.states(listed) == ["complete", "stopped", "complete"]
    assert listed[2].params == listed[1].params


def test_a_trial_whose_process_died_at_once_is_run_again(searching: Callable[..., search.Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", space=SPACE[:1])
    search.check(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asked outside of optimize, on purpose: there is no sign of life
        search.open_study(wanted).ask()
    trials.put_back_dead(search.open_study(wanted), silence=60)
    assert trials.states(search.open_study(wanted).trials) == ["running"]
    trials.put_back_dead(search.open_study(wanted), silence=0)
    assert trials.states(work(wanted)) == ["stopped", "complete", "complete"]


def test_a_trial_whose_process_died_with_its_settings_is_run_again(
    searching: Callable[..., search.Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the settings were chosen, before Optuna's thread had shown a sign of life."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    wanted = searching("hydra.sweeper.n_trials=1", "hydra.sweeper.heartbeat=1", space=SPACE[:1])
    search.check(wanted)
    study = search.open_study(wanted)
    with monkeypatch.context() as patched:
        patched.setattr(search, "_weigh", die)
        patched.setattr("optuna.study._optimize.get_heartbeat_thread", lambda *_: contextlib.nullcontext())
        with pytest.raises(Killed):
            search.work(wanted, float("inf"))
    assert study.trials[0].params
    assert trials.states(study.trials) == ["running"]
    wait_for(lambda: trials.put_back_dead(study, silence=600) or len(study.trials) == 2, 60)
    listed = work(wanted)
    assert trials.states(listed) == ["stopped", "complete"]
    assert listed[1].params == listed[0].params


def test_only_the_best_trial_keeps_its_weights(searching: Callable[..., search.Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=5", space=SPACE[:1])

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        (wanted.folder / str(number)).mkdir(exist_ok=True)
        (wanted.folder / str(number) / record.WEIGHTS).touch()
        return rate(number, settings)

    def launch(overrides: list[list[str]], initial_job_idx: int) -> None:
        settings = dict(item.split("=", 1) for item in overrides[0])
        record_of = result(initial_job_idx, settings)
        record.write_result(
            wanted.folder / str(initial_job_idx), {"verdict": "not judged", "reason": "", **record_of}
        )

    wanted.launcher.launch = launch  # type: ignore[method-assign, assignment]
    best = trials.best(work(wanted))
    assert best is not None
    assert [path.parent.name for path in wanted.folder.glob(f"*/{record.WEIGHTS}")] == [str(best.number)]


TWO = ("hydra.sweeper.objectives=[accuracy,parameters]", "hydra/sweeper/pruner=dominated")


def sized(number: int, settings: dict[str, str]) -> dict[str, Any]:
    """A pretended accuracy that rises with the width and, above 12, falls."""
    width = int(settings["model.width"])
    return {"objective": 90 + min(width, 24 - width) / 10}


@pytest.mark.parametrize(
    "sampler",
    ["multivariate_tpe", "nsgaii", "gp", "random"],
)
def test_with_two_objectives_the_result_is_the_front(
    searching: Callable[..., search.Search], capsys: pytest.CaptureFixture[str], sampler: str
) -> None:
    few = {"multivariate_tpe": "n_startup_trials=4", "nsgaii": "population_size=4", "gp": "n_startup_trials=4"}
    more = [f"hydra.sweeper.sampler.{few[sampler]}"] if sampler in few else []
    wanted = searching(
        *TWO,
        f"hydra/sweeper/sampler={sampler}",
        *more,
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.n_trials=9",
        result=sized,
        space=("model.width=range(8,21)",),
    )
    listed = work(wanted)
    counts = trials.count(listed)
    assert (counts["complete"], counts["failed"]) == (9, 0)
    assert all((t.params["model.width"] > 16) == trials.over_budget(t) for t in listed)
    front = trials.front(listed)
    sizes = [trial.user_attrs["parameters"] for trial in front]
    accuracies = [trial.values[0] for trial in front]
    assert sizes == sorted(set(sizes))
    assert accuracies == sorted(set(accuracies))
    assert all(trial.params["model.width"] <= 12 for trial in front[:-1])
    for trial in listed:
        if trials.objective(trial, trials.states([trial])[0]) is not None:
            assert any(
                f.values[0] >= trial.values[0] and f.user_attrs["parameters"] <= trial.user_attrs["parameters"]
                for f in front
            )


def test_the_front_is_written_and_every_network_on_it_can_be_run(
    searching: Callable[..., search.Search], capsys: pytest.CaptureFixture[str]
) -> None:
    """What a trial saves is pretended too: the experiment of each is made of its folder."""
    wanted = searching(
        *TWO, "hydra.sweeper.n_trials=6", result=sized, space=("model.width=range(8,17)",), folder="architecture"
    )
    launch = wanted.launcher.launch

    def launch_and_save(overrides: list[list[str]], initial_job_idx: int) -> None:
        launch(overrides, initial_job_idx)
        folder = wanted.folder / str(initial_job_idx)
        cfg, place = search.compose(wanted, dict(item.split("=", 1) for item in overrides[0]))
        OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create(overrides[0]), folder / ".hydra" / "overrides.yaml")
        choices = {"hydra": {"runtime": {"choices": place.choices}}}
        OmegaConf.save(OmegaConf.create(choices), folder / ".hydra" / "hydra.yaml")
        machine = {"device": "cpu", "threads": 1, "precision": "float32", "kernels": "torch"}
        record.write_result(folder, {**record.read_result(folder), **machine})
        (folder / record.WEIGHTS).touch()

    wanted.launcher.launch = launch_and_save  # type: ignore[method-assign]
    listed = work(wanted)
    (wanted.folder / "experiment").mkdir()
    (wanted.folder / "experiment" / "trial_99.yaml").touch()  # of a shorter search
    search.finish(wanted, search.open_study(wanted), Console())
    front = trials.front(listed)
    assert len(front) > 1
    numbers = [trial.number for trial in front]
    summary = json.loads((wanted.folder / "summary.json").read_text())
    assert [entry["number"] for entry in summary["front"]] == numbers
    assert "best" not in summary
    assert {path.stem for path in (wanted.folder / "experiment").iterdir()} == {f"trial_{n}" for n in numbers}
    assert {int(path.parent.name) for path in wanted.folder.glob(f"*/{record.WEIGHTS}")} == set(numbers)
    shown = capsys.readouterr().out
    assert all(f"--config-dir {wanted.folder} experiment=trial_{number}\n" in shown for number in numbers)
    assert f"front of {len(front)}: " in search._best(wanted, listed)


@pytest.mark.parametrize("sampler", ["multivariate_tpe", "nsgaii", "gp"])
def test_a_trial_that_is_given_up_beside_two_objectives_does_not_stop_the_sampler(
    searching: Callable[..., search.Search], sampler: str
) -> None:
    """Optuna's TPE breaks on a pruned trial with reported epochs where there are two objectives."""
    few = {"multivariate_tpe": "n_startup_trials=3", "nsgaii": "population_size=4", "gp": "n_startup_trials=3"}
    wanted: search.Search

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number % 3 != 1:
            return sized(number, settings)
        folder = wanted.folder / str(number)
        folder.mkdir()
        record.write_history(folder, [Epoch(1, 0.1, 0.1, 90.0, 0.1, 85.0, None, None, 1.0, 1.0)])
        study = search.open_study(wanted)
        trial_id = study.get_trials(deepcopy=False)[number]._trial_id
        study._storage.set_trial_intermediate_value(trial_id, 1, 85.0)
        return {"verdict": "pruned", "reason": "given up after epoch 1", "objective": None}

    wanted = searching(
        *TWO,
        f"hydra/sweeper/sampler={sampler}",
        f"hydra.sweeper.sampler.{few[sampler]}",
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.n_trials=9",
        result=result,
        space=("model.width=range(8,17)", "optimizer.lr=interval(0.01,0.1)"),
    )
    listed = work(wanted)
    assert trials.states(listed) == ["complete", "pruned", "complete"] * 3
    assert listed[1].values == [85.0, listed[1].user_attrs["parameters"]]
    assert trials.objective(listed[1], "pruned") is None
    assert not {1, 4, 7} & {trial.number for trial in trials.front(listed)}


def test_a_failed_trial_beside_two_objectives_is_failed(searching: Callable[..., search.Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number == 0:
            return {"verdict": "diverged", "reason": "nan", "objective": None}
        return sized(number, settings)

    listed = work(searching(*TWO, "hydra.sweeper.n_trials=4", result=result, space=("model.width=range(8,17)",)))
    assert trials.states(listed) == ["failed", "complete", "complete", "complete"]


def test_a_study_of_one_objective_is_not_continued_with_two(searching: Callable[..., search.Search]) -> None:
    work(searching("hydra.sweeper.n_trials=1"))
    with pytest.raises(ValueError, match=r"^hydra.sweeper.objectives is \[accuracy,parameters\] here, but \[acc"):
        search.open_study(searching(*TWO, "hydra.sweeper.n_trials=1"))


def test_known_settings_are_tried_first_and_once(searching: Callable[..., search.Search]) -> None:
    enqueue = "hydra.sweeper.enqueue=[{optimizer.lr:0.025,model.width:16},{optimizer.lr:0.5},{model.dropout:0}]"
    work(searching(enqueue, "hydra.sweeper.n_trials=2"))
    listed = work(searching(enqueue, "hydra.sweeper.n_trials=3"))
    assert listed[0].params == {"optimizer.lr": 0.025, "model.width": 16}
    assert sum(trial.params == listed[0].params for trial in listed) == 1
    assert all(trial.params["optimizer.lr"] <= 0.1 for trial in listed)  # 0.5 is outside the space


def test_a_grid_is_searched_once_without_its_networks_over_the_budget(
    searching: Callable[..., search.Search],
) -> None:
    listed = work(
        searching(
            "hydra/sweeper/sampler=grid", space=("model.width=choice(8,12,40)", "optimizer.lr=choice(0.01,0.1)")
        )
    )
    assert trials.count(listed) == {"complete": 4, "over budget": 2}
    assert len({tuple(trial.params.values()) for trial in listed}) == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("optimizer.lr=interval(0.01,0.2)",), "optimizer.lr is 0.01 to 0.2 here, but 0.01 to 0.1 in the study"),
        (("optimizer.lr=0.1",), "optimizer.lr is 0.1 here, but 0.01 to 0.1"),
        (("seed=2",), "seed is 2 here, but 1 in the study"),
        (("target.last_epochs=3",), "target.last_epochs is 3 here, but 5"),
        (("model=v1",), "model._target_ is bantam.models.V1 here"),
        (("model.dropout=interval(0.0,0.1)",), "model.dropout is 0 to 0.1 here, but 0.05 in the study"),
    ],
)
def test_a_study_is_continued_only_as_it_was_begun(
    searching: Callable[..., search.Search], change: tuple[str, ...], sentence: str
) -> None:
    work(searching("hydra.sweeper.n_trials=1"))
    with pytest.raises(ValueError, match="begin another one with hydra.sweeper.study_name") as error:
        search.open_study(searching("hydra.sweeper.n_trials=1", *change))
    assert str(error.value).startswith(sentence)


def test_workers_trials_and_the_address_of_the_storage_may_change(
    searching: Callable[..., search.Search], tmp_path: Path
) -> None:
    work(searching("hydra.sweeper.n_trials=1"))
    (tmp_path / "study" / "study.db").rename(tmp_path / "elsewhere.db")
    listed = work(
        searching(
            "hydra.sweeper.n_trials=2",
            "hydra.sweeper.n_jobs=7",
            f"hydra.sweeper.storage=sqlite:///{tmp_path}/elsewhere.db",
            "pictures=true",
        )
    )
    assert trials.count(listed)["complete"] == 2


def test_a_folder_with_trials_that_the_storage_does_not_know_is_refused(
    searching: Callable[..., search.Search], tmp_path: Path
) -> None:
    work(searching("hydra.sweeper.n_trials=1"))
    (tmp_path / "study" / "study.db").unlink()
    with pytest.raises(ValueError, match="holds trials of a study that sqlite:.* does not know"):
        work(searching("hydra.sweeper.n_trials=1"))


@pytest.mark.parametrize(
    ("overrides", "space", "sentence"),
    [
        (("scheduler=cosine",), ("scheduler.step_size=range(2,5)",), "scheduler=cosine has no step_size, which"),
        ((), ("optimizer.lrr=interval(0,1)",), "optimizer=sgd has no lrr"),
        ((), ("batch_sise=choice(1,2)",), "batch_sise is searched, but is no key"),
        ((), ("model.width=interval(4,8)",), "model.width takes whole numbers: search 'model.width=range(4,9)'"),
        ((), ("optimizer.lr=interval(0.0,0.1)",), "optimizer.lr is 0.0: it must be above 0"),
        ((), ("optimizer.momentum=interval(0.5,1.0)",), "optimizer.momentum is 1.0: it must be"),
        ((), (), "there is nothing to search"),
        (("data.validation=0",), SPACE, "data.validation is 0: a search chooses by images"),
        (("data.validation=5000",), SPACE, "data.validation is 5,000"),
        (("epochs=16",), SPACE, "epochs is 16, 1 over budget.epochs=15"),
        (("dry_run=true",), SPACE, "dry_run is about one run"),
        (("hydra.sweeper.n_trials=0",), SPACE, "hydra.sweeper.n_trials is 0: it must be at least 1"),
        (("hydra.sweeper.n_jobs=0",), SPACE, "hydra.sweeper.n_jobs is 0: it must be at least 1"),
        (("hydra.sweeper.timeout=-1",), SPACE, "hydra.sweeper.timeout is -1.0: it must be above 0"),
        (("hydra.sweeper.max_failure_rate=2",), SPACE, "hydra.sweeper.max_failure_rate is 2.0: it must be"),
        (("hydra.sweeper.direction=minimize",), SPACE, "hydra.sweeper.direction must be maximize"),
        ((TWO[0],), SPACE, "hydra.sweeper.pruner is SuccessiveHalvingPruner, which knows one objective, and"),
        ((TWO[0], "hydra/sweeper/pruner=median"), SPACE, "hydra.sweeper.pruner is MedianPruner"),
        ((*TWO, "hydra.sweeper.confirm.top=3"), SPACE, "hydra.sweeper.confirm.top is 3, but with two objectives"),
        (
            ("hydra.sweeper.objectives=[parameters]",),
            SPACE,
            "hydra.sweeper.objectives is [parameters]: it must",
        ),
        (("hydra.sweeper.objectives=[]",), SPACE, "hydra.sweeper.objectives is []: it must be [accuracy] or"),
        (("hydra.sweeper.enqueue=[{optimizer.lrr:1}]",), SPACE, "hydra.sweeper.enqueue sets optimizer.lrr, which"),
        (("hydra/sweeper/sampler=grid",), SPACE, "hydra.sweeper.sampler cannot be built: GridSampler only"),
        (("hydra.sweeper.sampler._target_=os.getcwd",), SPACE, "hydra.sweeper.sampler cannot be built"),
        (("hydra.sweeper.pruner._target_=os.getcwd",), SPACE, "hydra.sweeper.pruner cannot be built"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_any_trial(
    searching: Callable[..., search.Search], overrides: tuple[str, ...], space: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        search.check(searching(*overrides, space=space))
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_an_unreachable_storage_is_one_sentence_without_the_password(
    searching: Callable[..., search.Search],
) -> None:
    for url, reason in (
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("nonsense", "Could not parse"),
        ("nodialect://me:secret@host/db", "Can't load plugin"),
    ):
        with pytest.raises(ValueError, match="hydra.sweeper.storage=.* cannot be opened") as error:
            search.open_study(searching(f"hydra.sweeper.storage='{url}'"))
        assert reason in str(error.value)
        assert "secret" not in str(error.value)


def test_two_workers_that_begin_the_same_last_trial_finish_one(searching: Callable[..., search.Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", space=SPACE[:1])
    search.check(wanted)
    study = search.open_study(wanted)
    interrupt = search.Interrupt()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asked outside of optimize, on purpose
        first, second, third = study.ask(), study.ask(), study.ask()
    assert search.train(wanted, study, interrupt, first) > 90
    assert search.train(wanted, study, interrupt, second) > 90
    with pytest.raises(RuntimeError, match="surplus"):
        search.train(wanted, study, interrupt, third)
    study.tell(third, state=TrialState.FAIL)
    assert wanted.launcher.launched == [0, 1]
    assert trials.states(study.trials)[2] == "surplus"


def test_the_list_of_trials_tells_what_became_of_each(
    searching: Callable[..., search.Search], tmp_path: Path
) -> None:
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


# From here on real command lines, with a network of a few hundred parameters and 2,000 images. The default pruner
# gives nothing up before the fifth epoch is over.
LINE = (
    "-m",
    "hparams_search=optuna",
    "data=mnist5k",
    "data.validation=2000",
    "threads=1",
    "report=false",
    "epochs=2",
    "model.width=range(3,6)",
    "hydra.sweeper.sampler.seed=1",
    "hydra.sweeper.heartbeat=3",
)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a search in an empty folder; it is killed at the end with the workers that it left."""
    processes = []

    def start(*overrides: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "train.py"), *LINE, *overrides],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        for worker in workers(process):
            os.kill(worker, signal.SIGKILL)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The process numbers of a search's workers: the forks of a process that it started."""

    def children(parents: list[int]) -> list[int]:
        command = ["ps", "-o", "pid=", "--ppid", ",".join(map(str, parents))]
        return [int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()]

    helpers = children([process.pid])
    return children(helpers) if helpers else []


def study(folder: Path, storage: str = "") -> optuna.Study:
    """The study in a folder or at an address, read as optuna-dashboard would."""
    address = storage or f"sqlite:///{folder}/multirun/optuna/study.db"
    return optuna.load_study(study_name="optuna", storage=opened(address))


@functools.cache
def opened(address: str) -> optuna.storages.RDBStorage:
    """A storage, opened once however often a test looks into it."""
    return optuna.storages.RDBStorage(address)


def wait_for(condition: Callable[[], Any], seconds: float = 600) -> None:
    """Wait until something has happened; what is not there yet has not happened."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if condition():
                return
        except (KeyError, SQLAlchemyError, optuna.exceptions.StorageInternalError):
            pass
        time.sleep(0.2)
    raise TimeoutError


def reports(folder: Path, storage: str = "") -> bool:
    """Whether a trial that runs has reported an epoch."""
    return any(t.state == TrialState.RUNNING and t.last_step is not None for t in study(folder, storage).trials)


def test_the_best_trial_is_repeated_exactly_by_the_line_that_the_search_prints(
    bantam: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "multirun" / "optuna"
    assert "python " in done.stdout
    assert "--config-dir multirun/optuna experiment=best" in done.stdout
    best = json.loads((folder / "summary.json").read_text())["best"]
    again = bantam("train.py", "--config-dir", "multirun/optuna", "experiment=best", "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr
    result = record.read_result(tmp_path / "again")
    assert result["objective"] == best["objective"]
    assert result["parameters"] == best["parameters"]
    same = bantam("evaluate.py", f"multirun/optuna/{best['number']}")
    assert same.returncode == 0, same.stdout
    # A study that has its trials says so and does nothing.
    before = study(tmp_path).trials
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert "has its 3 trials" in done.stdout
    assert study(tmp_path).trials == before


def test_bad_trials_are_given_up_and_good_ones_are_not(
    bantam: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Rates of nearly nothing after two good ones: the median pruner has to see that across processes."""
    done = bantam(
        "train.py",
        *LINE,
        "epochs=3",
        "optimizer.lr=choice(0.000001,0.1)",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=1",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2",
        "hydra.sweeper.pruner.n_warmup_steps=2",
        "hydra.sweeper.enqueue=["
        "{optimizer.lr:0.1,optimizer.momentum:0.9},{optimizer.lr:0.1,optimizer.momentum:0.8},"
        "{optimizer.lr:0.000001,optimizer.momentum:0.9},{optimizer.lr:0.000001,optimizer.momentum:0.8}]",
        "hydra/launcher=joblib",
    )
    assert done.returncode == 0, done.stderr
    listed = study(tmp_path).trials
    assert trials.states(listed) == ["complete", "complete", "pruned", "pruned"]
    assert list(listed[2].intermediate_values) == [1, 2]
    folder = tmp_path / "multirun" / "optuna" / "2"
    result = record.read_result(folder)
    assert (result["verdict"], result["epochs"]) == ("pruned", 2)
    assert sorted(path.name for path in folder.iterdir()) == [".hydra", "history.csv", "result.json"]


def test_a_killed_search_goes_on_where_it_was(
    started: Callable[..., subprocess.Popen[str]],
    bantam: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    process = started("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "epochs=5")
    wait_for(lambda: reports(tmp_path) and len(study(tmp_path).trials) == 2)
    for worker in workers(process):
        os.kill(worker, signal.SIGKILL)
    process.kill()
    process.wait()
    assert TrialState.RUNNING in [trial.state for trial in study(tmp_path).trials]
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "epochs=5")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = study(tmp_path).trials
    assert trials.states(listed) == ["complete", "stopped", "complete", "complete"]
    assert listed[2].params == listed[1].params or listed[3].params == listed[1].params


def test_ctrl_c_puts_the_trials_back(
    started: Callable[..., subprocess.Popen[str]],
    bantam: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    process = started("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "epochs=5")
    wait_for(lambda: reports(tmp_path) and len(study(tmp_path).trials) == 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output
    assert "The same command line continues the search" in output
    assert "Traceback" not in output
    # On a busy machine one of the two may have ended before the other's worker had started.
    words = trials.states(study(tmp_path).trials)
    stopped, complete = words.count("stopped"), words.count("complete")
    assert stopped >= 1
    assert stopped + complete == 2
    assert words[2:] == ["waiting"] * stopped
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "epochs=5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert trials.states(study(tmp_path).trials) == words[:2] + ["complete"] * stopped


def test_a_killed_worker_is_replaced(started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = started("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "epochs=5")
    wait_for(lambda: reports(tmp_path))
    os.kill(workers(process)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    counts = trials.count(study(tmp_path).trials)
    assert (counts["complete"], counts["stopped"], counts["running"]) == (3, 1, 0)


def test_the_same_command_line_in_a_second_terminal_joins_the_search(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    overrides = ("hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1")
    both = [started(*overrides), started(*overrides)]
    for process in both:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    listed = study(tmp_path).trials
    counts = trials.count(listed)
    assert (counts["complete"], counts["running"], counts["waiting"]) == (4, 0, 0)
    settings = [
        tuple(t.params.values())
        for t, word in zip(listed, trials.states(listed), strict=True)
        if word != "surplus"
    ]
    assert len(set(settings)) == 4  # one seed for two processes, and yet nothing twice
    folders = [path for path in (tmp_path / "multirun" / "optuna").iterdir() if path.name.isdigit()]
    assert len(folders) == 4


def test_timeout_lets_running_trials_end(
    bantam: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = bantam(
        "train.py", *LINE, "hydra.sweeper.timeout=1", "hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=9"
    )
    counts = trials.count(study(tmp_path).trials)
    assert counts["running"] == 0
    assert counts["complete"] <= 1
    assert done.returncode == (0 if counts["complete"] else 1)


def test_a_search_needs_m_and_a_fitting_schedule(bantam: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for arguments, sentence in (
        (("hparams_search=optuna",), "hparams_search=optuna searches only with -m"),
        (("-m", "hparams_search=optuna", "scheduler=cosine"), "scheduler=cosine has no step_size, which"),
        (("-m", "hparams_search=optuna", "experiment=champion"), "scheduler=one_cycle has no step_size"),
    ):
        refused = bantam("train.py", *arguments, "data=mnist5k", "data.validation=1000")
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert refused.stderr.startswith("Error: ")
        assert sentence in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.fixture
def postgresql() -> Iterator[str]:
    """Debian's PostgreSQL on loopback, empty and for this test alone; its address."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not binaries:
        pytest.skip("PostgreSQL is not on this machine: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgresql]'")
    programs = binaries[-1].parent
    user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="bantam-postgresql-"))
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    data, log = str(folder / "data"), (folder / "log").open("wb")
    quiet: dict[str, Any] = {"user": user, "stdout": log, "stderr": log, "cwd": folder}
    subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "bantam"], check=True, **quiet)
    listen = ["-h", "127.0.0.1", "-p", port, "-k", str(folder), "-c", "fsync=off"]
    server = subprocess.Popen([programs / "postgres", "-D", data, *listen], **quiet)
    ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", port]
    wait_for(lambda: subprocess.run(ready).returncode == 0, 60)
    yield f"postgresql+psycopg://bantam@127.0.0.1:{port}/postgres"
    server.send_signal(signal.SIGINT)  # what PostgreSQL calls a fast shutdown
    server.wait(60)
    log.close()
    shutil.rmtree(folder)


def test_four_workers_on_postgresql_lose_nothing_when_two_are_killed(
    started: Callable[..., subprocess.Popen[str]], postgresql: str, tmp_path: Path
) -> None:
    process = started(
        f"hydra.sweeper.storage={postgresql}", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=4", "epochs=5"
    )
    wait_for(lambda: sum(t.state == TrialState.RUNNING for t in study(tmp_path, postgresql).trials) == 4)
    wait_for(lambda: reports(tmp_path, postgresql))
    killed = workers(process)[:2]
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    listed = study(tmp_path, postgresql).trials
    words = trials.states(listed)
    counts = trials.count(listed)
    assert (counts["complete"], counts["running"], counts["waiting"]) == (6, 0, 0)
    assert counts["stopped"] == 2
    finished = [trial for trial, word in zip(listed, words, strict=True) if word == "complete"]
    for trial, word in zip(listed, words, strict=True):
        if word == "stopped":  # it was run again, once
            assert [other.params for other in finished].count(trial.params) == 1
    assert len({tuple(trial.params.values()) for trial in finished}) == 6
    for trial in finished:
        assert record.read_result(tmp_path / "multirun" / "optuna" / str(trial.number))["objective"] == trial.value


def test_trials_run_where_submitit_puts_them(
    bantam: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install -e '.[submitit]'")
    done = bantam(
        "train.py", *LINE, "hydra/launcher=submitit_local", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = study(tmp_path).trials
    assert trial.state == TrialState.COMPLETE
    assert list(trial.intermediate_values) == [1, 2]  # reported from submitit's process
    assert record.read_result(tmp_path / "multirun" / "optuna" / "0")["objective"] == trial.value
