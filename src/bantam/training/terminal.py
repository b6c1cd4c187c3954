"""All that a run prints: what is trained, its progress, its verdict, the table of a multirun, and errors.

torch is imported only where it is there already: an error in what was typed is shown at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bantam.overrides import resuming
from bantam.training import settings, status
from bantam.training.settings import short_path

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
    show_layers(error, errors)


def show_layers(error: Exception, where: Console = console) -> None:
    """Print the layer table that an error carries, if it does."""
    layers = getattr(error, "layers", None)
    if layers:
        where.print("", layer_table(layers))


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


@dataclass
class _Described:
    """What was printed of the job before, in this process."""

    job: int | None = None
    layers: Sequence["Layer"] = ()
    rows: dict[str, str] = field(default_factory=dict)


described = _Described()


def describe(prepared: "Prepared") -> None:
    """Print the layer table, the budget, the data and the settings; of a further job only what differs."""
    images = prepared.data
    if images.instead or (images.not_judged and images.split == "test"):
        show_instead(images)
    with status.Line(_write, "compiling the blocks of the network"):
        rows = settings.in_words(prepared)
    if prepared.info.job is not None and prepared.layers == described.layers:
        console.print(f"{prepared.info.title}: layers and settings as in job {described.job}, but for")
        rows, described.rows = {k: text for k, text in rows.items() if described.rows.get(k) != text}, rows
    else:
        console.print(layer_table(prepared.layers), "")
        described.layers, described.rows = prepared.layers, rows
    described.job = prepared.info.job
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for key, text in rows.items():
        grid.add_row(key, escape(text))
    console.print(grid, "")
    for note in prepared.notes:
        show_note(f"{note}\n")
    if prepared.left_to_pytorch:
        falls_back = " falls back to PyTorch" * (prepared.kernels == "torch")
        text = f"kernels={prepared.cfg.kernels}{falls_back}: {prepared.left_to_pytorch}"
        console.print(f"[bold yellow]Warning:[/] {escape(text)}\n", soft_wrap=True)


def show_note(sentence: str) -> None:
    """Say what a user may want to know; nothing is wrong."""
    console.print(f"[bold yellow]Note:[/] {escape(sentence)}", soft_wrap=True)


def _write(line: str) -> None:
    console.print(escape(line), soft_wrap=True)


def show_instead(images: "Data") -> None:
    """Say on which images one trains that are not the real ones, and why."""
    console.print(
        Panel(
            f"These are not the real test images, so the target is not judged.\n{escape(images.not_judged)}.",
            title=f"Training on {images.name}: {len(images.train_labels):,} images only",
            border_style="bold yellow",
        )
    )


@contextmanager
def progress(prepared: "Prepared", done: int) -> Iterator[Callable[[int, int, float], None]]:
    """Show a bar, or lines where nobody sees one, which begin after `done` epochs.

    Yields what moves it: epoch, images so far in it, loss.
    """
    info, epochs, count = prepared.info, prepared.cfg.epochs, len(prepared.data.train_labels)
    # Bars of jobs side by side would overwrite each other.
    if not console.is_terminal or info.side_by_side != 1:
        with _lines(info, epochs, count, done) as show:
            yield show
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )

    def show_bar(epoch: int, images: int, loss: float) -> None:
        bar.update(task, completed=(epoch - 1) * count + images)
        now = f"{bar.tasks[task].speed or 0:,.0f} images/s   loss {loss:.4f}   left"
        bar.update(task, now=now, description=f"{info.title} epoch {epoch:>2}/{epochs}")

    with bar:
        task = bar.add_task(info.title, total=epochs * count, completed=done * count, now="starting")
        yield show_bar


@contextmanager
def _lines(info: "RunInfo", epochs: int, count: int, done: int) -> Iterator[Callable[[int, int, float], None]]:
    """As `progress`, where there is no bar."""
    last = done  # the epoch that has a line
    in_place = status.in_notebook() if console.is_jupyter and info.side_by_side == 1 else None

    def show(epoch: int, images: int, loss: float) -> None:
        nonlocal last
        if epoch > last + 1:
            last = epoch - 1
            line.was_written()
        line.update(f"{info.title} epoch {epoch:>2}/{epochs}   {images:,} of {count:,} images   loss {loss:.4f}")

    with status.Line(_write, f"{info.title} epoch {done + 1:>2}/{epochs}   starting", in_place) as line:
        yield show


def show_epoch(prepared: "Prepared", epoch: "Epoch") -> None:
    """Print a line for an epoch that has ended."""
    console.print(
        f"{prepared.info.title} epoch {epoch.epoch:>2}/{prepared.cfg.epochs}   lr {epoch.lr:<8.3g} "
        f"train {epoch.train_accuracy:5.2f} %   {prepared.data.held_out} [bold]{epoch.accuracy:5.2f}[/] %   "
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
    text = (
        f"{short_path(info.folder, info.typed_in)} was begun, but its {name} is gone: it starts anew with epoch 1"
    )
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
        f"{_mean_of(len(verdict.last_accuracies))} {verdict.objective:.2f} %. "
        f"{escape(short_path(info.folder, info.typed_in))}",
        soft_wrap=True,
    )


def _mean_of(epochs: int) -> str:
    return "last epoch" if epochs == 1 else f"mean of the last {epochs}"


def show_refusal(info: "RunInfo", error: Exception) -> None:
    """Say of a job in a multirun that it was refused, and why."""
    console.print(
        f"[bold red]job {info.job}, {info.name}: refused[/]: {escape(' '.join(str(error).split()))}",
        soft_wrap=True,
    )
    show_layers(error)


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


def summarize(sweep: Path, wanted: Sequence[str] = ()) -> bool:
    """Print a table of the jobs in a multirun's folder; returns whether all ended with an objective.

    `wanted` are the folders of its jobs, all of which must be there, and which may be deeper. Accuracies are
    percent, the last one the mean of the last epochs. The multirun's folder stands above: in every row it would
    leave no room for the others.
    """
    from bantam.training.folder import RESULT, read_result

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("folder", "network", "seed", "parameters", "best", "in epoch", "last", "verdict")
    for column in columns:
        text = column in ("folder", "network", "verdict")
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    good, images = True, dict[str, set[str]]()
    there = {*(path.relative_to(sweep) for path in sweep.iterdir()), *map(Path, wanted)}
    folders = {name for name in there if (sweep / name / ".hydra").is_dir() or (sweep / name / RESULT).exists()}
    for name in sorted(folders, key=lambda path: (len(str(path)), path)):
        folder = sweep / name
        try:
            result = read_result(folder)
        except ValueError:
            result = {"verdict": "unfinished"}
        good &= result.get("objective") is not None
        if result.get("data_checksum"):
            images.setdefault(str(result.get("data")), set()).add(result["data_checksum"])

        def cell(key: str, style: Callable[[Any], str], result: dict[str, Any] = result) -> str:
            return "" if result.get(key) is None else style(result[key])

        table.add_row(
            escape(str(name)),
            str(result.get("experiment") or result.get("model") or ""),
            cell("seed", str),
            cell("parameters", "{:,}".format),
            cell("best_accuracy", "{:.2f}".format),
            cell("best_epoch", str),
            cell("objective", "{:.2f}".format),
            str(result["verdict"]) + (" (at chance)" if result.get("at_chance") else ""),
        )
    console.print(f"\n{escape(short_path(sweep))}", soft_wrap=True)
    console.print(table)
    for data in (data for data, checksums in images.items() if len(checksums) > 1):
        show_warning(f"the jobs had different images of {data}, so their accuracies cannot be compared")
    missing = len({Path(name) for name in wanted} - folders)
    if missing:
        console.print(f"[bold red]{missing} of {len(wanted)} jobs left no folder[/]")
    return good and not missing
