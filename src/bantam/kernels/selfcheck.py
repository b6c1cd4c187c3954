"""Compiled code against PyTorch's layers, on a small random batch, before it is trusted."""

import copy
import ctypes
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bantam.kernels import chain
from bantam.kernels.blocks import Block
from bantam.kernels.compiled import Compiled, Sum, through
from bantam.kernels.compiler import Unavailable
from bantam.kernels.depthwise import Depthwise

MOST_IMAGES, MOST_OPERATIONS = 8, 200_000_000
"""A batch has so many images, or fewer where that takes so many multiply-adds."""

TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.25}
"""How far a tensor may be from the exact one, as a fraction of its length: wrong code is much further off."""


def compare(library: ctypes.CDLL, source: str, sizes: dict[str, int]) -> None:
    """Raise Unavailable where a library computes something else than the layers it stands for."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(0)
        results = (
            _separable_results(library, sizes)
            if source == chain.SOURCE
            else _block_results(library, source, sizes)
        )
        tolerance = TOLERANCE[torch.bfloat16 if sizes["BFLOAT16"] else torch.float32]
        for name, ours, theirs in results:
            ours, theirs = ours.detach().double(), theirs.detach().double()
            distance, length = float((ours - theirs).norm()), float(theirs.norm())
            if not distance <= tolerance * length + 1e-6:
                raise Unavailable(
                    f"what this compiler makes of {source} is wrong: {name} is {distance:.2g} from PyTorch's, "
                    f"whose length is {length:.2g} ({', '.join(f'{key} {value}' for key, value in sizes.items())})"
                )


def _block_results(
    library: ctypes.CDLL, source: str, sizes: dict[str, int]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    block = _block(source, sizes)
    exact = copy.deepcopy(block.layers).double()
    channels = sizes["CI" if source == "block.c" else "CHANNELS"]
    side = sizes["SIDE"] - 2 * sizes.get("PADDING", 0)
    block.use(library, torch.Size((channels, side, side)))
    operations = sum(parameter.numel() for parameter in block.parameters()) * side**2
    images = max(4, min(MOST_IMAGES, MOST_OPERATIONS // operations))
    x = torch.randn(images, channels, side, side).to(block.dtype).contiguous(memory_format=torch.channels_last)
    yield from _results(block, exact, x)


def _separable_results(library: ctypes.CDLL, sizes: dict[str, int]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """All that a block of a chain computes, beside what is exact."""
    channels, kernel, padding = sizes["CI"], sizes["KERNEL"], sizes.get("PADDING", 0)
    side = sizes["SIDE"] - 2 * padding
    of_block = {"KERNEL": 1, "PADDING": 0, "DEPTHWISE": 0} if sizes["DEPTHWISE"] else {}
    block = _block("block.c", {**sizes, "RELU_FIRST": 0, **of_block})
    assert isinstance(block, Block)
    depthwise = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=False)
    layers = nn.Sequential(*([depthwise] if sizes["DEPTHWISE"] else []), *block.layers)
    layers = layers.to(memory_format=torch.channels_last)
    exact = copy.deepcopy(layers).double()
    x = torch.randn(MOST_IMAGES // 2, channels, side, side).contiguous(memory_format=torch.channels_last)
    x = x.to(block.dtype) if sizes["DEPTHWISE"] else x
    factor, offset, mean = torch.randn(3, channels)
    part = chain.Part(Depthwise(depthwise, torch.float32) if sizes["DEPTHWISE"] else None, block)
    found = {name: torch.zeros_like(p) for name, p in layers.named_parameters()}
    found |= {"input": torch.zeros_like(x), "sums": torch.zeros(2, channels, dtype=torch.double)}
    before = {"input": x, "in_factor": factor, "in_offset": offset, "in_statistics": mean}
    output, gradient = _separable_step(library, sizes, part, before, found)
    normalized = x.double()
    if sizes["DEPTHWISE"]:
        normalized = (normalized * factor.view(-1, 1, 1) + offset.view(-1, 1, 1)).requires_grad_()
    wanted = exact.train()(normalized.relu() if sizes["DEPTHWISE"] else normalized)
    wanted.backward(gradient.double().permute(0, 3, 1, 2))
    yield "the output", output.permute(0, 3, 1, 2), wanted
    for name, p in exact.named_parameters():
        yield f"the gradient of {name}", found[name], p.grad  # type: ignore[misc]
    if normalized.grad is not None:
        products = normalized.grad * (x - mean.view(-1, 1, 1))
        yield "the gradient of the input", found["input"], normalized.grad
        yield "its sums", found["sums"], torch.stack([each.sum((0, 2, 3)) for each in (normalized.grad, products)])
    for (name, buffer), exact_buffer in zip(layers.named_buffers(), exact.buffers(), strict=True):
        if "running" in name:
            yield name, buffer, exact_buffer


def _separable_step(
    library: ctypes.CDLL,
    sizes: dict[str, int],
    part: chain.Part,
    before: dict[str, Tensor],
    gradients: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """A step of one block of a chain, its gradients in those tensors; returns its output and that one's."""
    (arguments,), output, kept = chain.allocated([sizes], len(before["input"]))
    gradient = torch.randn_like(output)
    *of_weights, in_gradient, in_sums = gradients.values()
    names = ("grad_depthwise", "grad_weight", "grad_gamma", "grad_beta")[-len(of_weights) :]
    mean, variance = part.block.tensors()[3:]
    tensors = {**before, **dict(zip(names, of_weights, strict=True)), "grad_output": gradient}
    tensors |= {"in_gradient": in_gradient, "in_sums": in_sums, "running_mean": mean, "running_variance": variance}
    for name, tensor in tensors.items():
        setattr(arguments, name, tensor.data_ptr())
    kept += chain.set_weights(part, arguments, iter(part.weights()))  # as long as C reads them
    norm = part.block.norm[0]
    arguments.momentum, arguments.epsilon = norm.momentum, norm.eps
    arguments.images, arguments.threads = len(output), torch.get_num_threads()
    chain.prepared(library)
    for function in (library.forward, library.finish, library.begin_backward, library.backward):
        function(arguments)
    return output, gradient


def _block(source: str, sizes: dict[str, int]) -> Compiled:
    """The layers of these sizes with random parameters, rounded as images are."""
    dtype = torch.bfloat16 if sizes["BFLOAT16"] else torch.float32
    inputs, outputs = (sizes["CHANNELS"],) * 2 if source == "depthwise.c" else (sizes["CI"], sizes["CO"])
    groups = inputs if source == "depthwise.c" or sizes.get("DEPTHWISE") else 1
    options: dict[str, Any] = {"padding": sizes.get("PADDING", 0), "bias": bool(sizes.get("BIAS"))}
    convolution = nn.Conv2d(inputs, outputs, sizes["KERNEL"], sizes.get("STRIDE", 1), groups=groups, **options)
    if source == "depthwise.c":
        return Depthwise(convolution, dtype)
    convolution.weight.data = convolution.weight.data.to(dtype).float()
    norm = nn.BatchNorm2d(sizes["CO"])
    for positive in (norm.weight, norm.running_var):
        nn.init.uniform_(positive, 0.5, 2)  # type: ignore[arg-type]
    for any_sign in (norm.bias, norm.running_mean):
        nn.init.normal_(any_sign)  # type: ignore[arg-type]
    middle: list[nn.Module] = (
        [nn.ReLU(), norm] if sizes["RELU_FIRST"] else [norm, nn.ReLU()] if sizes.get("RELU", 1) else [norm]
    )
    pool = nn.AvgPool2d if sizes.get("AVERAGE") else nn.MaxPool2d
    if sizes.get("SUM"):
        middle.insert(1, Sum())
    return Block([convolution, *middle, *([pool(sizes["POOL"])] if sizes["POOL"] > 1 else [])], dtype)


def _results(block: Compiled, exact: nn.Sequential, x: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """All that a step computes, and the output outside training, each beside what is exact."""
    for network in (exact, block):
        with torch.no_grad():
            network.eval()
    with torch.no_grad():
        # Like the output of a sum is that of the layers in front of it.
        others = [torch.randn_like(through([*block.layers][:2], x))] if _has_sum(block) else []
        yield "the output outside training", block(x, *others), through(exact, x.double(), *_doubled(others))
    inputs, exact_inputs = ([each.requires_grad_() for each in (x.clone(), *others)], _doubled([x, *others]))
    y, exact_y = block.train()(*inputs), through(exact.train(), *(each.requires_grad_() for each in exact_inputs))
    gradient = torch.randn(exact_y.shape).to(y.dtype)
    y.backward(gradient)
    exact_y.backward(gradient.double())  # type: ignore[no-untyped-call]
    yield "the output", y, exact_y
    for name, each, exact_each in zip(("the input", "the other map"), inputs, exact_inputs, strict=False):
        yield f"the gradient of {name}", each.grad, exact_each.grad  # type: ignore[misc]
    for (name, ours), theirs in zip(block.layers.named_parameters(), exact.parameters(), strict=True):
        yield f"the gradient of {name}", ours.grad, theirs.grad  # type: ignore[misc]
    for (name, buffer), wanted in zip(block.layers.named_buffers(), exact.buffers(), strict=True):
        yield name, buffer, wanted


def _has_sum(block: Compiled) -> bool:
    return isinstance(block, Block) and block.sum


def _doubled(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().double() for tensor in tensors]
