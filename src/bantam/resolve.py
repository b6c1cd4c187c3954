"""What depends on where and when a command is typed: paths and data=auto, resolved once, for all its jobs."""

import json
import os
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

AUTO = "BANTAM_AUTO"
"""The variable that says to the jobs of a multirun what data=auto became, by data.root."""


def pin(cfg: DictConfig, typed_in: Path) -> None:
    """Make paths absolute, from the folder in which the command was typed: a job may run in another one."""
    if "root" in cfg.data:
        cfg.data.root = str(typed_in / Path(cfg.data.root).expanduser())


def project() -> Path:
    """The folder with `conf/` and `train.py`. Raises ValueError where the code was installed without them."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "conf" / "config.yaml").is_file():
        raise ValueError(
            f"Bantam's options, conf/, are not in {folder}: install Bantam from its folder with pip install -e ."
        )
    return folder


def keep_no_downloads() -> None:
    """Have a dry run create nothing: what it downloads is gone when it ends."""
    from bantam import data  # loads PyTorch

    data.keep_downloads = False


def forget() -> None:
    """Have files of images read anew, and a server asked anew, as another command would."""
    from bantam import data  # loads PyTorch

    data.keep_downloads = True
    data._temporary.clear()
    for cached in (data._download, data._read):
        cached.cache_clear()


def decide_data(cfg: DictConfig) -> bool:
    """Decide what data=auto stands for, after `pin`; returns whether there was something to decide.

    Jobs of a multirun get what the process that launches them has decided. Raises ValueError for damaged files.
    """
    if cfg.data.get("_target_") != "bantam.data.auto" or "became" not in cfg.data or cfg.data.became:
        return False
    became = json.loads(os.environ.get(AUTO, "{}")).get(cfg.data.root)
    if became is None:
        from bantam import data  # loads PyTorch

        became = data.decide(cfg.data.root)
    cfg.data.became = became
    return True


def decide_for_jobs(configs: Iterable[DictConfig], typed_in: Path) -> None:
    """Decide what data=auto stands for in all jobs of a multirun, each with its configuration."""
    os.environ.pop(AUTO, None)
    decided = {}
    for config in configs:
        cfg = OmegaConf.create({"data": deepcopy(config.data)})
        pin(cfg, typed_in)
        if decide_data(cfg):
            decided[cfg.data.root] = cfg.data.became
            os.environ[AUTO] = json.dumps(decided)
