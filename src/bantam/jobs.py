"""The jobs of a multirun before the first of them starts: composed, shown, compared with their folders."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from bantam import cluster, errors, ranges, resolve
from bantam.own import code
from bantam.training import saved, settings, terminal

Jobs = Sequence[tuple[DictConfig, DictConfig]]
"""The configuration of every job of a multirun, and Hydra's for it."""


def split(config: DictConfig) -> list[list[str]]:
    """The overrides of every job of a multirun, as Hydra's basic sweeper makes them."""
    params = as_typed(config.hydra.sweeper.params or {})
    typed = [*(f"{key}={value}" for key, value in params.items()), *as_typed(config.hydra.overrides.task)]
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), None)
    return [overrides for batch in batches for overrides in batch]


def as_typed(node: Any) -> Any:
    """A list or a mapping of Hydra's configuration whose `${…}` are left to every job: they differ among jobs."""
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def composed(config: DictConfig, config_name: str) -> Iterator[tuple[DictConfig, DictConfig]]:
    """The configuration of every job of a multirun, and Hydra's for it."""
    for number, overrides in enumerate(split(config)):
        typed = [*as_typed(config.hydra.overrides.hydra), *overrides]
        job_config = compose(config_name, typed, return_hydra_config=True)
        with read_write(job_config), open_dict(job_config):
            job_config.hydra.job.num, job_config.hydra.job.id = number, _id(config, number)
            job_config.hydra.job.override_dirname = ",".join(sorted(overrides))
            job_config.hydra.sweep.subdir = str(job_config.hydra.sweep.subdir)
            _resolve_job(job_config)
            hydra = job_config.pop("hydra")
        yield job_config, hydra


def _resolve_job(config: DictConfig) -> None:
    """Put values in the place of `${hydra:job.num}` and its like, which other code would read of another job."""
    hydra: Any = HydraConfig.instance()
    before, hydra.cfg = hydra.cfg, config
    try:
        for key, value in saved.flat(OmegaConf.to_container(config, resolve=False)):
            if "${hydra:" in str(value) and not key.startswith("hydra."):
                OmegaConf.update(config, key, OmegaConf.select(config, key))
    finally:
        hydra.cfg = before


def _id(config: DictConfig, number: int) -> str:
    """What a launcher calls a job."""
    basic = str(config.hydra.launcher._target_).endswith("BasicLauncher")
    return str(number) if basic else f"{config.hydra.job.name}_{number}"


def show(config: DictConfig, jobs: Jobs) -> int:
    """Show what every job of a multirun would train, in no folder; returns the exit code."""
    from bantam.training.setup import RunInfo, prepare

    code = 0
    for number, (cfg, hydra) in enumerate(jobs):
        typed_in, side_by_side = Path(config.hydra.runtime.cwd), int(hydra.launcher.get("n_jobs", 1))
        folder = Path(config.hydra.sweep.dir) / hydra.sweep.subdir
        info = RunInfo(folder, dict(hydra.runtime.choices), side_by_side, number, typed_in)
        try:
            resolve.settle(cfg, typed_in)
            if cfg.resume is not None:
                raise ValueError("resume continues one run: leave -m out")
            ranges.validate(cfg)
            resolve.decide_data(cfg)
            if cluster.is_used(hydra):
                cfg.threads = cluster.threads_of(hydra.launcher.ray, cfg.threads)
            terminal.describe(prepare(cfg, info))
        except Exception as error:
            if not errors.is_meant_for_users(error):
                raise
            terminal.show_refusal(info, error)
            code = 1
    return code


def check(config: DictConfig, jobs: Jobs | None) -> None:
    """Raise ValueError where the jobs of a multirun, None where they are unknown, do not fit its folder."""
    if jobs is None:
        _refuse_unknown(config)
    else:
        _refuse_mixed(jobs)
        _refuse_others(config, jobs)


def _refuse_mixed(jobs: Jobs) -> None:
    """Raise ValueError where a job is to go on with another run, or two of them have one folder."""
    owners: dict[str, int] = {}
    for number, (cfg, hydra) in enumerate(jobs):
        if cfg.get("resume") is not None:
            raise ValueError("resume continues one run: leave -m out")
        subdir = os.path.normpath(hydra.sweep.subdir)
        other = owners.setdefault(subdir, number)
        if other != number:
            raise ValueError(
                f"hydra.sweep.subdir is {subdir} for the jobs {other} and {number}, but every job has a folder of "
                "its own: add ${hydra.job.num}"
            )


def _refuse_others(config: DictConfig, jobs: Jobs) -> None:
    """Raise ValueError where a folder of the multirun holds a run of another configuration."""
    for job_config, hydra in jobs:
        folder = Path(config.hydra.sweep.dir) / hydra.sweep.subdir
        if not (folder / ".hydra" / "config.yaml").exists():
            _refuse_unrecorded(folder)
            continue
        own = saved.load(folder)
        before = own.config
        resolve.settle(job_config, Path(config.hydra.runtime.cwd))
        resolve.decide_data(job_config)
        if "became" in job_config.data and OmegaConf.select(before, "data.became") is None:
            job_config.data.became = None  # the run is older than that key
        now = OmegaConf.create(saved.pinned(job_config))
        keys = [key for key in saved.differences(before, now) if not key.startswith(IGNORED)]
        if keys:
            key, old, new = saved.in_words(own, now, hydra.runtime.choices, keys[0])
            if key == code.CHECKSUM:
                file = settings.short_path(Path(job_config.model._file_))
                raise ValueError(
                    f"{code.shown(file, job_config.model._sha256_)} has changed since the run in "
                    f"{settings.short_path(folder)} was begun: choose another hydra.sweep.dir, or put the file "
                    f"back as it was, which {settings.short_path(folder / code.COPY)} has kept"
                )
            raise ValueError(
                f"{settings.short_path(folder)} holds a run with {key}={old}, not {new}: choose another "
                "hydra.sweep.dir, or type what it was begun with"
            )


def _refuse_unrecorded(folder: Path) -> None:
    """Raise ValueError where a folder holds a run without what that was trained with: it may be another's."""
    for name in ("result.json", "checkpoint.pt", "checkpoint.before.pt"):
        if os.path.lexists(folder / name):
            raise ValueError(
                f"{settings.short_path(folder)} holds a run ({name}), but nothing says what it was trained with, "
                "since .hydra/config.yaml is gone: restore it, or choose another hydra.sweep.dir"
            )


def _refuse_unknown(config: DictConfig) -> None:
    """Raise ValueError where the jobs of another sweeper than Hydra's own cannot be shown, or compared."""
    sweeper, folder = str(config.hydra.sweeper._target_).rpartition(".")[2], Path(config.hydra.sweep.dir)
    if config.dry_run:
        raise ValueError(
            f"dry_run shows jobs that are known before the first one runs, and {sweeper} decides later: leave "
            "dry_run out, or hydra/sweeper"
        )
    held = [path.parent for name in (".hydra", "result.json") for path in folder.glob(f"*/{name}")]
    if held:
        raise ValueError(
            f"{settings.short_path(folder)} holds jobs already, such as {held[0].name}, and those of {sweeper} "
            "may be others than before: choose another hydra.sweep.dir"
        )


IGNORED = ("data.root", "model._file_", "pictures", "report", "tracker.", "dry_run")
"""How keys begin that may differ when a multirun is typed again, since no result depends on them."""
