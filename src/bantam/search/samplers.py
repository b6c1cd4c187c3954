"""Samplers: building the one that is asked for, and giving each trial random numbers of its own."""

import warnings
from collections.abc import Callable
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

WHITELIST = ("optuna.samplers.*", "hydra_plugins.hydra_optuna_sweeper.*")
"""What `hydra.sweeper.sampler._target_` may be."""


Points = Callable[[], list[dict[str, Any]]]
"""Makes the list of all settings of a space, which only a grid needs."""


def build(
    conf: DictConfig, space: dict[str, BaseDistribution], points: Points, seed: int | None = None
) -> BaseSampler:
    """Build the sampler of `hydra.sweeper.sampler`, with another seed where one is given.

    Raises ValueError where it refuses its settings.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            own = conf if seed is None else OmegaConf.merge(conf, {"seed": seed})
            sampler = instantiate(own, _execution_whitelist_=WHITELIST)
            if isinstance(sampler, partial) and sampler.func is GridSampler:
                sampler = Grid(space, points(), conf.seed)
    except Exception as error:  # Hydra wraps whatever the constructor raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"hydra.sweeper.sampler cannot be built: {reason}") from error
    assert isinstance(sampler, BaseSampler)
    return sampler


def for_study(conf: DictConfig, space: dict[str, BaseDistribution], points: Points) -> BaseSampler:
    """The sampler for a study that several processes share, now or later."""
    sampler = build(conf, space, points)
    shares_its_order = isinstance(sampler, Grid | QMCSampler)
    return sampler if conf.get("seed") is None or shares_its_order else SeededByTrial(conf, space, points)


class Grid(BaseSampler):
    """Tries every point of a space once, in a random order that follows from the seed.

    Optuna's own counts the points by itself, so that it tries one of the queue twice and another one never.
    """

    def __init__(
        self, space: dict[str, BaseDistribution], points: list[dict[str, Any]], seed: int | None = None
    ) -> None:
        """A point need not have all keys of the space: those of an option are for trials with that option."""
        self.space, self.points = space, points
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
        fitting = [p for p in self.points if all(p.get(key, value) == value for key, value in fixed.items())]
        fitting = fitting or self.points
        return next((p for p in fitting if tuple(p.get(key) for key in self.space) not in taken), fitting[0])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: a point has a value for every key."""
        raise ValueError(f"{param_name} is no key of the grid")


class SeededByTrial(BaseSampler):
    """Gives every trial its own random numbers, which follow from the sampler's seed and its number.

    Workers with one seed would all try the same settings, and a continued study its first ones again.
    """

    def __init__(self, conf: DictConfig, space: dict[str, BaseDistribution], points: Points) -> None:
        self.conf, self.space, self.points = conf, space, points
        self.sampler = build(conf, space, points)

    def reseed_rng(self) -> None:
        """Leave the seed alone: every trial has its own."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # Not their sum: seed 2 would be seed 1, one trial later.
        (seed,) = np.random.SeedSequence([self.conf.seed, trial.number]).generate_state(1)
        self.sampler = build(self.conf, self.space, self.points, int(seed))
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
        with warnings.catch_warnings():
            # A sampler that knows no constraints takes networks over the budget for pruned trials.
            warnings.filterwarnings("ignore", "Constraints have been set")
            self.sampler.after_trial(study, trial, state, values)
