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


class BlockArguments(ctypes.Structure):
    """What `block.c` gets: the fields of `arguments.h`, which says what they are."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "gamma", "beta")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_variance", "factor", "offset")),
        *((name, ctypes.c_void_p) for name in ("convolved", "output", "statistics", "argmax", "grad_output")),
        *((name, ctypes.c_void_p) for name in ("grad_input", "grad_weight", "grad_gamma", "grad_beta")),
        ("grad_normalized", ctypes.c_void_p),
        ("dropout_seed", ctypes.c_uint64),
        ("dropout_limit", ctypes.c_uint32),
        *((name, ctypes.c_float) for name in ("dropout_scale", "momentum", "epsilon")),
        *((name, ctypes.c_int) for name in ("images", "threads")),
    )


class DepthwiseArguments(ctypes.Structure):
    """What `depthwise.c` gets: the fields of `arguments.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "output")),
        *((name, ctypes.c_void_p) for name in ("grad_output", "grad_input", "grad_weight")),
        *((name, ctypes.c_int) for name in ("images", "threads")),
    )


class Compiled(nn.Module):
    """Layers that C computes. Python's part of a step is short too: small networks would wait for it.

    Memory that every step uses again is kept: new memory would have to be mapped first, page by page.
    """

    arguments: ctypes.Structure

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.convolution, self.dtype = convolution, dtype
        self.memory: dict[str, Tensor] = {}
        self.views: dict[tuple[str, int, int, int, int], Tensor] = {}
        self.libraries: dict[int, ctypes.CDLL] = {}
        """By side of the input."""
        self.busy = False
        """Between forward and backward, while that memory is in use."""

    def compiled(self, side: int) -> ctypes.CDLL:
        """Its functions for images of `side` × `side` pixels. Raises Unavailable."""
        raise NotImplementedError

    def library(self, side: int) -> ctypes.CDLL:
        """The same, asked for in every step."""
        if side not in self.libraries:
            self.libraries[side] = self.compiled(side)
        return self.libraries[side]

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
        # A module looks its tensors up slowly: these are asked for in every step.
        self.found = (convolution._parameters, norm._parameters, norm._buffers)
        self.arguments = BlockArguments(
            dropout_limit=min(round(dropout * 2**16), 2**16 - 1),
            dropout_scale=1 / (1 - dropout),
            momentum=norm.momentum,
            epsilon=norm.eps,
        )

    def compiled(self, side: int) -> ctypes.CDLL:
        bfloat16 = self.dtype == torch.bfloat16
        library = compiler.library(
            "block.c",
            SIDE=side,
            CI=self.convolution.in_channels,
            CO=self.outputs,
            KERNEL=self.kernel,
            RELU_FIRST=self.relu_first,
            POOL=self.pool,
            BFLOAT16=bfloat16,
            MATRIX_UNIT=bfloat16 and compiler.matrix_unit(),
        )
        for function in (library.forward, library.backward, library.score):
            function.argtypes, function.restype = [ctypes.POINTER(BlockArguments)], None
        return library

    def tensors(self) -> list[Tensor]:
        """Weight, gamma, beta, running mean and running variance."""
        convolution, norm, buffers = self.found
        found = [
            convolution["weight"],
            norm["weight"],
            norm["bias"],
            buffers["running_mean"],
            buffers["running_var"],
        ]
        return found  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        x = x.to(self.dtype)
        if not self.training:
            return self.score(x)
        self.found[2]["num_batches_tracked"].add_(1)  # type: ignore[union-attr]
        weight, gamma, beta, _, _ = self.tensors()
        return _Block.apply(x, weight, gamma, beta, self)  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """What `forward` returns outside training."""
        weight, gamma, beta, mean, variance = self.tensors()
        x = x.contiguous(memory_format=torch.channels_last)
        images, _, side, _ = x.shape
        y = self.buffer("output", images, self.outputs, (side - self.kernel + 1) // self.pool, fresh=True)
        factor = gamma / (variance + self.norm.eps).sqrt()
        offset = beta - mean * factor
        weight = weight.contiguous(memory_format=torch.channels_last)
        arguments = self.arguments
        arguments.input, arguments.weight, arguments.output = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        arguments.factor, arguments.offset = factor.data_ptr(), offset.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        self.library(side).score(arguments)
        return y


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, block: Block) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        images, _, side, _ = x.shape
        out = side - block.kernel + 1
        if images * out * out == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        # A block that runs twice before its backward pass must not overwrite its first results.
        ctx.fresh, block.busy = block.busy, True
        convolved = block.buffer("convolved", images, block.outputs, out, ctx.fresh)
        y = block.buffer("output", images, block.outputs, out // block.pool, ctx.fresh)
        argmax = torch.empty(y.numel() if block.pool > 1 else 0, dtype=torch.int32)
        statistics = torch.empty(2, block.outputs)
        # The backward pass drops the same elements again; which ones follows from a number of PyTorch's generator.
        ctx.seed = int(torch.randint(2**63 - 1, ())) if block.dropout else 0
        weight = weight.contiguous(memory_format=torch.channels_last)
        mean, variance = block.tensors()[3:]
        arguments = block.arguments
        arguments.input, arguments.weight = x.data_ptr(), weight.data_ptr()
        arguments.gamma, arguments.beta = gamma.data_ptr(), beta.data_ptr()
        arguments.running_mean, arguments.running_variance = mean.data_ptr(), variance.data_ptr()
        arguments.convolved, arguments.output = convolved.data_ptr(), y.data_ptr()
        arguments.statistics, arguments.argmax = statistics.data_ptr(), argmax.data_ptr()
        arguments.dropout_seed = ctx.seed
        arguments.images, arguments.threads = images, torch.get_num_threads()
        block.library(side).forward(arguments)
        ctx.save_for_backward(x, weight, gamma, beta, statistics, argmax)
        ctx.block, ctx.convolved = block, convolved
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        x, weight, gamma, beta, statistics, argmax = ctx.saved_tensors
        block, convolved = ctx.block, ctx.convolved
        images, inputs, side, _ = x.shape
        grad_output = grad_output.to(block.dtype).contiguous(memory_format=torch.channels_last)
        grad_input = None
        arguments = block.arguments
        arguments.grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = block.buffer("grad_input", images, inputs, side, ctx.fresh)
            arguments.grad_input = grad_input.data_ptr()
        if block.pool == 1:
            normalized = block.buffer("grad_normalized", images, block.outputs, convolved.shape[-1])
            arguments.grad_normalized = normalized.data_ptr()
        block.busy = block.busy and ctx.fresh
        grad_gamma, grad_beta = torch.empty_like(gamma), torch.empty_like(beta)
        grad_weight = torch.empty_like(weight, memory_format=torch.channels_last)
        arguments.input, arguments.weight = x.data_ptr(), weight.data_ptr()
        arguments.gamma, arguments.beta = gamma.data_ptr(), beta.data_ptr()
        arguments.convolved, arguments.grad_output = convolved.data_ptr(), grad_output.data_ptr()
        arguments.statistics, arguments.argmax = statistics.data_ptr(), argmax.data_ptr()
        arguments.grad_weight = grad_weight.data_ptr()
        arguments.grad_gamma, arguments.grad_beta = grad_gamma.data_ptr(), grad_beta.data_ptr()
        arguments.dropout_seed = ctx.seed
        arguments.images, arguments.threads = images, torch.get_num_threads()
        block.library(side).backward(arguments)
        return grad_input, grad_weight, grad_gamma, grad_beta, None


class Depthwise(Compiled):
    """A valid convolution of every channel by itself."""

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__(convolution, dtype)
        self.arguments = DepthwiseArguments()

    def compiled(self, side: int) -> ctypes.CDLL:
        library = compiler.library(
            "depthwise.c",
            SIDE=side,
            CHANNELS=self.convolution.in_channels,
            KERNEL=self.convolution.kernel_size[0],
            BFLOAT16=self.dtype == torch.bfloat16,
        )
        for function in (library.forward, library.backward):
            function.argtypes, function.restype = [ctypes.POINTER(DepthwiseArguments)], None
        return library

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
        y = block.buffer("output", images, channels, side - weight.shape[-1] + 1, ctx.fresh)
        weight = weight.permute(2, 3, 1, 0).contiguous()
        arguments = block.arguments
        arguments.input, arguments.weight, arguments.output = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        block.library(side).forward(arguments)
        ctx.save_for_backward(x, weight)
        ctx.block = block
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        block = ctx.block
        images, channels, side, _ = x.shape
        grad_output = grad_output.to(block.dtype).contiguous(memory_format=torch.channels_last)
        grad_input = None
        arguments = block.arguments
        arguments.grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = block.buffer("grad_input", images, channels, side, ctx.fresh)
            arguments.grad_input = grad_input.data_ptr()
        block.busy = block.busy and ctx.fresh
        grad_weight = torch.empty_like(weight)
        arguments.input, arguments.weight = x.data_ptr(), weight.data_ptr()
        arguments.grad_output, arguments.grad_weight = grad_output.data_ptr(), grad_weight.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        block.library(side).backward(arguments)
        return grad_input, grad_weight.permute(3, 2, 0, 1), None
