"""What padding, a bias, dropout, an average or a stride cost in the C blocks, beside PyTorch's layers.

    python benchmarks/layers.py

A small network of four blocks is trained for a few steps, by turns with its blocks in C and with PyTorch's layers,
on one thread. Printed are the medians of a step's processor time, and their ratio: above 1, C is faster.
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


def step(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Seconds of processor time of a forward and a backward pass."""
    start = time.process_time()
    network.zero_grad()
    F.cross_entropy(network(x), labels).backward()
    return time.process_time() - start


def main() -> None:
    """Print a row for each case."""
    torch.set_num_threads(1)
    x = torch.randn(IMAGES, *IMAGE).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (IMAGES,))
    for name, options in CASES.items():
        model = network(**options)
        fused = fuse(model, IMAGE)
        assert fused.model is not None
        assert not fused.left, fused.left
        networks = (fused.model, copy.deepcopy(model))
        seconds = [[step(each, x, labels) for each in networks] for _ in range(STEPS)]
        ours, theirs = (1000 * statistics.median(column) for column in zip(*seconds[FIRST:], strict=True))
        print(f"{name:20} C {ours:6.2f} ms   PyTorch {theirs:6.2f} ms   {theirs / ours:.2f} ×", flush=True)


if __name__ == "__main__":
    main()
