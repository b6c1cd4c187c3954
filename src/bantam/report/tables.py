"""Tables and pairs of names and values, the same for the page and for the terminal."""

import difflib
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bantam.budget import COSTS, Layer, in_words
from bantam.report import groups
from bantam.report.folders import Contents, Study
from bantam.report.groups import NOT_TRAINED, Difference, Group
from bantam.report.numbers import mean_of, plural, shown, signed
from bantam.report.runs import Run
from bantam.training.settings import every_one_of, short_path
from bantam.trials_csv import Trial

Pairs = list[tuple[str, str]]

MARKS = {"met": "good", "complete": "good", "not met": "bad", "diverged": "bad", "failed": "bad", "damaged": "bad"}
"""How a verdict or a state is coloured; all others call for attention only."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table, by what it is sorted, and whether it is good or bad."""

    text: str
    value: Any = None
    mark: str = ""
    link: str = ""
    """Part of the page that has the details."""

    @property
    def hidden(self) -> bool:
        """Whether the text does not say the value: it is rounded, or a number in other words."""
        return self.value is not None and str(self.value) != self.text.replace(",", "")


@dataclass(frozen=True)
class Table:
    """A table for the page and for the terminal."""

    titles: list[str]
    rows: list[list[Cell]]
    title: str = ""
    filter: str = ""
    """Of a long table, an example of what can be asked of its rows."""
    most: int | None = None
    """Rows that the terminal shows; the page has all."""
    spare: Sequence[str] = ()
    """Titles of columns that a narrow terminal leaves out first."""

    @property
    def numeric(self) -> list[bool]:
        """Whether there are numbers in a column, which stand on the right."""
        columns = zip(*self.rows, strict=True)
        return [any(isinstance(cell.value, int | float) for cell in column) for column in columns]


def _table(rows: Iterable[dict[str, Any]], **more: Any) -> Table | None:
    """A table of rows, each a value or a cell by its column's title. None where there is no row."""
    rows = list(rows)
    cells = [[v if isinstance(v, Cell) else Cell(shown(v), v) for v in row.values()] for row in rows]
    return Table(list(rows[0]), cells, **more) if rows else None


def _number(value: Any, digits: int) -> Cell:
    """A number with so many digits after the point."""
    return Cell(shown(value, digits), value)


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


def facts(found: Contents, every: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Name, number and what it is about."""
    counted = [r for g in every for r in g.runs]
    judged, best = [r for r in counted if r.judged], max(every, key=lambda g: g.mean or -1.0, default=None)
    targets = {r.target for r in judged if not math.isnan(r.target)}
    target = f"{targets.pop():g} % in the last epochs" if len(targets) == 1 else ""
    said: list[tuple[str, Any, str]] = [
        ("runs", len(found.runs), f"in {len(every)} configurations" * (len(every) > 1)),
        ("repeats of a seed", len(found.runs) - len(counted), "which count in no mean"),
        ("without a result", sum(r.objective is None for r in found.runs), "see below"),
        ("meet the target", judged and f"{sum(g.met for g in every)} of {len(judged)}", target),
    ]
    if best and best.mean is not None:
        mixed = not groups.same_images([r for g in every for r in g.ended], [])
        of = best.label + f", {best.first.images}" * mixed
        said.append(("best mean of the last epochs", f"{best.mean:.2f} %", of))
    for study in found.studies:
        said.append(("trials", f"{len(study.trials)}", study.folder.name))
        if top := study.top:
            said.append(("best trial", f"{top.objective:.2f} %", f"trial {top.number}, validation images"))
    return [(name, str(number), what) for name, number, what in said if number]


def runs(listed: Sequence[Run], anchors: Mapping[Path, str]) -> Table | None:
    """A row for each run, with a link to its step where it has one."""
    rows = (
        {
            "folder": Cell(short_path(r.folder), r.folder.name.zfill(6), link=anchors.get(r.folder, "")),
            "network": r.name,
            "seed": Cell("" if r.seed is None else str(r.seed), r.seed),
            "parameters": r.result.get("parameters"),
            "best": _number(r.result.get("best_accuracy"), 2),
            "in epoch": r.result.get("best_epoch"),
            "mean of last": _number(r.objective, 2),
            "lowest": _accuracy(min(r.last), r) if r.last else None,
            "minutes": _number(sum(e.seconds for e in r.history) / 60 or None, 1),
            "verdict": verdict(r.verdict),
        }
        for r in listed
    )
    return _table(rows, filter="lowest>98", spare=("in epoch", "minutes", "best", "parameters", "lowest"))


def layers(r: Run) -> Table | None:
    """The layers of a run's network; of multiply-adds the thousands."""
    rows = (
        {
            "layer": layer.name,
            "output": Cell("×".join(map(str, layer.shape)), math.prod(layer.shape)),
            "field": Cell(layer.sees, layer.receptive_field if type(layer.receptive_field) is int else None),
            "parameters": layer.parameters or None,
            "mult-adds": Cell(f"{count / 1000:,.0f} k" if count >= 1000 else shown(count or None), count),
            **({"activations, bytes": layer.activations} if r.layers[0].activations is not None else {}),
        }
        for layer in r.layers
        for count in [layer.multiply_adds]
    )
    return _table(rows, title="Layers")


def component(r: Run, part: str, only: Sequence[str] = ()) -> str:
    """A setting; or a group's class and its arguments, as in `StepLR: step_size 6, gamma 0.1`, or some of them."""
    if part in r.settings:
        return shown(r.settings[part])
    own = {k: v for k, v in r.settings.items() if k.partition(".")[0] == part and (not only or k in only)}
    target = str(own.pop(f"{part}._target_", "")).rpartition(".")[2]
    name = str(own.get(f"{part}._class_", target))  # of a network of one's own
    named = {k.partition(".")[2]: v for k, v in own.items() if k not in NOT_TRAINED}
    arguments = ", ".join(f"{k} {shown(v)}" for k, v in named.items() if not k.startswith("_"))
    return ": ".join(filter(None, [name, arguments]))


def changes(before: Group, after: Group) -> Table | None:
    """Settings that differ between two steps, machine and seed aside."""
    old, new = before.first.settings, after.first.settings
    differing = [key for key in {**old, **new} if key not in NOT_TRAINED and old.get(key) != new.get(key)]
    rows = []
    for part in dict.fromkeys(key.partition(".")[0] for key in differing):
        keys = [key for key in differing if key.partition(".")[0] == part]
        only = [] if f"{part}._target_" in keys else keys  # of another class all arguments are new
        was, now = (component(r, part, only) for r in (before.first, after.first))
        rows.append({"changed": part, "before": was, "now": now})
    return _table(rows, title=f"What changed against {before.label}")


def layer_changes(before: Group, after: Group) -> Table | None:
    """Layers that differ between two steps; the same operation with another shape is another layer."""
    old, new = ([_in_words(layer) for layer in g.first.layers] for g in (before, after))
    lines = [line.replace("-", "\N{MINUS SIGN}", 1) for line in difflib.ndiff(old, new) if line[0] in "-+"]
    if old and new and not {*old} & {*new}:
        lines = [f"Another network: none of its {len(new)} layers is one of the other's."]
    return _table({"layers removed (−) and added (+)": line} for line in lines)


def _in_words(layer: Layer) -> str:
    # The same convolution to 10×1×1 is the last one in one network and not in another: 10 there.
    shape = "×".join(map(str, layer.shape)).removesuffix("×1×1")
    return f"{layer.name}, {shape}" + f", {layer.parameters:,} parameters" * bool(layer.parameters)


def comparison(found: Sequence[Difference]) -> Table | None:
    """Differences to the best, with their intervals."""
    return _table(
        {
            "compared": f"{each.label} against {each.reference}",
            "points": Cell(signed(each.points), each.points, "warn" * each.distinguishable),
            "what it says": each.sentence,
        }
        for each in found
    )


def broken(found: Contents) -> Table | None:
    """What has no result or is damaged, and why."""
    lost = [(r.folder, r.state, r.reason or r.state) for r in found.runs if r.objective is None or r.problems]
    return _table(
        {"folder": short_path(folder), "state": verdict(state), "reason": reason}
        for folder, state, reason in [*lost, *((path, "no run", why) for path, why in found.broken)]
    )


def trials(study: Study, front: bool = False) -> Table | None:
    """All trials of a study, the most accurate first; or of those on its front what is not the same for all."""
    known = {key for t in study.trials for key in t.costs}
    costs = {key: title for key, title in COSTS.items() if key == "parameters" or key in known}
    others = [title for key, title in costs.items() if key not in ("parameters", study.cost)]
    ranked = sorted(study.trials, key=lambda t: -1.0 if t.objective is None else t.objective, reverse=True)
    listed = study.front if front else ranked
    seeded = [t for t in listed if t.seeds]
    differ = any(f"{statistics.fmean(t.seeds):.3f}" != f"{t.objective or 0:.3f}" for t in seeded)
    rows: list[dict[str, Any]] = [
        {
            "trial": t.number,
            **({} if front else {"state": verdict(t.state)}),
            "accuracy": _number(t.objective, 3),
            **(_of_seeds(t, differ) if seeded else {}),
            **{title: t.costs.get(key) for key, title in costs.items()},
            **{key: t.settings.get(key, Cell("not in this trial" if t.settings else "")) for key in study.keys},
            **({} if front else {"seconds": _number(t.seconds, 1), "reason": t.reason}),
        }
        for t in listed
    ]
    more: dict[str, Any] = {} if front else {"filter": "accuracy>98", "most": 20}
    return _table(rows, spare=(*reversed(others), "seconds", *reversed(study.keys)), **more)


def _of_seeds(t: Trial, differ: bool) -> dict[str, Any]:
    """What the seeds of a trial have reached; their mean where it is not what stands under "accuracy"."""
    spread = statistics.stdev(t.seeds) if len(t.seeds) > 1 else None
    mean = {"mean": _number(statistics.fmean(t.seeds) if t.seeds else None, 3)} if differ else {}
    each = " ".join(f"{value:.2f}" for value in t.seeds)
    return {"seeds": len(t.seeds) or None, **mean, "±": _number(spread, 3), "each seed": each}


def confirmed(study: Study, seeds: Sequence[Group]) -> Table | None:
    """The best trials on fresh seeds, against the best of them."""
    searched = {f"trial {t.number}": t.objective for t in study.trials}
    sentences = {each.label: each.sentence for each in groups.compare(seeds)}
    return _table(
        {
            "trial": g.label,
            "in the search": _number(searched.get(g.label), 3),
            "seeds": Cell(f"{len(g.ended)} of {len(g.runs)}", len(g.ended), "bad" * (len(g.ended) < len(g.runs))),
            "mean": _number(g.mean, 3),
            "±": _number(g.deviation, 3),
            "lowest seed": _number(min(g.objectives, default=None), 3),
            "against the best": sentences.get(g.label, ""),
        }
        for g in seeds
    )


def target(r: Run) -> str:
    """What a run was to reach, within which budget; empty where its configuration does not say it."""
    if math.isnan(r.target):
        return ""
    said: Callable[[str], Any] = r.settings.get
    when, most = every_one_of(said("target.last_epochs")), said("budget.epochs")
    limits = {words: said(f"budget.{key}") for key, words in COSTS.items()}
    sizes = [f"fewer than {shown(limit)} {words}" for words, limit in limits.items() if limit is not None]
    return ", ".join([f"{r.target:g} % in {when}", *sizes, f"at most {shown(most)} epoch{'s' * (most != 1)}"])


def last(g: Group) -> list[tuple[str, list[Cell]]]:
    """The last epochs of a run, or the lowest of them of each seed, against the target."""
    cells = [(f"epoch {at}", value, g.first) for at, value in g.first.last_by_epoch]
    if several := len(g.ended) > 1:
        cells = [(f"seed {r.seed}", min(r.last), r) for r in g.ended if r.last]
    found = [replace(_accuracy(value, r), value=what) for what, value, r in cells]
    return [("lowest of the last epochs, by seed" if several else "last epochs", found)] * bool(found)


def results(g: Group) -> Pairs:
    """What came out, and the images it is of."""
    r, found = g.first, []
    if g.mean is not None:
        seeds = f" over {plural(len(g.ended), 'seed')}" * (len(g.runs) > 1)
        found.append(("mean of the last epochs", f"{mean_of(g.objectives)} %{seeds}"))
    if r.scored_images:
        found.append(("trained on", f"{shown(r.result.get('train_images'))} images of {r.result.get('data')}"))
        found.append(("scored on", f"{r.scored_images:,} {r.split} images"))
    return found


def network(g: Group) -> str:
    """The size of a group's network."""
    layers = g.first.layers
    if not g.parameters or not layers:
        return ""
    costs = {key: g.first.result[key] for key in COSTS if g.first.result.get(key)}
    size = in_words({"parameters": g.parameters, **costs})
    return f"{len(layers)} layers, {size}, receptive field {layers[-1].sees or 'not known'}"


def settings(g: Group) -> Pairs:
    """What a group was trained with and on."""
    r, found = g.first, [("network", network(g))]
    found += [(part, component(r, part)) for part in ("model", "optimizer", "scheduler", "augmentation")]
    keys = [key for key in ("epochs", "batch_size", "label_smoothing", "ema") if r.settings.get(key)]
    found.append(("training", ", ".join(f"{key} {shown(r.settings[key])}" for key in keys)))
    machine: list[str] = [r.result.get(key) or "" for key in ("device", "processor", "precision")]
    machine.append(plural(r.result["threads"], "thread") if r.result.get("threads") else "")
    found.append(("machine", ", ".join(filter(None, machine))))
    return [(name, value) for name, value in found if value]


def study(found: Study) -> Pairs:
    """What a search did and what it found."""
    states, took = Counter(t.state for t in found.trials), sum(t.seconds or 0.0 for t in found.trials)
    ordered = ("complete", "pruned", "over budget", "failed", "stopped", "running")
    pairs = [("trials", ", ".join(f"{states[state]} {state}" for state in ordered if state in states))]
    if took:
        pairs.append(("trained for", f"{took / 3600:.1f} hours" if took > 5400 else f"{took / 60:.1f} minutes"))
    if found.top:
        known = {key: found.top.costs[key] for key in ("parameters", found.cost) if key in found.top.costs}
        size = f" with {in_words(known)}" if known else ""
        over = f" over {len(found.top.seeds)} seeds" if found.top.seeds else ""
        best = f"trial {found.top.number}, {found.top.objective:.3f} %{over} of the validation images{size}"
        chosen = ", ".join(f"{key} {shown(value)}" for key, value in found.top.settings.items())
        pairs += [(found.winner, best), ("its settings", chosen)]
    return pairs
