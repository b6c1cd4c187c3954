"""What depends on where and when a command is typed: paths and data=auto, resolved once, for all its jobs."""

import os
from copy import deepcopy
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

AUTO = "BANTAM_AUTO"
"""The variable that says to the jobs of a multirun what data=auto became, and for which data.root."""


def pin(cfg: DictConfig, typed_in: Path) -> None:
    """Make paths absolute, from the folder in which the command was typed: a job may run in another one."""
    if "root" in cfg.data:
        cfg.data.root = str(typed_in / Path(cfg.data.root).expanduser())


def decide_data(cfg: DictConfig) -> bool:
    """Decide what data=auto stands for, after `pin`; returns whether there was something to decide.

    Jobs of a multirun get what the process that launches them has decided. Raises ValueError for damaged files.
    """
    if cfg.data.get("_target_") != "bantam.data.auto" or "became" not in cfg.data or cfg.data.became:
        return False
    became, _, root = os.environ.get(AUTO, "").partition(":")
    if root != cfg.data.root:
        from bantam import data  # loads PyTorch

        became = data.decide(cfg.data.root)
    cfg.data.became = became
    return True


def decide_for_jobs(config: DictConfig, search: bool) -> None:
    """Decide what data=auto stands for in all jobs of a multirun; those of a search are told by the search."""
    os.environ.pop(AUTO, None)
    typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    swept = any(item.key_or_group == "data" and item.is_sweep_override() for item in typed)
    if swept or search:
        return
    cfg = OmegaConf.create({"data": deepcopy(config.data)})
    pin(cfg, Path(config.hydra.runtime.cwd))
    if decide_data(cfg):
        os.environ[AUTO] = f"{cfg.data.became}:{cfg.data.root}"
