import inspect
import math
import re
from importlib.resources import files
from pathlib import Path

import pytest
from made_folders import of_seeds, one, write_run

from bantam.report import figures, folders, study_figures
from bantam.report.folders import Study
from bantam.report.groups import Group


def test_every_colour_is_one_of_the_page_in_light_and_in_dark() -> None:
    page = files("bantam.report").joinpath("page.html").read_text(encoding="utf-8")
    light, dark = page.split("@media (prefers-color-scheme: dark) {", 1)
    names = set(re.findall(r"var\(--([\w-]+)\)", inspect.getsource(figures) + inspect.getsource(study_figures)))
    names |= {f"{kind}{number}" for kind in "cb" for number in range(figures.SERIES)}
    assert len(names) > 15
    for name in names:
        assert f"--{name}:" in light, name
        assert f"--{name}:" in dark.split("</style>")[0], name


@pytest.mark.parametrize(
    ("values", "target", "low", "high"),
    [
        ([99.3, 99.5], 99.4, (99.0, 99.3), (99.5, 100.02)),  # around the target
        ([99.3, 99.5, 87.0], 99.4, (99.0, 99.3), (99.5, 100.02)),  # a collapsed one does not squeeze the others
        ([60.0, 55.0], 99.4, (40, 55), (60, 80)),  # a target out of reach neither
        ([98.0], math.nan, (97.0, 98.0), (98.0, 99.0)),
        ([100.0], 99.4, (99.0, 99.4), (100.0, 100.1)),
    ],
)
def test_the_scale_is_about_what_matters(
    values: list[float], target: float, low: tuple[float, float], high: tuple[float, float]
) -> None:
    bottom, top = figures.scale(values, target)
    assert low[0] <= bottom <= low[1]
    assert high[0] <= top <= high[1]


def test_seeds_are_a_band_and_where_they_part_a_line_each(tmp_path: Path) -> None:
    together = figures.curves([of_seeds(tmp_path / "a", (99.0, 99.1, 99.2))])
    apart = figures.curves([of_seeds(tmp_path / "b", (99.0, 99.1, 9.8))])
    assert together is not None
    assert apart is not None
    assert [trace.get("fill") for trace in together.data] == ["toself", None]
    assert together.data[1]["y"] == pytest.approx([90, 99.1, 99.1, 99.1])  # their mean
    assert "a band is the range of the seeds" in together.see
    assert [trace.get("fill") for trace in apart.data] == [None, None]
    assert apart.data[0]["x"] == [1, 2, 3, 4, None] * 3
    assert apart.data[1]["y"] == pytest.approx([90, 99.0, 99.0, 99.0])  # their median
    assert "where seeds part, each is a thin line" in apart.see


def test_what_is_off_the_scale_is_said(tmp_path: Path) -> None:
    groups = [one(tmp_path / "0", 97.0, 99.2, 99.3, 99.4), one(tmp_path / "1", 60.0, 61.0, 62.0, 63.0, name="low")]
    for drawn, said in (
        (figures.curves(groups), "low is below"),
        (figures.last_epochs(groups), "low has points left"),
    ):
        assert drawn is not None
        assert said in drawn.see
    alone = figures.step(groups[1])
    assert alone is not None
    assert "the target, 99 %, is above the scale" in alone.see


def test_the_last_epochs_of_all_seeds_are_points(tmp_path: Path) -> None:
    drawn = figures.last_epochs([of_seeds(tmp_path, (99.1, 99.2)), one(tmp_path / "x", 97.0, 98.9, 99.2, 99.3)])
    assert drawn is not None
    assert [len(trace["x"]) for trace in drawn.data] == [6, 1, 3, 1]
    assert len(set(drawn.data[2]["y"])) == 3  # equal epochs do not hide one another
    assert "all points of v2 are right of the target" in drawn.see


def test_the_confusion_matrix_colours_mistakes_only(tmp_path: Path) -> None:
    found = one(tmp_path / "0", 97.0, 99.0, confusion=[[5, 1], [0, 6]], classes=["<b>a", "b"])
    drawn, shares = figures.confusion(found), figures.classes([found])
    assert drawn is not None
    assert drawn.data[0]["z"] == [[None, 1], [0, None]]
    assert drawn.data[0]["x"][0] == "&lt;b&gt;a"
    assert "1 of 12 test images are wrong" in drawn.see
    assert shares is not None
    assert shares.data[0]["z"] == [pytest.approx([100 * 5 / 6, 100])]


def test_there_is_no_figure_of_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "history.csv").unlink()
    (folder / "result.json").unlink()
    nothing = [Group("v2", [folders.read_run(folder)])]
    for draw in (figures.curves, figures.rates, figures.last_epochs, figures.classes):
        assert draw(nothing) is None
    assert figures.step(nothing[0]) is None
    assert figures.confusion(nothing[0]) is None
    assert figures.differences([]) is None
    empty = Study(tmp_path, [], [], [], None)
    for look in (study_figures.history, study_figures.sizes, study_figures.intermediate, study_figures.parallel):
        assert look(empty) is None
