import inspect
import math
import re
from importlib.resources import files
from pathlib import Path

import pytest
from made_folders import of_seeds, one, write_run

from bantam.report import figures, row_figures, runs, study_figures
from bantam.report.figures import Figure
from bantam.report.groups import Group


def notes(drawn: Figure | None) -> list[str]:
    """What is written into a picture."""
    assert drawn is not None
    return [note.text for note in drawn.plot.layout.annotations]


def test_every_colour_is_one_of_the_page_in_light_and_in_dark() -> None:
    page = files("bantam.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = page.split("@media (prefers-color-scheme: dark) {", 1)
    sources = "".join(map(inspect.getsource, (figures, row_figures, study_figures)))
    names = set(re.findall(r"var\(--([\w-]+)\)", sources))
    names |= {f"c{number}" for number in range(figures.SERIES)}
    names |= {colour for colour, _ in study_figures.MARKERS.values()}
    assert len(names) > 15
    for name in names:
        assert f"--{name}:" in light, name
        assert f"--{name}:" in dark, name


@pytest.mark.parametrize(
    ("values", "target", "low", "high"),
    [
        ([99.3, 99.5], 99.4, (99.0, 99.3), (99.5, 100.02)),  # around the target
        ([99.3, 99.5, 87.0], 99.4, (99.0, 99.3), (99.5, 100.02)),  # a collapsed one does not squeeze the others
        ([60.0, 55.0], 99.4, (40, 55), (60, 80)),  # a target out of reach neither
        ([98.0], math.nan, (97.0, 98.0), (98.0, 99.0)),
        ([100.0], 99.4, (99.0, 99.4), (100.0, 100.1)),
        ([10.0, 9.7], 99.4, (0, 0), (100, 100)),  # what guesses has no structure to look at
    ],
)
def test_the_scale_is_about_what_matters(
    values: list[float], target: float, low: tuple[float, float], high: tuple[float, float]
) -> None:
    bottom, top = figures.scale(values, target)
    assert low[0] <= bottom <= low[1]
    assert high[0] <= top <= high[1]


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
    groups = [one(tmp_path / "0", 97.0, 99.2, 99.3, 99.4), one(tmp_path / "1", 60.0, 61.0, 62.0, 63.0, name="low")]
    assert "below this scale: low<br>double-click to see all" in notes(figures.curves(groups))
    assert "left of this scale: low (3)<br>double-click to see all" in notes(row_figures.last_epochs(groups))
    alone = figures.step(groups[1])
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
    for draw in (figures.curves, figures.rates, row_figures.last_epochs, row_figures.classes):
        assert draw(nothing) is None
    assert figures.step(nothing[0]) is None
    assert row_figures.confusion(nothing[0]) is None
    assert row_figures.differences([]) is None
