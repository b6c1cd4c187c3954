from pathlib import Path

import pytest
from made_folders import write_run, write_study

from bantam.report import folders


def test_a_folder_is_read_once(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    assert len(folders.gather([tmp_path, tmp_path / "0", tmp_path]).runs) == 1


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        folders.gather([tmp_path / "nowhere"])


def test_an_empty_job_and_a_foreign_folder_appear(tmp_path: Path) -> None:
    (tmp_path / "many" / "3").mkdir(parents=True)
    (tmp_path / "foreign").mkdir()
    found = folders.gather([tmp_path / "many", tmp_path / "foreign"])
    assert [(path.name, why) for path, why in found.broken] == [
        ("3", "it is empty"),
        ("foreign", "it holds no run, no multirun and no study"),
    ]


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
    folder = write_study(tmp_path / "study", (97.0, 99.0), multi_objective=True)
    assert folders.read_study(folder).multi_objective
    assert not folders.read_study(write_study(tmp_path / "other", (97.0, 99.0))).multi_objective
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
