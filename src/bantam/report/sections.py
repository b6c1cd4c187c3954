"""What a report shows, as a tree of sections: the page, its table of contents and the terminal follow from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bantam.report import analysis, figures, groups, study_figures, tables
from bantam.report.axes import Figure
from bantam.report.folders import Contents, Study
from bantam.report.groups import Group
from bantam.report.tables import Cell, Table

STEPS = 12
"""Groups that are shown one by one; of more, the best."""

COMPARED = 24
"""Groups that are compared; of more, the best."""


class Text(str):
    """A paragraph."""


class Problem(Text):
    """A paragraph about what is missing or damaged."""


@dataclass(frozen=True)
class _Items:
    """What has a title; without items it says nothing."""

    title: str
    items: Sequence[Any]

    def __bool__(self) -> bool:
        return bool(self.items)


class Pairs(_Items):
    """Names, each with what there is to say of it."""


class Chips(_Items):
    """A few cells in a row."""


class Fold(_Items):
    """Figures and pictures that are shown on demand."""


@dataclass(frozen=True)
class Picture:
    """A PNG file."""

    title: str
    file: Path


Block = Text | Pairs | Chips | Table | Figure | Picture | Fold


@dataclass
class Section:
    """A part of the report under its heading, without empty blocks; `badge` is the verdict on what it shows."""

    title: str
    anchor: str
    blocks: Sequence[Block | None]
    inner: Sequence["Section"] = ()
    badge: Cell | None = None

    def __post_init__(self) -> None:
        self.blocks, self.inner = [block for block in self.blocks if block], [each for each in self.inner if each]

    def __bool__(self) -> bool:
        return bool(self.blocks or self.inner or self.badge)


def sections(found: Contents, every: list[Group]) -> list[Section]:
    """All sections of a report."""
    shown, differences = best(every, STEPS), groups.compare(best(every, COMPARED))
    anchors = {r.folder: f"step-{number}" for number, g in enumerate(shown, 1) for r in g.every}
    some = f"The best {len(shown)} of {len(every)}, in the order in which they ran; the others are in the table."
    pairs = enumerate(zip([None, *shown], shown, strict=False), 1)
    steps = [_step(f"step-{number}", g, before) for number, (before, g) in pairs]
    drawn = [draw(shown) for draw in (figures.curves, figures.rates, figures.last_epochs, figures.classes)]
    said = Text(analysis.comparison(differences, every))
    compared = [figures.differences(differences), tables.comparison(differences), said]
    every_section = [
        Section("Runs", "runs", [tables.runs(found.runs, anchors)]),
        Section("Step by step", "steps", [Text(some) if len(shown) < len(every) else None], steps),
        Section("Side by side", "curves", drawn),
        Section("Comparison", "comparison", compared),
        *(_study(f"study-{number}", study) for number, study in enumerate(found.studies, 1)),
        Section("Without a result, or damaged", "broken", [tables.broken(found)]),
    ]
    return [*filter(None, every_section)]


def best(given: list[Group], most: int) -> list[Group]:
    """The groups with the highest means, in the order in which they ran."""
    ranked = sorted(given, key=lambda g: -(g.mean or -math.inf))[:most]
    return [g for g in given if g in ranked]


def _step(anchor: str, g: Group, before: Group | None) -> Section:
    r = g.shown
    target = tables.target(r)
    against = [(f"against {before.label}", analysis.brought(before, g))] if before else []
    blocks: list[Block | None] = [
        Text(f"Target: {target}" * bool(target)),
        Chips(*tables.last(g)),
        figures.step(g),
        Pairs("Results", [*tables.results(g), *analysis.analyse(g), *against]),
        tables.layers(r),
        Pairs("Settings", tables.settings(g)),
        tables.changes(before, g) if before else None,
        tables.layer_changes(before, g) if before else None,
        Fold("Where it errs", [*filter(None, [figures.confusion(g)]), *_pictures(g)]),
    ]
    return Section(g.label, anchor, blocks, badge=tables.group_verdict(g))


def _pictures(g: Group) -> list[Picture]:
    """Mistakes, and the confusion matrix where its numbers are not known."""
    titles = {"mistakes": "Mistakes"} | ({} if g.confusion else {"confusion": "Confusion matrix"})
    files = {title: g.shown.folder / f"{name}.png" for name, title in titles.items()}
    # There are none with pictures=false, or where the run did not end.
    return [Picture(f"{title}, seed {g.shown.seed}", file) for title, file in files.items() if file.exists()]


def _study(anchor: str, study: Study) -> Section:
    drawn, missing = study_figures.draw(study)
    confirmed, tested = groups.confirmed(study), groups.tested(study)
    runs = [study.best, *study.best_seeds] if study.best else []
    which = "most accurate" if study.multi_objective else "best"
    fresh = [
        tables.confirmed(study, confirmed),
        Text(analysis.confirmation(study)),
        figures.last_epochs(confirmed, "Fresh seeds, validation images"),
        figures.last_epochs([tested], "The winner on the test images") if tested else None,
    ]
    inner = [
        Section("Trials", f"{anchor}-trials", [tables.trials(study)]),
        Section("The front", f"{anchor}-front", [tables.trials(study, front=True)] * study.multi_objective),
        *(Section(each.title, f"{anchor}-{number}", [each]) for number, each in enumerate(drawn, 1)),
        *(_step(f"{anchor}-best", Group(f"Trial {r.folder.name}, the {which}", runs), None) for r in runs[:1]),
        Section("Confirmed on fresh seeds", f"{anchor}-confirmed", fresh),
    ]
    said: list[Block] = [*map(Problem, study.problems), *map(Text, missing)]
    return Section(f"Study {study.folder.name}", anchor, [Pairs("", tables.study(study)), *said], inner)
