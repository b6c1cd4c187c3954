import inspect
import re
from importlib.resources import files
from pathlib import Path

import pytest
from made_folders import of_seeds, one, write_run

from bantam.report import axes, figures, groups, runs, study_figures
from bantam.report.axes import Figure
from bantam.report.groups import Group


def notes(drawn: Figure | None) -> list[str]:
    """What is written into a picture."""
    assert drawn is not None
    return [note.text for note in drawn.plot.layout.annotations]


def test_every_colour_is_one_of_the_page_in_light_and_in_dark() -> None:
    page = files("bantam.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = page.split("@media (prefers-color-scheme: dark) {", 1)
    sources = "".join(map(inspect.getsource, (axes, figures, study_figures)))
    names = set(re.findall(r"var\(--([\w-]+)\)", sources))
    names |= {f"c{number}" for number in range(figures.SERIES)}
    names |= {colour for colour, _ in study_figures.MARKERS.values()}
    assert len(names) > 15
    for name in names:
        assert f"--{name}:" in light, name
        assert f"--{name}:" in dark, name


def test_seeds_are_a_band_and_where_they_end_far_apart_a_line_each(tmp_path: Path) -> None:
    together = figures.curves([of_seeds(tmp_path / "a", (99.0, 99.1, 99.2))])
    apart = figures.curves([of_seeds(tmp_path / "b", (99.0, 99.1, 9.8))])
    assert together is not None
    assert apart is not None
    assert [trace.fill for trace in together.plot.data] == ["toself", None]
    assert together.plot.data[1].y == pytest.approx([90, 99.1, 99.1, 99.1])  # their mean
    assert "a band is the range of the seeds" in together.see
    assert [trace.fill for trace in apart.plot.data] == [None, None]
    assert list(apart.plot.data[0].x) == [1, 2, 3, 4, None] * 3
    assert apart.plot.data[1].y == pytest.approx([90, 99.0, 99.0, 99.0])  # their median
    assert "where seeds end far apart, each is a thin line" in apart.see


def test_what_is_off_the_scale_is_said_in_the_picture(tmp_path: Path) -> None:
    compared = [
        one(tmp_path / "0", 97.0, 99.2, 99.3, 99.4),
        one(tmp_path / "1", 60.0, 61.0, 62.0, 63.0, name="low"),
    ]
    assert "below this scale: low<br>double-click to see all" in notes(figures.curves(compared))
    assert "left of this scale: low (3)<br>double-click to see all" in notes(figures.last_epochs(compared))
    alone = figures.step(compared[1])
    assert alone is not None
    assert "the target, 99 %, is above the scale" in alone.see
    assert not any("this scale" in note for note in notes(alone))


def test_a_seed_that_ends_below_the_scale_is_counted(tmp_path: Path) -> None:
    group = of_seeds(tmp_path, (99.0, 99.1, 9.8, 9.8))
    assert "below this scale: v2 (2)<br>double-click to see all" in notes(figures.curves([group]))
    low, _ = figures.curves([group]).plot.layout.yaxis.range  # type: ignore[union-attr]
    drawn = [r for r in group.runs if r.accuracies[-1] >= low]
    assert len(drawn) == 2  # every line ends in the picture or is counted
    assert "below this scale: training (2), test (2)<br>double-click to see all" in notes(figures.step(group))


def test_a_network_at_chance_is_shown_on_the_whole_scale(tmp_path: Path) -> None:
    found = one(tmp_path / "0", 10.0, 9.7, 9.8, 9.8, at_chance=True)
    for drawn in (figures.curves([found]), figures.step(found)):
        assert drawn is not None
        assert list(drawn.plot.layout.yaxis.range) == [0, 100]


def test_there_is_no_figure_of_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "history.csv").unlink()
    (folder / "result.json").unlink()
    nothing = [Group("v2", [runs.read_run(folder)])]
    for draw in (figures.curves, figures.rates, figures.last_epochs, figures.classes):
        assert draw(nothing) is None
    assert figures.step(nothing[0]) is None
    assert figures.confusion(nothing[0]) is None
    assert figures.differences([]) is None


def test_the_last_epochs_of_all_seeds_are_points(tmp_path: Path) -> None:
    compared = [of_seeds(tmp_path, (99.1, 99.2)), one(tmp_path / "x", 97.0, 98.9, 99.2, 99.3)]
    drawn = figures.last_epochs(compared)
    assert drawn is not None
    assert [len(trace.x) for trace in drawn.plot.data] == [6, 1, 3, 1]
    assert len(set(drawn.plot.data[2].y)) == 3  # equal epochs do not hide one another
    assert "all points of v2 are right of the target" in drawn.see


def test_the_confusion_matrix_colours_mistakes_only(tmp_path: Path) -> None:
    found = one(tmp_path / "0", 97.0, 99.0, confusion=[[5, 1], [0, 6]], classes=["<b>a", "b"])
    drawn, shares = figures.confusion(found), figures.classes([found])
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
    assert figures.confusion(guessing) is None
    assert figures.classes([guessing]) is None
    shares = figures.classes([found, guessing])
    assert shares is not None
    assert len(shares.plot.data[0].z) == 1
    assert "without guessing, which never left chance" in shares.see


def test_differences_have_their_intervals_and_far_ones_are_named(tmp_path: Path) -> None:
    compared = [
        of_seeds(tmp_path, ends, name)
        for name, ends in (("a", (99.0, 99.2)), ("b", (99.5, 99.6)), ("far", (60.0, 61.0)))
    ]
    found = groups.compare(compared)
    drawn = figures.differences(found)
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


def test_a_scale_that_begins_above_the_first_epochs_says_so(tmp_path: Path) -> None:
    found = one(tmp_path / "0", 80.0, 99.2, 99.3, 99.4)
    for drawn in (figures.curves([found]), figures.step(found)):
        assert drawn is not None
        assert "above the first epochs: double-click to see all" in drawn.see
    level = figures.curves([one(tmp_path / "1", 99.3, 99.3, 99.3, 99.4)])
    assert level is not None
    assert "first epochs" not in level.see


def test_curves_on_different_images_have_no_highest(tmp_path: Path) -> None:
    drawn = figures.curves([one(tmp_path / "0", 97.0, 99.0), one(tmp_path / "1", 97.0, 98.0, data="mnist5k")])
    assert drawn is not None
    assert drawn.see.startswith("These were scored on different images")


def test_no_row_right_of_the_target_is_said(tmp_path: Path) -> None:
    drawn = figures.last_epochs([one(tmp_path / "0", 97.0, 98.0, 98.5)])
    assert drawn is not None
    assert drawn.see.endswith("in no row are all of them right of the target.")
