"""The verdict on a run: met, not met, not judged, and the evidence in one sentence."""

import math
from dataclasses import dataclass

from bantam.training.loop import Epoch


@dataclass(frozen=True)
class Verdict:
    """Whether the target is met, with the evidence in one sentence."""

    verdict: str
    """met, not met, not judged, diverged or pruned."""
    reason: str
    objective: float | None
    """Mean accuracy of the last epochs in percent, what a sweep maximises; None without any."""
    best_accuracy: float | None
    best_epoch: int | None
    last_accuracies: list[float]
    """Percent, of the last `target.last_epochs` epochs."""
    at_chance: bool
    """The network never did better than always guessing the most frequent class."""


def judge(
    history: list[Epoch],
    *,
    target: float,
    last_epochs: int,
    most_epochs: int,
    not_judged: str,
    most_frequent: float,
    scored_images: int,
) -> Verdict:
    """Judge a finished run by its last epochs.

    `target` and `most_frequent` (the share of the largest class among the scored images) are in
    percent. A network counts as at chance when its best epoch is within three standard errors of
    always guessing that class.
    """
    last = history[-last_epochs:]
    accuracies = [epoch.accuracy for epoch in last]
    best = max(history, key=lambda epoch: epoch.accuracy)
    chance = most_frequent + 3 * standard_error(most_frequent, scored_images)
    at_chance = best.accuracy <= chance
    missed = [epoch for epoch in last if epoch.accuracy < target]
    when = "the last" if last_epochs == 1 else f"every one of the last {last_epochs}"
    wanted = f"{target:g} % in {when} of at most {most_epochs} epochs"
    if not_judged:
        verdict, reason = "not judged", not_judged
    elif len(history) < last_epochs:
        verdict = "not judged"
        trained = f"{len(history)} epochs were" if len(history) > 1 else "1 epoch was"
        reason = f"{trained} trained, and the target is about the last {last_epochs}"
    elif not missed:
        verdict, reason = "met", f"{wanted}; the lowest is {min(accuracies):.2f} %"
    else:
        verdict = "not met"
        short = ", ".join(f"epoch {e.epoch} by {target - e.accuracy:.2f}" for e in missed)
        reason = f"{wanted}: missed in {short} points"
    if at_chance:
        reason += (
            f"; the network never left chance: its best, {best.accuracy:.2f} %, cannot be told from always "
            f"guessing the most frequent class, {most_frequent:.2f} %"
        )
    objective = sum(accuracies) / len(accuracies)
    return Verdict(verdict, reason, objective, best.accuracy, best.epoch, accuracies, at_chance)


def standard_error(accuracy: float, images: int) -> float:
    """By how much an accuracy in percent varies with the choice of the scored images, in points."""
    share = min(1.0, max(0.0, accuracy / 100))
    return 100 * math.sqrt(share * (1 - share) / images) if images else math.nan
