"""What the page says, printed in a terminal."""

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table as RichTable

from bantam.report.figures import Figure
from bantam.report.page import Pairs, Report, Section, Text
from bantam.report.tables import Cell, Table

LONG, WRAPPED = 35, 24
"""Texts that are longer are wrapped, and need so much room."""

COLOURS = {"good": "green", "bad": "red", "warn": "yellow", "": "none"}


def show(report: Report, console: Console | None = None) -> None:
    """Print the tables and the sentences of a report."""
    console = console or Console(highlight=False)
    for name, value, what in report.facts:
        _line(console, f"{name}: {value}" + f" ({what})" * bool(what))
    for section in report.sections:
        _section(console, section)


def _section(console: Console, section: Section) -> None:
    if all(isinstance(block, Figure) and not block.see for block in section.blocks) and not section.inner:
        return  # its figures are on the page
    verdict = f": {_coloured(section.badge)}" if section.badge else ""
    console.print(f"\n[bold underline]{escape(section.title)}[/]{verdict}", soft_wrap=True)
    for block in section.blocks:
        match block:
            case Table():
                _table(console, block)
            case Text():
                _line(console, block)
            case Figure() if block.see:
                _line(console, f"{block.title}: {block.see}")
            case Pairs():
                grid = RichTable.grid(padding=(0, 2))
                grid.add_column(style="bold")
                grid.add_column(overflow="fold")
                for name, value in block.items:
                    cells = [Cell(value)] if isinstance(value, str) else value
                    grid.add_row(escape(name), " ".join(map(_coloured, cells)))
                console.print(grid)
    for inner in section.inner:
        _section(console, inner)


def _line(console: Console, text: str) -> None:
    console.print(escape(text), soft_wrap=True)


def _coloured(cell: Cell) -> str:
    return f"[{COLOURS[cell.mark]}]{escape(cell.text)}[/]"


def _table(console: Console, table: Table) -> None:
    """Print the first rows of a table with the columns there is room for; it says what else there is."""
    rows = table.rows[: table.most]
    texts = [table.titles, *([cell.text for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    kept = {i: WRAPPED if width > LONG else width for i, width in enumerate(widths)}
    spare = [table.titles.index(title) for title in table.spare if title in table.titles]
    last = [*spare, *reversed(range(1, len(widths)))]
    while sum(kept.values()) + 2 * (len(kept) - 1) > console.width and last:
        kept.pop(last.pop(0), None)
    result = RichTable(box=None, pad_edge=False, header_style="bold")
    for i in kept:
        justify: JustifyMethod = "right" if table.numeric[i] else "left"
        whole = widths[i] <= LONG and len(kept) > 1
        result.add_column(escape(table.titles[i]), no_wrap=whole, overflow="fold", justify=justify)
    for row in rows:
        result.add_row(*(_coloured(row[i]) for i in kept))
    if table.title:
        _line(console, f"\n{table.title}")
    console.print(result)
    missing = [title for i, title in enumerate(table.titles) if i not in kept]
    if missing:
        _line(console, f"Not shown, because the terminal is too narrow: {', '.join(missing)}")
    if len(rows) < len(table.rows):
        _line(console, f"… and {len(table.rows) - len(rows)} more rows, which the page has")
