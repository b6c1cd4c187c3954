"""Which of the layers that run one after another are a block or a depthwise convolution, a chain or a stack."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import nn

from bantam.kernels.blocks import Block
from bantam.kernels.chain import Chain
from bantam.kernels.compiled import Sum
from bantam.kernels.depthwise import Depthwise
from bantam.kernels.functional import FunctionalDropout
from bantam.kernels.reasons import depthwise, fits, hooked
from bantam.kernels.stack import Stack
from bantam.models import Dropout

LARGEST_AVERAGE = 4
"""Squares of more pixels a side are the whole map, of which a network takes the average once, at its end."""

LARGEST_MAXIMUM = 15
"""Squares of a max-pool with more pixels a side have more places than a byte tells apart."""

DROPOUTS = (Dropout, nn.Dropout, FunctionalDropout)

Counted = tuple[nn.Module, int]
"""A module, and how many layers it stands for."""


def in_c(layers: Sequence[nn.Module], dtype: torch.dtype, images: bool) -> Iterator[Counted]:
    """These layers, with blocks, chains and stacks where they fit; `images` says that they get the input.

    In a network in bfloat16 there is a chain only at the beginning, where nobody asks for the gradient of its
    input.
    """
    if dtype == torch.float32:
        yield from _stacks(_chains([*_blocks(layers, dtype)], dtype))
        return
    first, count = next(_chains([*_blocks(layers, torch.float32)], dtype))
    if images and isinstance(first, Chain):
        yield first, count
        layers = layers[count:]
    yield from _stacks(_blocks(layers, dtype))


def _blocks(layers: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[Counted]:
    at = 0
    while at < len(layers):
        count = _block_length(layers[at : at + 5], dtype)
        if count:
            yield Block(layers[at : at + count], dtype), count
        elif fits(layers[at]) and depthwise(layers[at]):
            yield Depthwise(layers[at], dtype), 1  # type: ignore[arg-type]
        else:
            yield layers[at], 1
        at += count or 1


def _chains(counted: Sequence[Counted], dtype: torch.dtype) -> Iterator[Counted]:
    """These layers, with a chain for every block and the separable convolutions behind it."""
    layers, at = [layer for layer, _ in counted], 0
    while at < len(layers):
        end = at + 1
        while _continues(layers[at], layers[end : end + 2]):
            end += 2
        count = sum(each for _, each in counted[at:end])
        yield Chain(layers[at:end], dtype) if end > at + 1 else layers[at], count  # type: ignore[arg-type]
        at = end


def _stacks(counted: Iterable[Counted]) -> Iterator[Counted]:
    """These layers, with a stack for blocks that follow one another."""
    for stacked, group in groupby(counted, lambda each: isinstance(each[0], Block) and not each[0].sum):
        found = [*group]
        if stacked and len(found) > 1:
            yield Stack([layer for layer, _ in found]), sum(count for _, count in found)  # type: ignore[misc]
        else:
            yield from found


def _continues(first: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether a chain that this layer begins goes on with these two."""
    if len(layers) < 2 or not (isinstance(layers[0], Depthwise) and layers[0].simple):
        return False
    blocks = [block for block in (first, layers[1]) if isinstance(block, Block)]
    return len(blocks) == 2 and all(map(_simple, blocks)) and blocks[1].kernel == 1 and not blocks[1].padding


def _simple(block: Block) -> bool:
    """Whether `separable.c` computes a block: it has only what the networks of such blocks have."""
    more = (
        block.relu_first
        or not block.relu
        or block.dropout
        or block.stride > 1
        or block.average
        or block.sum
        or block.depthwise
        or block.weights["bias"] is not None
    )
    return not more and block.dtype == torch.float32


def _block_length(layers: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """How many of these layers, from the first on, are a block; 0 where they are none."""
    convolution, (norm, relu) = layers[0], [*layers[1:3], None, None][:2]
    if isinstance(relu, Sum) and dtype == torch.float32:
        return _length_with_sum(layers, dtype)
    if type(norm) is nn.ReLU:
        norm, relu = relu, norm
    if not fits(convolution) or type(norm) is not nn.BatchNorm2d or hooked(norm):
        return 0
    if type(relu) is not nn.ReLU or hooked(relu):  # with none a block ends in the norm
        if relu is layers[1]:
            return 0
        relu = None
    assert isinstance(convolution, nn.Conv2d)
    outputs = (convolution.out_channels,)
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if (
        not (convolution.groups == 1 or (depthwise(convolution) and dtype == torch.float32))
        or norm.momentum is None
        or not all(
            tensor is not None
            and tensor.shape == outputs
            and tensor.dtype == torch.float32
            and tensor.is_contiguous()
            for tensor in tensors
        )
    ):
        return 0
    count = 2 if relu is None else 3
    if count < len(layers) and type(layers[count]) in DROPOUTS and not hooked(layers[count]):
        count += 1
    if count < len(layers) and _is_pool(layers[count]) and not hooked(layers[count]):
        count += 1
    return count


def _length_with_sum(layers: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """The same of a convolution, batch norm and a sum, and perhaps ReLU."""
    count = _block_length(layers[:2], dtype)
    if count < 2 or type(layers[1]) is not nn.BatchNorm2d:
        return count
    return 4 if len(layers) > 3 and type(layers[3]) is nn.ReLU and not hooked(layers[3]) else 3


def _is_pool(layer: nn.Module) -> bool:
    """Whether a layer takes the maximum or the average of squares that lie side by side."""
    if type(layer) is nn.MaxPool2d:
        odd = layer.return_indices or layer.dilation != 1 or layer.kernel_size not in range(LARGEST_MAXIMUM + 1)
    elif type(layer) is nn.AvgPool2d:
        odd = layer.divisor_override is not None or layer.kernel_size not in range(LARGEST_AVERAGE + 1)
    else:
        return False
    side = layer.kernel_size
    simple = type(side) is int and side > 1 and layer.stride == side and layer.padding == 0
    return simple and not layer.ceil_mode and not odd
