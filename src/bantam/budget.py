"""What a network costs, counted before it has any values: no data, no training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


class OverBudget(ValueError):
    """The network has too many parameters; `layers` is its layer table."""

    def __init__(self, message: str, layers: list[Layer]) -> None:
        super().__init__(message)
        self.layers = layers


def layers(model: nn.Module) -> list[Layer]:
    """List the layers of a network in the order in which they run, shared weights counted once.

    It is run on one image of zeros. Raises ValueError where images do not fit through it.
    """
    rows: list[Layer] = []
    counted: set[Tensor] = set()
    field, jump = 1, 1  # receptive field, and input pixels between neighbouring outputs

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal field, jump
        parameters = 0
        for parameter in module.parameters(recurse=False):
            if parameter not in counted:
                counted.add(parameter)
                parameters += parameter.numel()
        if not rows or isinstance(module, (nn.Conv2d, nn.Linear)) or hasattr(module, "kernel_size"):
            rows.append(Layer(_describe(module), (), field, 0, 0))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            rows.append(Layer("global average pool", (), field, 0, 0))
        elif not isinstance(module, (nn.Flatten, nn.Identity)):
            rows[-1].name += f" → {_describe(module)}"
        if isinstance(module, nn.AdaptiveAvgPool2d):
            kernel, stride, dilation = inputs[0].shape[-1], 1, 1
        else:
            kernel, stride, dilation = (
                _side(getattr(module, key, 1)) for key in ("kernel_size", "stride", "dilation")
            )
        field += (kernel - 1) * dilation * jump
        jump *= stride
        rows[-1].receptive_field = field
        rows[-1].shape = tuple(output.shape[1:])
        rows[-1].parameters += parameters
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            rows[-1].multiply_adds += output[0].numel() * module.weight[0].numel()

    device = next((parameter.device for parameter in model.parameters()), None)
    handles = [m.register_forward_hook(record) for m in model.modules() if not list(m.children())]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *IMAGE, device=device))
    except RuntimeError as error:
        raise ValueError(f"a 1×28×28 image does not fit through this network: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return rows


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


def front(costs: Sequence[tuple[int, float]]) -> list[int]:
    """Which networks no other beats, by parameters: positions in a list of parameters and accuracies.

    Of two with the same accuracy the smaller one counts, of two that are the same in both the first.
    """
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i][0], -costs[i][1])):
        if not found or costs[i][1] > costs[found[-1]][1]:
            found.append(i)
    return found
