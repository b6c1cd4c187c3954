"""All that a run prints: what is trained, its progress, its verdict, the table of a multirun, and errors.

torch is imported only where it is there already: an error in what was typed is shown at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bantam.overrides import resuming

if TYPE_CHECKING:
    from bantam.budget import Layer
    from bantam.data import Data
    from bantam.training.loop import Epoch
    from bantam.training.setup import Prepared, RunInfo
    from bantam.training.verdict import Verdict

console = Console(highlight=False)


COLOURS = {"met": "green", "not met": "red", "diverged": "red"}
"""Of verdicts; all others are yellow."""


def show_error(error: Exception) -> None:
    """Print what is wrong in one sentence, above the layer table where the error carries one."""
    errors = Console(stderr=True, highlight=False)
    errors.print(f"[bold red]Error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True)
    layers = getattr(error, "layers", None)
    if layers:
        errors.print("", layer_table(layers))


def short_path(path: Path, typed_in: Path | None = None) -> str:
    """A path as a person would type it, from the working folder or the one in which the command was typed."""
    typed_in = typed_in or Path.cwd()
    path = typed_in / path
    return str(path.relative_to(typed_in) if path.is_relative_to(typed_in) else path)


WIDE = 100
"""Columns of a terminal from which on the layer table says what each layer keeps: names of layers come first."""


def layer_table(layers: Sequence["Layer"]) -> Table:
    """What each layer puts out, sees and costs."""
    table = Table(box=None, pad_edge=False, header_style="bold", footer_style="bold", show_footer=True)
    table.add_column("layer", "total")
    table.add_column("output", justify="right")
    wide = console.width >= WIDE
    totals = [
        ("receptive\nfield", ""),
        ("parameters", f"{sum(layer.parameters for layer in layers):,}"),
        ("multiply-adds", f"{sum(layer.multiply_adds for layer in layers):,}"),
        ("bytes of\nactivations", f"{max((layer.activations or 0 for layer in layers), default=0):,}"),
    ]
    for title, total in totals[: None if wide else -1]:
        table.add_column(title, total, justify="right")
    for layer in layers:
        row = (
            layer.name,
            "×".join(map(str, layer.shape)),
            layer.sees,
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
            "" if layer.activations is None else f"{layer.activations:,}",
        )
        table.add_row(*row[: None if wide else -1])
    if any(layer.receptive_field is None for layer in layers):
        table.caption = "empty field: it cannot be known"
    return table


def describe(prepared: "Prepared") -> None:
    """Print the layer table, the budget, the data and the settings."""
    images = prepared.data
    if images.instead or (images.not_judged and images.split == "test"):
        show_instead(images)
    console.print(layer_table(prepared.layers))
    settings = Table.grid(padding=(0, 2))
    settings.add_column(style="bold")
    settings.add_column()
    for key, text in _settings(prepared).items():
        settings.add_row(key, escape(text))
    console.print("", settings, "")
    for note in prepared.notes:
        console.print(f"[bold yellow]Note:[/] {escape(note)}\n", soft_wrap=True)
    if prepared.left_to_pytorch:
        falls_back = " falls back to PyTorch" * (prepared.kernels == "torch")
        text = f"kernels={prepared.cfg.kernels}{falls_back}: {prepared.left_to_pytorch}"
        console.print(f"[bold yellow]Warning:[/] {escape(text)}\n", soft_wrap=True)


def show_instead(images: "Data") -> None:
    """Say on which images one trains that are not the real ones, and why."""
    console.print(
        Panel(
            f"These are not the real test images, so the target is not judged.\n{escape(images.not_judged)}.",
            title=f"Training on {images.name}: {len(images.train_labels):,} images only",
            border_style="bold yellow",
        )
    )


def _settings(prepared: "Prepared") -> dict[str, str]:
    """What a run is about, a line each."""
    cfg, images, info = prepared.cfg, prepared.data, prepared.info
    steps = -(-len(images.train_labels) // cfg.batch_size)
    rates = " ".join(f"{rate:.2g}" for rate in prepared.epoch_rates)
    last = (
        f"every one of the last {cfg.target.last_epochs} epochs"
        if cfg.target.last_epochs > 1
        else "the last epoch"
    )
    epochs = f"{cfg.epochs} epoch{'s' * (cfg.epochs > 1)}"
    split = "held-out" if images.not_judged and images.split == "test" else images.split
    threads = f"{prepared.threads} thread{'s' * (prepared.threads > 1)}"
    precision = str(prepared.precision).removeprefix("torch.")
    first, *others = _costs(prepared)
    return {
        "budget": "; ".join([first, f"{epochs} of at most {cfg.budget.epochs}", *others]),
        "target": f"{cfg.target.accuracy:g} % in {last}",
        "data": f"{images.name}: {len(images.train_labels):,} images to train on, "
        f"{len(images.held_out_labels):,} {split} images scored after every epoch",
        "steps": f"{steps:,} an epoch, {steps * cfg.epochs:,} in all, {cfg.batch_size} images each",
        **{key: _arguments(prepared, key) for key in ("model", "optimizer", "scheduler", "augmentation")},
        **({"smoothing": f"{cfg.label_smoothing:g} of each label"} if cfg.label_smoothing else {}),
        **({"average": f"of the weights, keeping {cfg.ema:g} a step: it is scored and saved"} if cfg.ema else {}),
        "rates": rates + (" (falls with the training loss)" if prepared.schedule.follows_loss else ""),
        "machine": f"{prepared.device.type}, {threads}, {precision}, {prepared.kernels} kernels"
        + ", compiled" * cfg.compile,
        **({"in PyTorch": _not_in_c(prepared)} if prepared.not_in_c else {}),
        "seed": str(cfg.seed),
        "folder": "none: dry_run" if cfg.dry_run else short_path(info.folder, info.typed_in),
    }


def _not_in_c(prepared: "Prepared") -> str:
    """Why C does not compute which convolutions, a line for each reason."""
    layers: dict[str, list[str]] = {}
    for name, reason in prepared.not_in_c.items():
        layers.setdefault(reason, []).append(name)
    return "\n".join(f"{', '.join(names)}: {reason}" for reason, names in layers.items())


def _costs(prepared: "Prepared") -> Iterator[str]:
    """What the network costs, each amount with the limit that it has."""
    from bantam.budget import in_words

    for key, amount in prepared.costs.items():
        limit = prepared.cfg.budget.get(key)
        yield in_words({key: amount}) + ("" if limit is None else f" of fewer than {limit:,}")


def _arguments(prepared: "Prepared", group: str) -> str:
    values = ((str(name), value) for name, value in prepared.cfg[group].items())
    given = ", ".join(f"{name} {value}" for name, value in values if not name.startswith("_"))
    return f"{prepared.info.choices.get(group)}: {given}"


@contextmanager
def progress(prepared: "Prepared", done: int) -> Iterator[Callable[[int, int, float], None]]:
    """Show a bar, which begins after `done` epochs; yields what moves it: epoch, images so far in it, loss."""
    info, epochs, count = prepared.info, prepared.cfg.epochs, len(prepared.data.train_labels)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Bars of jobs side by side would overwrite each other: there every epoch's line has to do.
        disable=not console.is_terminal or info.side_by_side != 1,
    )

    def show(epoch: int, images: int, loss: float) -> None:
        bar.update(task, completed=(epoch - 1) * count + images)
        now = f"{bar.tasks[task].speed or 0:,.0f} images/s   loss {loss:.4f}   left"
        bar.update(task, now=now, description=f"{info.title} epoch {epoch:>2}/{epochs}")

    with bar:
        task = bar.add_task(info.title, total=epochs * count, completed=done * count, now="starting")
        yield show


def show_epoch(info: "RunInfo", epoch: "Epoch", epochs: int) -> None:
    """Print a line for an epoch that has ended."""
    split = "test" if epoch.validation_accuracy is None else "validation"
    console.print(
        f"{info.title} epoch {epoch.epoch:>2}/{epochs}   lr {epoch.lr:<8.3g} "
        f"train {epoch.train_accuracy:5.2f} %   {split} [bold]{epoch.accuracy:5.2f}[/] %   "
        f"{epoch.seconds:5.1f} s   {epoch.images_per_second:,.0f} images/s",
        soft_wrap=True,
    )


def show_interruption(info: "RunInfo", epoch: int, epochs: int) -> None:
    """Say in which epoch a run was interrupted and how it is continued."""
    console.print(
        f"\nInterrupted in epoch {epoch} of {epochs}. Continue with:\n"
        + escape(resuming(short_path(info.folder, info.typed_in))),
        soft_wrap=True,
    )


def show_stopped(again: str = "") -> None:
    """Say that a command was stopped, and which line continues it."""
    console.print(
        "\nStopped. " + escape(f"Finished jobs are kept; continue with:\n{again}" if again else ""), soft_wrap=True
    )


def show_warning(sentence: str) -> None:
    """Say what does not stop anything."""
    console.print(f"[bold yellow]Warning:[/] {escape(sentence)}", soft_wrap=True)


def show_lost(info: "RunInfo", name: str) -> None:
    """Say that a run starts anew, since what it would go on from is gone."""
    text = f"{short_path(info.folder, info.typed_in)} has a history but no {name}: it starts anew with epoch 1"
    console.print(f"[bold yellow]Warning:[/] {escape(text)}", soft_wrap=True)


def show_verdict(info: "RunInfo", verdict: "Verdict") -> None:
    """Print how a run has ended."""
    colour = COLOURS.get(verdict.verdict, "yellow")
    if verdict.objective is None:
        console.print(
            f"[bold {colour}]{info.title} {verdict.verdict}:[/] {escape(verdict.reason)}", soft_wrap=True
        )
        return
    console.print(
        f"[bold {colour}]{info.title}: {verdict.verdict}[/]: {escape(verdict.reason)}. "
        f"Best {verdict.best_accuracy:.2f} % in epoch {verdict.best_epoch}, "
        f"mean of the last {len(verdict.last_accuracies)} {verdict.objective:.2f} %. "
        f"{escape(short_path(info.folder, info.typed_in))}",
        soft_wrap=True,
    )


def show_refusal(info: "RunInfo", error: Exception) -> None:
    """Say of a job in a multirun that it was refused, and why."""
    console.print(
        f"[bold red]job {info.job}, {info.name}: refused[/]: {escape(' '.join(str(error).split()))}",
        soft_wrap=True,
    )
    layers = getattr(error, "layers", None)
    if layers:
        console.print(layer_table(layers))


def show_skipped(info: "RunInfo", result: dict[str, Any]) -> None:
    """Say of a job in a multirun that it was finished before."""
    console.print(f"{info.title}: finished before ({escape(str(result.get('verdict')))})", soft_wrap=True)


def show_failure(info: "RunInfo", reason: str) -> None:
    """Say of a job in a multirun that it failed, and where the traceback is."""
    trace = escape(f"{short_path(info.folder, info.typed_in)}/error.txt")
    line = f"[bold red]job {info.job}, {info.name}: failed[/]: {escape(reason)} ({trace})"
    console.print(line, soft_wrap=True)


def show_evaluation(sentence: str) -> None:
    """Print what came out when a finished run was scored again."""
    console.print(escape(sentence), soft_wrap=True)


def summarize(sweep: Path, wanted: int = 0) -> bool:
    """Print a table of the jobs in a multirun's folder; returns whether all `wanted` ended with an objective.

    Accuracies are percent, the last one the mean of the last epochs.
    """
    from bantam.training.folder import RESULT, read_result

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("folder", "network", "seed", "parameters", "best", "in epoch", "last", "verdict")
    for column in columns:
        text = column in ("folder", "network", "verdict")
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    good = True
    folders = [path for path in sweep.iterdir() if (path / ".hydra").is_dir() or (path / RESULT).exists()]
    for folder in sorted(folders, key=lambda path: (len(path.name), path.name)):
        try:
            result = read_result(folder)
        except ValueError:
            result = {"verdict": "unfinished"}
        good &= result.get("objective") is not None

        def cell(key: str, style: Callable[[Any], str], result: dict[str, Any] = result) -> str:
            return "" if result.get(key) is None else style(result[key])

        table.add_row(
            short_path(folder),
            str(result.get("experiment") or result.get("model") or ""),
            cell("seed", str),
            cell("parameters", "{:,}".format),
            cell("best_accuracy", "{:.2f}".format),
            cell("best_epoch", str),
            cell("objective", "{:.2f}".format),
            str(result["verdict"]) + (" (at chance)" if result.get("at_chance") else ""),
        )
    console.print("", table)
    if len(folders) < wanted:
        console.print(f"[bold red]{wanted - len(folders)} of {wanted} jobs left no folder[/]")
    return good and len(folders) >= wanted
