"""The figures of runs and groups: by epoch, and with a row for each group."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from bantam.report.axes import FAR, Figure, accuracies, begins, draw_line, epochs, note_outside, scale, text
from bantam.report.groups import Difference, Group, same_images
from bantam.report.numbers import apart, listed, plural, shown

SERIES = 7
"""Colours of the page; further groups are drawn in grey."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 2px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
HEAT = ("var(--heat0)", "var(--heat1)", "var(--heat2)")
"""From few mistakes to many."""


def _colour(series: int) -> str:
    return f"var(--c{series})" if series < SERIES else "var(--faint)"


def _target(plot: go.Figure, groups: Sequence[Group], axis: str = "y") -> float:
    """Draw the target that all groups have; nan, and no line, where they have several."""
    targets = {g.first.target for g in groups}
    target = targets.pop() if len(targets) == 1 else math.nan
    draw_line(plot, target, f"target {target:g} %", axis)
    return target


def _accuracy_axis(groups: Sequence[Group], low: float, high: float) -> dict[str, Any]:
    """An axis of the accuracy that these groups were scored by."""
    splits = {g.first.split for g in groups}
    return accuracies(f"{'held-out' if len(splits) > 1 else splits.pop()} accuracy, %", low, high)


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
        behind.update(line={"color": _colour(series), "width": 1}, opacity=0.55)
    else:
        behind.update(x=[*at, *at[::-1]], y=[*highest, *lowest[::-1]], fill="toself", line_width=0)
        behind.update(fillcolor=_colour(series), opacity=0.18)
    between = "<br>seeds %{customdata[0]:.4~f} to %{customdata[1]:.4~f}" if len(g.runs) > 1 else ""
    line = go.Scatter(x=at, y=centre, customdata=[row[2:] for row in rows], mode="lines+markers")
    line.update(name=name, legendgroup=name, hovertemplate=f"{hover}{between}<extra>{name}</extra>")
    line.line = {"color": _colour(series), "width": 2, "dash": DASHES[series % len(DASHES)]}
    line.marker = {"size": 5, "symbol": SYMBOLS[series % len(SYMBOLS)]}
    return [behind, line] if len(g.runs) > 1 else [line]


def _by_epoch(groups: Sequence[Group], key: str, hover: str) -> go.Figure:
    """The lines of several groups, each in its colour and its dash."""
    lines = [line for i, g in enumerate(groups) for line in _lines(g, key, i, text(g.label), hover)]
    return go.Figure(lines).update_xaxes(epochs(max(row[0] for g in groups for row in g.by_epoch(key))))


def curves(groups: Sequence[Group]) -> Figure | None:
    """Accuracy by epoch, all groups overlaid, enlarged around the target."""
    drawn = [g for g in groups if any(r.history for r in g.runs)]
    if not drawn:
        return None
    plot = _by_epoch(drawn, "accuracy", "epoch %{x}: %{y:.2f} %")
    target = _target(plot, drawn)
    low, high = scale([value for g in drawn for r in g.runs for value in r.accuracies[-5:]], target)
    plot.update_yaxes(_accuracy_axis(drawn, low, high))
    note_outside(plot, [g.label for g in drawn for r in g.runs if r.history and r.accuracies[-1] < low])
    points = [(g, accuracy, epoch) for g in drawn for epoch, accuracy, *_ in g.by_epoch("accuracy")]
    best, accuracy, epoch = max(points, key=lambda point: point[1])
    see = f"{best.label} has the highest epoch, {accuracy:.2f} % in epoch {epoch}"
    see += f" ({'median' if best.spread_out else 'mean'} of its seeds)" if len(best.runs) > 1 else ""
    if not same_images([r for g in drawn for r in g.ended], []):
        see = "These were scored on different images, so their accuracies cannot be compared"
    if any(len(g.runs) > 1 for g in drawn):
        see += "; a band is the range of the seeds; where seeds end far apart, each is a thin line"
    see += begins(drawn, low, "accuracy")
    return Figure("Learning curves", f"{see}.", plot)


def rates(groups: Sequence[Group]) -> Figure | None:
    """Learning rate by epoch."""
    values = {g.label: [row[1] for row in g.by_epoch("lr")] for g in groups if any(r.history for r in g.runs)}
    if not values:
        return None
    plot = _by_epoch([g for g in groups if g.label in values], "lr", "epoch %{x}: %{y:.3g}")
    plot.update_yaxes(title_text="learning rate", tickformat="~g", rangemode="tozero")
    lowest, highest = min(map(min, values.values())), max(map(max, values.values()))
    if lowest > 0 and highest / lowest > 5:
        plot.update_yaxes(type="log", dtick=1 if highest / lowest > 100 else "D2")
    kept = [label for label, own in values.items() if len(set(own)) == 1]
    see = f"; {listed(kept)} {'keeps its' if len(kept) == 1 else 'keep their'} rate" if kept else ""
    return Figure("Learning rate", f"The rate of each epoch's last step{see}.", plot)


def step(g: Group) -> Figure | None:
    """Training and held-out accuracy of one step by epoch."""
    if not any(r.history for r in g.runs):
        return None
    split, hover = text(g.first.split), "epoch %{x}: %{y:.2f} %"
    training = _lines(g, "train_accuracy", 1, "training", hover)
    plot = go.Figure([*training, *_lines(g, "accuracy", 0, split, hover)], {"height": 370})
    target = _target(plot, [g])
    late = [epoch for r in g.runs for epoch in r.history[len(r.history) // 3 :]]
    low, high = scale([value for epoch in late for value in (epoch.accuracy, epoch.train_accuracy)], target)
    plot.update_xaxes(epochs(g.by_epoch("accuracy")[-1][0])).update_yaxes(accuracies("accuracy, %", low, high))
    ends = [r.history[-1] for r in g.runs if r.history]
    outside = ["training" for epoch in ends if epoch.train_accuracy < low]
    note_outside(plot, outside + [split for epoch in ends if epoch.accuracy < low])
    (epoch, trained, *_), (_, accuracy, *_) = (g.by_epoch(key)[-1] for key in ("train_accuracy", "accuracy"))
    when, gap = (f"In epoch {epoch}", trained - accuracy) if g.gap is None else ("In the last epochs", g.gap)
    see = f"{when} training accuracy is {apart(gap, split)}"
    see += f"; the target, {target:g} %, is above the scale" if target > high else ""
    see += begins([g], low, "accuracy", "train_accuracy")
    return Figure(f"Training and {split}", f"{see}.", plot)


def _rows(labels: Sequence[str], least: int, room: int) -> go.Figure:
    """An empty figure with a row for each label, the first one on top; a row has at least so many pixels."""
    how: dict[str, Any] = {"break_long_words": False, "max_lines": 3, "placeholder": " …"}
    wrapped = [textwrap.wrap(text(each), 13, **how) for each in reversed(labels)]
    row = max(least, 12 + 16 * max(map(len, wrapped)))
    plot = go.Figure(layout={"height": room + row * len(labels), "hovermode": "closest"})
    ticks = {"tickvals": list(range(len(labels))), "ticktext": ["<br>".join(lines) for lines in wrapped]}
    return plot.update_yaxes(
        **ticks, range=[-0.6, len(labels) - 0.4], zeroline=False, showgrid=False, fixedrange=True
    )


def last_epochs(groups: Sequence[Group], title: str = "The last epochs") -> Figure | None:
    """Every one of the last epochs of every seed as a point, against the target."""
    drawn = [g for g in groups if any(r.last for r in g.ended)]
    if not drawn:
        return None
    plot = _rows([g.label for g in drawn], least=46, room=110)
    for series, g in enumerate(drawn):
        _add_points(plot, g, series, len(drawn) - 1 - series)
    target = _target(plot, drawn, "x")
    points = [(g.label, value) for g in drawn for r in g.ended for value in r.last]
    low, high = scale([value for _, value in points], target)
    plot.update_xaxes(_accuracy_axis(drawn, low, high))
    note_outside(plot, [label for label, value in points if value < low], "left of")
    see = "A point is one of the last epochs of one seed, the bar their mean"
    above = [g.label for g in drawn if all(value >= target for r in g.ended for value in r.last)]
    if above:
        see += f": all points of {listed(above)} are right of the target"
    elif not math.isnan(target):
        see += ": in no row are all of them right of the target"
    return Figure(title, f"{see}.", plot)


def _add_points(plot: go.Figure, g: Group, series: int, row: int) -> None:
    """Add the last epochs of a group in their row, and their mean as a bar."""
    points = []
    for i, r in enumerate(g.ended):
        for j, value in enumerate(r.last):
            # Each seed has a line of its own; of a single one each epoch has, or equal ones would hide.
            part, count = (i, len(g.ended)) if len(g.ended) > 1 else (j, len(r.last))
            y = row + (0.28 - 0.56 * part / (count - 1) if count > 1 else 0)
            epoch = r.history[j - len(r.last)].epoch if len(r.history) >= len(r.last) else j + 1
            points.append((value, y, [r.seed, epoch]))
    x, heights, named = zip(*points, strict=True)
    name = f"<extra>{text(g.label)}</extra>"
    look: dict[str, Any] = {"mode": "markers", "showlegend": False}
    look["marker"] = {"color": _colour(series), "size": 9, "opacity": 0.75}
    hover = "%{x:.2f} %, seed %{customdata[0]}, epoch %{customdata[1]}" + name
    plot.add_scatter(x=x, y=heights, customdata=named, hovertemplate=hover, **look)
    look["marker"] = {"symbol": "line-ns", "size": 26, "line": {"width": 3, "color": "var(--ink)"}}
    plot.add_scatter(x=[g.mean], y=[row], hovertemplate="mean %{x:.3f} %" + name, **look)


def differences(found: Sequence[Difference]) -> Figure | None:
    """Every group's difference to the reference with its interval."""
    ends = [(each, each.low, each.high) for each in found if each.low is not None and each.high is not None]
    if not ends:
        return None
    plot = _rows([each.label for each, *_ in ends], least=40, room=110)
    told = [each.distinguishable for each, *_ in ends]
    error = {"color": "var(--muted)", "thickness": 2, "width": 5}
    error["array"] = [high - each.points for each, _, high in ends]
    error["arrayminus"] = [each.points - low for each, low, _ in ends]
    plot.add_scatter(
        x=[each.points for each, *_ in ends],
        y=list(range(len(ends)))[::-1],
        error_x=error,
        customdata=[[low, high, text(each.label)] for each, low, high in ends],
        mode="markers",
        marker={"color": "var(--c0)", "size": 10, "symbol": [("circle-open", "circle")[clear] for clear in told]},
        hovertemplate="%{customdata[2]}<br>%{x:+.2f} points, "
        "%{customdata[0]:+.2f} to %{customdata[1]:+.2f}<extra></extra>",
        visible=True,
    )
    near = [end for end in ends if end[0].points >= -FAR] or ends
    lowest, highest = min(0.0, *(low for _, low, _ in near)), max(0.0, *(high for *_, high in near))
    pad = 0.08 * (highest - lowest)
    plot.update_xaxes(title_text="difference, points", zeroline=True, range=[lowest - pad, highest + pad])
    note_outside(plot, [end[0].label for end in ends if end not in near], "left of")
    reference = found[0].reference
    see = f"The interval of {sum(told)} of {len(ends)} differences to {reference} leaves zero out (full points)"
    if not any(each.seeds for each, *_ in ends):
        see = "Without seeds on both sides an interval is about the choice of images alone, not about other seeds"
    return Figure(f"Difference to the best, {reference}", f"{see}.", plot)


NUMBERED = 30
"""Classes up to which cells have their numbers: those of more would be too small to read."""


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
    plot = _rows([g.label for g in drawn], least=40, room=110)
    heat = {"colorscale": HEAT[::-1], "zmin": min(99.0, ordered[len(ordered) // 10]), "zmax": 100}
    hover = {"hovertemplate": "class %{x}: %{z:.2f} %<extra></extra>"}
    hover |= {"texttemplate": "%{z:.1f}"} if len(names) <= NUMBERED else {}
    plot.add_heatmap(z=shares[::-1], x=names, showscale=False, xgap=2, ygap=2, **heat, **hover)
    plot.update_xaxes(title_text="class", type="category", showgrid=False)
    hardest = [names[row.index(min(share for share in row if share is not None))] for row in shares]
    common = statistics.mode(hardest)
    see = f"{common} is the hardest class"
    see += f" in {hardest.count(common)} of {len(drawn)} rows" if len(drawn) > 1 else f", {ordered[0]:.2f} % right"
    guessing = [g.label for g in groups if g.at_chance]
    see += f"; without {listed(guessing)}, which never left chance" if guessing else ""
    return Figure("Accuracy by class", f"{see}; the darker a cell, the more of its images are wrong.", plot)


def confusion(g: Group) -> Figure | None:
    """Truth against guess; the colour shows the mistakes only, which the diagonal would drown."""
    matrix, names = g.confusion, [text(name) for name in g.first.classes]
    if not matrix or g.at_chance:
        return None
    wrong = [[n if i != j else None for j, n in enumerate(row)] for i, row in enumerate(matrix)]
    numbered, (worst, mistake) = len(names) <= NUMBERED, g.mistake
    plot = go.Figure(layout={"height": min(900, max(430, 150 + 20 * len(names))), "hovermode": "closest"})
    heat = {"colorscale": HEAT, "zmin": 0, "zmax": max(1, worst), "showscale": False, "xgap": 1, "ygap": 1}
    heat["hovertemplate"] = "%{y} taken for %{x}: %{z:,} times<extra></extra>"
    heat["texttemplate"] = "%{text}" * numbered
    plot.add_heatmap(z=wrong, x=names, y=names, text=[[shown(n or None) for n in row] for row in wrong], **heat)
    for i, row in enumerate(matrix if numbered else ()):
        font = {"color": "var(--muted)", "size": 11}
        plot.add_annotation(x=i, y=i, text=f"{row[i]:,}", showarrow=False, font=font)
    axis = {"type": "category", "showgrid": False, **({"dtick": 1} if numbered else {})}
    plot.update_xaxes(axis, title_text="guess").update_yaxes(axis, title_text="truth", autorange="reversed")
    seeds = f" of {plural(len(g.ended), 'seed')}" if len(g.ended) > 1 else ""
    total = sum(n or 0 for row in wrong for n in row)
    see = f"{total:,} of {sum(map(sum, matrix)):,} {g.first.split} images{seeds} are wrong"
    see += f"; the most frequent mistake is {mistake}" * bool(mistake)
    return Figure("Confusion matrix", f"{see}.", plot)
