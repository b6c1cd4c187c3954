"""The figures of runs, as data for Plotly: what is drawn, and one sentence that says what to see.

A figure names its colours ("var(--c0)"), so that the page can draw it in light and in dark. All
numbers are accuracies in percent unless an axis says something else.
"""

import html
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bantam.report.groups import Difference, Group

SERIES = 7
"""Colours of the page; further groups are drawn in grey."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 2px")

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")

NEAR = 4.0
"""An accuracy with up to so many times the errors of the best decides about the scale."""

FAR = 5.0
"""A group so many points below the best would squeeze the differences of the others."""


@dataclass(frozen=True)
class Figure:
    """A chart and what to see in it."""

    title: str
    see: str
    """One sentence."""
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    """Of Plotly; the page adds fonts, margins and grid."""


def text(value: object) -> str:
    """A text that Plotly shows as it is, instead of taking a part of it for HTML."""
    return html.escape(str(value), quote=False)


def _colour(number: int) -> str:
    return f"var(--c{number})" if number < SERIES else "var(--faint)"


def _band(number: int) -> str:
    return f"var(--b{number})" if number < SERIES else "var(--b-faint)"


def scale(values: Sequence[float], target: float) -> tuple[float, float]:
    """The interesting part of an accuracy axis: the best, what comes near it, and the target if it does."""
    top = max(values)
    error = 100 - top + 0.1
    near = [value for value in values if 100 - value <= NEAR * error]
    aims = [target] if 100 - target >= error / NEAR and target - top < FAR else []
    low, high = min([*near, *aims]), max([*near, *aims])
    pad = max(0.12, 0.3 * (high - low))
    return max(0.0, low - pad), min(100.0 + 0.02 * (100 - low), high + 0.5 * pad)


def _target_line(target: float, axis: str = "y") -> dict[str, Any]:
    """Layout with the target as a dashed line and its name."""
    if math.isnan(target):
        return {}
    other = "x" if axis == "y" else "y"
    line = {axis + "0": target, axis + "1": target, axis + "ref": axis, other + "0": 0, other + "1": 1}
    name: dict[str, Any] = {"x": 0, "xanchor": "left"} if axis == "y" else {"y": 1}
    return {
        "shapes": [
            {
                **line,
                "type": "line",
                other + "ref": f"{other} domain",
                "layer": "below",
                "line": {"color": "var(--target)", "width": 1.5, "dash": "5px 4px"},
            }
        ],
        "annotations": [
            {
                axis: target,
                axis + "ref": axis,
                other + "ref": f"{other} domain",
                "yanchor": "bottom",
                **name,
                "text": f"target {target:g} %",
                "showarrow": False,
                "font": {"color": "var(--target)", "size": 12},
            }
        ],
    }


def accuracies(title: str, low: float, high: float) -> dict[str, Any]:
    """An axis of accuracies, all of its labels with as many decimals."""
    decimals = 0 if high - low > 5 else 1 if high - low > 0.7 else 2
    return {"title": {"text": title}, "range": [low, high], "tickformat": f".{decimals}f"}


def _target(groups: Sequence[Group]) -> float:
    """The target that all groups have, else nan."""
    targets = {g.first.target for g in groups}
    return targets.pop() if len(targets) == 1 else math.nan


def _split(groups: Sequence[Group]) -> str:
    splits = {g.first.split for g in groups}
    return splits.pop() if len(splits) == 1 else "held-out"


def _lines(g: Group, key: str, number: int, name: str, hover: str, **line: Any) -> list[dict[str, Any]]:
    """A line; over several seeds their mean before a band, their range.

    Where seeds part, as those of a network that sometimes collapses, each is a thin line and the thick
    one their median: a band over everything would hide what happens.
    """
    rows = g.by_epoch(key)
    epochs = [row[0] for row in rows]
    behind = {"hoverinfo": "skip", "showlegend": False, "legendgroup": name, "mode": "lines"}
    traces: list[dict[str, Any]] = []
    if len(g.runs) > 1 and g.parted:
        x: list[int | None] = []
        y: list[float | None] = []
        for r in g.runs:
            x += [*(epoch.epoch for epoch in r.history), None]
            y += [*(getattr(epoch, key) for epoch in r.history), None]
        traces.append({"x": x, "y": y, "line": {"color": _colour(number), "width": 1}, "opacity": 0.55, **behind})
    elif len(g.runs) > 1:
        ends = [row[3] for row in rows] + [row[2] for row in rows][::-1]
        band = {"fill": "toself", "fillcolor": _band(number), "line": {"width": 0}}
        traces.append({"x": epochs + epochs[::-1], "y": ends, **band, **behind})
    between = "<br>seeds %{customdata[0]:.4~f} to %{customdata[1]:.4~f}" if len(g.runs) > 1 else ""
    traces.append(
        {
            "x": epochs,
            "y": [row[1] for row in rows],
            "customdata": [[row[2], row[3]] for row in rows] if between else None,
            "name": name,
            "legendgroup": name,
            "mode": "lines+markers",
            "line": {"color": _colour(number), "width": 2, **line},
            "marker": {"size": 5, "symbol": SYMBOLS[number % len(SYMBOLS)]},
            "hovertemplate": f"{hover}{between}<extra>{name}</extra>",
        }
    )
    return traces


def epochs(most: int) -> dict[str, Any]:
    """An axis of epochs, labelled at whole ones and at the last of 15."""
    every = 1 if most <= 8 else 2 if most <= 20 else 5 * math.ceil(most / 50)
    return {"title": {"text": "epoch"}, "tick0": 1 if every < 5 else 0, "dtick": every, "tickformat": "d"}


def curves(groups: Sequence[Group]) -> Figure | None:
    """Accuracy by epoch, all groups overlaid, enlarged around the target."""
    drawn = [g for g in groups if any(r.history for r in g.runs)]
    if not drawn:
        return None
    data = []
    for number, g in enumerate(drawn):
        data += _lines(g, "accuracy", number, text(g.label), "epoch %{x}: %{y:.2f} %", dash=DASHES[number % 7])
    target, split = _target(drawn), _split(drawn)
    late = [epoch.accuracy for g in drawn for r in g.runs for epoch in r.history[-5:]]
    low, high = scale(late, target)
    best = max(drawn, key=lambda g: max(row[1] for row in g.by_epoch("accuracy")))
    row = max(best.by_epoch("accuracy"), key=lambda row: row[1])
    below = [g.label for g in drawn if max(row[1] for row in g.by_epoch("accuracy")) < low]
    see = f"{best.label} has the highest epoch, {row[1]:.2f} % in epoch {row[0]}"
    see += f" ({'median' if best.parted else 'mean'} of its seeds)" if len(best.runs) > 1 else ""
    if any(len(g.runs) > 1 and not g.parted for g in drawn):
        see += "; a band is the range of the seeds"
    if any(g.parted for g in drawn):
        see += "; where seeds part, each is a thin line"
    if below:
        see += f"; {_listed(below)} {'is' if len(below) == 1 else 'are'} below the scale: double-click to see all"
    layout = {
        "xaxis": epochs(max(row[0] for g in drawn for row in g.by_epoch("lr"))),
        "yaxis": accuracies(f"{split} accuracy, %", low, high),
        **_target_line(target),
    }
    return Figure("Learning curves", f"{see}.", data, layout)


def _listed(labels: Sequence[str], most: int = 3) -> str:
    """Some names and how many more."""
    more = len(labels) - most
    return ", ".join(labels[:most]) + (f" and {more} more" if more > 0 else "")


def rates(groups: Sequence[Group]) -> Figure | None:
    """Learning rate by epoch."""
    drawn = [g for g in groups if any(r.history for r in g.runs)]
    values = [row[1] for g in drawn for row in g.by_epoch("lr")]
    if not values:
        return None
    data = []
    for number, g in enumerate(drawn):
        data += _lines(g, "lr", number, text(g.label), "epoch %{x}: %{y:.3g}", dash=DASHES[number % 7])
    kept = [g.label for g in drawn if len({row[1] for row in g.by_epoch("lr")}) == 1]
    moved = [g.label for g in drawn if g.label not in kept]
    said = []
    if moved:
        said.append(f"{_listed(moved)} {'changes its' if len(moved) == 1 else 'change their'} rate")
    if kept:
        said.append(f"{_listed(kept)} {'keeps it' if len(kept) == 1 else 'keep theirs'}")
    logarithmic = min(values) > 0 and max(values) / min(values) > 5
    axis: dict[str, Any] = {"title": {"text": "learning rate"}, "tickformat": "~g"}
    if logarithmic:
        axis |= {"type": "log", "dtick": 1 if max(values) / min(values) > 100 else "D2"}
    return Figure(
        "Learning rate",
        f"The rate of each epoch's last step: {'; '.join(said)}.",
        data,
        {"xaxis": epochs(max(row[0] for g in drawn for row in g.by_epoch("lr"))), "yaxis": axis},
    )


def last_epochs(groups: Sequence[Group], title: str = "The last epochs") -> Figure | None:
    """Every one of the last epochs of every seed as a point, against the target."""
    drawn = [g for g in groups if any(r.last for r in g.ended)]
    if not drawn:
        return None
    target = _target(drawn)
    low, high = scale([value for g in drawn for r in g.ended for value in r.last], target)
    data = []
    names = [text(g.label) for g in drawn]
    for number, g in enumerate(drawn):
        points = [
            # Each seed has a line of its own; of a single one each epoch has, or equal ones would hide.
            (
                value,
                _spread(i, len(g.ended)) if len(g.ended) > 1 else _spread(j, len(r.last)),
                r.seed,
                r.history[j - len(r.last)].epoch if r.history else j + 1,
            )
            for i, r in enumerate(g.ended)
            for j, value in enumerate(r.last)
        ]
        row = len(drawn) - 1 - number
        data.append(
            {
                "x": [p[0] for p in points],
                "y": [row + p[1] for p in points],
                "customdata": [[p[2], p[3]] for p in points],
                "mode": "markers",
                "marker": {"color": _colour(number), "size": 9, "opacity": 0.75, "symbol": "circle"},
                "hovertemplate": "%{x:.2f} %, seed %{customdata[0]}, epoch %{customdata[1]}"
                f"<extra>{names[number]}</extra>",
                "showlegend": False,
            }
        )
        data.append(
            {
                "x": [g.mean],
                "y": [row],
                "mode": "markers",
                "marker": {"symbol": "line-ns", "size": 26, "line": {"width": 3, "color": "var(--ink)"}},
                "hovertemplate": f"mean %{{x:.3f}} %<extra>{names[number]}</extra>",
                "showlegend": False,
            }
        )
    off = [g.label for g in drawn if any(value < low for r in g.ended for value in r.last)]
    above = [g.label for g in drawn if all(value >= target for r in g.ended for value in r.last)]
    if math.isnan(target):
        see = "A point is one of the last epochs of one seed, the bar their mean"
    else:
        held = (
            f"all points of {_listed(above)} are right of the target" if above else "no row is wholly right of it"
        )
        see = f"A point is one of the last epochs of one seed, the bar their mean: {held}"
    if off:
        see += f"; {_listed(off)} {'has' if len(off) == 1 else 'have'} points left of the scale"
    layout = {
        "xaxis": accuracies(f"{_split(drawn)} accuracy, %", low, high),
        "yaxis": {
            "tickvals": [len(drawn) - 1 - i for i in range(len(drawn))],
            "ticktext": [_short(name) for name in names],
            "range": [-0.6, len(drawn) - 0.4],
            "zeroline": False,
            "showgrid": False,
            "fixedrange": True,
        },
        "height": 110 + _rows(names, 46),
        "hovermode": "closest",
        **_target_line(target, "x"),
    }
    return Figure(title, f"{see}.", data, layout)


def _spread(index: int, count: int) -> float:
    """Where a seed's points lie in its row, from -0.28 to 0.28."""
    return 0.0 if count < 2 else 0.28 - 0.56 * index / (count - 1)


def _short(label: str, most: int = 13) -> str:
    """A label in up to three lines that fit beside a figure on a phone."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + len(word) >= most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines if len(lines) < 4 else [*lines[:2], f"{lines[2]} …"])


def _rows(labels: Sequence[str], least: int) -> int:
    """Pixels that rows with these labels need."""
    return len(labels) * max(least, 12 + 16 * max(_short(label).count("<br>") + 1 for label in labels))


def classes(groups: Sequence[Group]) -> Figure | None:
    """Accuracy by class, a row a group."""
    drawn = [g for g in groups if g.confusion and all(sum(row) for row in g.confusion)]
    drawn = [g for g in drawn if g.first.classes == drawn[0].first.classes]
    if not drawn:
        return None
    names = [text(name) for name in drawn[0].first.classes]
    shares = [[100 * row[i] / sum(row) for i, row in enumerate(g.confusion)] for g in drawn]
    hardest = [names[min(range(len(names)), key=lambda i: row[i])] for row in shares]
    common = statistics.mode(hardest)
    see = (
        f"{common} is the hardest class in {hardest.count(common)} of {len(drawn)} rows"
        if len(drawn) > 1
        else f"{common} is the hardest class, {min(shares[0]):.2f} % right"
    )
    ordered = sorted(share for row in shares for share in row)
    data = [
        {
            "type": "heatmap",
            "z": shares[::-1],
            "x": names,
            "y": [_short(text(g.label)) for g in drawn][::-1],
            "texttemplate": "%{z:.1f}",
            "hovertemplate": "%{y}<br>class %{x}: %{z:.2f} %<extra></extra>",
            "colorscale": [[0, "var(--heat2)"], [0.5, "var(--heat1)"], [1, "var(--heat0)"]],
            "zmin": min(99.0, ordered[len(ordered) // 10]),
            "zmax": 100,
            "showscale": False,
            "xgap": 2,
            "ygap": 2,
        }
    ]
    layout = {
        "xaxis": {"title": {"text": "class"}, "type": "category", "showgrid": False, "ticks": ""},
        "yaxis": {"showgrid": False, "ticks": "", "type": "category"},
        "height": 110 + _rows([text(g.label) for g in drawn], 40),
        "hovermode": "closest",
    }
    return Figure(
        "Accuracy by class", f"{see}; the darker a cell, the more of its images are wrong.", data, layout
    )


def confusion(g: Group) -> Figure | None:
    """Truth against guess; the colour shows the mistakes only, which the diagonal would drown."""
    matrix, names = g.confusion, [text(name) for name in g.first.classes]
    if not matrix or len(names) != len(matrix):
        return None
    count = len(matrix)
    wrong = [[n if i != j else None for j, n in enumerate(row)] for i, row in enumerate(matrix)]
    total = sum(n for row in wrong for n in row if n)
    worst, truth, guess = max((n or 0, i, j) for i, row in enumerate(wrong) for j, n in enumerate(row))
    seeds = f" of {len(g.ended)} seeds" if len(g.ended) > 1 else ""
    see = f"{total:,} of {sum(map(sum, matrix)):,} {g.first.split} images{seeds} are wrong"
    if worst:
        see += f"; the most frequent mistake is {names[truth]} taken for {names[guess]}, {worst:,} times"
    data = [
        {
            "type": "heatmap",
            "z": wrong,
            "text": [[f"{n:,}" if n else "" for n in row] for row in wrong],
            "x": names,
            "y": names,
            "texttemplate": "%{text}",
            "hovertemplate": "%{y} taken for %{x}: %{z:,} times<extra></extra>",
            "colorscale": [[0, "var(--heat0)"], [0.5, "var(--heat1)"], [1, "var(--heat2)"]],
            "zmin": 0,
            "zmax": max(1, worst),
            "showscale": False,
            "xgap": 1,
            "ygap": 1,
        }
    ]
    layout = {
        "xaxis": {"title": {"text": "guess"}, "type": "category", "showgrid": False, "ticks": "", "dtick": 1},
        "yaxis": {
            "title": {"text": "truth"},
            "type": "category",
            "autorange": "reversed",
            "showgrid": False,
            "ticks": "",
            "dtick": 1,
        },
        "annotations": [
            {
                "x": i,
                "y": i,
                "text": f"{matrix[i][i]:,}",
                "showarrow": False,
                "font": {"color": "var(--muted)", "size": 11},
            }
            for i in range(count)
        ],
        "height": 430,
        "hovermode": "closest",
    }
    return Figure("Confusion matrix", f"{see}.", data, layout)


def step(g: Group) -> Figure | None:
    """Training and held-out accuracy of one step by epoch."""
    rows = g.by_epoch("accuracy")
    if not rows:
        return None
    split = text(g.first.split)
    data = [
        *_lines(g, "train_accuracy", 1, "training", "epoch %{x}: %{y:.2f} %", dash="dash"),
        *_lines(g, "accuracy", 0, split, "epoch %{x}: %{y:.2f} %"),
    ]
    target = g.first.target
    late = [epoch for r in g.runs for epoch in r.history[len(r.history) // 3 :]]
    low, high = scale([value for epoch in late for value in (epoch.accuracy, epoch.train_accuracy)], target)
    gap = g.by_epoch("train_accuracy")[-1][1] - rows[-1][1]
    see = f"In the last epoch training is {abs(gap):.2f} points {'above' if gap > 0 else 'below'} {split}"
    if target > high:
        see += f"; the target, {target:g} %, is above the scale"
    layout = {
        "xaxis": epochs(rows[-1][0]),
        "yaxis": accuracies("accuracy, %", low, high),
        "height": 370,
        **_target_line(target),
    }
    return Figure("Training and " + split, f"{see}.", data, layout)


def differences(found: Sequence[Difference]) -> Figure | None:
    """Every group's difference to the reference with its interval."""
    drawn = [each for each in found if each.low is not None and each.high is not None]
    if not drawn:
        return None
    data = []
    for told, colour, name in (
        (True, "var(--c0)", "can be told from noise"),
        (False, "var(--muted)", "cannot, or one seed only"),
    ):
        chosen = [(i, each) for i, each in enumerate(drawn) if each.told == told]
        if chosen:
            data.append(
                {
                    "x": [each.points for _, each in chosen],
                    "y": [len(drawn) - 1 - i for i, _ in chosen],
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [(each.high or 0.0) - each.points for _, each in chosen],
                        "arrayminus": [each.points - (each.low or 0.0) for _, each in chosen],
                        "color": colour,
                        "thickness": 2,
                        "width": 5,
                    },
                    "customdata": [[each.low, each.high, text(each.label)] for _, each in chosen],
                    "mode": "markers",
                    "name": name,
                    "marker": {"color": colour, "size": 10, "symbol": "circle" if told else "circle-open"},
                    "hovertemplate": "%{customdata[2]}<br>%{x:+.2f} points, %{customdata[0]:+.2f} to "
                    "%{customdata[1]:+.2f}<extra></extra>",
                }
            )
    far = [each.label for each in drawn if each.points < -FAR]
    near = [each for each in drawn if each.label not in far] or drawn
    ends = [0.0, *(end for each in near for end in (each.low or 0.0, each.high or 0.0))]
    pad = 0.08 * (max(ends) - min(ends))
    clear = sum(each.told for each in drawn)
    see = f"The interval of {clear} of {len(drawn)} differences to {drawn[0].reference} leaves zero out"
    if not any(each.seeds for each in drawn):
        see = (
            "Without seeds on both sides the intervals are about the choice of images alone: "
            "none says what other seeds would give"
        )
    if len(near) < len(drawn):
        see += f"; {_listed(far)} {'is' if len(far) == 1 else 'are'} left of the scale"
    layout = {
        "xaxis": {
            "title": {"text": "difference, points"},
            "zeroline": True,
            "range": [min(ends) - pad, max(ends) + pad],
        },
        "yaxis": {
            "tickvals": list(range(len(drawn))),
            "ticktext": [_short(text(each.label)) for each in reversed(drawn)],
            "range": [-0.6, len(drawn) - 0.4],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
        "height": 140 + _rows([text(each.label) for each in drawn], 40),
        "hovermode": "closest",
    }
    return Figure(f"Difference to the best, {drawn[0].reference}", f"{see}.", data, layout)
