"""What is searched: from the command line to distributions, and what is refused before the first trial."""

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import NopPruner

from bantam import budget, ranges
from bantam.search import pruners, samplers
from bantam.training import setup

OBJECTIVES = (["accuracy"], ["accuracy", "parameters"])
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
    def multi_objective(self) -> bool:
        """Whether parameters are an objective beside the accuracy, so that the result is a front."""
        return len(self.settings.objectives) == 2

    @property
    def folder(self) -> Path:
        """Where the study and its trials are."""
        return Path(self.config.hydra.sweep.dir)


def split(settings: DictConfig, arguments: list[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """Split `hydra.sweeper.params` and the command line into a search space and fixed overrides.

    The command line wins: it may fix a key that `params` varies, and vary one that `params` fixes.
    Raises ValueError for a range that Optuna cannot search.
    """
    found: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for line in [*(f"{key!s}={value}" for key, value in (settings.params or {}).items()), *arguments]:
        try:
            key = OverridesParser.create().parse_override(line).get_key_element()
            varied, _, _ = create_params_from_overrides([line])
        except (HydraException, ValueError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"{line} cannot be searched: {' '.join(str(error).split())}") from error
        found.pop(key, None)
        fixed.pop(key, None)
        if varied:
            found.update(varied)
        else:
            fixed[key] = line
    return found, list(fixed.values())


def overrides(search: Search, settings: dict[str, Any]) -> list[str]:
    """All overrides of a trial: those that every trial has, and its own settings."""
    return [*search.fixed, *(f"{key}={value}" for key, value in settings.items())]


def compose(search: Search, settings: dict[str, Any]) -> tuple[DictConfig, setup.RunInfo]:
    """Compose a trial's configuration as its job will; also returns what its options are called.

    Raises ValueError where it cannot be composed.
    """
    try:
        cfg = search.context.config_loader.load_sweep_config(search.config, overrides(search, settings))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(" ".join(f"{error} {error.__cause__ or ''}".split())) from error
    with read_write(cfg), open_dict(cfg):
        hydra = cfg.pop("hydra")
    return cfg, setup.RunInfo(search.folder, dict(hydra.runtime.choices), search.settings.n_jobs or -1, None)


def check(search: Search) -> None:
    """Raise ValueError for whatever can be known to fail before the first trial."""
    _check_settings(search)
    plain, info = compose(search, {})
    for key, values in search.space.items():
        _check_key(key, values, plain, info)
    _check_plain(plain)
    _check_ends(search)
    _check_sampler_and_pruner(search)
    for entry in search.settings.enqueue:
        for key in entry:
            if key not in search.space and OmegaConf.select(plain, str(key)) is None:
                raise ValueError(f"hydra.sweeper.enqueue sets {key!s}, which is no key of the configuration")


def _check_settings(search: Search) -> None:
    """Refuse values of `hydra.sweeper` and `hydra.sweep` that no search can have."""
    settings = search.settings
    ranges.validate_ranges(settings, "hydra.sweeper")
    if str(getattr(settings.direction, "name", settings.direction)) != "maximize":
        raise ValueError("hydra.sweeper.direction must be maximize: the objective is an accuracy")
    if list(settings.objectives) not in OBJECTIVES:
        raise ValueError(
            f"hydra.sweeper.objectives is {objectives(search)}: it must be [accuracy] or [accuracy,parameters]"
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


def _check_key(key: str, values: BaseDistribution, plain: DictConfig, info: setup.RunInfo) -> None:
    """Refuse a key that the composed configuration does not have, and fractions for a whole number."""
    if key.startswith(("+", "~")):
        return
    now = OmegaConf.select(plain, key.split("@")[0])
    if isinstance(now, int) and isinstance(values, FloatDistribution):
        low, high = math.ceil(values.low), math.floor(values.high)
        raise ValueError(f"{key} takes whole numbers: search '{key}=range({low},{high + 1})', up to {high}")
    if now is not None:
        return
    group, _, name = key.partition(".")
    if group in info.choices and name:
        raise ValueError(
            f"{group}={info.choices[group]} has no {name}, which hydra.sweeper.params searches: leave {group} as "
            "it is, or name your own space, as in python train.py -m hydra/sweeper=bantam "
            f"hydra.sweep.dir=multirun/mine {group}={info.choices[group]} 'optimizer.lr=interval(0.01,0.1)'"
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


def _check_ends(search: Search) -> None:
    """Refuse a space whose first or last values are out of their range, or cannot be trained."""
    low, info = compose(search, {key: ends(values)[0] for key, values in search.space.items()})
    high, _ = compose(search, {key: ends(values)[1] for key, values in search.space.items()})
    ranges.validate(low)
    ranges.validate(high)
    with suppress(budget.OverBudget):  # a matter of the trials: other settings may be within it
        setup.prepare(low, info)


def _check_sampler_and_pruner(search: Search) -> None:
    """Refuse a sampler or a pruner that Optuna does not build, or that does not fit the objectives."""
    samplers.build(search.settings.sampler, search.space)
    pruner = pruners.build(search.settings.pruner)
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


def ends(values: BaseDistribution) -> tuple[Any, Any]:
    """The first and the last value of a distribution."""
    if isinstance(values, CategoricalDistribution):
        return values.choices[0], values.choices[-1]
    assert isinstance(values, FloatDistribution | IntDistribution)
    return values.low, values.high


def objectives(search: Search) -> str:
    """`hydra.sweeper.objectives` as it is typed."""
    return f"[{','.join(map(str, search.settings.objectives))}]"
