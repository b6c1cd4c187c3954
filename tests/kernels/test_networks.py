"""Networks that Hypothesis draws: with blocks in C they compute what they compute with PyTorch's layers."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from layer_results import assert_as_exact, results
from torch import nn

from bantam.kernels.compiled import zero_padding
from bantam.kernels.fuse import fuse

FEW = st.integers(1, 40)
CHANNELS = st.one_of(FEW, FEW, st.sampled_from([64, 129, 512, 513, 600]))
SIDES = st.integers(1, 17)
MANY = 8
"""The side of the largest maps with many channels: of a million values some are too near to zero to compare."""


@st.composite
def convolutions(draw: st.DrawFn, inputs: int, side: int) -> nn.Conv2d:
    """Mostly of the kinds that there is C for, else with one thing that there is no C for."""
    kernel: int | tuple[int, int] = draw(st.integers(1, min(5, side)))
    odd = draw(st.integers(0, 30))
    if odd > 20:
        stride, padding = draw(st.integers(1, kernel)), draw(st.sampled_from([0, 0, 1, 2]))
        return nn.Conv2d(inputs, inputs, kernel, stride, padding, groups=inputs, bias=draw(st.booleans()))
    options: dict[str, object] = {"bias": False}
    if odd == 1 and kernel > 1:  # PyTorch 2.14 writes beyond its memory in 1×1 convolutions with a stride
        options["stride"] = draw(st.sampled_from([2, (1, 2)]))
    elif odd == 2:
        options["dilation"] = draw(st.sampled_from([2, (2, 1)]))
    elif odd > 12 and (padding := draw(st.integers(0, 3))):
        options["padding"] = "same" if padding == 3 and kernel % 2 else padding
    elif odd == 3:
        options["padding"] = draw(st.sampled_from([1, (0, 1), "same", "valid"]))
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"]))
    elif odd == 4:
        kernel = draw(st.sampled_from([(1, 2), (3, 2), (2, 1)]))
    elif odd == 5:
        options["bias"] = True
    outputs = draw(CHANNELS if side <= MANY else FEW)
    return nn.Conv2d(inputs, outputs, kernel, **options)  # type: ignore[arg-type]


@st.composite
def pools(draw: st.DrawFn, side: int) -> nn.Module:
    odd = [nn.MaxPool2d((2, 1)), nn.MaxPool2d((1, 2)), nn.MaxPool2d((2, 2)), nn.MaxPool2d(2, ceil_mode=True)]
    odd += [nn.MaxPool2d(2, stride=1), nn.MaxPool2d(3, padding=1), nn.MaxPool2d(2, dilation=2), nn.AvgPool2d(2)]
    square = st.integers(1, min(4, side)).map(nn.MaxPool2d)
    return draw(st.one_of(square, square, square, st.sampled_from(odd)))


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, int, int], int]:
    """A network, channels, height and width of its images, and how many of those a batch has."""
    torch.manual_seed(draw(st.integers(0, 999)))
    height = draw(SIDES)
    width = draw(SIDES) if draw(st.integers(0, 7)) == 7 else height
    channels = inputs = draw(CHANNELS if max(height, width) <= MANY else FEW)
    layers: list[nn.Module] = []
    side = min(height, width)
    for _ in range(draw(st.integers(1, 3))):
        convolution = draw(convolutions(inputs, side))
        inputs = convolution.out_channels
        padding = zero_padding(convolution) or 0
        side = max(1, (side + 2 * padding - convolution.kernel_size[0]) // convolution.stride[0] + 1)
        norm = nn.BatchNorm2d(inputs, eps=draw(st.sampled_from([1e-5, 0.1])), momentum=draw(st.floats(0, 1)))
        nn.init.uniform_(norm.weight, -1, 2)
        nn.init.normal_(norm.bias)
        middle = [norm, nn.ReLU(inplace=draw(st.booleans()))]
        layers += [convolution, *(middle[::-1] if draw(st.booleans()) else middle)]
        if draw(st.booleans()):
            layers.append(draw(pools(side)))
            side = max(1, side // 2)
    return nn.Sequential(*layers), (channels, height, width), draw(st.integers(1, 9))


@pytest.mark.whole
@pytest.mark.usefixtures("quick")
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(drawn=networks(), threads=st.integers(1, 2))
def test_drawn_networks_compute_what_pytorchs_layers_compute(
    drawn: tuple[nn.Sequential, tuple[int, int, int], int], threads: int
) -> None:
    model, image, count = drawn
    torch.set_num_threads(threads)
    x = torch.randn(count, *image)
    exact, plain = copy.deepcopy(model).double(), copy.deepcopy(model).to(memory_format=torch.channels_last)
    for layer in plain:  # PyTorch's batch norm is less exact in this layout, which blocks in C bring about
        layer.register_forward_pre_hook(lambda layer, x: x[0].contiguous(memory_format=torch.channels_last))
    try:
        shape = copy.deepcopy(model).train()(x).shape
    except (RuntimeError, ValueError):
        with pytest.raises((RuntimeError, ValueError)):  # what PyTorch refuses is refused
            (fuse(model, image).model or model).train()(x)
        return
    fused = fuse(model.to(memory_format=torch.channels_last), image).model
    # A value so near to zero that rounding decides whether ReLU lets it pass is a matter of luck: three are not.
    for attempt in range(3):
        x, gradient = torch.randn(count, *image), torch.randn(shape)
        try:
            assert_as_exact(
                results(fused or model, model, x, gradient),
                results(plain, plain, x, gradient),
                results(exact, exact, x.double(), gradient.double()),
            )
            break
        except AssertionError:
            if attempt == 2:
                raise
