"""What a network costs, counted before it has any values: no data, no training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

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
"""Parameters up to which a network is run on the CPU to list its layers, a matter of milliseconds. The meta device
needs no memory, but loads two seconds' worth of modules first."""


@dataclass
class Layer:
    """One row of the layer table: a convolution, pooling or linear layer and what follows it."""

    name: str
    shape: tuple[int, ...]
    """Output, without the batch dimension: channels × height × width, or features."""
    receptive_field: int
    """Side of the square of input pixels that one output sees, for layers that run one after another."""
    parameters: int
    multiply_adds: int
    """Of the convolutions and linear layers, for one image."""
    activations: int | None = None
    """Most bytes of activations that are kept while it runs, see `Memory`; None in results of older versions."""


class OverBudget(ValueError):
    """The network costs too much; `layers` is its layer table, and `costs` are those of `costs`."""

    def __init__(self, message: str, layers: list[Layer], costs: dict[str, int]) -> None:
        super().__init__(message)
        self.layers, self.costs = layers, costs


def layers(model: nn.Module) -> list[Layer]:
    """List the layers of a network in the order in which they run, shared weights counted once.

    It is run on one image of zeros. Raises ValueError where images do not fit through it.
    """
    rows: list[Layer] = []
    counted: set[Tensor] = set()
    field, jump = 1, 1  # receptive field, and input pixels between neighbouring outputs

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not rows or isinstance(module, (nn.Conv2d, nn.Linear)) or hasattr(module, "kernel_size"):
            rows.append(Layer(_describe(module), (), field, 0, 0))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            rows.append(Layer("global average pool", (), field, 0, 0))
        elif not isinstance(module, (nn.Flatten, nn.Identity)):
            rows[-1].name += f" → {_describe(module)}"
        memory.layer = len(rows) - 1

    def end(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal field, jump
        for parameter in module.parameters(recurse=False):
            if parameter not in counted:
                counted.add(parameter)
                rows[-1].parameters += parameter.numel()
        kernel, stride, dilation = _window(module, inputs[0])
        field += (kernel - 1) * dilation * jump
        jump *= stride
        rows[-1].receptive_field = field
        rows[-1].shape = tuple(output.shape[1:])
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            rows[-1].multiply_adds += output[0].numel() * module.weight[0].numel()

    device = next((parameter.device for parameter in model.parameters()), None)
    handles = []
    for leaf in (module for module in model.modules() if not list(module.children())):
        handles += [leaf.register_forward_pre_hook(begin), leaf.register_forward_hook(end)]
    image = torch.zeros(1, *IMAGE, device=device)
    memory = Memory([*model.parameters(), *model.buffers()])
    try:
        with torch.no_grad(), memory:
            output = model.eval()(image)
    except RuntimeError as error:
        raise ValueError(f"a 1×28×28 image does not fit through this network: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    for layer, kept in memory.kept_by_layer(image, output).items():
        rows[layer].activations = kept
    return rows


class Memory(TorchFunctionMode):
    """Notes what every operation of a network reads and makes, to say what an inference must keep meanwhile.

    An operation needs its inputs and its outputs at the same time, beside everything that a later one still reads,
    as the branch around a residual block. Views and operations in place take no memory, nor do elementwise ones
    and batch norm, which may write over an input that nobody reads later. Weights are not counted, nor is what an
    operation needs for itself.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.layer = 0
        """The row of the layer table in which the next operation is."""
        self._weights = {id(tensor.untyped_storage()) for tensor in weights}
        self._operations: list[tuple[int, bool, dict[int, int], dict[int, int]]] = []
        self._alive: list[Any] = []  # the same storage has the same id as long as it is referred to

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        made = self._sizes(output)
        if made:
            read = self._sizes([args, kwargs])
            self._operations.append((self.layer, _is_elementwise(function), read, made))
        return output

    def _sizes(self, values: Any) -> dict[int, int]:
        """The bytes of the tensors in nested values that are no weights, by the memory in which they lie."""
        storages = [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        self._alive += storages
        return {id(each): each.nbytes() for each in storages if id(each) not in self._weights}

    def kept_by_layer(self, image: Tensor, output: Any) -> dict[int, int]:
        """The most bytes that are kept at a time in each row of the layer table."""
        last_read = dict[int, int]()
        for i, (_, _, read, _) in enumerate(self._operations):
            last_read |= dict.fromkeys(read, i)
        last_read |= dict.fromkeys(self._sizes(output), len(self._operations))
        kept, most = self._sizes(image), dict[int, int]()
        for i, (layer, elementwise, read, made) in enumerate(self._operations):
            kept |= read
            done = [each for each in {**read, **made} if last_read.get(each, i) == i]
            for each in made.keys() - kept.keys():
                over = [old for old in done if elementwise and kept.get(old) == made[each]]
                if over:
                    del kept[over[0]]
                kept[each] = made[each]
            most[layer] = max(most.get(layer, 0), sum(kept.values()))
            for each in done:
                kept.pop(each, None)
        return most


def _is_elementwise(function: Any) -> bool:
    """Whether each element that an operation makes is of one element of its inputs, as PyTorch says of its own."""
    name = getattr(function, "__name__", "").strip("_")
    if name in ("batch_norm", "dropout"):  # with the statistics of an evaluation
        return True
    operation = getattr(torch.ops.aten, name, None)
    overloads = operation.overloads() if operation else ()
    return any(torch.Tag.pointwise in getattr(operation, each).tags for each in overloads)


def _window(module: nn.Module, image: Tensor) -> tuple[int, int, int]:
    """The side of the square that a layer computes an output from, its stride and its dilation, in its input."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return image.shape[-1], 1, 1
    kernel, stride, dilation = (_side(getattr(module, key, 1)) for key in ("kernel_size", "stride", "dilation"))
    return kernel, stride, dilation


def _side(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[-1]


def _describe(module: nn.Module) -> str:
    describe: dict[type[nn.Module], Callable[[], str]] = {
        nn.Conv2d: lambda: "conv {0}×{0}".format(_side(module.kernel_size)),  # type: ignore[arg-type]
        nn.MaxPool2d: lambda: f"max-pool {_side(module.kernel_size)}",  # type: ignore[arg-type]
        nn.AvgPool2d: lambda: f"average-pool {_side(module.kernel_size)}",  # type: ignore[arg-type]
        nn.BatchNorm2d: lambda: "norm",
        nn.Dropout: lambda: "dropout",
        nn.Linear: lambda: "linear",
    }
    for kind, text in describe.items():
        if isinstance(module, kind):
            return text()
    return type(module).__name__


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
