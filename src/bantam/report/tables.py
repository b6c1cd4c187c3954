"""Tables of runs, layers, changes, comparisons and trials, the same for the page and for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bantam import budget
from bantam.report import groups
from bantam.report.folders import Evidence, Run, Study, Trial
from bantam.report.groups import Difference, Group

MARKS = {"met": "good", "complete": "good", "not met": "bad", "diverged": "bad", "failed": "bad", "damaged": "bad"}
"""How a verdict or a state is coloured; all others call for attention only."""


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand on the right."""

    title: str
    numeric: bool = True
    everywhere: bool = True
    """False for one that only the page has room for."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table, by what it is sorted, and whether it is good or bad."""

    text: str
    value: float | str | None = None
    mark: str = ""
    link: str = ""
    """Part of the page that has the details."""


@dataclass(frozen=True)
class Table:
    """A table for the page and for the terminal."""

    columns: list[Column]
    rows: list[list[Cell]]


def percent(value: float | None, digits: int = 2) -> Cell:
    return Cell("" if value is None else f"{value:.{digits}f}", value)


def integer(value: Any) -> Cell:
    number = value if isinstance(value, int | float) else None
    return Cell("" if number is None else f"{number:,.0f}", number)


def verdict(word: str) -> Cell:
    return Cell(word, word, mark(word))


def mark(word: str) -> str:
    return MARKS.get(word.removesuffix(" (at chance)"), "warn")


def shown(path: Path) -> str:
    """A path as a person would type it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def runs(runs: Sequence[Run], anchors: dict[int, str]) -> Table:
    columns = [
        Column("folder", False),
        Column("network", False),
        *(Column(title) for title in ("seed", "parameters", "best")),
        Column("in epoch", everywhere=False),
        *(Column(title) for title in ("last", "lowest")),
        Column("minutes", everywhere=False),
        Column("verdict", False),
    ]
    rows = []
    for r in runs:
        lowest = min(r.last, default=None)
        took = sum(epoch.seconds for epoch in r.history) / 60 if r.history else None
        judged = lowest is not None and r.state in ("met", "not met")
        missed = lowest is not None and lowest < r.target
        rows.append(
            [
                Cell(shown(r.folder), r.folder.name.zfill(6), link=anchors.get(id(r), "")),
                Cell(r.name, r.name),
                Cell("" if r.seed is None else str(r.seed), r.seed),
                integer(r.result.get("parameters")),
                percent(r.result.get("best_accuracy")),
                integer(r.result.get("best_epoch")),
                percent(r.objective),
                Cell(percent(lowest).text, lowest, "" if not judged else "bad" if missed else "good"),
                Cell("" if took is None else f"{took:.1f}", took),
                verdict(r.state + " (at chance)" * bool(r.result.get("at_chance"))),
            ]
        )
    return Table(columns, rows)


def layers(rows: Sequence[budget.Layer]) -> Table | None:
    if not rows:
        return None
    columns = [
        Column("layer", False),
        *(Column(title) for title in ("output", "field", "parameters", "mult-adds")),
    ]
    return Table(
        columns,
        [
            [
                Cell(row.name, row.name),
                Cell("×".join(map(str, row.shape)), row.shape[0] if row.shape else 0),
                Cell(str(row.receptive_field), row.receptive_field),
                Cell(f"{row.parameters:,}" if row.parameters else "", row.parameters),
                Cell(_brief(row.multiply_adds), row.multiply_adds),
            ]
            for row in rows
        ],
    )


def _brief(count: int) -> str:
    """A count in thousands where it has so many; nothing for zero."""
    return f"{count / 1000:,.0f} k" if count >= 1000 else f"{count}" if count else ""


def changes(before: Group | None, g: Group) -> Table | None:
    found = groups.changes(before.first, g.first) if before else []
    if not found:
        return None
    columns = [Column("changed", False), Column("before", False), Column("now", False)]
    return Table(columns, [[Cell(c.key, c.key), Cell(c.before, c.before), Cell(c.after, c.after)] for c in found])


def comparison(found: Sequence[Difference]) -> Table | None:
    if not found:
        return None
    columns = [
        Column("compared", False),
        Column("what it says", False),
        *(Column(title) for title in ("points", "from", "to")),
    ]

    def signed(value: float | None) -> Cell:
        return Cell("" if value is None else groups.signed(value), value)

    return Table(
        columns,
        [
            [
                Cell(f"{each.label} against {each.reference}", each.label),
                Cell(each.sentence, each.sentence),
                Cell(groups.signed(each.points), each.points, "warn" if each.told else ""),
                signed(each.low),
                signed(each.high),
            ]
            for each in found
        ],
    )


def broken(found: Evidence) -> Table | None:
    rows = [
        [Cell(shown(r.folder), str(r.folder)), verdict(r.state), Cell(r.reason or r.state, r.reason)]
        for r in found.runs
        if r.objective is None or r.problems
    ]
    rows += [[Cell(shown(path), str(path)), verdict("no run"), Cell(why, why)] for path, why in found.broken]
    return (
        Table([Column("folder", False), Column("state", False), Column("reason", False)], rows) if rows else None
    )


def setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trials(keys: Sequence[str], listed: Sequence[Trial], ended: bool = False) -> Table:
    """Trials with their settings; of those that have `ended` well there is no state to tell and no reason."""
    columns = [
        Column("trial"),
        *([] if ended else [Column("state", False)]),
        Column("accuracy"),
        Column("parameters"),
        *(Column(key, everywhere=False) for key in keys),
        Column("seconds", everywhere=False),
        *([] if ended else [Column("reason", False)]),
    ]
    rows = []
    for t in listed:
        values = [t.settings.get(key) for key in keys]
        rows.append(
            [
                Cell(str(t.number), t.number),
                *([] if ended else [verdict(t.state)]),
                percent(t.objective, 3),
                integer(t.parameters),
                *(Cell("" if value is None else setting(value), value) for value in values),
                Cell("" if t.seconds is None else f"{t.seconds:.1f}", t.seconds),
                *([] if ended else [Cell(t.reason, t.reason)]),
            ]
        )
    return Table(columns, rows)


def confirmed(study: Study, seeds: Sequence[Group]) -> Table | None:
    if not seeds:
        return None
    searched = {f"trial {t.number}": t.objective for t in study.trials}
    differences = {d.label: d for d in groups.compare(seeds)}
    columns = [
        Column("trial", False),
        *(Column(title) for title in ("in the search", "seeds", "mean", "±", "lowest seed")),
        Column("against the best", False),
    ]
    rows = []
    for g in seeds:
        found = differences.get(g.label)
        rows.append(
            [
                Cell(g.label, g.label),
                percent(searched.get(g.label), 3),
                Cell(
                    f"{len(g.ended)} of {len(g.runs)}", len(g.ended), "" if len(g.ended) == len(g.runs) else "bad"
                ),
                percent(g.mean, 3),
                percent(g.deviation, 3),
                percent(min(g.objectives, default=None), 3),
                Cell(found.sentence if found else "", found.points if found else 0.0),
            ]
        )
    return Table(columns, rows)
