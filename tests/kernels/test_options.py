"""Blocks with padding, a stride, a bias, an average: of drawn sizes they are what PyTorch's layers compute."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from layer_results import results
from torch import Tensor, nn

from bantam.kernels.fuse import fuse

TOLERANCE = 1e-5


@st.composite
def blocks(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """A block, and channels, height and width of its images."""
    torch.manual_seed(draw(st.integers(0, 999)))
    inputs, outputs, kernel = draw(st.integers(1, 9)), draw(st.integers(1, 20)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 3))
    least = max(1, kernel - 2 * padding)
    side = draw(st.integers(least, least + 12))
    stride, bias = draw(st.integers(1, 3)), draw(st.booleans())
    groups = 1
    if draw(st.booleans()):
        groups = inputs = outputs = max(2, outputs)  # a depthwise convolution
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
    if groups > 1 and draw(st.booleans()):
        return nn.Sequential(convolution), (inputs, side, side)
    norm = nn.BatchNorm2d(outputs, momentum=draw(st.floats(0.1, 0.9)))
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    middle = draw(st.sampled_from([[norm, nn.ReLU()], [nn.ReLU(), norm], [norm]]))
    layers = [convolution, *middle]
    pool = draw(st.integers(1, 3))
    if 1 < pool <= (side + 2 * padding - kernel) // stride + 1:
        layers.append(draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(pool))
    return nn.Sequential(*layers), (inputs, side, side)


@pytest.mark.usefixtures("quick")
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(drawn=blocks(), images=st.integers(4, 9), threads=st.integers(1, 2))
def test_a_block_computes_what_pytorchs_layers_compute(
    drawn: tuple[nn.Sequential, tuple[int, int, int]], images: int, threads: int
) -> None:
    model, image = drawn
    torch.set_num_threads(threads)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    if model[0].kernel_size == (1, 1):  # PyTorch 2.14 writes beyond its memory in those with a stride in float32
        plain = exact
    done = fuse(model.to(memory_format=torch.channels_last), image)
    assert done.model is not None
    assert not done.left
    for _ in range(3):  # a value so near to zero that rounding decides about it is a matter of luck
        x = torch.randn(images, *image)
        gradient = torch.randn(copy.deepcopy(model).train()(x).shape)
        ours = results(done.model, model, x, gradient)
        theirs = results(plain, plain, *(tensor.to(plain[0].weight.dtype) for tensor in (x, gradient)))
        wanted = results(exact, exact, x.double(), gradient.double())
        far = {
            name: (distance(ours[name], value), distance(theirs[name], value)) for name, value in wanted.items()
        }
        # Sums that cancel out, of a weight that batch norm undoes, are as inexact as PyTorch's.
        if all(our <= max(TOLERANCE, 4 * their) for our, their in far.values()):
            return
    raise AssertionError(far)


def distance(found: Tensor, wanted: Tensor) -> float:
    """How far a tensor is from the exact one, as a fraction of its length where that is not near to zero."""
    return float((found.double() - wanted.double()).norm() / (wanted.double().norm() + 1))
