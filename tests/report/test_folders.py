import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_folders import write_run, write_study

from bantam.report import folders, page
from bantam.suggestions import SEARCH_AGAIN


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
    assert [r.folder.name for r in study.best] == ["1"]
    assert [t.number for t in study.front] == [0, 1]


def test_a_front_is_of_the_cost_that_was_an_objective(tmp_path: Path) -> None:
    study = folders.read_study(
        write_study(tmp_path / "study", (97.0, 99.0, 98.0), multi_objective=True, cost="multiply_adds")
    )
    assert study.cost == "multiply_adds"
    assert [(t.number, t.costs["multiply_adds"]) for t in study.front] == [(0, 2000), (1, 3000)]
    assert {t.costs.get("parameters") for t in study.front} == {5000}
    assert study.keys == ["optimizer.lr", "model"]


def test_a_table_of_trials_of_an_older_version_has_parameters_only(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0))
    with (folder / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    newer = ("multiply_adds", "bytes", "activations")
    with (folder / "trials.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [key for key in rows[0] if key not in newer], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    study = folders.read_study(folder)
    assert study.problems == []
    assert [t.costs for t in study.front] == [{"parameters": 2000}, {"parameters": 3000}]


def test_a_study_with_two_objectives_is_known_by_any_trial_that_is_not_damaged(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0), multi_objective=True)
    assert folders.read_study(folder).multi_objective
    assert not folders.read_study(write_study(tmp_path / "other", (97.0, 99.0))).multi_objective
    for text in ("a: [1", "hydra: {}"):
        (folder / "0" / ".hydra" / "hydra.yaml").write_text(text)
        assert folders.objectives(folder) == ["accuracy", "parameters"]
    assert list(folders.objectives(tmp_path / "nowhere")) == ["accuracy"]


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
    assert any("trials.csv is damaged (line 6): type the command line" in problem for problem in study.problems)
    assert any("confirm.json cannot be read" in problem for problem in study.problems)


STUDY_FILES: dict[str, dict[str, Callable[[Path], object]]] = {
    "any": {
        "gone": Path.unlink,
        "empty": lambda file: file.write_bytes(b""),
        "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "binary": lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00"),
        "text": lambda file: file.write_text('Once upon a time: [there was, a "file\n'),
        "number": lambda file: file.write_text("7"),
        "list": lambda file: file.write_text("[1, 2]"),
        "folder": lambda file: (file.unlink(), file.mkdir()),
        "link": lambda file: (file.unlink(), file.symlink_to(file.name)),
    },
    "trials.csv": {
        "last row gone": lambda file: file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1])),
        "first line gone": lambda file: file.write_text("".join(file.read_text().splitlines(keepends=True)[1:])),
        "no row": lambda file: file.write_text(file.read_text().splitlines(keepends=True)[0]),
        "row twice": lambda file: file.write_text(f"{file.read_text()}{file.read_text().splitlines()[-1]}\n"),
        "cell more": lambda file: file.write_text(f"{file.read_text()}9,pruned,given up,1,v2,3,,1,,x\n"),
        "over 100": lambda file: file.write_text(file.read_text().replace(",99.0,", ",990.0,")),
        "no accuracy": lambda file: file.write_text(file.read_text().replace(",99.0,", ",,")),
        "words": lambda file: file.write_text(file.read_text().replace(",99.0,", ",high,")),
    },
    "confirm/confirm.json": {
        "foreign": lambda file: file.write_text('{"a": 1}'),
        "winner of another kind": lambda file: file.write_text('{"winner": [1], "test": 5, "seeds": 3}'),
    },
    "summary.json": {
        "foreign": lambda file: file.write_text('{"trials": 3}'),
        "counts of another kind": lambda file: file.write_text('{"trials": {"complete": "many"}}'),
    },
}
"""What may become of the files of a study."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trials.csv", "summary.json", "confirm/confirm.json"])
def test_a_damaged_file_of_a_study_is_said_with_what_helps(tmp_path: Path, name: str) -> None:
    whole = write_study(tmp_path / "whole", (97.0, 99.0))
    (whole / "summary.json").write_text('{"trials": {"complete": 2, "pruned": 1, "over budget": 1, "stopped": 4}}')
    (whole / "confirm").mkdir()
    (whole / "confirm" / "confirm.json").write_text('{"winner": 1, "seeds": [2, 3], "ranking": []}')
    assert folders.read_study(whole).problems == []
    for what, damage in {**STUDY_FILES["any"], **STUDY_FILES[name]}.items():
        study = shutil.copytree(whole, tmp_path / what.replace(" ", "_"))
        damage(study / name)
        (found,) = folders.gather([study]).studies
        if what == "gone" and name != "trials.csv":
            assert found.problems == []  # the search or the confirmation goes on, or was killed
            continue
        assert found.problems, what
        assert all(problem.startswith(f"{name} ") for problem in found.problems)
        helps = ": confirm.py writes it anew" if name.startswith("confirm") else f": {SEARCH_AGAIN}"
        assert all(problem.endswith(helps) for problem in found.problems)
        page.write([study])


def test_a_trial_whose_folder_is_gone_is_said(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", (97.0, 99.0, 98.0))
    shutil.rmtree(study / "0")
    (study / "1" / "history.csv").write_text("?")
    (problem,) = folders.read_study(study).problems
    assert "0/history.csv cannot be read" in problem
    assert problem.endswith("restore it, or train the run again; and 1 more")
