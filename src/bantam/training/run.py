"""From a composed configuration to a finished folder; nothing below this module knows of Hydra."""

import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from joblib import cpu_count, effective_n_jobs
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

from bantam import budget, config, data
from bantam.augmentation import Augmentation
from bantam.kernels import compiler
from bantam.kernels.fuse import fuse, is_fused
from bantam.schedulers import OneCycle
from bantam.training import folder as record
from bantam.training.loop import Average, Diverged, Epoch, Scheduler, advance, measure, score, train


@dataclass(frozen=True)
class Place:
    """Where a run happens and what it is called."""

    folder: Path
    choices: dict[str, Any]
    """The option chosen of each group, as in model=v2."""
    side_by_side: int
    """How many jobs run at the same time; -1 for one a core."""
    job: int | None
    """Its number in a multirun; None for a single run."""

    @property
    def name(self) -> str:
        """The experiment, or the model where there is none."""
        return str(self.choices.get("experiment") or self.choices.get("model"))

    @property
    def title(self) -> str:
        """What its lines in the terminal begin with."""
        return self.name if self.job is None else f"job {self.job}, {self.name}"

    @property
    def shown(self) -> str:
        """The folder as a person would type it."""
        folder = self.folder.absolute()
        return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


class OverBudget(ValueError):
    """The network has too many parameters; `rows` is its layer table."""

    def __init__(self, message: str, rows: list[budget.Layer]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass
class Prepared:
    """Everything that a run needs, checked and built, with no step taken."""

    cfg: DictConfig
    place: Place
    rows: list[budget.Layer]
    parameters: int
    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler
    augmentation: Augmentation
    data: data.Data
    device: torch.device
    precision: torch.dtype
    threads: int
    average: Average | None

    @cached_property
    def forward(self) -> nn.Module:
        """What computes the logits in training: the model, or a faster twin with its parameters.

        Made where it is first asked for: what only looks need not wait for a compiler.
        """
        return _forward(self.cfg, self.place, self.model, self.device, self.precision)

    @property
    def kernels(self) -> str:
        """Whose code that is, native or torch."""
        return "native" if is_fused(self.forward) else "torch"

    @property
    def saved(self) -> nn.Module:
        """The result: the model, or the average of its weights where there is one."""
        return self.average.model if self.average else self.model

    @cached_property
    def scored(self) -> nn.Module:
        """What computes the logits of the result: `saved` or, with kernels in C, its twin."""
        if self.kernels == "torch":
            return self.saved
        return (
            (fuse(self.average.model, budget.IMAGE, self.precision) or self.saved)
            if self.average
            else self.forward
        )


def prepare(cfg: DictConfig, place: Place) -> Prepared:
    """Check everything that can be known before training, cheapest first, and build it.

    Raises ValueError with one sentence: the key, its value, what is wrong and what helps.
    """
    config.validate(cfg)
    if cfg.epochs > cfg.budget.epochs:
        raise ValueError(
            f"epochs is {cfg.epochs}, {cfg.epochs - cfg.budget.epochs} over budget.epochs={cfg.budget.epochs}: "
            "lower epochs or raise budget.epochs"
        )
    rows, parameters = weigh(cfg, place)
    _rehearse(cfg, place)
    augmentation = _build(cfg, "augmentation", place)
    device = _device(cfg.device)
    if cfg.compile and device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ValueError("compile is true, but this machine has no C++ compiler (g++): leave compile=true out")
    threads = cfg.threads or max(1, cpu_count() // effective_n_jobs(place.side_by_side))
    torch.set_num_threads(threads)
    images: data.Data = _build(cfg, "data", place)
    if cfg.batch_size > len(images.train_labels):
        raise ValueError(
            f"batch_size is {cfg.batch_size:,}, but "
            f"{images.name} has {len(images.train_labels):,} images to train on: lower batch_size"
        )
    torch.manual_seed(cfg.seed)
    model: nn.Module = _build(cfg, "model", place)
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    precision = _precision(cfg, device)
    optimizer, scheduler = _optimizer_and_scheduler(cfg, place, model)
    prepared = Prepared(
        cfg,
        place,
        rows,
        parameters,
        model,
        optimizer,
        scheduler,
        augmentation,
        images.to(device),
        device,
        precision,
        threads,
        Average(model, cfg.ema) if cfg.ema else None,
    )
    if cfg.kernels == "native":
        _ = prepared.forward  # whoever insists on them is told at once where they cannot be had
    return prepared


def _forward(
    cfg: DictConfig, place: Place, model: nn.Module, device: torch.device, precision: torch.dtype
) -> nn.Module:
    """What computes the logits in training: blocks in C where they can be had."""
    if cfg.compile:
        if cfg.kernels == "native":
            raise ValueError("kernels is native, but compile is true: choose one of the two")
        return torch.compile(model)  # type: ignore[return-value]
    fits = device.type == "cpu" and cfg.channels_last
    if cfg.kernels == "native" and not fits:
        raise ValueError(
            f"kernels is native, which computes on a CPU, in channels_last; device is {device.type}, "
            f"channels_last {cfg.channels_last}: use kernels=auto"
        )
    if cfg.kernels == "torch" or not fits:
        return model
    try:
        fused = fuse(model, budget.IMAGE, precision)
    except compiler.Unavailable as error:
        if cfg.kernels == "native":
            raise ValueError(f"kernels is native, but {error}; or use kernels=auto") from error
        return model
    if fused is None and cfg.kernels == "native":
        raise ValueError(
            f"kernels is native, but model={place.choices.get('model')} has no block that they compute "
            "(valid convolution, batch norm, ReLU; or one of every channel by itself): use kernels=auto"
        )
    return model if fused is None else fused


def _build(cfg: DictConfig, key: str, place: Place) -> Any:
    """Instantiate a group; what its constructor refuses becomes a ValueError that names the group."""
    try:
        return instantiate(cfg[key], _execution_whitelist_=config.WHITELIST)
    except InstantiationException as error:
        cause = error.__cause__
        if key == "data" and isinstance(cause, ValueError):
            raise cause from None
        reason = " ".join(str(cause or error).split())
        raise ValueError(f"{key}={place.choices.get(key)} cannot be built: {reason}") from error


def _optimizer_and_scheduler(cfg: DictConfig, place: Place, model: nn.Module) -> tuple[Optimizer, Scheduler]:
    optimizer = _build(cfg, "optimizer", place)
    scheduler = _build(cfg, "scheduler", place)
    key = "optimizer"
    try:
        optimizer = optimizer(model.parameters())
        key = "scheduler"
        return optimizer, scheduler(optimizer)
    except Exception as error:  # a constructor that refuses its arguments may raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{key}={place.choices.get(key)} cannot be built: {reason}") from error


def weigh(cfg: DictConfig, place: Place) -> tuple[list[budget.Layer], int]:
    """Count the network on the meta device; returns its layers and its parameters. Raises OverBudget."""

    def build(cfg: DictConfig, device: str = "meta") -> nn.Module:
        with torch.device(device):
            return _build(cfg, "model", place)  # type: ignore[no-any-return]

    parameters, limit = budget.count(build(cfg)), cfg.budget.parameters
    rows = budget.layers(build(cfg, "cpu" if parameters <= budget.SMALL else "meta"))
    if parameters < limit:
        return rows, parameters
    widths = {key: value for key, value in cfg.model.items() if isinstance(value, int) and value > 1}
    keys = [f"model.{key!s}" for key in sorted(widths, key=lambda key: -widths[key])[:3]]
    remedy = f"lower {' or '.join(keys)}" if keys else "choose a smaller network"
    if "width" in cfg.model:
        for width in range(cfg.model.width - 1, 0, -1):
            if budget.count(build(OmegaConf.merge(cfg, {"model": {"width": width}}))) < limit:  # type: ignore[arg-type]
                remedy = f"lower model.width to {width}"
                break
    raise OverBudget(
        f"model={place.choices.get('model')} has {parameters:,} parameters, {parameters - limit + 1:,} over the "
        f"{limit - 1:,} that budget.parameters={limit:,} allows: {remedy} or raise budget.parameters",
        rows,
    )


def _rehearse(cfg: DictConfig, place: Place) -> list[float]:
    """The learning rate of every epoch, at a constant loss; refuses a schedule that leaves the sensible."""
    optimizer, scheduler = _optimizer_and_scheduler(cfg, place, nn.Linear(1, 1))
    rates = []
    for epoch in range(1, cfg.epochs + 1):
        optimizer.step()  # without gradients: torch wants it before the schedule moves
        if isinstance(scheduler, OneCycle):
            scheduler.step(epoch - 0.5)
        rate = float(optimizer.param_groups[0]["lr"])
        rates.append(rate)
        try:
            advance(scheduler, train_loss=1.0)
        except ArithmeticError as error:
            raise ValueError(
                f"scheduler={place.choices.get('scheduler')} fails after epoch {epoch} ({error}): "
                "change scheduler.*"
            ) from error
        if not 0 <= rate < float("inf"):
            raise ValueError(
                f"scheduler={place.choices.get('scheduler')} sets the learning rate of epoch {epoch} to {rate}: "
                "change scheduler.* so that it stays at 0 or above"
            )
    return rates


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise ValueError(f"device is {name}, which this machine does not have: use device=auto or device=cpu")
    return torch.device(name)


def _precision(cfg: DictConfig, device: torch.device) -> torch.dtype:
    """bfloat16 only pays where it is computed natively; elsewhere it is emulated and slower than float32."""
    if cfg.precision == "auto":
        if device.type == "cuda":
            native_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native_bfloat16 = device.type == "cpu" and compiler.bfloat16()
        return torch.bfloat16 if native_bfloat16 else torch.float32
    return torch.float32 if cfg.precision == "float32" else torch.bfloat16


def describe(prepared: Prepared, place: Place) -> None:
    """Print the layer table, the budget, the data and the settings."""
    cfg, images = prepared.cfg, prepared.data
    console = _console()
    if images.not_judged and images.split == "test":
        console.print(
            Panel(
                f"These are not the real test images, so the target is not judged.\n{escape(images.not_judged)}.",
                title=f"Training on {images.name}: {len(images.train_labels):,} images only",
                border_style="bold yellow",
            )
        )
    console.print(budget.table(prepared.rows))
    steps = -(-len(images.train_labels) // cfg.batch_size)
    rates = _rehearse(cfg, place)
    settings = Table.grid(padding=(0, 2))
    settings.add_column(style="bold")
    settings.add_column()
    for key, text in {
        "budget": f"{prepared.parameters:,} parameters of fewer than {cfg.budget.parameters:,}; "
        f"{cfg.epochs} epochs of at most {cfg.budget.epochs}",
        "target": f"{cfg.target.accuracy:g} % in every one of the last {cfg.target.last_epochs} epochs",
        "data": f"{images.name}: {len(images.train_labels):,} images to train on, "
        f"{len(images.held_out_labels):,} {images.split} images scored after every epoch",
        "steps": f"{steps:,} an epoch, {steps * cfg.epochs:,} in all, {cfg.batch_size} images each",
        **{key: _arguments(cfg, key, place) for key in ("model", "optimizer", "scheduler", "augmentation")},
        **({"smoothing": f"{cfg.label_smoothing:g} of each label"} if cfg.label_smoothing else {}),
        **({"average": f"of the weights, keeping {cfg.ema:g} a step: it is scored and saved"} if cfg.ema else {}),
        "rates": " ".join(f"{rate:.2g}" for rate in rates)
        + (" (falls with the training loss)" if "loss_dip" in str(place.choices.get("scheduler")) else ""),
        "machine": f"{prepared.device.type}, {prepared.threads} thread{'s' * (prepared.threads > 1)}, "
        f"{str(prepared.precision).removeprefix('torch.')}, {prepared.kernels} kernels"
        + ", compiled"
        * cfg.compile,
        "seed": str(cfg.seed),
        "folder": "none: dry_run" if cfg.dry_run else place.shown,
    }.items():
        settings.add_row(key, escape(text))
    console.print("", settings, "")


def _arguments(cfg: DictConfig, key: str, place: Place) -> str:
    values = OmegaConf.to_container(cfg[key], resolve=True)
    assert isinstance(values, dict)
    return f"{place.choices.get(key)}: " + ", ".join(
        f"{name!s} {value}" for name, value in values.items() if not str(name).startswith("_")
    )


def _console() -> Console:
    return Console(highlight=False)


def run(
    prepared: Prepared, place: Place, give_up: Callable[[int, float], bool] = lambda epoch, accuracy: False
) -> float:
    """Train, or continue where the folder's checkpoint ends, and write the folder; returns the objective.

    The objective is the mean accuracy of the last epochs in percent; nan where the training diverged
    or was given up. `give_up` is told every epoch's accuracy and decides whether it was the last.
    """
    started = time.time()
    cfg, images, folder = prepared.cfg, prepared.data, place.folder
    console = _console()
    history = _restore(prepared, place)
    if len(history) < cfg.epochs or not (folder / record.RESULT).exists():
        describe(prepared, place)

    # Bars of jobs side by side would overwrite each other: there every epoch's line has to do.
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or place.side_by_side != 1,
    )
    count = len(images.train_labels)

    def show(epoch: int, seen: int, loss: float) -> None:
        bar.update(task, completed=(epoch - 1) * count + seen)
        now = f"{bar.tasks[task].speed or 0:,.0f} images/s   loss {loss:.4f}   left"
        bar.update(task, now=now, description=f"{place.title} epoch {epoch:>2}/{cfg.epochs}")

    try:
        with bar:
            task = bar.add_task(
                place.title, total=cfg.epochs * count, completed=len(history) * count, now="starting"
            )
            for epoch in train(
                prepared.model,
                prepared.optimizer,
                prepared.scheduler,
                prepared.augmentation,
                images,
                epochs=cfg.epochs,
                batch_size=cfg.batch_size,
                seed=cfg.seed,
                precision=prepared.precision,
                label_smoothing=cfg.label_smoothing,
                average=prepared.average,
                first_epoch=len(history) + 1,
                forward=prepared.forward,
                scored=prepared.scored,
                show=show,
            ):
                history.append(epoch)
                record.write_checkpoint(folder, _state(prepared, history))
                record.write_history(folder, history)
                console.print(_line(place.title, epoch, cfg.epochs), soft_wrap=True)
                if give_up(epoch.epoch, epoch.accuracy) and epoch.epoch < cfg.epochs:
                    reason = f"given up after epoch {epoch.epoch} of {cfg.epochs}, at {epoch.accuracy:.2f} %"
                    verdict = record.Verdict("pruned", reason, None, *_best(history), [], False)
                    return _end_early(prepared, place, verdict, history, started)
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted in epoch {len(history) + 1} of {cfg.epochs}. Continue with:\n"
            f"python train.py resume={escape(place.shown)}",
            soft_wrap=True,
        )
        raise SystemExit(130) from None
    except Diverged as error:
        verdict = record.Verdict("diverged", str(error), None, *_best(history), [], False)
        return _end_early(prepared, place, verdict, history, started)

    logits = score(prepared.scored, images.held_out_images, images, prepared.precision)
    verdict = record.judge(
        history,
        target=cfg.target.accuracy,
        last_epochs=cfg.target.last_epochs,
        most_epochs=cfg.budget.epochs,
        not_judged=images.not_judged,
        most_frequent=100 * images.held_out_labels.bincount().max().item() / len(images.held_out_labels),
        scored_images=len(images.held_out_labels),
    )
    record.write_weights(folder, prepared.saved)
    if cfg.pictures:
        from bantam.training import pictures

        heading = f"{place.name}, {prepared.parameters:,} parameters, seed {cfg.seed}"
        pictures.draw(folder, heading, history, logits, images, cfg.target.accuracy)
    scored = {"confusion": _confusion(logits, images), "classes": list(images.classes)}
    record.write_result(folder, _result(prepared, place, verdict, history, started) | scored)
    (folder / record.CHECKPOINT).unlink(missing_ok=True)
    colour = {"met": "green", "not met": "red"}.get(verdict.verdict, "yellow")
    console.print(
        f"[bold {colour}]{place.title}: {verdict.verdict}[/]: {escape(verdict.reason)}. "
        f"Best {verdict.best_accuracy:.2f} % in epoch {verdict.best_epoch}, "
        f"mean of the last {len(verdict.last_accuracies)} {verdict.objective:.2f} %. {escape(place.shown)}",
        soft_wrap=True,
    )
    assert verdict.objective is not None
    return verdict.objective


def _end_early(
    prepared: Prepared, place: Place, verdict: record.Verdict, history: list[Epoch], started: float
) -> float:
    """Write the folder of a training that has no objective; returns nan."""
    record.write_result(place.folder, _result(prepared, place, verdict, history, started))
    (place.folder / record.CHECKPOINT).unlink(missing_ok=True)
    colour = "red" if verdict.verdict == "diverged" else "yellow"
    _console().print(
        f"[bold {colour}]{place.title} {verdict.verdict}:[/] {escape(verdict.reason)}", soft_wrap=True
    )
    return float("nan")


def _line(title: str, epoch: Epoch, epochs: int) -> str:
    split = "test" if epoch.validation_accuracy is None else "validation"
    return (
        f"{title} epoch {epoch.epoch:>2}/{epochs}   lr {epoch.lr:<8.3g} train {epoch.train_accuracy:5.2f} %   "
        f"{split} [bold]{epoch.accuracy:5.2f}[/] %   {epoch.seconds:5.1f} s   "
        f"{epoch.images_per_second:,.0f} images/s"
    )


def _best(history: list[Epoch]) -> tuple[float | None, int | None]:
    best = max(history, key=lambda epoch: epoch.accuracy, default=None)
    return (best.accuracy, best.epoch) if best else (None, None)


def _state(prepared: Prepared, history: list[Epoch]) -> dict[str, Any]:
    """What a resumed run needs; random numbers follow from the seed and the epoch."""
    return {
        "model": prepared.model.state_dict(),
        "optimizer": prepared.optimizer.state_dict(),
        "scheduler": prepared.scheduler.state_dict(),
        "history": [asdict(epoch) for epoch in history],
        "checksum": prepared.data.checksum,
        "threads": prepared.threads,
        "precision": str(prepared.precision),
        "kernels": prepared.kernels,
        **({"average": prepared.average.state_dict()} if prepared.average else {}),
    }


def _restore(prepared: Prepared, place: Place) -> list[Epoch]:
    """Load the folder's checkpoint, if it has one, into what was prepared; returns its history.

    Raises ValueError where the run is finished or was begun with other data or another precision.
    """
    folder = place.folder
    if (folder / record.RESULT).exists():
        result = record.read_result(folder)
        raise ValueError(f"{folder} is finished ({result.get('verdict')}): there is nothing to resume")
    state = record.read_checkpoint(folder, prepared.device)
    if state is None:
        return []
    if state["checksum"] != prepared.data.checksum:
        raise ValueError(
            f"{folder} was begun with other data than {prepared.data.name} as it is now: restore data.root"
        )
    if state["precision"] != str(prepared.precision):
        raise ValueError(
            f"{folder} was begun in {state['precision'].removeprefix('torch.')}, which precision=auto does not "
            "choose on this machine: a run is resumed where it was begun"
        )
    if state["kernels"] != prepared.kernels:
        raise ValueError(
            f"{folder} was begun with {state['kernels']} kernels, which kernels={prepared.cfg.kernels} does not "
            "choose on this machine: a run is resumed where it was begun"
        )
    prepared.model.load_state_dict(state["model"])
    prepared.optimizer.load_state_dict(state["optimizer"])
    prepared.scheduler.load_state_dict(state["scheduler"])
    if prepared.average:
        prepared.average.load_state_dict(state["average"])
    prepared.threads = state["threads"]
    torch.set_num_threads(prepared.threads)
    history = [Epoch(**epoch) for epoch in state["history"]]
    record.write_history(folder, history)
    return history


def _result(
    prepared: Prepared, place: Place, verdict: record.Verdict, history: list[Epoch], started: float
) -> dict[str, Any]:
    cfg, images = prepared.cfg, prepared.data
    speeds = sorted(epoch.images_per_second for epoch in history)
    return {
        **asdict(verdict),
        **_identity(cfg, place),
        "target": OmegaConf.to_container(cfg.target),
        "budget": OmegaConf.to_container(cfg.budget),
        "parameters": prepared.parameters,
        "multiply_adds": sum(row.multiply_adds for row in prepared.rows),
        "layers": [asdict(row) for row in prepared.rows],
        "epochs": len(history),
        "data": images.name,
        "data_checksum": images.checksum,
        "train_images": len(images.train_labels),
        "split": images.split,
        "scored_images": len(images.held_out_labels),
        "device": prepared.device.type,
        "processor": _processor(prepared.device),
        "threads": prepared.threads,
        "precision": str(prepared.precision).removeprefix("torch."),
        "kernels": prepared.kernels,
        "compile": cfg.compile,
        "training_seconds": sum(epoch.seconds for epoch in history),
        "total_seconds": time.time() - started,
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "versions": record.versions(),
        "commit": record.commit(),
    }


def _confusion(logits: torch.Tensor, images: data.Data) -> list[list[int]]:
    """How many images of each class (row) were taken for each class (column), from N×classes logits."""
    count = len(images.classes)
    pairs = images.held_out_labels.long() * count + logits.argmax(1)
    matrix: list[list[int]] = pairs.bincount(minlength=count * count).reshape(count, count).tolist()
    return matrix


def _identity(cfg: DictConfig, place: Place) -> dict[str, Any]:
    return {
        "experiment": place.choices.get("experiment"),
        "model": place.choices.get("model"),
        "seed": cfg.get("seed"),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor())


def refuse(error: ValueError, cfg: DictConfig, place: Place) -> None:
    """Record in a job's folder that it was refused, and why; the other jobs go on."""
    _console().print(f"[bold red]job {place.job}, {place.name}: refused[/]: {escape(str(error))}", soft_wrap=True)
    rows = getattr(error, "rows", None)
    if rows:
        _console().print(budget.table(rows))
    if not (place.folder / record.RESULT).exists():
        result = {"verdict": "refused", "reason": str(error), **_identity(cfg, place)}
        if rows:
            result |= {"parameters": sum(row.parameters for row in rows), "layers": [asdict(row) for row in rows]}
        record.write_result(place.folder, result)


def fail(error: Exception, trace: str, cfg: DictConfig, place: Place) -> None:
    """Record in a job's folder that it broke, with the traceback in error.txt; the other jobs go on."""
    reason = f"{type(error).__name__}: {error}"
    trace_file = escape(f"{place.shown}/error.txt")
    line = f"[bold red]job {place.job}, {place.name}: failed[/]: {escape(reason)} ({trace_file})"
    _console().print(line, soft_wrap=True)
    record.write(place.folder / "error.txt", trace.encode())
    record.write_result(place.folder, {"verdict": "failed", "reason": reason, **_identity(cfg, place)})


def summarize(sweep: Path) -> bool:
    """Print a table of the jobs in a multirun's folder; returns whether every one ended with an objective.

    Accuracies are percent, the last one the mean of the last epochs.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("folder", "network", "seed", "parameters", "best", "in epoch", "last", "verdict")
    for column in columns:
        text = column in ("folder", "network", "verdict")
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    good = True
    folders = [path for path in sweep.iterdir() if (path / ".hydra").is_dir()]
    for folder in sorted(folders, key=lambda path: (len(path.name), path.name)):
        try:
            result = record.read_result(folder)
        except ValueError:
            result = {"verdict": "unfinished"}
        good &= result.get("objective") is not None

        def cell(key: str, style: Callable[[Any], str], result: dict[str, Any] = result) -> str:
            return "" if result.get(key) is None else style(result[key])

        table.add_row(
            Place(folder, {}, 1, None).shown,
            str(result.get("experiment") or result.get("model") or ""),
            cell("seed", str),
            cell("parameters", "{:,}".format),
            cell("best_accuracy", "{:.2f}".format),
            cell("best_epoch", str),
            cell("objective", "{:.2f}".format),
            str(result["verdict"]) + (" (at chance)" if result.get("at_chance") else ""),
        )
    _console().print("", table)
    return good


def evaluate(folder: Path, cfg: DictConfig, choices: dict[str, Any]) -> bool:
    """Score a finished run again; returns whether it repeats the recorded accuracy or has other data.

    Raises ValueError where the folder is no finished run or does not fit the data.
    """
    result = record.read_result(folder)
    if result.get("objective") is None:
        raise ValueError(f"{folder} was {result.get('verdict')}: it has no weights to evaluate")
    as_it_was = {key: result.get(key, cfg[key]) for key in ("precision", "kernels") if cfg[key] == "auto"}
    if as_it_was.get("kernels") == "native":
        as_it_was["kernels"] = "auto"  # a machine without a compiler scores it too
    prepared = prepare(OmegaConf.merge(cfg, as_it_was), Place(folder, choices, 1, None))  # type: ignore[arg-type]
    torch.set_num_threads(cfg.threads or result["threads"])
    record.read_weights(folder, prepared.saved)
    images = prepared.data
    logits = score(prepared.scored, images.held_out_images, images, prepared.precision)
    _, accuracy = measure(logits, images.held_out_labels)
    recorded = record.read_history(folder)[-1].accuracy
    what = f"{accuracy:.2f} % of {len(images.held_out_labels):,} {images.split} images of {images.name}"
    if images.checksum != result["data_checksum"] or images.split != result["split"]:
        _console().print(
            f"{what}. The run itself was scored on {result['scored_images']:,} {result['split']} images of "
            f"{result['data']} ({recorded:.2f} %): the two are not comparable.",
            soft_wrap=True,
        )
        return True
    same = accuracy == recorded
    _console().print(f"{what}, {'exactly as recorded' if same else f'but recorded were {recorded:.2f} %'}.")
    return same
