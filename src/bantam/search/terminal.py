"""All that a search and a confirmation print."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from bantam.budget import in_words
from bantam.data import scored_on
from bantam.overrides import command_line, override
from bantam.search import distributions, outcome, seeds, study, trials
from bantam.search.outcome import Candidate
from bantam.search.space import Search
from bantam.training.settings import every_one_of
from bantam.training.status import Line
from bantam.training.terminal import show_instead

console = Console(highlight=False)

COLOURS = {"complete": "green", "failed": "red"}
"""Of states; all others are yellow."""

VERDICT_COLOURS = {"met": "green", "not met": "red"}


RECENT = 100
"""From so many trials that are finished, those with the highest numbers, the time that is left is estimated."""


def show_ended(listed: Sequence[FrozenTrial], shown: set[int]) -> set[int]:
    """Print a line for every trial that has ended and is not among those shown; returns their numbers."""
    ended = set()
    for trial, state in zip(listed, trials.states(listed), strict=True):
        if trial.number in shown or not trial.state.is_finished() or state == "surplus":
            continue
        ended.add(trial.number)
        value = trials.objective(trial, state)
        reason = trials.reason(trial, state)
        each = " ".join(f"{one:.2f}" for one in seeds.objectives(trial))
        reached = "" if value is None else f"{value:.2f} %" + f" (seeds: {each})" * bool(each)
        what = f"{reached} ({reason})" if reached and reason else reached or reason
        line = f"[bold]trial {trial.number:>3}[/] [{COLOURS.get(state, 'yellow')}]{state:<11}[/] {escape(what)}"
        console.print(f"{line}   {escape(settings(trial))}", soft_wrap=True)
    return ended


def settings(trial: FrozenTrial) -> str:
    """A trial's settings as one would type them."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in distributions.by_key(trial.params).items()
    )


def progress(search: Search, listed: Sequence[FrozenTrial], summary: str) -> Group:
    """What is going on: the running trials above the summary."""
    running = Table(box=None, pad_edge=False, header_style="bold")
    several = search.settings.seeds > 1
    for column in ("running", "settings", *["seed"] * several, "epoch", "accuracy"):
        running.add_column(column)
    for trial in listed:
        if trial.state == TrialState.RUNNING:
            seed = [f"{len(seeds.objectives(trial)) + 1} of {search.settings.seeds}"] * several
            running.add_row(f"trial {trial.number}", escape(settings(trial)), *seed, *_reached(trial))
    return Group(running, summary)


def summary(search: Search, listed: Sequence[FrozenTrial], elapsed: float, side_by_side: int) -> str:
    """How far a search is: the best trial, the counts, and the seconds left."""
    states = trials.states(listed)
    counts = trials.count(listed)
    done = sum(counts[state] for state in trials.FINISHED)
    goal = study.wanted(search, counts)
    backwards = zip(reversed(listed), reversed(states), strict=True)
    recent = islice((trial for trial, state in backwards if state in trials.FINISHED), RECENT)
    took = [trials.seconds(trial) or 0.0 for trial in recent]
    left = (goal - done) * sum(took) / len(took) / side_by_side if took else None
    line = [
        f"{done} of {goal} trials",
        *(f"{counts[state]} {state}" for state in ("pruned", "over budget", "failed")),
        best(search, listed),
        f"{elapsed:,.0f} s" + ("" if left is None else f", about {left:,.0f} s left"),
    ]
    return "  ".join(line)


def _reached(trial: FrozenTrial) -> tuple[str, str]:
    """The last epoch of the seed that is trained, and its accuracy; empty before the first."""
    last, before = trial.last_step, trial.user_attrs.get("steps", 0)
    if last is None or last <= before:
        return "", ""
    return str(last - before), f"{trial.intermediate_values[last]:.2f} %"


def best(search: Search, listed: Sequence[FrozenTrial]) -> str:
    """The result so far in a few words."""
    found = outcome.result(search, listed)
    if not found:
        return "no best yet"
    if not search.multi_objective:
        return f"best {found[0].values[0]:.2f} % (trial {found[0].number})"
    ends = dict.fromkeys(f"{t.user_attrs[search.cost]:,} with {t.values[0]:.2f} %" for t in (found[0], found[-1]))
    return f"front of {len(found)}: {' … '.join(ends)}"


def show_images(search: Search) -> None:
    """Say where other images stand in for those that were asked for: every trial would say it to its log alone."""
    images = search.prepared.data
    if images.instead:
        show_instead(images)


def show_continuing(search: Search, listed: Sequence[FrozenTrial]) -> None:
    """Say of a study that was begun before how far it is."""
    counts = trials.count(listed)
    done = sum(counts[state] for state in trials.FINISHED)
    if trials.ended(listed):
        goal = study.wanted(search, counts)
        console.print(f"{search.name}: continuing, {done} of {goal} done.", markup=False)


def show_nothing_to_do(search: Search) -> None:
    """Say that a study has its trials."""
    console.print(
        f"The study {escape(search.name)} has its {search.settings.n_trials} trials: "
        f"raise hydra.sweeper.n_trials to go on, or begin another one with {search.another}",
        soft_wrap=True,
    )


OF_NOW = re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d$")
"""How a folder ends that Hydra names by the time: the same command line has another one the next time."""


def continues(search: Search) -> str:
    """What continues a search, the end of a sentence."""
    folder = search.folder.as_posix()
    named = f" with {command_line([override('hydra.sweep.dir', folder)])}" if OF_NOW.search(folder) else ""
    return f"the same command line{named} continues the search"


def show_interruption(search: Search, signal_name: str) -> None:
    """Say that a signal has stopped a search, and how it is continued."""
    how = continues(search).replace("the", "The", 1)
    console.print(f"Interrupted ({signal_name}). {how}.", soft_wrap=True, markup=False)


def show_counts(search: Search, listed: Sequence[FrozenTrial], left: int) -> None:
    """Print how many trials are in each state, where they are listed, and why the search has ended."""
    counts = trials.count(listed)
    counted = ", ".join(f"{counts[state]} {state}" for state in (*trials.FINISHED, "over budget"))
    copies = sum("same_as" in trial.user_attrs for trial in listed)
    if copies:
        counted += f"; {copies} of them had the settings of another trial, and its result"
    console.print(f"\n{escape(search.name)}: {counted}. {escape(str(search.folder))}/trials.csv", soft_wrap=True)
    if left > 0:
        console.print(
            f"Ended since hydra.sweeper.timeout={search.settings.timeout:g} has passed; {left} "
            f"trial{'s are' if left > 1 else ' is'} missing: {continues(search)}.",
            soft_wrap=True,
            markup=False,
        )
    else:
        console.print("Ended since all trials are done.")


def show_result(search: Search, found: Sequence[FrozenTrial]) -> None:
    """Print the result of a search, each trial with the line that runs it."""
    images, last = search.prepared.data, search.plain.target.last_epochs
    if search.multi_objective:
        console.print("The front, each network with the line that runs it:")
    for trial in found:
        costs = {key: trial.user_attrs.get(key, 0) for key in ("parameters", search.cost)}
        console.print(
            f"{'Trial' if search.multi_objective else 'Best: trial'} {trial.number}, {trial.values[0]:.3f} %"
            f"{seeds.in_words(search, trial)} of the {len(images.held_out_labels):,} validation images of "
            f"{images.name} in the last {'epoch' if last == 1 else 'epochs'}, "
            f"{in_words(costs)}: "
            f"{escape(settings(trial))}",
            *(() if search.multi_objective else ("Run it with:",)),
            escape(outcome.line(search, trial)),
            sep="\n",
            soft_wrap=True,
        )


def show_confirmation(search: Search) -> None:
    """Say how the result is tried on fresh seeds, since one seed proves little."""
    script = Path(sys.argv[0]).with_name("confirm.py")
    line = command_line(["python", script, search.folder, *["--front"] * search.multi_objective])
    last = scored_on({"split": "test", "data": search.prepared.data.name})
    console.print(
        f"Settings that won on few seeds may have had luck. Fresh seeds, then the {last} images:\n{escape(line)}",
        soft_wrap=True,
    )


@contextmanager
def waiting() -> Iterator[Callable[[str], object]]:
    """What can be told what a confirmation does now: one line in a terminal, else one now and then."""
    if console.is_terminal:
        with console.status("") as shown:
            yield shown.update
    else:
        with Line(show_sentence, "starting") as line:
            yield line.update


def lines(search: Search) -> Line:
    """What says from time to time how far a search is, where nobody sees the table."""
    return Line((lambda text: None) if console.is_terminal else show_sentence, f"{search.name}: starting")


def show_confirmation_interrupted() -> None:
    """Say that a confirmation was interrupted, and how it is continued."""
    console.print("Interrupted. The same command line continues.")


def show_ranking(candidates: Sequence[Candidate], seeds: int) -> None:
    """Print the trials that were trained again, best first; percent of the validation images."""
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
    console.print(table)


def show_sentence(sentence: str) -> None:
    """Print a sentence as it is."""
    console.print(escape(sentence), soft_wrap=True)


def show_test(number: int, test: dict[str, Any], first: dict[str, Any], target: Any, file: str) -> None:
    """Print the verdict on the winner; `test` is that over seeds, `first` the result of the first seed."""
    verdict, seeds = test["verdict"], len(test["objectives"])
    sentences = [
        f"Trial {number}, {first['parameters']:,} parameters, trained on {first['train_images']:,} images "
        f"and scored on {first['scored_images']:,} {scored_on(first)} images: "
        f"[bold {VERDICT_COLOURS.get(verdict, 'yellow')}]{verdict}[/]",
        f"{test['met']} of {seeds} seeds hold {target.accuracy:g} % in {every_one_of(target.last_epochs)}",
    ]
    if test["mean"] is not None:
        of = "last epoch" if target.last_epochs == 1 else "last epochs"
        spread = f"{test['mean']:.3f} ± {test['deviation']:.3f} %"
        sentences.append(f"Mean of the {of} {spread}, lowest of them {test['lowest']:.2f} %")
    console.print(". ".join([*sentences, escape(file)]), soft_wrap=True)
