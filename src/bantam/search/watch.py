"""A search: worker processes that ask Optuna for settings and launch one job for each, and who watches them.

The command line is typed once. Its process checks everything, starts workers, which are processes
with the same command line, and shows what they do. All that they share is the study in its storage,
so any of them may be killed, and a second command line joins in.
"""

import json
import math
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_params_from_overrides
from joblib import cpu_count
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError, TrialPruned
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, NSGAIIISampler, NSGAIISampler, QMCSampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from bantam import budget, ranges
from bantam.config import flat
from bantam.search import confirm, trials
from bantam.search import processes as crew
from bantam.training import folder as record
from bantam.training import setup

MOST_OVER_BUDGET = 50
"""Networks over the budget in a row after which the space counts as one that holds no others."""

MOST_CRASHES = 3
"""Workers that may break, other than by being killed, before the search stops."""

OBJECTIVES = (["accuracy"], ["accuracy", "parameters"])
"""What a search may be about."""

NEVER_TRAINED = float("-inf")
"""The accuracy of a network over the budget for a sampler that learns from completed trials only."""

FREE = ("data.root", "pictures", "report", "dry_run", "resume")
"""Keys that may differ between the continuations of a study, since no result depends on them."""


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
    def grid(self) -> int | None:
        """How many settings a grid has; None where the sampler is no grid."""
        built = sampler(self)
        return len(built._all_grids) if isinstance(built, GridSampler) else None

    @property
    def two(self) -> bool:
        """Whether parameters are an objective beside the accuracy, so that the result is a front."""
        return len(self.settings.objectives) == 2

    @property
    def folder(self) -> Path:
        """Where the study and its trials are."""
        return Path(self.config.hydra.sweep.dir)


def sweep(config: DictConfig, context: HydraContext, launcher: Launcher, arguments: list[str]) -> None:
    """Search, or continue a search, as the command line says. Raises ValueError for what cannot work."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = Search(config, context, launcher, *space(config.hydra.sweeper, arguments))
    try:
        if crew.UNTIL in os.environ:
            work(search, float(os.environ[crew.UNTIL]))
        else:
            check(search)
            try:
                watch(search)
            except ValueError:
                end(search)  # what stopped it wants to be looked at too
                raise
            end(search)
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"hydra.sweeper.storage={trials.shown(trials.address(search.hydra))} failed ({cause}): "
            "the same command line continues the search"
        ) from error


def end(search: Search) -> None:
    """Write the report of what was found, unless `report=false` or no trial has ended."""
    if search.config.report and (search.folder / "trials.csv").exists():
        from bantam.report import page as report  # draws with packages that no worker needs

        report.at_end(search.folder)


def space(settings: DictConfig, arguments: list[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
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


def compose(search: Search, settings: dict[str, Any]) -> tuple[DictConfig, setup.RunInfo]:
    """Compose a trial's configuration as its job will; also returns what its options are called.

    Raises ValueError where it cannot be composed.
    """
    overrides = [*search.fixed, *(f"{key}={value}" for key, value in settings.items())]
    try:
        cfg = search.context.config_loader.load_sweep_config(search.config, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(" ".join(f"{error} {error.__cause__ or ''}".split())) from error
    with read_write(cfg), open_dict(cfg):
        hydra = cfg.pop("hydra")
    return cfg, setup.RunInfo(search.folder, dict(hydra.runtime.choices), search.settings.n_jobs or -1, None)


def check(search: Search) -> None:
    """Raise ValueError for whatever can be known to fail before the first trial."""
    settings = search.settings
    ranges.validate_ranges(settings, "hydra.sweeper")
    if str(getattr(settings.direction, "name", settings.direction)) != "maximize":
        raise ValueError("hydra.sweeper.direction must be maximize: the objective is an accuracy")
    if list(settings.objectives) not in OBJECTIVES:
        raise ValueError(
            f"hydra.sweeper.objectives is {_objectives(search)}: it must be [accuracy] or [accuracy,parameters]"
        )
    if settings.custom_search_space is not None:
        raise ValueError("hydra.sweeper.custom_search_space is not supported: use hydra.sweeper.params")
    if not search.space:
        raise ValueError(
            "there is nothing to search: give a range, as in 'optimizer.lr=interval(0.01,0.1)', "
            "or hparams_search=optuna"
        )
    sub = OmegaConf.to_container(search.hydra.sweep, resolve=False)
    if not isinstance(sub, dict) or sub["subdir"] != "${hydra.job.num}":
        raise ValueError("hydra.sweep.subdir must be ${hydra.job.num}: a trial's folder is its number")
    plain, place = compose(search, {})
    for key, values in search.space.items():
        _check_key(key, values, plain, place)
    for key in ("dry_run", "resume"):
        if plain[key]:
            raise ValueError(f"{key} is about one run: leave -m out")
    if not plain.data.validation:
        raise ValueError(
            "data.validation is 0: a search chooses by images that are held out of training, "
            "so give it some, for example data.validation=5000"
        )
    low, place = compose(search, {key: _ends(values)[0] for key, values in search.space.items()})
    high, _ = compose(search, {key: _ends(values)[1] for key, values in search.space.items()})
    ranges.validate(low)
    ranges.validate(high)
    with suppress(budget.OverBudget):  # a matter of the trials: other settings may be within it
        setup.prepare(low, place)
    sampler(search)
    pruner = trials.pruner(search.hydra)
    if search.two and not isinstance(pruner, trials.Dominated | NopPruner):
        raise ValueError(
            f"hydra.sweeper.pruner is {type(pruner).__name__}, which knows one objective, and "
            "hydra.sweeper.objectives has two: use hydra/sweeper/pruner=dominated or none"
        )
    if search.two and settings.confirm.top:
        raise ValueError(
            f"hydra.sweeper.confirm.top is {settings.confirm.top}, but with two objectives no trial is the best: "
            "leave it at 0, and choose from the front with confirm.py --trials"
        )
    for entry in settings.enqueue:
        for key in entry:
            if key not in search.space and OmegaConf.select(plain, str(key)) is None:
                raise ValueError(f"hydra.sweeper.enqueue sets {key!s}, which is no key of the configuration")


def _check_key(key: str, values: BaseDistribution, plain: DictConfig, place: setup.RunInfo) -> None:
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
    if group in place.choices and name:
        raise ValueError(
            f"{group}={place.choices[group]} has no {name}, which hydra.sweeper.params searches: leave {group} as "
            "it is, or name your own space, as in python train.py -m hydra/sweeper=bantam "
            f"hydra.sweep.dir=multirun/mine {group}={place.choices[group]} 'optimizer.lr=interval(0.01,0.1)'"
        )
    raise ValueError(f"{key} is searched, but is no key of the configuration")


def _ends(values: BaseDistribution) -> tuple[Any, Any]:
    """The first and the last value of a distribution."""
    if isinstance(values, CategoricalDistribution):
        return values.choices[0], values.choices[-1]
    assert isinstance(values, FloatDistribution | IntDistribution)
    return values.low, values.high


def sampler(search: Search) -> BaseSampler:
    """Build the sampler. Raises ValueError where Optuna refuses its settings."""
    conf = search.settings.sampler
    whitelist = ("optuna.samplers.*", "hydra_plugins.hydra_optuna_sweeper.*")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            built = instantiate(conf, _execution_whitelist_=whitelist)
            if isinstance(built, partial):  # GridSampler, which wants its grid first
                built = built(
                    {key: OptunaSweeperImpl._to_grid_sampler_choices(v) for key, v in search.space.items()}
                )
    except Exception as error:  # Hydra wraps whatever the constructor raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"hydra.sweeper.sampler cannot be built: {reason}") from error
    assert isinstance(built, BaseSampler)
    return built


class SeededByTrial(BaseSampler):
    """Gives every trial its own random numbers, which follow from the sampler's seed and its number.

    Workers with one seed would all try the same settings, and a continued study its first ones again.
    """

    def __init__(self, search: Search) -> None:
        self.search, self.sampler = search, sampler(search)

    def reseed_rng(self) -> None:
        """Leave the seed alone: every trial has its own."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        conf = self.search.settings.sampler
        with read_write(conf):
            first, conf.seed = conf.seed, conf.seed + trial.number
            self.sampler = sampler(self.search)
            conf.seed = first
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


def open_study(search: Search) -> Study:
    """Load the study, or create it with the known settings first in its queue.

    Raises ValueError where it was begun with another space, objective or fixed override.
    """
    storage, name = trials.open_storage(search.hydra), search.settings.study_name
    plain = sampler(search)
    seeded = search.settings.sampler.get("seed") is not None and not isinstance(plain, GridSampler | QMCSampler)
    load = partial(
        optuna.load_study,
        study_name=name,
        storage=storage,
        sampler=SeededByTrial(search) if seeded else plain,
        pruner=trials.pruner(search.hydra),
    )
    if crew.UNTIL in os.environ:
        return load()
    try:
        # Creating fails for all but one of the processes that start together: that one fills the queue.
        directions = [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if search.two else [])]
        created = optuna.create_study(study_name=name, storage=storage, directions=directions)
        _begin(search, created, storage)
    except DuplicatedStudyError:
        pass
    study = load()
    _check_same(search, study)
    return study


def _begin(search: Search, study: Study, storage: RDBStorage) -> None:
    """Note what a new study is about, and queue the known settings that lie in its space."""
    used = sorted(path.name for path in search.folder.glob("[0-9]*") if (path / ".hydra").is_dir())
    if used:
        optuna.delete_study(study_name=study.study_name, storage=storage)
        raise ValueError(
            f"{search.folder} holds trials of a study that {trials.shown(trials.address(search.hydra))} does not "
            "know: restore hydra.sweeper.storage, or begin another study with hydra.sweeper.study_name=…"
        )
    study.set_user_attr("definition", _definition(search))
    for entry in search.settings.enqueue:
        settings = {str(key): value for key, value in entry.items() if key in search.space}
        if settings and all(_inside(value, search.space[key]) for key, value in settings.items()):
            study.enqueue_trial(settings, skip_if_exists=True)


def _inside(value: Any, values: BaseDistribution) -> bool:
    if isinstance(values, CategoricalDistribution):
        return value in values.choices
    assert isinstance(values, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and values.low <= value <= values.high


def _definition(search: Search) -> dict[str, str]:
    """What a study's results are about: key by key a range, or the value that every trial has."""
    cfg, _ = compose(search, {key: _ends(values)[0] for key, values in search.space.items()})
    given = dict(flat(OmegaConf.to_container(cfg, resolve=False)))
    free = (*search.space, *FREE)
    return {
        "hydra.sweeper.objectives": _objectives(search),
        **{key: _range(values) for key, values in search.space.items()},
        **{k: str(v) for k, v in given.items() if not any(f"{k}.".startswith(f"{key}.") for key in free)},
    }


def _objectives(search: Search) -> str:
    return f"[{','.join(map(str, search.settings.objectives))}]"


def _range(values: BaseDistribution) -> str:
    if isinstance(values, CategoricalDistribution):
        return ",".join(map(str, values.choices))
    assert isinstance(values, FloatDistribution | IntDistribution)
    step = f" in steps of {values.step:g}" if values.step not in (None, 1) else ""
    return f"{values.low:g} to {values.high:g}{step}{' (log)' * values.log}"


def _check_same(search: Search, study: Study) -> None:
    """Raise ValueError where a study was begun with something else than is asked for now."""
    name = study.study_name
    for _ in range(100):  # the process that creates it may be about to say what it is about
        before = study.user_attrs.get("definition")
        if before is not None:
            break
        time.sleep(0.1)
    else:
        raise ValueError(f"the study {name} was not begun by Bantam: choose another hydra.sweeper.study_name")
    now = _definition(search)
    for key in {**before, **now}:
        old, new = before.get(key, "not set"), now.get(key, "not set")
        if old != new:
            raise ValueError(
                f"{key} is {new} here, but {old} in the study {name} ({search.folder}): a study is continued as "
                f"it was begun; restore {key}, or begin another one with hydra.sweeper.study_name=…"
            )


def wanted(search: Search, counts: Counter[str]) -> int:
    """How many trainings the search is to finish: `n_trials`, or what a grid has within the budget."""
    n_trials: int = search.settings.n_trials
    return n_trials if search.grid is None else min(n_trials, search.grid - counts["over budget"])


def missing(search: Search, counts: Counter[str]) -> int:
    """How many trials have still to be begun."""
    return wanted(search, counts) - sum(counts[state] for state in trials.FINISHED) - counts["running"]


def stuck(search: Search, listed: Sequence[FrozenTrial]) -> str:
    """Why going on is pointless, in one sentence; empty where it is not."""
    words = trials.states(listed)
    failures = [trial for trial, word in zip(listed, words, strict=True) if word == "failed"]
    rate, n_trials = search.settings.max_failure_rate, search.settings.n_trials
    if len(failures) > rate * n_trials:
        first = failures[0]
        return (
            f"{len(failures)} trials failed, more than hydra.sweeper.max_failure_rate={rate:g} of {n_trials} "
            f"allows; the first, {first.number}: {trials.reason(first, 'failed')}"
        )
    ended = [(t, word) for t, word in zip(listed, words, strict=True) if word in ("over budget", *trials.FINISHED)]
    last = [trial for trial, word in ended[-MOST_OVER_BUDGET:] if word == "over budget"]
    if len(last) == MOST_OVER_BUDGET:
        smallest = min(trial.user_attrs["parameters"] for trial in last)
        return (
            f"{MOST_OVER_BUDGET} networks in a row were over the budget, the smallest with {smallest:,} "
            "parameters: search smaller ones, or raise budget.parameters"
        )
    return ""


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
        keep_best_weights(search, study)
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
        outcome = record.read_result(search.folder / str(trial.number))
        trial.set_user_attr("given up", outcome["verdict"] == "pruned")
        if outcome["verdict"] == "pruned":
            trial.set_user_attr("reason", outcome["reason"])
            if search.two:
                # TPE cannot read pruned trials beside two objectives: it learns from the last accuracy.
                return told(record.read_history(search.folder / str(trial.number))[-1].accuracy)
            raise TrialPruned
        if outcome.get("objective") is None:
            trial.set_user_attr("reason", f"{outcome['verdict']}: {outcome['reason']}")
            return told(math.nan)
        return told(float(outcome["objective"]))
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


def result(search: Search, listed: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that a search is for: its best, or with two objectives the front, by parameters."""
    if search.two:
        return trials.front(listed)
    best = trials.best(listed)
    return [] if best is None else [best]


def keep_best_weights(search: Search, study: Study) -> None:
    """Delete the weights and checkpoints of all trials that have ended, except those of the result."""
    listed = study.get_trials(deepcopy=False)
    kept = [trial.number for trial in result(search, listed)]
    for trial in listed:
        if trial.state.is_finished() and trial.number not in kept:
            for name in (record.WEIGHTS, record.CHECKPOINT):
                (search.folder / str(trial.number) / name).unlink(missing_ok=True)


def watch(search: Search) -> None:
    """Start workers, show what they do, replace those that die, and sum up. Raises ValueError if stuck."""
    search.folder.mkdir(parents=True, exist_ok=True)
    study = open_study(search)
    workers: dict[int, BaseProcess] = {}
    console = Console(highlight=False)
    for number in crew.SIGNALS:
        signal.signal(number, signal.default_int_handler)
    started = time.time()
    told = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    counts = trials.count(study.get_trials(deepcopy=False))
    if missing(search, counts) <= 0 and not counts["running"]:
        console.print(
            f"The study {study.study_name} has its {search.settings.n_trials} trials: "
            "raise hydra.sweeper.n_trials to go on, or begin another one with hydra.sweeper.study_name=…"
        )
        finish(search, study, console)
        return
    try:
        with Live(console=console, transient=True, refresh_per_second=2) as live:
            for listed in _looks(search, study, workers, started):
                before = len(told)
                _tell(listed, told, console)
                if len(told) > before:
                    trials.write(search.folder, listed)  # for whoever looks before the end
                live.update(_status(search, listed, started))
    except KeyboardInterrupt:
        crew.dismiss(workers.values())
        _tell(study.get_trials(deepcopy=False), told, console)
        trials.write(search.folder, study.get_trials(deepcopy=False))
        console.print("Interrupted. The same command line continues the search.")
        raise SystemExit(130) from None
    except BaseException:
        crew.dismiss(workers.values())
        with suppress(SQLAlchemyError, StorageInternalError):
            trials.write(search.folder, study.get_trials(deepcopy=False))
        raise
    finish(search, study, console)


def _looks(
    search: Search, study: Study, workers: dict[int, BaseProcess], started: float
) -> Iterator[list[FrozenTrial]]:
    """Keep the workers at work and yield the trials every half second, until the search is done."""
    until = started + (search.settings.timeout or math.inf)
    silence = trials.SILENT * search.settings.heartbeat
    idle_since = math.inf
    crashes = 0
    while True:
        trials.put_back_dead(study, silence)
        listed = study.get_trials(deepcopy=False)
        counts = trials.count(listed)
        yield listed
        for slot, worker in list(workers.items()):
            code = worker.exitcode
            if code is not None:
                del workers[slot]
                crashes += code > 0
                if crashes > MOST_CRASHES:
                    log = _log(search, slot)
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise ValueError(f"workers keep breaking: {''.join(last)} ({log})")
        reason = stuck(search, listed)
        if reason:
            raise ValueError(reason)
        unfinished = missing(search, counts) + counts["running"]
        late = time.time() > until
        if missing(search, counts) > 0 and not late:
            for slot in range(min(_workers(search), unfinished)):
                if slot not in workers:
                    workers[slot] = crew.hire(_log(search, slot), until)
        elif not workers:
            idle_since = min(idle_since, time.time())
            # Others may still be at work on this study; whoever is silent is dead, and its trial told so.
            if counts["running"] == 0 or (late and time.time() > idle_since + silence):
                return
        time.sleep(0.5)


def _log(search: Search, slot: int) -> Path:
    """What a worker prints."""
    return search.folder / f"worker-{slot}.log"


def _workers(search: Search) -> int:
    """How many processes train side by side."""
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return int(search.settings.n_jobs or (cpu_count() if cpu else 1))


def _tell(listed: Sequence[FrozenTrial], told: set[int], console: Console) -> None:
    """Print a line for every trial that has ended since the last look."""
    for trial, state in zip(listed, trials.states(listed), strict=True):
        if not trial.state.is_finished() or trial.number in told or state == "surplus":
            continue
        told.add(trial.number)
        value = trials.objective(trial, state)
        colour = {"complete": "green", "failed": "red"}.get(state, "yellow")
        what = f"{value:.2f} %" if value is not None else trials.reason(trial, state)
        line = f"[bold]trial {trial.number:>3}[/] [{colour}]{state:<11}[/] {escape(what)}"
        console.print(f"{line}   {escape(_settings(trial))}", soft_wrap=True)


def _settings(trial: FrozenTrial) -> str:
    """A trial's settings as one would type them."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in trial.params.items()
    )


def _status(search: Search, listed: Sequence[FrozenTrial], started: float) -> Group:
    """What is going on: the running trials, the best one, the counts, and the time left."""
    counts = trials.count(listed)
    running = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("running", "settings", "epoch", "accuracy"):
        running.add_column(column)
    for trial in listed:
        if trial.state == TrialState.RUNNING:
            last = trial.last_step
            shown = ("", "") if last is None else (str(last), f"{trial.intermediate_values[last]:.2f} %")
            running.add_row(f"trial {trial.number}", escape(_settings(trial)), *shown)
    done = sum(counts[state] for state in trials.FINISHED)
    goal = wanted(search, counts)
    took = [
        trials.seconds(trial) or 0.0
        for trial, state in zip(listed, trials.states(listed), strict=True)
        if state in trials.FINISHED
    ]
    left = (goal - done) * sum(took) / len(took) / _workers(search) if took else None
    line = [
        f"{done} of {goal} trials",
        *(f"{counts[state]} {state}" for state in ("pruned", "over budget", "failed")),
        _best(search, listed),
        f"{time.time() - started:,.0f} s" + ("" if left is None else f", about {left:,.0f} s left"),
    ]
    return Group(running, "  ".join(line))


def _best(search: Search, listed: Sequence[FrozenTrial]) -> str:
    """The result so far in a few words."""
    found = result(search, listed)
    if not found:
        return "no best yet"
    if not search.two:
        return f"best {found[0].values[0]:.2f} % (trial {found[0].number})"
    ends = dict.fromkeys(f"{t.user_attrs['parameters']:,} with {t.values[0]:.2f} %" for t in (found[0], found[-1]))
    return f"front of {len(found)}: {' … '.join(ends)}"


def _entry(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    """A trial of the result in `summary.json`."""
    return {
        "number": trial.number,
        "objective": trial.values[0],
        "parameters": trial.user_attrs.get("parameters"),
        "settings": trial.params,
        "folder": str(search.folder / str(trial.number)),
    }


def finish(search: Search, study: Study, console: Console) -> None:
    """Write `trials.csv`, `summary.json` and an experiment for each trial of the result; print how to run them."""
    keep_best_weights(search, study)
    listed = study.get_trials(deepcopy=False)
    trials.write(search.folder, listed)
    found, counts = result(search, listed), trials.count(listed)
    summary: dict[str, Any] = {
        "study": study.study_name,
        "began": min((t.datetime_start for t in listed if t.datetime_start), default=None),
        "ended": max((t.datetime_complete for t in listed if t.datetime_complete), default=None),
        "training_seconds": sum(trials.seconds(trial) or 0.0 for trial in listed),
        "trials": {state: counts[state] for state in (*trials.FINISHED, "over budget", "stopped")},
    }
    if search.two:
        summary["front"] = [_entry(search, trial) for trial in found]
    else:
        summary["best"] = _entry(search, found[0]) if found else None
    record.write(search.folder / "summary.json", (json.dumps(summary, indent=2, default=str) + "\n").encode())
    counted = ", ".join(f"{counts[state]} {state}" for state in (*trials.FINISHED, "over budget"))
    console.print(f"\n{study.study_name}: {counted}. {escape(str(search.folder))}/trials.csv", soft_wrap=True)
    if not found:
        raise ValueError(f"no trial of the study {study.study_name} was trained to its end: see trials.csv")
    experiments = search.folder / "experiment"
    names = {trial.number: f"trial_{trial.number}" if search.two else "best" for trial in found}
    for old in experiments.glob("trial_*.yaml"):
        if old.stem not in names.values():  # it was on the front of a shorter search
            old.unlink()
    for number, name in names.items():
        confirm.write_experiment(experiments / f"{name}.yaml", confirm.experiment(search.folder / str(number)))
    if search.two:
        console.print("The front, each network with the line that runs it:")
    for trial in found:
        console.print(
            f"{'Trial' if search.two else 'Best: trial'} {trial.number}, {trial.values[0]:.3f} % of the "
            f"validation images in the last epochs, {trial.user_attrs.get('parameters', 0):,} parameters: "
            f"{escape(_settings(trial))}",
            *(() if search.two else ("Run it with:",)),
            f"python {sys.argv[0]} --config-dir {escape(str(search.folder))} experiment={names[trial.number]}",
            sep="\n",
            soft_wrap=True,
        )
    if search.settings.confirm.top:
        top, seeds = search.settings.confirm.top, search.settings.confirm.seeds
        confirm.confirm(search.folder, top, seeds, Path(sys.argv[0]))
