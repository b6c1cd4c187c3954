import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_folders import write_study
from optuna.trial import TrialState

from bantam.report import folders, study_figures
from bantam.report.figures import Figure
from bantam.report.folders import Study, Trial

TOO_FEW = "No importances: they need four completed trials that differ in accuracy and in two settings."


def trial(number: int, **settings: Any) -> Trial:
    return Trial(number, "complete", "", settings, {"parameters": 5000}, 90.0 + number / 10, 1.0, [(1, 90.0)])


def drawn(study: Study) -> dict[str, Figure]:
    """The figures of a study by their titles."""
    return {figure.title: figure for figure in study_figures.draw(study)[0]}


def test_a_study_is_rebuilt_of_its_completed_trials(tmp_path: Path) -> None:
    study = folders.read_study(write_study(tmp_path / "study", (97.0, 99.0), pruned=1, over=1))
    del study.trials[0]  # a damaged row
    (best,) = study_figures.rebuild(study).trials
    assert (best.state, best.value) == (TrialState.COMPLETE, 99.0)
    assert best.params == {"optimizer.lr": 0.02, "model": "v2"}
    assert [[t.costs["parameters"], t.objective] for t in study.front] == [[3000, 99.0]]
    figures = drawn(study)
    history = figures["History"].plot.data
    assert [trace.x for trace in history] == [(1, 2, 3), (1,), (2,), (3,)]  # all keep their numbers
    assert history[0].y == (99.0, 99.0, 99.0)
    pruned = figures["Epoch by epoch"].plot.data[0]
    assert (pruned.x[:2], pruned.y[:2]) == ((1, 2), (60.0, 70.0))
    front = figures["Accuracy and size"].plot.data[0]
    assert [*zip(front.x, front.y, strict=True)] == [(3000, 99.0)]


def test_no_figure_of_a_search_imports_matplotlib_which_can_still_be_had(tmp_path: Path) -> None:
    write_study(tmp_path / "study", (97.0, 98.0, 99.0))
    program = (
        "import sys; from pathlib import Path; from bantam.report import folders, study_figures\n"
        f"found, _ = study_figures.draw(folders.read_study(Path({str(tmp_path / 'study')!r})))\n"
        "assert 'Settings side by side' in [figure.title for figure in found]\n"
        "assert not [name for name in sys.modules if name.startswith('matplotlib')]\n"
        "from matplotlib import pyplot"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_settings_that_no_range_spans_are_drawn_as_choices(odd: float, tmp_path: Path) -> None:
    rows = ["number,state,reason,model.norm,objective"]
    rows += [f"{i},complete,,{odd if i % 2 else 1.0},{90 + i}" for i in range(4)]
    (tmp_path / "trials.csv").write_text("\n".join(rows) + "\n")
    study = folders.read_study(tmp_path)
    assert {t.params["model.norm"] for t in study_figures.rebuild(study).trials} == {1.0, str(odd)}
    assert "Settings side by side" in drawn(study)


def test_trials_are_distinguished_by_their_state(tmp_path: Path) -> None:
    study = folders.read_study(write_study(tmp_path / "study", (97.0, 99.0, 98.0), pruned=2, over=3))
    found = drawn(study)
    for title, line in (("History", "best so far"), ("Accuracy and size", "Pareto front")):
        traces = found[title].plot.data
        assert [trace.name for trace in traces] == [line, "complete (3)", "pruned (2)", "over budget (3)"]
        assert len({trace.marker.symbol for trace in traces[1:]}) == 3
        assert traces[1].text[0].startswith("trial 0: 97.000 %<br>optimizer.lr 0.01")
        assert traces[3].text[0].startswith("trial 5: too many<br>optimizer.lr")
    assert list(found["History"].plot.data[0].y) == [97.0, 99.0, 99.0] + [99.0] * 5
    assert list(found["Accuracy and size"].plot.data[0].x) == [2000, 3000]
    assert found["Accuracy and size"].plot.layout.shapes[0].x0 == 10_000


def test_trials_below_the_scale_are_counted_in_the_picture(tmp_path: Path) -> None:
    study = folders.read_study(write_study(tmp_path / "study", (50.0, 60.0, 97.0, 99.0, 98.0, 98.5)))
    for title, note in (
        ("History", "below this scale: 2 completed trials<br>double-click to see all"),
        ("Epoch by epoch", "below this scale: the ends of 2 lines<br>double-click to see all"),
    ):
        assert note in [each.text for each in drawn(study)[title].plot.layout.annotations]


def test_lines_that_fall_at_their_end_are_within_the_scale(tmp_path: Path) -> None:
    trials = [trial(number, lr=0.1 + number) for number in range(4)]
    trials[3].epochs[:] = [(1, 40.0), (2, 97.0), (3, 91.0)]
    low, high = drawn(Study(tmp_path, trials, ["lr"]))["Epoch by epoch"].plot.layout.yaxis.range
    assert (low < 90, high > 97) == (True, True)


def test_settings_side_by_side_have_the_best_tenth_in_colour(tmp_path: Path) -> None:
    trials = [trial(i, lr=10 ** (-i / 10), kind="ab"[i % 2], same=1) for i in range(20)]
    figure = drawn(Study(tmp_path, trials, ["lr", "kind", "same"]))["Settings side by side"]
    others, best = figure.plot.data
    assert best.name == "best tenth (2)"
    assert len(others.x) == 18 * 4
    # What never differs is left out.
    assert list(figure.plot.layout.xaxis.ticktext) == ["accuracy", "kind", "lr"]
    # lr spans decades: its axis is logarithmic.
    assert best.y[:3] == pytest.approx([18 / 19, 0.0, 1 / 19], abs=1e-4)
    assert best.text[2] == "trial 18<br>lr 0.0158"
    assert best.text[0] == "trial 18<br>accuracy 91.800 %"
    accuracies = [tick.text for tick in figure.plot.layout.annotations if tick.x == 0]
    assert accuracies == ["90.00", "90.47", "90.95", "91.43", "91.90"]
    assert figure.see.startswith("The best tenth has mostly lr 0.01259 to 0.01585")


@pytest.mark.whole
def test_a_thousand_trials_are_a_few_traces(tmp_path: Path) -> None:
    trials = [trial(i, lr=0.1 + i, width=i % 7) for i in range(1000)]
    found = drawn(Study(tmp_path, trials, ["lr", "width"]))
    for title in ("History", "Epoch by epoch", "Settings side by side"):
        assert len(found[title].plot.data) <= 4
    assert sum(len(trace.x) for trace in found["Settings side by side"].plot.data) == 4000


def test_a_trial_that_runs_is_a_line_of_its_own(tmp_path: Path) -> None:
    running = Trial(1, "running", "", {"lr": 0.1}, {"parameters": 5000}, None, None, [(1, 80.0), (2, 85.0)])
    found = drawn(Study(tmp_path, [trial(0, lr=0.2), running], ["lr"]))
    assert [trace.name for trace in found["Epoch by epoch"].plot.data] == ["running, trial 1", "best, trial 0"]


def test_accuracy_is_drawn_against_the_cost_that_was_an_objective(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0), multi_objective=True, cost="activations")
    figure = drawn(folders.read_study(folder))["Accuracy and size"]
    assert figure.plot.layout.xaxis.title.text == "bytes of activations"
    assert not figure.plot.layout.shapes  # it has no limit
    assert (
        figure.note
        == "The line is the front: where it bends, no trial with as few bytes of activations is as accurate."
    )
    front = next(trace for trace in figure.plot.data if trace.name == "Pareto front")
    assert list(front.x) == [2000, 3000]


def test_drawing_leaves_the_log_of_a_search_as_it_is(tmp_path: Path) -> None:
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        drawn(Study(tmp_path, [trial(0, lr=0.1), trial(1, lr=0.2)], ["lr"]))
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    finally:
        optuna.logging.set_verbosity(before)


def test_there_is_no_figure_of_no_trial(tmp_path: Path) -> None:
    assert study_figures.draw(Study(tmp_path)) == ([], ["No trial has ended yet."])
    only_over = folders.read_study(write_study(tmp_path / "study", (), pruned=0, over=2))
    assert study_figures.draw(only_over) == ([], [TOO_FEW])


def test_names_and_settings_are_text_in_every_figure(tmp_path: Path) -> None:
    trials = [trial(i, **{"<b>key": "<i>" if i % 2 else "%{x}", "lr": i}) for i in range(6)]
    for figure in drawn(Study(tmp_path, trials, ["<b>key", "lr"])).values():
        assert "<b>key" not in figure.plot.to_json().replace("\\u003c", "<")


@pytest.mark.parametrize("objectives", [(), (97.0, 98.0), (97.0,) * 5])
def test_importances_are_there_or_the_reason(tmp_path: Path, objectives: tuple[float, ...]) -> None:
    study = folders.read_study(write_study(tmp_path / "study", objectives))
    assert study_figures.importances(study, study_figures.rebuild(study)) == TOO_FEW


def test_importances_find_what_decides(tmp_path: Path) -> None:
    settings = [{"a": i / 40, "b": (i * 7) % 11, "c": "xy"[i % 2]} for i in range(40)]
    trials = [Trial(i, "complete", "", settings[i], {"parameters": 1}, 90 + i / 8, 1.0, []) for i in range(40)]
    figure = drawn(Study(tmp_path, trials, ["a", "b", "c"]))["Importance"]
    (bars,) = figure.plot.data
    assert bars.y[-1] == "a"
    assert sum(bars.x) == pytest.approx(1)
    assert figure.see.startswith("a decides most")


def test_a_single_setting_has_no_importance(tmp_path: Path) -> None:
    study = Study(tmp_path, [trial(i, lr=0.1 * i, same=1) for i in range(6)], ["lr", "same"])
    why = study_figures.importances(study, study_figures.rebuild(study))
    assert why == TOO_FEW


def test_a_key_that_only_some_trials_have_is_drawn_too(tmp_path: Path) -> None:
    trials = [trial(0, lr=0.1), trial(1, lr=0.2, gamma=0.5), trial(2, lr=0.3, gamma=0.7)]
    plot = drawn(Study(tmp_path, trials, ["lr", "gamma"]))["Settings side by side"].plot
    assert list(plot.layout.xaxis.ticktext) == ["accuracy", "gamma", "lr"]
    assert plot.data[0].text[1] == "trial 0<br>gamma None"
