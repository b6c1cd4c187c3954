"""A worker: asks Optuna for settings, counts the network, launches a job and reports what it reached."""

import os
import signal
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from types import FrameType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.types import TaskFunction
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler, NSGAIIISampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import Trial, TrialState

from bantam import budget
from bantam.cluster import RayLauncher
from bantam.launch import LAUNCHER
from bantam.search import composition, distributions, outcome, processes, samplers, seeds, space, trials
from bantam.search.conditions import Space
from bantam.search.faults import EXIT_CODE, MachineFault, killed, raise_machine_fault
from bantam.search.space import Search
from bantam.search.study import ending, hopeless, load, missing
from bantam.search.trials import STOPPED, SURPLUS, Ending
from bantam.snapshot import Snapshot
from bantam.training import costs

NEVER_TRAINED = float("-inf")
"""The accuracy of a network over the budget for a sampler that learns from completed trials only."""


@dataclass(frozen=True)
class Task:
    """What the process that watches hands on to its workers."""

    config: DictConfig
    space: Space
    fixed: list[str]
    plain: DictConfig
    choices: dict[str, Any]
    snapshot: Snapshot
    composed: composition.Composed
    script: str
    """What Hydra calls train.py."""
    until: float
    """The time on `time.monotonic` after which no trial is begun; the processes of a machine share that clock."""
    cluster: dict[str, str]
    """Variables with which Ray finds the cluster that the jobs run on; empty where they do not."""


class Interrupt:
    """What a signal asks of a worker: to stop at once where it trains, else before its next trial."""

    def __init__(self) -> None:
        self.asked = self.training = False
        for number in processes.SIGNALS:
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if self.training and first:  # who stops all processes sends a worker one signal, and who watches another
            processes.interrupt(KeyboardInterrupt())


def work(task: Task, task_function: TaskFunction) -> None:
    """Be a worker of the process that has handed on the task; exits with `EXIT_CODE` where this machine cannot.

    `task_function` is what a job does, of train.py.
    """
    os.environ[LAUNCHER] = str(os.getpid())
    context = composition.context(task.config, task.snapshot, task.composed, task.script)
    launcher = Plugins.instance().instantiate_launcher(
        config=task.config, hydra_context=context, task_function=task_function
    )
    if isinstance(launcher, RayLauncher):
        launcher.found = task.cluster
    try:
        run_trials(
            Search(task.config, context, launcher, task.space, task.fixed, task.plain, task.choices), task.until
        )
    except MachineFault as fault:
        print(fault)
        raise SystemExit(EXIT_CODE) from None


def run_trials(search: Search, until: float) -> None:
    """Run trial after trial until there are enough or `until` has passed, a signal comes or nobody watches.

    Raises MachineFault where this machine cannot train.
    """
    interrupt = Interrupt()
    study = load(search)
    before = trials.ended(trials.read(study))
    settled: set[int] = set()
    while True:
        listed = trials.requeue(study)
        outcome.keep_best_weights(search, listed, settled)
        enough = missing(search, trials.count(listed)) <= 0 or hopeless(search, listed, before)
        if enough or interrupt.asked or processes.abandoned() or time.monotonic() > until:
            return
        run_trial(search, study, study.ask(), interrupt)


def run_trial(search: Search, study: Study, trial: Trial, interrupt: Interrupt) -> None:
    """Train with one trial's settings and report how it ended. Raises MachineFault where this machine cannot."""
    with trials.heartbeat(trial, search.settings.heartbeat):
        try:
            ending = _train(search, study, trial, interrupt)
        except MachineFault:
            trials.end(study, trial.number, STOPPED)
            trials.requeue(study)
            raise
        if not trials.end(study, trial.number, ending):
            print(f"Trial {trial.number} was ended by others while this process was silent: result dropped.")


def _train(search: Search, study: Study, trial: Trial, interrupt: Interrupt) -> Ending:
    """Suggest, count and launch; returns how the trial ended."""
    listed = trials.read(study)
    enough = missing(search, Counter(listed.states[: trial.number])) <= 0
    if enough or trials.superseded(listed, listed[trial.number]):
        # Two processes saw that one trial was missing, or stopped, and both began it: the later one steps back.
        return SURPLUS
    try:
        settings = _suggest_all(search, trial)
        found, excess = count_costs(search, settings)
        for key, amount in found.items():
            trial.set_user_attr(key, amount)
        for key, amount in excess.items():
            if key not in trial.constraints:  # a trial of an older study that runs again brings its own
                trial.set_constraint(key, amount)
        if any(amount > 0 for amount in excess.values()):
            return _over_budget(search, study, found, excess)
        known = _known(search, study, trial.number, settings, interrupt)
        if known is not None:
            return known
        ended = _train_seeds(search, study, trial, settings, found, interrupt)
        if "fault" in ended.notes:
            raise MachineFault(ended.notes["fault"])
        return ended
    except KeyboardInterrupt:
        interrupt.asked = True
        return STOPPED
    except MachineFault:
        raise
    except Exception as error:
        raise_machine_fault(error)
        if killed(error):
            return Ending(TrialState.FAIL)
        return Ending(TrialState.FAIL, None, {"reason": f"{type(error).__name__}: {error}"})


def _train_seeds(
    search: Search,
    study: Study,
    trial: Trial,
    settings: dict[str, Any],
    costs: dict[str, int],
    interrupt: Interrupt,
) -> Ending:
    """Train on one seed after the other, unless one does not end well, or the trial cannot catch up."""
    count = 1
    while True:
        if not seeds.take_over(search, study, trial, count):
            _launch(search, seeds.overrides(search, settings, trial.number, count), trial.number, interrupt)
        ended = ending(search, study, trial.number, costs, count)
        if count == search.settings.seeds or not seeds.is_whole(ended):
            return ended
        seeds.note(study, trial, ended)
        pruned = seeds.pruned(search, trials.read(study), costs, ended)
        if pruned is not None:
            return pruned
        count += 1


def _known(
    search: Search, study: Study, number: int, settings: dict[str, Any], interrupt: Interrupt
) -> Ending | None:
    """How an earlier trial with these very settings ended; None where there is none.

    With the same seed it would end the same way. One that is still running is waited for, or, where a grid has
    other points, left to the process that began it.
    """
    # In a space without steps only what was queued can come twice.
    finite = distributions.finite(search.space)
    while True:
        listed = trials.read(study)
        earlier, states = listed[:number], listed.states[:number]
        running = [trial for trial, state in zip(earlier, states, strict=True) if state == "running"]
        same = [trial for trial in running if trials.settings(trial) == settings]
        undecided = finite and any(space.following(search, trial.params) is not None for trial in running)
        for trial, state in zip(earlier, states, strict=True):
            if trial.params == settings and state in ("complete", "pruned"):
                return trials.same(trial, state)
        if same and isinstance(study.sampler, samplers.Grid):
            return SURPLUS
        if not same and not undecided:
            return None
        if interrupt.asked or processes.abandoned():
            raise KeyboardInterrupt
        time.sleep(0.2)


def _suggest_all(search: Search, trial: Trial) -> dict[str, Any]:
    """A value for each key that the trial has."""
    settings: dict[str, Any] = {}
    with warnings.catch_warnings():
        # The Gaussian process takes NEVER_TRAINED for the worst accuracy so far, as it should.
        warnings.filterwarnings("ignore", "Clip non-finite values")
        while (name := space.following(search, settings)) is not None:
            settings[name] = _suggest(trial, name, search.space[name])
    return settings


def _suggest(trial: Trial, key: str, values: BaseDistribution) -> Any:
    if isinstance(values, FloatDistribution):
        return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(key, values.low, values.high, step=values.step, log=values.log)
    assert isinstance(values, CategoricalDistribution)
    return trial.suggest_categorical(key, values.choices)


def count_costs(search: Search, settings: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """What a trial's network costs, and by how much it is over each limit of the budget; 0 or less within it.

    Both are empty where the network cannot be built: the trial's job says why, in its folder.
    """
    try:
        cfg, info = space.compose(search, settings)
        _, found = costs.count(cfg, info.choices)
    except ValueError:
        return {}, {}
    return found, budget.excess(found, cfg.budget)


def _over_budget(search: Search, study: Study, found: dict[str, int], excess: dict[str, int]) -> Ending:
    """How a trial ends whose network is not trained: the way its sampler learns from."""
    over = {key: amount for key, amount in excess.items() if amount > 0}
    notes = {"reason": ", ".join(f"{budget.in_words({k: found[k]})}, {over[k]:,} too many" for k in over)}
    sampler = getattr(study.sampler, "sampler", study.sampler)
    if not isinstance(sampler, GPSampler | NSGAIISampler | NSGAIIISampler):
        return Ending(TrialState.PRUNED, None, notes)
    return Ending(TrialState.COMPLETE, (NEVER_TRAINED, *search.second_objective(found)), notes)


def _launch(search: Search, overrides: list[str], number: int, interrupt: Interrupt) -> None:
    """Run a job of a trial. Raises KeyboardInterrupt where a signal stops it."""
    try:
        interrupt.training = True
        if interrupt.asked:
            raise KeyboardInterrupt
        for job in search.launcher.launch([overrides], initial_job_idx=number) or ():
            _ = job.return_value  # raises what the job could not record itself
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        interrupt.training = False
