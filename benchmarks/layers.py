"""What padding, biases, strides, depthwise convolutions and residual sums cost in C, beside PyTorch's layers.

    python benchmarks/layers.py

A small network is trained for a few steps, by turns with its blocks in C and with PyTorch's layers, on one thread.
Printed are the medians of a step's processor time and the minima, and their ratios: above 1, C is faster. A
residual network is also trained without its sums, which shows what these cost.
"""

import copy
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bantam.kernels.fuse import fuse

IMAGE, IMAGES, STEPS, FIRST = (1, 28, 28), 128, 16, 4
PADDED = {"padding": 1, "bias": True, "dropout": nn.Dropout(0.1)}
CASES: dict[str, dict[str, Any]] = {
    "valid": {},
    "padding 1": {"padding": 1},
    "and a bias": {"padding": 1, "bias": True},
    "and nn.Dropout": PADDED,
    "and average pools": PADDED | {"pool": nn.AvgPool2d(2)},
    "or stride 2": PADDED | {"stride": 2},
}


def network(
    padding: int = 0,
    bias: bool = False,
    dropout: nn.Module | None = None,
    pool: nn.Module | None = None,
    stride: int = 1,
) -> nn.Sequential:
    """Four blocks of convolution, ReLU, batch norm, and what is asked for: a stride in the second."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate([(1, 8), (8, 16), (16, 16), (16, 16)]):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride if i == 1 else 1, padding, bias=bias))
        layers += [nn.ReLU(), nn.BatchNorm2d(outputs), *([copy.deepcopy(dropout)] if dropout else [])]
        if i == 2 or (i == 1 and stride == 1):
            layers.append(copy.deepcopy(pool or nn.MaxPool2d(2)))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return model.to(memory_format=torch.channels_last)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and batch norm, padded."""
    options: dict[str, Any] = {"padding": kernel // 2, "groups": groups, "bias": False}
    return [nn.Conv2d(inputs, outputs, kernel, stride, **options), nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Two blocks beside which their input goes on."""

    def __init__(self, channels: int, add: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*block(channels, channels), nn.ReLU(), *block(channels, channels))
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x)) if self.add else self.body(x)


class Every(nn.Module):
    """Every so many pixels."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride]


def classifier(*layers: nn.Module) -> nn.Sequential:
    """These layers, which have 16 channels at their end, and what makes logits of them."""
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return model.to(memory_format=torch.channels_last)


def depthwise(stride: int = 1) -> nn.Sequential:
    """Depthwise and 1×1 convolutions, each with batch norm and ReLU."""
    torch.manual_seed(0)
    layers = [*block(1, 16), nn.ReLU()]
    for each in (1, stride, 1):
        layers += [*block(16, 16, 3, each, 16), nn.ReLU(), *block(16, 16, 1), nn.ReLU()]
    return classifier(*layers)


def residual(add: bool = True) -> nn.Sequential:
    """Three residual blocks."""
    torch.manual_seed(0)
    return classifier(*block(1, 16), nn.ReLU(), nn.MaxPool2d(2), *(Residual(16, add) for _ in range(3)))


def shortcut(strided: bool = True) -> nn.Sequential:
    """A 1×1 convolution with a stride, or of every second pixel, which is the same.

    PyTorch 2.14 writes beyond its memory in the gradient of the first.
    """
    torch.manual_seed(0)
    layers = block(16, 16, 1, 2) if strided else [Every(2), *block(16, 16, 1)]
    return classifier(*block(1, 16), nn.ReLU(), *layers)


def step(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Seconds of processor time of a forward and a backward pass."""
    start = time.process_time()
    network.zero_grad()
    F.cross_entropy(network(x), labels).backward()
    return time.process_time() - start


def fused(model: nn.Module) -> nn.Module:
    """The same with its blocks in C."""
    found = fuse(model, IMAGE)
    assert found.model is not None
    assert not found.left, found.left
    return found.model


def measure(name: str, *networks: nn.Module) -> None:
    """Print what the first of these networks takes, and for the others their ratios to it."""
    x = torch.randn(IMAGES, *IMAGE).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (IMAGES,))
    seconds = [*zip(*([step(each, x, labels) for each in networks] for _ in range(STEPS)), strict=True)]
    for word, of in (("median", statistics.median), ("minimum", min)):
        ours, *others = (1000 * of(column[FIRST:]) for column in seconds)
        ratios = "".join(f"   {theirs:6.2f} ms, {theirs / ours:.2f} ×" for theirs in others)
        print(f"{name:20} {word:8} C {ours:6.2f} ms{ratios}", flush=True)


def main() -> None:
    """Print the rows of each case: C, then PyTorch's layers, and C without the sums."""
    torch.set_num_threads(1)
    for name, options in CASES.items():
        model = network(**options)
        measure(name, fused(model), copy.deepcopy(model))
    measure("depthwise", fused(depthwise()), depthwise())
    measure("and stride 2", fused(depthwise(2)), depthwise(2))
    measure("1×1 with stride 2", fused(shortcut()), shortcut(strided=False))
    measure("residual, no sums", fused(residual()), residual(), fused(residual(add=False)))


if __name__ == "__main__":
    main()
