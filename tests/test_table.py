from pathlib import Path

import pytest
from commands import Bantam
from made_folders import write_run

HEAD = (
    "| `experiment=` | parameters | epochs | CPU-minutes | last epochs | their mean, % | "
    "99 % in every one of them |"
)


def test_the_table_stands_between_its_marks_with_its_command(bantam: Bantam, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "1", device="cpu", threads=2)
    readme = tmp_path / "README.md"
    readme.write_text("# Before\n\n<!-- table -->\nold\n<!-- /table -->\n\nafter\n")
    rows = [
        HEAD,
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `v2` | 394 | 4 | 4.0 | 3 | 99.20 | yes, one seed |",
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
        (
            "unfinished",
            "Error: runs/1 is unfinished: finish it with python train.py resume=runs/1, or leave its folder out",
        ),
        ("no marks", "Error: --into=README.md must have one line <!-- table -->"),
        ("targets", "Error: the runs have several targets"),
        ("nothing", "Error: there is no run in these folders"),
    ],
)
def test_what_cannot_be_a_table_is_one_sentence_and_changes_nothing(
    bantam: Bantam, tmp_path: Path, damage: str, sentence: str
) -> None:
    folder = write_run(tmp_path / "runs" / "1")
    text = "no marks" if damage == "no marks" else "<!-- table -->\n<!-- /table -->\n"
    (tmp_path / "README.md").write_text(text)
    if damage == "unfinished":
        (folder / "result.json").unlink()
    if damage == "targets":
        write_run(tmp_path / "runs" / "7", settings={"target": {"accuracy": 98.0}})
    if damage == "nothing":
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        (tmp_path / "runs").mkdir()
    refused = bantam("table.py", "runs", "--into", "README.md")
    assert refused.returncode == 1
    assert refused.stderr.startswith(sentence)
    assert (tmp_path / "README.md").read_text() == text
