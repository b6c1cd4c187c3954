"""What a network costs, counted before it has any values: no data, no training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from bantam.activations import Memory
from bantam.receptive import Field, ReceptiveFields

COSTS = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "bytes": "bytes of weights",
    "activations": "bytes of activations",
}
"""What a network costs: the key in `budget`, in `result.json` and in `trials.csv`, and what its number counts."""

IMAGE = (1, 28, 28)
"""Channels, height and width of one input image."""

SMALL = 10_000_000
"""Parameters, and numbers of an image, up to which a network is run on the CPU to list its layers, a matter of
milliseconds. The meta device needs no memory, but loads two seconds' worth of modules first."""


@dataclass
class Layer:
    """One row of the layer table: what multiplies or pools, and what follows it."""

    name: str
    shape: tuple[int, ...]
    """Output, without the batch dimension: channels × height × width, or features."""
    receptive_field: Field | None
    """The square or rectangle of input pixels that holds all that an output depends on, of the one that sees most;
    None where it cannot be known, 0 for weights that are not used."""
    parameters: int
    multiply_adds: int
    """Of convolutions and products of matrices, for one image."""
    activations: int | None = None
    """Most bytes of activations that are kept while it runs, see `Memory`; None in results of older versions."""

    @property
    def sees(self) -> str:
        """The receptive field as it is shown: 5 for 5×5, 5×9, or nothing where it cannot be known."""
        field = self.receptive_field or ""
        return "×".join(map(str, field)) if isinstance(field, tuple) else str(field)


class OverBudget(ValueError):
    """The network costs too much; `layers` is its layer table, and `costs` are those of `costs`."""

    def __init__(self, message: str, layers: list[Layer], costs: dict[str, int]) -> None:
        super().__init__(message)
        self.layers, self.costs = layers, costs


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows a network through its steps: its layers, and functions that are called between two of them."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Layer] = []
        self.row_of_step: list[int] = []
        self.inside = 0
        """How many layers are being computed: the functions that they call are theirs."""
        self._fields = ReceptiveFields(image)
        self._unread = {id(parameter): parameter.numel() for parameter in model.parameters()}
        self._parameters, self._multiply_adds, self._computed = 0, 0, False
        self._last: object = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not to be hidden from torch.compile: importing what hides it takes seconds."""
        return False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output, name = operation(*args, **(kwargs or {})), operation.overloadpacket.__name__
        self._parameters += sum(self._unread.pop(id(leaf), 0) for leaf in tree_leaves((args, kwargs)))
        self._multiply_adds += _multiply_adds(name, args, output)
        self._computed |= not operation.is_view and name not in ("clone", "_to_copy")
        self._fields.carry(operation, args, kwargs or {}, output)
        return output

    def end_layer(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A layer has been computed."""
        self.inside -= 1
        if self.inside:
            return
        if isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity | nn.Sequential):
            self._reshape(inputs[0], output)
        else:
            name = _describe(module)
            self._end(name, output, hasattr(module, "kernel_size") or "pool" in name)

    def end_function(self, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        """A function has returned, of which a layer may be made."""
        if self.inside or not isinstance(output, Tensor | tuple | list):
            return
        if self._computed:
            name = _describe_function(function, args, kwargs)
            self._end(name, output, "pool" in name or name == "mean")
        elif args:
            self._reshape(args[0], output)

    def _reshape(self, before: Any, after: Any) -> None:
        if before is self._last and isinstance(after, Tensor) and self.rows:
            self.rows[-1].shape, self._last = tuple(after.shape[1:]), after

    def _end(self, name: str, output: Any, begins: bool) -> None:
        """To a step belongs what was computed since the last one: in a row of its own, or in that of the last."""
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self._computed = False
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            field = self._fields.of(tensors[0]) if tensors else 0
        if field == 0:  # a weight that is computed from others
            return
        if begins or self._multiply_adds or not self.rows:
            self.rows.append(Layer(name, (), field, 0, 0))
        else:
            self.rows[-1].name += f" → {name}"
        row, self._last = self.rows[-1], tensors[0]
        row.shape, row.receptive_field = tuple(tensors[0].shape[1:]), field
        row.parameters += self._parameters
        row.multiply_adds += self._multiply_adds
        self.row_of_step.append(len(self.rows) - 1)
        self._parameters, self._multiply_adds = 0, 0

    def finish(self, kept: Mapping[int, int]) -> list[Layer]:
        """The rows, with the activations that each step keeps."""
        for step, amount in kept.items():
            if self.rows:
                row = self.rows[self.row_of_step[step] if step < len(self.row_of_step) else -1]
                row.activations = max(row.activations or 0, amount)
        left = self._parameters + sum(self._unread.values())
        if left:
            self.rows.append(Layer("not used", (), 0, left, 0))
        return self.rows


def layers(model: nn.Module, image: tuple[int, int, int] = IMAGE) -> list[Layer]:
    """List the layers of a network in the order in which they run, shared weights counted once.

    It is run on one image of zeros. Raises ValueError where images do not fit through it.
    """
    device = next((parameter.device for parameter in model.parameters()), None)
    zeros = torch.zeros(1, *image, device=device)
    trace = _Trace(model, zeros)
    memory = Memory([*model.parameters(), *model.buffers()], lambda: len(trace.row_of_step), trace.end_function)

    def begin(*_: Any) -> None:
        trace.inside += 1

    handles = []
    for leaf in (module for module in model.modules() if not list(module.children())):
        handles += [leaf.register_forward_pre_hook(begin), leaf.register_forward_hook(trace.end_layer)]
    onednn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # in it an LSTM is one operation
    try:
        with torch.no_grad(), memory, trace:
            output = model.eval()(zeros)
    except RuntimeError as error:
        size = "×".join(map(str, image))
        raise ValueError(f"a {size} image does not fit through this network: {error}") from error
    finally:
        torch._C._set_mkldnn_enabled(onednn)
        for handle in handles:
            handle.remove()
    return trace.finish(memory.kept_by_step(zeros, output))


def _multiply_adds(name: str, args: Any, output: Any) -> int:
    """Of an operation of `torch.ops.aten`, as `torch.utils.flop_counter` counts them.

    Importing that loads a compiler for GPUs, which takes longer than all of the counting.
    """
    if name == "convolution":
        weight, transposed = args[1], args[6]
        return int((args[0] if transposed else output).numel() * weight[0].numel())
    if name in ("mm", "bmm", "mv", "dot"):
        return int(output.numel() * args[0].shape[-1])
    if name in ("addmm", "baddbmm", "addmv"):
        return int(output.numel() * args[1].shape[-1])
    if name.startswith("_scaled_dot_product"):
        query, key, value = args[:3]
        return int(query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    return 0


def _sides(value: Any) -> str:
    """The sides of a kernel or of a map: 3 for 3×3 too."""
    sides = [value] if isinstance(value, int) else list(value)
    return str(sides[0]) if len(set(sides)) == 1 else "×".join(map(str, sides))


def _describe(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, _ConvNd):
        return "transposed " * module.transposed + f"conv {'×'.join(map(str, module.kernel_size))}"
    if isinstance(module, nn.BatchNorm2d):
        return "norm"
    if isinstance(module, nn.Dropout | nn.Linear):
        return "dropout" if isinstance(module, nn.Dropout) else "linear"
    if "Pool" in name:
        return _pool(name, getattr(module, "kernel_size", None), getattr(module, "output_size", None))
    return name


def _pool(name: str, kernel: Any, size: Any) -> str:
    """The name of a pooling layer: nn.AdaptiveAvgPool2d and adaptive_avg_pool2d are the same."""
    kind = next((word for short, word in (("max", "max"), ("avg", "average")) if short in name.lower()), name)
    if kernel is not None:
        return f"{kind}-pool {_sides(kernel)}"
    if _sides(size) == "1":
        return f"global {kind} pool"
    return (
        f"{kind}-pool"
        + f" to {'×'.join([_sides(size)] * 2) if isinstance(size, int) else _sides(size)}" * bool(size)
    )


def _describe_function(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__).strip("_")
    if name.startswith(("conv", "max_pool", "avg_pool", "adaptive_")):
        keys = ("weight", "kernel_size", "output_size")
        second = next((kwargs[key] for key in keys if key in kwargs), args[1] if len(args) > 1 else None)
        if name.startswith("conv") and isinstance(second, Tensor):
            return "transposed " * ("transpose" in name) + f"conv {'×'.join(map(str, second.shape[2:]))}"
        return _pool(name, *((None, second) if name.startswith("adaptive_") else (second, None)))
    return {"relu": "ReLU", "batch_norm": "norm"}.get(name, name)


def count(model: nn.Module) -> int:
    """Number of trainable and frozen parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What the file of a network's weights holds by name: parameters and buffers, shared ones once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def costs(model: nn.Module, rows: Sequence[Layer]) -> dict[str, int]:
    """What a network with these layers costs, by the keys of `COSTS`."""
    return {
        "parameters": count(model),
        "multiply_adds": sum(row.multiply_adds for row in rows),
        "bytes": sum(tensor.nbytes for tensor in saved_tensors(model).values()),
        "activations": max((row.activations or 0 for row in rows), default=0),
    }


def excess(costs: Mapping[str, int], limits: Mapping[str, Any]) -> dict[str, int]:
    """By how much each cost that has a limit is over what it allows, one less; 0 or less within it."""
    limited = {key: limits.get(key) for key in costs}
    return {key: costs[key] - limit + 1 for key, limit in limited.items() if limit is not None}


def in_words(amounts: Mapping[str, int]) -> str:
    """Costs as they are read: 9,680 parameters and 1,885,408 multiply-adds."""
    return " and ".join(f"{amount:,} {COSTS[key]}" for key, amount in amounts.items())


def front(costs: Sequence[tuple[int, float]]) -> list[int]:
    """Which networks no other beats, by cost: positions in a list of costs and accuracies.

    Of two with the same accuracy the smaller one counts, of two that are the same in both the first.
    """
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i][0], -costs[i][1])):
        if not found or costs[i][1] > costs[found[-1]][1]:
            found.append(i)
    return found
