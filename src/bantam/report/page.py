"""Look instead of read: one page, `report.html`, from folders alone."""

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
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bantam.report import analysis, figures, folders, groups, study_figures, tables
from bantam.report.analysis import Finding
from bantam.report.figures import Figure
from bantam.report.folders import Evidence, Run, Study
from bantam.report.groups import Difference, Group
from bantam.report.tables import Cell, Table
from bantam.training import folder as record

PAGE = "report.html"

STEPS = 12
"""Steps that are shown one by one; of more, the best."""

COMPARED = 24
"""Groups that are compared; of more, the best."""


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


def write(given: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of some folders; returns the page's path.

    It goes into the folder where one is given, and into the current one where several are, unless
    `output` says where. Raises ValueError for a folder that does not exist or cannot be written.
    """
    return save(read(given), given, output)


def read(given: Sequence[Path]) -> Page:
    """All that the report of some folders says. Raises ValueError for a folder that does not exist."""
    return build(folders.gather(given), ", ".join(tables.shown(folder) for folder in given))


def save(page: Page, given: Sequence[Path], output: Path | None = None) -> Path:
    """Write a page of some folders as `write` does; returns its path."""
    path = output or (given[0] / PAGE if len(given) == 1 else Path(PAGE))
    if path.is_dir():
        path = path / PAGE
    try:
        record.write(path, render(page).encode())
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): give another place with --output"
        ) from error
    return path


def at_end(folder: Path) -> None:
    """Write the report of a multirun or a search that has just ended; whatever goes wrong is one sentence."""
    try:
        path = write([folder])
        print(f"\nLook at it: {tables.shown(path)}")
    except Exception as error:  # the runs are done and recorded: nothing of the report may change how they end
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"\nNo report was written: {reason}")


def build(found: Evidence, title: str) -> Page:
    """Turn evidence into what the page and the terminal show."""
    every = groups.group(found.runs)
    shown, note = every, ""
    if len(every) > STEPS:
        shown = sorted(every, key=lambda g: -(g.mean or -math.inf))[:STEPS]
        shown = [g for g in every if g in shown]
        note = f"The best {STEPS} of {len(every)}, in the order in which they ran; the others are in the table."
    steps = [
        _step(g, shown[number - 1] if number else None, f"step-{number + 1}") for number, g in enumerate(shown)
    ]
    compared = every
    if len(every) > COMPARED:
        best = sorted(every, key=lambda g: -(g.mean or -math.inf))[:COMPARED]
        compared = [g for g in every if g in best]
    differences = groups.compare(compared)
    charts = [figures.curves(shown), figures.rates(shown), figures.last_epochs(shown), figures.classes(shown)]
    anchors = {id(r): step.anchor for step, g in zip(steps, shown, strict=True) for r in g.runs}
    return Page(
        title=title,
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        facts=_facts(found, every),
        runs=tables.runs(found.runs, anchors) if found.runs else None,
        steps=steps,
        steps_note=note,
        figures=[chart for chart in charts if chart],
        comparison=tables.comparison(differences),
        comparison_note=_comparison_note(differences, every, len(compared) < len(every)),
        comparison_figure=figures.differences(differences),
        studies=[_study(study, f"study-{number}") for number, study in enumerate(found.studies, 1)],
        broken=tables.broken(found),
    )


def _facts(found: Evidence, every: Sequence[Group]) -> list[tuple[str, str, str]]:
    facts = []
    runs = found.runs
    if runs:
        ended = sum(r.objective is not None for r in runs)
        facts.append(("runs", f"{len(runs)}", f"in {len(every)} configurations" if len(every) > 1 else ""))
        if ended < len(runs):
            facts.append(("without a result", f"{len(runs) - ended}", "see below"))
        judged = [r for r in runs if r.state in ("met", "not met")]
        if judged:
            targets = {r.target for r in judged if not math.isnan(r.target)}
            what = f"{targets.pop():g} % in the last epochs" if len(targets) == 1 else ""
            facts.append(("meet the target", f"{sum(r.state == 'met' for r in judged)} of {len(judged)}", what))
    best = max((g for g in every if g.mean is not None), key=lambda g: g.mean or 0.0, default=None)
    if best:
        facts.append(("best mean of the last epochs", f"{best.mean:.2f} %", best.label))
    for study in found.studies:
        facts.append(("trials", f"{len(study.trials)}", study.folder.name))
        if study.completed:
            top = max(study.completed, key=lambda t: t.objective or 0.0)
            facts.append(("best trial", f"{top.objective:.2f} %", f"trial {top.number}, validation images"))
    return facts


def _step(g: Group, before: Group | None, anchor: str) -> Step:
    r = next(iter(g.ended), g.first)
    settings, result = r.settings, r.result
    target = ""
    if not math.isnan(r.target):
        limits = [
            f"{r.target:g} % in every one of the last {settings.get('target.last_epochs')} epochs",
            f"fewer than {tables.integer(settings.get('budget.parameters')).text} parameters",
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
        best, when = (
            tables.percent(result.get("best_accuracy")).text,
            tables.integer(result.get("best_epoch")).text,
        )
        results.append(("best epoch", f"{best} % in epoch {when}"))
        results.append(("mean of the last epochs", f"{r.objective:.2f} %"))
    if result.get("scored_images"):
        data = f"{result.get('data')}: {tables.integer(result.get('train_images')).text} images to train on, "
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
        mark=tables.mark(g.verdict) if len(g.runs) == 1 else _seeds_mark(g),
        target=target,
        results=results,
        last=last,
        last_note=last_note or "last epochs",
        network=f"{len(r.layers)} layers, {parameters:,} parameters{field_}" if parameters and r.layers else "",
        layers=tables.layers(r.layers),
        settings=_settings(r),
        changes=tables.changes(before, g),
        before=before.label if before else "",
        layer_changes=_layer_changes(before, g),
        brought=_brought(before, g),
        findings=analysis.analyse(g),
        figure=figures.step(g),
        errors=figures.confusion(g),
        pictures=_pictures(r, drawn=bool(g.confusion)),
    )


def _seeds_mark(g: Group) -> str:
    judged = all(r.state in ("met", "not met") for r in g.runs)
    return "good" if g.met == len(g.runs) else "bad" if judged and not g.met else "warn"


def _settings(r: Run) -> list[tuple[str, str]]:
    parts = ("model", "optimizer", "scheduler", "augmentation")
    found = [(part, groups.component(r, part)) for part in parts]
    plain = [f"{key} {r.settings[key]}" for key in ("epochs", "batch_size") if key in r.settings]
    plain += [f"{key} {r.settings[key]}" for key in ("label_smoothing", "ema") if r.settings.get(key)]
    machine = [r.result.get("device"), r.result.get("processor"), r.result.get("precision")]
    threads = r.result.get("threads")
    machine.append(f"{threads} thread{'s' * (threads > 1)}" if isinstance(threads, int) else None)
    found += [("training", ", ".join(plain)), ("machine", ", ".join(str(item) for item in machine if item))]
    return [(name, value) for name, value in found if value]


def _layer_changes(before: Group | None, g: Group) -> list[str]:
    if not before or not before.first.layers or not g.first.layers:
        return []
    found = groups.layer_changes(before.first.layers, g.first.layers)
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
    found = groups.difference(before, g)
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
        facts.append(("its settings", ", ".join(f"{key} {tables.setting(v)}" for key, v in top.settings.items())))
    if study.best is not None:
        title = f"Trial {study.best.folder.name}, the {'most accurate' if study.two else 'best'}"
        best = _step(Group(title, [study.best]), None, f"{anchor}-best")
    shares, why = study_figures.shares(study)
    charts: list[Figure | None] = [
        study_figures.history(study),
        study_figures.sizes(study),
        study_figures.intermediate(study),
    ]
    charts += [study_figures.importances(shares, why) if shares else None, study_figures.parallel(study)]
    missing = []
    if not shares:
        missing.append(f"No importances: {why}.")
    if study.completed and charts[1] is None:
        missing.append("No picture of accuracy against size: all trials have the same number of parameters.")
    if not study.trials:
        missing.append("No trial has ended yet.")
    confirmed, tested = groups.confirmed(study), groups.tested(study)
    confirm_charts = [
        figures.last_epochs(confirmed, "Fresh seeds, validation images") if confirmed else None,
        figures.last_epochs([tested], "The winner on the test images") if tested else None,
    ]
    return StudyPart(
        anchor=anchor,
        title=study.folder.name,
        facts=facts,
        problems=study.problems,
        figures=[chart for chart in charts if chart],
        missing=missing,
        trials=tables.trials(study.keys, sorted(study.trials, key=lambda t: -(t.objective or -math.inf))),
        front=tables.trials(study.keys, study.front, ended=True) if study.two and study.front else None,
        best=best,
        confirmed=tables.confirmed(study, confirmed),
        confirmation=analysis.confirmation(study),
        confirm_figures=[chart for chart in confirm_charts if chart],
    )


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
