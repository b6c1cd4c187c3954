"""Hydra's side of a search: its typed configuration, `hydra.sweeper.*`, and the plugin that starts it.

Optuna and torch are imported only when a search begins.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper.config import Direction, OptunaSweeperConf, TPESamplerConfig
from omegaconf import II, MISSING, DictConfig, OmegaConf, open_dict, read_write

from bantam import errors, launch
from bantam.overrides import override
from bantam.ranges import ranged
from bantam.search import composition, processes


@dataclass
class MultivariateTPE(TPESamplerConfig):
    """TPE that models keys jointly and keeps away from what other workers are trying."""

    multivariate: bool = True
    group: bool = True
    """Keys that only some trials have are modelled among the trials that have them."""
    constant_liar: bool = True


@dataclass
class Pruner:
    """Decides after an epoch whether a trial is pruned; `_target_` is one of Optuna's or `dominated`."""

    _target_: str = MISSING


@dataclass
class NoPruner(Pruner):
    """Prunes nothing."""

    _target_: str = "optuna.pruners.NopPruner"


@dataclass
class MedianPruner(Pruner):
    """Prunes a trial whose best accuracy so far is below the median of the others at the same epoch."""

    _target_: str = "optuna.pruners.MedianPruner"
    n_startup_trials: int = ranged(5, least=0)
    """Trials that are completed before any is pruned."""
    n_warmup_steps: int = ranged(5, least=0)
    """Epochs that every trial gets."""
    interval_steps: int = ranged(1, least=1)
    """Epochs between two decisions."""
    n_min_trials: int = ranged(1, least=1)
    """Trials that must have reached an epoch before others are pruned there."""


@dataclass
class SuccessiveHalvingPruner(Pruner):
    """Prunes, at every rung, all trials but the best, each rung longer; between rungs, what is far behind."""

    _target_: str = "bantam.search.pruners.SuccessiveHalving"
    far_behind: float | None = ranged(1.5, least=1)
    """Prunes where the error is more than this many times that of every completed trial after as many epochs, of
    two at least; past the first rung, that of the best one."""
    min_resource: int = ranged(5, least=1)
    """Epochs of the first rung: before its first step down a high learning rate looks worse than it ends."""
    reduction_factor: int = ranged(2, least=2)
    """One in this many trials passes a rung, and the next rung is at this many times its epochs."""
    min_early_stopping_rate: int = ranged(0, least=0)
    """Rungs at the beginning that are left out."""
    bootstrap_count: int = ranged(0, least=0)
    """Trials that must have reached a rung before others are pruned there."""


@dataclass
class HyperbandPruner(Pruner):
    """Successive halving with several groups of trials, each with another first rung."""

    _target_: str = "optuna.pruners.HyperbandPruner"
    min_resource: int = ranged(3, least=1)
    """Epochs of the shortest bracket's first rung."""
    max_resource: int = II("epochs")
    """Epochs of a whole training."""
    reduction_factor: int = ranged(2, least=2)
    """As in successive_halving."""
    bootstrap_count: int = ranged(0, least=0)
    """As in successive_halving."""


@dataclass
class DominatedPruner(Pruner):
    """Prunes a trial where smaller networks were better at the same epoch; for two objectives, or for one."""

    _target_: str = "bantam.search.pruners.Dominated"
    n_warmup_steps: int = ranged(10, least=0)
    """Epochs that every trial gets: while the learning rate is high, some smaller networks are ahead by luck."""
    n_min_trials: int = ranged(3, least=1)
    """A trial is pruned where this many trials of networks that cost no more were better at the same epoch."""


@dataclass
class Confirm:
    top: int = ranged(0, least=0)
    """How many of the best trials are trained again when the search ends; 0 for none."""
    seeds: int = ranged(5, least=2)
    """Fresh seeds for each of them."""


@dataclass
class SearchConf(OptunaSweeperConf):
    """The keys of hydra-optuna-sweeper, and those that it lacks."""

    _target_: str = launch.SWEEPER
    defaults: list[Any] = field(
        default_factory=lambda: [{"sampler": "multivariate_tpe"}, {"pruner": "successive_halving"}]
    )
    direction: Any = Direction.maximize
    """Only maximize, since the objective is an accuracy; costs are minimized."""
    objectives: list[str] = field(default_factory=lambda: ["accuracy"])
    """[accuracy], or [accuracy, parameters] or another cost of `budget`: then the result is the Pareto front."""
    seeds: int = ranged(1, least=1)
    """How many seeds are trained for a trial: `seed` and those that follow it. The objective is their mean."""
    aggregate: Literal["mean", "lower"] = "mean"
    """What makes one objective of several seeds; lower: their mean less one standard error of it."""
    study_name: str = "search"
    """Its name in the storage; with hparams_search also its folder, multirun/<study_name>."""
    storage: str | None = None
    """Address of a database, or journal:// and a file on a shared folder; null: SQLite in the study's folder."""
    n_trials: int = ranged(30, least=1)
    """Trials to finish, all continuations together; networks over the budget do not count."""
    n_jobs: int | None = ranged(None, least=1)  # type: ignore[assignment]
    """Worker processes; null: one a core on a CPU, else one."""
    max_failure_rate: float = ranged(0.3, least=0, most=1)
    """The search stops when more than this fraction of n_trials has failed."""
    timeout: float | None = ranged(None, above=0)
    """Seconds after which no trial is started."""
    heartbeat: int = ranged(15, least=1)
    """Seconds between two heartbeats of a trial; one that misses four is run again."""
    spaces: list[dict[str, Any]] = field(default_factory=list)
    """More of the space: params with `when`, the options or values that a trial must have for them."""
    pruner: Pruner = MISSING
    """What stops a bad trial early; the options are below."""
    enqueue: list[dict[str, Any]] = field(default_factory=list)
    """Known settings to try first; keys that the search does not vary are left out."""
    confirm: Confirm = field(default_factory=Confirm)


@functools.cache
def register() -> None:
    """Make `hydra/sweeper=bantam` known to Hydra, once a process, with its pruners and its sampler."""
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="bantam", node=SearchConf, replace=True)
    store.store(group="hydra/sweeper/sampler", name="multivariate_tpe", node=MultivariateTPE, replace=True)
    for name, node in {
        "none": NoPruner,
        "median": MedianPruner,
        "successive_halving": SuccessiveHalvingPruner,
        "hyperband": HyperbandPruner,
        "dominated": DominatedPruner,
    }.items():
        store.store(group="hydra/sweeper/pruner", name=name, node=node, replace=True)
    Plugins.instance().register(BantamSweeper)
    composition.register()


def reporter(hydra: DictConfig) -> Callable[[int, float], bool]:
    """For a job that is a trial of a search: takes an epoch and its accuracy in percent, says whether to prune."""
    from bantam.search import trials  # loads Optuna

    return trials.reporter(hydra)


def _resolve_once(config: DictConfig) -> None:
    """Make folder, name and storage what they are now, for this process, workers and jobs: a clock goes on."""
    with read_write(config.hydra), open_dict(config.hydra):
        for key in ("hydra.sweeper.study_name", "hydra.sweeper.storage", "hydra.sweep.dir"):
            node, _, name = key.rpartition(".")
            parent = OmegaConf.select(config, node)
            if OmegaConf.is_interpolation(parent, name):
                parent[name] = parent[name]
                config.hydra.overrides.hydra.append(override(key, parent[name]))


class BantamSweeper(Sweeper):
    """Searches with Optuna, one launched job a trial; `hydra/sweeper=bantam`."""

    def __init__(self, **settings: Any) -> None:
        """Take the keys of `SearchConf`, which `setup` gets again with the rest of the configuration."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a search needs."""
        self.config = config
        _resolve_once(config)
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            config=self.config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search as the command line says; what goes wrong is one sentence."""
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        with errors.in_one_sentence(Path(self.config.hydra.sweep.dir)):
            processes.preload()
            with processes.imports():
                from bantam.search import watch
            watch.search(self.config, self.hydra_context, self.launcher, arguments)
