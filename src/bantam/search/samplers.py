"""Samplers: building the one that is asked for, and giving each trial a seed of its own."""

import warnings
from functools import partial
from typing import Any

from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import DictConfig, read_write
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


def build(conf: DictConfig, space: dict[str, BaseDistribution]) -> BaseSampler:
    """Build the sampler. Raises ValueError where Optuna refuses its settings."""
    whitelist = ("optuna.samplers.*", "hydra_plugins.hydra_optuna_sweeper.*")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            built = instantiate(conf, _execution_whitelist_=whitelist)
            if isinstance(built, partial):  # GridSampler, which wants its grid first
                built = built({key: OptunaSweeperImpl._to_grid_sampler_choices(v) for key, v in space.items()})
    except Exception as error:  # Hydra wraps whatever the constructor raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"hydra.sweeper.sampler cannot be built: {reason}") from error
    assert isinstance(built, BaseSampler)
    return built


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
        with read_write(self.conf):
            first, self.conf.seed = self.conf.seed, self.conf.seed + trial.number
            self.sampler = build(self.conf, self.space)
            self.conf.seed = first
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
