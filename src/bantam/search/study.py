"""The study: open or create it, note and compare what it is about, and tell what is still missing."""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import optuna
from omegaconf import OmegaConf
from optuna.exceptions import DuplicatedStudyError
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from bantam import budget
from bantam.search import distributions, pruners, samplers, storage, trials
from bantam.search.space import Search, known_settings, objectives
from bantam.training.saved import flat

MAX_OVER_BUDGET = 50
"""Networks over the budget in a row after which the space counts as one that holds no others."""

IGNORED_ON_RESUME = ("data.root", "pictures", "report", "dry_run", "resume")
"""Keys that may differ between the continuations of a study, since no result depends on them."""

IMAGES, HELD_OUT = "what data became", "the number of validation images held out"
"""Keys of a definition that no command line has: a machine without the files may have other images."""

RESOLVED = " (what it became)"
"""How the keys of a definition end that say what `auto` stands for."""


def open_study(search: Search) -> Study:
    """Load the study, or create it with the known settings first in its queue.

    Raises ValueError where it was begun with another space, objective or fixed override.
    """
    _create(search)
    study = load(search)
    _check_same(search, study)
    return study


def load(search: Search, wait: bool = False) -> Study:
    """Load a study that is there, with the sampler and the pruner that the command line asks for.

    With `wait` the server of its storage may be away. Raises ValueError where it cannot be reached.
    """
    settings = search.settings
    return optuna.load_study(
        study_name=settings.study_name,
        storage=storage.open_storage(search.hydra, wait),
        sampler=samplers.for_study(settings.sampler, search.space),
        pruner=pruners.build(settings.pruner, search.cost),
    )


def _create(search: Search) -> None:
    """Create the study, unless it is there: note what it is about, and queue the settings that are known."""
    database, name = storage.open_storage(search.hydra), search.settings.study_name
    directions = [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if search.multi_objective else [])]
    try:
        # This fails for all but one of the processes that start together: that one fills the queue.
        study = optuna.create_study(study_name=name, storage=database, directions=directions)
    except DuplicatedStudyError:
        return
    if any((path / ".hydra").is_dir() for path in search.folder.glob("[0-9]*")):
        optuna.delete_study(study_name=name, storage=database)
        raise ValueError(
            f"{search.folder} holds trials of a study that {storage.shown(storage.address(search.hydra))} "
            "does not know: restore hydra.sweeper.storage, or begin another study with hydra.sweeper.study_name=…"
        )
    study.set_user_attr("definition", _definition(search))
    for settings in known_settings(search)[0]:
        study.enqueue_trial(settings, skip_if_exists=True)


def _definition(search: Search) -> dict[str, str]:
    """What a study's results are about: key by key a range, or the value that every trial has.

    What `auto` became here is part of it, and so are fixed keys of a group that is searched.
    """
    cfg, _ = search.first
    given = dict(flat(OmegaConf.to_container(cfg, resolve=False)))
    left_out = (*search.space, *IGNORED_ON_RESUME)
    fixed = [distributions.fixed(line) for line in search.fixed]
    return {
        "hydra.sweeper.objectives": objectives(search),
        **{key: distributions.describe(values) for key, values in search.space.items()},
        **{k: str(v) for k, v in given.items() if not any(f"{k}.".startswith(f"{key}.") for key in left_out)},
        **{key: value for key, value in fixed if key.partition(".")[0] in search.space},
        **_resolved(search),
    }


def _resolved(search: Search) -> dict[str, str]:
    """What the images, the device, the precision and the kernels are that `auto` stands for here."""
    prepared = search.prepared
    images = prepared.data
    return {
        IMAGES: f"{images.name} with the checksum {images.checksum[:16]}",
        HELD_OUT: f"{len(images.held_out_labels)}",
        **{
            f"{key}{RESOLVED}": value
            for key, value in (
                ("device", prepared.device.type),
                ("precision", str(prepared.precision).removeprefix("torch.")),
                ("kernels", prepared.kernels),
            )
        },
    }


def _check_same(search: Search, study: Study) -> None:
    """Raise ValueError where a study was begun with something else than is asked for now."""
    name = study.study_name
    for _ in range(100):  # the process that creates it may be about to say what it is about
        before = study.user_attrs.get("definition")
        if before is not None:
            break
        time.sleep(0.1)
    else:
        raise ValueError(f"the study {name} was not begun by Bantam: choose another hydra.sweeper.study_name")
    now = _definition(search)
    for key in _to_compare(search, before, now):
        old, new = before.get(key, "not set"), now.get(key, "not set")
        if old != new and {old, new} != {"not set", "None"}:  # older versions lacked keys that are null by default
            raise ValueError(
                f"{key} is {new} here, but {old} in the study {name} ({search.folder}): a study is continued as "
                f"it was begun; {_remedy(search, key, old)}, or begin another one with hydra.sweeper.study_name=…"
            )


def _to_compare(search: Search, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys in which two definitions must be the same; older ones lack what `auto` became, and fixed keys
    of a group that is searched."""
    keys = {**before, **now}
    if IMAGES not in before:
        searched = tuple(f"{key}." for key in search.space)
        return [key for key in keys if key in before or not (_is_resolved(key) or key.startswith(searched))]
    asked = {key.removesuffix(RESOLVED) for key in now if key.endswith(RESOLVED)} - set(search.space)
    return [key for key in keys if key not in asked]


def _is_resolved(key: str) -> bool:
    return key in (IMAGES, HELD_OUT) or key.endswith(RESOLVED)


def _remedy(search: Search, key: str, old: str) -> str:
    """What makes a key of the definition what it was."""
    if key in (IMAGES, HELD_OUT):
        why = search.prepared.data.instead
        return f"restore data.root{f' ({why})' if why else ''}"
    if key.endswith(RESOLVED):
        return f"use {key.removesuffix(RESOLVED)}={old} where this machine has it"
    return f"restore {key}"


def wanted(search: Search, counts: Counter[str]) -> int:
    """How many trainings the search is to finish: `n_trials`, or what a grid has within the budget."""
    n_trials: int = search.settings.n_trials
    return n_trials if search.grid_size is None else min(n_trials, search.grid_size - counts["over budget"])


def missing(search: Search, counts: Counter[str]) -> int:
    """How many trials have still to be begun."""
    return wanted(search, counts) - sum(counts[state] for state in trials.FINISHED) - counts["running"]


def hopeless(search: Search, listed: Sequence[FrozenTrial], before: Collection[int] = ()) -> str:
    """Why going on is pointless, in one sentence; empty where it is not.

    `before` are the numbers of the trials that had ended when the command line was typed: they do not count.
    """
    states = trials.states(listed)
    new = [(trial, state) for trial, state in zip(listed, states, strict=True) if trial.number not in before]
    failures = [trial for trial, state in new if state == "failed"]
    rate, n_trials = search.settings.max_failure_rate, search.settings.n_trials
    if len(failures) > rate * n_trials:
        first = failures[0]
        return (
            f"{len(failures)} trials failed, more than hydra.sweeper.max_failure_rate={rate:g} of {n_trials} "
            f"allows; the first, {first.number}: {trials.reason(first, 'failed')}"
        )
    counted = ("over budget", *trials.FINISHED)
    ended = [(trial, state) for trial, state in new if state in counted]
    last = [trial for trial, state in ended[-MAX_OVER_BUDGET:] if state == "over budget"]
    if len(last) == MAX_OVER_BUDGET:
        over = [key for key in budget.COSTS if any(trial.constraints.get(key, 0) > 0 for trial in last)]
        smallest = {key: min(t.user_attrs[key] for t in last if t.constraints.get(key, 0) > 0) for key in over}
        return (
            f"{MAX_OVER_BUDGET} networks in a row were over the budget, the smallest with "
            f"{budget.in_words(smallest)}: search smaller ones, or raise "
            f"{' and '.join(f'budget.{key}' for key in over)}"
        )
    return ""
