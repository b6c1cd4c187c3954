from pathlib import Path

import pytest
from made_folders import write_run

from bantam import markdown
from bantam.report import folders, groups
from bantam.training.exported import write_export

MARKED = "# Before\n\n<!-- table -->\nold\n<!-- /table -->\n\nafter\n"


def story(folder: Path) -> Path:
    """Three seeds of one experiment, one of another; two threads, an epoch takes half a minute."""
    for seed, end in enumerate((98.9, 99.1, 99.3), 1):
        verdict = "met" if end > 99 else "not met"
        accuracies = (97.0, end, end, end)
        write_run(folder / f"{seed}", accuracies, seed, verdict=verdict, device="cpu", threads=2)
    write_run(folder / "9", name="flexible", settings={"model": {"width": 9}}, device="cuda")
    return folder


def table(folder: Path) -> str:
    return markdown.table(groups.group(folders.gather([folder]).runs))


def test_a_row_is_a_group_of_seeds(tmp_path: Path) -> None:
    assert table(story(tmp_path / "runs")).splitlines() == [
        "| `experiment=` | parameters | epochs | CPU-minutes | last epochs | their mean, % | "
        "99 % in every one of them |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `v2` | 394 | 4 | 4.0 | 3 | 99.10 ± 0.20 | met by 2 of 3 seeds |",
        "| `flexible` | 394 | 4 |  | 3 | 99.20 | yes, one seed |",
    ]


def exported(run: Path, weight_bytes: int, accuracy: float) -> None:
    part = {"weight_bytes": weight_bytes, "accuracy": accuracy}
    write_export(run, {"float32": part, "int8": part})


def test_bytes_and_accuracy_in_int8_are_two_more_columns(tmp_path: Path) -> None:
    folder = story(tmp_path / "runs")
    for seed, accuracy in enumerate((98.8, 99.0, 99.2), 1):
        exported(folder / f"{seed}", 5581 - seed, accuracy)
    found = groups.group(folders.gather([folder]).runs)
    with pytest.raises(
        ValueError, match=r"9 has no export.json: python export.py .*9 writes it; or leave --bytes"
    ):
        markdown.table(found, exported=True)
    exported(folder / "9", 10_511, 99.5)
    plain, rows = markdown.table(found).splitlines(), markdown.table(found, exported=True).splitlines()
    columns = (
        " bytes in int8 | accuracy in int8, % |",
        " --- | --- |",
        " 5,580 | 99.00 ± 0.20 |",
        " 10,511 | 99.50 |",
    )
    assert rows == [f"{row}{cells}" for row, cells in zip(plain, columns, strict=True)]


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    folder = story(tmp_path / "runs")
    (folder / "2" / "result.json").unlink()
    with pytest.raises(
        ValueError, match="2 is unfinished: finish it with python train.py resume=.*2, or leave its folder out"
    ):
        table(folder)


def test_several_targets_are_refused(tmp_path: Path) -> None:
    folder = story(tmp_path / "runs")
    write_run(folder / "7", settings={"target": {"accuracy": 98.0}})
    with pytest.raises(ValueError, match="the runs have several targets"):
        table(folder)


def test_validation_images_are_refused(tmp_path: Path) -> None:
    folder = story(tmp_path / "runs")
    (folder / "2" / "history.csv").unlink()
    result = folder / "2" / "result.json"
    result.write_text(result.read_text().replace('"test"', '"validation"'))
    with pytest.raises(ValueError, match="2 was scored on validation images: the table is about the test images"):
        table(folder)


def test_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no run in these folders"):
        markdown.table([])


def test_a_table_is_written_between_its_marks_again_and_again(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(MARKED)
    for rows in ("one", "two"):
        markdown.write_into(readme, rows, "python table.py runs")
        written = f"<!-- table: python table.py runs -->\n{rows}\n<!-- /table -->"
        assert readme.read_text() == MARKED.replace("<!-- table -->\nold\n<!-- /table -->", written)


def test_a_file_without_marks_is_left_as_it_is(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("text\n")
    with pytest.raises(ValueError, match="must have one line <!-- table --> and one line <!-- /table -->"):
        markdown.write_into(readme, "rows", "command")
    assert readme.read_text() == "text\n"
    with pytest.raises(ValueError, match="cannot be read: No such file or directory"):
        markdown.write_into(tmp_path / "nowhere.md", "rows", "command")


def test_a_repeat_of_a_seed_is_no_seed(tmp_path: Path) -> None:
    for folder in ("0", "1"):
        write_run(tmp_path / folder)
    assert table(tmp_path).splitlines()[2] == "| `v2` | 394 | 4 |  | 3 | 99.20 | yes, 2 runs of seed 1 |"
    write_run(tmp_path / "2", (97.0, 99.4, 99.4, 99.4), seed=2)
    assert table(tmp_path).splitlines()[2].endswith("| 99.30 ± 0.14 | met by 2 of 2 seeds, 2 runs of seed 1 |")
