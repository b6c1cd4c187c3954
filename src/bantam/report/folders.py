"""What folders hold and what follows from it: runs, groups of seeds, studies, and the differences between them.

Nothing here raises for a folder that is damaged or half-finished: it appears with the reason.
"""

import csv
import difflib
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from scipy import stats

from bantam import budget, config
from bantam.training import folder as record
from bantam.training import run
from bantam.training.loop import Epoch

MACHINE = (
    *("seed", "data.split_seed", "data.root", "device", "threads", "compile", "channels_last"),
    *("pictures", "report", "dry_run", "resume"),
)
"""Keys that do not say what is trained: runs that differ in these only are seeds of one group."""

CONFIDENCE = 0.95

AHEAD = "Trial {} is ahead on the validation images; it was not scored on the test images."

COLLAPSE = 5.0
"""Points below its best epoch at which a network ends that counts as fallen back."""

NUMBERS = (
    *("objective", "best_accuracy", "best_epoch", "parameters", "multiply_adds", "seed", "epochs"),
    *("scored_images", "train_images", "threads"),
)
"""Keys of `result.json` that must be numbers, not below 0, where they are there."""


@dataclass
class Run:
    """What the folder of one run holds, as far as it can be read."""

    folder: Path
    name: str
    """The experiment, or the model where there is none."""
    result: dict[str, Any]
    """`result.json`; empty where it is missing or damaged."""
    history: list[Epoch]
    settings: dict[str, Any]
    """The composed configuration under its dotted keys."""
    overrides: list[str]
    """What was typed."""
    layers: list[budget.Layer]
    problems: list[str]
    """What is missing or damaged, a sentence each."""

    @property
    def state(self) -> str:
        """The verdict of a run that has ended; unfinished without a `result.json`, damaged with one that is."""
        ended = (self.folder / record.RESULT).exists()
        return str(self.result.get("verdict") or ("damaged" if ended else "unfinished"))

    @property
    def reason(self) -> str:
        """Why the run is in its state, with what is damaged."""
        return ". ".join([*self.problems, *([str(self.result["reason"])] if self.result.get("reason") else [])])

    @property
    def objective(self) -> float | None:
        """Mean accuracy of the last epochs in percent."""
        return self.result.get("objective")

    @property
    def seed(self) -> int | None:
        return self.result.get("seed", self.settings.get("seed"))

    @property
    def target(self) -> float:
        """Percent; nan where neither the result nor the configuration says it."""
        return _number(self.settings.get("target.accuracy"))

    @property
    def last(self) -> list[float]:
        """Accuracies of the last epochs in percent, which the target is about."""
        return [float(value) for value in self.result.get("last_accuracies") or []]

    @property
    def scored_images(self) -> int:
        return int(self.result.get("scored_images") or 0)

    @property
    def split(self) -> str:
        """The images that were scored: test or validation."""
        if self.history:
            return "test" if self.history[-1].validation_accuracy is None else "validation"
        return str(self.result.get("split", "test"))

    @property
    def confusion(self) -> list[list[int]]:
        """Truth by guess; empty in folders of a Bantam that did not write it."""
        matrix = self.result.get("confusion")
        square = isinstance(matrix, list) and all(
            isinstance(row, list) and len(row) == len(matrix) and all(isinstance(n, int) for n in row)
            for row in matrix
        )
        return matrix if square and matrix else []

    @property
    def classes(self) -> list[str]:
        named, count = self.result.get("classes"), len(self.confusion)
        return [str(name) for name in (named if isinstance(named, list) and len(named) == count else range(count))]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def read_run(folder: Path) -> Run:
    """Read a run's folder; whatever is damaged or missing becomes a problem of the run."""
    problems: list[str] = []
    settings, overrides = _settings(folder, problems)
    result: dict[str, Any] = {}
    if (folder / record.RESULT).exists():
        try:
            result = record.read_result(folder)
        except ValueError as error:
            problems.append(_within(folder, error))
    for key in NUMBERS:
        if result.get(key) is not None and not _number(result[key]) >= 0:
            problems.append(f"{record.RESULT} is damaged: {key} is {result.pop(key)!r}")
    last = result.get("last_accuracies")
    if last is not None and not (isinstance(last, list) and all(_number(value) >= 0 for value in last)):
        problems.append(f"{record.RESULT} is damaged: last_accuracies are {result.pop('last_accuracies')!r}")
    history: list[Epoch] = []
    if (folder / record.HISTORY).exists():
        try:
            history = record.read_history(folder)
        except ValueError as error:
            problems.append(_within(folder, error))
    elif result.get("objective") is not None:
        problems.append(f"{record.HISTORY} is missing")
    if not (folder / record.RESULT).exists():
        problems.append(_unfinished(folder, history, settings))
    name = result.get("experiment") or result.get("model") or _chosen(overrides) or folder.name
    return Run(folder, str(name), result, history, settings, overrides, _layers(folder, result), problems)


def _within(folder: Path, error: Exception) -> str:
    """An error's sentence without the folder, which is shown beside it."""
    return " ".join(str(error).replace(f"{folder}/", "").split())


def _settings(folder: Path, problems: list[str]) -> tuple[dict[str, Any], list[str]]:
    try:
        # Unresolved: data.root may ask for an environment variable that this machine does not have.
        composed = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=False)
        overrides = [str(item) for item in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
        settings = dict(config.flat(composed))
        for key, value in settings.items():
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            if reference and reference[1] in settings:
                settings[key] = settings[reference[1]]
        return settings, overrides
    except Exception as error:  # whatever a damaged or foreign YAML file leads to
        missing = not (folder / ".hydra" / "config.yaml").exists()
        what = "missing" if missing else f"damaged ({type(error).__name__})"
        problems.append(f"its configuration in .hydra is {what}")
        return {}, []


def _chosen(overrides: list[str]) -> str:
    chosen = dict(item.split("=", 1) for item in overrides if "=" in item)
    return chosen.get("experiment") or chosen.get("model") or ""


def _unfinished(folder: Path, history: list[Epoch], settings: dict[str, Any]) -> str:
    planned = settings.get("epochs")
    done = f"{len(history)} of {planned} epochs" if planned else f"{len(history)} epochs"
    sentence = f"it has no {record.RESULT}: {done} are done"
    if (folder / record.CHECKPOINT).exists():
        when = datetime.fromtimestamp((folder / record.CHECKPOINT).stat().st_mtime)
        sentence += (
            f", the last one at {when:%Y-%m-%d %H:%M}. It is running, or was interrupted and goes on with resume="
        )
    return sentence


def _layers(folder: Path, result: dict[str, Any]) -> list[budget.Layer]:
    """The layer table that the folder holds; where it holds none, of the network that its settings build."""
    with suppress(TypeError):
        rows = [budget.Layer(**{**row, "shape": tuple(row["shape"])}) for row in result.get("layers") or []]
        if rows:
            return rows
    with suppress(Exception):  # a folder of another version may name what there is no more
        cfg: Any = OmegaConf.load(folder / ".hydra" / "config.yaml")
        place = run.Place(folder, {"model": result.get("model")}, 1, None)
        try:
            return run.weigh(cfg, place)[0]
        except run.OverBudget as error:
            return error.rows
    return []


@dataclass
class Group:
    """Runs that differ in their seed only, or one run."""

    label: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @cached_property
    def ended(self) -> list[Run]:
        """Those that were trained to their end."""
        return [r for r in self.runs if r.objective is not None]

    @property
    def objectives(self) -> list[float]:
        return [r.objective for r in self.ended if r.objective is not None]

    @property
    def mean(self) -> float | None:
        """Mean accuracy of the last epochs over the seeds, percent."""
        return statistics.fmean(self.objectives) if self.ended else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a single seed, points."""
        return statistics.stdev(self.objectives) if len(self.ended) > 1 else None

    @property
    def parameters(self) -> int | None:
        known = (r.result.get("parameters") or sum(row.parameters for row in r.layers) for r in self.runs)
        return next((int(count) for count in known if count), None)

    @property
    def met(self) -> int:
        return sum(r.state == "met" for r in self.runs)

    @property
    def verdict(self) -> str:
        """The run's own verdict, or how many seeds met the target."""
        if len(self.runs) == 1:
            return self.first.state + " (at chance)" * bool(self.first.result.get("at_chance"))
        if any(r.state == "not judged" for r in self.runs):
            return "not judged"
        return f"met by {self.met} of {len(self.runs)} seeds"

    @cached_property
    def confusion(self) -> list[list[int]]:
        """Truth by guess, summed over the seeds."""
        known = [r.confusion for r in self.ended if len(r.confusion) == len(self.first.confusion)]
        if not known or not known[0]:
            return []
        return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*known, strict=True)]

    def by_epoch(self, key: str) -> list[tuple[int, float, float, float]]:
        """Epoch, centre, lowest and highest of a number of `Epoch` over the seeds that got so far.

        The centre is the mean; the median where the seeds part.
        """
        values: dict[int, list[float]] = {}
        for r in self.runs:
            for epoch in r.history:
                values.setdefault(epoch.epoch, []).append(float(getattr(epoch, key)))
        centre = statistics.median if self.parted else statistics.fmean
        return [(e, centre(v), min(v), max(v)) for e, v in sorted(values.items())]

    @cached_property
    def parted(self) -> bool:
        """Whether some seeds end far from others, so that a mean would show what no seed did."""
        ends = [r.history[-1].accuracy for r in self.runs if r.history]
        return bool(ends) and max(ends) - min(ends) > COLLAPSE


def group(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ in their seed only, in the order in which they first appear."""
    found: dict[str, list[list[Run]]] = {}
    for r in runs:
        settings = sorted((key, repr(value)) for key, value in r.settings.items() if key not in MACHINE)
        alike = found.setdefault(repr(settings) if settings else str(r.folder), [])
        # data=auto may have been MNIST once and a substitute another time; a run that did not end does not say.
        members = next((members for members in alike if _same_images(members[0], r)), None)
        if members is None:
            alike.append([r])
        else:
            members.append(r)
    order = {id(r): number for number, r in enumerate(runs)}
    parts = sorted((members for alike in found.values() for members in alike), key=lambda m: order[id(m[0])])
    groups = [Group(members[0].name, members) for members in parts]
    _tell_apart(groups)
    return groups


def _same_images(one: Run, other: Run) -> bool:
    """Whether two runs may have been scored on the same images."""
    return all(
        one.result.get(key) in (None, other.result.get(key)) or other.result.get(key) is None
        for key in ("data", "split", "scored_images")
    )


def _tell_apart(groups: list[Group]) -> None:
    """Add to labels that occur twice what was typed for one and not for all of them, or else the folder."""
    for label in {g.label for g in groups}:
        same = [g for g in groups if g.label == label]
        if len(same) == 1:
            continue
        typed = [
            [item for item in g.first.overrides if item.split("=")[0].lstrip("+") not in (*MACHINE, "experiment")]
            for g in same
        ]
        for g, items in zip(same, typed, strict=True):
            own = [item for item in items if not all(item in others for others in typed)]
            own = [item for item in own if item != f"model={label}"]
            g.label = f"{label}, {' '.join(own)}" if own else label
        for g in same:
            if sum(other.label == g.label for other in groups) > 1:
                g.label = f"{g.label} ({g.first.folder.parent.name}/{g.first.folder.name})"


@dataclass(frozen=True)
class Difference:
    """What one group is above another, in points, and whether that can be told from noise."""

    label: str
    reference: str
    points: float
    low: float | None
    high: float | None
    """Ends of the interval; None where there is none."""
    confidence: float
    seeds: bool
    """The interval is about seeds (Welch); else about the choice of the scored images alone."""
    told: bool
    """It can be told from noise."""
    sentence: str


def signed(points: float) -> str:
    """A difference with its sign."""
    return f"{points:+.2f}".replace("-", "\N{MINUS SIGN}")


def welch(before: Sequence[float], after: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """Interval of the difference of two means (after - before), the variances not taken for equal.

    None where either has less than two values, or no value differs from the others.
    """
    if min(len(before), len(after)) < 2 or statistics.pvariance(before) + statistics.pvariance(after) == 0:
        return None
    interval = stats.ttest_ind(after, before, equal_var=False).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


def standard_error(accuracy: float, images: int) -> float:
    """By how much an accuracy in percent varies with the choice of the scored images, in points."""
    share = min(1.0, max(0.0, accuracy / 100))
    return 100 * math.sqrt(share * (1 - share) / images) if images else math.nan


def difference(before: Group, after: Group, comparisons: int = 1) -> Difference | None:
    """Compare two groups; None where either has no result or they were scored on other images.

    With several comparisons each interval is widened (Bonferroni), so that all of them hold together
    with 95 %.
    """
    if before.mean is None or after.mean is None or not _same_images(before.ended[0], after.ended[0]):
        return None
    confidence = 1 - (1 - CONFIDENCE) / comparisons
    points = after.mean - before.mean
    said = f"{abs(points):.2f} points {'above' if points >= 0 else 'below'} {before.label}"
    counts = f"{len(after.ended)} against {len(before.ended)} seeds"
    if min(len(before.ended), len(after.ended)) > 1:
        interval = welch(before.objectives, after.objectives, confidence)
        if interval is None:
            sentence = f"{said}, {counts}: every seed gave the same, so there is no interval"
            return Difference(after.label, before.label, points, None, None, confidence, True, False, sentence)
        low, high = interval
        told = low > 0 or high < 0
        verdict = "more than seeds explain" if told else "cannot be told from noise"
        sentence = f"{said} ({signed(low)} to {signed(high)}, {counts}): {verdict}"
        if any(r.result.get("at_chance") for r in (*before.ended, *after.ended)):
            sentence += ". Some seeds never left chance, so the means say little"
        return Difference(after.label, before.label, points, low, high, confidence, True, told, sentence)
    images = after.ended[0].scored_images
    error = math.hypot(
        standard_error(before.mean, before.ended[0].scored_images), standard_error(after.mean, images)
    )
    wide = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    seeds = "one seed each" if len(before.ended) == len(after.ended) else counts
    if math.isnan(wide):
        return Difference(
            after.label, before.label, points, None, None, confidence, False, False, f"{said}, {seeds}"
        )
    if abs(points) <= wide:
        verdict = "cannot be told from noise"
    else:
        verdict = "the images do not explain it, but another seed might"
    sentence = f"{said}, {seeds}; the choice of {images:,} images alone leaves ±{wide:.2f}: {verdict}"
    return Difference(
        after.label, before.label, points, points - wide, points + wide, confidence, False, False, sentence
    )


def compare(groups: Sequence[Group]) -> list[Difference]:
    """Every group against the one with the highest mean, as far as they were scored on the same images.

    That one was chosen by the same results. So the intervals are as wide as if every pair were
    compared: then they hold whichever is chosen.
    """
    judged = [g for g in groups if g.mean is not None]
    if not judged:
        return []
    best = max(judged, key=lambda g: g.mean or 0.0)
    others = [g for g in judged if g is not best and _same_images(best.ended[0], g.ended[0])]
    pairs = math.comb(len(others) + 1, 2)
    found = [difference(best, other, pairs) for other in others]
    return [each for each in found if each is not None]


@dataclass(frozen=True)
class Change:
    """A setting that differs between two steps; empty where a step does not have it."""

    key: str
    before: str
    after: str


def changes(before: Run, after: Run) -> list[Change]:
    """What differs in the composed configurations, machine and seed aside, a row a group of keys."""
    found = []
    old, new = before.settings, after.settings
    for part in dict.fromkeys(key.partition(".")[0] for key in (*old, *new)):
        keys = [k for k in dict.fromkeys((*old, *new)) if k.partition(".")[0] == part and k not in MACHINE]
        differing = [k for k in keys if old.get(k) != new.get(k)]
        if f"{part}._target_" in differing:
            found.append(Change(part, component(before, part), component(after, part)))
        elif len(differing) > 1:
            found.append(Change(part, *(component(r, part, differing) for r in (before, after))))
        else:
            found += [Change(k, _text(old.get(k)), _text(new.get(k))) for k in differing]
    return found


def component(r: Run, part: str, only: Sequence[str] = ()) -> str:
    """A group's class and its arguments, as in `StepLR: step_size 6, gamma 0.1`; or only some arguments."""
    values = {k.partition(".")[2]: v for k, v in r.settings.items() if k.partition(".")[0] == part}
    name = "" if only else str(values.get("_target_", "")).rpartition(".")[2]
    arguments = ", ".join(
        f"{k} {_text(v)}"
        for k, v in values.items()
        if not k.startswith("_") and f"{part}.{k}" not in MACHINE and (not only or f"{part}.{k}" in only)
    )
    return f"{name}: {arguments}" if name and arguments else name or arguments


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def layer_changes(before: Sequence[budget.Layer], after: Sequence[budget.Layer]) -> list[tuple[str, budget.Layer]]:
    """Layers that went ("-") or came ("+"); the same operation with another shape is both."""
    # The same convolution to 10×1×1 is the last one in one network and not in another: 10 there.
    old, new = ([(row.name, math.prod(row.shape), row.parameters) for row in rows] for rows in (before, after))
    found: list[tuple[str, budget.Layer]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            found += [("-", row) for row in before[a:b]] + [("+", row) for row in after[c:d]]
    return found


@dataclass(frozen=True)
class Finding:
    """One sentence of the analysis and what it is about."""

    topic: str
    sentence: str


def analyse(g: Group) -> list[Finding]:
    """What the numbers of a group say; a sentence is there only where numbers carry it."""
    found = list(_seeds(g))
    if not g.ended or all(r.result.get("at_chance") for r in g.ended):
        return found
    return [*found, *_target(g), *_gap(g), *_stability(g), *_rate(g), *_errors(g)]


def _seeds(g: Group) -> Iterator[Finding]:
    lost = [r for r in g.runs if r.objective is None]
    chance = [r for r in g.ended if r.result.get("at_chance")]
    if len(g.runs) == 1:
        if lost or chance:
            yield Finding("Outcome", g.first.reason or g.first.state)
        elif fallen(g.first):
            best = max(g.first.history, key=lambda epoch: epoch.accuracy)
            end = g.first.history[-1].accuracy
            yield Finding("Outcome", f"it falls from {best.accuracy:.2f} % in epoch {best.epoch} to {end:.2f} %")
        return
    if g.deviation is not None and g.mean is not None:
        yield Finding(
            "Seeds",
            f"{len(g.ended)} seeds end at {g.mean:.2f} % on average, from {min(g.objectives):.2f} to "
            f"{max(g.objectives):.2f}; the standard deviation of a seed is {g.deviation:.2f} points",
        )
    if chance:
        yield Finding("Collapse", f"{len(chance)} of {len(g.ended)} seeds never left chance: {_named(chance)}")
    fell = [r for r in g.ended if r not in chance and fallen(r)]
    if fell:
        ends = [(r.seed, max(e.accuracy for e in r.history), r.history[-1].accuracy) for r in fell]
        said = ", ".join(f"seed {seed} from {best:.2f} to {end:.2f} %" for seed, best, end in ends)
        yield Finding("Collapse", f"{len(fell)} of {len(g.ended)} seeds fell back after their best epoch: {said}")
    if lost:
        yield Finding(
            "Lost", f"{len(lost)} of {len(g.runs)} have no result and are in no mean: {_named(lost, states=True)}"
        )


def fallen(r: Run) -> bool:
    """Whether a run ended far below its best epoch."""
    accuracies = [epoch.accuracy for epoch in r.history]
    return bool(accuracies) and max(accuracies) - accuracies[-1] > COLLAPSE


def _named(runs: Sequence[Run], states: bool = False) -> str:
    return ", ".join(f"seed {r.seed}" + f" ({r.state})" * states for r in runs)


def _target(g: Group) -> Iterator[Finding]:
    target, judged = g.first.target, [r for r in g.ended if r.state in ("met", "not met") and r.history]
    if math.isnan(target) or not judged:
        return
    held: list[tuple[int | None, int | None]] = []
    for r in judged:
        first = next((e.epoch for e in r.history if e.accuracy >= target), None)
        since = next((e.epoch for e in reversed(r.history) if e.accuracy < target), 0) + 1
        held.append((first, since if since <= r.history[-1].epoch else None))
    if len(judged) == 1:
        only, (first, steady) = judged[0], held[0]
        if first is None:
            short = target - max(e.accuracy for e in only.history)
            images = (
                f", {math.ceil(round(short / 100 * only.scored_images, 6)):,} images" if only.scored_images else ""
            )
            yield Finding(
                "Target", f"never reaches {target:g} %: the best epoch is {short:.2f} points short{images}"
            )
        elif steady is None:
            times = sum(e.accuracy >= target for e in only.history)
            yield Finding(
                "Target",
                f"first reaches {target:g} % in epoch {first}, is there in {times} epochs, and does not hold it",
            )
        elif steady == first:
            yield Finding("Target", f"reaches {target:g} % in epoch {first} and stays there")
        else:
            yield Finding(
                "Target", f"first reaches {target:g} % in epoch {first} and stays there from {steady} on"
            )
    else:
        ever, to_the_end = (sum(each[i] is not None for each in held) for i in (0, 1))
        yield Finding(
            "Target",
            f"{ever} of {len(judged)} seeds reach {target:g} % in some epoch, {to_the_end} are there at the end, "
            f"{g.met} hold it over all the last epochs",
        )


def _gap(g: Group) -> Iterator[Finding]:
    ended = [r for r in g.ended if r.history and r.last]
    if not ended:
        return
    gaps = [statistics.fmean(e.train_accuracy - e.accuracy for e in r.history[-len(r.last) :]) for r in ended]
    gap, split = statistics.fmean(gaps), ended[0].split
    error = standard_error(statistics.fmean(g.objectives), ended[0].scored_images)
    numbers = (
        f"in the last epochs training accuracy is {abs(gap):.2f} points {'above' if gap > 0 else 'below'} {split}"
    )
    changing = ("brightness", "contrast", "degrees", "pixels", "scale", "shear_degrees", "elastic_pixels")
    harder = ["augmentation"] * any(_number(g.first.settings.get(f"augmentation.{key}")) > 0 for key in changing)
    harder += ["dropout"] * (_number(g.first.settings.get("model.dropout")) > 0)
    if not error or math.isnan(error):
        return
    if gap > 2 * error:
        yield Finding("Gap", f"{numbers}: it learns training images that do not carry over")
    elif gap < -2 * error:
        makes = "make" if len(harder) > 1 else "makes"
        why = f"; {' and '.join(harder)} {makes} the training images harder" if harder else ""
        yield Finding("Gap", f"{numbers}: no overfitting to be seen{why}")
    else:
        yield Finding(
            "Gap", f"{numbers}, within what {ended[0].scored_images:,} images can tell: no overfitting to be seen"
        )


def _stability(g: Group) -> Iterator[Finding]:
    ended = [r for r in g.ended if len(r.last) > 2 and len(r.history) >= len(r.last)]
    if not ended:
        return
    spreads = [max(r.last) - min(r.last) for r in ended]
    count = len(ended[0].last)
    if len(ended) == 1:
        r = ended[0]
        images = round(spreads[0] / 100 * r.scored_images)
        yield Finding(
            "Stability",
            f"the last {count} epochs lie within {spreads[0]:.2f} points"
            + (f", {images:,} of {r.scored_images:,} images" if r.scored_images else ""),
        )
    else:
        yield Finding(
            "Stability",
            f"within a seed the last {count} epochs lie {statistics.fmean(spreads):.2f} points apart on average, "
            f"{max(spreads):.2f} at most",
        )
    means = [
        statistics.fmean(values) for values in zip(*(r.last for r in ended if len(r.last) == count), strict=True)
    ]
    if len(means) > 3 and len(set(means)) > 1:
        fit = stats.linregress(range(len(means)), means)
        if fit.pvalue < 1 - CONFIDENCE and abs(fit.slope) >= 0.01:
            way = "still rises" if fit.slope > 0 else "falls"
            yield Finding("Trend", f"it {way} at the end, by {abs(fit.slope):.2f} points an epoch")


def _rate(g: Group) -> Iterator[Finding]:
    """What the first fall of the learning rate to half or less brought."""
    rates, accuracies = g.by_epoch("lr"), g.by_epoch("accuracy")
    for i in range(1, len(rates)):
        before, now = rates[i - 1][1], rates[i][1]
        if 0 < now <= before / 2 * 1.001 and rates[i][2] == rates[i][3]:
            step = accuracies[i][1] - accuracies[i - 1][1]
            yield Finding(
                "Rate",
                f"from epoch {rates[i - 1][0]} to {rates[i][0]} the rate falls from {before:.3g} to {now:.3g}, "
                f"and accuracy goes from {accuracies[i - 1][1]:.2f} to {accuracies[i][1]:.2f} % ({signed(step)})",
            )
            return


def _errors(g: Group) -> Iterator[Finding]:
    matrix, names = g.confusion, g.first.classes
    if not matrix or len(names) != len(matrix):
        return
    shares = [100 * row[i] / sum(row) for i, row in enumerate(matrix) if sum(row)]
    if len(shares) < len(matrix):
        return
    worst = min(range(len(shares)), key=lambda i: shares[i])
    count, truth, guess = max(
        ((n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j), default=(0, 0, 0)
    )
    if count:
        yield Finding(
            "Errors",
            f"class {names[worst]} is the hardest ({shares[worst]:.2f} % right); the most frequent mistake is "
            f"{names[truth]} taken for {names[guess]}, {count:,} time{'s' * (count > 1)}",
        )


@dataclass(frozen=True)
class Trial:
    """A row of `trials.csv` with the epochs of the trial's folder."""

    number: int
    state: str
    reason: str
    settings: dict[str, Any]
    parameters: int | None
    objective: float | None
    """Percent of the validation images; None where it was not trained to its end."""
    seconds: float | None
    epochs: list[tuple[int, float]]
    """Epoch and accuracy in percent."""


@dataclass
class Study:
    """What the folder of a search holds."""

    folder: Path
    trials: list[Trial]
    keys: list[str]
    """What was searched."""
    problems: list[str]
    best: Run | None
    """The run of the best trial."""
    two: bool = False
    """Parameters were an objective beside the accuracy: the result is the front, not the best trial."""
    confirmed: list[Group] = field(default_factory=list)
    """Seeds of the best trials on validation images, best first."""
    tested: Group | None = None
    """Seeds of the winner on the test images."""
    confirmation: dict[str, Any] = field(default_factory=dict)
    """`confirm.json`."""

    @property
    def completed(self) -> list[Trial]:
        return [t for t in self.trials if t.objective is not None]

    def count(self, state: str) -> int:
        return sum(t.state == state for t in self.trials)

    @property
    def limit(self) -> int | None:
        """`budget.parameters`."""
        value = self.best.settings.get("budget.parameters") if self.best else None
        return value if isinstance(value, int) else None

    @property
    def front(self) -> list[Trial]:
        """Completed trials that no other beats in accuracy with as few parameters, by parameters."""
        sized = [t for t in self.completed if t.parameters is not None]
        return [sized[i] for i in budget.front([(t.parameters or 0, t.objective or 0.0) for t in sized])]


COLUMNS = ("number", "state", "reason", "parameters", "objective", "seconds", "folder")
"""Columns of `trials.csv` beside the searched keys."""


def read_study(folder: Path) -> Study:
    """Read a study's folder: `trials.csv`, the histories of its trials, and its confirmation."""
    problems: list[str] = []
    found: list[Trial] = []
    keys: list[str] = []
    try:
        with (folder / "trials.csv").open(newline="") as stream:
            rows = csv.DictReader(stream)
            keys = [key for key in rows.fieldnames or [] if key not in COLUMNS]
            for line, row in enumerate(rows, 2):
                try:
                    found.append(_trial(folder, row, keys))
                except (KeyError, TypeError, ValueError, AssertionError):
                    problems.append(f"line {line} of trials.csv is damaged")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"trials.csv cannot be read: {error}")
    study = Study(folder, found, keys, problems, None, has_front(folder))
    if study.completed:
        number = max(study.completed, key=lambda t: t.objective or -math.inf).number
        if (folder / str(number)).is_dir():
            study.best = read_run(folder / str(number))
            study.best.name = f"trial {number}"
    _read_confirmation(study)
    return study


def has_front(study: Path) -> bool:
    """Whether a study has two objectives, by what its trials were told."""
    for hydra in study.glob("[0-9]*/.hydra/hydra.yaml"):
        with suppress(Exception):  # it may be damaged in any way: that of another trial says the same
            return len(OmegaConf.load(hydra).hydra.sweeper.objectives) == 2
    return False


def _trial(folder: Path, row: dict[str, str], keys: list[str]) -> Trial:
    number = int(row["number"])
    epochs: list[tuple[int, float]] = []
    if row["folder"]:
        with suppress(ValueError):  # damaged or not begun: its row says what became of it
            epochs = [(e.epoch, e.accuracy) for e in record.read_history(folder / row["folder"])]
    return Trial(
        number,
        row["state"],
        row["reason"],
        {key: _value(row[key]) for key in keys if row[key] != ""},
        int(row["parameters"]) if row["parameters"] else None,
        float(row["objective"]) if row["objective"] else None,
        float(row["seconds"]) if row["seconds"] else None,
        epochs,
    )


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _read_confirmation(study: Study) -> None:
    folder = study.folder / "confirm"
    runs = [read_run(path) for path in _ordered(folder) if is_run(path)] if folder.is_dir() else []
    for r in runs:
        study.problems += [f"confirm/{r.folder.name}: {problem}" for problem in r.problems]
    parts: dict[tuple[str, bool], list[Run]] = {}
    for r in runs:
        r.name = r.folder.name.partition("-")[0].replace("_", " ")
        parts.setdefault((r.name, "-test-" in r.folder.name), []).append(r)
    study.confirmed = sorted(
        (Group(name, members) for (name, test), members in parts.items() if not test),
        key=lambda g: -(g.mean or 0.0) if len(g.ended) == len(g.runs) else math.inf,
    )
    if (folder / "confirm.json").exists():
        try:
            read = json.loads((folder / "confirm.json").read_text())
            study.confirmation = read if isinstance(read, dict) else {}
        except (OSError, ValueError) as error:
            study.problems.append(f"confirm/confirm.json cannot be read: {error}")
    tested = [Group(name, members) for (name, test), members in parts.items() if test]
    winner = f"trial {study.confirmation.get('winner')}"  # of the last confirmation: there may have been others
    others = None if study.confirmation else next(iter(tested), None)
    study.tested = next((g for g in tested if g.label == winner), others)


@dataclass
class Evidence:
    """Everything that the given folders hold."""

    runs: list[Run] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that are nothing of ours, and why."""

    @cached_property
    def groups(self) -> list[Group]:
        return group(self.runs)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a trace of a run."""
    names = (".hydra", record.RESULT, record.HISTORY, record.CHECKPOINT)
    return any((folder / name).exists() for name in names)


def _ordered(folder: Path) -> list[Path]:
    """The folders in a folder, job 2 before job 10."""
    paths = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def gather(folders: Iterable[Path]) -> Evidence:
    """Read runs, multiruns and studies, each folder once. Raises ValueError for one that does not exist."""
    evidence = Evidence()
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give that of a run, a multirun or a study")
        if not _look(folder, evidence, seen, depth=4):
            evidence.broken.append((folder, "it holds no run, no multirun and no study"))
    return evidence


def _look(folder: Path, evidence: Evidence, seen: set[Path], depth: int) -> bool:
    """Add what a folder and those in it hold; returns whether there was anything."""
    if folder.resolve() in seen:
        return True
    seen.add(folder.resolve())
    try:
        if (folder / "trials.csv").exists():
            evidence.studies.append(read_study(folder))
            return True
        if is_run(folder):
            evidence.runs.append(read_run(folder))
            return True
        inner = _ordered(folder) if depth else []
    except OSError as error:
        evidence.broken.append((folder, f"it cannot be read: {error.strerror}"))
        return True
    found = False
    for path in inner:
        if _look(path, evidence, seen, depth - 1):
            found = True
        elif path.name.isdigit():  # where a job should be
            evidence.broken.append((path, "it is empty" if not any(path.iterdir()) else "it holds no run"))
            found = True
    return found
