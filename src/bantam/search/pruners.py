"""Pruners: building the one that is asked for, and one for two objectives."""

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
