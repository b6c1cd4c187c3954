"""Runs of one experiment, and how experiments differ in accuracy, with intervals."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from bantam.report.folders import Study
from bantam.report.numbers import apart, signed
from bantam.report.runs import Run
from bantam.training.verdict import standard_error

NOT_TRAINED = (
    *("seed", "data.split_seed", "data.root", "device", "threads", "compile", "channels_last"),
    *("pictures", "report", "dry_run", "resume"),
    *("model.channels", "model.side", "model.classes"),  # as the data have them
)
"""Keys that do not say what is trained: runs that differ in these only are seeds of one group."""

CONFIDENCE = 0.95

SAME = 1e-9
"""Points below which seeds differ by the rounding of their means only."""


@dataclass
class Group:
    """Runs that differ in their seed only, or one run."""

    label: str
    every: list[Run]
    """All runs, those that repeat a seed too."""

    def __post_init__(self) -> None:
        seeds: dict[str, list[Run]] = {}
        for r in self.every:
            seeds.setdefault(str(r.folder if r.seed is None else r.seed), []).append(r)
        self.runs = [next((r for r in same if r.objective is not None), same[0]) for same in seeds.values()]
        """One run a seed: the first that was trained to its end. Repeats of it count nowhere."""
        repeated = {seed: len(same) for seed, same in seeds.items() if len(same) > 1}
        self.repeats = ", ".join(f"{count} runs of seed {seed}" for seed, count in repeated.items())
        """Which seeds were run more than once, as in "2 runs of seed 1"; empty where there is none."""
        self.ended = [r for r in self.runs if r.objective is not None]
        """Those that were trained to their end."""
        self.first = next(iter(self.ended), self.runs[0])
        """The one whose settings and machine are shown: the first that was trained to its end, if any was."""
        self.objectives = [r.objective for r in self.ended if r.objective is not None]
        self.mean = statistics.fmean(self.objectives) if self.ended else None
        """Mean accuracy of the last epochs over the seeds, percent."""
        self.deviation = statistics.stdev(self.objectives) if len(self.ended) > 1 else None
        """Standard deviation of a single seed, points."""
        counts = (r.result.get("parameters") or sum(row.parameters for row in r.layers) for r in self.runs)
        self.parameters: int | None = next(filter(None, counts), None)
        self.met = sum(r.state == "met" for r in self.runs)
        judged = all(r.state != "not judged" for r in self.runs)
        together = f"met by {self.met} of {len(self.runs)} seeds" if judged else "not judged"
        self.verdict = together if len(self.runs) > 1 else self.first.verdict
        """The run's own verdict, or how many seeds met the target."""
        self.at_chance = bool(self.ended) and all(r.at_chance for r in self.ended)
        """No run that ended did better than guessing, so its numbers show no structure."""
        known = [r.confusion for r in self.ended if len(r.confusion) == len(self.first.confusion)]
        self.confusion: list[list[int]] = np.sum(known, axis=0).tolist() if known else []
        """Truth by guess, summed over the seeds."""
        self.trained = any(r.history for r in self.runs)
        """There is an epoch to draw."""

    def by_epoch(self, key: str) -> list[tuple[int, float]]:
        """Epoch and median of a number of `Epoch` over the seeds that got so far."""
        rows = zip_longest(*([float(getattr(epoch, key)) for epoch in r.history] for r in self.runs))
        values = ([value for value in row if value is not None] for row in rows)
        return [(epoch, statistics.median(own)) for epoch, own in enumerate(values, 1)]


def group(runs: Sequence[Run], key: Callable[[Run], str] | None = None) -> list[Group]:
    """Put runs together that differ in their seed only, or that share a key; groups in the order of the runs."""
    alike: dict[str, list[list[Run]]] = {}
    for r in runs:
        settings = sorted((name, repr(value)) for name, value in r.settings.items() if name not in NOT_TRAINED)
        parts = alike.setdefault(key(r) if key else repr(settings) if settings else str(r.folder), [])
        # By images too: data=auto is MNIST once and mnist5k later. A run that did not end does not say on which.
        known = next((own for own in parts if same_images(own, [r])), None)
        if known is None:
            parts.append(known := [])
        known.append(r)
    groups = [Group(own[0].name, own) for parts in alike.values() for own in parts]
    _make_labels_unique(groups)
    return groups


def confirmed(study: Study) -> list[Group]:
    """The best trials of a study on fresh seeds, scored on validation images, the best first."""
    found = group([r for r in study.confirmations if "-validation-" in r.folder.name], key=lambda r: r.name)
    return sorted(found, key=lambda g: -(g.mean or 0.0) if len(g.ended) == len(g.runs) else math.inf)


def tested(study: Study) -> Group | None:
    """The seeds of a confirmation's winner on the test images."""
    winner = f"trial {study.confirmation.get('winner')}"  # of the last confirmation: there may have been others
    found = group([r for r in study.confirmations if "-test-" in r.folder.name], key=lambda r: r.name)
    return next((g for g in found if g.label == winner or not study.confirmation), None)


def same_images(ones: Sequence[Run], others: Sequence[Run]) -> bool:
    """Whether all of these runs were scored on the same images, as far as their results say on which."""
    keys = ("data", "data_checksum", "split", "scored_images")
    said = ({repr(r.result[key]) for r in (*ones, *others) if r.result.get(key) is not None} for key in keys)
    return all(len(values) < 2 for values in said)


def _make_labels_unique(groups: list[Group]) -> None:
    """Add to labels that occur twice what was typed for one and not for all of them, or else the folder."""
    for label, times in Counter(g.label for g in groups).items():
        same = [g for g in groups if g.label == label and times > 1]
        ignored = (*NOT_TRAINED, "experiment")
        typed = [[t for t in g.first.overrides if t.split("=")[0].lstrip("+") not in ignored] for g in same]
        for g, items in zip(same, typed, strict=True):
            own = [item for item in items if item != f"model={label}" and not all(item in each for each in typed)]
            g.label = ", ".join(filter(None, [label, " ".join(own)]))
        for g in same:
            if sum(other.label == g.label for other in groups) > 1:
                g.label = f"{g.label} ({g.first.folder.parent.name}/{g.first.folder.name})"


def interval(before: Group, after: Group, confidence: float) -> tuple[float, float] | None:
    """Interval of the difference of two means, in points: over seeds, Welch's; of single runs, the images'.

    It ends where the second mean would leave 0 to 100 %. None where every seed gave the same, or the number of
    images is not known.
    """
    old = before.mean or 0.0
    if min(len(before.ended), len(after.ended)) > 1:
        if max(before.deviation or 0.0, after.deviation or 0.0) < SAME:
            return None
        # Takes longer to import than a page to write: not where no seeds are compared.
        from scipy import stats

        welch = stats.ttest_ind(after.objectives, before.objectives, equal_var=False)
        ends = welch.confidence_interval(confidence)
    else:
        errors = [standard_error(g.mean or 0.0, g.ended[0].scored_images) for g in (before, after)]
        if math.isnan(sum(errors)):
            return None
        # Of 0 and 100 % it is none.
        margin = statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * math.hypot(*errors)
        ends = (after.mean or 0.0) - old - margin, (after.mean or 0.0) - old + margin
    return max(-old, float(ends[0])), min(100 - old, float(ends[1]))


class Difference:
    """What one group is above another, in points, and whether noise may explain it."""

    def __init__(self, before: Group, after: Group, comparisons: int = 1) -> None:
        """Compare two groups with results on the same images; `comparisons` as for `difference`."""
        self.label, self.reference = after.label, before.label
        self.points = (after.mean or 0.0) - (before.mean or 0.0)
        counts = len(after.ended), len(before.ended)
        self.seeds = min(counts) > 1
        """The interval is about seeds (Welch); else about the choice of the scored images alone."""
        self.interval = interval(before, after, 1 - (1 - CONFIDENCE) / comparisons)
        """Its ends; None where there is none."""
        clear = self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]
        self.distinguishable = self.seeds and clear
        """Noise does not explain it."""
        against = "one seed each" if counts == (1, 1) else f"{counts[0]} against {counts[1]} seeds"
        verdict, within = "there is no interval", ""
        if self.interval:
            images = "" if self.seeds else f" by the choice of {after.ended[0].scored_images:,} images alone"
            within = f"{' to '.join(map(signed, self.interval))}{images}, "
            verdict = "cannot be told from noise"
        if clear:
            one = "the images do not explain it, but another seed might"
            verdict = "more than seeds explain" if self.seeds else one
        self.sentence = f"{apart(self.points, before.label)} ({within}{against}): {verdict}"
        if any(r.at_chance for r in (*before.ended, *after.ended)):
            self.sentence += ". Some seeds never left chance, so the means say little"


def difference(before: Group, after: Group, comparisons: int = 1) -> Difference | None:
    """Compare two groups; None where either has no result or they were scored on other images.

    With several comparisons each interval is widened (Bonferroni), so that all of them hold together
    with 95 %.
    """
    alike = before.ended and after.ended and same_images(before.ended, after.ended)
    return Difference(before, after, comparisons) if alike else None


def comparable(groups: Sequence[Group]) -> list[Group]:
    """Those with a result; where they were scored on different images, the most that share theirs."""
    judged = [g for g in groups if g.mean is not None]
    alike = [[other for other in judged if same_images(g.ended, other.ended)] for g in judged]
    return max(alike, key=len, default=[])


def compare(groups: Sequence[Group]) -> list[Difference]:
    """Every group against the one with the highest mean, of those that were scored on the same images.

    That one was chosen by the same results. So the intervals are as wide as if every pair were
    compared: then they hold whichever is chosen.
    """
    alike = comparable(groups)
    best = max(alike, key=lambda g: g.mean or 0.0, default=None)
    found = [difference(best, g, math.comb(len(alike), 2)) for g in alike if best and g is not best]
    return [each for each in found if each]
