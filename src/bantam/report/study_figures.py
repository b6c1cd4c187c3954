"""The figures of a search, and how much each setting decides."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from bantam.report.figures import Figure, accuracies, epochs, text
from bantam.report.folders import Study, Trial
from bantam.report.groups import COLLAPSE

MANY = 150
"""Trials from which on they are drawn smaller and fainter, or they would hide each other."""

TRIALS = {"complete": ("c0", "circle"), "pruned": ("c4", "x-thin"), "over budget": ("c1", "triangle-up-open")}
"""Colour and symbol of a trial by its state; other states have no number to draw."""


def _trials_scale(values: Sequence[float]) -> tuple[float, float]:
    """The scale for the better two thirds of many accuracies."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 3], ordered[-1]
    pad = max(0.1, 0.08 * (high - low))
    return max(0.0, low - pad), min(100.0, high + pad)


def history(study: Study) -> Figure | None:
    """Accuracy of the trials in their order; pruned and over-budget trials below, the best so far as a line."""
    done = study.completed
    if not done:
        return None
    low, high = _trials_scale([t.objective or 0.0 for t in done])
    best: list[float] = []
    for t in done:
        best.append(max([t.objective or 0.0, *best[-1:]]))
    data: list[dict[str, Any]] = [
        {
            "x": [t.number for t in done],
            "y": best,
            "mode": "lines",
            "name": "best so far",
            "line": {"color": "var(--c0)", "width": 2, "shape": "hv"},
            "hovertemplate": "best so far %{y:.3f} %<extra></extra>",
        }
    ]
    for state, (colour, symbol) in TRIALS.items():
        chosen = [t for t in study.trials if t.state == state]
        if not chosen:
            continue
        heights = [_drawn(t, low) for t in chosen]
        data.append(
            {
                "x": [t.number for t in chosen],
                "y": heights,
                "customdata": [[_said(t)] for t in chosen],
                "mode": "markers",
                "name": f"{state} ({len(chosen)})",
                "marker": _marker(colour, symbol, len(study.trials)),
                "hovertemplate": "trial %{x}<br>%{customdata[0]}<extra></extra>",
            }
        )
    first = done[[b == best[-1] for b in best].index(True)]
    see = (
        f"Trial {first.number} is the {'most accurate' if study.two else 'best'}, {best[-1]:.3f} %; "
        + ", ".join(f"{study.count(state)} {state}" for state in ("complete", "pruned", "over budget", "failed"))
    )
    under = [t for t in done if (t.objective or 0.0) < low]
    see += f"; {len(under)} completed below the scale" if under else ""
    layout = {
        "xaxis": {"title": {"text": "trial"}, "tickformat": "d", "rangemode": "nonnegative"},
        "yaxis": accuracies("validation accuracy, %", low - 0.06 * (high - low), high),
        "hovermode": "closest",
    }
    return Figure("History", f"{see}.", data, layout)


def _marker(colour: str, symbol: str, count: int) -> dict[str, Any]:
    """The mark of one of `count` trials; thin and open symbols consist of their line."""
    many = count > MANY
    line = {"width": 0 if symbol == "circle" else 1.2 if many else 1.8, "color": f"var(--{colour})"}
    mark = {"color": f"var(--{colour})", "symbol": symbol, "size": 5 if many else 8, "line": line}
    return mark | {"opacity": 0.7 if many else 1}


def _drawn(t: Trial, low: float) -> float:
    """Where a trial is drawn: at its accuracy, its last one where it was pruned, at the bottom without any."""
    if t.objective is not None:
        return t.objective
    return max(low, t.epochs[-1][1]) if t.epochs and t.state == "pruned" else low


def _said(t: Trial) -> str:
    """A trial in lines for the one who hovers over it."""
    lines = [f"{t.objective:.3f} %" if t.objective is not None else text(t.reason or t.state)]
    lines += [f"{text(key)} {_brief(value)}" for key, value in t.settings.items()]
    return "<br>".join(lines)


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value)


def importances(shares: dict[str, float], explained: str) -> Figure:
    """How much of the differences between the trials each setting explains, `explained` by which method."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [share for _, share in ordered],
            "y": [text(key) for key, _ in ordered],
            "marker": {"color": "var(--c0)"},
            "text": [f"{100 * share:.0f} %" for _, share in ordered],
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
        }
    ]
    layout = {
        "xaxis": {
            "title": {"text": "importance"},
            "tickformat": ".0%",
            "range": [0, 1.2 * ordered[-1][1] + 0.03],
        },
        "yaxis": {"showgrid": False},
        "height": 120 + 34 * len(ordered),
        "bargap": 0.35,
        "hovermode": "closest",
    }
    return Figure("Importance", f"{ordered[-1][0]} decides most ({explained}).", data, layout)


def parallel(study: Study) -> Figure | None:
    """Every completed trial as a line through its settings, the best tenth in colour, or the front."""
    done = sorted(study.completed, key=lambda t: t.objective or 0.0)
    keys = [key for key in study.keys if len({t.settings.get(key) for t in done}) > 1]
    if len(done) < 2 or not keys:
        return None
    axes = [_axis(key, [t.settings.get(key) for t in done]) for key in keys]
    axes.append(_axis("accuracy, %", [t.objective for t in done]))
    best = study.front if study.two else done[-max(1, round(len(done) / 10)) :]
    name = "front" if study.two else "best tenth"
    parts = (
        ("others", [t for t in done if t not in best], "var(--others)", 1.0),
        (f"{name} ({len(best)})" if len(best) > 1 else "best", best, "var(--c0)", 2.0),
    )
    data = []
    for name, chosen, colour, width in parts:
        x: list[int | None] = []
        y: list[float | None] = []
        said: list[Any] = []
        for t in chosen:
            values = [*(t.settings.get(key) for key in keys), t.objective]
            x += [*range(len(axes)), None]
            y += [*(axis.place(value) for axis, value in zip(axes, values, strict=True)), None]
            said += [[t.number, _said(t)]] * (len(axes) + 1)
        data.append(
            {
                "x": x,
                "y": y,
                "customdata": said,
                "mode": "lines+markers",
                "name": name,
                "line": {"color": colour, "width": width},
                "marker": {"size": 4},
                "hovertemplate": "trial %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
            }
        )
    pad = max(0.1, 0.03 * len(axes))  # room for half of the first and of the last name
    annotations = [
        {
            "x": i,
            "y": place,
            "text": label,
            "showarrow": False,
            "xanchor": "left" if i < len(axes) - 1 else "right",
            "xshift": 5 if i < len(axes) - 1 else -5,
            "font": {"size": 11, "color": "var(--muted)"},
            "bgcolor": "var(--veil)",
            "borderpad": 1,
        }
        for i, axis in enumerate(axes)
        for place, label in axis.ticks
    ]
    ranges = []
    for key in keys:
        theirs: list[float] = sorted(t.settings[key] for t in best if isinstance(t.settings.get(key), int | float))
        if len(theirs) == len(best):
            quarter = len(theirs) // 4 if len(theirs) >= 8 and not study.two else 0
            ends = dict.fromkeys((_brief(theirs[quarter]), _brief(theirs[-1 - quarter])))
            ranges.append(f"{key} {' to '.join(ends)}")
    who = (
        "In the middle of the best tenth of the trials:" if len(best) >= 8 else "The best tenth of the trials have"
    )
    who = "The trials of the front have" if study.two else who
    who = "The best trial has" if len(best) == 1 else who
    see = f"{who} {', '.join(ranges)}" if ranges else f"The {name} of the trials are drawn in colour"
    layout = {
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": [text(axis.name).replace(".", ".<br>") for axis in axes],
            "range": [-pad, len(axes) - 1 + pad],
            "showgrid": True,
            "zeroline": False,
            "side": "top",
            "fixedrange": True,
        },
        "yaxis": {"visible": False, "range": [-0.04, 1.04], "fixedrange": True},
        "legend": {"y": -0.04},
        "annotations": annotations,
        "height": 420,
        "hovermode": "closest",
    }
    return Figure("Settings side by side", f"{see}.", data, layout)


@dataclass(frozen=True)
class Axis:
    """One axis of the settings side by side, from 0 to 1."""

    name: str
    values: list[Any]
    """Names in their order; empty for numbers."""
    low: float
    high: float
    logarithmic: bool

    def place(self, value: Any) -> float | None:
        """Where a value lies; None where a trial has none."""
        if value is None:
            return None
        if self.values:
            return self.values.index(value) / max(1, len(self.values) - 1)
        number = math.log(value) if self.logarithmic else float(value)
        return (number - self.low) / (self.high - self.low or 1.0)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels."""
        if self.values:
            return [(self.place(value) or 0.0, text(value)) for value in self.values]
        parts = [0, 0.5, 1]
        numbers = [self.low + part * (self.high - self.low) for part in parts]
        return [
            (part, f"{math.exp(number) if self.logarithmic else number:.3g}")
            for part, number in zip(parts, numbers, strict=True)
        ]


def _axis(name: str, given: Sequence[Any]) -> Axis:
    values = [value for value in given if value is not None]
    if not all(isinstance(value, int | float) for value in values):
        return Axis(name, sorted(set(values), key=str), 0.0, 1.0, False)
    low, high = float(min(values)), float(max(values))
    logarithmic = spans_decades(values)
    return Axis(name, [], *((math.log(low), math.log(high)) if logarithmic else (low, high)), logarithmic)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether numbers are spread so wide that a logarithmic axis shows them better."""
    return min(values) > 0 and max(values) / min(values) >= 20


def intermediate(study: Study) -> Figure | None:
    """Accuracy by epoch of every trial; a trace for each state, or a thousand trials would take long to draw."""
    drawn = [t for t in study.trials if t.epochs]
    if not drawn:
        return None
    best = study.front if study.two else sorted(study.completed, key=lambda t: -(t.objective or 0.0))[:1]
    data = []
    for name, chosen, colour, width in (
        ("complete", [t for t in drawn if t.objective is not None and t not in best], "var(--others)", 1.0),
        ("pruned", [t for t in drawn if t.state == "pruned"], "var(--c4)", 1.2),
        ("front" if study.two else "best", [t for t in drawn if t in best], "var(--c0)", 3.0),
    ):
        if not chosen:
            continue
        x: list[int | None] = []
        y: list[float | None] = []
        numbers: list[int] = []
        for t in chosen:
            x += [*(epoch for epoch, _ in t.epochs), None]
            y += [*(accuracy for _, accuracy in t.epochs), None]
            numbers += [t.number] * (len(t.epochs) + 1)
        several = len(chosen) > 1
        data.append(
            {
                "x": x,
                "y": y,
                "customdata": numbers,
                "mode": "lines+markers" if len(drawn) < 100 else "lines",
                "marker": {"size": 4, "symbol": "x" if name == "pruned" else "circle"},
                "name": f"{name} ({len(chosen)})" if several else f"{name}, trial {chosen[0].number}",
                "line": {"color": colour, "width": width},
                "opacity": 0.4 if name == "pruned" and len(drawn) > MANY else 1,
                "hovertemplate": "trial %{customdata}, epoch %{x}: %{y:.2f} %<extra></extra>",
            }
        )
    low, high = _trials_scale([t.epochs[-1][1] for t in drawn])
    pruned = [t.epochs[-1][0] for t in drawn if t.state == "pruned"]
    see = (
        f"{len(pruned)} trials were given up, after {statistics.mean(pruned):.1f} epochs on average"
        if pruned
        else "No trial was given up"
    )
    layout = {
        "xaxis": epochs(max(t.epochs[-1][0] for t in drawn)),
        "yaxis": accuracies("validation accuracy, %", low, high),
        "hovermode": "closest",
    }
    return Figure("Epoch by epoch", f"{see}; double-click to see the whole scale.", data, layout)


def sizes(study: Study) -> Figure | None:
    """Accuracy against parameters, with the Pareto front and the budget."""
    done = [t for t in study.completed if t.parameters is not None]
    if not done or len({t.parameters for t in study.trials if t.parameters is not None}) < 2:
        return None
    front = study.front
    low, high = _trials_scale([t.objective or 0.0 for t in done])
    low = min([low, *(t.objective or 0.0 for t in front if (t.objective or 0.0) > high - 4 * (high - low))])
    data: list[dict[str, Any]] = [
        {
            "x": [t.parameters for t in front],
            "y": [t.objective for t in front],
            "mode": "lines",
            "name": "Pareto front",
            "line": {"color": "var(--c0)", "width": 2, "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    for state, (colour, symbol) in TRIALS.items():
        chosen = [t for t in study.trials if t.state == state and t.parameters is not None]
        if chosen:
            data.append(
                {
                    "x": [t.parameters for t in chosen],
                    "y": [_drawn(t, low) for t in chosen],
                    "customdata": [[t.number, _said(t)] for t in chosen],
                    "mode": "markers",
                    "name": f"{state} ({len(chosen)})",
                    "marker": _marker(colour, symbol, len(study.trials)),
                    "hovertemplate": "trial %{customdata[0]}, %{x:,} parameters<br>%{customdata[1]}"
                    "<extra></extra>",
                }
            )
    smallest, best = front[0], front[-1]
    see = f"The best trial has {best.parameters:,} parameters and {best.objective:.3f} %"
    if study.two and smallest is not best:
        see = (
            f"{len(front)} trials are on the front, from {smallest.parameters:,} parameters and "
            f"{smallest.objective:.3f} % to {best.parameters:,} and {best.objective:.3f} %"
        )
    elif smallest is not best:
        knee = min(front, key=lambda t: ((best.objective or 0) - (t.objective or 0) > COLLAPSE, t.parameters or 0))
        see += f"; on the front {knee.parameters:,} parameters reach {knee.objective:.3f} %"
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "parameters"}, "tickformat": ",d"},
        "yaxis": accuracies("validation accuracy, %", low - 0.06 * (high - low), high),
        "hovermode": "closest",
    }
    if study.limit:
        layout["shapes"] = [
            {
                "type": "line",
                **{"x0": study.limit, "x1": study.limit, "xref": "x", "y0": 0, "y1": 1, "yref": "y domain"},
                "line": {"color": "var(--target)", "width": 1.5, "dash": "5px 4px"},
            }
        ]
        layout["annotations"] = [
            {
                **{"x": study.limit, "y": 1, "yref": "y domain", "xanchor": "right", "yanchor": "bottom"},
                "text": f"budget: fewer than {study.limit:,}",
                "showarrow": False,
                "font": {"color": "var(--target)", "size": 12},
            }
        ]
    return Figure("Accuracy and size", f"{see}.", data, layout)


def shares(study: Study) -> tuple[dict[str, float], str]:
    """How much each setting decides, by Optuna, and by which method; nothing and why where it cannot be said."""
    done = study.completed
    keys = [key for key in study.keys if all(key in t.settings for t in done)]
    keys = [key for key in keys if len({t.settings[key] for t in done}) > 1]
    if len(done) < 4:
        return {}, f"{len(done)} completed trials are too few"
    if not keys:
        return {}, "no setting differs between the completed trials"
    if len({t.objective for t in done}) < 2:
        return {}, "all completed trials have the same accuracy"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rebuilt = optuna.create_study(direction="maximize")
    ranges = {key: _distribution([t.settings[key] for t in done]) for key in keys}
    rebuilt.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=t.objective,
            params={key: t.settings[key] for key in keys},
            distributions=ranges,
        )
        for t in done
    )
    try:
        shares = optuna.importance.get_param_importances(rebuilt)
    except (RuntimeError, ValueError) as error:
        return {}, f"Optuna cannot say ({error})"
    if not sum(shares.values()) > 0:
        return {}, "no setting explains which trials are the better ones"
    better = "more accurate" if study.two else "better"
    return shares, f"PED-ANOVA: what sets the {better} ones of {len(done)} completed trials apart"


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """The range that the values of a setting span."""
    if not all(isinstance(value, int | float) for value in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    logarithmic = spans_decades(values)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(min(values), max(values), log=logarithmic)
    return FloatDistribution(float(min(values)), float(max(values)), log=logarithmic)
