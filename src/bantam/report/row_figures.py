"""Figures with a row for each group: its last epochs, its difference to the best, its classes and mistakes."""

import math
import statistics
import textwrap
from collections.abc import Sequence

import plotly.graph_objects as go

from bantam.report import figures
from bantam.report.figures import FAR, Figure, text
from bantam.report.groups import Difference, Group
from bantam.report.numbers import listed, plural

HEAT = [[0, "var(--heat0)"], [0.5, "var(--heat1)"], [1, "var(--heat2)"]]
"""From few mistakes to many."""


def _rows(labels: Sequence[str], least: int, room: int) -> go.Figure:
    """An empty figure with a row for each label, the first one on top; a row has at least so many pixels."""
    wrapped = [
        textwrap.wrap(text(each), 13, break_long_words=False, max_lines=3, placeholder=" …") for each in labels
    ]
    row = max(least, 12 + 16 * max(map(len, wrapped)))
    plot = go.Figure(layout={"height": room + row * len(labels), "hovermode": "closest"})
    names = ["<br>".join(lines) for lines in reversed(wrapped)]
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.6, len(names) - 0.4]}
    return plot.update_yaxes(**ticks, zeroline=False, showgrid=False, fixedrange=True)


def last_epochs(groups: Sequence[Group], title: str = "The last epochs") -> Figure | None:
    """Every one of the last epochs of every seed as a point, against the target."""
    drawn = [g for g in groups if any(r.last for r in g.ended)]
    if not drawn:
        return None
    target = figures.common_target(drawn)
    points = [(g.label, value) for g in drawn for r in g.ended for value in r.last]
    low, high = figures.scale([value for _, value in points], target)
    plot = _rows([g.label for g in drawn], least=46, room=110)
    for series, g in enumerate(drawn):
        _add_points(plot, g, series, len(drawn) - 1 - series)
    plot.update_xaxes(figures.accuracy_axis(drawn, low, high))
    figures.draw_line(plot, target, f"target {target:g} %", "x")
    figures.note_outside(plot, [label for label, value in points if value < low], "left of")
    see = "A point is one of the last epochs of one seed, the bar their mean"
    if not math.isnan(target):
        above = [g.label for g in drawn if all(value >= target for r in g.ended for value in r.last)]
        see += (
            f": all points of {listed(above)} are right of the target"
            if above
            else ": no row is wholly right of it"
        )
    return Figure(title, f"{see}.", plot)


def _add_points(plot: go.Figure, g: Group, series: int, row: int) -> None:
    """Add the last epochs of a group in their row, and their mean as a bar."""
    x, y, named = [], [], []
    for i, r in enumerate(g.ended):
        for j, value in enumerate(r.last):
            # Each seed has a line of its own; of a single one each epoch has, or equal ones would hide.
            part, count = (i, len(g.ended)) if len(g.ended) > 1 else (j, len(r.last))
            x.append(value)
            y.append(row + (0.28 - 0.56 * part / (count - 1) if count > 1 else 0))
            named.append([r.seed, r.history[j - len(r.last)].epoch if len(r.history) >= len(r.last) else j + 1])
    name = f"<extra>{text(g.label)}</extra>"
    marker = {"color": figures.series_colour(series), "size": 9, "opacity": 0.75}
    hover = "%{x:.2f} %, seed %{customdata[0]}, epoch %{customdata[1]}" + name
    plot.add_scatter(
        x=x, y=y, customdata=named, mode="markers", marker=marker, hovertemplate=hover, showlegend=False
    )
    bar = {"symbol": "line-ns", "size": 26, "line": {"width": 3, "color": "var(--ink)"}}
    mean = "mean %{x:.3f} %" + name
    plot.add_scatter(x=[g.mean], y=[row], mode="markers", marker=bar, hovertemplate=mean, showlegend=False)


def differences(found: Sequence[Difference]) -> Figure | None:
    """Every group's difference to the reference with its interval."""
    drawn = [each for each in found if each.low is not None]
    if not drawn:
        return None
    plot = _rows([each.label for each in drawn], least=40, room=140)
    for clear, colour, name in (
        (True, "var(--c0)", "noise does not explain it"),
        (False, "var(--muted)", "noise may explain it, or one seed only"),
    ):
        rows = [(len(drawn) - 1 - i, each) for i, each in enumerate(drawn) if each.distinguishable == clear]
        ends = [((each.low or 0.0), each.points, (each.high or 0.0)) for _, each in rows]
        above, below = [high - middle for _, middle, high in ends], [middle - low for low, middle, _ in ends]
        hover = (
            "%{customdata[2]}<br>%{x:+.2f} points, %{customdata[0]:+.2f} to %{customdata[1]:+.2f}<extra></extra>"
        )
        plot.add_scatter(
            x=[each.points for _, each in rows],
            y=[row for row, _ in rows],
            error_x={"array": above, "arrayminus": below, "color": colour, "thickness": 2, "width": 5},
            customdata=[[each.low, each.high, text(each.label)] for _, each in rows],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 10, "symbol": "circle" if clear else "circle-open"},
            hovertemplate=hover,
            visible=bool(rows),
        )
    near = [each for each in drawn if each.points >= -FAR] or drawn
    limits = [0.0, *(end for each in near for end in (each.low or 0.0, each.high or 0.0))]
    pad = 0.08 * (max(limits) - min(limits))
    plot.update_xaxes(title_text="difference, points", zeroline=True, range=[min(limits) - pad, max(limits) + pad])
    figures.note_outside(plot, [each.label for each in drawn if each not in near], "left of")
    count = sum(each.distinguishable for each in drawn)
    see = f"The interval of {count} of {len(drawn)} differences to {drawn[0].reference} leaves zero out"
    if not any(each.seeds for each in drawn):
        see = (
            "Without seeds on both sides the intervals are about the choice of images alone: "
            "none says what other seeds would give"
        )
    return Figure(f"Difference to the best, {drawn[0].reference}", f"{see}.", plot)


def classes(groups: Sequence[Group]) -> Figure | None:
    """Accuracy by class, a row a group; without groups that never left chance, whose classes say nothing."""
    drawn = [g for g in groups if g.confusion and all(map(sum, g.confusion)) and not g.at_chance]
    drawn = [g for g in drawn if g.first.classes == drawn[0].first.classes]
    if not drawn:
        return None
    names = [text(name) for name in drawn[0].first.classes]
    shares = [[100 * row[i] / sum(row) for i, row in enumerate(g.confusion)] for g in drawn]
    ordered = sorted(share for row in shares for share in row)
    plot = _rows([g.label for g in drawn], least=40, room=110)
    colours = [[0, "var(--heat2)"], [0.5, "var(--heat1)"], [1, "var(--heat0)"]]
    heat = {"colorscale": colours, "zmax": 100, "showscale": False}
    heat |= {"zmin": min(99.0, ordered[len(ordered) // 10]), "xgap": 2, "ygap": 2}
    hover = "class %{x}: %{z:.2f} %<extra></extra>"
    plot.add_heatmap(z=shares[::-1], x=names, texttemplate="%{z:.1f}", hovertemplate=hover, **heat)
    plot.update_xaxes(title_text="class", type="category", showgrid=False)
    hardest = [names[row.index(min(row))] for row in shares]
    common = statistics.mode(hardest)
    see = f"{common} is the hardest class"
    see += f" in {hardest.count(common)} of {len(drawn)} rows" if len(drawn) > 1 else f", {ordered[0]:.2f} % right"
    guessing = [g.label for g in groups if g.at_chance]
    see += f"; without {listed(guessing)}, which never left chance" if guessing else ""
    return Figure("Accuracy by class", f"{see}; the darker a cell, the more of its images are wrong.", plot)


def confusion(g: Group) -> Figure | None:
    """Truth against guess; the colour shows the mistakes only, which the diagonal would drown."""
    matrix, names = g.confusion, [text(name) for name in g.first.classes]
    if not matrix or len(names) != len(matrix) or g.at_chance:
        return None
    wrong = [[n if i != j else None for j, n in enumerate(row)] for i, row in enumerate(matrix)]
    worst, truth, guess = max((n or 0, i, j) for i, row in enumerate(wrong) for j, n in enumerate(row))
    written = [[f"{n:,}" if n else "" for n in row] for row in wrong]
    plot = go.Figure(layout={"height": 430, "hovermode": "closest"})
    heat = {"colorscale": HEAT, "zmin": 0, "zmax": max(1, worst), "showscale": False, "xgap": 1, "ygap": 1}
    hover = "%{y} taken for %{x}: %{z:,} times<extra></extra>"
    plot.add_heatmap(z=wrong, x=names, y=names, text=written, texttemplate="%{text}", hovertemplate=hover, **heat)
    for i, row in enumerate(matrix):
        font = {"color": "var(--muted)", "size": 11}
        plot.add_annotation(x=i, y=i, text=f"{row[i]:,}", showarrow=False, font=font)
    plot.update_xaxes(title_text="guess", type="category", showgrid=False, dtick=1)
    plot.update_yaxes(title_text="truth", type="category", showgrid=False, dtick=1, autorange="reversed")
    seeds = f" of {plural(len(g.ended), 'seed')}" if len(g.ended) > 1 else ""
    total = sum(n or 0 for row in wrong for n in row)
    see = f"{total:,} of {sum(map(sum, matrix)):,} {g.first.split} images{seeds} are wrong"
    if worst:
        see += f"; the most frequent mistake is {names[truth]} taken for {names[guess]}, {plural(worst, 'time')}"
    return Figure("Confusion matrix", f"{see}.", plot)
