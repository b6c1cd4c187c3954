"""How close to the processor's limit is a training step, and where does its time go?

    python benchmarks/limit.py
    python benchmarks/limit.py model=flexible augmentation=affine

The limit is the rate at which PyTorch multiplies two 1024×1024 matrices here, on as many threads. The
step's operations are those of the convolutions and linear layers, forward and backward (no
gradient with respect to the images), by their definition: blocks in float32 that take fewer of them to the
same end can be at more than 100 %. The parts come from PyTorch's profiler over whole steps of training, as
shares of the time that the same steps take without it; what is left is Python and whatever waits between
operations. Augmentation, many small operations that the profiler would make look longer, is timed without it.

What the blocks in C take is told part by part too (see `parts.py`), each beside its own limit: its operations
at the rate of that product, or the bytes that it moves at the rate at which PyTorch copies memory, whichever
takes longer. A type of number that the processor only emulates is not measured. On one thread the time is the
processor's, without that of other processes.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import parts
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile, record_function

from bantam import config
from bantam.augmentation import Augmentation, Changes
from bantam.kernels import compiler
from bantam.kernels.direct import Direct
from bantam.kernels.sgd import Step
from bantam.training.loop import train
from bantam.training.setup import Prepared, RunInfo, prepare

PARTS = {
    "blocks in C": ("_Block", "_Stack", "_Chain", "_Depthwise", "direct step in C"),
    "augmentation": ("augmentation",),
    "optimizer": ("Optimizer.",),
    "dropout": ("_ZeroSome", "aten::dropout", "aten::native_dropout", "aten::bernoulli_", "aten::geometric_"),
    "convolution, linear": (
        "aten::conv",
        "aten::mkldnn_conv",
        "ConvolutionBackward",
        "aten::linear",
        "aten::addmm",
    ),
    "normalisation": ("aten::batch_norm", "aten::native_batch_norm", "NativeBatchNormBackward"),
    "activation": ("aten::relu", "ReluBackward", "aten::threshold_backward"),
    "pooling": (
        "aten::max_pool",
        "aten::avg_pool",
        "MaxPool",
        "AvgPool",
        "aten::adaptive",
        "AdaptiveAvg",
        "MeanBackward",
    ),
    "loss": ("aten::cross_entropy", "NllLoss", "LogSoftmax"),
}
"""Names of operations, or of what calls them, as the profiler spells them."""


class Marked(Augmentation):
    """An augmentation that the profiler sees as one thing, and that takes its time."""

    seconds: ClassVar[float] = 0.0
    """Of all calls so far."""
    begun: ClassVar[list[float]] = []
    """When each step began."""
    clock: ClassVar[Callable[[], float]] = time.perf_counter

    def __init__(self, inner: Augmentation) -> None:
        self.inner = inner

    @contextmanager
    def marked(self) -> Iterator[None]:
        start = Marked.clock()
        with record_function("augmentation"):
            yield
        Marked.seconds += Marked.clock() - start

    def strength(self, progress: float) -> float:
        return self.inner.strength(progress)

    def draw(self, strengths: Tensor) -> Changes:
        with self.marked():
            return self.inner.draw(strengths)

    def apply(self, images: Tensor, changes: Changes) -> Tensor:
        Marked.begun.append(Marked.clock())
        with self.marked():
            return self.inner.apply(images, changes)


def mark_direct_steps() -> None:
    """Let the profiler see the steps that C computes without autograd, and those of SGD."""
    computed, moved = Direct.__call__, Step.__call__

    def marked(self: Direct, x: Tensor, labels: Tensor, smoothing: float) -> tuple[float, int]:
        with record_function("direct step in C"):
            return computed(self, x, labels, smoothing)

    def marked_step(self: Step, optimizer: SGD, closure: None) -> None:
        with record_function("Optimizer.step"):
            moved(self, optimizer, closure)

    Direct.__call__ = marked  # type: ignore[method-assign]
    Step.__call__ = marked_step  # type: ignore[method-assign, assignment]


def product_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP a second of a product of two square matrices, the median of thirty."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(35):
        start = Marked.clock()
        torch.mm(a, b)
        seconds.append(Marked.clock() - start)
    return 2 * size**3 / statistics.median(seconds[5:])


def steps(prepared: Prepared, count: int) -> float:
    """Train `count` steps; returns their seconds, without the scoring."""
    images = min(count * prepared.cfg.batch_size, len(prepared.data.train_labels))
    data = prepared.data
    few = replace(
        data,
        train_images=data.train_images[:images],
        train_labels=data.train_labels[:images],
        held_out_images=data.held_out_images[:1],
        held_out_labels=data.held_out_labels[:1],
    )
    training = replace(
        prepared.training, augmentation=Marked(prepared.augmentation), data=few, epochs=1, seed=1, average=None
    )
    (epoch,) = train(training)
    return images / epoch.images_per_second


def part(event: FunctionEvent | None) -> str:
    """The part of the step that an event belongs to: the outermost that its callers name."""
    found = "other operations"
    while event is not None:
        for name, beginnings in PARTS.items():
            if any(beginning in event.name for beginning in beginnings):
                found = name
        event = event.cpu_parent
    return found


def blocks(prepared: Prepared, operations_a_second: float) -> Table:
    """The parts of the blocks in C, each beside its limit."""
    bytes_a_second = parts.copy_rate()
    title = f"\nin the blocks, one thread; memory is copied at {bytes_a_second / 1e9:.0f} GB/s"
    table = Table(box=None, title=title)
    for column in ("part", "ms a step", "GFLOP/s", "GB/s", "limit, ms", "by", "of it, %"):
        table.add_column(column, justify="left" if column in ("part", "by") else "right")
    for name, found in parts.measure(prepared.training_model, prepared.cfg.batch_size).items():
        least = found.limit(operations_a_second, bytes_a_second)
        by_memory = found.bytes / bytes_a_second > found.operations / operations_a_second
        rates = [amount / max(found.seconds, 1e-9) / 1e9 for amount in (found.operations, found.bytes)]
        table.add_row(
            name,
            f"{1000 * found.seconds:.2f}",
            *(f"{rate:.1f}" if rate else "" for rate in rates),
            *((f"{1000 * least:.2f}", "memory" if by_memory else "arithmetic") if least else ("", "")),
            f"{100 * least / found.seconds:.0f}" if least and found.seconds else "",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps in a measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements")
    parser.add_argument("--threads", type=int, default=1, help="threads")
    parser.add_argument("overrides", nargs="*", help="overrides of the configuration, such as precision=float32")
    arguments = parser.parse_args()
    if arguments.threads == 1:
        Marked.clock = time.process_time
    config.register()
    with initialize_config_dir(str(Path(__file__).resolve().parent.parent / "conf")):
        cfg = compose("config", [f"threads={arguments.threads}", *arguments.overrides])
    groups = ("model", "optimizer", "scheduler", "augmentation", "data")
    prepared = prepare(cfg, RunInfo(Path("none"), dict.fromkeys(groups, "that"), 1, None))
    console = Console()
    with console.status("measuring"):
        # Emulated, a product takes minutes.
        dtypes = {torch.float32, prepared.precision, torch.bfloat16 if compiler.bfloat16() else torch.float32}
        rates: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
        seconds, augmentation = [], []
        steps(prepared, 20)
        for _ in range(arguments.repeats):
            Marked.seconds, Marked.begun = 0.0, []
            steps(prepared, arguments.steps)
            seconds += [after - before for before, after in pairwise(Marked.begun)]
            augmentation.append(Marked.seconds / arguments.steps)
            for dtype, measured in rates.items():
                measured.append(product_rate(dtype))
        Marked.clock, Marked.begun = time.perf_counter, []
        mark_direct_steps()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            steps(prepared, arguments.steps)
    step = statistics.median(seconds)
    profiled_step = (Marked.begun[-1] - Marked.begun[0]) / (len(Marked.begun) - 1)
    spent: Counter[str] = Counter()
    for event in profiled.events() or ():
        spent[part(event)] += event.self_cpu_time_total / 1e6 / arguments.steps * step / profiled_step
    spent["augmentation"] = statistics.median(augmentation)
    macs = [layer.multiply_adds for layer in prepared.layers if layer.multiply_adds]
    flops = 2 * (3 * sum(macs) - macs[0]) * cfg.batch_size
    limit = {dtype: statistics.median(measured) for dtype, measured in rates.items()}
    console.print(
        f"{type(prepared.model).__name__}, {str(prepared.precision).removeprefix('torch.')}, "
        f"{prepared.kernels} kernels, "
        f"{arguments.threads} thread(s): {1000 * step:.1f} ms a step, {cfg.batch_size / step:,.0f} images/s, "
        f"{flops / step / 1e9:.1f} GFLOP/s"
    )
    for dtype, rate in limit.items():
        share = flops / step / rate
        name = str(dtype).removeprefix("torch.")
        best = flops / min(seconds) / max(rates[dtype])
        console.print(
            f"matrix product {name}: {rate / 1e9:.1f} GFLOP/s; the step {share:.0%} of it, "
            f"the fastest step {best:.0%} of the fastest product"
        )
    table = Table(box=None)
    table.add_column("part")
    table.add_column("ms a step", justify="right")
    table.add_column("share, %", justify="right")
    for name, value in spent.most_common():
        table.add_row(name, f"{1000 * value:.2f}", f"{100 * value / step:.1f}")
    rest = step - sum(spent.values())
    table.add_row("Python and the rest", f"{1000 * rest:.2f}", f"{100 * rest / step:.1f}")
    console.print(table)
    if prepared.kernels == "native":
        console.print(blocks(prepared, limit[prepared.precision]))


if __name__ == "__main__":
    main()
