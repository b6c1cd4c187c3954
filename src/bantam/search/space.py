"""What is searched: from the command line to distributions, and what is refused before the first trial."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.pruners import NopPruner

from bantam import ranges, resolve
from bantam.budget import COSTS
from bantam.data import CannotHoldOut
from bantam.overrides import override
from bantam.search import distributions, pruners, samplers
from bantam.training import setup
from bantam.training.build import NoImages, build

SAME_IN_ALL_TRIALS = ("data", "data.validation", "data.split_seed")
"""Keys that decide which images a trial is scored on."""

OBJECTIVES = (["accuracy"], *(["accuracy", cost] for cost in COSTS))
"""What a search may be about."""


@dataclass
class Search:
    """What the command line asks for, the same in the process that watches and in its workers."""

    config: DictConfig
    context: HydraContext
    launcher: Launcher
    space: dict[str, BaseDistribution]
    fixed: list[str]
    """The overrides that every trial has."""
    plain: DictConfig
    """The configuration with these overrides alone."""
    choices: dict[str, Any]
    """The option of each group in it, as in model=v2."""
    notes: list[str] = field(default_factory=list)
    """What `check` has changed, a sentence each."""

    @property
    def hydra(self) -> DictConfig:
        hydra: DictConfig = self.config.hydra
        return hydra

    @property
    def settings(self) -> DictConfig:
        """`hydra.sweeper.*`."""
        settings: DictConfig = self.config.hydra.sweeper
        return settings

    @cached_property
    def grid_size(self) -> int | None:
        """How many settings a grid has; None where the sampler is no grid."""
        sampler = samplers.build(self.settings.sampler, self.space)
        return len(sampler.points) if isinstance(sampler, samplers.Grid) else None

    @property
    def first_settings(self) -> dict[str, Any]:
        """The first value of every range."""
        return {key: distributions.ends(values)[0] for key, values in self.space.items()}

    @cached_property
    def first(self) -> tuple[DictConfig, setup.RunInfo]:
        """The configuration with the first value of every range, as `compose` makes it."""
        return compose(self, self.first_settings)

    @cached_property
    def prepared(self) -> setup.Prepared:
        """The first setting, built, whatever its size: it says what `auto` stands for on this machine."""
        cfg, info = self.first
        cfg = deepcopy(cfg)
        cfg.budget |= dict.fromkeys(COSTS)
        return setup.prepare(cfg, info)

    @property
    def multi_objective(self) -> bool:
        """Whether a cost is an objective beside the accuracy, so that the result is a front."""
        return len(self.settings.objectives) == 2

    @property
    def cost(self) -> str:
        """The cost that is an objective, or where there is none the one by which networks are compared."""
        return str(self.settings.objectives[1]) if self.multi_objective else "parameters"

    def second_objective(self, costs: Mapping[str, Any]) -> tuple[int, ...]:
        """The cost that is an objective, of those of a network that is trained; empty where none is."""
        return (costs[self.cost],) if self.multi_objective and self.cost in costs else ()

    @property
    def folder(self) -> Path:
        """Where the study and its trials are."""
        return Path(self.config.hydra.sweep.dir)


def read(config: DictConfig, context: HydraContext, launcher: Launcher, arguments: list[str]) -> Search:
    """Split `hydra.sweeper.params` and the command line into a search space and fixed overrides.

    The command line wins: it may fix a key that `params` varies, and vary one that `params` fixes.
    Raises ValueError for a range that cannot be searched.
    """
    space: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    params = config.hydra.sweeper.params or {}
    for line in [*(f"{key!s}={value}" for key, value in params.items()), *arguments]:
        key, distribution = distributions.parse(line, context.config_loader)
        space.pop(key, None)
        fixed.pop(key, None)
        if distribution is None:
            fixed[key] = line
        else:
            space[key] = distribution
    plain, choices = composed(config, context, list(fixed.values()))
    return Search(config, context, launcher, space, list(fixed.values()), plain, choices)


def composed(config: DictConfig, context: HydraContext, overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """Compose a trial's configuration as its job will; also returns what its options are called.

    Raises ValueError where it cannot be composed.
    """
    try:
        cfg = context.config_loader.load_sweep_config(config, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(" ".join(f"{error} {error.__cause__ or ''}".split())) from error
    with read_write(cfg), open_dict(cfg):
        hydra = cfg.pop("hydra")
    return cfg, dict(hydra.runtime.choices)


def overrides(search: Search, settings: dict[str, Any]) -> list[str]:
    """All overrides of a trial: those that every trial has, and its own settings."""
    return [*search.fixed, *(distributions.override(key, value) for key, value in settings.items())]


def known_settings(search: Search) -> tuple[list[dict[str, Any]], list[str]]:
    """The settings of `hydra.sweeper.enqueue`, and why which of them are left out, a sentence each.

    Keys that are not searched are left out of them. Settings that are not in the space are left out where a range
    was typed beside settings that were not. Raises ValueError for all others.
    """
    typed: Any = OmegaConf.to_container(search.hydra.overrides, resolve=False)
    by_hand = any(line.startswith("hydra.sweeper.enqueue") for line in typed["hydra"])
    keys = {distributions.parse(line, search.context.config_loader)[0] for line in typed["task"]}
    found, left_out = [], []
    for entry in search.settings.enqueue:
        settings = {}
        try:
            for key, value in entry.items():
                if key in search.space:
                    settings[str(key)] = distributions.matching(value, search.space[key])
        except ValueError as error:
            reason = f"hydra.sweeper.enqueue sets {key!s}, but {error}"
            if by_hand or key not in keys:
                raise ValueError(f"{reason}: change the one or the other") from error
            left_out.append(f"{reason}: these settings are left out")
        else:
            found += [settings] if settings else []
    return found, left_out


def compose(search: Search, settings: dict[str, Any]) -> tuple[DictConfig, setup.RunInfo]:
    """A trial's configuration, as its job will have it, and where it runs with what options.

    Raises ValueError where it cannot be composed.
    """
    cfg, choices = deepcopy(search.plain), search.choices
    if any(key.startswith(("+", "~")) or key.split("@")[0] in choices for key in settings):
        cfg, choices = composed(search.config, search.context, overrides(search, settings))
    else:
        try:
            for key, value in settings.items():
                OmegaConf.update(cfg, key, distributions.value(value), merge=False)
        except OmegaConfBaseException as error:
            raise ValueError(" ".join(str(error).split())) from error
    return cfg, setup.RunInfo(search.folder, choices, search.settings.n_jobs or -1, None)


def check(search: Search) -> None:
    """Resolve what all trials share, and raise ValueError for whatever can be known to fail before the first."""
    _check_settings(search)
    for key, values in search.space.items():
        _check_key(key, values, search)
    _check_plain(search.plain)
    _resolve(search)
    _fit_validation(search)
    _check_ends(search)
    _check_sampler_and_pruner(search)
    for entry in search.settings.enqueue:
        for key in entry:
            if key not in search.space and OmegaConf.select(search.plain, str(key)) is None:
                raise ValueError(f"hydra.sweeper.enqueue sets {key!s}, which is no key of the configuration")
    known_settings(search)


def _check_settings(search: Search) -> None:
    """Refuse values of `hydra.sweeper` and `hydra.sweep` that no search can have."""
    settings = search.settings
    ranges.validate_ranges(settings, "hydra.sweeper")
    if str(getattr(settings.direction, "name", settings.direction)) != "maximize":
        raise ValueError("hydra.sweeper.direction must be maximize: the objective is an accuracy")
    if list(settings.objectives) not in OBJECTIVES:
        raise ValueError(
            f"hydra.sweeper.objectives is {objectives(search)}: it must be [accuracy] or [accuracy,…] with one of "
            f"{', '.join(COSTS)}"
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


def _check_key(key: str, values: BaseDistribution, search: Search) -> None:
    """Refuse a key that no search may vary or no configuration has, and fractions for a whole number."""
    name = key.lstrip("+").split("@")[0]
    if name == "seed":
        raise ValueError(
            "seed is searched, but a lucky seed is no better setting: leave it out, and have the best trials "
            "trained on fresh seeds with hydra.sweeper.confirm.top=3 or confirm.py"
        )
    if name in SAME_IN_ALL_TRIALS:
        raise ValueError(f"{name} is searched, but trials are compared on the same images: give it one value")
    if key.startswith(("+", "~")):
        return
    now, choices = OmegaConf.select(search.plain, name), search.choices
    if isinstance(now, int) and isinstance(values, FloatDistribution):
        low, high = math.ceil(values.low), math.floor(values.high)
        raise ValueError(f"{key} takes whole numbers: search '{key}=range({low},{high + 1})', up to {high}")
    if now is not None:
        return
    group, _, rest = key.partition(".")
    if group in choices and rest:
        raise ValueError(
            f"{group}={choices[group]} has no {rest}, which hydra.sweeper.params searches: leave {group} as "
            "it is, or name your own space, as in python train.py -m hydra/sweeper=bantam "
            f"hydra.sweep.dir=multirun/mine {group}={choices[group]} 'optimizer.lr=interval(0.01,0.1)'"
        )
    raise ValueError(f"{key} is searched, but is no key of the configuration")


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


def _resolve(search: Search) -> None:
    """Decide where the data are and what data=auto stands for, and tell it to every trial."""
    resolve.pin(search.plain, Path(search.hydra.runtime.cwd))
    resolve.decide_data(search.plain)
    for key in ("root", "became"):
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


def _check_ends(search: Search) -> None:
    """Refuse a space whose first or last values are out of their range, or cannot be trained."""
    low, _ = search.first
    high, _ = compose(search, {key: distributions.ends(values)[1] for key, values in search.space.items()})
    ranges.validate(low)
    ranges.validate(high)
    if low.data.get("split_seed") != high.data.get("split_seed"):
        raise ValueError(
            f"data.split_seed is {low.data.split_seed} in some trials and {high.data.split_seed} in others, "
            "but trials are compared on the same images: give it one value"
        )
    _ = search.prepared


def _check_sampler_and_pruner(search: Search) -> None:
    """Refuse a sampler or a pruner that Optuna does not build, or that does not fit the objectives."""
    samplers.build(search.settings.sampler, search.space)
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


def objectives(search: Search) -> str:
    """`hydra.sweeper.objectives` as it is typed."""
    return f"[{','.join(map(str, search.settings.objectives))}]"
