import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from scipy import stats

from bantam import budget
from bantam.report import folders as evidence
from bantam.report.folders import Group, Run
from bantam.training import folder as record
from bantam.training.loop import Epoch

LAYERS = [
    budget.Layer("conv 3×3 → ReLU", (16, 26, 26), 3, 144, 97_344),
    budget.Layer("linear", (10,), 28, 250, 240),
]
SETTINGS: dict[str, Any] = {
    "model": {"_target_": "bantam.models.V2", "width": 16, "dropout": 0.05},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.025, "momentum": 0.8},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.1},
    "augmentation": {"_target_": "bantam.augmentation.Augmentation", "degrees": 0.0},
    "data": {"_target_": "bantam.data.auto", "split_seed": "${seed}", "root": "${oc.env:NOWHERE}"},
    "budget": {"parameters": 10000, "epochs": 15},
    "target": {"accuracy": 99.0, "last_epochs": 3},
    "epochs": 4,
    "batch_size": 128,
}


def write_run(
    folder: Path,
    accuracies: tuple[float, ...] = (97.0, 99.1, 99.2, 99.3),
    seed: int = 1,
    name: str = "v2",
    overrides: tuple[str, ...] = (),
    verdict: str = "met",
    settings: dict[str, Any] | None = None,
    **result: Any,
) -> Path:
    """A finished run's folder with test accuracies in percent; the learning rate falls after epoch 2."""
    (folder / ".hydra").mkdir(parents=True)
    config = OmegaConf.merge(SETTINGS, {"seed": seed}, settings or {})
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config))
    typed = [f"experiment={name}", f"seed={seed}", *overrides]
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(typed)))
    rates = [0.025, 0.025, 0.0025, 0.0025]
    history = [
        Epoch(i + 1, rates[min(i, 3)], 0.1, value - 0.4, None, None, 0.05, value, 30.0, 2000.0)
        for i, value in enumerate(accuracies)
    ]
    record.write_history(folder, history)
    last = list(accuracies[-3:])
    written = {
        "verdict": verdict,
        "reason": "because",
        "objective": sum(last) / len(last),
        "best_accuracy": max(accuracies),
        "best_epoch": accuracies.index(max(accuracies)) + 1,
        "last_accuracies": last,
        "at_chance": False,
        "experiment": name,
        "model": name,
        "seed": seed,
        "parameters": 394,
        "layers": [asdict(row) for row in LAYERS],
        "data": "MNIST",
        "split": "test",
        "train_images": 60000,
        "scored_images": 10000,
    }
    record.write_result(folder, written | result)
    return folder


def of_seeds(folder: Path, ends: tuple[float, ...], name: str = "v2", **more: Any) -> Group:
    """A group whose seeds end at some accuracies."""
    runs = [
        evidence.read_run(write_run(folder / f"{name}{i}", (90.0, end, end, end), i, name, **more))
        for i, end in enumerate(ends)
    ]
    (found,) = evidence.group(runs)
    return found


def topics(group: Group) -> dict[str, str]:
    return {finding.topic: finding.sentence for finding in evidence.analyse(group)}


def test_runs_that_differ_in_the_seed_are_a_group(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", seed=seed)
        write_run(
            tmp_path / f"1{seed}", seed=seed, overrides=("optimizer.lr=0.1",), settings={"optimizer": {"lr": 0.1}}
        )
    groups = evidence.gather([tmp_path]).groups
    assert [(g.label, [r.seed for r in g.runs]) for g in groups] == [
        ("v2", [1, 2]),
        ("v2, optimizer.lr=0.1", [1, 2]),
    ]


def test_threads_and_folders_of_data_do_not_make_another_group_but_other_data_do(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", seed=2, settings={"threads": 2, "data": {"root": "elsewhere"}})
    write_run(tmp_path / "2", seed=3, data="mnist5k", scored_images=1000)
    assert [len(g.runs) for g in evidence.gather([tmp_path]).groups] == [2, 1]


def test_a_diverged_seed_belongs_to_its_group_and_to_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    folder = write_run(tmp_path / "1", seed=2)
    record.write_result(folder, {"verdict": "diverged", "reason": "nan", "objective": None, "seed": 2})
    (g,) = evidence.gather([tmp_path]).groups
    assert (len(g.runs), len(g.ended), g.deviation) == (2, 1, None)
    assert "1 of 2 have no result and are in no mean: seed 2 (diverged)" in topics(g)["Lost"]


def test_a_folder_is_read_once(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    assert len(evidence.gather([tmp_path, tmp_path / "0", tmp_path]).runs) == 1


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        evidence.gather([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            lambda f: (f / "history.csv").write_text((f / "history.csv").read_text()[:-30]),
            "row of epoch 4 is cut off",
        ),
        (lambda f: (f / "history.csv").write_text("a,b\n1,2\n"), "history.csv cannot be read"),
        (lambda f: (f / "history.csv").unlink(), "history.csv is missing"),
        (lambda f: (f / "result.json").write_text('{"verdict": '), "result.json cannot be read"),
        (lambda f: (f / "result.json").write_text('{"objective": "much"}'), "objective is 'much'"),
        (lambda f: (f / "result.json").write_text('{"last_accuracies": [null]}'), "last_accuracies are [None]"),
        (lambda f: (f / ".hydra" / "config.yaml").write_text("a: [1"), "its configuration in .hydra is damaged"),
        (lambda f: (f / ".hydra" / "config.yaml").unlink(), "its configuration in .hydra is missing"),
        (lambda f: (f / "result.json").unlink(), "it has no result.json: 4 of 4 epochs are done"),
    ],
)
def test_a_damaged_run_appears_with_the_reason(tmp_path: Path, damage: Any, problem: str) -> None:
    folder = write_run(tmp_path / "0")
    damage(folder)
    found = evidence.gather([tmp_path])
    assert problem in found.runs[0].reason
    for g in found.groups:
        evidence.analyse(g)


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "result.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"")
    run = evidence.read_run(folder)
    assert run.state == "unfinished"
    assert "It is running, or was interrupted and goes on with resume=" in run.reason


def test_an_empty_job_and_a_foreign_folder_appear(tmp_path: Path) -> None:
    (tmp_path / "many" / "3").mkdir(parents=True)
    (tmp_path / "foreign").mkdir()
    found = evidence.gather([tmp_path / "many", tmp_path / "foreign"])
    assert [(path.name, why) for path, why in found.broken] == [
        ("3", "it is empty"),
        ("foreign", "it holds no run, no multirun and no study"),
    ]


def test_the_layers_are_the_folders_own_or_rebuilt(tmp_path: Path) -> None:
    assert evidence.read_run(write_run(tmp_path / "0")).layers == LAYERS
    old = evidence.read_run(write_run(tmp_path / "1", layers=None))
    assert sum(row.parameters for row in old.layers) == 9680
    gone = write_run(tmp_path / "2", layers=None, settings={"model": {"_target_": "bantam.models.Gone"}})
    assert evidence.read_run(gone).layers == []


def test_the_interval_over_seeds_is_welchs(tmp_path: Path) -> None:
    before, after = (
        of_seeds(tmp_path, (99.1, 99.2, 99.4), "v1"),
        of_seeds(tmp_path, (99.5, 99.55, 99.6, 99.52), "v2"),
    )
    found = evidence.difference(before, after)
    expected = stats.ttest_ind(after.objectives, before.objectives, equal_var=False).confidence_interval(0.95)
    assert found is not None
    assert found.points == pytest.approx(99.5425 - 99.2333, abs=1e-3)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.told == (expected.low > 0)
    wider = evidence.difference(before, after, comparisons=10)
    assert wider is not None
    assert wider.low is not None
    assert found.low is not None
    assert wider.low < found.low


def test_a_clear_difference_is_told_from_noise(tmp_path: Path) -> None:
    found = evidence.difference(
        of_seeds(tmp_path, (98.0, 98.1, 98.2), "v1"), of_seeds(tmp_path, (99.0, 99.1, 99.2))
    )
    assert found is not None
    assert found.told
    assert "1.00 points above v1" in found.sentence
    assert "3 against 3 seeds" in found.sentence


def test_equal_seeds_have_no_interval(tmp_path: Path) -> None:
    found = evidence.difference(of_seeds(tmp_path, (99.0, 99.0), "v1"), of_seeds(tmp_path, (99.1, 99.1)))
    assert found is not None
    assert (found.low, found.told) == (None, False)


@pytest.mark.parametrize(("end", "said"), [(99.1, "cannot be told from noise"), (97.0, "another seed might")])
def test_one_seed_each_is_never_more_than_the_images_say(tmp_path: Path, end: float, said: str) -> None:
    found = evidence.difference(of_seeds(tmp_path, (99.0,), "v1"), of_seeds(tmp_path, (end,)))
    assert found is not None
    assert not found.told
    assert not found.seeds
    assert said in found.sentence
    assert "10,000 images" in found.sentence


def test_the_error_of_an_accuracy_is_binomial() -> None:
    assert evidence.standard_error(99.0, 10_000) == pytest.approx(0.0995, abs=1e-4)


def test_runs_on_other_images_are_not_compared(tmp_path: Path) -> None:
    other = of_seeds(tmp_path, (99.0,), "v1", split="validation", scored_images=5000)
    assert evidence.difference(other, of_seeds(tmp_path, (99.1,))) is None
    assert evidence.compare([other, of_seeds(tmp_path / "more", (98.0,))]) == []


def test_all_are_compared_with_the_best_as_wide_as_all_pairs(tmp_path: Path) -> None:
    groups = [
        of_seeds(tmp_path, ends, name)
        for name, ends in (("a", (99.0, 99.2)), ("b", (99.5, 99.6)), ("c", (98.0, 98.3)))
    ]
    found = evidence.compare(groups)
    assert [(each.reference, each.label) for each in found] == [("b", "a"), ("b", "c")]
    assert [each.confidence for each in found] == pytest.approx([1 - 0.05 / 3] * 2)


def test_what_changed_is_a_row_a_group_without_seed_and_machine(tmp_path: Path) -> None:
    constant = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0}
    before = evidence.read_run(write_run(tmp_path / "0"))
    settings = {"scheduler": constant, "optimizer": {"lr": 0.1, "momentum": 0.9}, "batch_size": 64, "threads": 3}
    after = evidence.read_run(write_run(tmp_path / "1", seed=2, settings=settings))
    found = {change.key: (change.before, change.after) for change in evidence.changes(before, after)}
    assert found["optimizer"] == ("lr 0.025, momentum 0.8", "lr 0.1, momentum 0.9")
    assert found["scheduler"][0] == "StepLR: step_size 2, gamma 0.1"
    assert found["scheduler"][1].startswith("ConstantLR: ")
    assert found["batch_size"] == ("128", "64")
    assert set(found) == {"optimizer", "scheduler", "batch_size"}
    assert evidence.changes(before, before) == []


def test_layers_that_went_and_came() -> None:
    smaller = [LAYERS[0], budget.Layer("linear", (10, 1, 1), 28, 90, 80)]
    assert evidence.layer_changes(LAYERS, smaller) == [("-", LAYERS[1]), ("+", smaller[1])]
    same = [LAYERS[0], budget.Layer("linear", (10, 1, 1), 28, 250, 240)]
    assert evidence.layer_changes(LAYERS, same) == []


def one(folder: Path, *accuracies: float, **more: Any) -> Group:
    run = evidence.read_run(write_run(folder, accuracies, **more))
    return Group(run.name, [run])


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
        ((97.0, 99.2, 98.5, 98.9), "first reaches 99 % in epoch 2, is there in 1 epochs, and does not hold it"),
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
    runs = [evidence.read_run(write_run(tmp_path / "0", (97.0, 98.0, 98.1, 98.2), verdict="not met"))]
    runs.append(evidence.read_run(write_run(tmp_path / "1", (97.0, 50.0, 9.8, 9.8), 2, verdict="not met")))
    (g,) = evidence.group(runs)
    assert g.parted
    assert "1 of 2 seeds fell back after their best epoch: seed 2 from 97.00 to 9.80 %" in topics(g)["Collapse"]
    assert g.verdict == "met by 0 of 2 seeds"
    assert [row[1] for row in g.by_epoch("accuracy")] == pytest.approx([97.0, 74.0, 53.95, 54.0])


def write_study(
    folder: Path, objectives: tuple[float | None, ...], pruned: int = 1, over: int = 1, two: bool = False
) -> Path:
    """A study's folder: completed trials, then pruned ones, then networks over the budget."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i, objective in enumerate(objectives):
        write_run(folder / str(i), (90.0, 95.0, objective or 0.0, objective or 0.0))
        hydra = {"hydra": {"sweeper": {"objectives": ["accuracy", "parameters"][: 1 + two]}}}
        (folder / str(i) / ".hydra" / "hydra.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(hydra)))
        rows.append({"state": "complete", "parameters": 2000 + 1000 * i, "objective": objective, "folder": i})
    for _ in range(pruned):
        write_run(folder / str(len(rows)), (60.0, 70.0), verdict="pruned", objective=None)
        rows.append({"state": "pruned", "reason": "given up", "parameters": 3000, "folder": len(rows)})
    rows += [{"state": "over budget", "reason": "too many", "parameters": 12_000} for _ in range(over)]
    columns = [*evidence.COLUMNS[:3], "optimizer.lr", "model", *evidence.COLUMNS[3:]]
    with (folder / "trials.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({"number": i, "optimizer.lr": 0.01 * (i + 1), "model": "v2", "seconds": 9.5, **row})
    return folder


def test_a_study_is_read_from_its_folder(tmp_path: Path) -> None:
    (study,) = evidence.gather([write_study(tmp_path / "study", (97.0, 99.0, 98.0))]).studies
    assert [t.state for t in study.trials] == ["complete"] * 3 + ["pruned", "over budget"]
    assert study.trials[0].settings == {"optimizer.lr": 0.01, "model": "v2"}
    assert study.trials[3].epochs == [(1, 60.0), (2, 70.0)]
    assert study.best is not None
    assert study.best.folder.name == "1"
    assert study.limit == 10_000
    assert [t.number for t in study.front] == [0, 1]


def test_a_study_with_two_objectives_is_known_by_any_trial_that_is_not_damaged(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0), two=True)
    assert evidence.read_study(folder).two
    assert not evidence.read_study(write_study(tmp_path / "other", (97.0, 99.0))).two
    for text in ("a: [1", "hydra: {}"):
        (folder / "0" / ".hydra" / "hydra.yaml").write_text(text)
        assert evidence.has_front(folder)
    assert not evidence.has_front(tmp_path / "nowhere")


def test_a_damaged_study_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0))
    with (folder / "trials.csv").open("a") as stream:
        stream.write("7,comple")
    (folder / "0" / "history.csv").write_text("?")
    (folder / "confirm").mkdir()
    (folder / "confirm" / "confirm.json").write_text("{")
    study = evidence.read_study(folder)
    assert len(study.trials) == 4
    assert study.trials[0].epochs == []
    assert any("line 6 of trials.csv is damaged" in problem for problem in study.problems)
    assert any("confirm.json cannot be read" in problem for problem in study.problems)


def test_the_confirmation_of_a_study(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0))
    for trial, end in ((0, 98.0), (1, 97.0)):
        for seed in (2, 3):
            write_run(
                folder / "confirm" / f"trial_{trial}-validation-{seed}", (90.0, end, end, end + seed / 10), seed
            )
    write_run(folder / "confirm" / "trial_0-test-2", seed=2)
    (folder / "confirm" / "confirm.json").write_text(json.dumps({"winner": 0, "seeds": [2, 3], "test": {}}))
    study = evidence.read_study(folder)
    assert [(g.label, len(g.runs)) for g in study.confirmed] == [("trial 0", 2), ("trial 1", 2)]
    assert study.tested is not None
    assert study.confirmation["winner"] == 0


def test_every_problem_is_about_a_run_that_can_be_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "result.json").write_text("[]")
    run: Run = evidence.read_run(folder)
    assert run.state == "damaged"
    assert str(tmp_path) not in run.reason
