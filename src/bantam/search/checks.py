"""What is refused before the first trial of a search."""

import math
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from optuna.samplers import CmaEsSampler

from bantam import budget, cluster, ranges, resolve
from bantam.budget import COSTS
from bantam.data import CannotHoldOut
from bantam.nearest import nearest
from bantam.overrides import command_line, override, written
from bantam.search import conditions, distributions, pruners, samplers, space, storage
from bantam.search.distributions import key_of
from bantam.search.space import Search, compose, known_settings, objectives
from bantam.suggestions import keys
from bantam.training import costs
from bantam.training.build import NoImages, build

SAME_IN_ALL_TRIALS = ("data", "data.validation", "data.split_seed")
"""Keys that decide which images a trial is scored on."""

OBJECTIVES = (["accuracy"], *(["accuracy", cost] for cost in COSTS))
"""What a search may be about."""


def check(search: Search) -> None:
    """Resolve what all trials share, and raise ValueError for whatever can be known to fail before the first."""
    _check_settings(search)
    for name in search.space:
        _check_key(name, search)
    _check_conditions(search)
    _check_plain(search.plain)
    _resolve(search)
    _fit_validation(search)
    _check_compositions(search)
    _ = search.prepared
    _check_sampler_and_pruner(search)
    _check_cluster(search)
    for entry in search.settings.enqueue:
        for key in entry:
            if key not in search.space.keys_searched() and not conditions.has(search.plain, str(key)):
                raise ValueError(f"hydra.sweeper.enqueue sets {key!s}, which is no key of the configuration")
    known_settings(search)


def _check_settings(search: Search) -> None:
    """Refuse values of `hydra.sweeper` and `hydra.sweep` that no search can have."""
    settings = search.settings
    if str(getattr(settings.direction, "name", settings.direction)) != "maximize":
        raise ValueError("hydra.sweeper.direction must be maximize: the objective is an accuracy")
    if list(settings.objectives) not in OBJECTIVES:
        raise ValueError(
            f"hydra.sweeper.objectives is {objectives(search)}: it must be [accuracy] or [accuracy,…] with one of "
            f"{', '.join(COSTS)}"
        )
    if settings.aggregate == "lower" and settings.seeds < 2:
        raise ValueError(
            "hydra.sweeper.aggregate is lower, which needs the spread of several seeds: give "
            "hydra.sweeper.seeds=2 or more, or hydra.sweeper.aggregate=mean"
        )
    if settings.custom_search_space is not None:
        raise ValueError("hydra.sweeper.custom_search_space is not supported: use hydra.sweeper.params")
    if not search.space:
        raise ValueError(
            "there is nothing to search: give a range, as in 'optimizer.lr=interval(0.01,0.1)', "
            "or hparams_search=optuna"
        )
    sweep = OmegaConf.to_container(search.hydra.sweep, resolve=False)
    if not isinstance(sweep, dict) or sweep["subdir"] != "${hydra.job.num}":
        raise ValueError("hydra.sweep.subdir must be ${hydra.job.num}: a trial's folder is its number")


def _check_key(name: str, search: Search) -> None:
    """Refuse a key that no search may vary."""
    key = key_of(name).lstrip("+").split("@")[0]
    if key == "seed":
        raise ValueError(
            "seed is searched, but a lucky seed is no better setting: leave it out, and have every trial "
            "trained on several with hydra.sweeper.seeds=3, or the best ones on fresh seeds with "
            "hydra.sweeper.confirm.top=3 or confirm.py"
        )
    if key in SAME_IN_ALL_TRIALS:
        raise ValueError(f"{key} is searched, but trials are compared on the same images: give it one value")


def _check_compositions(search: Search) -> None:
    """Look at the first and last settings of every option and every condition.

    Refuse values out of their range, fractions for a whole number, other images, a network that cannot be built,
    and keys that no composition has.
    """
    first: DictConfig | None = None
    found: set[str] = set()
    fixed: set[str] = set()
    built: list[tuple[Any, ...]] = []
    for wanted in space.compositions(search):
        low, high = (space.end(search, which, wanted) for which in (0, -1))
        found |= low.keys() | high.keys()
        for settings in (low, high):
            fixed |= set(search.composition(settings)[2])
            _check_whole_numbers(search, settings)
            cfg, _ = compose(search, settings)
            ranges.validate(cfg)
            first = first or cfg
            _check_images(first, cfg)
        options = tuple(low[name] for name in low if name in search.space.groups)
        if options not in built:
            built.append(options)
            cfg, info = compose(search, low)
            with suppress(budget.OverBudget):
                costs.check_budget(cfg, info.choices)
    for name in search.space:
        if name not in found and _is_possible(search, name):
            raise ValueError(_nowhere(search, name))
    for line in search.fixed:
        if line not in fixed:
            raise ValueError(f"{command_line([line])} is no key of any option that is searched: leave it out")


def _check_whole_numbers(search: Search, settings: dict[str, Any]) -> None:
    cfg = search.composition(settings)[0]
    for name in settings:
        key, values = key_of(name), search.space[name]
        now = None if key.startswith(("+", "~")) else OmegaConf.select(cfg, key)
        if isinstance(now, int) and isinstance(values, FloatDistribution):
            low, high = math.ceil(values.low), math.floor(values.high)
            raise ValueError(f"{key} takes whole numbers: search '{key}=range({low},{high + 1})', up to {high}")


def _check_images(first: DictConfig, cfg: DictConfig) -> None:
    """Refuse options, of experiment for example, that bring other images or another seed."""
    if cfg.seed != first.seed:
        raise ValueError(
            f"seed is {first.seed} in some trials and {cfg.seed} in others, but a lucky seed is no better "
            "setting: give it one value"
        )
    for key in {**first.data, **cfg.data}:
        one, other = first.data.get(key), cfg.data.get(key)
        if one != other:
            raise ValueError(
                f"data.{key} is {one} in some trials and {other} in others, "
                "but trials are compared on the same images: give it one value"
            )


def _is_possible(search: Search, name: str) -> bool:
    """Whether what is typed leaves a condition of a name open: one that it rules out is no mistake."""
    searched = search.space.keys_searched()
    return any(
        all(
            key in searched or written(search.choices.get(key)) in conditions.allowed(v) for key, v in when.items()
        )
        for when in search.space.conditions.get(name, [{}])
    )


def _nowhere(search: Search, name: str) -> str:
    """What to say of a key that no trial has."""
    key, where = key_of(name), search.space.conditions.get(name)
    if where:
        return f"{key} is searched when {written(dict(where[0]))}, but no such trial has it: leave it out"
    group, _, rest = key.partition(".")
    if group in search.choices and rest:
        searched = [values for name, values in search.space.items() if key_of(name) == group]
        chosen = distributions.describe(searched[0]) if searched else written(search.choices[group])
        own = ["hydra/sweeper=bantam", "hydra.sweep.dir=multirun/mine", f"{group}={chosen}"]
        line = command_line(["python", "train.py", "-m", *own, "optimizer.lr=interval(0.01,0.1)"])
        return (
            f"{group}={chosen} has no {rest}, which hydra.sweeper.params searches: leave {group} as "
            f"it is, or name your own space, as in {line}"
        )
    near = nearest(key, [*search.choices, *keys(search.plain)])
    return f"{key} is searched, but is no key of the configuration" + (f": did you mean {near}?" if near else "")


def _check_conditions(search: Search) -> None:
    """Raise ValueError for a condition that no trial can meet, since it names what does not exist."""
    loader = search.context.config_loader
    searched = search.space.keys_searched()
    for name, known_conditions in search.space.conditions.items():
        for when in known_conditions:
            where = f"hydra.sweeper.spaces searches {key_of(name)} when {written(dict(when))}"
            for key, wanted in when.items():
                known = conditions.options(key, loader)
                if not known and key not in searched and not _is_key_somewhere(search, key):
                    raise ValueError(f"{where}, but {key} is no group and no key of the configuration")
                wrong = [value for value in conditions.allowed(wanted) if known and value not in known]
                if wrong:
                    raise ValueError(f"{where}, but {key} has no {wrong[0]}: its options are {', '.join(known)}")


def _is_key_somewhere(search: Search, key: str) -> bool:
    return any(
        conditions.has(search.composition(space.end(search, 0, wanted))[0], key)
        for wanted in space.compositions(search)
    )


def _resolve(search: Search) -> None:
    """Decide where the data are, what they are like and what data=auto stands for, and tell it to every trial."""
    read = [key for key in resolve.SHAPE if search.plain.data.get(key) is None]
    resolve.settle(search.plain, Path(search.hydra.runtime.cwd))
    resolve.decide_data(search.plain)
    for key in ("root", "became", *read):
        if search.plain.data.get(key):
            search.fixed.append(override(f"data.{key}", search.plain.data[key]))


def _fit_validation(search: Search) -> None:
    """Hold out a quarter of the training images, and note it, where a file asks for more than there are.

    Raises ValueError where the images cannot be had, or where the number was typed.
    """
    plain, asked = search.plain, search.plain.data.validation
    try:
        build(plain, "data", search.choices)
    except NoImages as error:
        cause = error.__cause__
        typed = {
            distributions.parse(line, search.context.config_loader)[0] for line in search.hydra.overrides.task
        }
        if not isinstance(cause, CannotHoldOut) or "data.validation" in typed:
            raise
        count = len(cause.data.train_labels)
        plain.data.validation = count // 4
        search.fixed.append(override("data.validation", count // 4))
        search.notes.append(
            f"data.validation is {count // 4:,} here, not {asked:,}: {cause.data.name} has only {count:,} images "
            "to train on"
        )


def _check_plain(plain: DictConfig) -> None:
    """Refuse what every trial would have: what is about one run, and no images to choose by."""
    for key in ("dry_run", "resume"):
        if plain[key]:
            raise ValueError(f"{key} is about one run: leave -m out")
    if not plain.data.validation:
        raise ValueError(
            "data.validation is 0: a search chooses by images that are held out of training, "
            "so give it some, for example data.validation=5000"
        )


def _check_sampler_and_pruner(search: Search) -> None:
    """Refuse a sampler or a pruner that Optuna does not build, or that does not fit the objectives."""
    sampler = samplers.build(search.settings.sampler, search.space, search.points)
    if isinstance(sampler, CmaEsSampler) and find_spec("cmaes") is None:  # Optuna imports it in the second trial
        raise ValueError("hydra.sweeper.sampler is CmaEsSampler, which needs a package: pip install cmaes")
    pruner = pruners.build(search.settings.pruner, search.cost)
    if search.multi_objective and not isinstance(pruner, pruners.Dominated | NopPruner):
        raise ValueError(
            f"hydra.sweeper.pruner is {type(pruner).__name__}, which knows one objective, and "
            "hydra.sweeper.objectives has two: use hydra/sweeper/pruner=dominated or none"
        )
    top = search.settings.confirm.top
    if search.multi_objective and top:
        raise ValueError(
            f"hydra.sweeper.confirm.top is {top}, but with two objectives no trial is the best: "
            "leave it at 0, and choose from the front with confirm.py --trials"
        )


def _check_cluster(search: Search) -> None:
    """Find the cluster that trials run on; refuse SQLite where it has several machines."""
    if not isinstance(search.launcher, cluster.RayLauncher):
        return
    machines = search.launcher.begin(search.plain.threads)
    if len(machines) > 1 and storage.address(search.hydra).startswith("sqlite"):
        journal = override("hydra.sweeper.storage", f"journal://{search.folder.absolute()}/study.log")
        raise ValueError(
            f"{cluster.KEY} has a cluster of {len(machines)} machines, and hydra.sweeper.storage is SQLite, which "
            f"is not safe on several: give a database, or {journal}"
        )
