"""Tables and pairs of names and values, the same for the page and for the terminal."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from bantam import budget
from bantam.report import groups
from bantam.report.folders import Contents, Study
from bantam.report.groups import Difference, Group
from bantam.report.numbers import shown, signed
from bantam.report.runs import Run

Pairs = list[tuple[str, str]]

MARKS = {"met": "good", "complete": "good", "not met": "bad", "diverged": "bad", "failed": "bad", "damaged": "bad"}
"""How a verdict or a state is coloured; all others call for attention only."""


@dataclass(frozen=True)
class Column:
    """A column of a table: what of a row stands in it. Numbers stand on the right."""

    title: str
    value: Callable[[Any], Any]
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


def _table(rows: Iterable[Any], *columns: Column) -> Table | None:
    """A table with a row for each value, each cell written as its column says. None where there is no row."""

    def cell(value: Any, digits: int | None) -> Cell:
        if isinstance(value, Cell):
            return value
        return Cell(shown(value, digits if isinstance(value, int | float) else None), value)

    cells = [[cell(column.value(row), column.digits) for column in columns] for row in rows]
    return Table(list(columns), cells) if cells else None


def _words(title: str, value: Callable[[Any], Any]) -> Column:
    return Column(title, value, numeric=False)


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


def facts(found: Contents, every: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Name, number and what it is about."""
    facts, runs = [], found.runs
    if runs:
        lost = sum(r.objective is None for r in runs)
        judged = [r for r in runs if r.judged]
        targets = {r.target for r in judged if not math.isnan(r.target)}
        several = f"in {len(every)} configurations" if len(every) > 1 else ""
        facts.append(("runs", f"{len(runs)}", several))
        if lost:
            facts.append(("without a result", f"{lost}", "see below"))
        if judged:
            target = f"{targets.pop():g} % in the last epochs" if len(targets) == 1 else ""
            met = sum(r.state == "met" for r in judged)
            facts.append(("meet the target", f"{met} of {len(judged)}", target))
    best = max((g for g in every if g.mean is not None), key=lambda g: g.mean or 0.0, default=None)
    if best:
        facts.append(("best mean of the last epochs", f"{best.mean:.2f} %", best.label))
    for study in found.studies:
        facts.append(("trials", f"{len(study.trials)}", study.folder.name))
        if study.top:
            where = f"trial {study.top.number}, validation images"
            facts.append(("best trial", f"{study.top.objective:.2f} %", where))
    return facts


def runs(listed: Sequence[Run], anchors: Mapping[Path, str]) -> Table | None:
    """A row for each run, with a link to its step where it has one."""

    def folder(r: Run) -> Cell:
        return Cell(path_shown(r.folder), r.folder.name.zfill(6), link=anchors.get(r.folder, ""))

    return _table(
        listed,
        _words("folder", folder),
        _words("network", lambda r: r.name),
        Column("seed", lambda r: Cell("" if r.seed is None else str(r.seed), r.seed)),
        Column("parameters", lambda r: r.result.get("parameters")),
        Column("best", lambda r: r.result.get("best_accuracy"), 2),
        Column("in epoch", lambda r: r.result.get("best_epoch"), everywhere=False),
        Column("last", lambda r: r.objective, 2),
        Column("lowest", lambda r: _accuracy(min(r.last), r) if r.last else None),
        Column("minutes", lambda r: sum(e.seconds for e in r.history) / 60 or None, 1, everywhere=False),
        _words("verdict", lambda r: verdict(r.verdict)),
    )


def layers(r: Run) -> Table | None:
    """The layers of a run's network; of multiply-adds the thousands."""

    def adds(layer: budget.Layer) -> Cell:
        count = layer.multiply_adds
        return Cell(f"{count / 1000:,.0f} k" if count >= 1000 else shown(count or None), count)

    return _table(
        r.layers,
        _words("layer", lambda layer: layer.name),
        Column("output", lambda layer: Cell("×".join(map(str, layer.shape)), math.prod(layer.shape))),
        Column("field", lambda layer: layer.receptive_field),
        Column("parameters", lambda layer: layer.parameters or None),
        Column("mult-adds", adds),
    )


def changes(before: Run, after: Run) -> Table | None:
    """Settings that differ between two steps."""
    columns = [_words(title, itemgetter(i)) for i, title in enumerate(("changed", "before", "now"))]
    return _table(groups.changes(before, after), *columns)


def comparison(found: Sequence[Difference]) -> Table | None:
    """Differences to the best, with their intervals."""
    return _table(
        found,
        _words("compared", lambda each: f"{each.label} against {each.reference}"),
        _words("what it says", lambda each: each.sentence),
        Column("points", lambda each: Cell(signed(each.points), each.points, "warn" * each.distinguishable)),
        Column("from", lambda each: Cell(signed(each.low), each.low)),
        Column("to", lambda each: Cell(signed(each.high), each.high)),
    )


def broken(found: Contents) -> Table | None:
    """What has no result or is damaged, and why."""
    lost = [r for r in found.runs if r.objective is None or r.problems]
    rows = [(r.folder, r.state, r.reason or r.state) for r in lost]
    rows += [(path, "no run", why) for path, why in found.broken]
    return _table(
        rows,
        _words("folder", lambda row: path_shown(row[0])),
        _words("state", lambda row: verdict(row[1])),
        _words("reason", itemgetter(2)),
    )


def trials(study: Study, front: bool = False) -> Table | None:
    """All trials of a study, the most accurate first; or of those on its front what is not the same for all."""
    ranked = sorted(study.trials, key=lambda t: -1.0 if t.objective is None else t.objective, reverse=True)
    state, reason = _words("state", lambda t: verdict(t.state)), _words("reason", lambda t: t.reason)
    return _table(
        study.front if front else ranked,
        Column("trial", lambda t: t.number),
        *([] if front else [state]),
        Column("accuracy", lambda t: t.objective, 3),
        Column("parameters", lambda t: t.parameters),
        *(Column(key, lambda t, key=key: t.settings.get(key), everywhere=False) for key in study.keys),  # type: ignore[misc]
        *([] if front else [Column("seconds", lambda t: t.seconds, 1, everywhere=False), reason]),
    )


def confirmed(study: Study, seeds: Sequence[Group]) -> Table | None:
    """The best trials on fresh seeds, against the best of them."""
    searched = {f"trial {t.number}": t.objective for t in study.trials}
    sentences = {each.label: each.sentence for each in groups.compare(seeds)}

    def count(g: Group) -> Cell:
        return Cell(f"{len(g.ended)} of {len(g.runs)}", len(g.ended), "bad" * (len(g.ended) < len(g.runs)))

    return _table(
        seeds,
        _words("trial", lambda g: g.label),
        Column("in the search", lambda g: searched.get(g.label), 3),
        Column("seeds", count),
        Column("mean", lambda g: g.mean, 3),
        Column("±", lambda g: g.deviation, 3),
        Column("lowest seed", lambda g: min(g.objectives, default=None), 3),
        _words("against the best", lambda g: sentences.get(g.label, "")),
    )


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
