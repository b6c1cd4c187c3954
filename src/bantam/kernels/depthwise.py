"""A depthwise convolution whose work `depthwise.c` does, as a PyTorch module with its autograd function."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bantam.kernels.arguments import DepthwiseArguments
from bantam.kernels.blocks import MOST_CHANNELS, MOST_NUMBERS, Compiled


class Depthwise(Compiled):
    """A valid depthwise convolution, which computes every channel by itself."""

    source = "depthwise.c"

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__([convolution], dtype)
        self.channels, self.kernel = convolution.in_channels, int(convolution.kernel_size[0])
        self.arguments = DepthwiseArguments()

    def sizes(self, shape: torch.Size) -> dict[str, int] | None:
        channels, height, width = shape
        fits = channels == self.channels <= MOST_CHANNELS and channels * height * width <= MOST_NUMBERS
        if not fits or height != width or height < self.kernel:
            return None
        bfloat16 = int(self.dtype == torch.bfloat16)
        return {"SIDE": height, "CHANNELS": channels, "KERNEL": self.kernel, "BFLOAT16": bfloat16}

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        library = self.library(x)
        if library is None:
            return self.layers(x)  # type: ignore[no-any-return]
        return _Depthwise.apply(x.to(self.dtype), self.weights["weight"], self, library)  # type: ignore[no-any-return]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, block: Depthwise, library: ctypes.CDLL) -> Tensor:
        block.begin(ctx, x, fresh=not block.training)
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, side, _ = x.shape
        y = block.buffer("output", images, channels, side - block.kernel + 1, ctx.fresh)
        weight = weight.permute(2, 3, 1, 0).contiguous()
        arguments = block.arguments
        arguments.input, arguments.weight, arguments.output = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        library.forward(arguments)
        ctx.save_for_backward(x, weight)
        ctx.library = library
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
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
        arguments.input, arguments.weight = x.data_ptr(), weight.data_ptr()
        arguments.grad_output, arguments.grad_weight = grad_output.data_ptr(), grad_weight.data_ptr()
        arguments.images, arguments.threads = images, torch.get_num_threads()
        ctx.library.backward(arguments)
        return grad_input, grad_weight.permute(3, 2, 0, 1), None, None
