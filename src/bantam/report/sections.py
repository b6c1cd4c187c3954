"""What a report shows, as a tree of sections: the page, its table of contents and the terminal follow from it."""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bantam.report import analysis, figures, groups, study_figures, tables
from bantam.report.axes import Figure
from bantam.report.folders import Contents, Study
from bantam.report.groups import Group
from bantam.report.tables import Cell, Table

STEPS = 12
"""Groups that are shown one by one; of more, the best."""

COMPARED = 24
"""Groups that are compared; of more, the best."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    problem: bool = False


@dataclass(frozen=True)
class Pairs:
    """Names, each with what there is to say of it."""

    title: str
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Chips:
    """A few values in a row."""

    title: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Picture:
    """A PNG file, as a data URL."""

    title: str
    source: str


@dataclass(frozen=True)
class Fold:
    """What is shown on demand."""

    title: str
    blocks: Sequence[Figure | Picture]


Block = Text | Pairs | Chips | Table | Figure | Picture | Fold


@dataclass(frozen=True)
class Section:
    """A part of the report under its heading; `badge` is the verdict on what it shows."""

    title: str
    anchor: str
    blocks: Sequence[Block]
    inner: Sequence["Section"] = ()
    badge: Cell | None = None


def sections(found: Contents, every: list[Group]) -> list[Section]:
    """All sections of a report."""
    shown, differences = best(every, STEPS), groups.compare(best(every, COMPARED))
    anchors = {r.folder: f"step-{number}" for number, g in enumerate(shown, 1) for r in g.every}
    some = f"The best {len(shown)} of {len(every)}, in the order in which they ran; the others are in the table."
    steps = [
        _step(f"step-{number}", g, before)
        for number, (before, g) in enumerate(zip([None, *shown], shown, strict=False), 1)
    ]
    drawn = [draw(shown) for draw in (figures.curves, figures.rates, figures.last_epochs, figures.classes)]
    compared = Text(analysis.comparison(differences, every))
    return _filled(
        [
            _section("Runs", "runs", [tables.runs(found.runs, anchors)]),
            _section("Step by step", "steps", [Text(some) if len(shown) < len(every) else None], steps),
            _section("Side by side", "curves", drawn),
            _section(
                "Comparison",
                "comparison",
                [figures.differences(differences), tables.comparison(differences), compared],
            ),
            *(_study(f"study-{number}", study) for number, study in enumerate(found.studies, 1)),
            _section("Without a result, or damaged", "broken", [tables.broken(found)]),
        ]
    )


def best(given: list[Group], most: int) -> list[Group]:
    """The groups with the highest means, in the order in which they ran."""
    ranked = sorted(given, key=lambda g: -(g.mean or -math.inf))[:most]
    return [g for g in given if g in ranked]


def _filled(items: Iterable[Section | None]) -> list[Section]:
    return [item for item in items if item]


def _section(
    title: str,
    anchor: str,
    blocks: Iterable[Block | None],
    inner: Sequence[Section] = (),
    badge: Cell | None = None,
) -> Section | None:
    """A section of those blocks that say something; None where nothing does."""
    filled = [block for block in blocks if block and (isinstance(block, Table | Figure | Picture) or _says(block))]
    return Section(title, anchor, filled, inner, badge) if filled or inner else None


def _says(block: Text | Pairs | Chips | Fold) -> bool:
    return any(bool(value) for name, value in vars(block).items() if name != "title")


def _step(anchor: str, g: Group, before: Group | None) -> Section:
    r = g.shown
    target = tables.target(r)
    against = [(f"against {before.label}", analysis.brought(before, g))] if before else []
    settings = [("network", tables.network(g)), *tables.settings(r)]
    blocks: list[Block | None] = [
        Text(f"Target: {target}" * bool(target)),
        Chips(*tables.last(g)),
        figures.step(g),
        Pairs("Results", [*tables.results(g), *analysis.analyse(g), *against]),
        tables.layers(r),
        Pairs("Settings", [(name, value) for name, value in settings if value]),
        tables.changes(before, g) if before else None,
        tables.layer_changes(before, g) if before else None,
        Fold("Where it errs", [*filter(None, [figures.confusion(g)]), *_pictures(g)]),
    ]
    found = _section(g.label, anchor, blocks, badge=tables.group_verdict(g))
    return found or Section(g.label, anchor, [], badge=tables.group_verdict(g))


def _pictures(g: Group) -> list[Picture]:
    """Mistakes, and the confusion matrix where its numbers are not known."""
    found = []
    for name, title in {"mistakes": "Mistakes", "confusion": "Confusion matrix"}.items():
        file = g.shown.folder / f"{name}.png"
        if file.exists() and not (g.confusion and name == "confusion"):  # else pictures=false, or it did not end
            source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
            found.append(Picture(f"{title}, seed {g.shown.seed}", source))
    return found


def _study(anchor: str, study: Study) -> Section | None:
    drawn, missing = study_figures.draw(study)
    confirmed, tested = groups.confirmed(study), groups.tested(study)
    front = tables.trials(study, front=True) if study.multi_objective else None
    runs = [study.best, *study.best_seeds] if study.best else []
    which = "most accurate" if study.multi_objective else "best"
    fresh = [
        tables.confirmed(study, confirmed),
        Text(analysis.confirmation(study)),
        figures.last_epochs(confirmed, "Fresh seeds, validation images"),
        figures.last_epochs([tested], "The winner on the test images") if tested else None,
    ]
    inner = [
        _section("Trials", f"{anchor}-trials", [tables.trials(study)]),
        _section("The front", f"{anchor}-front", [front]),
        *(_section(each.title, f"{anchor}-{number}", [each]) for number, each in enumerate(drawn, 1)),
        _step(f"{anchor}-best", Group(f"Trial {runs[0].folder.name}, the {which}", runs), None) if runs else None,
        _section("Confirmed on fresh seeds", f"{anchor}-confirmed", fresh),
    ]
    said = [*(Text(problem, problem=True) for problem in study.problems), *map(Text, missing)]
    return _section(f"Study {study.folder.name}", anchor, [Pairs("", tables.study(study)), *said], _filled(inner))
