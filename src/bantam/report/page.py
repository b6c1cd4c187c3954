"""What a report shows, as a tree of sections, and the page of it: one file, from folders alone.

The page, its table of contents and the terminal follow from the sections. While a search runs, the page is
written again and again.
"""

import base64
import gzip
import math
import re
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from bantam.budget import COSTS
from bantam.config import raised_in
from bantam.overrides import command_line
from bantam.report import analysis, figures, folders, groups, study_figures, tables
from bantam.report.figures import STYLE, Figure
from bantam.report.folders import Study
from bantam.report.groups import Group
from bantam.report.tables import Cell, Table
from bantam.training import folder as record
from bantam.training.settings import short_path

PAGE = "report.html"

PAUSE, SHARE = 20.0, 0.02
"""While a search runs: seconds between two pages at least, and the share of all time that writing may take."""

STEPS, COMPARED = 12, 24
"""Groups that are shown one by one, and that are compared; of more, the best."""


class Text(str):
    """A paragraph."""


class Problem(Text):
    """A paragraph about what is missing or damaged."""


@dataclass(frozen=True)
class Pairs:
    """Names, each with what there is to say of it: a text, or a few cells in a row."""

    title: str
    items: Sequence[tuple[str, str | list[Cell]]]

    def __bool__(self) -> bool:
        return bool(self.items)


@dataclass(frozen=True)
class Picture:
    """A PNG file, which is shown on demand."""

    title: str
    file: Path


Block = Text | Pairs | Table | Figure | Picture


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


@dataclass
class Report:
    """What the page and the terminal show of some folders."""

    title: str
    running: bool
    """A search goes on: the page loads itself again."""
    facts: list[tuple[str, str, str]]
    """Name, number and what it is about."""
    sections: list[Section]


@figures.without_style()
def read(given: Sequence[Path], running: bool = False) -> Report:
    """All that a report of some folders shows. Raises ValueError for a folder that does not exist."""
    found = folders.gather(given)
    every = groups.group(found.runs)
    shown, differences = best(every, STEPS), groups.compare(best(every, COMPARED))
    anchors = {r.folder: f"step-{number}" for number, g in enumerate(shown, 1) for r in g.every}
    some = f"The best {len(shown)} of {len(every)}, in the order in which they ran; the others are in the table."
    before = [None, *shown]
    steps = [_step(f"step-{number}", g, before[number - 1]) for number, g in enumerate(shown, 1)]
    trained = [g for g in shown if g.trained]
    drawn = [figures.curves(trained), figures.rates(trained)] if trained else []
    said = Text(analysis.comparison(differences, every))
    sections = [
        Section("Runs", "runs", [tables.runs(found.runs, anchors)]),
        Section("Step by step", "steps", [Text(some) if len(shown) < len(every) else None], steps),
        Section("Side by side", "curves", [*drawn, figures.last_epochs(shown), figures.classes(shown)]),
        Section("Comparison", "comparison", [tables.comparison(differences), said]),
        *(_study(f"study-{number}", study) for number, study in enumerate(found.studies, 1)),
        Section("Without a result, or damaged", "broken", [tables.broken(found)]),
    ]
    title = ", ".join(short_path(folder) for folder in given)
    return Report(title, running, tables.facts(found, every), [*filter(None, sections)])


def best(given: list[Group], most: int) -> list[Group]:
    """The groups with the highest means, in the order in which they ran."""
    ranked = sorted(given, key=lambda g: -(g.mean or -math.inf))[:most]
    return [g for g in given if g in ranked]


def _step(anchor: str, g: Group, before: Group | None) -> Section:
    target = tables.target(g.first)
    against = [(f"against {before.label}", analysis.brought(before, g))] if before else []
    mistakes = g.first.folder / "mistakes.png"  # there is none with pictures=false, or where the run did not end
    picture = Picture(f"Mistakes, seed {g.first.seed}", mistakes) if mistakes.exists() else None
    blocks = [
        Text(f"Target: {target}" * bool(target)),
        figures.step(g) if g.trained else None,
        Pairs("Results", [*tables.last(g), *tables.results(g), *analysis.analyse(g), *against]),
        tables.layers(g.first),
        Pairs("Settings", tables.settings(g)),
        *([tables.changes(before, g), tables.layer_changes(before, g)] if before else []),
        figures.confusion(g),
        picture,
    ]
    return Section(g.label, anchor, blocks, badge=tables.group_verdict(g))


def _study(anchor: str, study: Study) -> Section:
    drawn, missing = study_figures.draw(study)
    confirmed, tested = groups.confirmed(study), groups.tested(study)
    front = Text(f"No trial is as accurate with fewer {COSTS[study.cost]}.")
    fresh = [
        tables.confirmed(study, confirmed),
        Text(analysis.confirmation(study)),
        figures.last_epochs(confirmed, "Fresh seeds, validation images"),
        figures.last_epochs([tested], f"The winner on the {tested.first.split} images") if tested else None,
    ]
    best = [Group(f"Trial {study.top.number}, the {study.winner}", study.best)] if study.top and study.best else []
    inner = [
        Section("Trials", f"{anchor}-trials", [tables.trials(study)]),
        Section("The front", f"{anchor}-front", [front, tables.trials(study, front=True)] * study.multi_objective),
        *(Section(each.title, f"{anchor}-{number}", [each]) for number, each in enumerate(drawn, 1)),
        *(_step(f"{anchor}-best", g, None) for g in best),
        Section("Confirmed on fresh seeds", f"{anchor}-confirmed", fresh),
    ]
    said: list[Block | None] = [Pairs("", tables.study(study)), *map(Problem, study.problems), *map(Text, missing)]
    return Section(f"Study {study.folder.name}", anchor, said, inner)


def save(report: Report, given: Sequence[Path], output: Path | None = None) -> Path:
    """Write a report; returns the page's path.

    It goes into the folder where one is given, and into the current one where several are, unless
    `output` says where. Raises ValueError where it cannot be written.
    """
    path = output or (given[0] / PAGE if len(given) == 1 else Path(PAGE))
    path = path / PAGE if output and output.is_dir() else path
    try:
        record.write(path, render(report).encode())
    except OSError as error:
        why = f"{path} cannot be written ({error.strerror})"
        raise ValueError(f"{why}: give another place with --output") from error
    return path


def write(given: Sequence[Path], output: Path | None = None, running: bool = False) -> Path:
    """Read some folders and write their report, as `read` and `save` do."""
    return save(read(given, running), given, output)


def at_end(folder: Path) -> bool:
    """Write the report of a multirun or a search that has just ended; returns whether it could be written.

    Whatever goes wrong is one sentence: the runs are done and recorded.
    """
    try:
        print(f"\nLook at it: {short_path(write([folder]))}")
        return True
    except Exception as error:
        what = " ".join(str(error).split())
        if raised_in(error).partition(".")[0] != "bantam":  # a fault of ours, or of the machine
            what = f"{type(error).__name__}: {what}"
            with suppress(OSError, ValueError):
                record.write(folder / "error.txt", traceback.format_exc().encode(errors="replace"))
                what += f"; the traceback is in {short_path(folder / 'error.txt')}"
        again = command_line(["python", "report.py", Path(short_path(folder))])
        print(f"\nNo report was written ({what}), but all results are there: {again} writes it", file=sys.stderr)
        return False


_written: dict[Path, tuple[float, float]] = {}
"""When the page of a running search was written last, and how many seconds that took."""


def while_running(folder: Path) -> bool:
    """Write the report of a search that goes on, and return False where that was done just now; it never raises.

    Call it whenever trials have ended. A page waits until `PAUSE` seconds have passed, and longer where
    writing it would take more than its `SHARE` of the time.
    """
    started = time.monotonic()
    last, took = _written.get(folder, (-math.inf, 0.0))
    if started - last < max(PAUSE, took / SHARE):
        return False
    with suppress(Exception):  # the search matters more; when it ends, what is wrong is said
        write([folder], running=True)
    _written[folder] = (time.monotonic(), time.monotonic() - started)
    return True


@figures.without_style()
def render(report: Report) -> str:
    """The page as HTML that needs nothing beside itself; it unpacks its figures and Plotly."""
    plots: list[go.Figure] = []

    def number(figure: Figure) -> int:
        plots.append(go.Figure(figure.plot).update_layout(template=STYLE, title_text=None))
        return len(plots) - 1

    def data() -> str:
        return _packed(to_json_plotly(plots, engine="json"))

    return _template().render(report=report, number=number, data=data, written=f"{datetime.now():%Y-%m-%d %H:%M}")


def _packed(text: str) -> str:
    """A text as the page has it: labels of trials, which occur in several figures, take little room."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def _template() -> jinja2.Template:
    """`page.html` with its style and its scripts."""
    how: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    loader, breaks = jinja2.PackageLoader("bantam.report", ""), r"(?<=\.)|(?<=_)(?=.{8})"
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **how)
    environment.globals["plotly"] = _packed(get_plotlyjs())
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["breakable"] = lambda title: Markup("<wbr>").join(re.split(breaks, title))
    return environment.get_template("page.html")
