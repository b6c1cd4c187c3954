from pathlib import Path

import pytest
from made_folders import of_seeds, one

from bantam.report import groups, row_figures


def test_the_last_epochs_of_all_seeds_are_points(tmp_path: Path) -> None:
    compared = [of_seeds(tmp_path, (99.1, 99.2)), one(tmp_path / "x", 97.0, 98.9, 99.2, 99.3)]
    drawn = row_figures.last_epochs(compared)
    assert drawn is not None
    assert [len(trace.x) for trace in drawn.plot.data] == [6, 1, 3, 1]
    assert len(set(drawn.plot.data[2].y)) == 3  # equal epochs do not hide one another
    assert "all points of v2 are right of the target" in drawn.see


def test_the_confusion_matrix_colours_mistakes_only(tmp_path: Path) -> None:
    found = one(tmp_path / "0", 97.0, 99.0, confusion=[[5, 1], [0, 6]], classes=["<b>a", "b"])
    drawn, shares = row_figures.confusion(found), row_figures.classes([found])
    assert drawn is not None
    assert [list(row) for row in drawn.plot.data[0].z] == [[None, 1], [0, None]]
    assert drawn.plot.data[0].x[0] == "&lt;b&gt;a"
    assert "1 of 12 test images are wrong" in drawn.see
    assert shares is not None
    assert [list(row) for row in shares.plot.data[0].z] == [pytest.approx([100 * 5 / 6, 100])]


def test_mistakes_of_a_network_at_chance_are_no_structure(tmp_path: Path) -> None:
    matrix = {"confusion": [[5, 1], [0, 6]], "classes": ["a", "b"]}
    found = one(tmp_path / "0", 97.0, 99.0, **matrix)
    guessing = one(tmp_path / "1", 10.0, 9.8, name="guessing", at_chance=True, **matrix)
    assert row_figures.confusion(guessing) is None
    assert row_figures.classes([guessing]) is None
    shares = row_figures.classes([found, guessing])
    assert shares is not None
    assert len(shares.plot.data[0].z) == 1
    assert "without guessing, which never left chance" in shares.see


def test_differences_have_their_intervals_and_far_ones_are_named(tmp_path: Path) -> None:
    compared = [
        of_seeds(tmp_path, ends, name)
        for name, ends in (("a", (99.0, 99.2)), ("b", (99.5, 99.6)), ("far", (60.0, 61.0)))
    ]
    found = groups.compare(compared)
    drawn = row_figures.differences(found)
    assert drawn is not None
    shown = [trace for trace in drawn.plot.data if trace.visible]
    assert sum(len(trace.x) for trace in shown) == 2
    for trace in shown:
        for x, above, below, ends in zip(
            trace.x, trace.error_x.array, trace.error_x.arrayminus, trace.customdata, strict=True
        ):
            assert (x - below, x + above) == pytest.approx(tuple(ends[:2]))
    (note,) = drawn.plot.layout.annotations
    assert note.text.startswith("left of this scale: far")
