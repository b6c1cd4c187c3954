"""Where Hydra and Bantam meet: what is checked before a folder exists, and what a job does.

torch is imported only when a composed configuration has passed its own checks.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from bantam import cluster, errors, jobs, ranges, resolve, snapshot
from bantam.overrides import command_line, from_python, override, resuming
from bantam.own import code
from bantam.suggestions import several
from bantam.training import saved, terminal

if TYPE_CHECKING:
    from bantam.training.setup import Prepared

Reporter = Callable[[DictConfig], Callable[[int, float], bool]]
"""From Hydra's configuration of a trial to what takes an epoch and its accuracy, and says whether to prune."""

SWEEPER = "bantam.search.sweeper.BantamSweeper"
"""The `_target_` of our sweeper, which is imported where a command line is read, not in every job."""

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
"""The `_target_` of Hydra's own, which runs every combination of what is typed."""

FAILED = float("nan")
"""What a job returns that has no objective: refused, diverged or failed."""


def job(cfg: DictConfig, reporter: Reporter) -> float:
    """Train in the folder that Hydra made; returns the objective in percent, nan where there is none.

    A single run takes what `Preflight` has checked and built, and exits with 1 where there is no objective. In a
    multirun whatever goes wrong is recorded in the job's folder, and the other jobs go on; where the jobs are the
    trials of a search, `reporter` makes of Hydra's configuration what the trial reports its epochs to.
    """
    errors.fit_output()  # also in another process, as joblib starts them
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return _multirun_job(cfg, hydra, reporter)
    folder = Path(hydra.runtime.output_dir)
    with errors.in_one_sentence(folder):
        if cfg.get("resume") is not None and Preflight.prepared is None:
            raise ValueError(f"resume continues a run only as {resuming(cfg.resume)}")
        from bantam.training.run import run

        prepared = Preflight.prepared or _prepare_alone(cfg, folder, hydra)
        saved.save(folder, prepared.cfg, hydra)
        objective = run(prepared)
    if objective != objective:
        raise SystemExit(1)
    return objective


def _multirun_job(cfg: DictConfig, hydra: Any, reporter: Reporter) -> float:
    """Check, build and train one job of several, or go on with it; leave alone what is finished."""
    from bantam.training.build import NoImages
    from bantam.training.folder import NOT_TRAINED, RESULT, read_result
    from bantam.training.run import fail, refuse, run
    from bantam.training.setup import RunInfo, prepare

    searching = hydra.sweeper._target_ == SWEEPER
    # What runs jobs side by side, launchers or a search, says how many: -1 stands for one a core. Ray's jobs have
    # cores of their own.
    side_by_side = (hydra.sweeper.n_jobs or -1) if searching else int(hydra.launcher.get("n_jobs", 1))
    if cluster.is_used(hydra):
        side_by_side = 1
    info = RunInfo(
        folder=Path(hydra.runtime.output_dir),
        choices=dict(hydra.runtime.choices),
        side_by_side=side_by_side,
        job=hydra.job.num,
        typed_in=Path(hydra.runtime.cwd),
    )
    seed = cfg.get("seed")
    try:
        resolve.settle(cfg, Path(hydra.runtime.cwd))
        if cfg.resume is not None:
            raise ValueError("resume continues one run: leave -m out")
        ranges.validate(cfg)
        resolve.decide_data(cfg)
        saved.save(info.folder, cfg, hydra)  # over what Hydra has written, which is not resolved
        if os.path.lexists(info.folder / RESULT):
            result = read_result(info.folder)
            if searching or result["verdict"] not in NOT_TRAINED:
                terminal.show_skipped(info, result)
                return float(result.get("objective") or FAILED)
            (info.folder / RESULT).unlink()  # what was wrong may be mended now
        prepared = prepare(cfg, info)
        if cfg.dry_run:
            terminal.describe(prepared)
            return FAILED
        return run(prepared, reporter(hydra)) if searching else run(prepared)
    except Exception as error:
        errors.show_traceback()
        if searching and isinstance(error, NoImages):  # they were there when the search began
            raise
        if errors.is_meant_for_users(error):
            refuse(errors.in_our_words(error) or error, info, seed)
        else:
            fail(error, traceback.format_exc(), info, seed)
    return FAILED


def folder_of(config: DictConfig) -> Path:
    """Where a single run is to be, or is to go on."""
    return Path(config.get("resume") or config.hydra.run.dir)


def prepare_typed(config: DictConfig, folder: Path) -> "Prepared":
    """Check and build the single run that a composed configuration asks for; nothing is written.

    The configuration has Hydra's part too. With `resume` it is the interrupted run in the folder. Raises
    ValueError as `training.setup.prepare` does.
    """
    cfg = deepcopy(config)
    with read_write(cfg), open_dict(cfg):
        hydra = cfg.pop("hydra")
    searches = hydra.runtime.choices.get("hparams_search")
    if searches not in (None, "null"):
        if from_python.get() is not None:
            raise ValueError(f"hparams_search={searches} searches only with bantam.search(…)")
        raise ValueError(f"hparams_search={searches} searches only with -m: python train.py -m …")
    _refuse_several(hydra.overrides.task)
    resolve.settle(cfg, Path(hydra.runtime.cwd))
    ranges.validate(cfg)
    if cfg.dry_run:
        resolve.keep_nothing()
    return _prepare_resumed(cfg, hydra) if cfg.resume is not None else _prepare_single(cfg, folder, hydra)


class Preflight(Callback):
    """Checks and builds a single run before Hydra makes its folder, and sums a multirun up."""

    prepared: "Prepared | None" = None
    """What `job` trains: Hydra calls both in one process, one after the other."""

    subdirs: Sequence[str] = ()
    """The folders of the jobs of a multirun, within its own."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse with one sentence and exit code 1, show a dry run, or continue an interrupted run."""
        with errors.in_one_sentence():
            folder = folder_of(config)
        with errors.in_one_sentence(folder):
            prepared = prepare_typed(config, folder)
            if config.dry_run:
                terminal.describe(prepared)
                raise SystemExit(0)
            if config.resume is not None:
                from bantam.training.run import run

                objective = run(prepared)
                raise SystemExit(0 if objective == objective else 1)
            make(folder, "hydra.run.dir")
        Preflight.prepared = prepared

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder that cannot be written, or that holds other jobs, before any job starts."""
        with errors.in_one_sentence():
            folder = Path(config.hydra.sweep.dir)
        with errors.in_one_sentence(folder):
            _refuse_unwritable(folder, "hydra.sweep.dir")
            _refuse_several(config.hydra.overrides.task)
            os.environ[LAUNCHER] = str(os.getpid())
            snapshot.take(GlobalHydra.instance().config_loader())
            if config.hydra.sweeper._target_ == SWEEPER:  # it decides by itself, for all of its trials
                return
            if config.dry_run:
                resolve.keep_nothing()
            basic = config.hydra.sweeper._target_ == BASIC
            composed = list(jobs.composed(config, kwargs["config_name"])) if basic else []
            Preflight.subdirs = [hydra.sweep.subdir for _, hydra in composed]
            resolve.decide_for_jobs([cfg for cfg, _ in composed] or [config], Path(config.hydra.runtime.cwd))
            if basic and config.dry_run:
                raise SystemExit(jobs.show(config, composed))
            jobs.check(config, composed if basic else None)
            make(folder, "hydra.sweep.dir")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Show every job's verdict and write the report; exit code 1 where one was refused, diverged or failed."""
        folder = Path(config.hydra.sweep.dir)
        if config.dry_run or not folder.is_dir():
            return
        if config.hydra.sweeper._target_ == SWEEPER:  # it has its own summary
            return
        ending = sys.exception()
        code = errors.stopped_by(ending)
        if isinstance(ending, SystemExit) and code is None:
            return
        if ending is not None:  # Hydra calls this however a multirun ends
            terminal.summarize(folder)
        if code is not None:
            terminal.show_stopped(_again(config))
            raise SystemExit(code)
        if isinstance(ending, OSError):  # Hydra could not write the folder of a job: it would show a traceback
            with errors.in_one_sentence(folder):
                raise ending
        if isinstance(ending, cluster.NoCluster | cluster.JobDied):
            terminal.show_error(ending)
            terminal.show_stopped(_again(config))
            raise SystemExit(1)
        if ending is not None:  # a fault of the launcher, or ours: Hydra shows it
            return
        with errors.in_one_sentence(folder):
            good = terminal.summarize(folder, Preflight.subdirs)
            resolve.pin(config, Path(config.hydra.runtime.cwd))
            if config.tracker:  # of the jobs that were refused they do not know yet
                from bantam import tracking
                from bantam.training.build import build_trackers

                tracking.send([folder], build_trackers(config), saved.tracker_overrides(config))
            if config.report:
                from bantam.report import page

                good &= page.at_end(folder)
        if not good:
            raise SystemExit(1)


def _again(config: DictConfig) -> str:
    """The command line that continues a multirun: the one that was typed, in the same folder."""
    key = "hydra.sweep.dir"
    words = [word for word in sys.argv[1:] if not word.startswith(f"{key}=")]
    return command_line(["python", sys.argv[0], *words, override(key, config.hydra.sweep.dir)])


def _prepare_alone(cfg: DictConfig, folder: Path, hydra: Any) -> "Prepared":
    """Check and prepare a single run for which `Preflight` was not called, as hydra.callbacks lacks it."""
    resolve.settle(cfg, Path(hydra.runtime.cwd))
    ranges.validate(cfg)
    return _prepare_single(cfg, folder, hydra)


def _prepare_single(cfg: DictConfig, folder: Path, hydra: Any) -> "Prepared":
    """Check that the folder can be had, and prepare a single run for it, whose configuration is checked."""
    _refuse_unwritable(folder, "hydra.run.dir")
    from bantam.training.folder import refuse_used
    from bantam.training.setup import RunInfo, prepare

    refuse_used(folder)
    resolve.decide_data(cfg)
    return prepare(cfg, RunInfo(folder.absolute(), dict(hydra.runtime.choices), 1, None, Path(hydra.runtime.cwd)))


def _refuse_several(typed: Sequence[str]) -> None:
    """Raise ValueError for several options of a group that is one thing: Hydra would mix their keys."""
    for line in typed:
        if error := several(line):
            raise error


def _refuse_unwritable(folder: Path, key: str) -> None:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"{key}={folder} cannot be written ({existing} is no writable folder): choose another one"
        )


def make(folder: Path, key: str) -> None:
    """Make the folder, with room for what Hydra writes there before anything of ours can say what is wrong."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        raise ValueError(f"{key}={folder} cannot be written ({error.strerror}): choose another one") from error


ROOM = 2**16
"""Bytes: more than the configuration of a run."""


def _prepare_resumed(cfg: DictConfig, hydra: DictConfig) -> "Prepared":
    """Prepare the run in `cfg.resume` to go on with its own settings."""
    folder = Path(cfg.resume)
    own = saved.load(folder)
    checked = own.checked
    given = [item for item in hydra.overrides.task if not item.startswith("resume=")]
    new, keys = saved.merged(own, given)
    ignored = ("dry_run", "tracker", code.FILE)  # what a file contains counts, not how its path is typed
    contradictions = [key for key in keys if not {key, key.partition(".")[0]} & {*ignored}]
    if contradictions:
        key, old, now = saved.in_words(own, new, saved.chosen(own, given), contradictions[0])
        if key == code.CHECKSUM:
            raise ValueError(
                f"{code.shown(new.model._file_, new.model._sha256_)} has changed since the run in {folder} was "
                f"begun, which is resumed with its own network, {folder / code.COPY}: leave {command_line(given)} "
                "out"
            )
        raise ValueError(
            f"{key} is {now} here, but the run in {folder} has {old}: "
            f"a run is resumed with its own settings; leave {command_line(given)} out"
        )
    if any(item.startswith("tracker") for item in given):
        checked.tracker = saved.typed(new).tracker
        resolve.pin(checked, Path(hydra.runtime.cwd))
        saved.save(folder, checked)
    from bantam.training.setup import RunInfo, prepare_resumed

    return prepare_resumed(checked, RunInfo(folder, dict(own.choices), 1, None))


def compose(overrides: Sequence[str], config_dir: Path | None, mode: RunMode) -> DictConfig:
    """The configuration that a command line of train.py composes, Hydra's included, from code and in any process.

    `config_dir` is as --config-dir. Raises ValueError and what Hydra raises.
    """
    folders = [resolve.project() / "conf", *([config_dir.absolute()] if config_dir else [])]
    if not folders[-1].is_dir():
        raise ValueError(
            f"config_dir={config_dir} is no folder: give one with options, such as {config_dir}/model/mine.yaml"
        )
    with initialize_config_search_path([f"file://{folder}" for folder in folders], job_name="train"):
        hydra: Any = GlobalHydra.instance().hydra
        composed: DictConfig = hydra.compose_config("config", list(overrides), mode, from_shell=False)
        return composed


LAUNCHER = "BANTAM_LAUNCHER"
"""The variable with the number of the process that launches jobs."""


def _end_with_launcher() -> None:
    """In a process of joblib, end when the one that launched it was killed: joblib's own go on for minutes."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or not multiprocessing.current_process().name.startswith("LokyProcess"):
        return
    errors.when_parent_is_gone(int(launcher), lambda: os._exit(1))


_end_with_launcher()  # before a job begins, whose process imports PyTorch for seconds
