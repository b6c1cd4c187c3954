"""A convolution and what follows it, whose work `block.c` does, as a PyTorch module with its autograd function."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bantam.kernels import compiler
from bantam.kernels.arguments import BlockArguments
from bantam.kernels.compiled import MOST_CHANNELS, MOST_NUMBERS, Compiled, Sum, through, zero_padding

MOST_DROPPED = 0.99
"""C decides on an element by 16 random bits, too few to tell apart rates near 1."""


def bytes_of_dropped(side: int, channels: int) -> int:
    """Of an image whose map, in front of the pooling, has this side: see `dropout.h`."""
    return side * ((side * channels + 31) // 32 * 4) + 4


class Block(Compiled):
    """A convolution, batch norm, perhaps ReLU before or behind it, dropout and pooling: one function.

    In its place dropout and pooling may be the `Sum` of a residual block, in front of ReLU.
    """

    source, functions = "block.c", ("forward", "backward", "score")

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(layers, dtype)
        convolution = layers[0]
        assert isinstance(convolution, nn.Conv2d)
        self.inputs, self.outputs = convolution.in_channels, convolution.out_channels
        self.kernel, self.padding = int(convolution.kernel_size[0]), zero_padding(convolution) or 0
        self.stride, self.depthwise = int(convolution.stride[0]), convolution.groups > 1
        self.relu_first = isinstance(layers[1], nn.ReLU)
        self.relu = any(isinstance(layer, nn.ReLU) for layer in layers)
        norm = layers[1 + self.relu_first]
        pool = layers[-1]
        self.average = isinstance(pool, nn.AvgPool2d)
        self.pool = int(pool.kernel_size) if isinstance(pool, nn.MaxPool2d | nn.AvgPool2d) else 1  # type: ignore[arg-type]
        # In tuples, since a module would look these up slowly.
        self.norm: tuple[Any, dict[str, Any], dict[str, Any]] = (norm, norm._parameters, norm._buffers)
        self.sum = any(isinstance(layer, Sum) for layer in layers)
        self.dropout = tuple(layer for layer in layers if isinstance(layer, nn.Dropout))
        self.arguments = BlockArguments()

    def sizes(self, shape: torch.Size) -> dict[str, int] | None:
        channels, height, width = shape
        side, out = height + 2 * self.padding, self.side_of_output(height)
        if (
            channels != self.inputs
            or height != width
            or out < self.pool
            or ((self.stride > 1 or self.sum) and self.dtype == torch.bfloat16)
            or max(self.inputs, self.outputs) > MOST_CHANNELS
            or max(self.inputs, self.outputs) * side**2 > MOST_NUMBERS
        ):
            return None
        bfloat16 = self.dtype == torch.bfloat16
        return {
            "SIDE": side,
            "PADDING": self.padding,
            "CI": self.inputs,
            "CO": self.outputs,
            "KERNEL": self.kernel,
            "STRIDE": self.stride,
            "DEPTHWISE": int(self.depthwise),
            "RELU_FIRST": int(self.relu_first),
            "RELU": int(self.relu),
            "BIAS": int(self.weights["bias"] is not None),
            "POOL": self.pool,
            "AVERAGE": int(self.average),
            "SUM": int(self.sum),
            "BFLOAT16": int(bfloat16),
            "MATRIX_UNIT": int(bfloat16 and compiler.matrix_unit()),
        }

    def side_of_output(self, side: int) -> int:
        """That of the convolution, in front of the pooling, for inputs of this side."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1

    def usual(self) -> bool:
        """Whether its layers are in a state that C computes."""
        norm, _, buffers = self.norm
        dropout = self.dropout[0] if self.dropout else None
        return (
            norm.training is self.training
            and norm.momentum is not None
            and buffers["running_mean"] is not None
            and not (dropout and (dropout.training is not self.training or dropout.p > MOST_DROPPED))
        )

    def library(self, x: Tensor, other: Tensor | None = None) -> ctypes.CDLL | None:
        library = super().library(x) if self.usual() else None
        if library is not None and other is not None:
            side = self.side_of_output(x.shape[2])
            same = other.shape == (len(x), self.outputs, side, side) and other.dtype == self.dtype == x.dtype
            library = library if same and other.is_cpu else None
        if not self.training:
            # The function for scoring brings no gradients.
            tensors = (x, *self.parameters()) if other is None else (x, other, *self.parameters())
            wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
            return None if wanted else library
        # PyTorch refuses a single value a channel, which has no variance.
        return None if len(x) == 1 and self.side_of_output(x.shape[2]) == 1 else library

    def tensors(self) -> list[Tensor]:
        """Weight, gamma, beta, running mean and running variance."""
        _, norm, buffers = self.norm
        weight, gamma, beta = self.weights["weight"], norm["weight"], norm["bias"]
        return [weight, gamma, beta, buffers["running_mean"], buffers["running_var"]]

    def trained(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The weights that have a gradient: weight and bias of the convolution, then those of batch norm."""
        norm = self.norm[1]
        return self.weights["weight"], self.weights["bias"], norm["weight"], norm["bias"]

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last; `other`, which a sum adds, is like the output."""
        library = self.library(x, other)
        if library is None:
            return through(self.layers, x, other)
        x = x.to(self.dtype)
        if other is not None:
            other = other.contiguous(memory_format=torch.channels_last)
        if not self.training:
            return self.score(x, other, library)
        return _Block.apply(x, *self.trained(), other, self, library)  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, x: Tensor, other: Tensor | None, library: ctypes.CDLL) -> Tensor:
        """What `forward` returns outside training."""
        weight, gamma, beta, mean, variance = self.tensors()
        x = x.contiguous(memory_format=torch.channels_last)
        images, _, side, _ = x.shape
        y = self.buffer("output", images, self.outputs, self.side_of_output(side) // self.pool, fresh=True)
        factor = gamma / (variance + self.norm[0].eps).sqrt()
        bias = self.weights["bias"]
        bias = bias if bias is None else bias.contiguous()
        # In front of batch norm C leaves the bias out.
        offset = beta - (mean if bias is None or self.relu_first else mean - bias) * factor
        weight = weight.contiguous(memory_format=torch.channels_last)
        arguments = self.arguments
        arguments.input, arguments.weight, arguments.output = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        arguments.factor, arguments.offset = factor.data_ptr(), offset.data_ptr()
        arguments.bias = None if bias is None else bias.data_ptr()
        arguments.other = None if other is None else other.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        library.score(arguments)
        return y


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        other: Tensor | None,
        block: Block,
        library: ctypes.CDLL,
    ) -> Tensor:
        block.begin(ctx, x, fresh=False)
        x = x.contiguous(memory_format=torch.channels_last)
        images, _, side, _ = x.shape
        out = block.side_of_output(side)
        convolved = block.buffer("convolved", images, block.outputs, out, ctx.fresh)
        y = block.buffer("output", images, block.outputs, out // block.pool, ctx.fresh)
        max_pool = block.pool > 1 and not block.average
        argmax = block.bytes("argmax", y.numel() if max_pool else 0, ctx.fresh)
        statistics = torch.empty(2, block.outputs)
        p = block.dropout[0].p if block.dropout else 0.0
        # Where there is a max-pool, `argmax` says which elements are dropped.
        drops = p > 0 and not max_pool
        dropped = block.bytes("dropped", drops * images * bytes_of_dropped(out, block.outputs), ctx.fresh)
        # Which elements are dropped follows from a number of PyTorch's generator.
        ctx.dropout = (int(torch.randint(2**63 - 1, ())) if p else 0, round(p * 2**16), 1 / (1 - p))
        weight = weight.contiguous(memory_format=torch.channels_last)
        gamma, beta = gamma.contiguous(), beta.contiguous()
        bias = bias if bias is None else bias.contiguous()
        mean, variance = block.tensors()[3:]
        norm = block.norm[0]
        arguments = block.arguments
        arguments.momentum, arguments.epsilon = norm.momentum, norm.eps
        arguments.dropout_seed, arguments.dropout_limit, arguments.dropout_scale = ctx.dropout
        arguments.input, arguments.weight = x.data_ptr(), weight.data_ptr()
        arguments.bias = None if bias is None else bias.data_ptr()
        arguments.gamma, arguments.beta = gamma.data_ptr(), beta.data_ptr()
        arguments.running_mean, arguments.running_variance = mean.data_ptr(), variance.data_ptr()
        arguments.convolved, arguments.output = convolved.data_ptr(), y.data_ptr()
        arguments.statistics, arguments.argmax = statistics.data_ptr(), argmax.data_ptr()
        arguments.dropped, arguments.batches = dropped.data_ptr(), block.norm[2]["num_batches_tracked"].data_ptr()
        arguments.other = None if other is None else other.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        library.forward(arguments)
        # ReLU behind a sum has a gradient where the output is more than zero.
        ctx.masked = other is not None and block.relu
        ctx.fresh_other = ctx.fresh or (other is not None and (other.is_leaf or other.retains_grad))
        ctx.save_for_backward(x, weight, gamma, beta, statistics, argmax, dropped, y if ctx.masked else None)
        ctx.convolved, ctx.library, ctx.biased = convolved, library, bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gamma, beta, statistics, argmax, dropped, y = ctx.saved_tensors
        block, convolved = ctx.block, ctx.convolved
        block.end(ctx)
        images, inputs, side, _ = x.shape
        grad_output = grad_output.to(block.dtype).contiguous(memory_format=torch.channels_last)
        grad_input = None
        arguments = block.arguments
        arguments.grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = block.buffer("grad_input", images, inputs, side, ctx.fresh_gradient)
            arguments.grad_input = grad_input.data_ptr()
        grad_other = grad_output if block.sum else None
        arguments.output = arguments.grad_other = None
        if ctx.masked:
            grad_other = block.buffer("grad_other", images, block.outputs, y.shape[2], ctx.fresh_other)
            arguments.output, arguments.grad_other = y.data_ptr(), grad_other.data_ptr()
        grad_gamma, grad_beta = torch.empty_like(gamma), torch.empty_like(beta)
        grad_weight = torch.empty_like(weight, memory_format=torch.channels_last)
        arguments.dropout_seed, arguments.dropout_limit, arguments.dropout_scale = ctx.dropout
        arguments.input, arguments.weight = x.data_ptr(), weight.data_ptr()
        arguments.gamma, arguments.beta = gamma.data_ptr(), beta.data_ptr()
        arguments.convolved, arguments.grad_output = convolved.data_ptr(), grad_output.data_ptr()
        arguments.statistics, arguments.argmax = statistics.data_ptr(), argmax.data_ptr()
        arguments.dropped = dropped.data_ptr()
        grad_bias = torch.empty_like(gamma) if ctx.biased else None
        arguments.grad_weight = grad_weight.data_ptr()
        arguments.grad_bias = None if grad_bias is None else grad_bias.data_ptr()
        arguments.grad_gamma, arguments.grad_beta = grad_gamma.data_ptr(), grad_beta.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        ctx.library.backward(arguments)
        return grad_input, grad_weight, grad_bias, grad_gamma, grad_beta, grad_other, None, None
