"""Sentences that are drawn from the numbers of runs: each with its topic, and only where numbers carry it."""

import math
import statistics
from collections.abc import Iterator, Sequence

from scipy import stats

from bantam.report.folders import AHEAD, Study
from bantam.report.groups import CONFIDENCE, Difference, Group, comparable, difference, standard_error
from bantam.report.numbers import apart, listed, plural, signed
from bantam.report.runs import Run, number

Finding = tuple[str, str]
"""A topic and a sentence."""

HARDER = (
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "degrees",
    "pixels",
    "scale",
    "shear_degrees",
    "elastic_pixels",
)
"""Keys of an augmentation that change images."""


def analyse(g: Group) -> list[Finding]:
    """What the numbers of a group say."""
    found = list(_seeds(g) if len(g.runs) > 1 else _outcome(g.first))
    if g.repeats:
        found.append(("Repeats", f"{g.repeats}: it counts once, by its first run that ended"))
    if not g.ended or g.at_chance:
        return found
    return [*found, *_target(g), *_gap(g), *_last_epochs(g), *_rate(g), *_errors(g)]


def _outcome(r: Run) -> Iterator[Finding]:
    if r.objective is None or r.at_chance:
        yield "Outcome", r.reason or r.state
    elif r.fallen:
        best = max(r.history, key=lambda epoch: epoch.accuracy)
        yield "Outcome", f"it falls from {best.accuracy:.2f} % in epoch {best.epoch} to {r.accuracies[-1]:.2f} %"


def _seeds(g: Group) -> Iterator[Finding]:
    count = len(g.ended)
    lost = [r for r in g.runs if r.objective is None]
    chance = [r for r in g.ended if r.at_chance]
    fell = [r for r in g.ended if r.fallen and not r.at_chance]
    if chance:
        seeds = ", ".join(f"seed {r.seed}" for r in chance)
        yield "Collapse", f"{len(chance)} of {count} seeds never left chance: {seeds}"
    if fell:
        falls = [f"seed {r.seed} from {max(r.accuracies):.2f} to {r.accuracies[-1]:.2f} %" for r in fell]
        yield "Collapse", f"{len(fell)} of {count} seeds fell back after their best epoch: {', '.join(falls)}"
    if lost:
        states = ", ".join(f"seed {r.seed} ({r.state})" for r in lost)
        yield "Lost", f"{len(lost)} of {len(g.runs)} have no result and are in no mean: {states}"


def _target(g: Group) -> Iterator[Finding]:
    target, judged = g.first.target, [r for r in g.ended if r.judged and r.history]
    if math.isnan(target) or not judged:
        return
    reached = [_reached(r, target) for r in judged]
    if len(judged) > 1:
        ever, to_the_end = (sum(each[i] is not None for each in reached) for i in (0, 1))
        text = f"{target:g} % is reached by {ever} of {len(judged)} seeds in some epoch, by {to_the_end} at the "
        yield "Target", f"{text}end, and by {g.met} in all of the last epochs"
        return
    only, (first, steady) = judged[0], reached[0]
    if first is None:
        short = target - max(only.accuracies)
        images = math.ceil(round(short / 100 * only.scored_images, 6))
        text = f"never reaches {target:g} %: the best epoch is {short:.2f} points short"
        text += f", {plural(images, 'image')}" if only.scored_images else ""
    elif steady is None:
        times = plural(sum(accuracy >= target for accuracy in only.accuracies), "epoch")
        text = f"first reaches {target:g} % in epoch {first}, is there in {times}, and does not hold it"
    elif steady == first:
        text = f"reaches {target:g} % in epoch {first} and stays there"
    else:
        text = f"first reaches {target:g} % in epoch {first} and stays there from {steady} on"
    yield "Target", text


def _reached(r: Run, target: float) -> tuple[int | None, int | None]:
    """The first epoch at or above the target, and the one from which on all are."""
    first = next((e.epoch for e in r.history if e.accuracy >= target), None)
    since = next((e.epoch for e in reversed(r.history) if e.accuracy < target), 0) + 1
    return first, since if since <= r.history[-1].epoch else None


def _gap(g: Group) -> Iterator[Finding]:
    gap, images = g.gap, g.shown.scored_images
    error = standard_error(g.mean or 0.0, images)
    if gap is None or not error or math.isnan(error):
        return
    where = apart(gap, g.shown.split)
    harder = ["augmentation"] * any(number(g.first.settings.get(f"augmentation.{key}")) > 0 for key in HARDER)
    harder += ["dropout"] * (number(g.first.settings.get("model.dropout")) > 0)
    if gap > 2 * error:
        verdict = ": it learns training images that do not carry over"
    elif gap >= -2 * error:
        verdict = f", within what {images:,} images can tell: no overfitting to be seen"
    else:
        makes = f"; {' and '.join(harder)} {'make' if len(harder) > 1 else 'makes'} the training images harder"
        verdict = f": no overfitting to be seen{makes if harder else ''}"
    yield "Gap", f"in the last epochs training accuracy is {where}{verdict}"


def _last_epochs(g: Group) -> Iterator[Finding]:
    """How far they are apart, and whether, as a mean over the seeds, they still move in one direction."""
    ended = [r for r in g.ended if len(r.last) > 2 and len(r.history) >= len(r.last) and not r.short]
    if not ended:
        return
    spreads, count, images = [max(r.last) - min(r.last) for r in ended], len(ended[0].last), ended[0].scored_images
    if len(ended) > 1:
        apart = f"{statistics.fmean(spreads):.2f} points apart on average, {max(spreads):.2f} at most"
        yield "Stability", f"within a seed the last {count} epochs lie {apart}"
    else:
        share = f", {round(spreads[0] / 100 * images):,} of {images:,} images" if images else ""
        yield "Stability", f"the last {count} epochs lie within {spreads[0]:.2f} points{share}"
    alike = [r.last for r in ended if len(r.last) == count]
    means = [statistics.fmean(values) for values in zip(*alike, strict=True)]
    if count > 3 and len(set(means)) > 1:
        fit = stats.linregress(range(count), means)
        if fit.pvalue < 1 - CONFIDENCE and abs(fit.slope) >= 0.01:
            direction = "still rises" if fit.slope > 0 else "falls"
            yield "Trend", f"it {direction} at the end, by {abs(fit.slope):.2f} points an epoch"


def _rate(g: Group) -> Iterator[Finding]:
    """What the first fall of the learning rate to half or less brought."""
    rates, accuracies = g.by_epoch("lr"), g.by_epoch("accuracy")
    for i in range(1, len(rates)):
        (epoch, before, *_), (_, now, lowest, highest) = rates[i - 1], rates[i]
        if 0 < now <= before / 2 * 1.001 and lowest == highest:
            old, new = accuracies[i - 1][1], accuracies[i][1]
            fall = f"from epoch {epoch} to {rates[i][0]} the rate falls from {before:.3g} to {now:.3g}"
            yield "Rate", f"{fall}, and accuracy goes from {old:.2f} to {new:.2f} % ({signed(new - old)})"
            return


def _errors(g: Group) -> Iterator[Finding]:
    matrix, names = g.confusion, g.first.classes
    shares = [(100 * row[i] / sum(row), i) for i, row in enumerate(matrix) if sum(row)]
    if not shares or len(names) != len(matrix):
        return
    share, worst = min(shares)
    if mistake := g.mistake[1]:
        hardest = f"class {names[worst]} is the hardest ({share:.2f} % right)"
        yield "Errors", f"{hardest}; the most frequent mistake is {mistake}"


def comparison(found: Sequence[Difference], groups: Sequence[Group]) -> str:
    """What the differences of some of the groups to the best are, and how far their intervals hold."""
    left_out, alike = sum(g.mean is None for g in groups), comparable(groups)
    apart = [f"{g.label} ({g.shown.images})" for g in groups if g.mean is not None and g not in alike]
    on_others = f"Not compared, because other images were scored: {listed(apart)}" if apart else ""
    if not found:
        return f"{on_others}." if apart else ""
    some = f" (the best {len(found)} of the others)" if len(found) + 1 < len(alike) else ""
    over_seeds, pairs = {each.seeds for each in found}, math.comb(len(found) + 1, 2)
    welch = "Intervals over seeds are Welch's; each of the two means adds to them only as far as accuracies go, "
    images = "Where there is one seed, the interval takes the scored images for a sample, drawn for each run "
    together = f"The intervals are so wide that those of all {pairs} pairs hold together with 95 % (Bonferroni): "
    sentences = [
        f"Differences of the mean of the last epochs to the best, {found[0].reference}{some}",
        f"{welch}from 0 to 100 %" * (True in over_seeds),
        f"{images}anew, and leaves the seed out" * (False in over_seeds),
        f"{together}so it does no harm that the best was chosen by the same results" * (pairs > 1),
        "The interval holds with 95 %" * (pairs == 1),
        f"{left_out} without a result {'is' if left_out == 1 else 'are'} left out" * bool(left_out),
        on_others,
    ]
    return f"{'. '.join(filter(None, sentences))}."


def confirmation(study: Study) -> str:
    """The verdict of the winner on the test images, in one sentence; empty where there is none."""
    test, winner, seeds = (study.confirmation.get(key) for key in ("test", "winner", "seeds"))
    if winner is not None and test is None:
        return AHEAD.format(winner)
    if not isinstance(test, dict):
        return "The confirmation has not ended: confirm.json is not there." if study.confirmations else ""
    count = len(seeds) if isinstance(seeds, list) else 0
    text = f"Trial {winner} on the test images: {test.get('verdict')}"
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
    return f"Not compared: {before.label} was scored on {before.shown.images}, this on {after.shown.images}."
