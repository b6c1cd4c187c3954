"""What people put into a block: padding. With Hypothesis's sizes, each is what PyTorch's layers compute."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from layer_results import results
from torch import nn

from bantam.kernels import compiler
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
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False)
    norm = nn.BatchNorm2d(outputs, momentum=draw(st.floats(0.1, 0.9)))
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    middle = [norm, nn.ReLU()] if draw(st.booleans()) else [nn.ReLU(), norm]
    layers = [convolution, *middle]
    pool = draw(st.integers(1, 3))
    if 1 < pool <= side + 2 * padding - kernel + 1:
        layers.append(nn.MaxPool2d(pool))
    return nn.Sequential(*layers), (inputs, side, side)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Code that is compiled quickly, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(compiler, "FLAGS", [flag.replace("-O3", "-O1") for flag in compiler.FLAGS])
        compiler.library.cache_clear()
        yield
    compiler.library.cache_clear()


@pytest.mark.usefixtures("quick")
@settings(
    max_examples=25,
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
    exact = copy.deepcopy(model).double()
    done = fuse(model.to(memory_format=torch.channels_last), image)
    assert done.model is not None
    assert not done.left
    for attempt in range(3):  # a value so near to zero that rounding decides about it is a matter of luck
        x = torch.randn(images, *image)
        gradient = torch.randn(copy.deepcopy(model).train()(x).shape)
        ours = results(done.model, model, x, gradient)
        theirs = results(exact, exact, x.double(), gradient.double())
        far = {
            name: float((ours[name].double() - value.double()).norm() / (value.double().norm() + 1))
            for name, value in theirs.items()
        }
        if all(distance <= TOLERANCE for distance in far.values()):
            return
    raise AssertionError(far)
