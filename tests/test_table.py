import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from made_folders import write_run

Bantam = Callable[..., subprocess.CompletedProcess[str]]

HEAD = (
    "| `experiment=` | parameters | epochs | CPU-minutes | last epochs | their mean, % | "
    "99 % in every one of them |"
)


def story(folder: Path) -> Path:
    """Three seeds of one experiment, one of another; two threads, an epoch takes half a minute."""
    for seed, end in enumerate((98.9, 99.1, 99.3), 1):
        verdict = "met" if end > 99 else "not met"
        accuracies = (97.0, end, end, end)
        write_run(folder / f"{seed}", accuracies, seed, verdict=verdict, device="cpu", threads=2)
    write_run(folder / "9", name="flexible", settings={"model": {"width": 9}}, device="cuda")
    return folder


def test_the_table_stands_between_its_marks_with_its_command(bantam: Bantam, tmp_path: Path) -> None:
    story(tmp_path / "runs")
    readme = tmp_path / "README.md"
    readme.write_text("# Before\n\n<!-- table -->\nold\n<!-- /table -->\n\nafter\n")
    rows = [
        HEAD,
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `v2` | 394 | 4 | 4.0 | 3 | 99.10 ± 0.20 | met by 2 of 3 seeds |",
        "| `flexible` | 394 | 4 |  | 3 | 99.20 | yes, one seed |",
    ]
    for _ in range(2):  # what it has written it finds again
        done = bantam("table.py", "runs", "--into", "README.md")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == rows
        assert readme.read_text().splitlines() == [
            *("# Before", "", "<!-- table: python table.py runs --into README.md -->"),
            *rows,
            *("<!-- /table -->", "", "after"),
        ]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("unfinished", "Error: runs/2 is unfinished: finish it with resume=, or leave its folder out"),
        ("no marks", "Error: --into=README.md must have one line <!-- table -->"),
        ("targets", "Error: the runs have several targets"),
        ("nothing", "Error: there is no run in these folders"),
    ],
)
def test_what_cannot_be_a_table_is_one_sentence_and_changes_nothing(
    bantam: Bantam, tmp_path: Path, damage: str, sentence: str
) -> None:
    folder = story(tmp_path / "runs")
    text = "no marks" if damage == "no marks" else "<!-- table -->\n<!-- /table -->\n"
    (tmp_path / "README.md").write_text(text)
    if damage == "unfinished":
        (folder / "2" / "result.json").unlink()
    if damage == "targets":
        write_run(folder / "7", settings={"target": {"accuracy": 98.0}})
    if damage == "nothing":
        folder.rename(tmp_path / "elsewhere")
        folder.mkdir()
    refused = bantam("table.py", "runs", "--into", "README.md")
    assert refused.returncode == 1
    assert refused.stderr.startswith(sentence)
    assert (tmp_path / "README.md").read_text() == text
