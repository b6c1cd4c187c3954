"""Networks with branches, and those whose blocks are in C, from one block to weights that several blocks share."""

from typing import Any

import torch
from torch import nn

from bantam import models


class Residual(nn.Module):
    """Two convolutions beside which their input goes on."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second, self.third = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.inplace = nn.AdaptiveAvgPool2d(1), inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(x))
        y = self.norm(self.third(self.second(x)))
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.pool(y).flatten(1)


class Parallel(nn.Module):
    """Branches of one input, side by side in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(1, count, 3, padding=1) for count in (2, 3, 5)])
        self.last = nn.Conv2d(10, 10, 28)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([branch(x) for branch in self.branches], 1)).flatten(1)


NETWORKS: list[Any] = [
    lambda: models.V1(dropout=0.0),
    lambda: models.V2(dropout=0.0),
    lambda: models.V2(width=5, dropout=0.0),
    lambda: models.Flexible(),
    lambda: models.Flexible(early1=3, early2=17, transition=9, late1=33, late2=2, late3=0),
    lambda: models.Flexible(late1=8, late2=8, late3=8, head=12, shared=True),  # one weight in several blocks
    lambda: models.Flexible(late1=16, late2=16, late3=16, late_separable=True, shared=True),
    lambda: models.Flexible(early1=3, early2=5, transition=0, late1=17, late2=33, late3=2, late_separable=True),
    lambda: models.Flexible(late2=14, dilation=2, shared=True),  # partly in C, partly in PyTorch
    lambda: nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten()
    ),
]
