"""Runs of one experiment, and how experiments differ: in accuracy, with intervals, in settings and in layers."""

import difflib
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scipy import stats

from bantam import budget
from bantam.report.folders import Run, Study

MACHINE = (
    *("seed", "data.split_seed", "data.root", "device", "threads", "compile", "channels_last"),
    *("pictures", "report", "dry_run", "resume"),
)
"""Keys that do not say what is trained: runs that differ in these only are seeds of one group."""

CONFIDENCE = 0.95

COLLAPSE = 5.0
"""Points below its best epoch at which a network ends that counts as fallen back."""


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
        members = next((members for members in alike if same_images(members[0], r)), None)
        if members is None:
            alike.append([r])
        else:
            members.append(r)
    order = {id(r): number for number, r in enumerate(runs)}
    parts = sorted((members for alike in found.values() for members in alike), key=lambda m: order[id(m[0])])
    groups = [Group(members[0].name, members) for members in parts]
    _tell_apart(groups)
    return groups


def confirmed(study: Study) -> list[Group]:
    """The best trials of a study on fresh seeds, scored on validation images, the best first."""
    return sorted(
        _by_trial(r for r in study.confirmations if "-test-" not in r.folder.name),
        key=lambda g: -(g.mean or 0.0) if len(g.ended) == len(g.runs) else math.inf,
    )


def tested(study: Study) -> Group | None:
    """The seeds of a confirmation's winner on the test images."""
    found = _by_trial(r for r in study.confirmations if "-test-" in r.folder.name)
    winner = f"trial {study.confirmation.get('winner')}"  # of the last confirmation: there may have been others
    others = None if study.confirmation else next(iter(found), None)
    return next((g for g in found if g.label == winner), others)


def _by_trial(runs: Iterable[Run]) -> list[Group]:
    parts: dict[str, list[Run]] = {}
    for r in runs:
        parts.setdefault(r.name, []).append(r)
    return [Group(name, members) for name, members in parts.items()]


def same_images(one: Run, other: Run) -> bool:
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
    if before.mean is None or after.mean is None or not same_images(before.ended[0], after.ended[0]):
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
    others = [g for g in judged if g is not best and same_images(best.ended[0], g.ended[0])]
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
