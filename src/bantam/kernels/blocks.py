"""Layers whose work a function in C does, as PyTorch modules with their autograd functions.

A `Block` is a function of `block.c`, a `Depthwise` one of `depthwise.c`: these small networks spend more time on
moving their activations through memory than on computing them. In float32 that goes for every processor, in
bfloat16 for those that compute in it.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from bantam.kernels import compiler

Shape = tuple[int, int, int, int, bool, int, bool]
"""Side and channels of the input, channels of the output, side of the kernel, whether ReLU comes first, side of
the max-pool's squares, whether images are bfloat16."""

SIZES = ("SIDE", "CI", "CO", "KERNEL", "RELU_FIRST", "POOL", "BFLOAT16")
"""What `block.c` calls them."""


def functions(shape: Shape) -> tuple[Any, Any, Any]:
    """A shape's `forward`, `backward` and `score`, compiled or found compiled. Raises Unavailable."""
    sizes = (*zip(SIZES, shape, strict=True), ("MATRIX_UNIT", shape[-1] and compiler.matrix_unit()))
    library = compiler.library("block.c", sizes)
    pointer, floats, whole = ctypes.c_void_p, ctypes.c_float, ctypes.c_int
    dropout = (ctypes.c_uint64, ctypes.c_uint32, floats)
    forward, backward, score = library.forward, library.backward, library.score
    forward.argtypes = [*[pointer] * 6, floats, floats, *[pointer] * 4, *dropout, whole, whole]
    backward.argtypes = [*[pointer] * 13, *dropout, whole, whole]
    score.argtypes = [*[pointer] * 5, whole, whole]
    forward.restype = backward.restype = score.restype = None
    return forward, backward, score


def depthwise_functions(side: int, channels: int, kernel: int, bfloat16: bool) -> tuple[Any, Any]:
    """`forward` and `backward` of a convolution of every channel by itself. Raises Unavailable."""
    sizes = (("SIDE", side), ("CHANNELS", channels), ("KERNEL", kernel), ("BFLOAT16", bfloat16))
    library = compiler.library("depthwise.c", sizes)
    forward, backward = library.forward, library.backward
    forward.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int, ctypes.c_int]
    backward.argtypes = [*[ctypes.c_void_p] * 5, ctypes.c_int, ctypes.c_int]
    forward.restype = backward.restype = None
    return forward, backward


class Compiled(nn.Module):
    """Layers whose place a function in C takes. In a step it is quick in Python too, where a small network waits.

    Memory that every step uses again is kept: what is fresh would have to be mapped first, page by page.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.convolution, self.dtype = convolution, dtype
        self.memory: dict[str, Tensor] = {}
        self.views: dict[tuple[str, int, int, int, int], Tensor] = {}
        self.functions: dict[int, tuple[Any, ...]] = {}
        """By side of the input."""
        self.busy = False
        """Between forward and backward, while that memory is in use."""

    def compiled(self, side: int) -> tuple[Any, ...]:
        """Its compiled functions for images of `side` × `side` pixels. Raises Unavailable."""
        raise NotImplementedError

    def function(self, side: int, which: int) -> Any:
        """One of them."""
        if side not in self.functions:
            self.functions[side] = self.compiled(side)
        return self.functions[side][which]

    def buffer(self, name: str, images: int, channels: int, side: int, fresh: bool = False) -> Tensor:
        """Memory for a B×C×H×W tensor, channels last, in its place of the last step unless it must be fresh."""
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


class Block(Compiled):
    """A valid convolution, batch norm, ReLU, perhaps dropout and a max-pool, as one function."""

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm: nn.BatchNorm2d,
        relu_first: bool,
        dropout: float,
        pool: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(convolution, dtype)
        self.norm = norm
        self.relu_first, self.dropout, self.pool = relu_first, dropout, pool
        self.outputs, self.kernel = convolution.out_channels, convolution.kernel_size[0]
        self.momentum, self.epsilon = norm.momentum, norm.eps
        # A module looks its tensors up slowly: these are asked for in every step.
        self.found = (convolution._parameters, norm._parameters, norm._buffers)

    def compiled(self, side: int) -> tuple[Any, ...]:
        bfloat16 = self.dtype == torch.bfloat16
        inputs = self.convolution.in_channels
        return functions((side, inputs, self.outputs, self.kernel, self.relu_first, self.pool, bfloat16))

    def tensors(self) -> list[Tensor]:
        """Weight, factors, offsets, running mean and running variance."""
        convolution, norm, buffers = self.found
        found = (
            convolution["weight"],
            norm["weight"],
            norm["bias"],
            buffers["running_mean"],
            buffers["running_var"],
        )
        return found  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        x = x.to(self.dtype)
        if not self.training:
            return self.score(x)
        self.found[2]["num_batches_tracked"].add_(1)  # type: ignore[union-attr]
        weight, gamma, beta, _, _ = self.tensors()
        return _Fused.apply(x, weight, gamma, beta, self)  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """What `forward` returns outside training."""
        weight, gamma, beta, mean, variance = self.tensors()
        x = x.contiguous(memory_format=torch.channels_last)
        images, _, side, _ = x.shape
        y = self.buffer("y", images, self.outputs, (side - self.kernel + 1) // self.pool, fresh=True)
        factor = gamma / (variance + self.epsilon).sqrt()
        offset = beta - mean * factor
        weight = weight.contiguous(memory_format=torch.channels_last)
        pointers = (t.data_ptr() for t in (x, weight, factor, offset, y))
        self.function(side, 2)(*pointers, images, torch.get_num_threads())
        return y


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, block: Block) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        images, _, side, _ = x.shape
        out = side - block.kernel + 1
        # A block that runs twice before its backward pass must not overwrite its first results.
        ctx.fresh, block.busy = block.busy, True
        z = block.buffer("z", images, block.outputs, out, ctx.fresh)
        y = block.buffer("y", images, block.outputs, out // block.pool, ctx.fresh)
        at = torch.empty(y.numel() if block.pool > 1 else 0, dtype=torch.int32)
        saved = torch.empty(2, block.outputs)
        # The backward pass drops the same elements again; which ones follows from a number of PyTorch's generator.
        seed = int(torch.randint(2**63 - 1, ())) if block.dropout else 0
        ctx.dropout = (seed, min(round(block.dropout * 2**16), 2**16 - 1), 1 / (1 - block.dropout))
        weight = weight.contiguous(memory_format=torch.channels_last)
        block.function(side, 0)(
            *(t.data_ptr() for t in (x, weight, gamma, beta, *block.tensors()[3:])),
            *(block.momentum, block.epsilon),
            *(t.data_ptr() for t in (z, y, saved, at)),
            *(*ctx.dropout, images, torch.get_num_threads()),
        )
        ctx.save_for_backward(x, weight, gamma, beta, saved, at)
        ctx.block, ctx.z = block, z
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        x, weight, gamma, beta, saved, at = ctx.saved_tensors
        block, z = ctx.block, ctx.z
        images, inputs, side, _ = x.shape
        gy = gy.to(block.dtype).contiguous(memory_format=torch.channels_last)
        gx = block.buffer("gx", images, inputs, side, ctx.fresh) if ctx.needs_input_grad[0] else None
        g = block.buffer("g", images, block.outputs, z.shape[-1]) if block.pool == 1 else gy  # gy: any would do
        block.busy = block.busy and ctx.fresh
        ggamma, gbeta = torch.empty_like(gamma), torch.empty_like(beta)
        gweight = torch.empty_like(weight, memory_format=torch.channels_last)
        block.function(side, 1)(
            *(t.data_ptr() for t in (gy, x, z, gamma, beta, saved, weight)),
            None if gx is None else gx.data_ptr(),
            *(t.data_ptr() for t in (gweight, ggamma, gbeta, at, g)),
            *(*ctx.dropout, images, torch.get_num_threads()),
        )
        return gx, gweight, ggamma, gbeta, None


class Depthwise(Compiled):
    """A valid convolution of every channel by itself."""

    def compiled(self, side: int) -> tuple[Any, ...]:
        kernel, bfloat16 = self.convolution.kernel_size[0], self.dtype == torch.bfloat16
        return depthwise_functions(side, self.convolution.in_channels, kernel, bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        return _Depthwise.apply(x.to(self.dtype), self.convolution.weight, self)  # type: ignore[no-any-return]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, block: Depthwise) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, side, _ = x.shape
        ctx.fresh = block.busy or not block.training
        block.busy = block.busy or block.training
        y = block.buffer("y", images, channels, side - weight.shape[-1] + 1, ctx.fresh)
        rows = weight.permute(2, 3, 1, 0).contiguous()
        pointers = (t.data_ptr() for t in (x, rows, y))
        block.function(side, 0)(*pointers, images, torch.get_num_threads())
        ctx.save_for_backward(x, rows)
        ctx.block = block
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, rows = ctx.saved_tensors
        block = ctx.block
        images, channels, side, _ = x.shape
        gy = gy.to(block.dtype).contiguous(memory_format=torch.channels_last)
        gx = block.buffer("gx", images, channels, side, ctx.fresh) if ctx.needs_input_grad[0] else None
        block.busy = block.busy and ctx.fresh
        grows = torch.empty_like(rows)
        block.function(side, 1)(
            *(t.data_ptr() for t in (gy, x, rows)),
            *(None if gx is None else gx.data_ptr(), grows.data_ptr()),
            *(images, torch.get_num_threads()),
        )
        return gx, grows.permute(3, 2, 0, 1), None
