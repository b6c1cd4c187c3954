"""From a composed configuration to everything that a run needs, checked and built, with no step taken."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from bantam import budget, data
from bantam.augmentation import Augmentation
from bantam.kernels import augment, compiler, muon, sgd
from bantam.kernels.fuse import fuse, is_fused
from bantam.own import code
from bantam.schedulers import Schedule
from bantam.trackers import Tracker
from bantam.training import saved
from bantam.training.average import Average
from bantam.training.build import (
    CannotBeBuilt,
    build,
    build_model,
    build_optimizer,
    build_schedule,
    build_trackers,
    dry_run_schedule,
    image_shape,
)
from bantam.training.costs import check_budget
from bantam.training.folder import read_checkpoint, read_finished
from bantam.training.logits import check_last_batch, check_logits, settle_layout, settle_precision
from bantam.training.loop import Training
from bantam.training.threads import Load, choose


@dataclass(frozen=True)
class RunInfo:
    """Where a run happens and what it is called."""

    folder: Path
    choices: dict[str, Any]
    """The option chosen of each group, as in model=v2."""
    side_by_side: int
    """How many jobs run at the same time; -1 for one a core."""
    job: int | None
    """Its number in a multirun; None for a single run."""
    typed_in: Path | None = None
    """The working folder of the command, where a job has another; by default the present one."""

    @property
    def name(self) -> str:
        """The experiment, or the model where there is none."""
        return str(self.choices.get("experiment") or self.choices.get("model"))

    @property
    def title(self) -> str:
        """What its lines in the terminal begin with."""
        return self.name if self.job is None else f"job {self.job}, {self.name}"


@dataclass
class Prepared:
    """Everything that a run needs, checked and built, with no step taken."""

    cfg: DictConfig
    info: RunInfo
    layers: list[budget.Layer]
    costs: dict[str, int]
    """What the network costs, by the keys of `budget.COSTS`."""
    data: data.Data
    device: torch.device
    precision: torch.dtype
    threads: int
    busy: str
    """Why these are fewer threads than there are cores; empty where that needs no reason."""
    model: nn.Module
    optimizer: Optimizer
    rates: tuple[float, ...]
    """The own rate of each group of the optimizer."""
    schedule: Schedule
    epoch_rates: list[float]
    """The learning rate in the middle of every epoch, at a constant loss."""
    augmentation: Augmentation
    average: Average | None
    notes: list[str]
    """What is to be said of the images and the network, a sentence each."""
    trackers: dict[str, Tracker]
    """What shows the run elsewhere, by option."""

    @property
    def parameters(self) -> int:
        """How many parameters the network has."""
        return self.costs["parameters"]

    @cached_property
    def _fused(self) -> tuple[nn.Module, str, dict[str, str]]:
        # Made where it is first asked for: what only looks need not wait for a compiler.
        return _training_model(self.cfg, self.info, self.model, self.device, self.precision)

    @property
    def training_model(self) -> nn.Module:
        """What computes the logits in training: the model, or a faster twin with its parameters."""
        return self._fused[0]

    @property
    def left_to_pytorch(self) -> str:
        """What PyTorch computes although kernels=auto would rather have it in C, and why; empty where nothing."""
        return self._fused[1]

    @property
    def not_in_c(self) -> dict[str, str]:
        """The convolutions that C does not compute, by name, with all that keeps each of them from it."""
        return self._fused[2]

    @property
    def kernels(self) -> str:
        """What computes its blocks: native or torch."""
        return "native" if is_fused(self.training_model) else "torch"

    @property
    def result_model(self) -> nn.Module:
        """What is saved: the model, or the average of its weights where there is one."""
        return self.average.model if self.average else self.model

    @cached_property
    def scoring_model(self) -> nn.Module:
        """What computes the logits of the result: `result_model` or, with kernels in C, its twin."""
        if self.kernels == "torch":
            return self.result_model
        if self.average:
            return fuse(self.average.model, self.data.shape, self.precision).model or self.result_model
        return self.training_model

    @property
    def parts(self) -> dict[str, Sequence[object]]:
        """The objects that its options have made, by group."""
        return {
            "model": list(self.model.modules()),
            "augmentation": [self.augmentation],
            "scheduler": [self.schedule],
            "optimizer": [self.optimizer],
        }

    @property
    def training(self) -> Training:
        """What the loop needs of it."""
        return Training(
            model=self.model,
            optimizer=sgd.in_c(muon.in_c(self.optimizer)) if self.kernels == "native" else self.optimizer,
            schedule=self.schedule,
            augmentation=augment.in_c(self.augmentation, self.data.shape)
            if self.kernels == "native"
            else self.augmentation,
            data=self.data,
            epochs=self.cfg.epochs,
            batch_size=self.cfg.batch_size,
            seed=self.cfg.seed,
            precision=self.precision,
            training_model=self.training_model,
            scoring_model=self.scoring_model,
            rates=self.rates,
            label_smoothing=self.cfg.label_smoothing,
            average=self.average,
        )


def prepare(cfg: DictConfig, info: RunInfo) -> Prepared:
    """Check everything that can be known before training, cheapest first, and build it.

    The configuration has passed `ranges.validate`. Raises ValueError: key, value, what is wrong, what helps.
    """
    if cfg.epochs > cfg.budget.epochs:
        raise ValueError(
            f"epochs is {cfg.epochs}, {cfg.epochs - cfg.budget.epochs} over budget.epochs={cfg.budget.epochs}: "
            "lower epochs or raise budget.epochs"
        )
    load = Load()
    layers, costs = check_budget(cfg, info.choices)
    trackers = build_trackers(cfg)
    schedule = build_schedule(cfg, info.choices)
    augmentation = build(cfg, "augmentation", info.choices)
    device = _device(cfg)
    threads, busy = choose(cfg.threads, info.side_by_side, load)
    torch.set_num_threads(threads)
    model = build_model(cfg, info.choices, device)
    cfg, layout = settle_layout(cfg, info.choices, model)
    optimizer = build_optimizer(cfg, info.choices, model)
    rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
    epoch_rates = dry_run_schedule(cfg, info.choices, schedule, rates)
    images = _load_data(cfg, info)
    output = check_logits(info.choices, model, images.shape, len(images.classes))
    check_last_batch(cfg, info.choices, model, images)
    precision, reduced = settle_precision(cfg, info.choices, model, precision_of(cfg, device))
    prepared = Prepared(
        cfg=cfg,
        info=info,
        layers=layers,
        costs=costs,
        data=images.to(device),
        device=device,
        precision=precision,
        threads=threads,
        busy=busy,
        model=model,
        optimizer=optimizer,
        rates=rates,
        schedule=schedule,
        epoch_rates=epoch_rates,
        augmentation=augmentation,
        average=Average(model, cfg.ema) if cfg.ema else None,
        notes=[note for note in (images.note, layout, reduced, output) if note],
        trackers=trackers,
    )
    if cfg.kernels == "native":
        _ = prepared.training_model  # whoever insists on them is told at once where they cannot be had
    return prepared


def prepare_resumed(cfg: DictConfig, info: RunInfo) -> Prepared:
    """Prepare an interrupted run to go on, on the device that it had. Raises ValueError as `prepare` does."""
    state = read_checkpoint(info.folder, torch.device("cpu")) or {}
    cfg = cfg.copy()
    if cfg.device == "auto":
        cfg.device = state.get("device", "auto")
    return _prepare_saved(cfg, info)


def prepare_finished(cfg: DictConfig, info: RunInfo) -> Prepared:
    """Prepare a finished run as it was, to score it again: with its own threads, precision and kernels.

    Raises ValueError where the folder holds no run that was trained to its end.
    """
    result = read_finished(info.folder)
    cfg = cfg.copy()
    cfg.threads, cfg.tracker = cfg.threads or result["threads"], {}
    if cfg.precision == "auto":
        cfg.precision = result["precision"]
    if cfg.kernels == "auto" and result["kernels"] == "torch":
        cfg.kernels = "torch"  # of others it is left to this machine whether it has a compiler
    for key in ("mean", "std"):
        if cfg.data.get(key, key) is None:  # a network goes on seeing images as it has seen them in training
            cfg.data[key] = result.get(key) or saved.load(info.folder).config.data.get(key)
    return _prepare_saved(cfg, info)


def _prepare_saved(cfg: DictConfig, info: RunInfo) -> Prepared:
    code.restore(info.folder, cfg.model)
    try:
        return prepare(cfg, info)
    except CannotBeBuilt as error:  # it could be when the run was begun
        if isinstance(error.__cause__, ImportError):
            raise ValueError(f"{error}; put that module beside {info.folder / code.COPY}") from error
        file = info.folder / ".hydra" / "config.yaml"
        raise ValueError(f"{error}; {file} is damaged, or of another version of Bantam: restore it") from error


def _load_data(cfg: DictConfig, info: RunInfo) -> data.Data:
    images: data.Data = build(cfg, "data", info.choices)
    if cfg.batch_size > len(images.train_labels):
        raise ValueError(
            f"batch_size is {cfg.batch_size:,}, but "
            f"{images.name} has {len(images.train_labels):,} images to train on: lower batch_size"
        )
    return images


def _device(cfg: DictConfig) -> torch.device:
    """Where it is trained. Raises ValueError where that is not there, or lacks what compile=true needs."""
    name = cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise ValueError(f"device is {name}, which this machine does not have: use device=auto or device=cpu")
    if cfg.compile and name == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ValueError("compile is true, but this machine has no C++ compiler (g++): leave compile=true out")
    return torch.device(name)


def precision_of(cfg: DictConfig, device: torch.device) -> torch.dtype:
    """What `precision` is here, where the network can be computed in it.

    bfloat16 only pays where it is computed natively; elsewhere it is emulated and slower than float32.
    """
    if cfg.precision == "auto":
        if device.type == "cuda":
            native_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native_bfloat16 = device.type == "cpu" and compiler.bfloat16()
        return torch.bfloat16 if native_bfloat16 else torch.float32
    return torch.float32 if cfg.precision == "float32" else torch.bfloat16


def _training_model(
    cfg: DictConfig, info: RunInfo, model: nn.Module, device: torch.device, precision: torch.dtype
) -> tuple[nn.Module, str, dict[str, str]]:
    """What computes the logits in training, blocks in C where they can be had, and what is left to PyTorch."""
    if cfg.compile:
        if cfg.kernels == "native":
            raise ValueError("kernels is native, but compile is true: choose one of the two")
        return torch.compile(model), "", {}  # type: ignore[return-value]
    fits = device.type == "cpu" and cfg.channels_last
    if cfg.kernels == "native" and not fits:
        raise ValueError(
            f"kernels is native, which computes on a CPU, in channels_last; device is {device.type}, "
            f"channels_last {cfg.channels_last}: use kernels=auto"
        )
    if cfg.kernels == "torch" or not fits:
        return model, "", {}
    try:
        fused, left, reasons = fuse(model, image_shape(cfg), precision)
    except compiler.Unavailable as error:
        if cfg.kernels == "native":
            raise ValueError(f"kernels is native, but {error}; or use kernels=auto") from error
        return model, str(error), {}
    if fused is not None:
        return fused, left, reasons
    nothing = (
        f"model={info.choices.get('model')} has no block that C computes, neither a convolution before a batch "
        "norm nor a depthwise convolution"
    )
    if cfg.kernels == "native":
        raise ValueError(f"kernels is native, but {nothing}: use kernels=auto")
    return model, f"{nothing}; {left}" if left else nothing, reasons
