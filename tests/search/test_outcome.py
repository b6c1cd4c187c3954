import json
from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf
from searches import SPACE, TWO, rate, sized, work

from bantam.report import folders
from bantam.search import outcome, terminal, trials, watch
from bantam.search.space import Search, compose
from bantam.search.study import open_study
from bantam.training import folder as record


@pytest.mark.whole
def test_only_the_best_trial_keeps_its_weights(searching: Callable[..., Search]) -> None:
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
    best = outcome.best(work(wanted))
    assert best is not None
    assert [path.parent.name for path in wanted.folder.glob(f"*/{record.WEIGHTS}")] == [str(best.number)]


def test_the_best_trial_loses_its_weights_when_it_is_no_longer_the_best(searching: Callable[..., Search]) -> None:
    wanted = searching(space=SPACE[:1])
    study, settled = open_study(wanted), set[int]()
    kept = []
    for value in (97.0, 98.0, 96.0, 99.0):
        trial = study.ask()
        weights = wanted.folder / str(trial.number) / record.WEIGHTS
        weights.parent.mkdir()
        weights.touch()
        study.tell(trial, value)
        outcome.keep_best_weights(wanted, trials.read(study), settled)
        kept.append([path.parent.name for path in wanted.folder.glob(f"*/{record.WEIGHTS}")])
    assert kept == [["0"], ["1"], ["1"], ["3"]]
    assert settled == {0, 1, 2}


@pytest.mark.whole
@pytest.mark.parametrize(
    "sampler",
    ["multivariate_tpe", "nsgaii", "gp", "random"],
)
def test_with_two_objectives_the_result_is_the_front(
    searching: Callable[..., Search], capsys: pytest.CaptureFixture[str], sampler: str
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
    front = outcome.front(listed)
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


@pytest.mark.whole
@pytest.mark.parametrize("cost", ["multiply_adds", "bytes", "activations"])
def test_any_cost_may_be_the_second_objective(searching: Callable[..., Search], cost: str) -> None:
    wanted = searching(
        f"hydra.sweeper.objectives=[accuracy,{cost}]",
        "hydra/sweeper/pruner=dominated",
        "hydra.sweeper.n_trials=6",
        result=sized,
        space=("model.width=range(8,17)",),
    )
    listed = work(wanted)
    assert all(trial.values == [sized(0, trial.params)["objective"], trial.user_attrs[cost]] for trial in listed)
    front = outcome.result(wanted, listed)
    costs = [trial.user_attrs[cost] for trial in front]
    assert costs == sorted(set(costs))
    outcome.write(wanted, listed, "enough")
    summary = json.loads((wanted.folder / "summary.json").read_text())
    assert [entry[cost] for entry in summary["front"]] == costs
    read = folders.read_study(wanted.folder)
    assert [t.costs[cost] for t in sorted(read.trials, key=lambda t: t.number)] == [
        trial.user_attrs[cost] for trial in listed
    ]


@pytest.mark.whole
def test_the_front_is_written_and_every_network_on_it_can_be_run(
    searching: Callable[..., Search], capsys: pytest.CaptureFixture[str]
) -> None:
    """What a trial saves is pretended too: the experiment of each is made of its folder."""
    wanted = searching(
        *TWO, "hydra.sweeper.n_trials=6", result=sized, space=("model.width=range(8,17)",), folder="architecture"
    )
    launch = wanted.launcher.launch

    def launch_and_save(overrides: list[list[str]], initial_job_idx: int) -> None:
        launch(overrides, initial_job_idx)
        folder = wanted.folder / str(initial_job_idx)
        settings = dict(item.split("=", 1) for item in overrides[0])
        cfg, place = compose(wanted, {key: settings[key] for key in wanted.space})
        OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create(overrides[0]), folder / ".hydra" / "overrides.yaml")
        choices = {"hydra": {"runtime": {"choices": place.choices}}}
        OmegaConf.save(OmegaConf.create(choices), folder / ".hydra" / "hydra.yaml")
        precision = str(wanted.prepared.precision).removeprefix("torch.")
        machine = {"device": "cpu", "threads": 1, "precision": precision, "kernels": "torch"}
        record.write_result(folder, {**record.read_result(folder), **machine})
        (folder / record.WEIGHTS).touch()

    wanted.launcher.launch = launch_and_save  # type: ignore[method-assign]
    listed = work(wanted)
    (wanted.folder / "experiment").mkdir()
    (wanted.folder / "experiment" / "trial_99.yaml").touch()  # of a shorter search
    watch.finish(wanted, open_study(wanted))
    front = outcome.front(listed)
    assert len(front) > 1
    numbers = [trial.number for trial in front]
    summary = json.loads((wanted.folder / "summary.json").read_text())
    assert [entry["number"] for entry in summary["front"]] == numbers
    assert "best" not in summary
    assert {path.stem for path in (wanted.folder / "experiment").iterdir()} == {f"trial_{n}" for n in numbers}
    assert {int(path.parent.name) for path in wanted.folder.glob(f"*/{record.WEIGHTS}")} == set(numbers)
    shown = capsys.readouterr().out
    assert all(f"--config-dir {wanted.folder} experiment=trial_{number}\n" in shown for number in numbers)
    assert f"front of {len(front)}: " in terminal.best(wanted, listed)


@pytest.mark.whole
def test_what_killed_processes_left_half_written_is_removed_at_the_end(searching: Callable[..., Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=2")
    work(wanted)
    study = open_study(wanted)
    left = [wanted.folder / ".trials.csv.0a.part", wanted.folder / "0" / ".history.csv.0b.part"]
    kept = outcome.result(wanted, study.trials)[0].number
    left.append(wanted.folder / str(1 - kept) / "checkpoint.before.pt")
    for path in left:
        path.touch()
    watch.finish(wanted, study)
    assert [path for path in left if path.exists()] == []


@pytest.mark.whole
def test_results_that_were_taken_over_are_counted_in_the_summary(
    searching: Callable[..., Search], capsys: pytest.CaptureFixture[str]
) -> None:
    space = ("model.width=8,12",)
    wanted = searching("hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=5", space=space, result=sized)
    listed = work(wanted)
    copies = sum("same_as" in trial.user_attrs for trial in listed)
    assert copies == 3
    outcome.write(wanted, listed, "enough")
    summary = json.loads((wanted.folder / "summary.json").read_text())
    assert (summary["copies"], summary["trials"]["complete"]) == (3, 5)
    terminal.show_counts(wanted, listed, 0)
    said = " ".join(capsys.readouterr().out.split())
    assert "5 complete, 0 pruned, 0 failed, 0 over budget; 3 of them had the settings of another trial" in said
