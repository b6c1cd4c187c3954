"""Which layers of a network are one function in C: `fuse` puts the blocks in their place.

A network is built of PyTorch's layers, and those remain what is counted and saved. Of it `fuse`
makes a second network with the same parameters, in which every run of convolution, batch norm,
ReLU, dropout and max-pool is one `Block`, and every convolution of channels by themselves a `Depthwise`.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import torch
from torch import nn

from bantam.kernels import compiler
from bantam.kernels.blocks import Block, Compiled, Depthwise
from bantam.models import Dropout

MOST_CHANNELS = 512
"""With more, an image's activations would not fit on the stack, where the C code keeps them."""


def is_fused(model: nn.Module) -> bool:
    """Whether a network has blocks in C."""
    return any(isinstance(module, Compiled) for module in model.modules())


def fuse(
    model: nn.Module, image: tuple[int, int, int], precision: torch.dtype = torch.float32
) -> nn.Module | None:
    """A network with the parameters and statistics of `model` and its blocks compiled; None where it has none.

    `image` is channels, height and width of the input. Raises Unavailable where nothing can be compiled, and for
    bfloat16 on a processor that does not compute in it.
    """
    if precision == torch.bfloat16 and not compiler.bfloat16():
        raise compiler.Unavailable("this processor does not compute in bfloat16: use precision=float32")
    fused = _replaced(model, precision)
    if not is_fused(fused):
        return None
    training = model.training
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        fused.eval()(torch.zeros(1, *image))  # compiles whatever is not compiled yet
    fused.train(training)
    return fused


def _replaced(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that shares all parameters, its runs of fitting layers replaced by blocks."""
    children = {name: child and _replaced(child, dtype) for name, child in module._modules.items()}
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*_blocks([child for child in children.values() if child is not None], dtype))
    twin = copy.copy(module)
    twin._modules = children
    return twin


def _blocks(layers: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[nn.Module]:
    """Layers that run one after another, with blocks for those that fit."""
    at = 0
    while at < len(layers):
        convolution, rest = layers[at], layers[at + 1 : at + 5]
        kinds = [type(layer) for layer in rest]
        at += 1
        if (
            _plain(convolution)
            and convolution.groups == 1
            and kinds[:2] in ([nn.ReLU, nn.BatchNorm2d], [nn.BatchNorm2d, nn.ReLU])
        ):
            norm = next(layer for layer in rest if isinstance(layer, nn.BatchNorm2d))
            if norm.affine and norm.track_running_stats and norm.momentum is not None:
                p, pool, last = 0.0, 1, 2
                if last < len(rest) and isinstance(dropout := rest[last], Dropout):
                    p, last = dropout.p, last + 1
                if last < len(rest) and (squares := _pool(rest[last])):
                    pool, last = squares, last + 1
                yield Block(convolution, norm, kinds[0] is nn.ReLU, p, pool, dtype)
                at += last
                continue
        if _plain(convolution) and convolution.groups == convolution.in_channels == convolution.out_channels > 1:
            yield Depthwise(convolution, dtype)
        else:
            yield convolution


def _plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution of a kind that there is C code for, groups aside."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size[0] == layer.kernel_size[1]
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding == (0, 0)
        and layer.bias is None
        and max(layer.in_channels, layer.out_channels) <= MOST_CHANNELS
    )


def _pool(layer: nn.Module) -> int:
    """The side of a max-pool's squares, which lie side by side; 0 for any other layer."""
    if type(layer) is not nn.MaxPool2d or layer.return_indices or layer.ceil_mode:
        return 0
    pool = layer.kernel_size
    plain = isinstance(pool, int) and layer.stride == pool and layer.padding == 0 and layer.dilation == 1
    return pool if isinstance(pool, int) and plain and pool > 1 else 0
