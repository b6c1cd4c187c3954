"""The networks: the three of the study, and one that tapers, with a number for everything, to search with.

Shape suffixes used in comments: B images, C channels, H height, W width. Every network takes B images of
`channels`×`side`×`side` and returns B×`classes` logits; its file in `conf/model/` takes these numbers from the
data. A new network is one class here and one file there.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class _ZeroSome(torch.autograd.Function):
    """Scale a tensor by `scale` and set the elements at `dropped` (positions in memory) to zero."""

    @staticmethod
    def forward(ctx, x: Tensor, dropped: Tensor, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(dropped)
        ctx.scale = scale
        ctx.channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return _ZeroSome.apply_to(x, dropped, scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (dropped,) = ctx.saved_tensors
        # Positions in memory mean the same only where the gradient lies in memory as the tensor did.
        layout = torch.channels_last if ctx.channels_last else torch.contiguous_format
        grad = grad.contiguous(memory_format=layout)
        return _ZeroSome.apply_to(grad, dropped, ctx.scale), None, None

    @staticmethod
    def apply_to(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
        y = x * scale
        # One flat view over the memory serves every layout, NCHW and channels_last alike.
        y.as_strided((y.numel(),), (1,)).index_fill_(0, dropped, 0.0)
        return y


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with the same distribution, several times faster on a CPU at small rates.

    PyTorch draws one random number an element on a CPU. Dropped elements are rare here, so the
    gaps between them are drawn instead: they are geometric with parameter `p`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
            x = x.contiguous()
        return _ZeroSome.apply(x, self.dropped(x.numel()), 1 / (1 - self.p))  # type: ignore[no-any-return]

    def dropped(self, count: int) -> Tensor:
        """Positions below `count` to set to zero, each chosen with probability `p`, in rising order."""
        expected = count * self.p
        draws = int(expected + 6 * expected**0.5) + 8
        positions = self._gaps(draws).cumsum(0) - 1
        while positions[-1] < count:  # six standard deviations short: draw on, so that none is missed
            positions = torch.cat([positions, positions[-1] + self._gaps(draws).cumsum(0)])
        return positions[: int(torch.searchsorted(positions, count))]

    def _gaps(self, draws: int) -> Tensor:
        """So many geometric numbers: the logarithm of a uniform one, faster than `Tensor.geometric_`."""
        return (torch.rand(draws).neg_().log1p_() / math.log1p(-self.p)).to(torch.int64) + 1


class Skeleton(nn.Sequential):
    """Step 1 of the study: padded convolutions and ReLU only, 8,892 parameters at width 16.

    The last ReLU stands before the pooling, so no logit is ever negative. Raises ValueError for a `side` below 4.
    """

    def __init__(self, width: int = 16, channels: int = 1, side: int = 28, classes: int = 10) -> None:
        _check_side(side, 4)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise([channels, *[width] * 3, *[classes] * 4])):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.ReLU(inplace=True)]
            if i in (2, 4):
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.AvgPool2d(side // 4), nn.Flatten())


def _check_side(side: int, least: int) -> None:
    if side < least:
        raise ValueError(
            f"side is {side}, but this network makes images smaller and needs at least {least}×{least} pixels: "
            "enlarge the images, or use model=flexible with fewer blocks"
        )


def _study_blocks(width: int, dropout: float, channels: int, side: int) -> list[nn.Module]:
    """The part that steps 2 and 3 share: five blocks and two poolings, B×C×H×W to B×width×1×1."""
    _check_side(side, 18)
    layers: list[nn.Module] = []
    for i in range(5):
        inputs = channels if i == 0 else width
        layers += [
            nn.Conv2d(inputs, width, 3, bias=False),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(width),
            Dropout(dropout),
        ]
        if i == 1:
            layers.append(nn.MaxPool2d(2))
    return [*layers, nn.AvgPool2d((side - 4) // 2 - 6)]


class V1(nn.Sequential):
    """Step 2 of the study: batch norm, dropout and two 1×1 convolutions, 9,780 parameters at width 16.

    Raises ValueError for a `side` below 18.
    """

    def __init__(
        self, width: int = 16, dropout: float = 0.05, channels: int = 1, side: int = 28, classes: int = 10
    ) -> None:
        super().__init__(
            *_study_blocks(width, dropout, channels, side),
            nn.Conv2d(width, classes, 1, bias=False),
            nn.Conv2d(classes, classes, 1, bias=False),
            nn.Flatten(),
        )


class V2(nn.Sequential):
    """Step 3 of the study: V1 without its second 1×1 convolution, 9,680 parameters at width 16.

    Raises ValueError for a `side` below 18.
    """

    def __init__(
        self, width: int = 16, dropout: float = 0.05, channels: int = 1, side: int = 28, classes: int = 10
    ) -> None:
        super().__init__(
            *_study_blocks(width, dropout, channels, side),
            nn.Conv2d(width, classes, 1, bias=False),
            nn.Flatten(),
        )


def _convolutions(inputs: int, outputs: int, dilation: int, separable: bool) -> list[nn.Conv2d]:
    """A 3×3 convolution that makes maps two pixels smaller, whatever its dilation; separable, it is two."""
    geometry: dict[str, Any] = {"padding": dilation - 1, "dilation": dilation, "bias": False}
    if not separable:
        return [nn.Conv2d(inputs, outputs, 3, **geometry)]
    each = nn.Conv2d(inputs, inputs, 3, groups=inputs, **geometry)
    return [each, nn.Conv2d(inputs, outputs, 1, bias=False)]


class Flexible(nn.Sequential):
    """Few channels early, where the maps are large, and more late: 9,620 parameters by default.

    Every choice is a whole number or true or false, so that a search can make it. Blocks are convolution → batch
    norm → ReLU; one with 0 channels is left out. Early 3×3 blocks, a max-pool, a 1×1 block of `transition`
    channels, late 3×3 blocks, a global average, a 1×1 block of `head` channels, a linear layer without bias. Late
    convolutions have a `dilation` and are padded by one less, so that maps shrink by two pixels whatever it is.
    Separable convolutions are two: 3×3 of every channel by itself, then 1×1; `early_separable` leaves the first
    block, which sees the image, as it is. Where weights are `shared`, late convolutions of the same shape are one,
    each time with batch norm of its own. Without `linear` the last block must have one channel a class: they are
    the logits. Raises ValueError where it has another number, or where there is no block.
    """

    def __init__(
        self,
        early1: int = 8,
        early2: int = 16,
        early3: int = 0,
        transition: int = 8,
        late1: int = 14,
        late2: int = 20,
        late3: int = 24,
        late4: int = 0,
        head: int = 0,
        linear: bool = True,
        dilation: int = 1,
        shared: bool = False,
        early_separable: bool = False,
        late_separable: bool = False,
        dropout: float = 0.0,
        channels: int = 1,
        classes: int = 10,
    ) -> None:
        layers: list[nn.Module] = []
        inputs = channels
        known: dict[tuple[int, int], list[nn.Conv2d]] = {}

        def block(outputs: int, *convolutions: nn.Conv2d) -> None:
            nonlocal inputs
            layers.extend([*convolutions, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)])
            if dropout > 0:
                layers.append(Dropout(dropout))
            inputs = outputs

        for outputs in filter(None, (early1, early2, early3)):
            block(outputs, *_convolutions(inputs, outputs, 1, early_separable and len(layers) > 0 and inputs > 1))
        layers.append(nn.MaxPool2d(2))
        if transition:
            block(transition, nn.Conv2d(inputs, transition, 1, bias=False))
        for outputs in filter(None, (late1, late2, late3, late4)):
            convolutions = known.get((inputs, outputs)) if shared else None
            convolutions = convolutions or _convolutions(inputs, outputs, dilation, late_separable)
            known[inputs, outputs] = convolutions
            block(outputs, *convolutions)
        layers.append(nn.AdaptiveAvgPool2d(1))
        if head:
            block(head, nn.Conv2d(inputs, head, 1, bias=False))
        if len(layers) == 2:
            raise ValueError("early1 to head are all 0: a network needs a block")
        super().__init__(*layers, nn.Flatten(), *_classifier(inputs, linear, classes))


def _classifier(inputs: int, linear: bool, classes: int) -> list[nn.Module]:
    """From `inputs` channels to the logits: a linear layer, or nothing where there is one channel a class."""
    if linear:
        return [nn.Linear(inputs, classes, bias=False)]
    if inputs != classes:
        raise ValueError(
            f"linear is false and the last block has {inputs} channels: give it {classes}, one a class, "
            "or use linear=true"
        )
    return []
