from pathlib import Path

import pytest
from made_folders import one, write_run

from bantam.report import analysis, folders, groups, runs
from bantam.report.groups import Group
from bantam.training import folder as record


def topics(group: Group) -> dict[str, str]:
    return dict(analysis.analyse(group))


def test_a_diverged_seed_belongs_to_its_group_and_to_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    folder = write_run(tmp_path / "1", seed=2)
    record.write_result(folder, {"verdict": "diverged", "reason": "nan", "objective": None, "seed": 2})
    (g,) = groups.group(folders.gather([tmp_path]).runs)
    assert (len(g.runs), len(g.ended), g.deviation) == (2, 1, None)
    assert "1 of 2 have no result and are in no mean: seed 2 (diverged)" in topics(g)["Lost"]


def test_the_analysis_of_a_run(tmp_path: Path) -> None:
    matrix = [[98, 2], [1, 99]]
    found = topics(one(tmp_path / "0", 97.0, 98.95, 99.2, 99.3, confusion=matrix, classes=["zero", "one"]))
    assert found["Target"] == "reaches 99 % in epoch 3 and stays there"
    assert "0.40 points below test" in found["Gap"]
    assert "dropout makes the training images harder" in found["Gap"]
    assert found["Stability"] == "the last 3 epochs lie within 0.35 points, 35 of 10,000 images"
    assert "from epoch 2 to 3 the rate falls from 0.025 to 0.0025" in found["Rate"]
    assert "(+0.25)" in found["Rate"]
    assert found["Errors"] == (
        "class zero is the hardest (98.00 % right); the most frequent mistake is zero taken for one, 2 times"
    )


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ((97.0, 98.0, 98.5, 98.98), "never reaches 99 %: the best epoch is 0.02 points short, 2 images"),
        ((97.0, 99.2, 98.5, 98.9), "first reaches 99 % in epoch 2, is there in 1 epoch, and does not hold it"),
        ((99.1, 98.2, 99.5, 99.0), "first reaches 99 % in epoch 1 and stays there from 3 on"),
    ],
)
def test_the_way_to_the_target(tmp_path: Path, accuracies: tuple[float, ...], said: str) -> None:
    assert topics(one(tmp_path / "0", *accuracies, verdict="not met"))["Target"] == said


def test_nothing_is_said_without_numbers(tmp_path: Path) -> None:
    found = topics(one(tmp_path / "0", 97.0, 98.0, 98.5, 98.9, verdict="not judged", scored_images=None))
    assert set(found) == {"Stability", "Rate"}
    assert topics(one(tmp_path / "1", 9.8, 9.8, 9.8, 9.8, at_chance=True)) == {"Outcome": "because"}


def test_a_collapse_is_said(tmp_path: Path) -> None:
    assert (
        "falls from 98.00 % in epoch 1 to 9.80 %" in topics(one(tmp_path / "a", 98.0, 60.0, 9.8, 9.8))["Outcome"]
    )
    seeds = [runs.read_run(write_run(tmp_path / "0", (97.0, 98.0, 98.1, 98.2), verdict="not met"))]
    seeds.append(runs.read_run(write_run(tmp_path / "1", (97.0, 50.0, 9.8, 9.8), 2, verdict="not met")))
    (g,) = groups.group(seeds)
    assert g.spread_out
    assert "1 of 2 seeds fell back after their best epoch: seed 2 from 97.00 to 9.80 %" in topics(g)["Collapse"]
    assert g.verdict == "met by 0 of 2 seeds"
    assert [row[1] for row in g.by_epoch("accuracy")] == pytest.approx([97.0, 74.0, 53.95, 54.0])
