"""Several seeds a trial: with jobs that pretend to train where that is enough, with real ones for kills."""

import csv
import json
import os
import shlex
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Bantam, Forked
from epochs import epoch
from optuna.trial import TrialState
from searches import LINE, SPACE, TWO, stored, work, workers

from bantam.report import folders, study_figures, tables
from bantam.search import confirm, outcome, seeds, terminal, trials, watch
from bantam.search.checks import check
from bantam.search.space import Search
from bantam.search.study import open_study
from bantam.training import folder as record

GRID = "hydra/sweeper/sampler=grid"

WIDTHS = ("model.width=choice(8,10,12)",)


def reached(accuracies: dict[tuple[int, int], float]) -> Callable[[int, dict[str, str]], dict[str, Any]]:
    """Pretended accuracies by the width and the seed; 90 for all others."""

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        at = int(settings["model.width"]), int(settings.get("seed", 1))
        return {"objective": accuracies.get(at, 90.0)}

    return result


def by_width(listed: list[Any]) -> dict[int, Any]:
    return {trial.params["model.width"]: trial for trial in listed}


@pytest.mark.whole
def test_the_objective_is_the_mean_of_the_seeds_which_are_the_same_for_all(
    searching: Callable[..., Search], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, dict[str, str]]] = []

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        seen.append((number, settings))
        return {"objective": 90 + number + int(settings["seed"]) / 10}

    wanted = searching("seed=5", "hydra.sweeper.seeds=3", "hydra.sweeper.n_trials=2", result=result)
    listed = work(wanted)
    assert [(n, s["seed"], s.get("hydra.sweep.subdir")) for n, s in seen] == [
        (0, "5", None),
        (0, "6", "0/seed-6"),
        (0, "7", "0/seed-7"),
        (1, "5", None),
        (1, "6", "1/seed-6"),
        (1, "7", "1/seed-7"),
    ]
    assert all(s["optimizer.lr"] == str(listed[n].params["optimizer.lr"]) for n, s in seen)
    assert [trial.values for trial in listed] == [[pytest.approx(90.6)], [pytest.approx(91.6)]]
    assert seeds.objectives(listed[1]) == [91.5, 91.6, 91.7]
    watch.finish(wanted, open_study(wanted))
    summary = json.loads((wanted.folder / "summary.json").read_text())
    assert (summary["seeds"], summary["aggregate"]) == ([5, 6, 7], "mean")
    assert summary["best"]["objectives"] == [91.5, 91.6, 91.7]
    shown = " ".join(capsys.readouterr().out.split())
    assert "Best: trial 1, 91.600 % (mean of 91.50 91.60 91.70) of the 1,000 validation images" in shown
    line = outcome._line(wanted, listed[1])
    assert line.endswith(f" -m --config-dir {wanted.folder} experiment=best seed=5,6,7")
    with (wanted.folder / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["seeds"] for row in rows] == ["90.5 90.6 90.7", "91.5 91.6 91.7"]
    assert [float(row["mean"]) for row in rows] == [pytest.approx(90.6), pytest.approx(91.6)]
    assert [float(row["deviation"]) for row in rows] == [pytest.approx(0.1), pytest.approx(0.1)]


@pytest.mark.whole
def test_the_head_of_an_experiment_names_a_network_of_ones_own(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = searching("hydra.sweeper.seeds=2", "hydra.sweeper.n_trials=1")
    listed = work(wanted)
    heads: list[str] = []
    monkeypatch.setattr(outcome, "own_network", lambda trial: [f"model={trial}/network.py:Net"])
    monkeypatch.setattr(outcome, "experiment", lambda trial, repeats: heads.append(repeats) or repeats)
    monkeypatch.setattr(outcome, "write_options", lambda *_: None)
    outcome.write(wanted, listed, "enough")
    assert heads[0].rstrip().endswith(f" experiment=best seed=1,2 model={wanted.folder}/0/network.py:Net")


@pytest.mark.whole
def test_one_seed_leaves_no_trace_of_several(searching: Callable[..., Search]) -> None:
    wanted = searching("hydra.sweeper.n_trials=2")
    listed = work(wanted)
    outcome.write(wanted, listed, "enough")
    assert wanted.launcher.launched == [0, 1]
    assert not any(trial.user_attrs.keys() & {"objectives", "steps"} for trial in listed)
    assert (
        (wanted.folder / "trials.csv").read_text().splitlines()[0].endswith("activations,objective,seconds,folder")
    )
    assert "seeds" not in json.loads((wanted.folder / "summary.json").read_text())


@pytest.mark.whole
def test_the_lower_bound_is_the_mean_less_one_standard_error(searching: Callable[..., Search]) -> None:
    accuracies = {(8, 1): 95.0, (8, 2): 99.0, (10, 1): 96.5, (10, 2): 96.6, (12, 1): 96.0, (12, 2): 96.4}
    line = ("hydra.sweeper.seeds=2", GRID, "hydra/sweeper/pruner=none")
    by_mean = by_width(work(searching(*line, result=reached(accuracies), space=WIDTHS, folder="mean")))
    lower = searching(*line, "hydra.sweeper.aggregate=lower", result=reached(accuracies), space=WIDTHS)
    by_bound = by_width(work(lower))
    for width, trial in by_bound.items():
        values = [accuracies[width, seed] for seed in (1, 2)]
        assert by_mean[width].value == pytest.approx(statistics.fmean(values))
        assert trial.value == pytest.approx(statistics.fmean(values) - statistics.stdev(values) / 2**0.5)
    best = outcome.best(list(by_mean.values())), outcome.best(list(by_bound.values()))
    assert [trial.params["model.width"] for trial in best if trial] == [8, 10]
    assert seeds.in_words(lower, by_bound[10]) == " (mean less one standard error of 96.50 96.60)"


def test_a_lower_bound_of_one_seed_is_refused(searching: Callable[..., Search]) -> None:
    with pytest.raises(
        ValueError, match=r"aggregate is lower, which needs .*: give hydra.sweeper.seeds=2 or more"
    ):
        check(searching("hydra.sweeper.aggregate=lower"))
    with pytest.raises(ValueError, match=r"hydra.sweeper.seeds is 0"):
        check(searching("hydra.sweeper.seeds=0"))


@pytest.mark.whole
def test_a_study_is_continued_with_its_seeds_only(searching: Callable[..., Search]) -> None:
    line = ("hydra.sweeper.n_trials=1",)
    work(searching(*line, "hydra.sweeper.seeds=2"))
    for change, sentence in (
        ((), r"^hydra.sweeper.seeds is 1 here, but 2 in the study"),
        (("hydra.sweeper.seeds=3",), r"^hydra.sweeper.seeds is 3 here, but 2 in the study"),
        (
            ("hydra.sweeper.seeds=2", "hydra.sweeper.aggregate=lower"),
            r"^hydra.sweeper.aggregate is lower here, but mean in the study",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_study(searching(*line, *change))
    older = open_study(searching(*line, folder="older"))
    definition = {key: value for key, value in older.user_attrs["definition"].items() if "sweeper.s" not in key}
    del definition["hydra.sweeper.aggregate"]
    older.set_user_attr("definition", definition)  # of a version that knew one seed
    open_study(searching(*line, folder="older"))
    with pytest.raises(ValueError, match=r"^hydra.sweeper.seeds is 2 here, but 1 in the study"):
        open_study(searching(*line, "hydra.sweeper.seeds=2", folder="older"))


QUEUE = "hydra.sweeper.enqueue=[{model.width:8},{model.width:10},{model.width:12}]"


@pytest.mark.whole
def test_a_trial_that_cannot_catch_up_is_not_trained_on_the_next_seed(searching: Callable[..., Search]) -> None:
    accuracies = {
        **{(8, 1): 95.0, (8, 2): 97.0, (8, 3): 96.0},
        **{(10, 1): 94.9, (10, 2): 96.9, (10, 3): 99.9},  # below it on both of the first two seeds
        **{(12, 1): 95.3, (12, 2): 94.5, (12, 3): 96.5},  # above it on one
    }
    line = ("hydra.sweeper.seeds=3", GRID, QUEUE)
    wanted = searching(*line, result=reached(accuracies), space=WIDTHS)
    listed = work(wanted)
    assert trials.states(listed) == ["complete", "pruned", "complete"]
    assert wanted.launcher.launched == [0, 0, 0, 1, 1, 2, 2, 2]
    assert listed[1].state == TrialState.PRUNED
    reason = "pruned after 2 of 3 seeds, at 95.90 %: trial 0 was better on each"
    assert trials.reason(listed[1], "pruned") == reason
    assert seeds.objectives(listed[1]) == [94.9, 96.9]
    outcome.write(wanted, listed, "enough")
    with (wanted.folder / "trials.csv").open(newline="") as stream:
        row = list(csv.DictReader(stream))[1]
    assert (row["objective"], float(row["mean"]), row["seeds"]) == ("", pytest.approx(95.9), "94.9 96.9")
    none = "hydra/sweeper/pruner=none"
    everything = searching(*line, none, result=reached(accuracies), space=WIDTHS, folder="everything")
    assert trials.states(work(everything)) == ["complete"] * 3
    assert everything.launcher.launched == [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.whole
def test_beside_a_cost_only_networks_that_cost_no_more_count(searching: Callable[..., Search]) -> None:
    accuracies = {
        **{(10, 1): 97.0, (10, 2): 97.5, (10, 3): 97.0},
        **{(8, 1): 95.0, (8, 2): 96.0, (8, 3): 94.0},  # worse and smaller
        **{(12, 1): 96.5, (12, 2): 97.4},
    }
    queue = "hydra.sweeper.enqueue=[{model.width:10},{model.width:8},{model.width:12}]"
    wanted = searching(*TWO, "hydra.sweeper.seeds=3", GRID, queue, result=reached(accuracies), space=WIDTHS)
    listed = work(wanted)
    assert trials.states(listed) == ["complete", "complete", "pruned"]
    assert wanted.launcher.launched == [0, 0, 0, 1, 1, 1, 2, 2]
    sizes = [trial.user_attrs["parameters"] for trial in listed]
    means = [pytest.approx(97.5 - 1 / 3), pytest.approx(95.0), pytest.approx(96.95)]
    assert [trial.values for trial in listed] == [list(pair) for pair in zip(means, sizes, strict=True)]
    assert [trial.number for trial in outcome.result(wanted, listed)] == [1, 0]


@pytest.mark.whole
def test_a_seed_that_diverges_fails_its_trial(searching: Callable[..., Search]) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if (number, settings.get("seed")) == (1, "2"):
            return {"verdict": "diverged", "reason": "the loss became nan", "objective": None}
        return {"objective": 95.0}

    line = ("hydra.sweeper.seeds=3", "hydra.sweeper.n_trials=4", "hydra/sweeper/pruner=none")
    wanted = searching(*line, result=result, space=SPACE[:1])
    listed = work(wanted)
    assert trials.states(listed) == ["complete", "failed", "complete", "complete"]
    assert trials.reason(listed[1], "failed") == "seed 2: diverged: the loss became nan"
    assert wanted.launcher.launched == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.whole
def test_settings_that_were_trained_already_are_not_trained_again(searching: Callable[..., Search]) -> None:
    wanted = searching(
        "hydra.sweeper.seeds=2",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.enqueue=[{model.width:8}]",
        result=reached({(8, 1): 95.0, (8, 2): 96.0}),
        space=("model.width=choice(8)",),
    )
    listed = work(wanted)
    assert wanted.launcher.launched == [0, 0]
    assert listed[1].user_attrs["same_as"] == 0
    assert [seeds.objectives(trial) for trial in listed] == [[95.0, 96.0]] * 2
    assert [trial.value for trial in listed] == [95.5] * 2


def pretend_to_save(wanted: Search) -> None:
    """Have the jobs of a search write a history and weights too."""
    launch = wanted.launcher.launch

    def launch_and_save(overrides: list[list[str]], initial_job_idx: int) -> None:
        launch(overrides, initial_job_idx)
        settings = dict(item.split("=", 1) for item in overrides[0])
        folder = wanted.folder / settings.get("hydra.sweep.subdir", str(initial_job_idx))
        record.write_history(folder, [epoch(number, 90.0 + number) for number in (1, 2)])
        (folder / record.WEIGHTS).write_text(settings.get("seed", "1"))

    wanted.launcher.launch = launch_and_save  # type: ignore[method-assign]


@pytest.mark.whole
def test_the_finished_seeds_of_a_stopped_trial_are_taken_over(searching: Callable[..., Search]) -> None:
    stop = True

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if stop and settings.get("seed") == "3":
            raise KeyboardInterrupt
        return {"objective": 95.0 + int(settings.get("seed", 1))}

    line = ("hydra.sweeper.seeds=3", "hydra.sweeper.n_trials=1")
    wanted = searching(*line, result=result, space=SPACE[:1])
    pretend_to_save(wanted)
    stopped = work(wanted)
    assert trials.states(stopped) == ["stopped", "waiting"]
    assert wanted.launcher.launched == [0, 0, 0]
    weights = {path.parent.name for path in wanted.folder.rglob(record.WEIGHTS)}
    assert weights == {"0", "seed-2"}  # of the trial that is queued again
    stop = False
    again = searching(*line, result=result, space=SPACE[:1])
    pretend_to_save(again)
    listed = work(again)
    assert trials.states(listed) == ["stopped", "complete"]
    assert again.launcher.launched == [1]  # the third seed alone
    assert seeds.objectives(listed[1]) == [96.0, 97.0, 98.0]
    assert listed[1].params == listed[0].params
    assert sorted(listed[1].intermediate_values) == [1, 2, 3, 4]  # the pretended third seed reports nothing
    weights = {
        str(path.parent.relative_to(again.folder)): path.read_text() for path in again.folder.rglob("*.saf*")
    }
    assert weights == {"1": "1", "1/seed-2": "2", "1/seed-3": "3"}
    assert not (again.folder / "1" / "seed-2" / "seed-2").exists()


@pytest.mark.whole
def test_only_the_best_trial_keeps_the_weights_of_its_seeds(searching: Callable[..., Search]) -> None:
    accuracies = {(8, 1): 95.0, (8, 2): 97.0, (10, 1): 98.0, (10, 2): 98.5, (12, 1): 98.1, (12, 2): 98.0}
    wanted = searching("hydra.sweeper.seeds=2", GRID, QUEUE, result=reached(accuracies), space=WIDTHS)
    pretend_to_save(wanted)
    work(wanted)
    kept = {str(path.parent.relative_to(wanted.folder)) for path in wanted.folder.rglob(record.WEIGHTS)}
    assert kept == {"1", "1/seed-2"}


@pytest.mark.whole
def test_a_trial_whose_process_died_counts_where_all_its_seeds_have_ended(
    searching: Callable[..., Search],
) -> None:
    wanted = searching("hydra.sweeper.seeds=2", "hydra.sweeper.n_trials=3", space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    for number, ended in enumerate((2, 1)):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 0.01, 0.1)
        for count in range(1, ended + 1):
            folder = seeds.folder(wanted, number, count)
            folder.mkdir()
            record.write_result(folder, {"verdict": "not judged", "reason": "", "objective": 95.0 + count})
        watch.end_silent(wanted, study, study.trials[number])
    trial = study.ask()  # its process died when it had noted that it gets no further seed
    trial.set_user_attr("pruned", True)
    trial.set_user_attr("reason", "pruned after 1 of 2 seeds")
    watch.end_silent(wanted, study, study.trials[trial.number])
    listed = trials.requeue(study)
    assert trials.states(listed) == ["complete", "stopped", "pruned", "waiting"]
    assert (listed[0].value, seeds.objectives(listed[0])) == (96.5, [96.0, 97.0])


def test_the_live_table_says_which_seed_is_trained(searching: Callable[..., Search]) -> None:
    wanted = searching("hydra.sweeper.seeds=3", "hydra.sweeper.n_trials=2", space=SPACE[:1])
    check(wanted)
    study = open_study(wanted)
    trial = study.ask()
    trial.suggest_float("optimizer.lr", 0.01, 0.1)

    def shown() -> list[str]:
        table = terminal.progress(wanted, study.trials, "").renderables[0]
        return [list(column.cells)[-1] for column in table.columns[2:]]  # type: ignore[union-attr]

    trial.report(91.0, 1)
    assert shown() == ["1 of 3", "1", "91.00 %"]
    trial.report(92.0, 2)
    seeds.note(study, trial, trials.Ending(TrialState.COMPLETE, (92.0,), {"objectives": [92.0]}))
    assert shown() == ["2 of 3", "", ""]
    trial.report(93.0, 3)
    assert shown() == ["2 of 3", "1", "93.00 %"]


SEARCH = ("hydra.sweeper.seeds=3", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "epochs=2")


@pytest.mark.whole
def test_a_search_that_is_killed_between_two_seeds_trains_no_seed_twice(
    started: Callable[..., Forked], bantam: Bantam, tmp_path: Path
) -> None:
    """With real trainings: what the killed trial has trained is taken over, and the best trial is repeated."""
    process = started(*SEARCH)
    for name in ("0", "seed-2"):
        bantam.wait_until_held(name)
        bantam.let_go(name)
    bantam.wait_until_held("seed-3")
    for number in workers(process):
        os.kill(number, signal.SIGKILL)
    process.kill()
    process.wait()
    study = tmp_path / "multirun" / "optuna"
    killed = {name: (study / "0" / name / record.RESULT).read_text() for name in (".", "seed-2")}
    assert not (study / "0" / "seed-3" / record.RESULT).exists()
    done = bantam("train.py", *LINE, *SEARCH)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = stored(tmp_path).trials
    assert trials.states(listed) == ["stopped", "complete"]
    assert list(listed[1].intermediate_values) == [1, 2, 3, 4, 5, 6]
    results = [record.read_result(folder) for folder in (study / "1", *record.seed_folders(study / "1"))]
    for name, text in killed.items():
        taken = json.loads(text)
        assert record.read_result(study / "1" / name) == taken  # times and all: it is the very run
    assert [result["seed"] for result in results] == [1, 2, 3]
    assert listed[1].value == pytest.approx(statistics.fmean(result["objective"] for result in results))
    line = next(text for text in done.stdout.splitlines() if "experiment=best" in text)
    assert line in (study / "experiment" / "best.yaml").read_text()
    again = bantam("train.py", *shlex.split(line)[2:], "hydra.sweep.dir=again", "report=false")
    assert again.returncode == 0, again.stdout + again.stderr
    repeated = [record.read_result(tmp_path / "again" / f"{i}")["objective"] for i in range(3)]
    assert repeated == [result["objective"] for result in results]
    assert bantam("evaluate.py", "multirun/optuna/1/seed-2").returncode == 0
    confirmed = bantam("confirm.py", "multirun/optuna", "--top", "1", "--seeds", "2", "--validation-only")
    assert confirmed.returncode == 0, confirmed.stdout + confirmed.stderr
    assert json.loads((study / "confirm" / "confirm.json").read_text())["seeds"] == [4, 5]  # fresh ones


@pytest.mark.whole
def test_two_terminals_train_every_seed_of_every_trial_once(
    started: Callable[..., Forked], bantam: Bantam, tmp_path: Path
) -> None:
    line = ("hydra.sweeper.seeds=2", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1", "epochs=1")
    both = [started(*line, "hydra/sweeper/pruner=none") for _ in range(2)]
    bantam.wait_until_held("0", "1")
    bantam.let_go()
    for process in both:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    listed = stored(tmp_path).trials
    counts = trials.count(listed)
    assert (counts["complete"], counts["running"], counts["waiting"]) == (4, 0, 0)
    study = tmp_path / "multirun" / "optuna"
    runs = sorted(str(path.parent.relative_to(study)) for path in study.rglob(record.RESULT))
    assert runs == sorted(name for i in range(4) for name in (f"{i}", f"{i}/seed-2"))


@pytest.mark.whole
def test_the_report_counts_the_seeds_of_a_trial_as_one_experiment(searching: Callable[..., Search]) -> None:
    accuracies = {
        **{(8, 1): 95.0, (8, 2): 96.0, (8, 3): 97.0},
        **{(10, 1): 97.0, (10, 2): 98.0, (10, 3): 98.5},
        **{(12, 1): 90.0, (12, 2): 91.0},
    }
    wanted = searching("hydra.sweeper.seeds=3", GRID, QUEUE, result=reached(accuracies), space=WIDTHS)
    pretend_to_save(wanted)
    outcome.write(wanted, work(wanted), "enough")
    found = folders.gather([wanted.folder])
    (study,) = found.studies
    assert (found.runs, found.broken, study.problems) == ([], [], [])
    assert [trial.seeds for trial in study.trials] == [[95.0, 96.0, 97.0], [97.0, 98.0, 98.5], [90.0, 91.0]]
    table = tables.trials(study)
    assert table is not None
    shown = [dict(zip(table.titles, (cell.text for cell in row), strict=True)) for row in table.rows]
    columns = ("trial", "accuracy", "seeds", "mean", "±", "each seed")
    assert [tuple(row[name] for name in columns) for row in shown] == [
        ("1", "97.833", "3", "97.833", "0.764", "97.00 98.00 98.50"),
        ("0", "96.000", "3", "96.000", "1.000", "95.00 96.00 97.00"),
        ("2", "", "2", "90.500", "0.707", "90.00 91.00"),
    ]
    assert [run.folder.name for run in study.best] == ["1", "seed-2", "seed-3"]
    assert "97.833 % over 3 seeds of the validation images" in dict(tables.study(study))["best"]
    drawn, _ = study_figures.draw(study)
    (epochs,) = (each for each in drawn if each.title == "Epoch by epoch")
    assert epochs.note == "A line is the first seed of a trial."
    (trial,) = folders.gather([wanted.folder / "1"]).runs  # its folder alone is one run
    assert trial.folder.name == "1"


@pytest.mark.whole
def test_a_confirmation_refuses_a_damaged_seed(searching: Callable[..., Search]) -> None:
    wanted = searching("hydra.sweeper.seeds=2", "hydra.sweeper.n_trials=1", space=SPACE[:1])
    outcome.write(wanted, work(wanted), "enough")
    (number, objective), *_ = confirm._choose(wanted.folder, 1, ())
    assert (number, objective) == (0, outcome.best(open_study(wanted).trials).value)  # type: ignore[union-attr]
    other = wanted.folder / "0" / "seed-2"
    record.write_result(other, {**record.read_result(other), "objective": 12.0})
    with pytest.raises(ValueError, match=r"0/seed-2 reached 12.0, but trials.csv says .*: restore it, or choose"):
        confirm._choose(wanted.folder, 1, ())
    (other / record.RESULT).unlink()
    with pytest.raises(ValueError, match=r"0/seed-2 holds no result.json.*, or choose other trials"):
        confirm._choose(wanted.folder, 1, ())
    other.rename(wanted.folder / "gone")
    with pytest.raises(ValueError, match=r"a seed of .*0 reached None, but trials.csv says"):
        confirm._choose(wanted.folder, 1, ())
