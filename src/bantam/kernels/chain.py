"""Separable convolutions that follow one another, as one PyTorch module with one autograd function.

Between two of them nothing but what is in front of a batch norm goes through memory, and a step is a few calls
from Python. The blocks of which a `Chain` is made compute whatever it does not.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bantam.kernels import compiler
from bantam.kernels.arguments import SeparableArguments
from bantam.kernels.blocks import Block
from bantam.kernels.compiled import Calls, Compiled, Joined, storages
from bantam.kernels.depthwise import Depthwise

SOURCE = "separable.c"
FUNCTIONS = ("forward", "finish", "begin_backward", "backward")

LANES, MOST_LANES = 8, 16
"""Numbers that `products.h` computes at a time. So many may be read beyond the end of a row."""

MOST_CHANNELS = 128
MOST_NUMBERS = 2**16
"""Of an image's input or output: with more, they would not fit on the stack."""


class Part(NamedTuple):
    """What one function computes: perhaps a depthwise convolution, then a convolution with what follows it."""

    depthwise: Depthwise | None
    block: Block

    def sizes(self, channels: int, side: int, dtype: torch.dtype) -> dict[str, int] | None:
        """What the C file calls the sizes for inputs of C×H×H; None where it does not compute those."""
        block = self.block
        first = self.depthwise or block
        kernel, padding = first.kernel, first.padding
        side += 2 * padding
        out = side - kernel + 1
        # Vectors run over the ends of pixels: two pixels must be whole vectors, and rows pairs of pixels.
        pairs = channels % LANES == 0 or (channels % (LANES // 2) == 0 and side % 2 == 0 and out % 2 == 0)
        if (
            channels != (self.depthwise.channels if self.depthwise else block.inputs)
            or (self.depthwise and not pairs)
            or out < block.pool
            or max(channels * kernel**2, block.outputs) > MOST_CHANNELS * (kernel**2 if self.depthwise else 1)
            or max(channels, block.outputs) * side**2 > MOST_NUMBERS
        ):
            return None
        bfloat16 = dtype == torch.bfloat16
        return {
            "SIDE": side,
            "PADDING": padding,
            "CI": channels,
            "CO": block.outputs,
            "KERNEL": kernel,
            "POOL": block.pool,
            "DEPTHWISE": int(self.depthwise is not None),
            "BFLOAT16": int(bfloat16),
            "MATRIX_UNIT": int(bfloat16 and self.depthwise is not None and compiler.matrix_unit()),
        }

    def weights(self) -> list[Tensor]:
        """Of the depthwise convolution, where there is one, and of the other; weight and bias of batch norm."""
        own = self.block.tensors()[:3]
        return [self.depthwise.weights["weight"], *own] if self.depthwise else own


class Chain(Joined):
    """A block, and separable convolutions behind it, each with batch norm and ReLU.

    Input and output are float32. In bfloat16 the maps in between, in front of batch norm, are such numbers, and
    the 1×1 convolutions multiply them; sums, depthwise convolutions and batch norm are in float32.

    Outside training, for inputs that ask for a gradient, and for a second forward pass before the backward pass of
    the first, its blocks compute, one by one.
    """

    def __init__(self, blocks: Sequence[Compiled], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(blocks)
        self.dtype, self.outside = dtype, torch.float32
        """Of the maps between its parts, and of input and output."""
        listed = [*blocks]
        self.parts = tuple(
            Part(listed[i - 1] if i else None, listed[i])  # type: ignore[arg-type]
            for i in range(0, len(listed), 2)
        )
        self.libraries: dict[torch.Size, tuple[ctypes.CDLL, ...]] = {}
        """Of each part, by channels, height and width of the input."""

    def sizes(self, shape: torch.Size) -> list[dict[str, int]] | None:
        """Those of every part for inputs of C×H×W; None where C does not compute one of them."""
        channels, side, width = shape
        found = []
        for part in self.parts:
            sizes = part.sizes(channels, side, self.dtype) if side == width else None
            if sizes is None:
                return None
            found.append(sizes)
            channels, side = sizes["CO"], (sizes["SIDE"] - sizes["KERNEL"] + 1) // sizes["POOL"]
            width = side
        return found

    def output_shape(self, shape: torch.Size) -> tuple[int, int]:
        """Channels and side of the output for inputs of C×H×W."""
        sizes = self.sizes(shape)
        assert sizes
        return sizes[-1]["CO"], (sizes[-1]["SIDE"] - sizes[-1]["KERNEL"] + 1) // sizes[-1]["POOL"]

    def compile(self, shape: torch.Size, library: Callable[..., ctypes.CDLL]) -> None:
        """Take what `library` compiles for inputs of C×H×W."""
        sizes = self.sizes(shape)
        if sizes and shape not in self.libraries:
            self.libraries[shape] = tuple(prepared(library(SOURCE, **of_part)) for of_part in sizes)

    def usable(self, x: Tensor) -> tuple[ctypes.CDLL, ...] | None:
        """What computes this input now; None where the blocks do."""
        if not self.training or self.busy or x.requires_grad or not torch.is_grad_enabled():
            return None
        if x.dim() != 4 or x.dtype != torch.float32 or not x.is_cpu:
            return None
        for part in self.parts:
            if not part.block.usual() or any(not w.is_cpu or w.dtype != torch.float32 for w in part.weights()):
                return None
        # PyTorch refuses a single value a channel, which has no variance: its blocks tell.
        return self.libraries.get(x.shape[1:]) if len(x) > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        libraries = self.usable(x)
        if libraries is None:
            return self.blocks(x)  # type: ignore[no-any-return]
        return _Chain.apply(x, self, libraries, *self.trained())  # type: ignore[no-any-return]

    def trained(self) -> list[Tensor]:
        """The weights of all parts."""
        return [weight for part in self.parts for weight in part.weights()]

    def draw(self) -> None:
        """Nothing is random in it."""

    def calls(self, shape: torch.Size, gradients: Sequence[Tensor | None]) -> Calls:
        """What computes B×C×H×W images, and the gradients of the weights, in training."""
        libraries = self.libraries[shape[1:]]
        arguments, output = self.arguments(shape)
        weights, rest = iter(self.trained()), iter(gradients)
        for part, of_part in zip(self.parts, arguments, strict=True):
            set_weights(part, of_part, weights)
            set_gradients(part, of_part, rest)
        both = [*zip(libraries, arguments, strict=True)]
        forward = [(library.forward, of_part) for library, of_part in both]
        forward += [(libraries[-1].finish, arguments[-1])]
        backward = [(libraries[-1].begin_backward, arguments[-1])]
        backward += [(library.backward, of_part) for library, of_part in reversed(both)]
        return Calls(forward, backward, arguments[0], arguments[-1], output)

    def allocate(self, shape: torch.Size) -> tuple[tuple[SeparableArguments, ...], Tensor, list[Tensor]]:
        sizes = self.sizes(shape[1:])
        assert sizes
        return allocated(sizes, shape[0])


def prepared(library: ctypes.CDLL) -> ctypes.CDLL:
    """A library whose functions know what they get."""
    for name in FUNCTIONS:
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(SeparableArguments)], None
    return library


def allocated(
    sizes: Sequence[dict[str, int]], images: int
) -> tuple[tuple[SeparableArguments, ...], Tensor, list[Tensor]]:
    """Arguments that point to memory which every step uses again, that of the output, and all of it."""
    kept = []

    of_maps = torch.bfloat16 if sizes[0]["BFLOAT16"] else torch.float32

    def room(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        kept.append(torch.zeros(count + MOST_LANES, dtype=dtype))
        return kept[-1]

    sides = [(part["SIDE"] - part["KERNEL"] + 1, part["CO"], part["POOL"]) for part in sizes]
    pooled = [images * (side // pool) ** 2 * channels for side, channels, pool in sides]
    # The gradient in front of a block is not needed any more once that of the block before it is known.
    gradients = [room(max(pooled), of_maps) for _ in range(2)]
    output = room(pooled[-1])
    arguments = []
    for i, (side, channels, pool) in enumerate(sides):
        convolved = room(images * side**2 * channels, of_maps)
        where = {
            "convolved": convolved,
            "pooled": room(pooled[i], of_maps) if pool > 1 else convolved,
            "statistics": room(2 * channels),
            "factor": room(channels),
            "offset": room(channels),
            "output": output,
            "gradient": gradients[i % 2],
            "sums": room(2 * channels, torch.float64),
        }
        arguments.append(SeparableArguments(**{name: tensor.data_ptr() for name, tensor in where.items()}))
    for before, after in pairwise(arguments):
        after.input, after.in_statistics = before.pooled, before.statistics
        after.in_factor, after.in_offset = before.factor, before.offset
        after.in_gradient, after.in_sums = before.gradient, before.sums
    side, channels, pool = sides[-1]
    side //= pool
    return tuple(arguments), output[: pooled[-1]].view(images, side, side, channels), kept


def set_weights(part: Part, arguments: SeparableArguments, weights: Iterator[Tensor]) -> list[Tensor]:
    """Let C read the weights of a part, and what batch norm has; returns the weights as they lie in memory."""
    found = [next(weights).contiguous()] if part.depthwise else []
    found += [next(weights).contiguous(memory_format=torch.channels_last), next(weights), next(weights)]
    if part.depthwise:
        arguments.depthwise = found[0].data_ptr()
    arguments.weight, arguments.gamma, arguments.beta = (weight.data_ptr() for weight in found[-3:])
    mean, variance = part.block.tensors()[3:]
    arguments.running_mean, arguments.running_variance = mean.data_ptr(), variance.data_ptr()
    arguments.batches = part.block.norm[2]["num_batches_tracked"].data_ptr()
    arguments.momentum, arguments.epsilon = part.block.norm[0].momentum, part.block.norm[0].eps
    return found


def set_gradients(part: Part, arguments: SeparableArguments, gradients: Iterator[Tensor | None]) -> None:
    """Let C write the gradients of the weights of a part."""
    names = ["grad_depthwise"] if part.depthwise else []
    for name in (*names, "grad_weight", "grad_gamma", "grad_beta"):
        gradient = next(gradients)
        assert gradient is not None
        setattr(arguments, name, gradient.data_ptr())


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: Chain, libraries: tuple[ctypes.CDLL, ...], *weights: Tensor) -> Tensor:
        chain.take(ctx)
        ctx.chain, ctx.libraries = chain, libraries
        x = x.contiguous(memory_format=torch.channels_last)
        arguments, output = chain.arguments(x.shape)
        arguments[0].input = x.data_ptr()
        remaining, kept = iter(weights), []
        for part, of_part, library in zip(chain.parts, arguments, libraries, strict=True):
            kept += set_weights(part, of_part, remaining)
            library.forward(of_part)
        libraries[-1].finish(arguments[-1])
        ctx.save_for_backward(x, *kept)
        ctx.storages = storages((x, *kept))  # a network may set the `data` of its weights before the backward pass
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        _, *weights = ctx.saved_tensors
        chain = ctx.chain
        chain.give_back(ctx)
        arguments = chain.memory[0]  # as the forward pass has left them: it was the last one
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        arguments[-1].grad_output = grad_output.data_ptr()
        gradients = [torch.empty_like(weight) for weight in weights]
        rest = iter(gradients)
        for part, of_part in zip(chain.parts, arguments, strict=True):
            set_gradients(part, of_part, rest)
        ctx.libraries[-1].begin_backward(arguments[-1])
        for of_part, library in zip(reversed(arguments), reversed(ctx.libraries), strict=True):
            library.backward(of_part)
        return None, None, None, *gradients
