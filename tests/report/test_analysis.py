from pathlib import Path

import numpy as np
import pytest
from made_folders import of_seeds, one, write_run
from scipy import stats

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
    assert found["Target"] == "reaches 99 % in epoch 3, and stays there"
    assert "0.40 points below test" in found["Gap"]
    assert "no overfitting to be seen" in found["Gap"]
    assert found["Errors"] == (
        "class zero is the hardest (98.00 % right); the most frequent mistake is zero taken for one, 2 times"
    )


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ((97.0, 98.0, 98.5, 98.98), "never reaches 99 %: the best epoch is 0.02 points short, 2 images"),
        ((97.0, 99.2, 98.5, 98.9), "reaches 99 % in epoch 2, and is below it in 2 epochs after that"),
        ((99.1, 98.2, 99.5, 99.0), "reaches 99 % in epoch 1, and is below it in 1 epoch after that"),
    ],
)
def test_the_way_to_the_target(tmp_path: Path, accuracies: tuple[float, ...], said: str) -> None:
    assert topics(one(tmp_path / "0", *accuracies, verdict="not met"))["Target"] == said


def test_nothing_is_said_without_numbers(tmp_path: Path) -> None:
    found = topics(one(tmp_path / "0", 97.0, 98.0, 98.5, 98.9, verdict="not judged", scored_images=None))
    assert found == {}
    assert topics(one(tmp_path / "1", 9.8, 9.8, 9.8, 9.8, at_chance=True)) == {"Outcome": "because"}


def test_a_collapse_is_said(tmp_path: Path) -> None:
    alone = topics(one(tmp_path / "a", 98.0, 60.0, 9.8, 9.8))["Collapse"]
    assert alone == "1 of 1 seed fell back after the best epoch: seed 1 from 98.00 to 9.80 %"
    seeds = [runs.read_run(write_run(tmp_path / "0", (97.0, 98.0, 98.1, 98.2), verdict="not met"))]
    seeds.append(runs.read_run(write_run(tmp_path / "1", (97.0, 50.0, 9.8, 9.8), 2, verdict="not met")))
    (g,) = groups.group(seeds)
    assert "1 of 2 seeds fell back after the best epoch: seed 2 from 97.00 to 9.80 %" in topics(g)["Collapse"]
    assert g.verdict == "met by 0 of 2 seeds"
    assert [row[1] for row in g.by_epoch("accuracy")] == pytest.approx([97.0, 74.0, 53.95, 54.0])  # the median


def test_a_repeated_seed_is_said(tmp_path: Path) -> None:
    for folder in ("0", "1"):
        write_run(tmp_path / folder)
    (g,) = groups.group(folders.gather([tmp_path]).runs)
    assert topics(g)["Repeats"] == "2 runs of seed 1: it counts once, by its first run that ended"
    assert "Seeds" not in topics(g)


def test_fewer_epochs_than_the_target_is_about_say_nothing_of_the_last_ones(tmp_path: Path) -> None:
    found = one(tmp_path / "0", 90.0, 98.0, 98.3, verdict="not judged", settings={"target": {"last_epochs": 5}})
    assert not {"Gap", "Trend"} & topics(found).keys()


def test_what_was_scored_on_other_images_is_not_compared(tmp_path: Path) -> None:
    one_group = of_seeds(tmp_path, (99.0,), "v1", data="mnist5k", scored_images=1000)
    other = of_seeds(tmp_path, (99.1,), "v2")
    assert analysis.brought(one_group, other) == (
        "Not compared: v1 was scored on 1,000 held-out images of mnist5k, this on 10,000 test images of MNIST."
    )
    said = analysis.comparison([], [one_group, other])
    assert said == "Not compared, because other images were scored: v2 (10,000 test images of MNIST)."


@pytest.mark.parametrize("count", [4, 5, 9])
@pytest.mark.parametrize("rising", [0.0, 0.05, -0.3, 1e3])
def test_a_trend_is_as_sure_as_that_of_scipy(count: int, rising: float) -> None:
    noise = np.random.default_rng(count).normal(99, 0.1, count)
    values = [float(value) + rising * place for place, value in enumerate(noise)]
    wanted = stats.linregress(range(count), values)
    assert analysis.trend(values) == pytest.approx((wanted.slope, wanted.pvalue), rel=1e-6, abs=1e-12)


def test_a_straight_line_is_a_trend(tmp_path: Path) -> None:
    slope, p = analysis.trend([98.0, 98.5, 99.0, 99.5])
    assert (slope, p) == (pytest.approx(0.5), pytest.approx(0, abs=1e-6))
    for name, last, sentence in (
        ("rising", [98.0, 98.101, 98.2, 98.301, 98.4], "it still rises at the end, by 0.10 points an epoch"),
        ("falling", [98.4, 98.301, 98.2, 98.101, 98.0], "it falls at the end, by 0.10 points an epoch"),
        ("level", [98.1, 98.2, 98.1, 98.2, 98.1], None),
    ):
        group = one(
            tmp_path / name, *last, last_accuracies=last, settings={"target": {"accuracy": 99.0, "last_epochs": 5}}
        )
        assert topics(group).get("Trend") == sentence
