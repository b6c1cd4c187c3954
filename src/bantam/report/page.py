"""Look instead of read: one page, `report.html`, and the same tables in the terminal, from folders alone."""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import optuna
from markupsafe import Markup
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from plotly.offline import get_plotlyjs
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bantam import budget
from bantam.report import figures
from bantam.report import folders as evidence
from bantam.report.figures import Figure
from bantam.report.folders import Difference, Evidence, Finding, Group, Run, Study, Trial
from bantam.training import folder as record

PAGE = "report.html"

STEPS = 12
"""Steps that are shown one by one; of more, the best."""

BEST = 20
"""Trials of a study that the terminal shows; the page has all."""

COMPARED = 24
"""Groups that are compared; of more, the best."""

MARKS = {"met": "good", "complete": "good", "not met": "bad", "diverged": "bad", "failed": "bad", "damaged": "bad"}
"""How a verdict or a state is coloured; all others call for attention only."""


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand on the right."""

    title: str
    numeric: bool = True
    everywhere: bool = True
    """False for one that only the page has room for."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table, by what it is sorted, and whether it is good or bad."""

    text: str
    value: float | str | None = None
    mark: str = ""
    link: str = ""
    """Part of the page that has the details."""


@dataclass(frozen=True)
class Table:
    """A table for the page and for the terminal."""

    columns: list[Column]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Step:
    """The study's own form: what was to be reached, with what, what came out, and why."""

    anchor: str
    title: str
    verdict: str
    mark: str
    target: str
    results: list[tuple[str, str]]
    last: list[Cell]
    """The last epochs, or the lowest one of each seed, against the target."""
    last_note: str
    network: str
    layers: Table | None
    settings: list[tuple[str, str]]
    changes: Table | None
    """Against the step before."""
    before: str
    layer_changes: list[str]
    brought: str
    findings: list[Finding]
    figure: Figure | None
    errors: Figure | None
    pictures: list[tuple[str, str]]
    """Titles and PNG files as data URLs."""


@dataclass(frozen=True)
class StudyPart:
    """What the page shows of one search."""

    anchor: str
    title: str
    facts: list[tuple[str, str]]
    problems: list[str]
    figures: list[Figure]
    missing: list[str]
    """Figures that cannot be drawn, and why."""
    trials: Table
    front: Table | None
    """Where parameters were an objective beside the accuracy."""
    best: Step | None
    confirmed: Table | None
    confirmation: str
    confirm_figures: list[Figure]


@dataclass(frozen=True)
class Page:
    """Everything that the report says."""

    title: str
    written: str
    facts: list[tuple[str, str, str]]
    """Name, number and what it is about."""
    runs: Table | None
    steps: list[Step]
    steps_note: str
    figures: list[Figure]
    comparison: Table | None
    comparison_note: str
    comparison_figure: Figure | None
    studies: list[StudyPart]
    broken: Table | None = field(default=None)


def write(folders: Sequence[Path], output: Path | None = None, console: Console | None = None) -> Path:
    """Write the report of some folders and print its tables on `console`; returns the page's path.

    It goes into the folder where one is given, and into the current one where several are, unless
    `output` says where. Raises ValueError for a folder that does not exist or cannot be written.
    """
    page = build(evidence.gather(folders), ", ".join(_shown(folder) for folder in folders))
    path = output or (folders[0] / PAGE if len(folders) == 1 else Path(PAGE))
    if path.is_dir():
        path = path / PAGE
    try:
        record.write(path, render(page).encode())
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): give another place with --output"
        ) from error
    if console is not None:
        show(page, console)
    return path


def at_end(folder: Path) -> None:
    """Write the report of a multirun or a search that has just ended; whatever goes wrong is one sentence."""
    console = Console(highlight=False)
    try:
        path = write([folder])
        console.print(f"\nLook at it: {escape(_shown(path))}", soft_wrap=True)
    except Exception as error:  # the runs are done and recorded: nothing of the report may change how they end
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        console.print(f"\n[yellow]No report was written[/]: {escape(reason)}", soft_wrap=True)


def _shown(path: Path) -> str:
    """A path as a person would type it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def build(found: Evidence, title: str) -> Page:
    """Turn evidence into what the page and the terminal show."""
    groups = found.groups
    shown, note = groups, ""
    if len(groups) > STEPS:
        shown = sorted(groups, key=lambda g: -(g.mean or -math.inf))[:STEPS]
        shown = [g for g in groups if g in shown]
        note = f"The best {STEPS} of {len(groups)}, in the order in which they ran; the others are in the table."
    steps = [
        _step(g, shown[number - 1] if number else None, f"step-{number + 1}") for number, g in enumerate(shown)
    ]
    compared = groups
    if len(groups) > COMPARED:
        best = sorted(groups, key=lambda g: -(g.mean or -math.inf))[:COMPARED]
        compared = [g for g in groups if g in best]
    differences = evidence.compare(compared)
    charts = [figures.curves(shown), figures.rates(shown), figures.last_epochs(shown), figures.classes(shown)]
    anchors = {id(r): step.anchor for step, g in zip(steps, shown, strict=True) for r in g.runs}
    return Page(
        title=title,
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        facts=_facts(found),
        runs=_runs(found.runs, anchors) if found.runs else None,
        steps=steps,
        steps_note=note,
        figures=[chart for chart in charts if chart],
        comparison=_comparison(differences),
        comparison_note=_comparison_note(differences, groups, len(compared) < len(groups)),
        comparison_figure=figures.differences(differences),
        studies=[_study(study, f"study-{number}") for number, study in enumerate(found.studies, 1)],
        broken=_broken(found),
    )


def _percent(value: float | None, digits: int = 2) -> Cell:
    return Cell("" if value is None else f"{value:.{digits}f}", value)


def _integer(value: Any) -> Cell:
    number = value if isinstance(value, int | float) else None
    return Cell("" if number is None else f"{number:,.0f}", number)


def _verdict(word: str) -> Cell:
    return Cell(word, word, _mark(word))


def _mark(word: str) -> str:
    return MARKS.get(word.removesuffix(" (at chance)"), "warn")


def _facts(found: Evidence) -> list[tuple[str, str, str]]:
    facts = []
    runs, groups = found.runs, found.groups
    if runs:
        ended = sum(r.objective is not None for r in runs)
        facts.append(("runs", f"{len(runs)}", f"in {len(groups)} configurations" if len(groups) > 1 else ""))
        if ended < len(runs):
            facts.append(("without a result", f"{len(runs) - ended}", "see below"))
        judged = [r for r in runs if r.state in ("met", "not met")]
        if judged:
            targets = {r.target for r in judged if not math.isnan(r.target)}
            what = f"{targets.pop():g} % in the last epochs" if len(targets) == 1 else ""
            facts.append(("meet the target", f"{sum(r.state == 'met' for r in judged)} of {len(judged)}", what))
    best = max((g for g in groups if g.mean is not None), key=lambda g: g.mean or 0.0, default=None)
    if best:
        facts.append(("best mean of the last epochs", f"{best.mean:.2f} %", best.label))
    for study in found.studies:
        facts.append(("trials", f"{len(study.trials)}", study.folder.name))
        if study.completed:
            top = max(study.completed, key=lambda t: t.objective or 0.0)
            facts.append(("best trial", f"{top.objective:.2f} %", f"trial {top.number}, validation images"))
    return facts


def _runs(runs: Sequence[Run], anchors: dict[int, str]) -> Table:
    columns = [
        Column("folder", False),
        Column("network", False),
        *(Column(title) for title in ("seed", "parameters", "best")),
        Column("in epoch", everywhere=False),
        *(Column(title) for title in ("last", "lowest")),
        Column("minutes", everywhere=False),
        Column("verdict", False),
    ]
    rows = []
    for r in runs:
        lowest = min(r.last, default=None)
        took = sum(epoch.seconds for epoch in r.history) / 60 if r.history else None
        judged = lowest is not None and r.state in ("met", "not met")
        missed = lowest is not None and lowest < r.target
        rows.append(
            [
                Cell(_shown(r.folder), r.folder.name.zfill(6), link=anchors.get(id(r), "")),
                Cell(r.name, r.name),
                Cell("" if r.seed is None else str(r.seed), r.seed),
                _integer(r.result.get("parameters")),
                _percent(r.result.get("best_accuracy")),
                _integer(r.result.get("best_epoch")),
                _percent(r.objective),
                Cell(_percent(lowest).text, lowest, "" if not judged else "bad" if missed else "good"),
                Cell("" if took is None else f"{took:.1f}", took),
                _verdict(r.state + " (at chance)" * bool(r.result.get("at_chance"))),
            ]
        )
    return Table(columns, rows)


def _layers(rows: Sequence[budget.Layer]) -> Table | None:
    if not rows:
        return None
    columns = [
        Column("layer", False),
        *(Column(title) for title in ("output", "field", "parameters", "mult-adds")),
    ]
    return Table(
        columns,
        [
            [
                Cell(row.name, row.name),
                Cell("×".join(map(str, row.shape)), row.shape[0] if row.shape else 0),
                Cell(str(row.receptive_field), row.receptive_field),
                Cell(f"{row.parameters:,}" if row.parameters else "", row.parameters),
                Cell(_brief(row.multiply_adds), row.multiply_adds),
            ]
            for row in rows
        ],
    )


def _brief(count: int) -> str:
    """A count in thousands where it has so many; nothing for zero."""
    return f"{count / 1000:,.0f} k" if count >= 1000 else f"{count}" if count else ""


def _step(g: Group, before: Group | None, anchor: str) -> Step:
    r = next(iter(g.ended), g.first)
    settings, result = r.settings, r.result
    target = ""
    if not math.isnan(r.target):
        limits = [
            f"{r.target:g} % in every one of the last {settings.get('target.last_epochs')} epochs",
            f"fewer than {_integer(settings.get('budget.parameters')).text} parameters",
            f"at most {settings.get('budget.epochs')} epochs",
        ]
        target = ", ".join(limits)
    results: list[tuple[str, str]] = []
    if len(g.runs) > 1:
        if g.mean is not None:
            spread = f" ± {g.deviation:.2f}" if g.deviation is not None else ""
            results.append(("mean of the last epochs", f"{g.mean:.2f}{spread} % over {len(g.ended)} seeds"))
            results.append(("best seed", f"{max(g.objectives):.2f} %"))
            results.append(("worst seed", f"{min(g.objectives):.2f} %"))
    elif r.objective is not None:
        best, when = _percent(result.get("best_accuracy")).text, _integer(result.get("best_epoch")).text
        results.append(("best epoch", f"{best} % in epoch {when}"))
        results.append(("mean of the last epochs", f"{r.objective:.2f} %"))
    if result.get("scored_images"):
        data = f"{result.get('data')}: {_integer(result.get('train_images')).text} images to train on, "
        results.append(("scored on", f"{data}{r.scored_images:,} {r.split} images"))
    judged = r.state in ("met", "not met") and not math.isnan(r.target)
    epochs = range(len(r.history) - len(r.last) + 1, len(r.history) + 1)
    last = [
        Cell(f"{value:.2f}", f"epoch {epoch}", "" if not judged else "good" if value >= r.target else "bad")
        for epoch, value in zip(epochs, r.last, strict=False)
    ]
    last_note = ""
    if len(g.ended) > 1:
        lowest = [(one, min(one.last)) for one in g.ended if one.last]
        last = [
            Cell(f"{value:.2f}", f"seed {one.seed}", "" if not judged else "good" if value >= r.target else "bad")
            for one, value in lowest
        ]
        last_note = "lowest of the last epochs, by seed"
    field_ = f", receptive field {r.layers[-1].receptive_field}" if r.layers else ""
    parameters = g.parameters
    return Step(
        anchor=anchor,
        title=g.label,
        verdict=g.verdict,
        mark=_mark(g.verdict) if len(g.runs) == 1 else _seeds_mark(g),
        target=target,
        results=results,
        last=last,
        last_note=last_note or "last epochs",
        network=f"{len(r.layers)} layers, {parameters:,} parameters{field_}" if parameters and r.layers else "",
        layers=_layers(r.layers),
        settings=_settings(r),
        changes=_changes(before, g),
        before=before.label if before else "",
        layer_changes=_layer_changes(before, g),
        brought=_brought(before, g),
        findings=evidence.analyse(g),
        figure=figures.step(g),
        errors=figures.confusion(g),
        pictures=_pictures(r, drawn=bool(g.confusion)),
    )


def _seeds_mark(g: Group) -> str:
    judged = all(r.state in ("met", "not met") for r in g.runs)
    return "good" if g.met == len(g.runs) else "bad" if judged and not g.met else "warn"


def _settings(r: Run) -> list[tuple[str, str]]:
    parts = ("model", "optimizer", "scheduler", "augmentation")
    found = [(part, evidence.component(r, part)) for part in parts]
    plain = [f"{key} {r.settings[key]}" for key in ("epochs", "batch_size") if key in r.settings]
    plain += [f"{key} {r.settings[key]}" for key in ("label_smoothing", "ema") if r.settings.get(key)]
    machine = [r.result.get("device"), r.result.get("processor"), r.result.get("precision")]
    threads = r.result.get("threads")
    machine.append(f"{threads} thread{'s' * (threads > 1)}" if isinstance(threads, int) else None)
    found += [("training", ", ".join(plain)), ("machine", ", ".join(str(item) for item in machine if item))]
    return [(name, value) for name, value in found if value]


def _changes(before: Group | None, g: Group) -> Table | None:
    found = evidence.changes(before.first, g.first) if before else []
    if not found:
        return None
    columns = [Column("changed", False), Column("before", False), Column("now", False)]
    return Table(columns, [[Cell(c.key, c.key), Cell(c.before, c.before), Cell(c.after, c.after)] for c in found])


def _layer_changes(before: Group | None, g: Group) -> list[str]:
    if not before or not before.first.layers or not g.first.layers:
        return []
    found = evidence.layer_changes(before.first.layers, g.first.layers)
    if sum(sign == "-" for sign, _ in found) == len(before.first.layers):
        return [f"Another network: none of its {len(g.first.layers)} layers is one of {before.label}."]
    return [
        f"{'−' if sign == '-' else '+'} {row.name}, {'×'.join(map(str, row.shape))}"
        + (f", {row.parameters:,} parameters" if row.parameters else "")
        for sign, row in found
    ]


def _brought(before: Group | None, g: Group) -> str:
    if before is None:
        return ""
    found = evidence.difference(before, g)
    if found is None:
        missing = before.mean is None or g.mean is None
        return "No difference: " + (
            "one of the two has no result" if missing else "they were scored on other images"
        )
    return f"{found.sentence}."


def _pictures(r: Run, drawn: bool) -> list[tuple[str, str]]:
    """The gallery of mistakes, and the confusion matrix where it cannot be drawn from numbers."""
    wanted = {"mistakes": "Mistakes"} | ({} if drawn else {"confusion": "Confusion matrix"})
    found = []
    for name, title in wanted.items():
        try:
            picture = base64.b64encode((r.folder / f"{name}.png").read_bytes()).decode()
        except OSError:  # pictures=false, or it did not come to its end
            continue
        found.append((f"{title}, seed {r.seed}", f"data:image/png;base64,{picture}"))
    return found


def _comparison(found: Sequence[Difference]) -> Table | None:
    if not found:
        return None
    columns = [
        Column("compared", False),
        Column("what it says", False),
        *(Column(title) for title in ("points", "from", "to")),
    ]

    def signed(value: float | None) -> Cell:
        return Cell("" if value is None else evidence.signed(value), value)

    return Table(
        columns,
        [
            [
                Cell(f"{each.label} against {each.reference}", each.label),
                Cell(each.sentence, each.sentence),
                Cell(evidence.signed(each.points), each.points, "warn" if each.told else ""),
                signed(each.low),
                signed(each.high),
            ]
            for each in found
        ],
    )


def _comparison_note(found: Sequence[Difference], groups: Sequence[Group], some: bool) -> str:
    if not found:
        return ""
    note = f"Differences of the mean of the last epochs to the best, {found[0].reference}"
    if some:
        note += f" (the best {len(found)} of the others)"
    if any(each.seeds for each in found):
        note += ". Intervals over seeds are Welch's"
    if any(not each.seeds for each in found):
        note += (
            ". Where there is one seed, the interval takes the scored images for a sample, drawn for each run "
            "anew, and leaves the seed out"
        )
    pairs = math.comb(len(found) + 1, 2)
    if pairs > 1:
        note += (
            f". The intervals are so wide that those of all {pairs} pairs hold together with 95 % (Bonferroni): "
            "so it does no harm that the best was chosen by the same results"
        )
    else:
        note += ". The interval holds with 95 %"
    left = sum(g.mean is None for g in groups)
    return f"{note}." + (f" {left} without a result are left out." if left else "")


def _broken(found: Evidence) -> Table | None:
    rows = [
        [Cell(_shown(r.folder), str(r.folder)), _verdict(r.state), Cell(r.reason or r.state, r.reason)]
        for r in found.runs
        if r.objective is None or r.problems
    ]
    rows += [[Cell(_shown(path), str(path)), _verdict("no run"), Cell(why, why)] for path, why in found.broken]
    return (
        Table([Column("folder", False), Column("state", False), Column("reason", False)], rows) if rows else None
    )


def _study(study: Study, anchor: str) -> StudyPart:
    counts = [
        f"{study.count(s)} {s}" for s in ("complete", "pruned", "over budget", "failed", "stopped", "running")
    ]
    facts = [("trials", ", ".join(count for count in counts if not count.startswith("0 ")))]
    took = sum(t.seconds or 0.0 for t in study.trials)
    if took:
        facts.append(("trained for", f"{took / 3600:.1f} hours" if took > 5400 else f"{took / 60:.1f} minutes"))
    best = None
    if study.completed:
        top = max(study.completed, key=lambda t: t.objective or 0.0)
        size = "" if top.parameters is None else f" with {top.parameters:,} parameters"
        name = "most accurate" if study.two else "best"
        facts.append((name, f"trial {top.number}, {top.objective:.3f} % of the validation images{size}"))
        facts.append(("its settings", ", ".join(f"{key} {_setting(v)}" for key, v in top.settings.items())))
    if study.best is not None:
        title = f"Trial {study.best.folder.name}, the {'most accurate' if study.two else 'best'}"
        best = _step(Group(title, [study.best]), None, f"{anchor}-best")
    shares, why = importances(study)
    charts: list[Figure | None] = [figures.history(study), figures.sizes(study), figures.intermediate(study)]
    charts += [figures.importances(shares, why) if shares else None, figures.parallel(study)]
    missing = []
    if not shares:
        missing.append(f"No importances: {why}.")
    if study.completed and charts[1] is None:
        missing.append("No picture of accuracy against size: all trials have the same number of parameters.")
    if not study.trials:
        missing.append("No trial has ended yet.")
    confirm_charts = [
        figures.last_epochs(study.confirmed, "Fresh seeds, validation images") if study.confirmed else None,
        figures.last_epochs([study.tested], "The winner on the test images") if study.tested else None,
    ]
    return StudyPart(
        anchor=anchor,
        title=study.folder.name,
        facts=facts,
        problems=study.problems,
        figures=[chart for chart in charts if chart],
        missing=missing,
        trials=_trials(study.keys, sorted(study.trials, key=lambda t: -(t.objective or -math.inf))),
        front=_trials(study.keys, study.front, ended=True) if study.two and study.front else None,
        best=best,
        confirmed=_confirmed(study),
        confirmation=_confirmation(study),
        confirm_figures=[chart for chart in confirm_charts if chart],
    )


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trials(keys: Sequence[str], listed: Sequence[Trial], ended: bool = False) -> Table:
    """Trials with their settings; of those that have `ended` well there is no state to tell and no reason."""
    columns = [
        Column("trial"),
        *([] if ended else [Column("state", False)]),
        Column("accuracy"),
        Column("parameters"),
        *(Column(key, everywhere=False) for key in keys),
        Column("seconds", everywhere=False),
        *([] if ended else [Column("reason", False)]),
    ]
    rows = []
    for t in listed:
        values = [t.settings.get(key) for key in keys]
        rows.append(
            [
                Cell(str(t.number), t.number),
                *([] if ended else [_verdict(t.state)]),
                _percent(t.objective, 3),
                _integer(t.parameters),
                *(Cell("" if value is None else _setting(value), value) for value in values),
                Cell("" if t.seconds is None else f"{t.seconds:.1f}", t.seconds),
                *([] if ended else [Cell(t.reason, t.reason)]),
            ]
        )
    return Table(columns, rows)


def importances(study: Study) -> tuple[dict[str, float], str]:
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
    logarithmic = figures.spans_decades(values)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(min(values), max(values), log=logarithmic)
    return FloatDistribution(float(min(values)), float(max(values)), log=logarithmic)


def _confirmed(study: Study) -> Table | None:
    if not study.confirmed:
        return None
    searched = {f"trial {t.number}": t.objective for t in study.trials}
    differences = {d.label: d for d in evidence.compare(study.confirmed)}
    columns = [
        Column("trial", False),
        *(Column(title) for title in ("in the search", "seeds", "mean", "±", "lowest seed")),
        Column("against the best", False),
    ]
    rows = []
    for g in study.confirmed:
        found = differences.get(g.label)
        rows.append(
            [
                Cell(g.label, g.label),
                _percent(searched.get(g.label), 3),
                Cell(
                    f"{len(g.ended)} of {len(g.runs)}", len(g.ended), "" if len(g.ended) == len(g.runs) else "bad"
                ),
                _percent(g.mean, 3),
                _percent(g.deviation, 3),
                _percent(min(g.objectives, default=None), 3),
                Cell(found.sentence if found else "", found.points if found else 0.0),
            ]
        )
    return Table(columns, rows)


def _confirmation(study: Study) -> str:
    """The verdict of the winner on the test images, in one sentence; empty where there is none."""
    test = study.confirmation.get("test")
    if "winner" in study.confirmation and test is None:
        return evidence.AHEAD.format(study.confirmation["winner"])
    if not isinstance(test, dict):
        return "The confirmation has not ended: confirm.json is not there." if study.confirmed else ""
    seeds = study.confirmation.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else 0
    said = f"Trial {study.confirmation.get('winner')} on the test images: {test.get('verdict')}"
    if test.get("verdict") != "not judged":
        said += f"; {test.get('met')} of {count} seeds hold the target in every one of the last epochs"
    if isinstance(test.get("mean"), float):
        said += f". Mean of the last epochs {test['mean']:.3f} %, over {count} seeds"
    return f"{said}."


def render(page: Page) -> str:
    """The page as HTML that needs nothing beside itself."""
    drawn: list[Figure] = []

    def number(figure: Figure) -> int:
        drawn.append(figure)
        return len(drawn) - 1

    def data() -> Markup:
        written = json.dumps([_finite(asdict(figure)) for figure in drawn], separators=(",", ":"), allow_nan=False)
        return Markup(written.replace("<", "\\u003c"))  # within a script "<" could end it

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("bantam.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(page=page, number=number, data=data, plotly=_plotly())


@cache
def _plotly() -> str:
    """Plotly's script, packed to less than half: the page unpacks it when it opens."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _finite(node: Any) -> Any:
    """The same without nan and infinities, which JSON does not have."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items() if value is not None}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


COLOURS = {"good": "green", "bad": "red", "warn": "yellow", "": ""}


def show(page: Page, console: Console) -> None:
    """Print the tables and the sentences of the page in the terminal."""

    def heading(text: str) -> None:
        console.print(f"\n[bold underline]{escape(text)}[/]")

    def line(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    for name, value, what in page.facts:
        line(f"{name}: {value}" + f" ({what})" * bool(what))
    if page.runs:
        heading("Runs")
        console.print(_terminal(page.runs))
    for step in page.steps:
        _show_step(step, console)
    if page.comparison:
        heading("Comparison")
        line(page.comparison_note)
        console.print(_terminal(page.comparison))
    for study in page.studies:
        heading(f"Study {study.title}")
        for name, value in study.facts:
            line(f"{name}: {value}")
        for problem in [*study.problems, *study.missing]:
            line(problem)
        if study.front:
            heading(f"Study {study.title}: the front")
            console.print(_terminal(study.front))
            heading(f"Study {study.title}: the most accurate trials")
        console.print(_terminal(study.trials, BEST))
        for figure in [*study.figures, *study.confirm_figures]:
            line(f"{figure.title}: {figure.see}")
        if study.best:
            _show_step(study.best, console)
        if study.confirmed:
            heading(f"Study {study.title}: confirmation on fresh seeds")
            console.print(_terminal(study.confirmed))
        if study.confirmation:
            line(study.confirmation)
    if page.broken:
        heading("Without a result, or damaged")
        console.print(_terminal(page.broken))


def _show_step(step: Step, console: Console) -> None:
    colour = COLOURS[step.mark]
    verdict = f"[{colour}]{escape(step.verdict)}[/]" if colour else escape(step.verdict)
    console.print(f"\n[bold underline]{escape(step.title)}[/]: {verdict}", soft_wrap=True)
    lines = [("target", step.target), ("network", step.network), *step.settings, *step.results]
    lines += [(step.last_note, " ".join(cell.text for cell in step.last))] if step.last else []
    lines += [(finding.topic.lower(), finding.sentence) for finding in step.findings]
    if step.before:
        lines.append((f"against {step.before}", step.brought))
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in lines:
        if value:
            grid.add_row(escape(name), escape(value))
    console.print(grid)
    if step.layers:
        console.print("", _terminal(step.layers))
    if step.changes:
        console.print("", _terminal(step.changes))
    for change in step.layer_changes:
        console.print(f"  {escape(change)}")


def _terminal(table: Table, most: int | None = None) -> RichTable:
    """A table, or its first rows, without the columns that only the page has room for; long texts wrap."""
    result = RichTable(box=None, pad_edge=False, header_style="bold")
    kept = [i for i, column in enumerate(table.columns) if column.everywhere]
    for i in kept:
        column = table.columns[i]
        result.add_column(
            escape(column.title),
            justify="right" if column.numeric else "left",
            no_wrap=max((len(row[i].text) for row in table.rows), default=0) < 36,
            overflow="fold",
        )
    for row in table.rows[:most]:
        cells = [row[i] for i in kept]
        result.add_row(
            *(
                f"[{COLOURS[cell.mark]}]{escape(cell.text)}[/]" if COLOURS[cell.mark] else escape(cell.text)
                for cell in cells
            )
        )
    return result
