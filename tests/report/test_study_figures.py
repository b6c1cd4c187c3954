from pathlib import Path
from typing import Any

import pytest
from made_folders import write_study

from bantam.report import folders, study_figures
from bantam.report.folders import Study, Trial


def trial(number: int, **settings: Any) -> Trial:
    return Trial(number, "complete", "", settings, 5000, 90.0 + number / 10, 1.0, [(1, 90.0)])


def test_trials_are_told_apart_by_their_state(tmp_path: Path) -> None:
    study = folders.read_study(write_study(tmp_path / "study", (97.0, 99.0, 98.0), pruned=2, over=3))
    for drawn, line in (
        (study_figures.history(study), "best so far"),
        (study_figures.sizes(study), "Pareto front"),
    ):
        assert drawn is not None
        names = [trace["name"] for trace in drawn.data]
        assert names == [line, "complete (3)", "pruned (2)", "over budget (3)"]
        assert len({trace["marker"]["symbol"] for trace in drawn.data[1:]}) == 3
    history, sizes, epochs = (
        study_figures.history(study),
        study_figures.sizes(study),
        study_figures.intermediate(study),
    )
    assert history is not None
    assert history.data[0]["y"] == [97.0, 99.0, 99.0]
    assert sizes is not None
    assert sizes.data[0]["x"] == [2000, 3000]
    assert sizes.layout["shapes"][0]["x0"] == 10_000
    assert epochs is not None
    assert "2 trials were given up, after 2.0 epochs on average" in epochs.see


def test_settings_side_by_side_have_the_best_tenth_in_colour(tmp_path: Path) -> None:
    trials = [trial(i, lr=10 ** (-i / 10), kind="ab"[i % 2], same=1) for i in range(20)]
    drawn = study_figures.parallel(Study(tmp_path, trials, ["lr", "kind", "same"], [], None))
    assert drawn is not None
    others, best = drawn.data
    assert best["name"] == "best tenth (2)"
    assert len(others["x"]) == 18 * 4
    assert drawn.layout["xaxis"]["ticktext"] == ["lr", "kind", "accuracy, %"]  # what never differs is left out
    assert best["y"][:3] == pytest.approx([1 / 19, 0.0, 18 / 19])  # lr spans decades: its axis is logarithmic
    assert drawn.see.startswith("The best tenth of the trials have lr 0.01259 to 0.01585")


def test_a_thousand_trials_are_a_few_traces(tmp_path: Path) -> None:
    trials = [trial(i, lr=0.1 + i, width=i % 7) for i in range(1000)]
    study = Study(tmp_path, trials, ["lr", "width"], [], None)
    for drawn in (study_figures.history(study), study_figures.intermediate(study), study_figures.parallel(study)):
        assert drawn is not None
        assert len(drawn.data) <= 4


@pytest.mark.parametrize(
    ("objectives", "why"),
    [
        ((), "0 completed trials are too few"),
        ((97.0, 98.0), "2 completed trials are too few"),
        ((97.0,) * 5, "all completed trials have the same accuracy"),
    ],
)
def test_importances_are_there_or_the_reason(tmp_path: Path, objectives: tuple[float, ...], why: str) -> None:
    study = folders.read_study(write_study(tmp_path / "study", objectives))
    assert study_figures.shares(study) == ({}, why)


def test_importances_find_what_decides(tmp_path: Path) -> None:
    trials = [
        folders.Trial(
            i, "complete", "", {"a": i / 40, "b": (i * 7) % 11, "c": "xy"[i % 2]}, 1, 90 + i / 8, 1.0, []
        )
        for i in range(40)
    ]
    shares, _ = study_figures.shares(folders.Study(tmp_path, trials, ["a", "b", "c"], [], None))
    assert max(shares, key=lambda key: shares[key]) == "a"
    assert sum(shares.values()) == pytest.approx(1)
