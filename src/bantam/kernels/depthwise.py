"""A depthwise convolution whose work `depthwise.c` does, as a PyTorch module with its autograd function."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bantam.kernels.arguments import DepthwiseArguments
from bantam.kernels.compiled import MOST_CHANNELS, MOST_NUMBERS, Compiled, zero_padding


class Depthwise(Compiled):
    """A depthwise convolution, which computes every channel by itself."""

    source = "depthwise.c"

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__([convolution], dtype)
        self.channels, self.kernel = convolution.in_channels, int(convolution.kernel_size[0])
        self.padding, self.stride = zero_padding(convolution) or 0, int(convolution.stride[0])
        self.simple = self.stride == 1 and convolution.bias is None
        """Whether a chain may have it."""
        self.arguments = DepthwiseArguments()

    def sizes(self, shape: torch.Size) -> dict[str, int] | None:
        channels, height, width = shape
        side = height + 2 * self.padding
        fits = channels == self.channels <= MOST_CHANNELS and channels * side**2 <= MOST_NUMBERS
        if not fits or height != width or side < self.kernel:
            return None
        return {
            "SIDE": side,
            "PADDING": self.padding,
            "CHANNELS": channels,
            "KERNEL": self.kernel,
            "STRIDE": self.stride,
            "BIAS": int(self.weights["bias"] is not None),
            "BFLOAT16": int(self.dtype == torch.bfloat16),
        }

    def side_of_output(self, side: int) -> int:
        """That for inputs of this side."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        library = self.library(x)
        if library is None:
            return self.layers(x)  # type: ignore[no-any-return]
        weight, bias = self.weights["weight"], self.weights["bias"]
        return _Depthwise.apply(x.to(self.dtype), weight, bias, self, library)  # type: ignore[no-any-return]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, block: Depthwise, library: ctypes.CDLL
    ) -> Tensor:
        block.begin(ctx, x, fresh=not block.training)
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, side, _ = x.shape
        y = block.buffer("output", images, channels, block.side_of_output(side), ctx.fresh)
        weight = weight.contiguous()
        bias = bias if bias is None else bias.contiguous()
        arguments = block.arguments
        arguments.input, arguments.weight, arguments.output = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        arguments.bias = None if bias is None else bias.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        library.forward(arguments)
        ctx.save_for_backward(x, weight)
        ctx.library, ctx.biased = library, bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        block = ctx.block
        block.end(ctx)
        images, channels, side, _ = x.shape
        grad_output = grad_output.to(block.dtype).contiguous(memory_format=torch.channels_last)
        grad_input = None
        arguments = block.arguments
        arguments.grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = block.buffer("grad_input", images, channels, side, ctx.fresh_gradient)
            arguments.grad_input = grad_input.data_ptr()
        grad_weight = torch.empty_like(weight)
        grad_bias = weight.new_empty(channels) if ctx.biased else None
        arguments.input, arguments.weight = x.data_ptr(), weight.data_ptr()
        arguments.grad_output, arguments.grad_weight = grad_output.data_ptr(), grad_weight.data_ptr()
        arguments.grad_bias = None if grad_bias is None else grad_bias.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        ctx.library.backward(arguments)
        return grad_input, grad_weight, grad_bias, None, None
