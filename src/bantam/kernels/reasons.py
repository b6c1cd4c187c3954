"""Why PyTorch computes what it does of a network with blocks in C: its convolutions, and its sums."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from bantam.kernels.compiled import MOST_CHANNELS, MOST_NUMBERS, zero_padding

UNEVEN_STRIDE = "with a stride for each side"
STRIDE_IN_BFLOAT16 = "with a stride in bfloat16"
BARE = "without a batch norm that fits behind it"
UNTRACED = "in a forward that cannot be traced"

SUM = "a residual sum: the C blocks compute it in float32 only, and only right behind a batch norm"
"""Why the sum of a residual block is PyTorch's."""


def hooked(layer: nn.Module) -> bool:
    """Whether a layer calls functions of its user: among them those that compute a weight from others."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)


def fits(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of a kind that there is C code for, groups aside."""
    return type(layer) is nn.Conv2d and not any(unfit(layer))


def depthwise(layer: nn.Module) -> bool:
    """Whether a convolution computes every channel by itself."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def unfit(layer: _ConvNd) -> Iterator[str]:
    """What of a convolution C does not compute."""
    shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    whats: dict[str, Callable[[], Any]] = {
        "with hooks": lambda: hooked(layer),
        "of another kind than Conv2d": lambda: type(layer) is not nn.Conv2d,
        "whose kernel is not square": lambda: len(set(layer.kernel_size)) > 1,
        UNEVEN_STRIDE: lambda: len({*layer.stride}) > 1,
        f"with dilation {layer.dilation[0]}": lambda: set(layer.dilation) != {1},
        "with padding": lambda: zero_padding(layer) is None,
        f"with more than {MOST_CHANNELS} channels": lambda: max(shape[0], layer.in_channels) > MOST_CHANNELS,
        "whose weight is not of its shape in float32": lambda: (
            layer.weight.shape != shape or any(p.dtype != torch.float32 for p in layer.parameters())
        ),
    }
    return (what for what, holds in whats.items() if holds())


def explained(layer: _ConvNd, what: str) -> str:
    """Why C does not compute a convolution, with what helps where something does."""
    return {
        "with padding": _explained_padding(layer),
        UNEVEN_STRIDE: f"stride {layer.stride}: the C blocks move by as many pixels down as across",
        STRIDE_IN_BFLOAT16: "a stride in bfloat16: the C blocks have strides in float32, use precision=float32",
        f"with dilation {layer.dilation[0]}": f"dilation {layer.dilation[0]}: the C blocks compute none",
        BARE: "no batch norm alone reads its output, by way of a ReLU or not: the C blocks need one",
        UNTRACED: "in a forward that does more than compute (it looks at values, changes attributes, prints, "
        "draws, enters a context): the C blocks take the place of layers in one that can be traced by torch.fx",
    }.get(what, f"{what}: the C blocks compute no such convolution")


def _explained_padding(layer: _ConvNd) -> str:
    """What of a padding the C blocks do not have."""
    if layer.padding_mode != "zeros":
        return f"padding_mode {layer.padding_mode}: the C blocks pad with zeros"
    return f"padding {layer.padding}: the C blocks pad all four sides alike"


def why(layer: _ConvNd, x: Tensor, traced: bool = True) -> str:
    """Why PyTorch computes a convolution that C might; `traced` says whether a graph has it."""
    height, width = x.shape[2:]
    if height != width:
        return f"of maps of {height}×{width} pixels"
    if layer.groups > 1 and not depthwise(layer):
        return f"in {layer.groups} groups"
    if layer.stride[0] > 1 and not depthwise(layer) and torch.is_autocast_enabled("cpu"):
        return STRIDE_IN_BFLOAT16
    side = height + 2 * (zero_padding(layer) or 0)
    if max(layer.in_channels, layer.out_channels) * side**2 > MOST_NUMBERS:
        return f"of maps of {height}×{width} pixels, too many"
    return BARE if traced else UNTRACED


class Sums(TorchFunctionMode):
    """While it is entered: which modules of a network add one map to another, as residual blocks do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.running: list[nn.Module] = []
        self.found = Counter[str]()
        """How many each has."""

    def reasons(self, in_c: Counter[str]) -> dict[str, str]:
        """Why PyTorch computes those that blocks do not, by what the line `in PyTorch` calls them."""
        return {f"sum in {name}" if name else "sum": SUM for name in self.found - in_c}

    def __enter__(self) -> "Sums":
        def begin(module: nn.Module, inputs: object) -> None:
            self.running.append(module)

        def end(module: nn.Module, inputs: object, output: object) -> None:
            self.running.pop()

        self.handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        maps = [each for each in arguments[:2] if isinstance(each, Tensor) and each.dim() == 4]
        if (
            function.__name__.strip("_") in ("add", "iadd", "radd")
            and len(maps) == 2
            and maps[0][0, 0].numel() > 1
        ):
            name = self.names.get(self.running[-1], "") if self.running else ""
            self.found[name] += 1
        return function(*arguments, **(options or {}))
