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
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from bantam.report import folders, groups, sections, tables
from bantam.report.figures import STYLE, Figure
from bantam.report.sections import Section
from bantam.training import folder as record
from bantam.training.settings import short_path

PAGE = "report.html"

PAUSE, SHARE = 20.0, 0.02
"""While a search runs: seconds between two pages at least, and the share of all time that writing may take."""


@dataclass
class Report:
    """What the page and the terminal show of some folders."""

    title: str
    running: bool
    """A search goes on: the page loads itself again."""
    facts: list[tuple[str, str, str]]
    """Name, number and what it is about."""
    sections: list[Section]


def read(given: Sequence[Path], running: bool = False) -> Report:
    """All that a report of some folders shows. Raises ValueError for a folder that does not exist."""
    found = folders.gather(given)
    every = groups.group(found.runs)
    title = ", ".join(short_path(folder) for folder in given)
    return Report(title, running, tables.facts(found, every), sections.sections(found, every))


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


def at_end(folder: Path) -> None:
    """Write the report of a multirun or a search that has just ended; whatever goes wrong is one sentence."""
    try:
        print(f"\nLook at it: {short_path(write([folder]))}")
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
    plots: list[go.Figure] = []

    def number(figure: Figure) -> int:
        plots.append(go.Figure(figure.plot).update_layout(template=STYLE, title_text=None))
        return len(plots) - 1

    def data() -> Markup:
        drawn, first = [plot.to_plotly_json() for plot in plots], dict[tuple[str, ...], str]()
        traces = {f"={i}.{j}": trace for i, each in enumerate(drawn) for j, trace in enumerate(each["data"])}
        for here, trace in traces.items():
            # The labels of a thousand trials stand in two figures: the second one says where the first has them.
            if trace["type"] == "scatter" and trace.get("text"):
                there = first.setdefault(tuple(trace["text"]), here)
                trace["text"] = trace["text"] if there == here else there
        return Markup(to_json_plotly(drawn, engine="json").replace(r"\u003cbr\u003e", "<br>"))

    return _template().render(report=report, number=number, data=data, written=f"{datetime.now():%Y-%m-%d %H:%M}")


@cache
def _template() -> jinja2.Template:
    """`page.html` with its style and its scripts; Plotly's is packed to less than half, the page unpacks it."""
    how: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    loader, breaks = jinja2.PackageLoader("bantam.report", ""), r"(?<=\.)|(?<=_)(?=.{8})"
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **how)
    environment.globals["plotly"] = gzip.compress(get_plotlyjs().encode(), 9, mtime=0)
    environment.filters["base64"] = lambda content: Markup(base64.b64encode(content).decode())
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["breakable"] = lambda title: Markup("<wbr>").join(re.split(breaks, title))
    return environment.get_template("page.html")
