"""Where Hydra and Bantam meet: what may be built, what is checked before a folder exists, what a job does.

torch is imported only when a composed configuration has passed its own checks.
"""

import os
import traceback
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from bantam import config as schema

SWEEPER = "bantam.search.sweeper.BantamSweeper"
"""The `_target_` of our sweeper, which is imported where a command line is read, not in every job."""

FAILED = float("nan")
"""What a job returns that has no objective: refused, diverged or failed."""


def job(cfg: DictConfig) -> float:
    """Train in the folder that Hydra made; returns the objective in percent, nan where there is none.

    In a multirun whatever goes wrong is recorded in the job's folder and the other jobs go on. A
    single run ends with exit code 1, and an error of ours with its traceback.
    """
    from bantam.training import run

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    single = hydra.mode == RunMode.RUN
    searching = not single and hydra.sweeper._target_ == SWEEPER
    # What runs jobs side by side, launchers or a search, says how many: -1 stands for one a core.
    side_by_side = (hydra.sweeper.n_jobs or -1) if searching else int(hydra.launcher.get("n_jobs", 1))
    side_by_side = 1 if single else side_by_side
    place = run.Place(folder, dict(hydra.runtime.choices), side_by_side, None if single else hydra.job.num)
    try:
        if not single:
            if cfg.resume is not None:
                raise ValueError("resume continues one run: leave -m out")
            _refuse_used(folder)
        prepared = run.prepare(cfg, place)
        if cfg.dry_run:
            run.describe(prepared, place)
            return FAILED
        if searching:
            from bantam.search import trials

            objective = run.run(prepared, place, trials.reporter(hydra))
        else:
            objective = run.run(prepared, place)
    except ValueError as error:
        if single:
            raise
        run.refuse(error, cfg, place)
        return FAILED
    except Exception as error:
        if single:
            raise
        run.fail(error, traceback.format_exc(), cfg, place)
        return FAILED
    if single and objective != objective:
        raise SystemExit(1)
    return objective


class Preflight(Callback):
    """Checks a single run before Hydra makes its folder, and sums a multirun up."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse with one sentence and exit code 1, show a dry run, or continue an interrupted run."""
        cfg = deepcopy(config)
        with read_write(cfg), open_dict(cfg):
            hydra = cfg.pop("hydra")
        try:
            searches = hydra.runtime.choices.get("hparams_search")
            if searches not in (None, "null"):
                raise ValueError(f"hparams_search={searches} searches only with -m: python train.py -m …")
            schema.validate(cfg)
            if cfg.resume is not None:
                code = _resume(cfg, hydra, kwargs["config_name"])
                raise SystemExit(code)
            folder = Path(config.hydra.run.dir)
            _refuse_used(folder)
            _refuse_unwritable(folder, "hydra.run.dir")
            from bantam.training import run

            place = run.Place(folder, dict(hydra.runtime.choices), 1, None)
            prepared = run.prepare(cfg, place)
        except (ValueError, OmegaConfBaseException) as error:
            show_error(error)
            raise SystemExit(1) from None
        if cfg.dry_run:
            run.describe(prepared, place)
            raise SystemExit(0)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder that cannot be written before any job starts."""
        try:
            _refuse_unwritable(Path(config.hydra.sweep.dir), "hydra.sweep.dir")
        except ValueError as error:
            show_error(error)
            raise SystemExit(1) from None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Show every job's verdict and write the report; exit code 1 where one was refused, diverged or failed."""
        if config.dry_run or not Path(config.hydra.sweep.dir).is_dir():
            return
        if config.hydra.sweeper._target_ == SWEEPER:  # it has its own summary
            return
        from bantam.training import run

        good = run.summarize(Path(config.hydra.sweep.dir))
        if config.report:
            from bantam.report import page as report

            report.at_end(Path(config.hydra.sweep.dir))
        if not good:
            raise SystemExit(1)


def show_error(error: Exception) -> None:
    """Print what is wrong in one sentence, above the layer table where the error carries one."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]Error:[/] {escape(str(error))}")
    if getattr(error, "rows", None):
        from bantam import budget

        Console(stderr=True, highlight=False).print("", budget.table(error.rows))  # type: ignore[attr-defined]


def _refuse_used(folder: Path) -> None:
    """A folder holds one run: another would overwrite it."""
    used = [name for name in ("result.json", "checkpoint.pt", "history.csv") if (folder / name).exists()]
    if used:
        raise ValueError(
            f"{folder} already holds a run ({used[0]}): continue it with resume={folder}, or choose another folder"
        )


def _refuse_unwritable(folder: Path, key: str) -> None:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"{key}={folder} cannot be written ({existing} is no writable folder): choose another one"
        )


def saved(folder: Path) -> tuple[DictConfig, list[str], Mapping[str, Any]]:
    """A run's own configuration, its overrides and its choices. Raises ValueError if it is no run."""
    try:
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        overrides = OmegaConf.load(folder / ".hydra" / "overrides.yaml")
        hydra = OmegaConf.load(folder / ".hydra" / "hydra.yaml")
        assert isinstance(config, DictConfig)
        return config, [str(item) for item in overrides], hydra.hydra.runtime.choices
    except Exception as error:  # whatever a damaged or foreign YAML file leads to
        reason = "it does not exist" if not folder.exists() else f"{type(error).__name__} in its .hydra folder"
        raise ValueError(f"{folder} is no run folder: {reason}") from error


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
    own, overrides, choices = saved(folder)
    given = [item for item in hydra.overrides.task if not item.startswith("resume=")]
    if given:
        new, keys = changed(config_name, overrides, given)
        contradictions = [key for key in keys if key != "dry_run"]
        if contradictions:
            key = contradictions[0]
            raise ValueError(
                f"{key} is {OmegaConf.select(new, key)} here, but the run in {folder} has "
                f"{OmegaConf.select(own, key)}: "
                f"a run is resumed with its own settings; leave {' '.join(given)} out"
            )
    from bantam.training import run

    place = run.Place(folder, dict(choices), 1, None)
    prepared = run.prepare(own, place)
    if cfg.dry_run:
        run.describe(prepared, place)
        return 0
    objective = run.run(prepared, place)
    return 0 if objective == objective else 1
