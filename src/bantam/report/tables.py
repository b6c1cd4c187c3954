"""Tables and pairs of names and values, the same for the page and for the terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bantam.report import groups
from bantam.report.folders import Contents, Study, Trial
from bantam.report.groups import Difference, Group
from bantam.report.numbers import shown, signed
from bantam.report.runs import Run

Pairs = list[tuple[str, str]]

MARKS = {"met": "good", "complete": "good", "not met": "bad", "diverged": "bad", "failed": "bad", "damaged": "bad"}
"""How a verdict or a state is coloured; all others call for attention only."""


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand on the right."""

    title: str
    digits: int | None = None
    """After the point."""
    numeric: bool = True
    everywhere: bool = True
    """False for one that only the page has room for."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table, by what it is sorted, and whether it is good or bad."""

    text: str
    value: Any = None
    mark: str = ""
    link: str = ""
    """Part of the page that has the details."""


@dataclass(frozen=True)
class Table:
    """A table for the page and for the terminal."""

    columns: list[Column]
    rows: list[list[Cell]]


def _table(columns: list[Column], rows: Iterable[Sequence[Any]]) -> Table | None:
    """A table of values, each written as its column says; cells stay as they are. None where there is no row."""

    def cell(value: Any, column: Column) -> Cell:
        digits = column.digits if isinstance(value, int | float) else None
        return value if isinstance(value, Cell) else Cell(shown(value, digits), value)

    cells = [[cell(value, column) for value, column in zip(row, columns, strict=True)] for row in rows]
    return Table(columns, cells) if cells else None


def verdict(word: str) -> Cell:
    """A verdict or a state in its colour."""
    return Cell(word, word, MARKS.get(word.removesuffix(" (at chance)"), "warn"))


def group_verdict(g: Group) -> Cell:
    """The verdict of a run, or of seeds together."""
    if len(g.runs) == 1:
        return verdict(g.verdict)
    missed = not g.met and all(r.judged for r in g.runs)
    return Cell(g.verdict, g.verdict, "good" if g.met == len(g.runs) else "bad" if missed else "warn")


def _accuracy(value: float, r: Run) -> Cell:
    """An accuracy, good or bad by the target where the run was judged."""
    judged = r.judged and not math.isnan(r.target)
    return Cell(shown(value, 2), value, "" if not judged else "bad" if value < r.target else "good")


def path_shown(path: Path) -> str:
    """A path as a person would type it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _words(*titles: str) -> list[Column]:
    return [Column(title, numeric=False) for title in titles]


def runs(listed: Sequence[Run], anchors: Mapping[Path, str]) -> Table | None:
    """A row for each run, with a link to its step where it has one."""
    columns = [
        *_words("folder", "network"),
        *(Column("seed"), Column("parameters"), Column("best", 2), Column("in epoch", everywhere=False)),
        *(Column("last", 2), Column("lowest", 2), Column("minutes", 1, everywhere=False)),
        *_words("verdict"),
    ]
    rows = []
    for r in listed:
        rows.append(
            [
                Cell(path_shown(r.folder), r.folder.name.zfill(6), link=anchors.get(r.folder, "")),
                r.name,
                Cell(str("" if r.seed is None else r.seed), r.seed),
                r.result.get("parameters"),
                r.result.get("best_accuracy"),
                r.result.get("best_epoch"),
                r.objective,
                _accuracy(min(r.last), r) if r.last else None,
                sum(epoch.seconds for epoch in r.history) / 60 if r.history else None,
                verdict(r.verdict),
            ]
        )
    return _table(columns, rows)


def layers(r: Run) -> Table | None:
    """The layers of a run's network; of multiply-adds the thousands."""
    columns = [*_words("layer"), *map(Column, ("output", "field", "parameters", "mult-adds"))]
    rows = []
    for row in r.layers:
        adds = (
            f"{row.multiply_adds / 1000:,.0f} k" if row.multiply_adds >= 1000 else shown(row.multiply_adds or None)
        )
        shape = Cell("×".join(map(str, row.shape)), row.shape[0] if row.shape else 0)
        rows.append([row.name, shape, row.receptive_field, row.parameters or None, Cell(adds, row.multiply_adds)])
    return _table(columns, rows)


def changes(before: Run, after: Run) -> Table | None:
    """Settings that differ between two steps."""
    return _table(_words("changed", "before", "now"), groups.changes(before, after))


def comparison(found: Sequence[Difference]) -> Table | None:
    """Differences to the best, with their intervals."""
    columns = [*_words("compared", "what it says"), Column("points"), Column("from"), Column("to")]
    rows = [
        [
            f"{each.label} against {each.reference}",
            each.sentence,
            Cell(signed(each.points), each.points, "warn" if each.distinguishable else ""),
            Cell(signed(each.low), each.low),
            Cell(signed(each.high), each.high),
        ]
        for each in found
    ]
    return _table(columns, rows)


def broken(found: Contents) -> Table | None:
    """What has no result or is damaged, and why."""
    rows = [
        [path_shown(r.folder), verdict(r.state), r.reason or r.state]
        for r in found.runs
        if r.objective is None or r.problems
    ]
    rows += [[path_shown(path), verdict("no run"), why] for path, why in found.broken]
    return _table(_words("folder", "state", "reason"), rows)


def trials(study: Study) -> Table | None:
    """All trials of a study with their settings, the most accurate first."""
    columns = [Column("trial"), *_words("state"), Column("accuracy", 3), Column("parameters")]
    columns += [Column(key, everywhere=False) for key in study.keys]
    columns += [Column("seconds", 1, everywhere=False), *_words("reason")]
    listed = sorted(study.trials, key=lambda t: -1.0 if t.objective is None else t.objective, reverse=True)
    rows = [
        [t.number, verdict(t.state), t.objective, t.parameters, *_settings(study, t), t.seconds, t.reason]
        for t in listed
    ]
    return _table(columns, rows)


def front(study: Study) -> Table | None:
    """The trials that no other beats in accuracy with as few parameters."""
    columns = [Column("trial"), Column("accuracy", 3), Column("parameters")]
    columns += [Column(key, everywhere=False) for key in study.keys]
    return _table(columns, [[t.number, t.objective, t.parameters, *_settings(study, t)] for t in study.front])


def _settings(study: Study, t: Trial) -> list[object]:
    return [t.settings.get(key) for key in study.keys]


def confirmed(study: Study, seeds: Sequence[Group]) -> Table | None:
    """The best trials on fresh seeds, against the best of them."""
    columns = [*_words("trial"), Column("in the search", 3), Column("seeds"), Column("mean", 3), Column("±", 3)]
    columns += [Column("lowest seed", 3), *_words("against the best")]
    searched = {f"trial {t.number}": t.objective for t in study.trials}
    sentences = {each.label: each.sentence for each in groups.compare(seeds)}
    rows = []
    for g in seeds:
        lost = len(g.ended) < len(g.runs)
        count = Cell(f"{len(g.ended)} of {len(g.runs)}", len(g.ended), "bad" if lost else "")
        lowest = min(g.objectives, default=None)
        rows.append(
            [g.label, searched.get(g.label), count, g.mean, g.deviation, lowest, sentences.get(g.label, "")]
        )
    return _table(columns, rows)


def target(r: Run) -> str:
    """What a run was to reach, within which budget; empty where its configuration does not say it."""
    if math.isnan(r.target):
        return ""
    said = r.settings.get
    accuracy = f"{r.target:g} % in every one of the last {said('target.last_epochs')} epochs"
    size = f"fewer than {shown(said('budget.parameters'))} parameters"
    return f"{accuracy}, {size}, at most {said('budget.epochs')} epochs"


def last(g: Group) -> tuple[str, list[Cell]]:
    """What it is, and the last epochs of a run, or the lowest of them of each seed, against the target."""
    if len(g.ended) > 1:
        cells = [(f"seed {r.seed}", _accuracy(min(r.last), r)) for r in g.ended if r.last]
        return "lowest of the last epochs, by seed", [Cell(cell.text, name, cell.mark) for name, cell in cells]
    r = next(iter(g.ended), g.first)
    first = len(r.history) - len(r.last) + 1
    cells = [(f"epoch {epoch}", _accuracy(value, r)) for epoch, value in enumerate(r.last, first)]
    return "last epochs", [Cell(cell.text, name, cell.mark) for name, cell in cells]


def results(g: Group) -> Pairs:
    """What came out: accuracies, and the images they are of."""
    r, found = next(iter(g.ended), g.first), []
    if len(g.runs) > 1 and g.mean is not None:
        spread = f" ± {g.deviation:.2f}" if g.deviation is not None else ""
        found.append(("mean of the last epochs", f"{g.mean:.2f}{spread} % over {len(g.ended)} seeds"))
        found.append(("worst and best seed", f"{min(g.objectives):.2f} and {max(g.objectives):.2f} %"))
    elif r.objective is not None:
        best, when = shown(r.result.get("best_accuracy"), 2), shown(r.result.get("best_epoch"))
        found.append(("best epoch", f"{best} % in epoch {when}"))
        found.append(("mean of the last epochs", f"{r.objective:.2f} %"))
    if r.scored_images:
        trained = f"{r.result.get('data')}: {shown(r.result.get('train_images'))} images to train on"
        found.append(("scored on", f"{trained}, {r.scored_images:,} {r.split} images"))
    return found


def network(g: Group) -> str:
    """The size of a group's network."""
    layers = g.first.layers
    field = f", receptive field {layers[-1].receptive_field}" if layers else ""
    known = g.parameters and layers
    return f"{len(layers)} layers, {g.parameters:,} parameters{field}" if known else ""


def settings(r: Run) -> Pairs:
    """What a run was trained with and on."""
    found = [(part, groups.component(r, part)) for part in ("model", "optimizer", "scheduler", "augmentation")]
    keys: list[str] = [key for key in ("epochs", "batch_size") if key in r.settings]
    keys += [key for key in ("label_smoothing", "ema") if r.settings.get(key)]
    machine = [r.result.get(key) for key in ("device", "processor", "precision")]
    threads = r.result.get("threads")
    machine.append(f"{threads} thread{'s' * (threads > 1)}" if isinstance(threads, int) else None)
    found.append(("training", ", ".join(f"{key} {shown(r.settings[key])}" for key in keys)))
    found.append(("machine", ", ".join(str(item) for item in machine if item)))
    return [(name, value) for name, value in found if value]


def study(found: Study) -> Pairs:
    """What a search did and what it found."""
    states = ("complete", "pruned", "over budget", "failed", "stopped", "running")
    counts = {state: found.count(state) for state in states}
    pairs = [("trials", ", ".join(f"{count} {state}" for state, count in counts.items() if count))]
    took = sum(t.seconds or 0.0 for t in found.trials)
    if took:
        pairs.append(("trained for", f"{took / 3600:.1f} hours" if took > 5400 else f"{took / 60:.1f} minutes"))
    if found.top:
        size = "" if found.top.parameters is None else f" with {found.top.parameters:,} parameters"
        name = "most accurate" if found.multi_objective else "best"
        best = f"trial {found.top.number}, {found.top.objective:.3f} % of the validation images{size}"
        chosen = ", ".join(f"{key} {shown(value)}" for key, value in found.top.settings.items())
        pairs += [(name, best), ("its settings", chosen)]
    return pairs
