"""Which layers of a network are one function in C: `fuse` puts the blocks in their place.

A network is built of PyTorch's layers, and those remain what is counted and saved. Of it `fuse`
makes a second network with the same parameters, in which every run of convolution, batch norm,
ReLU, dropout and pooling is one `Block`, and every depthwise convolution a `Depthwise`.
"""

import copy
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bantam.kernels import compiler, selfcheck
from bantam.kernels.blocks import Block, Compiled
from bantam.kernels.chain import Chain
from bantam.kernels.depthwise import Depthwise
from bantam.kernels.reasons import Sums, depthwise, explained, fits, hooked, unfit, why
from bantam.models import Dropout

LARGEST_AVERAGE = 4
"""Squares of more pixels a side are the whole map, of which a network takes the average once, at its end."""

TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.25}
"""How far logits may be from PyTorch's, as a fraction of their length."""


class Fused(NamedTuple):
    """A network with blocks in C."""

    model: nn.Module | None
    """With the parameters and statistics of the one it was made of; None where C computes nothing of it."""
    left: str
    """How many convolutions PyTorch computes and why; empty where it is none, or only of maps of one pixel."""
    reasons: dict[str, str]
    """All that keeps each of these from C, by the names of the layers."""


def is_fused(model: nn.Module) -> bool:
    """Whether a network has blocks in C."""
    return any(isinstance(module, Compiled) and module.libraries for module in model.modules())


def fuse(model: nn.Module, image: tuple[int, int, int], precision: torch.dtype = torch.float32) -> Fused:
    """A second network whose blocks are compiled, and what of it is left to PyTorch.

    `image` is channels, height and width of the input. Raises Unavailable where nothing can be compiled, for
    bfloat16 on a processor that does not compute in it, and where the network computes something else with its
    blocks than without.
    """
    if precision == torch.bfloat16 and not compiler.bfloat16():
        raise compiler.Unavailable("this processor does not compute in bfloat16: use precision=float32")
    plain, fused = _twin(model, None), _twin(model, precision)
    names = {layer._parameters.get("weight"): name for name, layer in model.named_modules()}
    training = model.training
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        images = torch.randn(2, *image, generator=torch.Generator().manual_seed(0))
        with Sums(plain) as sums:
            expected = plain.eval()(images)
        try:
            logits, left, layers = _compile(fused.eval(), images)
        except compiler.Unavailable:
            raise
        except Exception as error:  # its own code, which found other layers than it expects
            raise compiler.Unavailable(f"the network does not run with its blocks: {error}") from error
        if is_fused(fused) and not _close(logits, expected, precision):
            raise compiler.Unavailable("the network computes something else with its blocks than without them")
    fused.train(training)
    reasons = {names.get(layer._parameters.get("weight"), ""): reason for layer, reason in layers.items()}
    reasons |= sums.found
    return Fused(fused if is_fused(fused) else None, left, reasons)


def _close(ours: Tensor, theirs: Tensor, precision: torch.dtype) -> bool:
    if ours.shape != theirs.shape:
        return False
    ours, theirs = ours.double().nan_to_num(), theirs.double().nan_to_num()
    return bool((ours - theirs).norm() <= TOLERANCE[precision] * theirs.norm() + 1e-6)


def _compile(fused: nn.Module, images: Tensor) -> tuple[Tensor, str, dict[nn.Module, str]]:
    """Compile the blocks of a network for the maps that they get of these images: logits, what is left and why."""
    odd = {module: [*unfit(module)] for module in fused.modules() if isinstance(module, _ConvNd)}
    in_c, left, layers = 0, Counter[str](), dict[nn.Module, str]()

    def before(block: Compiled, inputs: tuple[Tensor, ...]) -> None:
        nonlocal in_c
        shape = inputs[0].shape[1:]
        sizes = block.sizes(shape) if len(shape) == 3 else None
        if sizes and shape not in block.libraries:
            block.use(compiler.library(block.source, selfcheck.compare, **sizes), shape)
        in_c += sizes is not None

    def after(layer: _ConvNd, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output[0, 0].numel() > 1:
            reasons = odd[layer] or [why(layer, inputs[0])]
            left[reasons[0]] += 1
            layers[layer] = "; ".join(explained(layer, what) for what in reasons)

    def after_chain(chain: Chain, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = inputs[0].shape[1:]
        if len(shape) == 3:
            chain.compile(shape, functools.partial(compiler.library, check=selfcheck.compare))

    blocks = [module for module in fused.modules() if isinstance(module, Compiled)]
    chains = [module for module in fused.modules() if isinstance(module, Chain)]
    handles = [block.register_forward_pre_hook(before) for block in blocks]
    handles += [chain.register_forward_hook(after_chain) for chain in chains]
    handles += [layer.register_forward_hook(after) for layer in odd]
    try:
        logits = fused(images)
    finally:
        for handle in handles:
            handle.remove()
    reasons = ", ".join(f"{count} {reason}" for reason, count in left.items())
    count = f"{left.total()} of {left.total() + in_c} convolutions"
    return logits, f"PyTorch computes {count} ({reasons})" if reasons else "", layers


def _twin(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy that shares all parameters, its runs of fitting layers replaced by blocks of this type of number."""
    twin = object.__new__(type(module))  # copy.copy refuses layers that compute their weights from others
    twin.__dict__ = {**module.__dict__, "_forward_hooks": copy.copy(module._forward_hooks)}
    children = {name: child and _twin(child, dtype) for name, child in module._modules.items()}
    # Whatever has a forward of its own may ask for its layers by their numbers.
    if dtype is not None and isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        layers = [child for child in children.values() if child is not None]
        children = {str(i): layer for i, layer in enumerate(_chains([*_blocks(layers, dtype)]))}
    twin._modules = children
    return twin


def _blocks(layers: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[nn.Module]:
    """Layers that run one after another, with blocks for those that fit."""
    at = 0
    while at < len(layers):
        count = _block_length(layers[at : at + 5], dtype)
        if count:
            yield Block(layers[at : at + count], dtype)
        elif fits(layers[at]) and depthwise(layers[at]):
            yield Depthwise(layers[at], dtype)  # type: ignore[arg-type]
        else:
            yield layers[at]
        at += count or 1


def _chains(layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """These layers, with a chain for every block and the separable convolutions behind it."""
    at = 0
    while at < len(layers):
        end = at + 1
        while _continues(layers[at], layers[end : end + 2]):
            end += 2
        yield Chain(layers[at:end]) if end > at + 1 else layers[at]  # type: ignore[arg-type]
        at = end


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
        or block.depthwise
        or block.weights["bias"] is not None
    )
    return not more and block.dtype == torch.float32


def _block_length(layers: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """How many of these layers, from the first on, are a block; 0 where they are none."""
    convolution, (norm, relu) = layers[0], [*layers[1:3], None, None][:2]
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
    if count < len(layers) and type(layers[count]) in (Dropout, nn.Dropout) and not hooked(layers[count]):
        count += 1
    if count < len(layers) and _is_pool(layers[count]) and not hooked(layers[count]):
        count += 1
    return count


def _is_pool(layer: nn.Module) -> bool:
    """Whether a layer takes the maximum or the average of squares that lie side by side."""
    if type(layer) is nn.MaxPool2d:
        odd = layer.return_indices or layer.dilation != 1
    elif type(layer) is nn.AvgPool2d:
        odd = layer.divisor_override is not None or layer.kernel_size not in range(LARGEST_AVERAGE + 1)
    else:
        return False
    side = layer.kernel_size
    simple = type(side) is int and side > 1 and layer.stride == side and layer.padding == 0
    return simple and not layer.ceil_mode and not odd
