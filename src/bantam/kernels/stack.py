"""Blocks that follow one another, as one PyTorch module with one autograd function.

A function of autograd for each of them, and Python around it, take as long as some of the work of a small network.
"""

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bantam.kernels.arguments import BlockArguments
from bantam.kernels.blocks import Block, bytes_of_dropped
from bantam.kernels.compiled import Calls, Joined, storages


class Stack(Joined):
    """Blocks without sums, each of which computes what only the next one gets.

    Outside training, and for a second forward pass before the backward pass of the first, they compute one by one.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks)
        self.listed = tuple(blocks)
        """The same: a module looks its children up slowly."""
        self.dtype = self.outside = blocks[0].dtype
        """Of all numbers in it, and of input and output."""

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

    def output_shape(self, shape: torch.Size) -> tuple[int, int]:
        """Channels and side of the output for inputs of C×H×W."""
        side = shape[1]
        for block in self.listed:
            side = block.side_of_output(side) // block.pool
        return self.listed[-1].outputs, side

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        libraries = self.usable(x)
        if libraries is None:
            return self.blocks(x)  # type: ignore[no-any-return]
        return _Stack.apply(x.to(self.dtype), self, libraries, *self.trained())  # type: ignore[no-any-return]

    def trained(self) -> list[Tensor | None]:
        """The weights of all blocks, four each: see `Block.trained`."""
        return [weight for block in self.listed for weight in block.trained()]

    def draw(self) -> None:
        """Draw which elements are dropped: that follows from numbers of PyTorch's generator."""
        dropping = [bool(block.dropout and block.dropout[0].p) for block in self.listed]
        if not any(dropping):
            return
        seeds = torch.randint(2**63 - 1, (sum(dropping),)).tolist()
        for of_block, drops in zip(self.memory[0], dropping, strict=True):
            if drops:
                of_block.dropout_seed = seeds.pop(0)

    def calls(self, shape: torch.Size, gradients: Sequence[Tensor | None]) -> Calls:
        """What computes B×C×H×W images, and the gradients of the weights, in training: after `draw`."""
        libraries = self.usable(torch.empty(shape))
        assert libraries
        arguments, output = self.arguments(shape)
        set_weights(self.listed, arguments, self.trained())
        set_gradients(arguments, gradients)
        arguments[0].grad_input = None
        both = [*zip(libraries, arguments, strict=True)]
        forward = [(library.forward, of_block) for library, of_block in both]
        backward = [(library.backward, of_block) for library, of_block in reversed(both)]
        return Calls(forward, backward, arguments[0], arguments[-1], output)

    def allocate(self, shape: torch.Size) -> tuple[tuple[BlockArguments, ...], Tensor, Tensor, list[Tensor]]:
        return allocated(self.listed, shape)


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
        dropped = images * bytes_of_dropped(convolved, block.outputs)
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
    blocks: Sequence[Block], arguments: Sequence[BlockArguments], weights: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Let C read the weights of all blocks, and what else they have; returns the weights as they lie in memory."""
    found = list[Tensor | None]()
    for i, (block, of_block) in enumerate(zip(blocks, arguments, strict=True)):
        norm, _, buffers = block.norm
        of_block.running_mean = buffers["running_mean"].data_ptr()
        of_block.running_variance = buffers["running_var"].data_ptr()
        of_block.batches = buffers["num_batches_tracked"].data_ptr()
        of_block.momentum, of_block.epsilon = norm.momentum, norm.eps
        p = block.dropout[0].p if block.dropout else 0.0
        of_block.dropout_limit, of_block.dropout_scale = round(p * 2**16), 1 / (1 - p)
        for name, weight in zip(("weight", "bias", "gamma", "beta"), weights[4 * i : 4 * i + 4], strict=True):
            if weight is not None:
                layout = torch.channels_last if name == "weight" else torch.contiguous_format
                weight = weight.contiguous(memory_format=layout)
            setattr(of_block, name, None if weight is None else weight.data_ptr())
            found.append(weight)
    return found


def set_gradients(arguments: Sequence[BlockArguments], gradients: Sequence[Tensor | None]) -> None:
    """Let C write the gradients of the weights of all blocks."""
    pointers = [None if gradient is None else gradient.data_ptr() for gradient in gradients]
    for i, of_block in enumerate(arguments):
        of_block.grad_weight, of_block.grad_bias = pointers[4 * i : 4 * i + 2]
        of_block.grad_gamma, of_block.grad_beta = pointers[4 * i + 2 : 4 * i + 4]


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stack: Stack, libraries: list[ctypes.CDLL], *weights: Tensor | None
    ) -> Tensor:
        stack.take(ctx)
        ctx.stack, ctx.libraries = stack, libraries
        # Whoever asked for the gradient of the input may keep it.
        ctx.fresh = x.is_leaf or x.retains_grad
        x = x.contiguous(memory_format=torch.channels_last)
        arguments, output = stack.arguments(x.shape)
        arguments[0].input = x.data_ptr()
        stack.draw()
        kept = set_weights(stack.listed, arguments, weights)
        for of_block, library in zip(arguments, libraries, strict=True):
            library.forward(of_block)
        ctx.save_for_backward(x, *kept)
        ctx.storages = storages((x, *kept))  # a network may set the `data` of its weights before the backward pass
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        stack = ctx.stack
        stack.give_back(ctx)
        arguments, _, grad_input, _ = stack.memory  # as the forward pass has left them: it was the last one
        grad_output = grad_output.to(stack.dtype).contiguous(memory_format=torch.channels_last)
        arguments[-1].grad_output = grad_output.data_ptr()
        gradients = [weight if weight is None else torch.empty_like(weight) for weight in weights]
        set_gradients(arguments, gradients)
        grad_input = grad_input[: len(x)].permute(0, 3, 1, 2)
        if ctx.fresh:
            grad_input = torch.empty_like(x)
        arguments[0].grad_input = grad_input.data_ptr() if ctx.needs_input_grad[0] else None
        for of_block, library in zip(reversed(arguments), reversed(ctx.libraries), strict=True):
            library.backward(of_block)
        return grad_input if ctx.needs_input_grad[0] else None, None, None, *gradients
