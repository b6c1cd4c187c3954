from pathlib import Path
from typing import Any

import pytest
from made_folders import LAYERS, write_run

from bantam.report import analysis, groups, runs
from bantam.report.runs import Run


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
        (lambda f: (f / "result.json").write_text('{"objective": 994}'), "objective is 994"),
        (lambda f: (f / "result.json").write_text('{"last_accuracies": [null]}'), "last_accuracies are [None]"),
        (lambda f: (f / ".hydra" / "config.yaml").write_text("a: [1"), "its configuration in .hydra is damaged"),
        (lambda f: (f / ".hydra" / "config.yaml").unlink(), "its configuration in .hydra is missing"),
        (lambda f: (f / "result.json").unlink(), "it has no result.json: 4 of 4 epochs are done"),
    ],
)
def test_a_damaged_run_appears_with_the_reason(tmp_path: Path, damage: Any, problem: str) -> None:
    folder = write_run(tmp_path / "0")
    damage(folder)
    found = runs.read_run(folder)
    assert problem in found.reason
    for g in groups.group([found]):
        analysis.analyse(g)


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "result.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"")
    run = runs.read_run(folder)
    assert run.state == "unfinished"
    assert "It is running, or was interrupted and goes on with python train.py resume=" in run.reason


def test_the_layers_are_the_folders_own_or_rebuilt(tmp_path: Path) -> None:
    assert runs.read_run(write_run(tmp_path / "0")).layers == LAYERS
    old = runs.read_run(write_run(tmp_path / "1", layers=None))
    assert sum(row.parameters for row in old.layers) == 9680
    gone = write_run(tmp_path / "2", layers=None, settings={"model": {"_target_": "bantam.models.Gone"}})
    assert runs.read_run(gone).layers == []


def test_every_problem_is_about_a_run_that_can_be_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "result.json").write_text("[]")
    run: Run = runs.read_run(folder)
    assert run.state == "damaged"
    assert str(tmp_path) not in run.reason
