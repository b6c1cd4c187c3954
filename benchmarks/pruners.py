"""Which pruner? Replays finished learning curves under several, in many orders.

    python train.py -m hparams_search=optuna hydra/sweeper/pruner=none hydra.sweeper.n_trials=60 …
    python benchmarks/pruners.py multirun/<study>

The folder is one whose trials were trained to their end. A replay takes `--trials` of the curves in a
random order and shows them to the pruner epoch by epoch, one trial after the other, as a search does.
Printed, over all orders: the share of all epochs that was trained, how often the best of the taken
trials was pruned, and by how many points the best that was left is below it.

    python train.py -m hparams_search=optuna hydra/sweeper/pruner=none seed=2 data.split_seed=2 …
    python benchmarks/pruners.py multirun/<study> --epochs 270 --fresh multirun/<the same on another seed>

With `--epochs` every pruner may train so many epochs, and takes as many trials as fit, as a search of so many
minutes does. The study of `--fresh` has the same settings on another seed and other validation images: the winner
counts for what it reaches there, so that no pruner is praised for the luck of many trials. With `--queued 2` the
first two trials come first in every order, as what `hydra.sweeper.enqueue` has does in a search.
"""

import argparse
import csv
import math
import statistics
from pathlib import Path

import numpy as np
import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bantam.search.pruners import SuccessiveHalving

LAST_EPOCHS = 5
"""The objective is the mean of so many."""


def curves(folder: Path) -> dict[str, list[float]]:
    """Validation accuracy by epoch, in percent, of every trial that has all its epochs, by number."""
    found = {}
    for history in sorted(folder.glob("*/history.csv"), key=lambda file: int(file.parent.name)):
        with history.open(newline="") as stream:
            accuracies = [row["validation_accuracy"] for row in csv.DictReader(stream)]
        if all(accuracies):
            found[history.parent.name] = [float(accuracy) for accuracy in accuracies]
    longest = max(map(len, found.values()), default=0)
    return {number: curve for number, curve in found.items() if len(curve) == longest}


def pooled(folders: list[Path]) -> dict[tuple[int, str], list[float]]:
    """The curves of several, by the place of the folder and the number of the trial."""
    return {(i, number): curve for i, folder in enumerate(folders) for number, curve in curves(folder).items()}


def objective(curve: list[float]) -> float:
    """Mean of the last epochs."""
    return statistics.fmean(curve[-LAST_EPOCHS:])


def halving(resource: int, far_behind: float | None) -> BasePruner:
    """With the other settings of our configuration."""
    return SuccessiveHalving(far_behind, min_resource=resource, reduction_factor=2)


def candidates(epochs: int) -> dict[str, BasePruner]:
    """The pruners to compare, under their configuration's names."""
    by_name: dict[str, BasePruner] = {}
    for warmup in (1, 3, 5, 7, 10):
        by_name[f"median n_warmup_steps={warmup}"] = MedianPruner(5, warmup)
    for warmup in (3, 5):
        by_name[f"percentile=75 n_warmup_steps={warmup}"] = PercentilePruner(75, 5, warmup)
    by_name["none"] = NopPruner()
    for resource in (1, 2, 3, 4, 5, 6, 7):
        by_name[f"successive_halving min_resource={resource} far_behind=null"] = halving(resource, None)
    for far_behind in (1.25, 1.5, 2.0, 3.0):
        by_name[f"successive_halving far_behind={far_behind}"] = halving(5, far_behind)
    for resource in (4, 5):
        pruner = SuccessiveHalving(None, min_resource=resource, reduction_factor=3)
        by_name[f"successive_halving min_resource={resource} reduction_factor=3 far_behind=null"] = pruner
    for resource in (1, 3):
        by_name[f"hyperband min_resource={resource}"] = HyperbandPruner(resource, epochs, 2)
    return by_name


def replay(pruner: BasePruner, order: list[list[float]], epochs: float = math.inf) -> tuple[int, int, int]:
    """Trials begun, epochs trained, and the place in the order of the best of those that were left.

    No trial is begun when so many epochs have been trained.
    """
    study = optuna.create_study(direction="maximize", pruner=pruner)
    left, trained, begun = dict[int, float](), 0, 0
    for i, curve in enumerate(order):
        if trained >= epochs:
            break
        begun += 1
        trial = study.ask()
        for epoch, accuracy in enumerate(curve, 1):
            trained += 1
            trial.report(accuracy, epoch)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            left[i] = objective(curve)
            study.tell(trial, left[i])
    return begun, trained, max(left, key=left.__getitem__)


Row = tuple[str, ...]


def by_trials(pruner: BasePruner, orders: list[list[list[float]]], worth: list[list[float]]) -> Row:
    """For as many trials: epochs trained, how often the best was pruned, points that this lost, and the worth."""
    trained, lost, reached = [], [], []
    for order, values in zip(orders, worth, strict=True):
        _, epochs, best = replay(pruner, order)
        trained.append(epochs / sum(map(len, order)))
        lost.append(max(map(objective, order)) - objective(order[best]))
        reached.append(values[best])
    missed = statistics.fmean(points > 0 for points in lost)
    return (
        f"{100 * statistics.fmean(trained):.0f}",
        f"{100 * missed:.0f}",
        f"{statistics.fmean(lost):.3f}",
        f"{max(lost):.3f}",
        _mean(reached),
    )


def by_epochs(pruner: BasePruner, orders: list[list[list[float]]], worth: list[list[float]], epochs: int) -> Row:
    """For as many epochs, means over the orders: trials begun, the winner's objective, and what it is worth."""
    found = [replay(pruner, order, epochs) for order in orders]
    seen = [objective(order[best]) for order, (_, _, best) in zip(orders, found, strict=True)]
    reached = [values[best] for values, (_, _, best) in zip(worth, found, strict=True)]
    return (
        f"{statistics.fmean(begun for begun, _, _ in found):.0f}",
        f"{statistics.fmean(seen):.3f}",
        _mean(reached),
    )


def _mean(reached: list[float]) -> str:
    """With its standard error."""
    return f"{statistics.fmean(reached):.3f} ± {statistics.stdev(reached) / math.sqrt(len(reached)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="studies or multiruns trained without pruning")
    parser.add_argument("--trials", type=int, default=30, help="curves in a replay")
    parser.add_argument("--orders", type=int, default=50, help="replays of each pruner")
    parser.add_argument("--epochs", type=int, help="epochs that a replay may train, instead of --trials")
    parser.add_argument(
        "--fresh", type=Path, nargs="+", help="the same trials, in the same order, on another seed"
    )
    parser.add_argument("--queued", type=int, default=0, help="trials that come first in every order")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.epochs and not arguments.fresh:
        parser.error("--epochs needs --fresh: with more trials what a search sees itself is better by luck")
    found = pooled(arguments.folder)
    fresh = pooled(arguments.fresh) if arguments.fresh else found
    numbers = [number for number in found if number in fresh]
    if len(numbers) < 2:
        parser.error(f"{arguments.folder[0]} has no two trials that were trained to their end")
    whole, worth = [found[number] for number in numbers], [objective(fresh[number]) for number in numbers]
    count = len(whole) if arguments.epochs else min(arguments.trials, len(whole))
    random = np.random.default_rng(0)
    first = list(range(arguments.queued))
    orders = [
        [*first, *(random.permutation(len(whole) - len(first)) + len(first))][:count]
        for _ in range(arguments.orders)
    ]
    taken = [[whole[i] for i in order] for order in orders]
    what = f"{arguments.epochs} epochs" if arguments.epochs else f"{count} trials"
    table = Table(box=None, title=f"{what} of {len(whole)} curves of {len(whole[0])} epochs, {len(orders)} orders")
    table.add_column("pruner", no_wrap=True)
    columns: tuple[str, ...] = ("epochs\ntrained, %", "best\npruned, %", "points lost,\nmean", "\nmost")
    columns += ("on a fresh seed, %",) if arguments.fresh else ()
    for column in ("trials", "best, %", "on a fresh seed, %") if arguments.epochs else columns:
        table.add_column(column, justify="right", no_wrap=True)
    console = Console(width=130)
    valued = [[worth[i] for i in order] for order in orders]
    for name, pruner in track(candidates(len(whole[0])).items(), "replaying", console=console, transient=True):
        if arguments.epochs:
            table.add_row(name, *by_epochs(pruner, taken, valued, arguments.epochs))
        else:
            table.add_row(name, *by_trials(pruner, taken, valued)[: len(columns)])
    console.print(table)


if __name__ == "__main__":
    main()
