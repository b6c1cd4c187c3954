"""What all figures share: their style, their axes, and what is written into them.

A figure names its colours ("var(--c0)"), so that the page can draw it in light and in dark. All
numbers are accuracies in percent unless an axis says something else.
"""

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from bantam.report.groups import Group
from bantam.report.numbers import listed

NEAR = 4.0
"""An accuracy with up to so many times the errors of the best decides about the scale."""

FAR = 5.0
"""A group so many points below the best would squeeze the differences of the others."""

CHANCE = 20.0
"""Where no accuracy is above it, the scale is the whole one: noise would look like structure."""


_AXIS: dict[str, Any] = {
    **{"gridcolor": "var(--grid)", "linecolor": "var(--line)", "zerolinecolor": "var(--faint)"},
    **{"automargin": True, "ticks": "", "tickfont_size": 12, "zeroline": False},
    **{"title_standoff": 10, "title_font_size": 12.5},
}

STYLE = go.layout.Template(
    layout={
        **{"xaxis": _AXIS, "yaxis": _AXIS, "hovermode": "x unified"},
        **{"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"},
        "font": {"family": "inherit", "size": 13, "color": "var(--ink)"},
        "margin": {"l": 10, "r": 16, "t": 34, "b": 10, "pad": 2},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "font_size": 12, "itemwidth": 30},
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--line)", "font_color": "var(--ink)"},
    }
)
"""What all figures have in common."""


@dataclass(frozen=True)
class Figure:
    """A chart and, in one sentence, what to see in it."""

    title: str
    see: str
    plot: go.Figure


def text(value: object) -> str:
    """A text that Plotly shows as it is, instead of taking a part of it for HTML."""
    return html.escape(str(value), quote=False)


def scale(values: Sequence[float], target: float) -> tuple[float, float]:
    """The interesting part of an accuracy axis: the best, what comes near it, and the target if it does."""
    top = max(values)
    if top <= CHANCE:
        return 0.0, 100.0
    error = 100 - top + 0.1
    shown = [value for value in values if 100 - value <= NEAR * error]
    shown += [target] if 100 - target >= error / NEAR and target - top < FAR else []
    low, high = min(shown), max(shown)
    pad = max(0.12, 0.3 * (high - low), 0.1 * error)
    return max(0.0, low - pad), min(100.0 + 0.02 * (100 - low), high + 0.5 * pad)


def accuracies(title: str, low: float, high: float) -> dict[str, Any]:
    """An axis of accuracies, all of its labels with as many decimals."""
    decimals = 0 if high - low > 5 else 1 if high - low > 0.7 else 2
    return {"title_text": title, "range": [low, high], "tickformat": f".{decimals}f"}


def epochs(most: int) -> dict[str, Any]:
    """An axis of epochs, labelled at whole ones and at the last of 15."""
    every = 1 if most <= 8 else 2 if most <= 20 else 5 * math.ceil(most / 50)
    return {"title_text": "epoch", "tick0": 1 if every < 5 else 0, "dtick": every, "tickformat": "d"}


def draw_line(plot: go.Figure, at: float, label: str, axis: str = "y") -> None:
    """Draw a target or a limit as a dashed line with its name; nothing at nan."""
    if not math.isnan(at):
        line = {"color": "var(--target)", "width": 1.5, "dash": "5px 4px"}
        look: dict[str, Any] = {"line": line, "layer": "below"}
        note = {"text": label, "font": {"color": "var(--target)", "size": 12}}
        if axis == "y":
            plot.add_hline(at, **look, annotation={**note, "yanchor": "bottom"}, annotation_position="top left")
        else:  # beside it, where no trial is trained: above the picture is what lies outside its scale
            beside = {**note, "textangle": -90, "yanchor": "top"}
            plot.add_vline(at, **look, annotation=beside, annotation_position="top right")


def note_outside(plot: go.Figure, labels: Sequence[str], side: str = "below") -> None:
    """Say in the picture, above it, what is outside its scale: a label for every line or point that is."""
    if labels:
        names = [text(f"{label} ({count})" if count > 1 else label) for label, count in Counter(labels).items()]
        note = f"{side} this scale: {listed(names)}<br>double-click to see all"
        place = {"x": 0, "y": 1, "xref": "x domain", "yref": "y domain", "xanchor": "left", "yanchor": "bottom"}
        look = {"showarrow": False, "font": {"color": "var(--bad)", "size": 12}, "align": "left"}
        plot.add_annotation(text=note, **place, **look)


def begins(groups: Sequence[Group], low: float, *keys: str) -> str:
    """What to say where lines enter the scale from below."""
    early = any(getattr(r.history[0], key) < low for g in groups for r in g.runs if r.history for key in keys)
    return f"; the scale begins at {low:.1f} %, above the first epochs: double-click to see all" if early else ""
