"""Pruners: building the one that is asked for, the default, and one for two objectives."""

from typing import Any

import optuna
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

WHITELIST = ("optuna.pruners.*", "bantam.search.pruners.*")
"""What `hydra.sweeper.pruner._target_` may be."""


def build(conf: DictConfig, cost: str = "parameters") -> BasePruner:
    """Build the pruner of `hydra.sweeper.pruner`; `cost` is by what networks are compared.

    Raises ValueError where it refuses its settings.
    """
    try:
        pruner: BasePruner = instantiate(conf, _execution_whitelist_=WHITELIST)
    except Exception as error:  # Hydra wraps whatever the constructor raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"hydra.sweeper.pruner cannot be built: {reason}") from error
    if isinstance(pruner, Dominated):
        pruner.cost = cost
    return pruner


class SuccessiveHalving(optuna.pruners.SuccessiveHalvingPruner):
    """Optuna's, which also prunes a trial between its rungs, or before the first, where it is far behind.

    That is where its error, 100 % less its best accuracy so far, is more than `far_behind` times that of completed
    trials after as many epochs: up to the first rung that of every one, of two at least, from epoch 2 on; past it
    that of the best one. With None only rungs count.
    """

    def __init__(self, far_behind: float | None = 1.5, **rungs: Any) -> None:
        """`rungs` are Optuna's own arguments."""
        super().__init__(**rungs)
        self.far_behind = far_behind

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial that has just reported an epoch is to end there."""
        if super().prune(study, trial):  # which notes what it needs for other trials
            return True
        epoch = trial.last_step
        if self.far_behind is None or epoch is None or epoch < 2:  # the statistics of batch norm are few after one
            return False
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        reached = [other for other in completed if epoch in other.intermediate_values]
        if epoch > (self._min_resource or 0) * self._reduction_factor**self._min_early_stopping_rate:
            reached = sorted(reached, key=lambda other: float(other.value or 0.0))[-1:]
        elif len(reached) < 2:
            return False
        error = _error(trial, epoch)
        return bool(reached) and all(error > self.far_behind * _error(other, epoch) for other in reached)


def _error(trial: FrozenTrial, epoch: int) -> float:
    """The lowest until that epoch, in percent."""
    return 100 - max(accuracy for step, accuracy in trial.intermediate_values.items() if step <= epoch)


class Dominated(BasePruner):
    """Prunes a trial that smaller ones were ahead of; it works with two objectives, as Optuna's pruners do not.

    That is where, at the same epoch, at least `n_min_trials` trials that have ended, whose networks cost no more,
    were better. Every trial gets `n_warmup_steps` epochs.
    """

    cost = "parameters"
    """By what networks are compared."""

    def __init__(self, n_warmup_steps: int = 10, n_min_trials: int = 3) -> None:
        self.n_warmup_steps, self.n_min_trials = n_warmup_steps, n_min_trials

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial that has just reported an epoch is to end there."""
        epoch, cost = trial.last_step, trial.user_attrs.get(self.cost)
        if epoch is None or cost is None or epoch < self.n_warmup_steps:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        ahead = [
            other
            for other in ended
            if other.user_attrs.get(self.cost, cost + 1) <= cost
            and other.intermediate_values.get(epoch, 0.0) > trial.intermediate_values[epoch]
        ]
        return len(ahead) >= self.n_min_trials
