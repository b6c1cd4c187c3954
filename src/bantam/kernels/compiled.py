"""What all layers have in common whose work a function in C does.

Small networks spend more time on moving their activations through memory than on computing them. In float32 that
goes for every processor, in bfloat16 for those that compute in it.
"""

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

MOST_CHANNELS = 512
MOST_NUMBERS = 2**18
"""Of an image's input or output: with more, they would not fit on the stack, where the C code keeps them."""

OVERWRITTEN = (
    "kernels in C keep the results of a forward pass until its backward pass is over, then the next one "
    "overwrites them: use kernels=torch to go back through a graph again later"
)


class Sum(nn.Module):
    """Adds another map, as the last layers of residual blocks do."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """B×C×H×W twice in, B×C×H×W out."""
        return x + other


def through(layers: Iterable[nn.Module], x: Tensor, other: Tensor | None = None) -> Tensor:
    """What layers make of a map; a `Sum` among them adds the other one."""
    for layer in layers:
        x = layer(x, other) if isinstance(layer, Sum) else layer(x)
    return x


class Reusing(nn.Module):
    """A module whose memory every step uses again: there a forward pass leaves results to the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: Callable[[], object] | None = None
        """The forward pass whose backward pass may come: a weak reference, which ends with the graph."""
        self.owner: object = None
        """The forward pass whose results that memory holds."""

    @property
    def busy(self) -> bool:
        """Whether that memory is in use: between forward and backward, unless the result was thrown away."""
        return self.pending is not None and self.pending() is not None

    def take(self, ctx: Any) -> None:
        """Use that memory for a forward pass; it is not busy."""
        if self.pending is not None:
            self.forget()
        self.pending, ctx.token = weakref.ref(ctx), object()
        self.owner = ctx.token

    def give_back(self, ctx: Any) -> None:
        """The backward pass of it. Raises RuntimeError where its results were overwritten in the meantime."""
        if self.owner is not ctx.token:
            raise RuntimeError(OVERWRITTEN)
        self.pending = None

    def forget(self) -> None:
        """Take other memory next: whoever has thrown away a graph may have kept the result, detached."""
        raise NotImplementedError


class Compiled(Reusing):
    """Layers that C computes. Python's part of a step is short too: small networks would wait for it.

    PyTorch's `layers` compute inputs that C does not, and whatever is in a state that C does not compute: frozen
    statistics, another type of number. Memory that every step uses again is kept: new memory would have to be
    mapped first, page by page. A result is therefore valid until the backward pass is over.
    """

    source: ClassVar[str]
    """The C file."""
    functions: ClassVar[tuple[str, ...]] = ("forward", "backward")
    arguments: ctypes.Structure

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers, self.dtype = nn.Sequential(*layers), dtype
        # A module looks its tensors and layers up slowly: these are asked for in every step.
        self.weights: dict[str, Any] = layers[0]._parameters
        self.memory: dict[str, Tensor] = {}
        self.views: dict[tuple[str, int, int, int, int], Tensor] = {}
        self.libraries: dict[torch.Size, ctypes.CDLL] = {}
        """Compiled, by channels, height and width of the input."""

    def sizes(self, shape: torch.Size) -> dict[str, int] | None:
        """What the C file calls the sizes for inputs of C×H×W; None where it does not compute those."""
        raise NotImplementedError

    def use(self, library: ctypes.CDLL, shape: torch.Size) -> None:
        """Take a compiled library for inputs of C×H×W."""
        for name in self.functions:
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.POINTER(type(self.arguments))], None
        self.libraries[shape] = library

    def library(self, x: Tensor, other: Tensor | None = None) -> ctypes.CDLL | None:
        """What computes this input now; None where PyTorch's layers do."""
        weight = self.weights["weight"]
        if x.dim() == 4 and x.is_cpu and weight.is_cpu and weight.dtype == torch.float32 and len(x):
            return self.libraries.get(x.shape[1:])
        return None

    def buffer(self, name: str, images: int, channels: int, side: int, fresh: bool = False) -> Tensor:
        """Memory for a B×C×H×W tensor, channels last, the same as in the last step unless it must be fresh."""
        size = images, side, side, channels
        if fresh:
            return torch.empty(size, dtype=self.dtype).permute(0, 3, 1, 2)
        view = self.views.get((name, *size))
        if view is None:
            count = images * side * side * channels
            if name not in self.memory or self.memory[name].numel() < count:
                self.memory[name] = torch.empty(count, dtype=self.dtype)
                self.views = {key: view for key, view in self.views.items() if key[0] != name}
            view = self.memory[name][:count].view(size).permute(0, 3, 1, 2)
            self.views[name, *size] = view
        # Detached, or the next layer might not change it in place, as ReLU does.
        return view.detach()

    def bytes(self, name: str, count: int, fresh: bool = False) -> Tensor:
        """So many bytes, the same as in the last step unless they must be fresh."""
        if fresh:
            return torch.empty(count, dtype=torch.uint8)
        if name not in self.memory or len(self.memory[name]) < count:
            self.memory[name] = torch.empty(count, dtype=torch.uint8)
        return self.memory[name]

    def begin(self, ctx: Any, x: Tensor, fresh: bool) -> None:
        """A forward pass: two before a backward pass must not overwrite one another's results."""
        ctx.block, ctx.fresh = self, fresh or self.busy
        # Whoever asked for the gradient of an input may keep it.
        ctx.fresh_gradient = ctx.fresh or x.is_leaf or x.retains_grad
        if not ctx.fresh:
            self.take(ctx)

    def end(self, ctx: Any) -> None:
        """The backward pass of it. Raises RuntimeError where its results were overwritten in the meantime."""
        if not ctx.fresh:
            self.give_back(ctx)

    def forget(self) -> None:
        self.memory.pop("output", None)  # the others are in no result
        self.views = {key: view for key, view in self.views.items() if key[0] != "output"}


class Joined(Reusing):
    """Layers that C computes one after another, as one function of autograd: a chain or a stack.

    They have memory that every step uses again. A second forward pass before the backward pass of the first is
    that of the single layers, which have their own.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.memory: Any = None
        """What `allocate` has returned."""
        self.room: tuple[torch.Size, int] | None = None
        """For images of which shape, and how many, that memory is."""

    def allocate(self, shape: torch.Size) -> Any:
        """For B×C×H×W: the arguments of all functions, B×H×W×C of the output, and whatever else."""
        raise NotImplementedError

    def arguments(self, shape: torch.Size) -> tuple[Any, Tensor]:
        """What the functions get for B×C×H×W images, and the memory of the output, B×C×H×W."""
        images = shape[0]
        if self.room is None or self.room[0] != shape[1:] or self.room[1] < images:
            self.memory, self.room = self.allocate(shape), (shape[1:], images)
        threads = torch.get_num_threads()
        for each in self.memory[0]:
            each.images, each.threads = images, threads
        # Detached, or the next layer might not change it in place, as ReLU does.
        return self.memory[0], self.memory[1][:images].permute(0, 3, 1, 2).detach()

    def forget(self) -> None:
        self.room = None


def storages(tensors: Iterable[Tensor | None]) -> list[torch.UntypedStorage]:
    """The memory of tensors to which C has pointers: while this is kept, it is not freed, wherever they go."""
    return [tensor.untyped_storage() for tensor in tensors if tensor is not None]


class Calls(NamedTuple):
    """What computes layers in training: functions of C, each with the structure that it gets, in their order."""

    forward: Sequence[tuple[Any, ctypes.Structure]]
    backward: Sequence[tuple[Any, ctypes.Structure]]
    first: Any
    """The arguments whose `input` points to the input."""
    last: Any
    """Those whose `grad_output` points to the gradient of the output."""
    output: Tensor
    """B×C×H×W, channels last: its memory."""


def zero_padding(convolution: _ConvNd) -> int | None:
    """How many zeros a convolution adds at each end of each side; None where it adds others."""
    padding = convolution.padding
    if padding == "same" and all(kernel % 2 for kernel in convolution.kernel_size):
        padding = tuple(kernel // 2 for kernel in convolution.kernel_size)
    sides = {0} if padding == "valid" else {None} if isinstance(padding, str) else {*padding}
    zeros = sides == {0} or convolution.padding_mode == "zeros"
    return sides.pop() if len(sides) == 1 and zeros else None
