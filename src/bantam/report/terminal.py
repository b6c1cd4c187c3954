"""What the page says, printed in a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bantam.report.page import Page, Step
from bantam.report.tables import Table

BEST = 20
"""Trials of a study that the terminal shows; the page has all."""

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
