"""The figures of a search. What Optuna says of settings is about its completed trials, as a study in memory."""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from bantam import budget
from bantam.report.figures import Figure, accuracies, draw_line, epochs, note_outside, text
from bantam.report.folders import Study
from bantam.report.numbers import plural, shown
from bantam.trials_csv import Trial

MANY = 150
"""Trials from which on they are drawn smaller and fainter, or they would hide each other."""

MARKERS = {"complete": ("c0", "circle"), "pruned": ("c4", "x-thin"), "over budget": ("c1", "triangle-up-open")}
"""Colour and symbol of a trial by its state; other states have no number to draw."""

LINES = {"complete": ("var(--others)", 1.0), "pruned": ("var(--c4)", 1.2), "running": ("var(--c2)", 1.2)}
"""Colour and width of a trial's line by its state."""

BEST = {"color": "var(--c0)", "width": 2, "shape": "hv"}
"""The line of the best so far, and that of the front."""


def draw(study: Study) -> tuple[list[Figure], list[str]]:
    """The figures of a study, and sentences about those that cannot be drawn."""
    if not study.trials:
        return [], ["No trial has ended yet."]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a rebuilt study is no news
    try:
        rebuilt = rebuild(study)
        of_optuna = [importances(study, rebuilt), parallel(study, rebuilt)]
    finally:
        optuna.logging.set_verbosity(verbosity)  # a search may go on in this process
    found = [history(study), sizes(study), intermediate(study), *of_optuna]
    return [each for each in found if isinstance(each, Figure)], [each for each in found if isinstance(each, str)]


@contextmanager
def _without_matplotlib() -> Iterator[None]:
    """What is imported meanwhile finds no matplotlib, which takes Optuna a third of a second to import.

    It would draw its figures with that too, and nobody asks it to.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in ("matplotlib", "matplotlib.pyplot") if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            modules.pop(name, None)


def rebuild(study: Study) -> optuna.Study:
    """The completed trials of a folder, in their order, as a study of Optuna's; its values are accuracies."""
    found = {key: [t.settings[key] for t in study.trials if key in t.settings] for key in study.keys}
    ranges = {key: _distribution(values) for key, values in found.items()}
    rebuilt = optuna.create_study(direction="maximize")
    for t in sorted(study.completed, key=lambda t: t.number):
        own = {key: ranges[key] for key in t.settings}
        rebuilt.add_trial(create_trial(value=t.objective, params=t.settings, distributions=own))
    return rebuilt


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """The range that the values of a setting span."""
    if not all(isinstance(value, int | float) for value in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
    return kind(min(values), max(values), log=min(values) > 0 and max(values) / min(values) >= 20)


def _scale(values: Sequence[float], others: Sequence[float] = ()) -> tuple[float, float]:
    """The scale for the better two thirds of many accuracies, and for whatever is above them, `others` too."""
    low, high = sorted(values)[len(values) // 3], max(*values, *others, -math.inf)
    pad = max(0.1, 0.08 * (high - low))
    return max(0.0, low - pad), min(100.0, high + pad)


def _mark_states(plot: go.Figure, study: Study, sizes: bool = False) -> None:
    """Draw a mark for every trial by its state, over its number or its cost, and say how many are too low.

    A pruned one stands at its last accuracy, one without any at the bottom of the scale.
    """
    many = len(study.trials) > MANY
    low, high = _scale([t.objective or 0.0 for t in study.completed])
    if sizes:  # with the front, but for what is far below
        reached = [t.objective or 0.0 for t in study.front]
        low = min([low, *(value for value in reached if value > high - 4 * (high - low))])
    for state, (colour, symbol) in MARKERS.items():
        chosen = [t for t in study.trials if t.state == state and (study.cost in t.costs or not sizes)]
        labels, heights = [], []
        for t in chosen:
            last = max(low, t.epochs[-1][1]) if t.epochs and state == "pruned" else low
            heights.append(round(last if t.objective is None else t.objective, 4))
            first = text(t.reason or state) if t.objective is None else f"{t.objective:.3f} %"
            settings = [f"{text(key)} {text(shown(value))}" for key, value in t.settings.items()]
            labels.append("<br>".join([f"trial {t.number}: {first}", *settings]))
        # Thin and open symbols consist of their line.
        line = {"width": 0 if symbol == "circle" else 1.2 if many else 1.8, "color": f"var(--{colour})"}
        look = {"color": f"var(--{colour})", "symbol": symbol, "size": 5 if many else 8, "line": line}
        hover = "%{text}" + f"<br>%{{x:,}} {budget.COSTS[study.cost]}" * sizes + "<extra></extra>"
        at = [t.costs[study.cost] if sizes else t.number for t in chosen]
        named = {"text": labels, "name": f"{state} ({len(chosen)})", "hovertemplate": hover}
        if chosen:
            plot.add_scatter(x=at, y=heights, mode="markers", marker=look, opacity=0.7 if many else 1, **named)
    if outside := sum((t.objective or 0.0) < low for t in study.completed):
        note_outside(plot, [plural(outside, "completed trial")])
    plot.update_yaxes(accuracies("validation", low - 0.06 * (high - low), high))


def history(study: Study) -> Figure | None:
    """Accuracy of the trials in their order; pruned and over-budget trials below, the best so far as a line."""
    if study.top is None:
        return None
    reached = {t.number: -math.inf if t.objective is None else round(t.objective, 4) for t in study.trials}
    look = {"mode": "lines", "line": BEST, "hovertemplate": "best so far %{y:.3f} %<extra></extra>"}
    best = accumulate((reached[number] for number in sorted(reached)), max)
    plot = go.Figure(go.Scatter(x=sorted(reached), y=[*best], name="best so far", **look))
    _mark_states(plot, study)
    plot.update_xaxes(title_text="trial", tickformat="d", rangemode="nonnegative")
    if len(study.trials) <= 9:  # else Plotly would label every half of a trial, rounded
        plot.update_xaxes(dtick=1)
    note = "A pruned trial stands at its last accuracy, or at the bottom of the scale."
    return Figure("History", "", plot, note)


def sizes(study: Study) -> Figure | None:
    """Accuracy against parameters or another cost, with the Pareto front and the budget, where networks differ."""
    front, words = study.front, budget.COSTS[study.cost]
    if not front or len({t.costs[study.cost] for t in study.trials if study.cost in t.costs}) < 2:
        return None
    look = {"mode": "lines", "line": BEST, "name": "Pareto front", "hoverinfo": "skip", "showlegend": True}
    plot = go.Figure(go.Scatter(x=[t.costs[study.cost] for t in front], y=[t.objective for t in front], **look))
    _mark_states(plot, study, sizes=True)
    plot.update_xaxes(title_text=words, tickformat=",d")
    limit = study.best[0].settings.get(f"budget.{study.cost}") if study.best else None
    if isinstance(limit, int):
        draw_line(plot, limit, f"budget: fewer than {limit:,}", "x")
    note = f"The line is the front: where it bends, no trial with as few {words} is as accurate."
    return Figure("Accuracy and size", "", plot, note)


def _regroup(plot: go.Figure, lines: Mapping[int, Sequence[Any]], looks: Sequence[Any], hover: str) -> None:
    """Make one trace with gaps of the lines of each group of trials: a thousand would take long to draw.

    The line of a trial, by its number, consists of points, each with its label; a look is a name, trials, a
    colour and a width.
    """
    plot.data = []
    for name, trials, colour, width in looks:
        drawn = [t.number for t in trials if t.number in lines]
        if drawn:
            points = (point for number in drawn for point in (*lines[number], (None, None, "")))
            x, y, labels = zip(*points, strict=True)
            heights = [height if height is None else round(height, 4) for height in y]
            look = {"mode": "lines+markers" if len(lines) <= MANY else "lines", "marker": {"size": 4}}
            look |= {"line": {"color": colour, "width": width}, "hovertemplate": f"{hover}<extra></extra>"}
            title = f"{name} ({len(drawn)})" if len(drawn) > 1 else f"{name}, trial {drawn[0]}"
            plot.add_scatter(x=x, y=heights, text=labels, name=title, **look)
    plot.update_layout(hovermode="closest", showlegend=True)


def intermediate(study: Study) -> Figure | None:
    """Accuracy by epoch of every trial."""
    lines = {t.number: [(*point, str(t.number)) for point in t.epochs] for t in study.trials if t.epochs}
    if not lines:
        return None
    plot, drawn = go.Figure(), [t for t in study.trials if t.epochs]
    best = study.front if study.multi_objective else [study.top] if study.top else []
    looks = [(state, [t for t in drawn if t.state == state and t not in best], *LINES[state]) for state in LINES]
    looks.append(("front" if study.multi_objective else "best", best, "var(--c0)", 3.0))
    _regroup(plot, lines, looks, "trial %{text}, epoch %{x}: %{y:.2f} %")
    ends = [t.epochs[-1][1] for t in drawn]
    low, high = _scale(ends, [height for t in drawn for _, height in t.epochs])
    if outside := sum(end < low for end in ends):
        note_outside(plot, [f"the ends of {plural(outside, 'line')}"])
    plot.update_yaxes(accuracies("validation", low, high))
    plot.update_xaxes(epochs(max(t.epochs[-1][0] for t in drawn)))
    note = "A line is the first seed of a trial." if any(t.seeds for t in drawn) else ""
    return Figure("Epoch by epoch", "", plot, note)


def importances(study: Study, rebuilt: optuna.Study) -> Figure | str:
    """How much each setting decides, by Optuna; else why it cannot be said."""
    done = study.completed
    keys = [key for key in _differing(study) if all(key in t.settings for t in done)]
    if len(done) < 4 or len(keys) < 2 or len({t.objective for t in done}) < 2:
        return "No importances: they need four completed trials that differ in accuracy and in two settings."
    try:
        shares = optuna.importance.get_param_importances(rebuilt, params=keys)  # loads pandas, as late as this
    except (RuntimeError, ValueError) as error:
        return f"No importances: Optuna cannot say ({error})."
    if not sum(shares.values()) > 0:
        return "No importances: no setting explains which trials are the better ones."
    names, values = [text(key) for key in reversed(shares)], [*reversed(shares.values())]
    look = {"orientation": "h", "marker_color": "var(--c0)", "cliponaxis": False, "textposition": "outside"}
    look |= {
        "text": [f"{100 * share:.0f} %" for share in values],
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }
    plot = go.Figure(go.Bar(x=values, y=names, **look), {"height": 120 + 34 * len(keys), "bargap": 0.35})
    plot.update_xaxes(title_text="importance", tickformat=".0%", range=[0, 1.2 * values[-1] + 0.03])
    plot.update_yaxes(showgrid=False)
    most = next(iter(shares))
    see = f"{most} decides most (PED-ANOVA: what sets the better ones of {len(done)} completed trials apart)."
    return Figure("Importance", see, plot)


def _differing(study: Study) -> list[str]:
    """The settings that are not the same for all completed trials, which may be without them."""
    return [key for key in study.keys if len({t.settings.get(key) for t in study.completed}) > 1]


def parallel(study: Study, rebuilt: optuna.Study) -> Figure | None:
    """Every completed trial as a line through its settings, the best tenth in colour, or the front."""
    done, keys = sorted(study.completed, key=lambda t: t.number), _differing(study)
    if len(done) < 2 or not keys:
        return None
    with _without_matplotlib():
        plot = visualization.plot_parallel_coordinate(rebuilt, params=keys)
    names = ["accuracy", *map(text, sorted(keys))]  # in Optuna's order, which cuts long ones
    lines = {}
    for t, line in zip(done, plot.data, strict=False):
        values = [f"{t.objective:.3f} %", *(text(value) for _, value in line.customdata[1:])]
        labels = [f"trial {t.number}<br>{name} {value}" for name, value in zip(names, values, strict=True)]
        lines[t.number] = [*zip(line.x, line.y, labels, strict=True)]
    ranked = sorted(done, key=lambda t: t.objective or 0.0)
    best = study.front if study.multi_objective else ranked[-max(1, round(len(done) / 10)) :]
    name = "front" if study.multi_objective else "best tenth" if len(best) > 1 else "best"
    others = [t for t in done if t not in best]
    _regroup(plot, lines, [("others", others, "var(--others)", 1.0), (name, best, "var(--c0)", 2.0)], "%{text}")
    low, high = (t.objective or 0.0 for t in (ranked[0], ranked[-1]))
    for tick in plot.layout.annotations:  # within the picture, and accuracies with all their figures
        label = text(tick.text) if tick.x else f"{low + tick.y * (high - low):.2f}"
        tick.update(text=label, xanchor="left", xshift=4, bgcolor="var(--veil)")
        tick.font = {"size": 11, "color": "var(--muted)"}
    plot.update_shapes(line={"color": "var(--line)"})
    titles = [re.sub(r"\.|_(?=.{8})", r"\g<0><br>", name) for name in names]
    plot.update_xaxes(ticktext=titles, side="top", fixedrange=True, range=[-0.2, len(keys) + 0.6])
    plot.update_layout(height=420)
    return Figure("Settings side by side", _ranges(study, name, best), plot)


def _ranges(study: Study, name: str, best: Sequence[Trial]) -> str:
    """Between which values the middle half of the best trials has each number; empty where there is none."""
    ranges, quarter = [], len(best) // 4
    for key in study.keys:
        values: list[Any] = sorted(t.settings[key] for t in best if isinstance(t.settings.get(key), int | float))
        if len(values) == len(best) > 1:
            ends = dict.fromkeys((shown(values[quarter]), shown(values[-1 - quarter])))
            ranges.append(f"{key} {' to '.join(ends)}")
    return f"The {name} has mostly {', '.join(ranges)}." if ranges else ""
