"""The figures of runs and groups, and what all figures share: their style, their axes, what is written into them.

A figure names its colours ("var(--c0)"), so that the page can draw it in light and in dark. All
numbers are accuracies in percent unless an axis says something else.
"""

import html
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from bantam.report.groups import Group, same_images
from bantam.report.numbers import listed, plural, shown

NEAR = 4.0
"""An accuracy with up to so many times the errors of the best decides about the scale."""

FAR = 5.0
"""A target so many points above the best would squeeze the differences of the others."""

CHANCE = 20.0
"""Where no accuracy is above it, the scale is the whole one: noise would look like structure."""

SERIES = 7
"""Colours of the page; further groups are drawn in grey."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 2px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")

HEAT = ("var(--heat0)", "var(--heat1)", "var(--heat2)")
"""From few mistakes to many."""

NUMBERED = 30
"""Classes up to which cells have their numbers: those of more would be too small to read."""

_AXIS: dict[str, Any] = {
    **{"gridcolor": "var(--grid)", "linecolor": "var(--line)", "zerolinecolor": "var(--faint)"},
    **{"automargin": True, "ticks": "", "tickfont_size": 12, "zeroline": False},
    **{"title_standoff": 10, "title_font_size": 12.5},
}

STYLE = go.layout.Template(
    layout={
        **{"xaxis": _AXIS, "yaxis": _AXIS, "hovermode": "closest"},
        **{"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"},
        "font": {"family": "inherit", "size": 13, "color": "var(--ink)"},
        "margin": {"l": 10, "r": 16, "t": 34, "b": 10, "pad": 2},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "font_size": 12, "itemwidth": 30},
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--line)", "font_color": "var(--ink)"},
        "annotationdefaults": {"showarrow": False, "font": {"size": 12}},
    },
    data={"heatmap": [{"showscale": False, "xgap": 2, "ygap": 2}]},
)
"""What all figures have in common."""


@contextmanager
def without_style() -> Iterator[None]:
    """Figures that are made meanwhile do not get Plotly's own style, which the page replaces.

    It would be made anew for every figure: four fifths of the time of that.
    """
    before = pio.templates.default
    pio.templates.default = "none"
    try:
        yield
    finally:
        pio.templates.default = before


@dataclass(frozen=True)
class Figure:
    """A chart, what is found in it, which the terminal says too, and a note on how it is to be read."""

    title: str
    see: str
    plot: go.Figure
    note: str = ""
    folded: bool = False
    """It is shown on demand."""


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
    near += [target] if 100 - target >= error / NEAR and target - top < FAR else []
    low, high = min(near), max(near)
    pad = max(0.12, 0.3 * (high - low), 0.1 * error)
    return max(0.0, low - pad), min(100.0 + 0.02 * (100 - low), high + 0.5 * pad)


def accuracies(title: str, low: float, high: float) -> dict[str, Any]:
    """An axis of accuracies, all of its labels with as many decimals."""
    decimals = 0 if high - low > 5 else 1 if high - low > 0.7 else 2
    return {"title_text": f"{title} accuracy, %".strip(), "range": [low, high], "tickformat": f".{decimals}f"}


def epochs(most: int) -> dict[str, Any]:
    """An axis of epochs, labelled at whole ones and at the last of 15."""
    every = 1 if most <= 8 else 2 if most <= 20 else 5 * math.ceil(most / 50)
    return {"title_text": "epoch", "tick0": 1 if every < 5 else 0, "dtick": every, "tickformat": "d"}


def draw_line(plot: go.Figure, at: float, label: str, axis: str = "y") -> None:
    """Draw a target or a limit as a dashed line with its name; nothing at nan."""
    look: dict[str, Any] = {"line": {"color": "var(--target)", "width": 1.5, "dash": "5px 4px"}, "layer": "below"}
    look |= {"annotation_text": label, "annotation_font_color": "var(--target)"}
    if not math.isnan(at) and axis == "y":
        plot.add_hline(at, annotation_position="top left", **look)
    elif not math.isnan(at):  # beside it: above the picture is what lies outside its scale
        plot.add_vline(at, annotation_position="top right", annotation_textangle=-90, **look)


def note_outside(plot: go.Figure, labels: Sequence[str], side: str = "below") -> None:
    """Say in the picture, above it, what is outside its scale: a label for every line or point that is."""
    if labels:
        names = [text(f"{label} ({count})" if count > 1 else label) for label, count in Counter(labels).items()]
        place = {"x": 0, "y": 1, "xref": "x domain", "yref": "y domain", "xanchor": "left", "yanchor": "bottom"}
        note = f"{side} this scale: {listed(names)}<br>double-click to see all"
        plot.add_annotation(text=note, align="left", font_color="var(--bad)", **place)


def _colour(series: int) -> str:
    return f"var(--c{series})" if series < SERIES else "var(--faint)"


def _split(groups: Sequence[Group]) -> str:
    """What the images are called by which groups were scored."""
    splits = {g.first.split for g in groups}
    return "held-out" if len(splits) > 1 else splits.pop()


def _target(plot: go.Figure, groups: Sequence[Group], axis: str = "y") -> float:
    """Draw the target that all groups have; nan, and no line, where they have several."""
    targets = {g.first.target for g in groups}
    target = targets.pop() if len(targets) == 1 else math.nan
    draw_line(plot, target, f"target {target:g} %", axis)
    return target


def _lines(g: Group, key: str, series: int, name: str, hover: str) -> list[go.Scatter]:
    """A line of a number of `Epoch`; of several seeds their median, before a thin line for each."""
    points = [point for r in g.runs for point in (*((e.epoch, getattr(e, key)) for e in r.history), (None, None))]
    look: dict[str, Any] = {"name": name, "legendgroup": name, "line": {"color": _colour(series), "width": 1}}
    seeds = go.Scatter(look, mode="lines", opacity=0.3, showlegend=False, hoverinfo="skip")
    seeds.x, seeds.y = zip(*points, strict=True)
    line = go.Scatter(look, mode="lines+markers", hovertemplate=f"{hover}<extra>{name}</extra>")
    line.x, line.y = zip(*g.by_epoch(key), strict=True)
    line.update(line={"width": 2, "dash": DASHES[series % len(DASHES)]})
    line.marker = {"size": 5, "symbol": SYMBOLS[series % len(SYMBOLS)]}
    return [seeds, line] if len(g.runs) > 1 else [line]


def _by_epoch(groups: Sequence[Group], key: str, hover: str) -> go.Figure:
    """The lines of several groups, each in its colour and its dash."""
    lines = [line for i, g in enumerate(groups) for line in _lines(g, key, i, text(g.label), hover)]
    plot = go.Figure(lines, {"hovermode": "x unified"})
    return plot.update_xaxes(epochs(max(len(r.history) for g in groups for r in g.runs)))


def curves(groups: Sequence[Group]) -> Figure:
    """Accuracy by epoch of groups with a history, all overlaid, enlarged around the target."""
    plot = _by_epoch(groups, "accuracy", "epoch %{x}: %{y:.2f} %")
    target = _target(plot, groups)
    all_runs = [r for g in groups for r in g.runs if r.history]
    low, high = scale([value for r in all_runs for value in (max(r.accuracies), *r.accuracies[-5:])], target)
    plot.update_yaxes(accuracies(_split(groups), low, high))
    note_outside(plot, [g.label for g in groups for r in g.runs if r.history and r.accuracies[-1] < low])
    different = not same_images([r for g in groups for r in g.ended], [])
    see = "These were scored on different images, so their accuracies cannot be compared." * different
    note = "A line is the median of the seeds, each of which is a thin line behind it."
    return Figure("Learning curves", see, plot, note * any(len(g.runs) > 1 for g in groups))


def rates(groups: Sequence[Group]) -> Figure:
    """Learning rate by epoch of groups with a history."""
    plot = _by_epoch(groups, "lr", "epoch %{x}: %{y:.3g}")
    plot.update_yaxes(title_text="learning rate", tickformat="~g", rangemode="tozero")
    values = [epoch.lr for g in groups for r in g.runs for epoch in r.history]
    if min(values) > 0 and (ratio := max(values) / min(values)) > 5:
        plot.update_yaxes(type="log", dtick=1 if ratio > 100 else "D2")
    return Figure("Learning rate", "", plot, "The rate of each epoch's last step.")


def step(g: Group) -> Figure:
    """Training and held-out accuracy by epoch of one step with a history."""
    split, hover = text(g.first.split), "epoch %{x}: %{y:.2f} %"
    training = _lines(g, "train_accuracy", 1, "training", hover)
    plot = go.Figure([*training, *_lines(g, "accuracy", 0, split, hover)], {"height": 370})
    target = _target(plot, [g])
    late = [epoch for r in g.runs for epoch in r.history[len(r.history) // 3 :]]
    best = [max(r.history, key=lambda epoch: epoch.accuracy) for r in g.runs if r.history]
    shown = [value for epoch in (*late, *best) for value in (epoch.accuracy, epoch.train_accuracy)]
    low, high = scale(shown, target)
    plot.update_layout(hovermode="x unified").update_yaxes(accuracies("", low, high))
    plot.update_xaxes(epochs(max(len(r.history) for r in g.runs)))
    ends = [r.history[-1] for r in g.runs if r.history]
    values = [("training", epoch.train_accuracy) for epoch in ends] + [(split, epoch.accuracy) for epoch in ends]
    note_outside(plot, [name for name, value in values if value < low])
    note = f"The target, {target:g} %, is above the scale." if target > high else ""
    return Figure(f"Training and {split}", "", plot, note)


def _rows(labels: Sequence[str], least: int) -> go.Figure:
    """An empty figure with a row for each label, the last one at 0; a row has at least so many pixels."""
    how: dict[str, Any] = {"break_long_words": False, "max_lines": 3, "placeholder": " …"}
    wrapped = [textwrap.wrap(text(each), 13, **how) for each in reversed(labels)]
    row = max(least, 12 + 16 * max(map(len, wrapped)))
    plot = go.Figure(layout={"height": 110 + row * len(labels), "showlegend": False})
    ticks = {"tickvals": list(range(len(labels))), "ticktext": ["<br>".join(lines) for lines in wrapped]}
    return plot.update_yaxes(ticks, range=[-0.6, len(labels) - 0.4], showgrid=False, fixedrange=True)


def last_epochs(groups: Sequence[Group], title: str = "The last epochs") -> Figure | None:
    """Every one of the last epochs of every seed as a point, against the target."""
    drawn = [g for g in groups if any(r.last for r in g.ended)]
    if not drawn:
        return None
    plot = _rows([g.label for g in drawn], least=46)
    for series, g in enumerate(drawn):
        points = [(value, f"seed {r.seed}, epoch {epoch}") for r in g.ended for epoch, value in r.last_by_epoch]
        values, names = zip(*points, strict=True)
        look: dict[str, Any] = {"boxpoints": "all", "jitter": 0.9, "pointpos": 0, "boxmean": True, "width": 0.7}
        look |= {"line": {"color": _colour(series), "width": 1}, "marker": {"size": 7, "opacity": 0.75}}
        hover = f"%{{text}}: %{{x:.2f}} %<extra>{text(g.label)}</extra>"
        look |= {"orientation": "h", "hoveron": "points", "hovertemplate": hover}
        plot.add_box(x=values, y=[len(drawn) - 1 - series] * len(values), text=names, **look)
    target = _target(plot, drawn, "x")
    ends = [(g.label, value) for g in drawn for r in g.ended for value in r.last]
    low, high = scale([value for _, value in ends], target)
    plot.update_xaxes(accuracies(_split(drawn), low, high))
    note_outside(plot, [label for label, value in ends if value < low], "left of")
    note = "A point is one of the last epochs of one seed, a box the middle half of them, with their mean."
    return Figure(title, "", plot, note)


def classes(groups: Sequence[Group]) -> Figure | None:
    """Accuracy by class, a row a group; without groups that never left chance, whose classes say nothing."""
    drawn = [g for g in groups if any(map(sum, g.confusion)) and not g.at_chance]
    drawn = [g for g in drawn if g.first.classes == drawn[0].first.classes]
    if not drawn:
        return None
    names = [text(name) for name in drawn[0].first.classes]
    # A class of which no image was scored has no share.
    shares = [[100 * row[i] / sum(row) if sum(row) else None for i, row in enumerate(g.confusion)] for g in drawn]
    ordered = sorted(share for row in shares for share in row if share is not None)
    plot = _rows([g.label for g in drawn], least=40)
    heat = {"colorscale": HEAT[::-1], "zmin": min(99.0, ordered[len(ordered) // 10]), "zmax": 100}
    numbers = "%{z:.1f}" if len(names) <= NUMBERED else ""
    hover = "class %{x}: %{z:.2f} %<extra></extra>"
    plot.add_heatmap(z=shares[::-1], x=names, texttemplate=numbers, hovertemplate=hover, **heat)
    plot.update_xaxes(title_text="class", type="category", showgrid=False)
    guessing = [g.label for g in groups if g.at_chance]
    without = f" Without {listed(guessing)}, which never left chance." if guessing else ""
    return Figure("Accuracy by class", "", plot, f"The darker a cell, the more of its images are wrong.{without}")


def confusion(g: Group) -> Figure | None:
    """Truth against guess; the colour shows the mistakes only, which the diagonal would drown."""
    matrix, names = g.confusion, [text(name) for name in g.first.classes]
    if not matrix or g.at_chance:
        return None
    wrong = [[n if i != j else None for j, n in enumerate(row)] for i, row in enumerate(matrix)]
    wrongest, numbered = max([1, *(n or 0 for row in wrong for n in row)]), len(names) <= NUMBERED
    plot = go.Figure(layout={"height": min(900, max(430, 150 + 20 * len(names)))})
    heat = {"colorscale": HEAT, "zmin": 0, "zmax": wrongest, "texttemplate": "%{text}" * numbered}
    hover = "%{y} taken for %{x}: %{z:,} times<extra></extra>"
    labels = [[shown(n or None) for n in row] for row in wrong]
    plot.add_heatmap(z=wrong, x=names, y=names, text=labels, hovertemplate=hover, **heat)
    for i, row in enumerate(matrix if numbered else ()):
        plot.add_annotation(x=i, y=i, text=f"{row[i]:,}", font={"color": "var(--muted)", "size": 11})
    axis = {"type": "category", "showgrid": False, **({"dtick": 1} if numbered else {})}
    plot.update_xaxes(axis, title_text="guess").update_yaxes(axis, title_text="truth", autorange="reversed")
    seeds = f" of {plural(len(g.ended), 'seed')}" if len(g.ended) > 1 else ""
    total = sum(n or 0 for row in wrong for n in row)
    see = f"{total:,} of {sum(map(sum, matrix)):,} {g.first.split} images{seeds} are wrong."
    return Figure("Confusion matrix", see, plot, folded=True)
