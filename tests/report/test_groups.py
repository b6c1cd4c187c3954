import json
import math
from pathlib import Path

import pytest
from made_folders import of_seeds, write_run, write_study
from scipy import stats

from bantam.report import folders, groups


def test_runs_that_differ_in_the_seed_are_a_group(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", seed=seed)
        write_run(
            tmp_path / f"1{seed}", seed=seed, overrides=("optimizer.lr=0.1",), settings={"optimizer": {"lr": 0.1}}
        )
    found = groups.group(folders.gather([tmp_path]).runs)
    assert [(g.label, [r.seed for r in g.runs]) for g in found] == [
        ("v2", [1, 2]),
        ("v2, optimizer.lr=0.1", [1, 2]),
    ]


def test_threads_and_folders_of_data_do_not_make_another_group_but_other_data_do(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", seed=2, settings={"threads": 2, "data": {"root": "elsewhere"}})
    write_run(tmp_path / "2", seed=3, data="mnist5k", scored_images=1000)
    assert [len(g.runs) for g in groups.group(folders.gather([tmp_path]).runs)] == [2, 1]


def test_a_group_is_described_by_its_first_seed_that_has_a_result(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", seed=seed)
    (tmp_path / "1" / "result.json").unlink()
    (g,) = groups.group(folders.gather([tmp_path]).runs)
    assert ([r.seed for r in g.runs], g.first.seed, g.label) == ([1, 2], 2, "v2")
    (tmp_path / "2" / "result.json").unlink()
    (g,) = groups.group(folders.gather([tmp_path]).runs)
    assert (g.first.seed, g.ended) == (1, [])


def test_the_interval_over_seeds_is_welchs(tmp_path: Path) -> None:
    before, after = (
        of_seeds(tmp_path, (99.1, 99.2, 99.4), "v1"),
        of_seeds(tmp_path, (99.5, 99.55, 99.6, 99.52), "v2"),
    )
    found = groups.difference(before, after)
    expected = stats.ttest_ind(after.objectives, before.objectives, equal_var=False).confidence_interval(0.95)
    assert found is not None
    assert found.points == pytest.approx(99.5425 - 99.2333, abs=1e-3)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.distinguishable == (expected.low > 0)
    wider = groups.difference(before, after, comparisons=10)
    assert wider is not None
    assert found.interval
    assert wider.interval
    assert wider.interval[0] < found.interval[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((12.0, 18.0), (88.0, 90.0)),
        ((98.0, 9.8), (99.0, 98.9)),
        ((0.0, 100.0), (100.0, 1.0)),
        ((9.8, 9.9), (99.9, 100.0)),
    ],
)
def test_an_interval_never_leaves_what_accuracies_can_be(
    tmp_path: Path, before: tuple[float, float], after: tuple[float, float]
) -> None:
    one, other = of_seeds(tmp_path, before, "before"), of_seeds(tmp_path, after, "after")
    found = groups.difference(one, other, comparisons=10)
    assert found is not None
    assert found.interval
    low, high = found.interval
    old = one.mean or 0.0
    assert -old <= low <= found.points <= high <= 100 - old
    confidence = 1 - 0.05 / 10
    welch = stats.ttest_ind(other.objectives, one.objectives, equal_var=False).confidence_interval(confidence)
    assert welch.low - 1e-9 <= low
    assert high <= welch.high + 1e-9
    assert found.distinguishable == (not welch.low <= 0 <= welch.high)  # the verdict stays Welch's


def test_seeds_that_differ_by_rounding_only_have_no_interval(tmp_path: Path) -> None:
    near = [(99.0, 99.0 + 1e-13), (99.1, 99.1)]
    found = groups.difference(*(of_seeds(tmp_path, ends, f"v{i}") for i, ends in enumerate(near)))
    assert found is not None
    assert (found.interval, found.distinguishable) == (None, False)


def test_a_clear_difference_is_told_from_noise(tmp_path: Path) -> None:
    found = groups.difference(of_seeds(tmp_path, (98.0, 98.1, 98.2), "v1"), of_seeds(tmp_path, (99.0, 99.1, 99.2)))
    assert found is not None
    assert found.distinguishable
    assert "1.00 points above v1" in found.sentence
    assert "3 against 3 seeds" in found.sentence


def test_equal_seeds_have_no_interval(tmp_path: Path) -> None:
    found = groups.difference(of_seeds(tmp_path, (99.0, 99.0), "v1"), of_seeds(tmp_path, (99.1, 99.1)))
    assert found is not None
    assert (found.interval, found.distinguishable) == (None, False)


def test_one_seed_each_at_the_ends_of_the_scale_has_an_interval_of_numbers(tmp_path: Path) -> None:
    found = groups.difference(of_seeds(tmp_path, (100.0,), "v1"), of_seeds(tmp_path, (0.0,)))
    assert found is not None
    assert found.interval == (-100, -100)


@pytest.mark.parametrize(("end", "said"), [(99.1, "cannot be told from noise"), (97.0, "another seed might")])
def test_one_seed_each_is_never_more_than_the_images_say(tmp_path: Path, end: float, said: str) -> None:
    found = groups.difference(of_seeds(tmp_path, (99.0,), "v1"), of_seeds(tmp_path, (end,)))
    assert found is not None
    assert not found.distinguishable
    assert not found.seeds
    assert said in found.sentence
    assert "10,000 images" in found.sentence


def test_runs_on_other_images_are_not_compared(tmp_path: Path) -> None:
    other = of_seeds(tmp_path, (99.0,), "v1", split="validation", scored_images=5000)
    assert groups.difference(other, of_seeds(tmp_path, (99.1,))) is None
    assert groups.compare([other, of_seeds(tmp_path / "more", (98.0,))]) == []


def test_all_are_compared_with_the_best_as_wide_as_all_pairs(tmp_path: Path) -> None:
    compared = [
        of_seeds(tmp_path, ends, name)
        for name, ends in (("a", (99.0, 99.2)), ("b", (99.5, 99.6)), ("c", (98.0, 98.3)))
    ]
    found = groups.compare(compared)
    assert [(each.reference, each.label) for each in found] == [("b", "a"), ("b", "c")]
    worst, best = compared[2].objectives, compared[1].objectives
    welch = stats.ttest_ind(worst, best, equal_var=False).confidence_interval(1 - 0.05 / 3)
    assert found[1].interval
    assert found[1].interval[0] == pytest.approx(welch.low)


def test_the_confirmation_of_a_study(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0))
    for trial, end in ((0, 98.0), (1, 97.0)):
        for seed in (2, 3):
            write_run(
                folder / "confirm" / f"trial_{trial}-validation-{seed}", (90.0, end, end, end + seed / 10), seed
            )
    write_run(folder / "confirm" / "trial_0-test-2", seed=2)
    (folder / "confirm" / "confirm.json").write_text(json.dumps({"winner": 0, "seeds": [2, 3], "test": {}}))
    study = folders.read_study(folder)
    assert [(g.label, len(g.runs)) for g in groups.confirmed(study)] == [("trial 0", 2), ("trial 1", 2)]
    assert groups.tested(study) is not None
    assert study.confirmation["winner"] == 0


def test_two_runs_of_a_seed_are_one_seed(tmp_path: Path) -> None:
    for folder, seed, end in (("0", 1, 99.3), ("1", 1, 99.3), ("2", 2, 99.1), ("3", 2, 99.2), ("4", 2, 99.2)):
        write_run(tmp_path / "a" / folder, (97.0, end, end, end), seed)
    (g,) = groups.group(folders.gather([tmp_path / "a"]).runs)
    assert [r.folder.name for r in g.runs] == ["0", "2"]
    assert g.repeats == "2 runs of seed 1, 3 runs of seed 2"
    assert (len(g.ended), len(g.every), g.verdict) == (2, 5, "met by 2 of 2 seeds")
    assert (g.mean, g.deviation) == pytest.approx((99.2, 0.1 * math.sqrt(2)))
    found = groups.difference(of_seeds(tmp_path, (98.0, 98.1, 98.2), "v1"), g)
    assert found is not None
    assert "2 against 3 seeds" in found.sentence


def test_one_run_seen_twice_has_no_deviation_and_no_interval_over_seeds(tmp_path: Path) -> None:
    for folder in ("0", "1"):
        write_run(tmp_path / "a" / folder)
    (g,) = groups.group(folders.gather([tmp_path / "a"]).runs)
    assert (len(g.runs), g.deviation, g.verdict, g.repeats) == (1, None, "met", "2 runs of seed 1")
    found = groups.difference(of_seeds(tmp_path, (98.0, 98.1), "v1"), g)
    assert found is not None
    assert (found.seeds, found.distinguishable) == (False, False)


def test_of_several_runs_of_a_seed_one_that_ended_counts(tmp_path: Path) -> None:
    (write_run(tmp_path / "0") / "result.json").unlink()
    write_run(tmp_path / "1")
    (g,) = groups.group(folders.gather([tmp_path]).runs)
    assert [r.folder.name for r in g.runs] == ["1"]


def test_runs_without_a_result_do_not_join_runs_on_different_images(tmp_path: Path) -> None:
    (write_run(tmp_path / "0", seed=1) / "result.json").unlink()
    write_run(tmp_path / "1", seed=2, data="MNIST")
    write_run(tmp_path / "2", seed=3, data="mnist5k", scored_images=1000)
    assert [len(g.runs) for g in groups.group(folders.gather([tmp_path]).runs)] == [2, 1]


def test_files_with_another_checksum_are_other_images(tmp_path: Path) -> None:
    write_run(tmp_path / "0", data_checksum="a")
    write_run(tmp_path / "1", seed=2, data_checksum="b")
    found = groups.group(folders.gather([tmp_path]).runs)
    assert [len(g.runs) for g in found] == [1, 1]
    assert groups.difference(*found) is None


def test_of_groups_on_different_images_the_most_that_share_them_are_compared(tmp_path: Path) -> None:
    other = of_seeds(tmp_path, (99.9,), "other", data="mnist5k", scored_images=1000)
    compared = [other, of_seeds(tmp_path, (98.0,), "v1"), of_seeds(tmp_path, (98.5,), "v2")]
    assert [(each.reference, each.label) for each in groups.compare(compared)] == [("v2", "v1")]
