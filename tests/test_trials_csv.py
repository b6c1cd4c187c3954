"""Rows of `trials.csv`, whole and damaged."""

from pathlib import Path

import pytest
from made_folders import write_study

from bantam import trials_csv

HEADER = "number,state,reason,optimizer.lr,model,parameters,objective,mean,deviation,seeds,seconds,folder\n"


def written(folder: Path, *rows: str) -> Path:
    folder.mkdir()
    (folder / "trials.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return folder


def test_rows_are_what_a_search_has_written(tmp_path: Path) -> None:
    trials, keys, problems = trials_csv.read(write_study(tmp_path / "study", (97.0, 99.0)))
    assert [(t.number, t.state) for t in trials] == [
        (0, "complete"),
        (1, "complete"),
        (2, "pruned"),
        (3, "over budget"),
    ]
    assert (keys, problems) == (["optimizer.lr", "model"], [])


def test_a_row_has_numbers_where_they_are_and_the_accuracy_of_each_seed(tmp_path: Path) -> None:
    row = "4,complete,,0.1,v2,9680,99.2,99.2,0.1,99.1 99.3,61.5,4"
    (trial,), _, problems = trials_csv.read(written(tmp_path / "study", row))
    assert problems == []
    assert trial.settings == {"optimizer.lr": 0.1, "model": "v2"}
    assert trial.costs == {"parameters": 9680}
    assert (trial.objective, trial.seeds, trial.seconds, trial.folder) == (99.2, [99.1, 99.3], 61.5, "4")


@pytest.mark.parametrize(
    "value", [7, -3, 0.1, 1e-05, 1e16, 100000.0, "nan", "-inf", "1e5", "007", "1_000", "0.10"]
)
def test_a_setting_is_a_number_where_a_search_would_write_it_so(value: float | str, tmp_path: Path) -> None:
    row = f"4,complete,,{value},v2,9680,99.2,,,,61.5,4"
    (trial,), _, problems = trials_csv.read(written(tmp_path / "study", row))
    assert problems == []
    assert repr(trial.settings["optimizer.lr"]) == repr(value)


@pytest.mark.parametrize(
    "row",
    [
        "4,complete,,0.1",
        "4,complete,,0.1,v2,9680,,,,,1,4",
        "4,pruned,,0.1,v2,9680,99,,,,1,4",
        "x,complete,,0.1,v2,,99,,,,1,4",
    ],
    ids=["cut off", "complete without an accuracy", "pruned with one", "no number"],
)
def test_a_damaged_row_is_named_by_its_line_and_the_others_are_read(row: str, tmp_path: Path) -> None:
    sound = "0,complete,,0.1,v2,9680,99.2,,,,61.5,0"
    trials, _, problems = trials_csv.read(written(tmp_path / "study", sound, row))
    assert [t.number for t in trials] == [0]
    assert problems == ["trials.csv is damaged (line 3)"]


def test_a_file_that_is_no_table_of_trials_is_said(tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_text("a,b\n1,2\n")
    assert trials_csv.read(tmp_path).problems == [
        "trials.csv cannot be read (its first line is not that of a study)"
    ]
