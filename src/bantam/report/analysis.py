"""Sentences that are drawn from the numbers of runs: each with its topic, and only where numbers carry it."""

import math
import statistics
from collections.abc import Iterator, Sequence

from scipy.special import stdtr

from bantam.report.folders import AHEAD, Study
from bantam.report.groups import CONFIDENCE, Difference, Group, comparable, difference, tested
from bantam.report.numbers import apart, listed, plural
from bantam.training.verdict import standard_error

Finding = tuple[str, str]
"""A topic and a sentence."""


def analyse(g: Group) -> list[Finding]:
    """What the numbers of a group say."""
    found = list(_outcome(g))
    if g.repeats:
        found.append(("Repeats", f"{g.repeats}: it counts once, by its first run that ended"))
    if not g.ended or g.at_chance:
        return found
    return [*found, *_target(g), *_gap(g), *_trend(g), *_errors(g)]


def _outcome(g: Group) -> Iterator[Finding]:
    """Which runs have no result, or one that is not what the others are like."""
    seeds, count = f"of {plural(len(g.ended), 'seed')}", len(g.runs)
    chance = [f"seed {r.seed}" for r in g.ended if r.at_chance]
    fell = [r for r in g.ended if r.fallen and not r.at_chance]
    lost = [f"seed {r.seed} ({r.state})" for r in g.runs if r.objective is None]
    if count == 1 and (chance or lost):
        yield "Outcome", g.first.reason or g.first.state
    elif chance:
        yield "Collapse", f"{len(chance)} {seeds} never left chance: {', '.join(chance)}"
    if fell:
        falls = ", ".join(f"seed {r.seed} from {max(r.accuracies):.2f} to {r.accuracies[-1]:.2f} %" for r in fell)
        yield "Collapse", f"{len(fell)} {seeds} fell back after the best epoch: {falls}"
    if count > 1 and lost:
        yield "Lost", f"{len(lost)} of {count} have no result and are in no mean: {', '.join(lost)}"


def _target(g: Group) -> Iterator[Finding]:
    """How near a run came to the target before its last epochs, of which its verdict is."""
    target, judged = g.first.target, [r for r in g.ended if r.judged and r.history]
    if math.isnan(target) or not judged:
        return
    epochs = [next((e.epoch for e in r.history if e.accuracy >= target), None) for r in judged]
    only, first = judged[0], epochs[0]
    if len(judged) > 1:
        ever = len(judged) - epochs.count(None)
        yield "Target", f"{target:g} % is reached by {ever} of {len(judged)} seeds in some epoch"
    elif first is None:
        short = target - max(only.accuracies)
        images = math.ceil(round(short / 100 * only.scored_images, 6))
        text = f"never reaches {target:g} %: the best epoch is {short:.2f} points short"
        yield "Target", text + f", {plural(images, 'image')}" * bool(only.scored_images)
    else:
        below = sum(accuracy < target for accuracy in only.accuracies[first:])
        text = f"below it in {plural(below, 'epoch')} after that" if below else "stays there"
        yield "Target", f"reaches {target:g} % in epoch {first}, and {'is ' * bool(below)}{text}"


def _gap(g: Group) -> Iterator[Finding]:
    """How far training and scored accuracy are apart in the last epochs, as a mean over the seeds."""
    last = [r.history[-len(r.last) :] for r in g.ended if r.history and r.last and not r.short]
    error = standard_error(g.mean or 0.0, g.first.scored_images)
    if not last or not error or math.isnan(error):
        return
    gap = statistics.fmean(statistics.fmean(e.train_accuracy - e.accuracy for e in epochs) for epochs in last)
    verdict = "no overfitting to be seen"
    if gap > 2 * error:
        verdict = "it learns training images that do not carry over"
    elif gap >= -2 * error:
        verdict += f", within what {g.first.scored_images:,} images can tell"
    yield "Gap", f"in the last epochs training accuracy is {apart(gap, g.first.split)}: {verdict}"


def _trend(g: Group) -> Iterator[Finding]:
    """Whether the last epochs, as a mean over the seeds, still move in one direction."""
    ended = [r.last for r in g.ended if len(r.history) >= len(r.last) and not r.short]
    means = [statistics.fmean(values) for values in zip(*ended, strict=False)]
    if len(means) > 3 and len(set(means)) > 1:
        slope, p = trend(means)
        if p < 1 - CONFIDENCE and abs(slope) >= 0.01:
            direction = "still rises" if slope > 0 else "falls"
            yield "Trend", f"it {direction} at the end, by {abs(slope):.2f} points an epoch"


def trend(values: Sequence[float]) -> tuple[float, float]:
    """The slope of a line through values one apart, and the p-value of its being none.

    These are those of `scipy.stats.linregress`, whose import takes longer than all else of a page.
    """
    places, free = range(len(values)), len(values) - 2
    slope, r = statistics.linear_regression(places, values).slope, statistics.correlation(places, values)
    t = abs(r) * math.sqrt(free / max(1 - r * r, 1e-20))
    return slope, 2 * float(stdtr(free, -t))


def _errors(g: Group) -> Iterator[Finding]:
    names, matrix = g.first.classes, g.confusion
    shares = [(100 * row[i] / sum(row), i) for i, row in enumerate(matrix) if sum(row)]
    mistakes = ((n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j)
    count, truth, guess = max(mistakes, default=(0, 0, 0))
    if shares and count and len(names) == len(matrix):
        share, worst = min(shares)
        mistake = f"{names[truth]} taken for {names[guess]}, {plural(count, 'time')}"
        hardest = f"class {names[worst]} is the hardest ({share:.2f} % right)"
        yield "Errors", f"{hardest}; the most frequent mistake is {mistake}"


def comparison(found: Sequence[Difference], groups: Sequence[Group]) -> str:
    """What the differences of some of the groups to the best are, and how far their intervals hold."""
    alike, pairs = comparable(groups), math.comb(len(found) + 1, 2)
    others = [f"{g.label} ({g.first.images})" for g in groups if g.mean is not None and g not in alike]
    some = f" (the best {len(found)} of the others)" * (len(found) + 1 < len(alike))
    over = "The intervals are over seeds (Welch's) or, where there is one, over the choice of the scored images"
    together = f"All {pairs} pairs hold together with 95 % (Bonferroni)"
    sentences = [
        f"Differences of the mean of the last epochs to the best{some}",
        f"{over}. {together}, so it does no harm that the best was chosen by the same results",
    ] * bool(found)
    sentences += [f"Not compared, because other images were scored: {listed(others)}"] * bool(others)
    return " ".join(f"{sentence}." for sentence in sentences)


def confirmation(study: Study) -> str:
    """The verdict of the winner on the images that were kept for it, in a sentence; empty where there is none."""
    test, winner, seeds = (study.confirmation.get(key) for key in ("test", "winner", "seeds"))
    if winner is not None and test is None:
        return AHEAD.format(winner)
    if not isinstance(test, dict):
        return "The confirmation has not ended: confirm.json is not there." if study.confirmations else ""
    count = len(seeds) if isinstance(seeds, list) else 0
    found = tested(study)
    text = f"Trial {winner} on the {found.first.split if found else 'test'} images: {test.get('verdict')}"
    if test.get("verdict") != "not judged":
        text += f"; {test.get('met')} of {count} seeds hold the target in every one of the last epochs"
    if isinstance(test.get("mean"), float):
        text += f". Mean of the last epochs {test['mean']:.3f} %, over {plural(count, 'seed')}"
    return f"{text}."


def brought(before: Group, after: Group) -> str:
    """What a step brought against the one before it."""
    found = difference(before, after)
    if found:
        return f"{found.sentence}."
    if before.mean is None or after.mean is None:
        return "Not compared: one of the two has no result."
    return f"Not compared: {before.label} was scored on {before.first.images}, this on {after.first.images}."
