"""Samplers: building the one that is asked for, and giving each trial random numbers of its own."""

import warnings
from functools import partial
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GridSampler, QMCSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bantam.search import distributions

WHITELIST = ("optuna.samplers.*", "hydra_plugins.hydra_optuna_sweeper.*")
"""What `hydra.sweeper.sampler._target_` may be."""


def build(conf: DictConfig, space: dict[str, BaseDistribution], seed: int | None = None) -> BaseSampler:
    """Build the sampler of `hydra.sweeper.sampler`, with another seed where one is given.

    Raises ValueError where it refuses its settings.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            own = conf if seed is None else OmegaConf.merge(conf, {"seed": seed})
            sampler = instantiate(own, _execution_whitelist_=WHITELIST)
            if isinstance(sampler, partial) and sampler.func is GridSampler:
                sampler = Grid(space, conf.seed)
    except Exception as error:  # Hydra wraps whatever the constructor raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"hydra.sweeper.sampler cannot be built: {reason}") from error
    assert isinstance(sampler, BaseSampler)
    return sampler


def for_study(conf: DictConfig, space: dict[str, BaseDistribution]) -> BaseSampler:
    """The sampler for a study that several processes share, now or later."""
    sampler = build(conf, space)
    shares_its_order = isinstance(sampler, Grid | QMCSampler)
    return sampler if conf.get("seed") is None or shares_its_order else SeededByTrial(conf, space)


class Grid(BaseSampler):
    """Tries every point of a space once, in a random order that follows from the seed.

    Optuna's own counts the points by itself, so that it tries one of the queue twice and another one never.
    """

    def __init__(self, space: dict[str, BaseDistribution], seed: int | None = None) -> None:
        """Raises ValueError where the space has no steps."""
        self.space = space
        self.points = distributions.points(space)
        np.random.default_rng(seed).shuffle(self.points)

    def reseed_rng(self) -> None:
        """Keep the order: the workers of a search share it."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The first point that no trial has, of those with the settings that are fixed for this one."""
        fixed = trial.system_attrs.get("fixed_params", {})
        taken = set()
        for other in study.get_trials(deepcopy=False):
            if other.number != trial.number:
                settings = {**other.system_attrs.get("fixed_params", {}), **other.params}
                taken.add(tuple(settings.get(key) for key in self.space))
        fitting = [point for point in self.points if fixed.items() <= point.items()] or self.points
        return next((point for point in fitting if tuple(point.values()) not in taken), fitting[0])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: a point has a value for every key."""
        raise ValueError(f"{param_name} is no key of the grid")


class SeededByTrial(BaseSampler):
    """Gives every trial its own random numbers, which follow from the sampler's seed and its number.

    Workers with one seed would all try the same settings, and a continued study its first ones again.
    """

    def __init__(self, conf: DictConfig, space: dict[str, BaseDistribution]) -> None:
        self.conf, self.space = conf, space
        self.sampler = build(conf, space)

    def reseed_rng(self) -> None:
        """Leave the seed alone: every trial has its own."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # Not their sum: seed 2 would be seed 1, one trial later.
        (seed,) = np.random.SeedSequence([self.conf.seed, trial.number]).generate_state(1)
        self.sampler = build(self.conf, self.space, int(seed))
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.sampler.after_trial(study, trial, state, values)
