"""Networks whose blocks are in C, from a single block to weights that several blocks share."""

from typing import Any

from torch import nn

from bantam import models

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
