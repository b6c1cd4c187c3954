"""What an output depends on, by the gradient of the input where all weights and pixels are positive."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

AVERAGES: dict[str, Callable[..., Tensor]] = {
    "max_pool1d": F.avg_pool1d,
    "max_pool2d": F.avg_pool2d,
    "adaptive_max_pool2d": F.adaptive_avg_pool2d,
}


class Smooth(TorchFunctionMode):
    """Poolings that take the largest value take the average of the same pixels: each has a gradient."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in AVERAGES:
            kwargs.pop("return_indices", None)
            if kwargs.pop("dilation", 1) != 1:  # no average has gaps
                raise NotImplementedError
            function = AVERAGES[name]
        return function(*args, **kwargs)


def positive(network: nn.Module) -> nn.Module:
    """A copy in double precision whose weights are positive, and small enough for sums of them."""
    network = copy.deepcopy(network).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.copy_((0.5 + torch.rand(parameter.shape, generator=generator)) / fan_in)
    return network


def rectangles(network: nn.Module, shape: tuple[int, int, int], most: int) -> list[tuple[int, int]]:
    """Height and width of what each output depends on, of `most` in the middle of a map where there are more."""
    network = positive(network)
    pixels = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1)) + 0.5
    with torch.no_grad(), Smooth():
        output = network(pixels)[0]
    height, width = output.shape[-2:] if output.dim() == 3 else (1, output.numel())
    middle = output.numel() // (2 * height * width) * height * width + height // 2 * width + width // 2
    chosen = range(output.numel())[max(0, middle - most // 2) : middle + most // 2]
    if output.numel() <= most:
        chosen = range(output.numel())
    images = pixels.repeat(len(chosen), 1, 1, 1).requires_grad_()
    with Smooth():
        logits = network(images).flatten(1)
    logits[torch.arange(len(chosen)), torch.tensor(chosen)].sum().backward()
    assert images.grad is not None
    found = []
    for sees in (images.grad != 0).any(1):
        rows, columns = sees.any(1).nonzero(), sees.any(0).nonzero()
        found.append(
            (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) if len(rows) else (0, 0)
        )
    return found


def field(network: nn.Module, shape: tuple[int, int, int], most: int = 130) -> int | tuple[int, int]:
    """That of the output that depends on most, as `Layer.receptive_field` has it."""
    found = rectangles(network, shape, most)
    high, wide = found[max(range(len(found)), key=lambda at: found[at][0] * found[at][1])]
    return high if high == wide else (high, wide)
