"""What is drawn by epoch: accuracies and learning rates, and what all figures share.

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

SERIES = 7
"""Colours of the page; further groups are drawn in grey."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 2px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")

NEAR = 4.0
"""An accuracy with up to so many times the errors of the best decides about the scale."""

FAR = 5.0
"""A group so many points below the best would squeeze the differences of the others."""

CHANCE = 20.0
"""Where no accuracy is above it, the scale is the whole one: noise would look like structure."""


@dataclass(frozen=True)
class Figure:
    """A chart and what to see in it."""

    title: str
    see: str
    """One sentence."""
    plot: go.Figure
    """The page adds fonts, margins and grid."""


def text(value: object) -> str:
    """A text that Plotly shows as it is, instead of taking a part of it for HTML."""
    return html.escape(str(value), quote=False)


def scale(values: Sequence[float], target: float) -> tuple[float, float]:
    """The interesting part of an accuracy axis: the best, what comes near it, and the target if it does."""
    top = max(values)
    if top <= CHANCE:
        return 0.0, 100.0
    error = 100 - top + 0.1
    near = [value for value in values if 100 - value <= NEAR * error]
    aims = [target] if 100 - target >= error / NEAR and target - top < FAR else []
    low, high = min([*near, *aims]), max([*near, *aims])
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
    if math.isnan(at):
        return
    other = "x" if axis == "y" else "y"
    span = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": f"{other} domain"}
    plot.add_shape(layer="below", line={"color": "var(--target)", "width": 1.5, "dash": "5px 4px"}, **span)
    place = {"y": at, "x": 0, "xref": "x domain", "xanchor": "left", "yanchor": "bottom"}
    if axis == "x":
        place = {"x": at, "y": 1, "yref": "y domain", "xanchor": "right", "yanchor": "bottom"}
    plot.add_annotation(text=label, showarrow=False, font={"color": "var(--target)", "size": 12}, **place)


def note_outside(plot: go.Figure, labels: Sequence[str], side: str = "below") -> None:
    """Say in the picture, above it, what is outside its scale: a label for every line or point that is."""
    if labels:
        names = [text(f"{label} ({count})" if count > 1 else label) for label, count in Counter(labels).items()]
        note = f"{side} this scale: {listed(names)}<br>double-click to see all"
        place = {"x": 0, "y": 1, "xref": "x domain", "yref": "y domain", "xanchor": "left", "yanchor": "bottom"}
        plot.add_annotation(
            text=note, showarrow=False, font={"color": "var(--bad)", "size": 12}, align="left", **place
        )


def series_colour(series: int) -> str:
    """The colour of the group with this number."""
    return f"var(--c{series})" if series < SERIES else "var(--faint)"


def common_target(groups: Sequence[Group]) -> float:
    """The target that all groups have, else nan."""
    targets = {g.first.target for g in groups}
    return targets.pop() if len(targets) == 1 else math.nan


def accuracy_axis(groups: Sequence[Group], low: float, high: float) -> dict[str, Any]:
    """An axis of the accuracy that these groups were scored by."""
    splits = {g.first.split for g in groups}
    return accuracies(f"{splits.pop() if len(splits) == 1 else 'held-out'} accuracy, %", low, high)


def _lines(g: Group, key: str, series: int, name: str, hover: str) -> list[go.Scatter]:
    """A line; over several seeds their mean before a band, their range.

    Where seeds end far apart, as those of a network that sometimes collapses, each is a thin line and
    the thick one their median: a band over everything would hide what happens.
    """
    rows = g.by_epoch(key)
    at, centre, lowest, highest = zip(*rows, strict=True)
    behind = go.Scatter(mode="lines", legendgroup=name, showlegend=False, hoverinfo="skip")
    if g.spread_out:
        behind.x = [value for r in g.runs for value in (*(epoch.epoch for epoch in r.history), None)]
        behind.y = [value for r in g.runs for value in (*(getattr(epoch, key) for epoch in r.history), None)]
        behind.update(line={"color": series_colour(series), "width": 1}, opacity=0.55)
    else:
        behind.update(x=[*at, *at[::-1]], y=[*highest, *lowest[::-1]], fill="toself", line_width=0)
        behind.update(fillcolor=series_colour(series), opacity=0.18)
    between = "<br>seeds %{customdata[0]:.4~f} to %{customdata[1]:.4~f}" if len(g.runs) > 1 else ""
    line = go.Scatter(x=at, y=centre, customdata=[row[2:] for row in rows], mode="lines+markers")
    line.update(name=name, legendgroup=name, hovertemplate=f"{hover}{between}<extra>{name}</extra>")
    line.line = {"color": series_colour(series), "width": 2, "dash": DASHES[series % len(DASHES)]}
    line.marker = {"size": 5, "symbol": SYMBOLS[series % len(SYMBOLS)]}
    return [behind, line] if len(g.runs) > 1 else [line]


def _by_epoch(groups: Sequence[Group], key: str, hover: str) -> go.Figure:
    """The lines of several groups, each in its colour and its dash."""
    plot = go.Figure()
    for series, g in enumerate(groups):
        plot.add_traces(_lines(g, key, series, text(g.label), hover))
    return plot.update_xaxes(epochs(max(row[0] for g in groups for row in g.by_epoch(key))))


def curves(groups: Sequence[Group]) -> Figure | None:
    """Accuracy by epoch, all groups overlaid, enlarged around the target."""
    drawn = [g for g in groups if any(r.history for r in g.runs)]
    if not drawn:
        return None
    target = common_target(drawn)
    low, high = scale([value for g in drawn for r in g.runs for value in r.accuracies[-5:]], target)
    best, accuracy, epoch = max(
        ((g, accuracy, epoch) for g in drawn for epoch, accuracy, *_ in g.by_epoch("accuracy")), key=lambda b: b[1]
    )
    see = f"{best.label} has the highest epoch, {accuracy:.2f} % in epoch {epoch}"
    see += f" ({'median' if best.spread_out else 'mean'} of its seeds)" if len(best.runs) > 1 else ""
    if any(len(g.runs) > 1 and not g.spread_out for g in drawn):
        see += "; a band is the range of the seeds"
    if any(g.spread_out for g in drawn):
        see += "; where seeds end far apart, each is a thin line"
    plot = _by_epoch(drawn, "accuracy", "epoch %{x}: %{y:.2f} %")
    plot.update_yaxes(accuracy_axis(drawn, low, high))
    draw_line(plot, target, f"target {target:g} %")
    note_outside(plot, [g.label for g in drawn for r in g.runs if r.history and r.accuracies[-1] < low])
    return Figure("Learning curves", f"{see}.", plot)


def rates(groups: Sequence[Group]) -> Figure | None:
    """Learning rate by epoch."""
    drawn = [g for g in groups if any(r.history for r in g.runs)]
    if not drawn:
        return None
    plot = _by_epoch(drawn, "lr", "epoch %{x}: %{y:.3g}")
    plot.update_yaxes(title_text="learning rate", tickformat="~g", rangemode="tozero")
    values = [row[1] for g in drawn for row in g.by_epoch("lr")]
    if min(values) > 0 and max(values) / min(values) > 5:
        plot.update_yaxes(type="log", dtick=1 if max(values) / min(values) > 100 else "D2")
    kept = [g.label for g in drawn if len({row[1] for row in g.by_epoch("lr")}) == 1]
    see = f"; {listed(kept)} {'keeps its' if len(kept) == 1 else 'keep their'} rate" if kept else ""
    return Figure("Learning rate", f"The rate of each epoch's last step{see}.", plot)


def step(g: Group) -> Figure | None:
    """Training and held-out accuracy of one step by epoch."""
    if not any(r.history for r in g.runs):
        return None
    split, target, hover = text(g.first.split), g.first.target, "epoch %{x}: %{y:.2f} %"
    late = [epoch for r in g.runs for epoch in r.history[len(r.history) // 3 :]]
    low, high = scale([value for epoch in late for value in (epoch.accuracy, epoch.train_accuracy)], target)
    training = _lines(g, "train_accuracy", 1, "training", hover)
    plot = go.Figure([*training, *_lines(g, "accuracy", 0, split, hover)], {"height": 370})
    plot.update_xaxes(epochs(g.by_epoch("accuracy")[-1][0])).update_yaxes(accuracies("accuracy, %", low, high))
    draw_line(plot, target, f"target {target:g} %")
    ends = [e for r in g.runs for e in r.history[-1:]]
    note_outside(
        plot, ["training" for e in ends if e.train_accuracy < low] + [split for e in ends if e.accuracy < low]
    )
    gap = g.by_epoch("train_accuracy")[-1][1] - g.by_epoch("accuracy")[-1][1]
    see = f"In the last epoch training is {abs(gap):.2f} points {'above' if gap > 0 else 'below'} {split}"
    see += f"; the target, {target:g} %, is above the scale" if target > high else ""
    return Figure(f"Training and {split}", f"{see}.", plot)
