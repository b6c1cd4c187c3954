"""Blocks that follow one another, as one PyTorch module with one autograd function.

Each function of autograd takes as long as some of the work of a small network: of a stack there is one.
"""

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bantam.kernels.blocks import Block


class Stack(nn.Module):
    """Blocks without sums, each of which computes what only the next one gets.

    Outside training, and for inputs that C does not compute, they compute one by one.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.listed = tuple(blocks)
        """The same: a module looks its children up slowly."""

    def libraries(self, x: Tensor) -> list[ctypes.CDLL] | None:
        """What computes this input in training; None where the blocks do, one by one."""
        if not self.training or x.dim() != 4 or not x.is_cpu or not len(x) or not torch.is_grad_enabled():
            return None
        found = list[ctypes.CDLL]()
        shape = x.shape[1:]
        for block in self.listed:
            library = block.libraries.get(shape)
            weight = block.weights["weight"]
            side = block.side_of_output(shape[1])
            if library is None or not block.training or not block.usual() or (len(x) == 1 and side == 1):
                return None
            if not weight.is_cpu or weight.dtype != torch.float32:
                return None
            found.append(library)
            shape = torch.Size((block.outputs, side // block.pool, side // block.pool))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        libraries = self.libraries(x)
        if libraries is None:
            return self.blocks(x)  # type: ignore[no-any-return]
        torch._foreach_add_([block.norm[2]["num_batches_tracked"] for block in self.listed], 1)
        weights = [weight for block in self.listed for weight in block.trained()]
        return _Stack.apply(self, libraries, x.to(self.listed[0].dtype), *weights)  # type: ignore[no-any-return]


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stack: Stack, libraries: list[ctypes.CDLL], x: Tensor, *weights: Tensor | None
    ) -> Tensor:
        ctx.passes = []
        y = x
        for i, (block, library) in enumerate(zip(stack.listed, libraries, strict=True)):
            one = SimpleNamespace()
            block.begin(one, y, fresh=False)
            if i:  # nobody else sees the gradient of what is between two blocks
                one.fresh_gradient = one.fresh
            y = block.forward_in_c(one, y, weights[4 * i : 4 * i + 4], None, library)  # type: ignore[arg-type]
            ctx.passes.append(one)
        ctx.save_for_backward(x, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # refuses what was changed in the meantime
        gradients: list[Tensor | None] = []
        grad: Tensor | None = grad_output
        for i, one in reversed([*enumerate(ctx.passes)]):
            assert grad is not None
            grad, *own, _ = one.block.backward_in_c(one, grad, i > 0 or ctx.needs_input_grad[2])
            gradients = [*own, *gradients]
        return None, None, grad, *gradients
