from pathlib import Path
from typing import Any

import pytest
from made_folders import LAYERS, write_run, write_study

from bantam.report import analysis, folders, groups
from bantam.report.folders import Run


def test_a_folder_is_read_once(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    assert len(folders.gather([tmp_path, tmp_path / "0", tmp_path]).runs) == 1


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        folders.gather([tmp_path / "nowhere"])


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
    found = folders.gather([tmp_path])
    assert problem in found.runs[0].reason
    for g in groups.group(found.runs):
        analysis.analyse(g)


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "result.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"")
    run = folders.read_run(folder)
    assert run.state == "unfinished"
    assert "It is running, or was interrupted and goes on with resume=" in run.reason


def test_an_empty_job_and_a_foreign_folder_appear(tmp_path: Path) -> None:
    (tmp_path / "many" / "3").mkdir(parents=True)
    (tmp_path / "foreign").mkdir()
    found = folders.gather([tmp_path / "many", tmp_path / "foreign"])
    assert [(path.name, why) for path, why in found.broken] == [
        ("3", "it is empty"),
        ("foreign", "it holds no run, no multirun and no study"),
    ]


def test_the_layers_are_the_folders_own_or_rebuilt(tmp_path: Path) -> None:
    assert folders.read_run(write_run(tmp_path / "0")).layers == LAYERS
    old = folders.read_run(write_run(tmp_path / "1", layers=None))
    assert sum(row.parameters for row in old.layers) == 9680
    gone = write_run(tmp_path / "2", layers=None, settings={"model": {"_target_": "bantam.models.Gone"}})
    assert folders.read_run(gone).layers == []


def test_a_study_is_read_from_its_folder(tmp_path: Path) -> None:
    (study,) = folders.gather([write_study(tmp_path / "study", (97.0, 99.0, 98.0))]).studies
    assert [t.state for t in study.trials] == ["complete"] * 3 + ["pruned", "over budget"]
    assert study.trials[0].settings == {"optimizer.lr": 0.01, "model": "v2"}
    assert study.trials[3].epochs == [(1, 60.0), (2, 70.0)]
    assert study.best is not None
    assert study.best.folder.name == "1"
    assert study.limit == 10_000
    assert [t.number for t in study.front] == [0, 1]


def test_a_study_with_two_objectives_is_known_by_any_trial_that_is_not_damaged(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0), two=True)
    assert folders.read_study(folder).two
    assert not folders.read_study(write_study(tmp_path / "other", (97.0, 99.0))).two
    for text in ("a: [1", "hydra: {}"):
        (folder / "0" / ".hydra" / "hydra.yaml").write_text(text)
        assert folders.has_front(folder)
    assert not folders.has_front(tmp_path / "nowhere")


def test_a_damaged_study_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0))
    with (folder / "trials.csv").open("a") as stream:
        stream.write("7,comple")
    (folder / "0" / "history.csv").write_text("?")
    (folder / "confirm").mkdir()
    (folder / "confirm" / "confirm.json").write_text("{")
    study = folders.read_study(folder)
    assert len(study.trials) == 4
    assert study.trials[0].epochs == []
    assert any("line 6 of trials.csv is damaged" in problem for problem in study.problems)
    assert any("confirm.json cannot be read" in problem for problem in study.problems)


def test_every_problem_is_about_a_run_that_can_be_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "result.json").write_text("[]")
    run: Run = folders.read_run(folder)
    assert run.state == "damaged"
    assert str(tmp_path) not in run.reason
