"""Sentences that are drawn from the numbers of a group of runs."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy import stats

from bantam.report.folders import AHEAD, Run, Study, number
from bantam.report.groups import COLLAPSE, CONFIDENCE, Group, signed, standard_error


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
    harder = ["augmentation"] * any(number(g.first.settings.get(f"augmentation.{key}")) > 0 for key in changing)
    harder += ["dropout"] * (number(g.first.settings.get("model.dropout")) > 0)
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


def confirmation(study: Study) -> str:
    """The verdict of the winner on the test images, in one sentence; empty where there is none."""
    test = study.confirmation.get("test")
    if "winner" in study.confirmation and test is None:
        return AHEAD.format(study.confirmation["winner"])
    if not isinstance(test, dict):
        return "The confirmation has not ended: confirm.json is not there." if study.confirmations else ""
    seeds = study.confirmation.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else 0
    said = f"Trial {study.confirmation.get('winner')} on the test images: {test.get('verdict')}"
    if test.get("verdict") != "not judged":
        said += f"; {test.get('met')} of {count} seeds hold the target in every one of the last epochs"
    if isinstance(test.get("mean"), float):
        said += f". Mean of the last epochs {test['mean']:.3f} %, over {count} seeds"
    return f"{said}."
