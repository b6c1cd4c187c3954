"""Which pruner? Replays finished learning curves under several, in many orders.

    python train.py -m hparams_search=optuna hydra/sweeper/pruner=none hydra.sweeper.n_trials=60 …
    python benchmarks/pruners.py multirun/<study>

The folder is one whose trials were trained to their end. A replay takes `--trials` of the curves in a
random order and shows them to the pruner epoch by epoch, one trial after the other, as a search does.
Printed, over all orders: the share of all epochs that was trained, how often the best of the taken
trials was given up, and by how many points the best that was left is below it.
"""

import argparse
import csv
import statistics
from pathlib import Path

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, PercentilePruner, SuccessiveHalvingPruner
from rich.console import Console
from rich.progress import track
from rich.table import Table

LAST_EPOCHS = 5
"""The objective is the mean of so many."""


def curves(folder: Path) -> list[list[float]]:
    """Validation accuracy by epoch, in percent, of every trial that has all its epochs."""
    found = []
    for history in sorted(folder.glob("*/history.csv")):
        with history.open(newline="") as stream:
            accuracies = [row["validation_accuracy"] for row in csv.DictReader(stream)]
        if all(accuracies):
            found.append([float(accuracy) for accuracy in accuracies])
    longest = max(map(len, found), default=0)
    return [curve for curve in found if len(curve) == longest]


def candidates(epochs: int) -> dict[str, BasePruner]:
    """The pruners to compare, under their configuration's names."""
    by_name: dict[str, BasePruner] = {}
    for warmup in (1, 3, 5, 7, 10):
        by_name[f"median n_warmup_steps={warmup}"] = MedianPruner(5, warmup)
    for warmup in (3, 5):
        by_name[f"percentile=75 n_warmup_steps={warmup}"] = PercentilePruner(75, 5, warmup)
    for resource in (1, 3, 4, 5, 6, 7):
        by_name[f"successive_halving min_resource={resource}"] = SuccessiveHalvingPruner(resource, 2)
    for resource in (4, 5):
        pruner = SuccessiveHalvingPruner(resource, 3)
        by_name[f"successive_halving min_resource={resource} reduction_factor=3"] = pruner
    for resource in (1, 3):
        by_name[f"hyperband min_resource={resource}"] = HyperbandPruner(resource, epochs, 2)
    return by_name


def replay(pruner: BasePruner, taken: list[list[float]]) -> tuple[int, float, bool]:
    """Epochs trained, points lost against the best of the taken trials, and whether that one was given up."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    objectives = [statistics.fmean(curve[-LAST_EPOCHS:]) for curve in taken]
    left, trained = [], 0
    for curve, objective in zip(taken, objectives, strict=True):
        trial = study.ask()
        for epoch, accuracy in enumerate(curve, 1):
            trained += 1
            trial.report(accuracy, epoch)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, objective)
            left.append(objective)
    lost = max(objectives) - max(left)
    return trained, lost, lost > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="studies or multiruns trained without pruning")
    parser.add_argument("--trials", type=int, default=30, help="curves in a replay")
    parser.add_argument("--orders", type=int, default=50, help="replays of each pruner")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    whole = [curve for folder in arguments.folder for curve in curves(folder)]
    if len(whole) < 2:
        parser.error(f"{arguments.folder[0]} has no two trials that were trained to their end")
    count, epochs = min(arguments.trials, len(whole)), len(whole[0])
    table = Table(box=None, title=f"{count} of {len(whole)} curves of {epochs} epochs, {arguments.orders} orders")
    table.add_column("pruner", no_wrap=True)
    for column in ("epochs\ntrained, %", "best\ngiven up, %", "points lost,\nmean", "\nmost"):
        table.add_column(column, justify="right", no_wrap=True)
    console = Console()
    for name, pruner in track(candidates(epochs).items(), "replaying", console=console, transient=True):
        random = np.random.default_rng(0)
        orders = [random.permutation(len(whole))[:count] for _ in range(arguments.orders)]
        seen = [replay(pruner, [whole[i] for i in order]) for order in orders]
        trained, lost, missed = zip(*seen, strict=True)
        table.add_row(
            name,
            f"{100 * statistics.fmean(trained) / (count * epochs):.0f}",
            f"{100 * statistics.fmean(missed):.0f}",
            f"{statistics.fmean(lost):.3f}",
            f"{max(lost):.3f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
