"""How many seeds a trial, and when is one not trained on the next? Replays finished learning curves.

    for seed in 1 2 3 …; do python train.py -m hparams_search=optuna hydra.sweeper.study_name=curves-$seed
        seed=$seed hydra/sweeper/sampler=random hydra.sweeper.sampler.seed=1 hydra/sweeper/pruner=none …; done
    python benchmarks/seeds.py multirun/curves-*

Each folder is a study of the same settings with other seeds: several studies, or one that was trained with
`hydra.sweeper.seeds` and without pruning. A replay takes settings in a random order until `--epochs` are trained,
on some of the seeds; the others, which it does not see, say how good its winner is. All rules prune the first
seed as a search does, epoch by epoch. Printed, over all orders: how many trials were begun and how many had all
their seeds, how often another trial that was begun is better on the other seeds than the winner, and by how many
points the winner is below the best trial of all there.
"""

import argparse
import csv
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import WilcoxonPruner
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bantam.search.pruners import SuccessiveHalving

LAST_EPOCHS = 5
"""The objective is the mean of so many."""

Rule = Callable[[list[list[float]], list[float], int], bool]
"""From the seeds of the trials that have all of theirs, those of a trial so far and how many it is to have:
whether it gets no further seed."""


def curves(folders: list[Path]) -> list[list[list[float]]]:
    """By settings and seed the validation accuracy by epoch, in percent, of settings that have all seeds."""
    found: dict[str, list[list[float]]] = {}
    for folder in folders:
        for trial in (path for path in folder.glob("[0-9]*") if (path / "result.json").exists()):
            typed = (trial / ".hydra" / "overrides.yaml").read_text().splitlines()
            settings = " ".join(sorted(item for item in typed if not item.startswith("- seed=")))
            for run in [trial, *trial.glob("seed-*")]:
                with (run / "history.csv").open(newline="") as stream:
                    accuracies = [float(row["validation_accuracy"] or "nan") for row in csv.DictReader(stream)]
                found.setdefault(settings, []).append(accuracies)
    longest = max((len(curve) for runs in found.values() for curve in runs), default=0)
    most = max(map(len, found.values()), default=0)
    return [r for r in found.values() if len(r) == most and all(len(c) == longest for c in r)]


def objective(curve: list[float]) -> float:
    return statistics.fmean(curve[-LAST_EPOCHS:])


def never(whole: list[list[float]], own: list[float], count: int) -> bool:
    return False


def behind_on_each(whole: list[list[float]], own: list[float], count: int) -> bool:
    """The best trial was better on each of the trial's seeds, two at least: what a search does."""
    best = max(whole, key=statistics.fmean, default=[])
    return len(own) > 1 and bool(best) and all(theirs > mine for theirs, mine in zip(best, own, strict=False))


def below_all_seeds(whole: list[list[float]], own: list[float], count: int) -> bool:
    """Every seed of another trial is above the trial's mean so far."""
    return any(min(theirs) > statistics.fmean(own) for theirs in whole)


def below_all_seeds_of_the_best(whole: list[list[float]], own: list[float], count: int) -> bool:
    return bool(whole) and min(max(whole, key=statistics.fmean)) > statistics.fmean(own)


def below_the_best(whole: list[list[float]], own: list[float], count: int) -> bool:
    return bool(whole) and max(map(statistics.fmean, whole)) > statistics.fmean(own)


def cannot_reach(whole: list[list[float]], own: list[float], count: int) -> bool:
    """The mean stays below the best one even where each further seed reaches the highest value of all."""
    if not whole:
        return False
    highest = max(value for theirs in [*whole, own] for value in theirs)
    return (sum(own) + (count - len(own)) * highest) / count < max(map(statistics.fmean, whole))


def within(errors: float) -> Rule:
    """The mean would have to rise by more than so many standard errors, with the spread of all seeds so far."""

    def rule(whole: list[list[float]], own: list[float], count: int) -> bool:
        if not whole:
            return False
        spread = statistics.fmean(statistics.variance(theirs) for theirs in whole) ** 0.5
        error = spread * (1 / len(own) - 1 / count) ** 0.5
        return statistics.fmean(own) + errors * error < max(map(statistics.fmean, whole))

    return rule


def wilcoxon(threshold: float) -> Rule:
    """Optuna's WilcoxonPruner, which compares with the best trial, seed by seed."""

    def rule(whole: list[list[float]], own: list[float], count: int) -> bool:
        if not whole:
            return False
        study = optuna.create_study(direction="maximize", pruner=WilcoxonPruner(p_threshold=threshold))
        best = max(whole, key=statistics.fmean)
        values = dict(enumerate(best))
        study.add_trial(optuna.trial.create_trial(value=statistics.fmean(best), intermediate_values=values))
        trial = study.ask()
        for step, value in enumerate(own):
            trial.report(value, step)
        return trial.should_prune()

    return rule


RULES: dict[str, Rule] = {
    "all seeds": never,
    "behind on each of two": behind_on_each,
    "below all seeds of a trial": below_all_seeds,
    "below all seeds of the best": below_all_seeds_of_the_best,
    "below the best": below_the_best,
    "cannot reach the best": cannot_reach,
    "1 standard error below": within(1),
    "2 standard errors below": within(2),
    "WilcoxonPruner 0.1": wilcoxon(0.1),
    "WilcoxonPruner 0.3": wilcoxon(0.3),
}


def replay(rule: Rule, taken: list[list[list[float]]], count: int, epochs: int) -> tuple[int, int, int]:
    """Trials that were begun, those that had all of `count` seeds, and the place of the winner in `taken`."""
    study = optuna.create_study(direction="maximize", pruner=SuccessiveHalving(min_resource=5, reduction_factor=2))
    whole: dict[int, list[float]] = {}
    trained = begun = 0
    for place, runs in enumerate(taken):
        if trained >= epochs:
            break
        begun += 1
        trial = study.ask()
        pruned = False
        for epoch, accuracy in enumerate(runs[0], 1):
            trained += 1
            trial.report(accuracy, epoch)
            if pruned := trial.should_prune():
                break
        own = [objective(runs[0])]
        while not pruned and len(own) < count:
            pruned = rule(list(whole.values()), own, count)
            if not pruned:
                trained += len(runs[len(own)])
                own.append(objective(runs[len(own)]))
        if pruned:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, statistics.fmean(own))
            whole[place] = own
    return begun, len(whole), max(whole, key=lambda place: statistics.fmean(whole[place]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="+", help="studies of the same settings, trained without pruning"
    )
    parser.add_argument("--epochs", type=int, default=265, help="epochs after which a replay begins no trial")
    parser.add_argument("--orders", type=int, default=200, help="replays of each rule")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3], help="seeds a trial")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)  # of WilcoxonPruner
    runs = curves(arguments.folder)
    seeds = len(runs[0]) if runs else 0
    if len(runs) < 2 or seeds <= max(arguments.seeds):
        parser.error(f"{len(runs)} trials have {seeds} seeds: of some trials, more seeds than --seeds are needed")
    title = f"{len(runs)} settings, {seeds} seeds, {arguments.epochs} epochs a search, {arguments.orders} orders"
    table = Table(box=None, title=title)
    for column in ("seeds", "a trial gets no further seed where it is"):
        table.add_column(column, no_wrap=True)
    for column in ("begun", "whole", "wrong\nwinner, %", "points lost,\nmean", "\n95th of 100"):
        table.add_column(column, justify="right", no_wrap=True)
    cases = [(1, "", never), *((count, *item) for count in arguments.seeds for item in RULES.items())]
    console = Console()
    for count, name, rule in track(cases, "replaying", console=console, transient=True):
        random = np.random.default_rng(0)
        begun, whole, wrong, lost = [], [], [], []
        for _ in range(arguments.orders):
            order, seen = random.permutation(len(runs)), random.permutation(seeds)
            taken = [[runs[i][seed] for seed in seen] for i in order]
            # The same seeds judge the winners of all rules.
            truth = [statistics.fmean(map(objective, own[max(arguments.seeds) :])) for own in taken]
            some, ended, winner = replay(rule, taken, count, arguments.epochs)
            begun.append(some)
            whole.append(ended)
            wrong.append(truth[winner] < max(truth[:some]))
            lost.append(max(truth) - truth[winner])
        table.add_row(
            str(count),
            name,
            f"{statistics.fmean(begun):.1f}",
            f"{statistics.fmean(whole):.1f}",
            f"{100 * statistics.fmean(wrong):.0f}",
            f"{statistics.fmean(lost):.3f}",
            f"{np.quantile(lost, 0.95):.3f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
