"""What the page says, printed in a terminal."""

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table as RichTable

from bantam.report import analysis, steps, tables
from bantam.report.groups import Group
from bantam.report.page import Report, StudyPart
from bantam.report.tables import Cell, Table

BEST = 20
"""Trials of a study that the terminal shows; the page has all."""

LONG, WRAPPED = 35, 24
"""Texts that are longer are wrapped, and need so much room."""

COLOURS = {"good": "green", "bad": "red", "warn": "yellow", "": "none"}


def show(report: Report, console: Console | None = None) -> None:
    """Print the tables and the sentences of a report."""
    console = console or Console(highlight=False)
    for name, value, what in tables.facts(report.contents, report.groups):
        _line(console, f"{name}: {value}" + f" ({what})" * bool(what))
    _table(console, "Runs", tables.runs(report.contents.runs, {}))
    for g, before in report.steps:
        _step(console, g, before)
    _table(console, "Comparison", tables.comparison(report.differences))
    _line(console, analysis.comparison(report.differences, report.groups))
    for part in report.studies:
        _study(console, part)
    _table(console, "Without a result, or damaged", tables.broken(report.contents))


def _line(console: Console, text: str) -> None:
    if text:
        console.print(escape(text), soft_wrap=True)


def _coloured(cell: Cell) -> str:
    return f"[{COLOURS[cell.mark]}]{escape(cell.text)}[/]"


def _study(console: Console, part: StudyPart) -> None:
    study, title = part.study, f"Study {part.study.folder.name}"
    console.print(f"\n[bold underline]{escape(title)}[/]")
    for line in [*(f"{name}: {value}" for name, value in tables.study(study)), *study.problems, *part.missing]:
        _line(console, line)
    _table(console, f"{title}: the front", tables.trials(study, front=True) if study.multi_objective else None)
    _table(console, f"{title}: the most accurate trials", tables.trials(study), BEST)
    for figure in [*part.figures, *part.confirm_figures]:
        _line(console, f"{figure.title}: {figure.see}")
    if part.best:
        _step(console, part.best, None)
    _table(console, f"{title}: confirmation on fresh seeds", tables.confirmed(study, part.confirmed))
    _line(console, analysis.confirmation(study))


def _step(console: Console, g: Group, before: Group | None) -> None:
    console.print(f"\n[bold underline]{escape(g.label)}[/]: {_coloured(tables.group_verdict(g))}", soft_wrap=True)
    r = g.shown
    what, last = tables.last(g)
    rows = [("target", tables.target(r)), ("network", tables.network(g)), *tables.settings(r), *tables.results(g)]
    rows += [(what, " ".join(cell.text for cell in last)), *analysis.analyse(g)]
    rows += [(f"against {before.label}", analysis.brought(before, g))] if before else []
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            grid.add_row(escape(name), escape(value))
    console.print(grid)
    _table(console, "", tables.layers(r))
    if before:
        _table(console, "", tables.changes(before.first, g.first))
        _line(console, "\n".join(steps.layer_changes(before.first.layers, g.first.layers)))


def _table(console: Console, title: str, table: Table | None, most: int | None = None) -> None:
    """Print a table, or its first rows, with the columns there is room for; it says which others there are."""
    if table is None:
        return
    texts = [[name, *(row[i].text for row in table.rows[:most])] for i, name in enumerate(table.titles)]
    widths = [max(map(cell_len, column)) for column in texts]
    widths = [WRAPPED if width > LONG else width for width in widths]
    kept = dict(zip(table.titles, widths, strict=True))
    for name in (*table.spare, *table.titles[:0:-1]):
        if sum(kept.values()) + 2 * (len(kept) - 1) > console.width:
            kept.pop(name, None)
    result = RichTable(box=None, pad_edge=False, header_style="bold")
    for name, width in kept.items():
        justify: JustifyMethod = "right" if table.numeric[table.titles.index(name)] else "left"
        whole = width != WRAPPED and len(kept) > 1
        result.add_column(escape(name), no_wrap=whole, overflow="fold", justify=justify)
    for row in table.rows[:most]:
        result.add_row(*(_coloured(row[table.titles.index(name)]) for name in kept))
    console.print(f"\n[bold underline]{escape(title)}[/]" if title else "")
    console.print(result)
    if len(kept) < len(table.titles):
        missing = ", ".join(name for name in table.titles if name not in kept)
        _line(console, f"Not shown, because the terminal is too narrow: {missing}")
