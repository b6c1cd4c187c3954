"""A worker: asks Optuna for settings, counts the network, launches a job and reports what it reached."""

import math
import signal
import time
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import TrialPruned
from optuna.samplers import GPSampler, NSGAIIISampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from bantam import budget
from bantam.search import outcome, trials
from bantam.search import processes as crew
from bantam.search.space import Search, compose
from bantam.search.study import missing, open_study, stuck
from bantam.training import folder as record
from bantam.training import setup

NEVER_TRAINED = float("-inf")
"""The accuracy of a network over the budget for a sampler that learns from completed trials only."""


class Interrupt:
    """What a signal asks of a worker: to stop at once where it trains, else before its next trial."""

    def __init__(self) -> None:
        self.asked = self.training = False
        for number in crew.SIGNALS:
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.training:
            raise KeyboardInterrupt


def work(search: Search, until: float) -> None:
    """Ask for settings and train with them, trial after trial, until there are enough or `until` has passed."""
    interrupt = Interrupt()
    study = open_study(search)

    def enough() -> bool:
        listed = study.get_trials(deepcopy=False)
        return (
            interrupt.asked
            or crew.abandoned()
            or missing(search, trials.count(listed)) <= 0
            or stuck(search, listed) != ""
        )

    def after(study: Study, trial: FrozenTrial) -> None:
        outcome.keep_best_weights(search, study)
        if enough():
            study.stop()

    if enough():
        return
    with suppress(KeyboardInterrupt):
        study.optimize(
            partial(train, search, study, interrupt),
            timeout=None if until == math.inf else max(0.0, until - time.time()),
            catch=(Exception,),
            callbacks=[after],
        )


def train(search: Search, study: Study, interrupt: Interrupt, trial: Trial) -> float | tuple[float, float]:
    """Optuna's objective: one trial, weighed before a job is launched for it.

    Returns percent; with two objectives percent and the number of parameters.
    """

    def told(accuracy: float) -> float | tuple[float, float]:
        return (accuracy, trial.user_attrs.get("parameters", math.nan)) if search.two else accuracy

    earlier = trials.states(study.get_trials(deepcopy=False))[: trial.number]
    if missing(search, Counter(earlier)) <= 0:
        # Two workers saw that one trial was missing, and both began it: the later one steps back.
        trial.set_user_attr("surplus", True)
        raise RuntimeError("surplus")
    try:
        trials.sign_of_life(study, trial)
        with warnings.catch_warnings():
            # The Gaussian process takes NEVER_TRAINED for the worst accuracy so far, as it should.
            warnings.filterwarnings("ignore", "Clip non-finite values")
            settings = {key: _suggest(trial, key, values) for key, values in search.space.items()}
        if not _weigh(search, settings, trial):
            built = getattr(study.sampler, "sampler", study.sampler)
            if isinstance(built, GPSampler | NSGAIISampler | NSGAIIISampler):
                return told(NEVER_TRAINED)
            raise TrialPruned
        _launch(search, study, settings, interrupt, trial)
        ended = record.read_result(search.folder / str(trial.number))
        trial.set_user_attr("given up", ended["verdict"] == "pruned")
        if ended["verdict"] == "pruned":
            trial.set_user_attr("reason", ended["reason"])
            if search.two:
                # TPE cannot read pruned trials beside two objectives: it learns from the last accuracy.
                return told(record.read_history(search.folder / str(trial.number))[-1].accuracy)
            raise TrialPruned
        if ended.get("objective") is None:
            trial.set_user_attr("reason", f"{ended['verdict']}: {ended['reason']}")
            return told(math.nan)
        return told(float(ended["objective"]))
    except TrialPruned:
        raise
    except Exception as error:
        trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
        raise


def _launch(search: Search, study: Study, settings: dict[str, Any], interrupt: Interrupt, trial: Trial) -> None:
    """Run a trial's job; where that is interrupted, the trial is put back into the queue."""
    overrides = [*search.fixed, *(f"{key}={value}" for key, value in settings.items())]
    try:
        interrupt.training = True
        if interrupt.asked:
            raise KeyboardInterrupt
        search.launcher.launch([overrides], initial_job_idx=trial.number)
    except (KeyboardInterrupt, SystemExit):
        interrupt.training = False
        trials.put_back(study, study.get_trials(deepcopy=False)[trial.number])
        raise KeyboardInterrupt from None
    finally:
        interrupt.training = False


def _suggest(trial: Trial, key: str, values: BaseDistribution) -> Any:
    if isinstance(values, FloatDistribution):
        return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(key, values.low, values.high, step=values.step, log=values.log)
    assert isinstance(values, CategoricalDistribution)
    return trial.suggest_categorical(key, values.choices)


def _weigh(search: Search, settings: dict[str, Any], trial: Trial) -> bool:
    """Count a trial's network and note the count and the constraint; returns whether it is in the budget."""
    try:
        cfg, place = compose(search, settings)
        try:
            _, parameters = setup.check_budget(cfg, place)
        except budget.OverBudget as error:
            parameters = sum(layer.parameters for layer in error.layers)
    except ValueError:
        return True  # whatever is wrong: its job says so in its folder
    excess: int = parameters - cfg.budget.parameters + 1
    if excess > 0:
        trial.set_user_attr("reason", f"{parameters:,} parameters, {excess:,} too many")
    trial.set_user_attr("parameters", parameters)
    if "parameters" not in trial.constraints:  # a trial that runs again brings its own
        trial.set_constraint("parameters", excess)
    return excess <= 0
