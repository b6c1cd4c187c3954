"""What a report shows, as a tree of sections: the page, its table of contents and the terminal follow from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bantam.budget import COSTS
from bantam.report import analysis, figures, groups, study_figures, tables
from bantam.report.figures import Figure
from bantam.report.folders import Contents, Study
from bantam.report.groups import Group
from bantam.report.tables import Cell, Table

STEPS, COMPARED = 12, 24
"""Groups that are shown one by one, and that are compared; of more, the best."""


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
    """Names, each with what there is to say of it: a text, or a few cells in a row."""


class Fold(_Items):
    """Figures and pictures that are shown on demand."""


@dataclass(frozen=True)
class Picture:
    """A PNG file."""

    title: str
    file: Path


Block = Text | Pairs | Table | Figure | Picture | Fold


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
    before = [None, *shown]
    steps = [_step(f"step-{number}", g, before[number - 1]) for number, g in enumerate(shown, 1)]
    trained = [g for g in shown if g.trained]
    drawn = [figures.curves(trained), figures.rates(trained)] if trained else []
    said = Text(analysis.comparison(differences, every))
    every_section = [
        Section("Runs", "runs", [tables.runs(found.runs, anchors)]),
        Section("Step by step", "steps", [Text(some) if len(shown) < len(every) else None], steps),
        Section("Side by side", "curves", [*drawn, figures.last_epochs(shown), figures.classes(shown)]),
        Section("Comparison", "comparison", [tables.comparison(differences), said]),
        *(_study(f"study-{number}", study) for number, study in enumerate(found.studies, 1)),
        Section("Without a result, or damaged", "broken", [tables.broken(found)]),
    ]
    return [*filter(None, every_section)]


def best(given: list[Group], most: int) -> list[Group]:
    """The groups with the highest means, in the order in which they ran."""
    ranked = sorted(given, key=lambda g: -(g.mean or -math.inf))[:most]
    return [g for g in given if g in ranked]


def _step(anchor: str, g: Group, before: Group | None) -> Section:
    target = tables.target(g.shown)
    against = [(f"against {before.label}", analysis.brought(before, g))] if before else []
    mistakes = g.shown.folder / "mistakes.png"  # there is none with pictures=false, or where the run did not end
    picture = Picture(f"Mistakes, seed {g.shown.seed}", mistakes) if mistakes.exists() else None
    blocks: list[Block | None] = [
        Text(f"Target: {target}" * bool(target)),
        figures.step(g) if g.trained else None,
        Pairs("Results", [*tables.last(g), *tables.results(g), *analysis.analyse(g), *against]),
        tables.layers(g.shown),
        Pairs("Settings", tables.settings(g)),
        tables.changes(before, g) if before else None,
        tables.layer_changes(before, g) if before else None,
        Fold("Where it errs", [*filter(None, [figures.confusion(g), picture])]),
    ]
    return Section(g.label, anchor, blocks, badge=tables.group_verdict(g))


def _study(anchor: str, study: Study) -> Section:
    drawn, missing = study_figures.draw(study)
    confirmed, tested = groups.confirmed(study), groups.tested(study)
    best = Group(f"Trial {study.best[0].folder.name}, the {study.winner}", study.best) if study.best else None
    front = Text(f"No trial is as accurate with fewer {COSTS[study.cost]}.")
    fresh = [
        tables.confirmed(study, confirmed),
        Text(analysis.confirmation(study)),
        figures.last_epochs(confirmed, "Fresh seeds, validation images"),
        figures.last_epochs([tested], "The winner on the test images") if tested else None,
    ]
    inner = [
        Section("Trials", f"{anchor}-trials", [tables.trials(study)]),
        Section("The front", f"{anchor}-front", [front, tables.trials(study, front=True)] * study.multi_objective),
        *(Section(each.title, f"{anchor}-{number}", [each]) for number, each in enumerate(drawn, 1)),
        *([_step(f"{anchor}-best", best, None)] if best else []),
        Section("Confirmed on fresh seeds", f"{anchor}-confirmed", fresh),
    ]
    said: list[Block] = [*map(Problem, study.problems), *map(Text, missing)]
    return Section(f"Study {study.folder.name}", anchor, [Pairs("", tables.study(study)), *said], inner)
