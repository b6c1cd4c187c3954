"""Several seeds a trial: where each is trained, what they amount to, and when a trial gets no further one."""

import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.pruners import NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from bantam.overrides import override
from bantam.search import pruners, space, trials
from bantam.search.space import Search
from bantam.search.trials import Ending
from bantam.training import folder as files


def of_trials(search: Search) -> list[int]:
    """The seeds of every trial, in the order of their training: the configuration's, and those that follow it."""
    count = search.settings.seeds
    first = search.first[0].seed if count > 1 else search.plain.seed
    return list(range(first, first + count))


def folder(search: Search, number: int, count: int) -> Path:
    """Where a trial's `count`th seed is trained: the first in the trial's own, the others in folders in that."""
    trial = search.folder / str(number)
    return trial if count == 1 else trial / f"{files.SEED}{of_trials(search)[count - 1]}"


def overrides(search: Search, settings: dict[str, Any], number: int, count: int) -> list[str]:
    """All overrides of the job that trains a trial's `count`th seed."""
    common = space.overrides(search, settings)
    if count == 1:
        return common
    own = folder(search, number, count)
    return [
        *common,
        override("seed", of_trials(search)[count - 1]),
        override("hydra.sweep.subdir", own.relative_to(search.folder)),
    ]


def joined(search: Search, endings: Sequence[Ending]) -> Ending:
    """How a trial ends whose seeds have ended so, all but the last of them well; alone, one seed is the trial."""
    last = endings[-1]
    if search.settings.seeds == 1:
        return last
    values = [ending.values[0] for ending in endings if ending.values and is_whole(ending)]
    notes = {"objectives": values, **last.notes}
    if not is_whole(last):
        if len(endings) > 1 and "reason" in notes:
            notes["reason"] = f"seed {of_trials(search)[len(endings) - 1]}: {notes['reason']}"
        return replace(last, notes=notes)
    assert last.values is not None
    return replace(last, values=(aggregate(search, values), *last.values[1:]), notes=notes)


def is_whole(ending: Ending) -> bool:
    """Whether a training came to its end with an objective of its own."""
    return ending.state == TrialState.COMPLETE and not ending.notes.keys() & {"pruned", "fault", "reason"}


def aggregate(search: Search, values: Sequence[float]) -> float:
    """The objective of a trial whose seeds have these: their mean; with `lower` less its standard error."""
    mean = statistics.fmean(values)
    if search.settings.aggregate == "lower" and len(values) > 1:
        mean -= statistics.stdev(values) / len(values) ** 0.5
    return mean


def objectives(trial: FrozenTrial) -> list[float]:
    """What the seeds of a trial have reached that are trained, in percent; empty where a trial has one seed."""
    return list(trial.user_attrs.get("objectives", []))


def note(study: Study, trial: Trial, ending: Ending) -> None:
    """Note what the seeds have reached so far, and up to which step their epochs are reported."""
    trial.set_user_attr("objectives", ending.notes["objectives"])
    trial.set_user_attr("steps", study.get_trials(deepcopy=False)[trial.number].last_step or 0)


def take_over(search: Search, study: Study, trial: Trial, count: int) -> bool:
    """Take a seed that was trained before the trial was stopped and queued again; returns whether there is one."""
    if search.settings.seeds == 1:
        return False
    now = study.get_trials(deepcopy=False)[trial.number]
    for number in reversed(trials.history(now)):
        before = folder(search, number, count)
        try:
            result = files.read_result(before)
            epochs = files.read_history(before)
        except ValueError:
            continue
        if result.get("objective") is None:
            continue
        own, steps = folder(search, trial.number, count), now.user_attrs.get("steps", 0)
        shutil.copytree(before, own, dirs_exist_ok=True, ignore=_not_of_a_finished_run)
        for epoch in epochs:
            study._storage.set_trial_intermediate_value(now._trial_id, steps + epoch.epoch, epoch.accuracy)
        files.write_result(own, result)  # last: without it the folder is no finished run
        return True
    return False


def _not_of_a_finished_run(folder: str, names: Iterable[str]) -> set[str]:
    """What is left behind where the folder of a finished run is copied."""
    others = (files.RESULT, files.CHECKPOINT, files.CHECKPOINT_BEFORE)
    return {name for name in names if name in others or name.startswith(files.SEED) or name.endswith(files.ASIDE)}


def pruned(
    search: Search, listed: Sequence[FrozenTrial], costs: Mapping[str, Any], ending: Ending
) -> Ending | None:
    """How a trial ends that gets no further seed, since it will not catch up; None where it is trained on.

    That is where the best trial was better on every one of its seeds, two at least; with two objectives, where any
    trial was whose network costs no more. With `hydra/sweeper/pruner=none` every trial gets all seeds.
    """
    values = ending.notes["objectives"]
    if len(values) < 2 or isinstance(pruners.build(search.settings.pruner, search.cost), NopPruner):
        return None
    for other in _rivals(search, listed, costs):
        if all(theirs > own for theirs, own in zip(objectives(other), values, strict=False)):
            done = (
                f"pruned after {len(values)} of {search.settings.seeds} seeds, at {statistics.fmean(values):.2f} %"
            )
            notes = {**ending.notes, "reason": f"{done}: trial {other.number} was better on each", "pruned": True}
            if search.multi_objective:
                found = (statistics.fmean(values), *search.second_objective(costs))
                return Ending(TrialState.COMPLETE, found, notes)
            return Ending(TrialState.PRUNED, None, notes)
    return None


def _rivals(search: Search, listed: Sequence[FrozenTrial], costs: Mapping[str, Any]) -> list[FrozenTrial]:
    """The trials with all their seeds that a trial has to catch up with."""
    states = zip(listed, trials.states(listed), strict=True)
    whole = [t for t, state in states if state == "complete" and len(objectives(t)) == search.settings.seeds]
    if search.multi_objective:
        return [t for t in whole if t.user_attrs.get(search.cost, 0) <= costs.get(search.cost, 0)]
    return sorted(whole, key=lambda t: t.values[0])[-1:]


def in_words(search: Search, trial: FrozenTrial) -> str:
    """What a trial's seeds have reached, in brackets after its objective; empty where it has one seed."""
    values = objectives(trial)
    if not values:
        return ""
    how = "mean less one standard error of" if search.settings.aggregate == "lower" else "mean of"
    return f" ({how} {' '.join(f'{value:.2f}' for value in values)})"
