"""Blocks that follow one another, as one PyTorch module with one autograd function.

A function of autograd for each of them, and Python around it, take as long as some of the work of a small network.
"""

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bantam.kernels.arguments import BlockArguments
from bantam.kernels.blocks import Block
from bantam.kernels.compiled import OVERWRITTEN


class Stack(nn.Module):
    """Blocks without sums, each of which computes what only the next one gets.

    Outside training, and for a second forward pass before the backward pass of the first, they compute one by one.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.listed = tuple(blocks)
        """The same: a module looks its children up slowly."""
        self.dtype = blocks[0].dtype
        self.memory: tuple[tuple[BlockArguments, ...], Tensor, Tensor, list[Tensor]] | None = None
        self.room: tuple[torch.Size, int] | None = None
        """For images of which shape, and how many, that memory is."""
        self.busy = False
        """Between forward and backward, while that memory is in use."""
        self.owner: object = None
        """The forward pass whose results that memory holds."""

    def usable(self, x: Tensor) -> list[ctypes.CDLL] | None:
        """What computes this input now; None where the blocks do, one by one."""
        if (
            not self.training
            or self.busy
            or not torch.is_grad_enabled()
            or x.dim() != 4
            or not x.is_cpu
            or not len(x)
        ):
            return None
        found = list[ctypes.CDLL]()
        shape = x.shape[1:]
        for block in self.listed:
            library, weight = block.libraries.get(shape), block.weights["weight"]
            if library is None or not block.training or not block.usual():
                return None
            side = block.side_of_output(shape[1])
            # PyTorch refuses a single value a channel, which has no variance: the block tells.
            if not weight.is_cpu or weight.dtype != torch.float32 or (len(x) == 1 and side == 1):
                return None
            found.append(library)
            shape = torch.Size((block.outputs, side // block.pool, side // block.pool))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        libraries = self.usable(x)
        if libraries is None:
            return self.blocks(x)  # type: ignore[no-any-return]
        torch._foreach_add_([block.norm[2]["num_batches_tracked"] for block in self.listed], 1)
        weights = [weight for block in self.listed for weight in block.trained()]
        return _Stack.apply(x.to(self.dtype), self, libraries, *weights)  # type: ignore[no-any-return]

    def arguments(self, shape: torch.Size) -> tuple[tuple[BlockArguments, ...], Tensor]:
        """What the functions of all blocks get for so many images, and the memory of the output."""
        images = shape[0]
        if self.memory is None or self.room is None or self.room[0] != shape[1:] or self.room[1] < images:
            self.memory, self.room = allocated(self.listed, shape), (shape[1:], images)
        threads = torch.get_num_threads()
        for each in self.memory[0]:
            each.images, each.threads = images, threads
        # Detached, or the next layer might not change it in place, as ReLU does.
        return self.memory[0], self.memory[1][:images].permute(0, 3, 1, 2).detach()


def allocated(
    blocks: Sequence[Block], shape: torch.Size
) -> tuple[tuple[BlockArguments, ...], Tensor, Tensor, list[Tensor]]:
    """Arguments for B×C×H×W that point to memory which every step uses again.

    Beside them that of the output and of the gradient of the input, channels last, and all of it.
    """
    kept, arguments = list[Tensor](), list[BlockArguments]()

    def room(*size: int, dtype: torch.dtype = blocks[0].dtype) -> Tensor:
        kept.append(torch.zeros(size, dtype=dtype))
        return kept[-1]

    images, channels, side, _ = shape
    input_gradient = grad_input = room(images, side, side, channels)
    for block in blocks:
        convolved = block.side_of_output(side)
        output = convolved // block.pool
        max_pool = block.pool > 1 and not block.average
        numbers = images * output**2 * block.outputs
        dropped = images * block.bytes_of_dropped(convolved)
        where = {
            "convolved": room(images, convolved, convolved, block.outputs),
            "output": room(images, output, output, block.outputs),
            "statistics": room(2, block.outputs, dtype=torch.float32),
            "argmax": room(numbers if max_pool else 0, dtype=torch.uint8),
            # Where there is a max-pool, `argmax` says which elements are dropped.
            "dropped": room(dropped if block.dropout and not max_pool else 0, dtype=torch.uint8),
            "grad_input": grad_input,
        }
        arguments.append(BlockArguments(**{name: tensor.data_ptr() for name, tensor in where.items()}))
        side = output
        if block is not blocks[-1]:
            grad_input = room(images, side, side, block.outputs)
    for before, after in pairwise(arguments):
        after.input, before.grad_output = before.output, after.grad_input
    return tuple(arguments), where["output"], input_gradient, kept


def set_weights(
    block: Block, arguments: BlockArguments, weights: tuple[Tensor | None, ...], seed: int
) -> list[Tensor | None]:
    """Let C read the weights of a block, and what else may change; returns them as they lie in memory."""
    weight, bias, gamma, beta = weights
    assert weight is not None
    assert gamma is not None
    assert beta is not None
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias, gamma, beta = bias if bias is None else bias.contiguous(), gamma.contiguous(), beta.contiguous()
    norm, _, buffers = block.norm
    arguments.weight, arguments.bias = weight.data_ptr(), None if bias is None else bias.data_ptr()
    arguments.gamma, arguments.beta = gamma.data_ptr(), beta.data_ptr()
    arguments.running_mean = buffers["running_mean"].data_ptr()
    arguments.running_variance = buffers["running_var"].data_ptr()
    arguments.momentum, arguments.epsilon = norm.momentum, norm.eps
    if block.dropout:
        p = block.dropout[0].p
        arguments.dropout_seed, arguments.dropout_limit = seed, round(p * 2**16)
        arguments.dropout_scale = 1 / (1 - p)
    else:
        arguments.dropout_scale = 1.0
    return [weight, bias, gamma, beta]


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stack: Stack, libraries: list[ctypes.CDLL], *weights: Tensor | None
    ) -> Tensor:
        stack.busy, ctx.token = True, object()
        stack.owner, ctx.stack, ctx.libraries = ctx.token, stack, libraries
        # Whoever asked for the gradient of the input may keep it.
        ctx.fresh = x.is_leaf or x.retains_grad
        x = x.contiguous(memory_format=torch.channels_last)
        arguments, output = stack.arguments(x.shape)
        arguments[0].input = x.data_ptr()
        # Which elements are dropped follows from numbers of PyTorch's generator.
        dropping = sum(bool(block.dropout and block.dropout[0].p) for block in stack.listed)
        seeds = torch.randint(2**63 - 1, (dropping,)).tolist() if dropping else []
        kept = list[Tensor | None]()
        for i, (block, of_block, library) in enumerate(zip(stack.listed, arguments, libraries, strict=True)):
            seed = seeds.pop(0) if block.dropout and block.dropout[0].p else 0
            kept += set_weights(block, of_block, weights[4 * i : 4 * i + 4], seed)
            library.forward(of_block)
        ctx.save_for_backward(x, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        stack = ctx.stack
        if stack.owner is not ctx.token:
            raise RuntimeError(OVERWRITTEN)
        stack.busy = False
        arguments, _, grad_input, _ = stack.memory  # as the forward pass has left them: it was the last one
        grad_output = grad_output.to(stack.dtype).contiguous(memory_format=torch.channels_last)
        arguments[-1].grad_output = grad_output.data_ptr()
        gradients = [weight if weight is None else torch.empty_like(weight) for weight in weights]
        pointers = [grad if grad is None else grad.data_ptr() for grad in gradients]
        for i, of_block in enumerate(arguments):
            of_block.grad_weight, of_block.grad_bias = pointers[4 * i : 4 * i + 2]
            of_block.grad_gamma, of_block.grad_beta = pointers[4 * i + 2 : 4 * i + 4]
        grad_input = grad_input[: len(x)].permute(0, 3, 1, 2)
        if ctx.fresh:
            grad_input = torch.empty_like(x)
        arguments[0].grad_input = grad_input.data_ptr() if ctx.needs_input_grad[0] else None
        for of_block, library in zip(reversed(arguments), reversed(ctx.libraries), strict=True):
            library.backward(of_block)
        return grad_input if ctx.needs_input_grad[0] else None, None, None, *gradients
