"""Runs of one experiment, and how experiments differ in accuracy, with intervals."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from scipy import stats

from bantam.report.folders import Study
from bantam.report.numbers import apart, plural, signed
from bantam.report.runs import COLLAPSE, Run

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
        self.repeats = ", ".join(_repeated(same) for same in seeds.values() if len(same) > 1)
        """Which seeds were run more than once, as in "seed 1 twice"; empty where there is none."""
        self.first = self.runs[0]
        self.ended = [r for r in self.runs if r.objective is not None]
        """Those that were trained to their end."""
        self.shown = next(iter(self.ended), self.first)
        """The one whose settings and machine are shown: the first that was trained to its end."""
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
        ends = [r.accuracies[-1] for r in self.runs if r.history]
        self.spread_out = bool(ends) and max(ends) - min(ends) > COLLAPSE
        """Whether some seeds end far from others, so that a mean would show what no seed did."""

    @property
    def mistake(self) -> tuple[int, str]:
        """The most frequent mistake: how often, and as in "4 taken for 9, 18 times"; empty where there is none."""
        counts = ((n, i, j) for i, row in enumerate(self.confusion) for j, n in enumerate(row) if i != j)
        count, *named = max(counts, default=(0, 0, 0))
        words = " taken for ".join(self.first.classes[i] for i in named) if count else ""
        return count, f"{words}, {plural(count, 'time')}" * bool(count)

    def by_epoch(self, key: str) -> list[tuple[int, float, float, float]]:
        """Epoch, centre, lowest and highest of a number of `Epoch` over the seeds that got so far.

        The centre is the mean; the median where the seeds diverge from one another.
        """
        rows = zip_longest(*([float(getattr(epoch, key)) for epoch in r.history] for r in self.runs))
        values = [[value for value in row if value is not None] for row in rows]
        centre = statistics.median if self.spread_out else statistics.fmean
        return [(epoch, centre(own), min(own), max(own)) for epoch, own in enumerate(values, 1)]

    @property
    def gap(self) -> float | None:
        """By how many points training accuracy is above the scored one in the last epochs; None without those."""
        ended = [r for r in self.ended if r.history and r.last and not r.short]
        last = [r.history[-len(r.last) :] for r in ended]
        gaps = [statistics.fmean(e.train_accuracy - e.accuracy for e in epochs) for epochs in last]
        return statistics.fmean(gaps) if gaps else None


def _repeated(same: Sequence[Run]) -> str:
    """A seed that was run more than once, as in "seed 1 twice"."""
    alike = all((r.accuracies, r.objective) == (same[0].accuracies, same[0].objective) for r in same)
    times = "twice" if len(same) == 2 else f"{len(same)} times"
    return f"seed {same[0].seed} {times}{'' if alike else ' with different accuracies'}"


def group(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ in their seed only, in the order in which they first appear."""
    alike: dict[str, list[Run]] = {}
    for r in runs:
        settings = sorted((key, repr(value)) for key, value in r.settings.items() if key not in NOT_TRAINED)
        alike.setdefault(repr(settings) if settings else str(r.folder), []).append(r)
    groups = [Group(own[0].name, own) for same in alike.values() for own in _by_images(same)]
    _make_labels_unique(groups)
    return groups


def _by_images(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs apart that were scored on different images: data=auto is MNIST once and mnist5k later."""
    found: list[list[Run]] = []
    for r in runs:  # one that did not end does not say on which
        known = next((own for own in found if same_images(own, [r])), None)
        if known is None:
            found.append(known := [])
        known.append(r)
    return found


def confirmed(study: Study) -> list[Group]:
    """The best trials of a study on fresh seeds, scored on validation images, the best first."""
    found = _by_trial(study, "-validation-")
    return sorted(found, key=lambda g: -(g.mean or 0.0) if len(g.ended) == len(g.runs) else math.inf)


def tested(study: Study) -> Group | None:
    """The seeds of a confirmation's winner on the test images."""
    winner = f"trial {study.confirmation.get('winner')}"  # of the last confirmation: there may have been others
    return next((g for g in _by_trial(study, "-test-") if g.label == winner or not study.confirmation), None)


def _by_trial(study: Study, split: str) -> list[Group]:
    runs = [r for r in study.confirmations if split in r.folder.name]
    names = dict.fromkeys(r.name for r in runs)
    return [Group(name, own) for name in names for own in _by_images([r for r in runs if r.name == name])]


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
        every = [{item: item.split("=")[0].lstrip("+") for item in g.first.overrides} for g in same]
        typed = [[item for item, key in items.items() if key not in ignored] for items in every]
        for g, items in zip(same, typed, strict=True):
            own = [item for item in items if not all(item in others for others in typed)]
            g.label = ", ".join(filter(None, [label, " ".join(item for item in own if item != f"model={label}")]))
        for g in same:
            if sum(other.label == g.label for other in groups) > 1:
                g.label = f"{g.label} ({g.first.folder.parent.name}/{g.first.folder.name})"


def interval(before: float, after: float, margins: tuple[float, float]) -> tuple[float, float]:
    """Interval of `after - before`, two accuracies in percent with the given margins, in points.

    The margins are added as squares, as Welch's interval does, after each is cut where accuracies end,
    at 0 and 100 % (Zou and Donner 2008, doi:10.1002/sim.3095). So the interval is never wider than
    accuracies allow; whether it leaves zero out is not changed by it.
    """
    of_before, of_after = margins
    below = math.hypot(min(of_after, after), min(of_before, 100 - before))
    above = math.hypot(min(of_after, 100 - after), min(of_before, before))
    return after - before - below, after - before + above


def standard_error(accuracy: float, images: int) -> float:
    """By how much an accuracy in percent varies with the choice of the scored images, in points."""
    share = min(1.0, max(0.0, accuracy / 100))
    return 100 * math.sqrt(share * (1 - share) / images) if images else math.nan


def margins(before: Group, after: Group, confidence: float, seeds: bool) -> tuple[float, float] | None:
    """Margins of two means for the interval of their difference: over seeds, Welch's; of single runs, the images'.

    None where every seed gave the same, or the number of images is not known.
    """
    if seeds:
        errors = [(g.deviation or 0.0) / math.sqrt(len(g.ended)) for g in (before, after)]
        if max(errors) < SAME:
            return None
        welch = stats.ttest_ind(after.objectives, before.objectives, equal_var=False)
        quantile = stats.t.ppf(0.5 + confidence / 2, welch.df)
    else:
        errors = [standard_error(g.mean or 0.0, g.ended[0].scored_images) for g in (before, after)]
        quantile = stats.norm.ppf(0.5 + confidence / 2)
    return None if math.isnan(sum(errors)) else (float(quantile) * errors[0], float(quantile) * errors[1])


class Difference:
    """What one group is above another, in points, and whether noise may explain it."""

    def __init__(self, before: Group, after: Group, comparisons: int = 1) -> None:
        """Compare two groups with results on the same images; `comparisons` as for `difference`."""
        self.label, self.reference = after.label, before.label
        old, new, counts = before.mean or 0.0, after.mean or 0.0, [len(g.ended) for g in (after, before)]
        self.points = new - old
        self.confidence = 1 - (1 - CONFIDENCE) / comparisons
        self.seeds = min(counts) > 1
        """The interval is about seeds (Welch); else about the choice of the scored images alone."""
        sizes = margins(before, after, self.confidence, self.seeds)
        low, high = interval(old, new, sizes) if sizes else (None, None)
        self.low, self.high = low, high
        """Ends of the interval; None where there is none."""
        clear = low is not None and high is not None and not low <= 0 <= high
        self.distinguishable = self.seeds and clear
        """Noise does not explain it."""
        seeds, verdict = f"{counts[0]} against {counts[1]} seeds", "cannot be told from noise"
        self.sentence = apart(self.points, before.label)
        if self.seeds and sizes:
            verdict = "more than seeds explain" if clear else verdict
            self.sentence += f" ({signed(self.low)} to {signed(self.high)}, {seeds}): {verdict}"
            if any(r.at_chance for r in (*before.ended, *after.ended)):
                self.sentence += ". Some seeds never left chance, so the means say little"
        elif self.seeds:
            self.sentence += f", {seeds}: every seed gave the same, so there is no interval"
        else:
            verdict = "the images do not explain it, but another seed might" if clear else verdict
            self.sentence += ", one seed each" if counts[0] == counts[1] else f", {seeds}"
            images = f"the choice of {after.ended[0].scored_images:,} images alone"
            self.sentence += f"; {images} leaves ±{math.hypot(*sizes):.2f}: {verdict}" if sizes else ""


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
