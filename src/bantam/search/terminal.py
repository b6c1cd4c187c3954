"""All that a search and a confirmation print."""

import sys
import time
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from bantam.search import outcome, study, trials
from bantam.search.outcome import Candidate
from bantam.search.space import Search


def tell(listed: Sequence[FrozenTrial], told: set[int], console: Console) -> None:
    """Print a line for every trial that has ended since the last look."""
    for trial, state in zip(listed, trials.states(listed), strict=True):
        if not trial.state.is_finished() or trial.number in told or state == "surplus":
            continue
        told.add(trial.number)
        value = trials.objective(trial, state)
        colour = {"complete": "green", "failed": "red"}.get(state, "yellow")
        what = f"{value:.2f} %" if value is not None else trials.reason(trial, state)
        line = f"[bold]trial {trial.number:>3}[/] [{colour}]{state:<11}[/] {escape(what)}"
        console.print(f"{line}   {escape(settings(trial))}", soft_wrap=True)


def settings(trial: FrozenTrial) -> str:
    """A trial's settings as one would type them."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in trial.params.items()
    )


def status(search: Search, listed: Sequence[FrozenTrial], started: float, workers: int) -> Group:
    """What is going on: the running trials, the best one, the counts, and the time left."""
    counts = trials.count(listed)
    running = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("running", "settings", "epoch", "accuracy"):
        running.add_column(column)
    for trial in listed:
        if trial.state == TrialState.RUNNING:
            last = trial.last_step
            shown = ("", "") if last is None else (str(last), f"{trial.intermediate_values[last]:.2f} %")
            running.add_row(f"trial {trial.number}", escape(settings(trial)), *shown)
    done = sum(counts[state] for state in trials.FINISHED)
    goal = study.wanted(search, counts)
    took = [
        trials.seconds(trial) or 0.0
        for trial, state in zip(listed, trials.states(listed), strict=True)
        if state in trials.FINISHED
    ]
    left = (goal - done) * sum(took) / len(took) / workers if took else None
    line = [
        f"{done} of {goal} trials",
        *(f"{counts[state]} {state}" for state in ("pruned", "over budget", "failed")),
        best(search, listed),
        f"{time.time() - started:,.0f} s" + ("" if left is None else f", about {left:,.0f} s left"),
    ]
    return Group(running, "  ".join(line))


def best(search: Search, listed: Sequence[FrozenTrial]) -> str:
    """The result so far in a few words."""
    found = outcome.result(search, listed)
    if not found:
        return "no best yet"
    if not search.two:
        return f"best {found[0].values[0]:.2f} % (trial {found[0].number})"
    ends = dict.fromkeys(f"{t.user_attrs['parameters']:,} with {t.values[0]:.2f} %" for t in (found[0], found[-1]))
    return f"front of {len(found)}: {' … '.join(ends)}"


def ranking(candidates: list[Candidate], seeds: int) -> Table:
    """The ranking for the terminal, percent of the validation images."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "in the search", f"mean of {seeds} seeds", "±", "each"):
        table.add_column(column, justify="left" if column == "each" else "right")
    for candidate in candidates:
        table.add_row(
            str(candidate.number),
            f"{candidate.searched:.3f}",
            "did not end" if candidate.missing else f"{candidate.mean:.3f}",
            f"{candidate.deviation:.3f}",
            " ".join(f"{value:.2f}" for value in candidate.objectives),
        )
    return table


def summary(search: Search, name: str, listed: Sequence[FrozenTrial], console: Console) -> None:
    """Print how many trials are in each state, and where they are listed."""
    counts = trials.count(listed)
    counted = ", ".join(f"{counts[state]} {state}" for state in (*trials.FINISHED, "over budget"))
    console.print(f"\n{name}: {counted}. {escape(str(search.folder))}/trials.csv", soft_wrap=True)


def found(search: Search, result: Sequence[FrozenTrial], console: Console) -> None:
    """Print the result of a search, each trial with the line that runs it."""
    if search.two:
        console.print("The front, each network with the line that runs it:")
    for trial in result:
        console.print(
            f"{'Trial' if search.two else 'Best: trial'} {trial.number}, {trial.values[0]:.3f} % of the "
            f"validation images in the last epochs, {trial.user_attrs.get('parameters', 0):,} parameters: "
            f"{escape(settings(trial))}",
            *(() if search.two else ("Run it with:",)),
            f"python {sys.argv[0]} --config-dir {escape(str(search.folder))} "
            f"experiment={outcome.name(search, trial)}",
            sep="\n",
            soft_wrap=True,
        )
