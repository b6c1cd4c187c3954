import math

import plotly.graph_objects as go
import pytest

from bantam.report import axes


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
    bottom, top = axes.scale(values, target)
    assert low[0] <= bottom <= low[1]
    assert high[0] <= top <= high[1]


def test_a_label_of_an_upright_line_stands_beside_it_within_the_picture() -> None:
    plot = go.Figure()
    axes.draw_line(plot, 10_000, "budget", "x")
    axes.note_outside(plot, ["trial 1"])
    label, outside = plot.layout.annotations
    assert (label.text, label.yanchor, label.textangle) == ("budget", "top", -90)
    assert outside.yanchor == "bottom"
