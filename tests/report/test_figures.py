import inspect
import math
import re
from importlib.resources import files
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio
import pytest
from made_folders import of_seeds, one, write_run

from bantam.report import figures, page, runs, study_figures
from bantam.report.figures import Figure
from bantam.report.groups import Group


def notes(drawn: Figure | None) -> list[str]:
    """What is written into a picture."""
    assert drawn is not None
    return [note.text for note in drawn.plot.layout.annotations]


def test_every_colour_is_one_of_the_page_in_light_and_in_dark() -> None:
    page = files("bantam.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = page.split("@media (prefers-color-scheme: dark) {", 1)
    sources = "".join(map(inspect.getsource, (figures, study_figures)))
    names = set(re.findall(r"var\(--([\w-]+)\)", sources))
    names |= {f"c{number}" for number in range(figures.SERIES)}
    names |= {colour for colour, _ in study_figures.MARKERS.values()}
    assert len(names) > 15
    for name in names:
        assert f"--{name}:" in light, name
        assert f"--{name}:" in dark, name


def test_seeds_are_thin_lines_behind_their_median(tmp_path: Path) -> None:
    drawn = figures.curves([of_seeds(tmp_path, (99.0, 99.1, 9.8))])
    seeds, median = drawn.plot.data
    assert list(seeds.x) == [1, 2, 3, 4, None] * 3
    assert (seeds.mode, median.y) == ("lines", pytest.approx([90, 99.0, 99.0, 99.0]))
    assert "A line is the median of the seeds" in drawn.note
    assert figures.curves([of_seeds(tmp_path / "x", (99.0,))]).note == ""


def test_what_is_off_the_scale_is_said_in_the_picture(tmp_path: Path) -> None:
    compared = [
        one(tmp_path / "0", 97.0, 99.2, 99.3, 99.4),
        one(tmp_path / "1", 60.0, 61.0, 62.0, 63.0, name="low"),
    ]
    assert "below this scale: low<br>double-click to see all" in notes(figures.curves(compared))
    assert "left of this scale: low (3)<br>double-click to see all" in notes(figures.last_epochs(compared))
    alone = figures.step(compared[1])
    assert "The target, 99 %, is above the scale" in alone.note
    assert not any("this scale" in note for note in notes(alone))


def test_a_seed_that_ends_below_the_scale_is_counted(tmp_path: Path) -> None:
    group = of_seeds(tmp_path, (99.0, 99.1, 9.8, 9.8))
    assert "below this scale: v2 (2)<br>double-click to see all" in notes(figures.curves([group]))
    low, _ = figures.curves([group]).plot.layout.yaxis.range
    drawn = [r for r in group.runs if r.accuracies[-1] >= low]
    assert len(drawn) == 2  # every line ends in the picture or is counted
    assert "below this scale: training (2), test (2)<br>double-click to see all" in notes(figures.step(group))


def test_the_best_epoch_is_in_the_picture_of_a_run_that_fell_after_it(tmp_path: Path) -> None:
    fell = one(tmp_path / "0", 90.0, 97.0, 70.0, 65.0, 62.0, 61.0, 60.0, 60.0)
    for drawn in (figures.curves([fell]), figures.step(fell)):
        assert drawn.plot.layout.yaxis.range[1] > 97
        assert any("below this scale" in note for note in notes(drawn))


def test_a_network_at_chance_is_shown_on_the_whole_scale(tmp_path: Path) -> None:
    found = one(tmp_path / "0", 10.0, 9.7, 9.8, 9.8, at_chance=True)
    for drawn in (figures.curves([found]), figures.step(found)):
        assert list(drawn.plot.layout.yaxis.range) == [0, 100]


def test_there_is_no_figure_of_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / "history.csv").unlink()
    (folder / "result.json").unlink()
    nothing = [Group("v2", [runs.read_run(folder)])]
    assert not nothing[0].trained
    assert figures.last_epochs(nothing) is None
    assert figures.classes(nothing) is None
    assert figures.confusion(nothing[0]) is None


def test_the_last_epochs_of_all_seeds_are_points(tmp_path: Path) -> None:
    compared = [of_seeds(tmp_path, (99.1, 99.2)), one(tmp_path / "x", 97.0, 98.9, 99.2, 99.3)]
    drawn = figures.last_epochs(compared)
    assert drawn is not None
    assert [len(trace.x) for trace in drawn.plot.data] == [6, 3]
    assert all(trace.jitter and trace.boxpoints == "all" for trace in drawn.plot.data)  # equal ones do not hide
    assert list(drawn.plot.data[1].text) == ["seed 1, epoch 2", "seed 1, epoch 3", "seed 1, epoch 4"]


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
    assert "Without guessing, which never left chance." in shares.note


def test_curves_on_different_images_have_no_highest(tmp_path: Path) -> None:
    drawn = figures.curves([one(tmp_path / "0", 97.0, 99.0), one(tmp_path / "1", 97.0, 98.0, data="mnist5k")])
    assert drawn.see.startswith("These were scored on different images")


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


def test_a_label_of_an_upright_line_stands_beside_it_within_the_picture() -> None:
    plot = go.Figure()
    figures.draw_line(plot, 10_000, "budget", "x")
    figures.note_outside(plot, ["trial 1"])
    label, outside = plot.layout.annotations
    assert (label.text, label.yanchor, label.textangle) == ("budget", "top", -90)
    assert outside.yanchor == "bottom"


def test_figures_are_made_without_plotlys_own_style_which_others_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    curves = page.figures.curves
    monkeypatch.setattr(
        page.figures, "curves", lambda given: [made.append(pio.templates.default), curves(given)][1]
    )
    write_run(tmp_path)
    page.render(page.read([tmp_path]))
    assert (made, pio.templates.default) == (["none"], "plotly")
