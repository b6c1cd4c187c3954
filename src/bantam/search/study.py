"""The study: open or create it, note and compare what it is about, and tell what is still missing."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import GridSampler, QMCSampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from bantam.config import flat
from bantam.search import processes as crew
from bantam.search import pruners, samplers, storage, trials
from bantam.search.space import Search, compose, ends, objectives

MOST_OVER_BUDGET = 50
"""Networks over the budget in a row after which the space counts as one that holds no others."""

FREE = ("data.root", "pictures", "report", "dry_run", "resume")
"""Keys that may differ between the continuations of a study, since no result depends on them."""


def open_study(search: Search) -> Study:
    """Load the study, or create it with the known settings first in its queue.

    Raises ValueError where it was begun with another space, objective or fixed override.
    """
    database, name = storage.open_storage(search.hydra), search.settings.study_name
    plain = samplers.build(search.settings.sampler, search.space)
    seeded = search.settings.sampler.get("seed") is not None and not isinstance(plain, GridSampler | QMCSampler)
    load = partial(
        optuna.load_study,
        study_name=name,
        storage=database,
        sampler=samplers.SeededByTrial(search.settings.sampler, search.space) if seeded else plain,
        pruner=pruners.build(search.hydra),
    )
    if crew.UNTIL in os.environ:
        return load()
    try:
        # Creating fails for all but one of the processes that start together: that one fills the queue.
        directions = [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if search.two else [])]
        created = optuna.create_study(study_name=name, storage=database, directions=directions)
        _begin(search, created, database)
    except DuplicatedStudyError:
        pass
    study = load()
    _check_same(search, study)
    return study


def _begin(search: Search, study: Study, database: RDBStorage) -> None:
    """Note what a new study is about, and queue the known settings that lie in its space."""
    used = sorted(path.name for path in search.folder.glob("[0-9]*") if (path / ".hydra").is_dir())
    if used:
        optuna.delete_study(study_name=study.study_name, storage=database)
        raise ValueError(
            f"{search.folder} holds trials of a study that {storage.shown(storage.address(search.hydra))} "
            "does not know: restore hydra.sweeper.storage, or begin another study with hydra.sweeper.study_name=…"
        )
    study.set_user_attr("definition", _definition(search))
    for entry in search.settings.enqueue:
        settings = {str(key): value for key, value in entry.items() if key in search.space}
        if settings and all(_inside(value, search.space[key]) for key, value in settings.items()):
            study.enqueue_trial(settings, skip_if_exists=True)


def _inside(value: Any, values: BaseDistribution) -> bool:
    if isinstance(values, CategoricalDistribution):
        return value in values.choices
    assert isinstance(values, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and values.low <= value <= values.high


def _definition(search: Search) -> dict[str, str]:
    """What a study's results are about: key by key a range, or the value that every trial has."""
    cfg, _ = compose(search, {key: ends(values)[0] for key, values in search.space.items()})
    given = dict(flat(OmegaConf.to_container(cfg, resolve=False)))
    free = (*search.space, *FREE)
    return {
        "hydra.sweeper.objectives": objectives(search),
        **{key: _range(values) for key, values in search.space.items()},
        **{k: str(v) for k, v in given.items() if not any(f"{k}.".startswith(f"{key}.") for key in free)},
    }


def _range(values: BaseDistribution) -> str:
    if isinstance(values, CategoricalDistribution):
        return ",".join(map(str, values.choices))
    assert isinstance(values, FloatDistribution | IntDistribution)
    step = f" in steps of {values.step:g}" if values.step not in (None, 1) else ""
    return f"{values.low:g} to {values.high:g}{step}{' (log)' * values.log}"


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
    for key in {**before, **now}:
        old, new = before.get(key, "not set"), now.get(key, "not set")
        if old != new:
            raise ValueError(
                f"{key} is {new} here, but {old} in the study {name} ({search.folder}): a study is continued as "
                f"it was begun; restore {key}, or begin another one with hydra.sweeper.study_name=…"
            )


def wanted(search: Search, counts: Counter[str]) -> int:
    """How many trainings the search is to finish: `n_trials`, or what a grid has within the budget."""
    n_trials: int = search.settings.n_trials
    return n_trials if search.grid is None else min(n_trials, search.grid - counts["over budget"])


def missing(search: Search, counts: Counter[str]) -> int:
    """How many trials have still to be begun."""
    return wanted(search, counts) - sum(counts[state] for state in trials.FINISHED) - counts["running"]


def stuck(search: Search, listed: Sequence[FrozenTrial]) -> str:
    """Why going on is pointless, in one sentence; empty where it is not."""
    words = trials.states(listed)
    failures = [trial for trial, word in zip(listed, words, strict=True) if word == "failed"]
    rate, n_trials = search.settings.max_failure_rate, search.settings.n_trials
    if len(failures) > rate * n_trials:
        first = failures[0]
        return (
            f"{len(failures)} trials failed, more than hydra.sweeper.max_failure_rate={rate:g} of {n_trials} "
            f"allows; the first, {first.number}: {trials.reason(first, 'failed')}"
        )
    ended = [(t, word) for t, word in zip(listed, words, strict=True) if word in ("over budget", *trials.FINISHED)]
    last = [trial for trial, word in ended[-MOST_OVER_BUDGET:] if word == "over budget"]
    if len(last) == MOST_OVER_BUDGET:
        smallest = min(trial.user_attrs["parameters"] for trial in last)
        return (
            f"{MOST_OVER_BUDGET} networks in a row were over the budget, the smallest with {smallest:,} "
            "parameters: search smaller ones, or raise budget.parameters"
        )
    return ""
