"""Pruners: building the one that is asked for, and the one that is our own."""

from typing import Any

import optuna
from hydra.utils import instantiate
from optuna.trial import FrozenTrial, TrialState


def build(hydra: Any) -> optuna.pruners.BasePruner:
    """Build the pruner. Raises ValueError where Optuna refuses its settings."""
    try:
        built: optuna.pruners.BasePruner = instantiate(
            hydra.sweeper.pruner, _execution_whitelist_=("optuna.pruners.*", "bantam.search.pruners.Dominated")
        )
    except Exception as error:  # Hydra wraps whatever the constructor raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"hydra.sweeper.pruner cannot be built: {reason}") from error
    return built


class Dominated(optuna.pruners.BasePruner):
    """Gives a trial up that smaller ones were ahead of; it works with two objectives, as Optuna's pruners do not.

    That is where, at the same epoch, at least `n_min_trials` trials that have ended, with no more parameters,
    were better. Every trial gets `n_warmup_steps` epochs.
    """

    def __init__(self, n_warmup_steps: int = 10, n_min_trials: int = 3) -> None:
        self.n_warmup_steps, self.n_min_trials = n_warmup_steps, n_min_trials

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial that has just reported an epoch is to be given up."""
        epoch, parameters = trial.last_step, trial.user_attrs.get("parameters")
        if epoch is None or parameters is None or epoch < self.n_warmup_steps:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        ahead = [
            other
            for other in ended
            if other.user_attrs.get("parameters", parameters + 1) <= parameters
            and other.intermediate_values.get(epoch, 0.0) > trial.intermediate_values[epoch]
        ]
        return len(ahead) >= self.n_min_trials
