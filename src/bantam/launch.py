"""Where Hydra and Bantam meet: what is checked before a folder exists, and what a job does.

torch is imported only when a composed configuration has passed its own checks.
"""

import os
import traceback
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from bantam import ranges
from bantam.training import saved, terminal

if TYPE_CHECKING:
    from bantam.training.setup import Prepared

Reporter = Callable[[DictConfig], Callable[[int, float], bool]]
"""From Hydra's configuration of a trial to what takes an epoch and its accuracy, and says whether to prune."""

SWEEPER = "bantam.search.sweeper.BantamSweeper"
"""The `_target_` of our sweeper, which is imported where a command line is read, not in every job."""

FAILED = float("nan")
"""What a job returns that has no objective: refused, diverged or failed."""


def job(cfg: DictConfig, reporter: Reporter) -> float:
    """Train in the folder that Hydra made; returns the objective in percent, nan where there is none.

    A single run takes what `Preflight` has checked and built, and exits with 1 where there is no objective. In a
    multirun whatever goes wrong is recorded in the job's folder, and the other jobs go on; where the jobs are the
    trials of a search, `reporter` makes of Hydra's configuration what the trial reports its epochs to.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return _multirun_job(cfg, hydra, reporter)
    from bantam.training.run import run

    try:
        # Hydra's --experimental-rerun calls no callback.
        folder, choices = Path(hydra.runtime.output_dir), dict(hydra.runtime.choices)
        prepared = Preflight.prepared or _prepare_single(cfg, folder, choices)
        objective = run(prepared)
    except ValueError as error:
        terminal.show_error(error)
        raise SystemExit(1) from None
    if objective != objective:
        raise SystemExit(1)
    return objective


def _multirun_job(cfg: DictConfig, hydra: Any, reporter: Reporter) -> float:
    """Check, build and train one job of several."""
    from bantam.training.folder import refuse_used
    from bantam.training.run import fail, refuse, run
    from bantam.training.setup import RunInfo, prepare

    searching = hydra.sweeper._target_ == SWEEPER
    # What runs jobs side by side, launchers or a search, says how many: -1 stands for one a core.
    side_by_side = (hydra.sweeper.n_jobs or -1) if searching else int(hydra.launcher.get("n_jobs", 1))
    info = RunInfo(Path(hydra.runtime.output_dir), dict(hydra.runtime.choices), side_by_side, hydra.job.num)
    try:
        if cfg.resume is not None:
            raise ValueError("resume continues one run: leave -m out")
        refuse_used(info.folder)
        ranges.validate(cfg)
        prepared = prepare(cfg, info)
        if cfg.dry_run:
            terminal.describe(prepared)
            return FAILED
        return run(prepared, reporter(hydra)) if searching else run(prepared)
    except ValueError as error:
        refuse(error, info, cfg.get("seed"))
    except Exception as error:
        fail(error, traceback.format_exc(), info, cfg.get("seed"))
    return FAILED


class Preflight(Callback):
    """Checks and builds a single run before Hydra makes its folder, and sums a multirun up."""

    prepared: "Prepared | None" = None
    """What `job` trains: Hydra calls both in one process, one after the other."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse with one sentence and exit code 1, show a dry run, or continue an interrupted run."""
        cfg = deepcopy(config)
        with read_write(cfg), open_dict(cfg):
            hydra = cfg.pop("hydra")
        try:
            searches = hydra.runtime.choices.get("hparams_search")
            if searches not in (None, "null"):
                raise ValueError(f"hparams_search={searches} searches only with -m: python train.py -m …")
            ranges.validate(cfg)
            if cfg.resume is not None:
                raise SystemExit(_resume(cfg, hydra, kwargs["config_name"]))
            prepared = _prepare_single(cfg, Path(config.hydra.run.dir), dict(hydra.runtime.choices))
        except (ValueError, OmegaConfBaseException) as error:
            terminal.show_error(error)
            raise SystemExit(1) from None
        if cfg.dry_run:
            terminal.describe(prepared)
            raise SystemExit(0)
        Preflight.prepared = prepared

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder that cannot be written before any job starts."""
        try:
            _refuse_unwritable(Path(config.hydra.sweep.dir), "hydra.sweep.dir")
        except ValueError as error:
            terminal.show_error(error)
            raise SystemExit(1) from None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Show every job's verdict and write the report; exit code 1 where one was refused, diverged or failed."""
        if config.dry_run or not Path(config.hydra.sweep.dir).is_dir():
            return
        if config.hydra.sweeper._target_ == SWEEPER:  # it has its own summary
            return
        good = terminal.summarize(Path(config.hydra.sweep.dir))
        if config.report:
            from bantam.report import page

            page.at_end(Path(config.hydra.sweep.dir))
        if not good:
            raise SystemExit(1)


def _prepare_single(cfg: DictConfig, folder: Path, choices: dict[str, Any]) -> "Prepared":
    """Check that the folder can be had, and prepare a single run for it."""
    _refuse_unwritable(folder, "hydra.run.dir")
    from bantam.training.folder import refuse_used
    from bantam.training.setup import RunInfo, prepare

    refuse_used(folder)
    return prepare(cfg, RunInfo(folder.absolute(), choices, 1, None))


def _refuse_unwritable(folder: Path, key: str) -> None:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"{key}={folder} cannot be written ({existing} is no writable folder): choose another one"
        )


def changed(config_name: str, before: list[str], added: list[str]) -> tuple[DictConfig, list[str]]:
    """Compose a run's overrides together with added ones; returns the result and the keys that differ.

    Raises ValueError where they cannot be composed.
    """
    try:
        old, new = compose(config_name, before), compose(config_name, before + added)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return new, sorted(set(_differences(old, new)))


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, DictConfig) and isinstance(new, DictConfig):
        names = [*old, *(name for name in new if name not in old)]
        return [
            found
            for name in names
            for found in _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [key]


def _resume(cfg: DictConfig, hydra: DictConfig, config_name: str) -> int:
    """Continue the run in `cfg.resume` with its own settings; returns the exit code."""
    folder = Path(cfg.resume)
    own = saved.load(folder)
    given = [item for item in hydra.overrides.task if not item.startswith("resume=")]
    if given:
        new, keys = changed(config_name, own.overrides, given)
        contradictions = [key for key in keys if key != "dry_run"]
        if contradictions:
            key = contradictions[0]
            raise ValueError(
                f"{key} is {OmegaConf.select(new, key)} here, but the run in {folder} has "
                f"{OmegaConf.select(own.config, key)}: "
                f"a run is resumed with its own settings; leave {' '.join(given)} out"
            )
    from bantam.training.run import run
    from bantam.training.setup import RunInfo, prepare

    ranges.validate(own.config)
    prepared = prepare(own.config, RunInfo(folder, dict(own.choices), 1, None))
    if cfg.dry_run:
        terminal.describe(prepared)
        return 0
    objective = run(prepared)
    return 0 if objective == objective else 1
