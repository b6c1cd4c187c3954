"""What depends on where and when a command is typed, resolved once, for all its jobs: paths, data=auto, images."""

import json
import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bantam import ranges
from bantam.own import code
from bantam.own.source import FROM_DATA
from bantam.training import saved

AUTO = "BANTAM_AUTO"
"""The variable that says to the jobs of a multirun what data=auto became, by data.root."""


SHAPE = tuple(FROM_DATA)
"""Keys of `data` that networks take from it."""

SQLITE, URI = "sqlite:///", "tracker.mlflow.uri"

TRACKED = (URI, "tracker.wandb.folder")
"""Keys of trackers with a path, or the address of a file."""

NPZ, FOLDER = "bantam.data.npz", "bantam.data.folder"
"""The `_target_`s of images of one's own."""


def pin(cfg: DictConfig, typed_in: Path) -> None:
    """Make paths absolute, from the folder in which the command was typed: a job may run in another one."""
    if "root" in cfg.data:
        cfg.data.root = absolute(cfg.data.root, typed_in)
    for key in TRACKED:
        if isinstance(place := OmegaConf.select(cfg, key), str) and (key != URI or place.startswith(SQLITE)):
            OmegaConf.update(cfg, key, absolute(place, typed_in))


def absolute(place: str, typed_in: Path) -> str:
    """A path, or the address of an SQLite file, from the folder in which it was typed."""
    scheme = SQLITE if place.startswith(SQLITE) else ""
    path = place.removeprefix(scheme)
    if scheme and path.startswith(("file:", ":")):  # an address of its own kind, or the memory
        return place
    return f"{scheme}{typed_in / Path(path).expanduser()}"


def settle(cfg: DictConfig, typed_in: Path) -> None:
    """Make paths absolute, and have the data say what its images are, before a network is counted.

    Keys of `SHAPE` that are null get what the files have. Raises ValueError where those cannot be read, have
    something else than is typed, or where there is nothing to read it from.
    """
    if not isinstance(cfg.data, DictConfig):
        raise ValueError(f"data is {cfg.data}, which cannot be built: choose one of its options")
    if OmegaConf.is_missing(cfg.data, "root"):
        example = "pictures" if cfg.data.get("_target_") == FOLDER else "my.npz"
        raise ValueError(f"data.root has no value: set it, for example data.root={example}")
    for key, value in saved.flat(OmegaConf.to_container(cfg, resolve=False)):
        if saved.calls_resolver(value):  # Hydra may give a job another environment
            OmegaConf.update(cfg, key, OmegaConf.select(cfg, key))
    pin(cfg, typed_in)
    if cfg.data.get("_target_") in (NPZ, FOLDER):
        _read_shape(cfg.data)
    for key in SHAPE:
        if key in cfg.data and cfg.data[key] is None:
            raise ValueError(f"data.{key} is null, which only data=npz and data=folder can be: leave it out")


def _read_shape(data: DictConfig) -> None:
    """Fill in what images of one's own are like, or check what is typed."""
    if data._target_ == FOLDER:
        from bantam.images import pictures

        found: dict[str, int] = {"classes": len(pictures.classes(data.root))}
        for key, example in (("channels", 1), ("side", 28)):
            if data[key] is None:
                raise ValueError(f"data.{key} is null: pictures are fitted to a number, as data.{key}={example}")
        what = f"{data.root}/train has {found['classes']} classes"
    else:
        from bantam.images import arrays

        shape = arrays.shape(data.root)
        found, what = shape._asdict(), f"{data.root} has images of {shape}"
        if data.classes is not None and data.classes > shape.classes and not arrays.has_names(data.root):
            found["classes"] = data.classes  # some are not among the images
    if found["classes"] < 2:
        raise ValueError(
            f"{data.root} has a single class, and a network tells several apart: add images of another"
        )
    for key, number in found.items():
        if data[key] is None:
            data[key] = number
        elif data[key] != number:
            raise ValueError(f"data.{key} is {data[key]}, but {what}: leave data.{key} out, or correct the files")


def settle_as(cfg: DictConfig, own: DictConfig, typed_in: Path) -> None:
    """As `settle`, for other images that a network is scored on, which has been trained with `own`.

    Raises ValueError where they are of another shape.
    """
    from bantam.images.arrays import Shape, has_names

    target = cfg.data.get("_target_")
    for key in {NPZ: SHAPE, FOLDER: ("classes",)}.get(target, ()):
        cfg.data[key] = None  # what the run's own images had
    settle(cfg, typed_in)
    now, trained = (Shape(*(data[key] for key in SHAPE)) for data in (cfg.data, own.data))
    if target == NPZ and now.classes < trained.classes and not has_names(cfg.data.root):
        cfg.data.classes = trained.classes  # the last ones are not among the images
        now = now._replace(classes=trained.classes)
    if now != trained:
        remedy = ""
        if target == FOLDER and now.classes == trained.classes:
            remedy = f", or have them fitted with data.side={trained.side} data.channels={trained.channels}"
        raise ValueError(
            f"{cfg.data.get('root', 'this option')} has images of {now}, but the run was trained on {trained}: "
            f"give images of that shape{remedy}"
        )


def changed(own: saved.Saved, overrides: list[str], may_change: Sequence[str]) -> DictConfig:
    """A run's checked configuration with overrides of the keys and groups in `may_change`.

    Raises ValueError for other keys, for values that cannot be, and for images of another shape.
    """
    if not overrides:
        return own.checked.copy()
    with initialize_config_dir(str(project() / "conf")):
        cfg, keys = saved.merged(own, overrides)
    refused = [key for key in keys if not {key, key.split(".")[0]} & {*may_change}]
    if refused:
        key, *_ = saved.in_words(own, cfg, saved.chosen(own, overrides), refused[0])
        raise ValueError(f"{key} belongs to the run: only {', '.join(may_change)} can be changed here")
    cfg = saved.typed(cfg)
    settle_as(cfg, own.checked, Path.cwd())
    ranges.validate(cfg)
    return cfg


def project() -> Path:
    """The folder with `conf/` and `train.py`. Raises ValueError where the code was installed without them."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "conf" / "config.yaml").is_file():
        raise ValueError(
            f"Bantam's options, conf/, are not in {folder}: install Bantam from its folder with pip install -e ."
        )
    return folder


def keep_nothing() -> None:
    """Have a dry run create nothing: what it downloads and compiles is gone when it ends."""
    from bantam.images import downloads  # loads PyTorch
    from bantam.kernels import compiler

    downloads.keep_downloads = compiler.keep_compiled = False


def forget() -> None:
    """Have files of images and of code read anew, and a server asked anew, as another command would."""
    from bantam.images import downloads  # loads PyTorch
    from bantam.kernels import compiler

    code.forget()
    downloads.forget()
    compiler.forget()


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
