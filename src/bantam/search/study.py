"""The study: open or create it, note and compare what it is about, and tell what is still missing."""

import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bantam import budget, cluster
from bantam.overrides import override, written
from bantam.own import code
from bantam.search import damage, distributions, pruners, samplers, seeds, storage, trials
from bantam.search.space import Search, compose, composed, end, known_settings, objectives
from bantam.search.trials import Ending
from bantam.training import folder as files
from bantam.training import saved
from bantam.training.saved import flat
from bantam.training.setup import precision_of

MAX_OVER_BUDGET = 50
"""Networks over the budget in a row after which the space counts as one that holds no others."""

IGNORED_ON_RESUME = ("data.root", "data.became", "pictures", "report", "tracker", "dry_run", "resume")
"""Keys that may differ between the continuations of a study, since no result depends on them."""

IMAGES, HELD_OUT = "what data became", "the number of validation images held out"
"""Keys of a definition that no command line has: a machine without the files may have other images."""

OPTION = " with "
"""What stands between a key of a definition and the option of a searched group that has it: optimizer=sgd."""

DEFAULTS = {"hydra.sweeper.seeds": "1", "hydra.sweeper.aggregate": "mean"}
"""Keys of a definition that older studies lack, and what those had."""

RESOLVED = " (what it became)"
"""How the keys of a definition end that say what `auto` stands for."""


def open_study(search: Search) -> Study:
    """Load the study, or create it with the known settings first in its queue.

    Raises ValueError where it was begun with another space, objective or fixed override, or is damaged.
    """
    with damage.in_one_sentence(search):
        study = load(search, _create(search))
        damage.refuse_missing(search, study)
    _check_same(search, study)
    with damage.in_one_sentence(search):
        damage.refuse_impossible(search, study.get_trials(deepcopy=False))
    return study


def load(search: Search, database: BaseStorage | None = None) -> Study:
    """Load a study that is there, with the sampler and the pruner that the command line asks for.

    Without `database`, in a worker, the server of its storage may be away for long. Raises ValueError where it
    cannot be reached.
    """
    settings = search.settings
    return optuna.load_study(
        study_name=settings.study_name,
        storage=database or storage.open_storage(search.hydra, wait=True),
        sampler=samplers.for_study(settings.sampler, search.space, search.points),
        pruner=pruners.build(settings.pruner, search.cost),
    )


def _create(search: Search) -> BaseStorage:
    """Create the study, unless it is there: queue the settings that are known, and note what it is about."""
    database, name = storage.open_storage(search.hydra), search.settings.study_name
    try:
        # This fails for all but one of the processes that start together: that one fills the queue.
        study = optuna.create_study(study_name=name, storage=database, directions=_directions(search))
    except DuplicatedStudyError:
        return database
    _begin(search, study)
    return database


def _directions(search: Search) -> list[StudyDirection]:
    return [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if search.multi_objective else [])]


def _begin(search: Search, study: Study) -> None:
    """Fill the queue of a new study; its definition comes last, and says that all of this is done."""
    if any((path / ".hydra").is_dir() for path in search.folder.glob("[0-9]*")):
        optuna.delete_study(study_name=study.study_name, storage=study._storage)
        raise ValueError(
            f"{search.folder} holds trials of a study that {storage.shown(storage.address(search.hydra))} "
            "does not know: restore hydra.sweeper.storage, or begin another study with "
            f"{search.another}"
        )
    study.set_user_attr("options", search.choices)
    for settings in known_settings(search)[0]:
        study.enqueue_trial(settings, skip_if_exists=True)
    study.set_user_attr("definition", _definition(search))


def _definition(search: Search) -> dict[str, str]:
    """What a study's results are about: key by key a range, or the value that every trial has.

    What `auto` became here is part of it, and so is all that an option has of a group that is searched.
    """
    return {
        "hydra.sweeper.objectives": objectives(search),
        **{key: str(search.settings[key.rpartition(".")[2]]) for key in DEFAULTS},
        **{name: _described(search, name) for name in search.space},
        **_settings(search),
        **_resolved(search),
    }


def _settings(search: Search) -> dict[str, str]:
    """All keys of the trials that are not searched; with `OPTION` in their names those of a searched option."""
    found = _flat(search, search.first[0])
    for group, values in search.space.items():
        if group in search.space.groups and isinstance(values, CategoricalDistribution):
            for option in values.choices:
                cfg, _ = compose(search, end(search, 0, {group: option}))
                for key, value in _flat(search, cfg, "" if group == "experiment" else group).items():
                    found[f"{key}{OPTION}{group}={option}"] = value
    return found


def _flat(search: Search, cfg: DictConfig, searched: str = "") -> dict[str, str]:
    """The keys of a configuration and their values in words; with `searched` only those of this group."""
    left_out = (*(key for key in search.space.keys_searched() if key != searched), *IGNORED_ON_RESUME)
    return {
        key: str(value)
        for key, value in flat(saved.pinned(cfg))
        if f"{key}.".startswith(f"{searched}." * bool(searched))
        and not any(f"{key}.".startswith(f"{name}.") for name in left_out)
    }


def _described(search: Search, name: str) -> str:
    """The range of a name, and where it is searched."""
    conditions = [written(dict(when)) for when in search.space.conditions.get(name, ())]
    where = f" where {' or '.join(conditions)}" if conditions else ""
    return distributions.describe(search.space[name]) + where


def _resolved(search: Search) -> dict[str, str]:
    """What the images, the device, the precision and the kernels are that `auto` stands for here."""
    prepared = search.prepared
    images, precision = prepared.data, precision_of(search.config, prepared.device)
    return {
        IMAGES: _named(images.name, images.checksum),
        HELD_OUT: f"{len(images.held_out_labels)}",
        f"device{RESOLVED}": prepared.device.type,
        f"precision{RESOLVED}": str(precision).removeprefix("torch."),  # of a single network it may be another
        f"kernels{RESOLVED}": prepared.kernels,
    }


def _named(name: str, checksum: str) -> str:
    """Images in words."""
    return f"{name} with the checksum {checksum[:16]}"


def ending(
    search: Search, study: Study, number: int, costs: Mapping[str, Any], count: int | None = None
) -> Ending:
    """How a trial's training ended on its first `count` seeds, or on all of them.

    Raises ValueError where it did not end.
    """
    endings: list[Ending] = []
    for seed in range(1, (count or search.settings.seeds) + 1):
        endings.append(_ending(search, study, number, seeds.folder(search, number, seed), costs))
        if not seeds.is_whole(endings[-1]):
            break
    return seeds.joined(search, endings)


def _ending(search: Search, study: Study, number: int, folder: Path, costs: Mapping[str, Any]) -> Ending:
    """How a training ended: as `trials.ending`, unless it had other images or another kind of device."""
    found = trials.ending(folder, *search.second_objective(costs))
    result, definition = files.read_result(folder), study.user_attrs.get("definition", {})
    had = {f"{key}{RESOLVED}": result.get(key) for key in ("device", "precision") if key not in search.space}
    launcher = str(search.hydra.launcher.get("_target_", ""))
    if launcher.endswith("SlurmLauncher") or launcher == cluster.TARGET:  # its machines may be others
        had = {}
    if search.config.precision == "auto" and result.get("precision") == "float32":
        had.pop(f"precision{RESOLVED}", None)  # some networks cannot be computed in bfloat16
    if result.get("data_checksum") and result.get("split") == "validation":
        had[IMAGES] = _named(result["data"], result["data_checksum"])
        had[HELD_OUT] = str(result["scored_images"])
    for key, value in had.items():
        if value is not None and value != definition.get(key, value):
            fault = f"{key} was {value} in trial {number}, but is {definition[key]} in the study {search.name}"
            return Ending(TrialState.FAIL, None, {"interrupted": True, "fault": fault})
    return found


def _check_same(search: Search, study: Study) -> None:
    """Raise ValueError where a study was begun with something else than is asked for now."""
    for _ in range(100):  # the process that creates it may be about to say what it is about
        if "definition" in study.user_attrs:
            break
        time.sleep(0.1)
    else:
        begun = any(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))
        if begun or study.directions != _directions(search):
            raise ValueError(
                f"the study {study.study_name} was not begun by Bantam: choose another hydra.sweeper.study_name"
            )
        _begin(search, study)  # the process that created it was killed
    before, now = {**DEFAULTS, **study.user_attrs["definition"]}, _definition(search)
    options = study.user_attrs.get("options", {})
    for key in _to_compare(search, before, now):
        old, new = before.get(key, "not set"), now.get(key, "not set")
        if old == new or {old, new} == {"not set", "None"}:  # older versions lacked keys that are null by default
            continue
        if key in before and saved.followed(before, key) == saved.followed(now, key):  # one is typed as ${other}
            continue
        for group in ("experiment", key.partition(".")[0]):
            chosen = str(search.choices.get(group))
            if group not in search.space and str(options.get(group, chosen)) != chosen:
                key, old, new = group, str(options[group]), chosen
                break
        if key.partition(OPTION)[0] == code.CHECKSUM:
            kept = next(iter(sorted(search.folder.glob(f"[0-9]*/{code.COPY}"))), "network.py in a trial's folder")
            file = code.shown(now.get(key.replace(code.CHECKSUM, code.FILE)), new)
            raise ValueError(
                f"{file} has changed since the study {search.name} was begun: put it back as it was ({kept} is a "
                f"copy), or begin another study with {search.another}"
            )
        raise ValueError(
            f"{key} is {new} here, but {old} in the study {search.name} ({search.folder}): a study is continued "
            f"as it was begun; {_remedy(search, key, old)}, or begin another one with {search.another}"
        )


def _to_compare(search: Search, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys in which two definitions must be the same.

    Older ones lack what `auto` became, what a searched option has, and keys that came later: those must have the
    value that nobody has changed.
    """
    older = IMAGES not in before
    of_searched = tuple(f"{key}." for key in search.space.keys_searched())
    asked = {key.removesuffix(RESOLVED) for key in before if key.endswith(RESOLVED)} - search.space.keys_searched()
    keys = [
        key
        for key in {**before, **now}
        if key not in asked
        and key.partition(OPTION)[0] != code.FILE  # what it contains counts, not how its path is typed
        and not (key in before and re.search(r"\$\{[\w.]+:", before[key]))  # older: not resolved
        and not (older and (_is_resolved(key) or OPTION in key))
        and not (key in before and OPTION not in key and key.startswith(of_searched))
    ]
    if any(key not in before for key in keys):
        unchanged = _unchanged(search)
        keys = [key for key in keys if key in before or now[key] != unchanged.get(key)]
    return keys


def _unchanged(search: Search) -> dict[str, str]:
    """`_settings` as they are where nothing is fixed on the command line."""
    try:
        plain, choices = composed(search.config, search.context, [])
        return _settings(replace(search, fixed=[], plain=plain, choices=choices))
    except ValueError:
        return {}


def _is_resolved(key: str) -> bool:
    return key in (IMAGES, HELD_OUT) or key.endswith(RESOLVED)


def _remedy(search: Search, key: str, old: str) -> str:
    """What makes a key of the definition what it was."""
    if key in (IMAGES, HELD_OUT):
        why = search.prepared.data.instead
        if "became" in search.plain.data and key == IMAGES:
            return f"restore data.root, or give data.became={old.partition(' ')[0]}{f' ({why})' if why else ''}"
        return f"restore data.root{f' ({why})' if why else ''}"
    if key in search.choices:
        return f"give {override(key, None if old == 'None' else old)}"
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
    failed = (trial for trial, state in zip(listed, states, strict=True) if state == "failed")
    failures = [trial for trial in failed if trial.number not in before]
    rate, n_trials = search.settings.max_failure_rate, search.settings.n_trials
    if len(failures) > rate * n_trials:
        first = failures[0]
        return (
            f"{len(failures)} trials failed, more than hydra.sweeper.max_failure_rate={rate:g} of {n_trials} "
            f"allows; the first, {first.number}: {trials.reason(first, 'failed')}"
        )
    counted = ("over budget", *trials.FINISHED)
    backwards = zip(reversed(listed), reversed(states), strict=True)  # of many trials the last ones will do
    ended = ((trial, state) for trial, state in backwards if state in counted and trial.number not in before)
    last = [trial for trial, state in islice(ended, MAX_OVER_BUDGET) if state == "over budget"]
    if len(last) == MAX_OVER_BUDGET:
        over = [key for key in budget.COSTS if any(trial.constraints.get(key, 0) > 0 for trial in last)]
        smallest = {key: min(t.user_attrs[key] for t in last if t.constraints.get(key, 0) > 0) for key in over}
        return (
            f"{MAX_OVER_BUDGET} networks in a row were over the budget, the smallest with "
            f"{budget.in_words(smallest)}: search smaller ones, or raise "
            f"{' and '.join(f'budget.{key}' for key in over)}"
        )
    return ""
