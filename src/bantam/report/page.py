"""Look instead of read: one page, `report.html`, from folders alone, and written again while a search runs."""

import base64
import gzip
import math
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from bantam.report import analysis, figures, folders, groups, steps, study_figures, tables
from bantam.report.figures import Figure
from bantam.report.folders import Contents, Study
from bantam.report.groups import Difference, Group
from bantam.training import folder as record

PAGE = "report.html"

STEPS = 12
"""Groups that are shown one by one; of more, the best."""

COMPARED = 24
"""Groups that are compared; of more, the best."""

PAUSE, SHARE = 20.0, 0.02
"""While a search runs: seconds between two pages at least, and the share of all time that writing may take."""


@dataclass
class StudyPart:
    """What is shown of one search."""

    study: Study
    figures: list[Figure]
    missing: list[str]
    """Why other figures cannot be drawn."""
    best: Group | None
    """The most accurate trial."""
    confirmed: list[Group]
    confirm_figures: list[Figure]


def _part(study: Study) -> StudyPart:
    drawn, missing = study_figures.draw(study)
    best, confirmed, tested = None, groups.confirmed(study), groups.tested(study)
    if study.best:
        which = "most accurate" if study.multi_objective else "best"
        best = Group(f"Trial {study.best.folder.name}, the {which}", [study.best])
    seeds = figures.last_epochs(confirmed, "Fresh seeds, validation images")
    winner = figures.last_epochs([tested], "The winner on the test images") if tested else None
    return StudyPart(study, drawn, missing, best, confirmed, [figure for figure in (seeds, winner) if figure])


@dataclass
class Report:
    """What the page and the terminal show of some folders."""

    title: str
    contents: Contents
    running: bool
    """A search goes on: the page loads itself again."""
    groups: list[Group]
    steps: list[tuple[Group, Group | None]]
    """The groups that are shown one by one, each with the one before it."""
    differences: list[Difference]
    figures: list[Figure]
    """Those that show the steps side by side."""
    studies: list[StudyPart]


def read(given: Sequence[Path], running: bool = False) -> Report:
    """All that a report of some folders shows. Raises ValueError for a folder that does not exist."""
    found = folders.gather(given)
    every = groups.group(found.runs)
    shown = _best(every, STEPS)
    drawn = (each(shown) for each in (figures.curves, figures.rates, figures.last_epochs, figures.classes))
    return Report(
        title=", ".join(tables.path_shown(folder) for folder in given),
        contents=found,
        running=running,
        groups=every,
        steps=list(zip(shown, [None, *shown], strict=False)),
        differences=groups.compare(_best(every, COMPARED)),
        figures=[figure for figure in drawn if figure],
        studies=[_part(study) for study in found.studies],
    )


def _best(given: list[Group], most: int) -> list[Group]:
    """The groups with the highest means, in the order in which they ran."""
    best = sorted(given, key=lambda g: -(g.mean or -math.inf))[:most]
    return [g for g in given if g in best]


def _pictures(g: Group) -> list[tuple[str, str]]:
    """Titles and PNG files as data URLs: mistakes, and the confusion matrix where its numbers are not known."""
    r, found = g.shown, []
    for name in ("mistakes",) if g.confusion else ("mistakes", "confusion"):
        picture = r.folder / f"{name}.png"
        if picture.exists():  # else pictures=false, or it did not come to its end
            title = f"{'Mistakes' if name == 'mistakes' else 'Confusion matrix'}, seed {r.seed}"
            found.append((title, f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"))
    return found


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
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): give another place with --output"
        ) from error
    return path


def write(given: Sequence[Path], output: Path | None = None, running: bool = False) -> Path:
    """Read some folders and write their report, as `read` and `save` do."""
    return save(read(given, running), given, output)


def at_end(folder: Path) -> None:
    """Write the report of a multirun or a search that has just ended; whatever goes wrong is one sentence."""
    try:
        print(f"\nLook at it: {tables.path_shown(write([folder]))}")
    except Exception as error:  # the runs are done and recorded: nothing of the report may change how they end
        print(f"\nNo report was written: {' '.join(f'{type(error).__name__}: {error}'.split())}")


_written: dict[Path, tuple[float, float]] = {}
"""When the page of a running search was written last, and how many seconds that took."""


def while_running(folder: Path) -> None:
    """Write the report of a search that goes on, unless that was done just now; it never raises.

    Call it whenever trials have ended. A page waits until `PAUSE` seconds have passed, and longer where
    writing it would take more than its `SHARE` of the time.
    """
    started = time.monotonic()
    last, took = _written.get(folder, (-math.inf, 0.0))
    if started - last < max(PAUSE, took / SHARE):
        return
    with suppress(Exception):  # the search matters more; when it ends, what is wrong is said
        write([folder], running=True)
    _written[folder] = (time.monotonic(), time.monotonic() - started)


def render(report: Report) -> str:
    """The page as HTML that needs nothing beside itself."""
    drawn: list[Figure] = []

    def number(figure: Figure) -> int:
        drawn.append(figure)
        return len(drawn) - 1

    def data() -> Markup:
        plots = [figure.plot.to_plotly_json() for figure in drawn]
        for plot in plots:  # the page says the title, and has a style of its own
            plot["layout"] = {
                key: value for key, value in plot["layout"].items() if key not in ("title", "template")
            }
        return Markup(to_json_plotly(plots, engine="json"))

    return _template().render(
        report=report,
        number=number,
        data=data,
        broken=tables.broken(report.contents),
        anchors={r.folder: f"step-{number}" for number, (g, _) in enumerate(report.steps, 1) for r in g.every},
        compared=analysis.comparison(report.differences, report.groups),
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
    )


@cache
def _template() -> jinja2.Template:
    """`page.html` with its style and its scripts; Plotly's is packed to less than half, the page unpacks it."""
    html, css, js = (
        files("bantam.report").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    plotly = base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
    modules = {"analysis": analysis, "steps": steps, "tables": tables, "figures": figures}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(modules, css=Markup(css), js=Markup(js), plotly=Markup(plotly), pictures=_pictures)
    environment.filters["breakable"] = lambda title: Markup("<wbr>").join(
        re.split(r"(?<=\.)|(?<=_)(?=.{8})", title)
    )
    return environment.from_string(html)
