"""Blocks with padding, a stride, a bias, an average: of drawn sizes they are what PyTorch's layers compute."""

import copy
import platform
import shlex
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from layer_results import results
from torch import Tensor, nn
from torch.nn import functional

from bantam.kernels import compiler
from bantam.kernels.fuse import fuse

TOLERANCE = 1e-5


class Residual(nn.Module):
    """A convolution and batch norm to whose output another map is added: the input, or what layers make of it."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential, relu: bool, first: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.relu, self.first = body, shortcut, relu, first

    def forward(self, x: Tensor) -> Tensor:
        y = self.shortcut(x) + self.body(x) if self.first else self.body(x) + self.shortcut(x)
        return functional.relu(y) if self.relu else y


@st.composite
def residuals(draw: st.DrawFn) -> tuple[Residual, tuple[int, int, int]]:
    """A residual block, and channels, height and width of its images."""
    torch.manual_seed(draw(st.integers(0, 999)))
    inputs, outputs, kernel = draw(st.integers(1, 9)), draw(st.integers(1, 20)), draw(st.sampled_from([1, 3, 5]))
    side, identity = draw(st.integers(3, 12)), draw(st.booleans())
    groups = 1
    if identity:
        outputs = inputs
        groups = draw(st.sampled_from([1, inputs]))

    def normed(kernel: int, groups: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(outputs)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        bias = draw(st.booleans())
        return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias), norm]

    body = nn.Sequential(*normed(kernel, groups))
    shortcut = nn.Sequential(*([] if identity else normed(1, 1)))
    model = Residual(body, shortcut, draw(st.booleans()), draw(st.booleans()))
    return model, (inputs, side, side)


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


@st.composite
def wide_blocks(draw: st.DrawFn, lanes: int) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """A block whose products take fewer multiplications, and channels, height and width of its images."""
    torch.manual_seed(draw(st.integers(0, 999)))
    inputs, outputs = draw(st.integers(lanes, 2 * lanes + 5)), draw(st.integers(lanes, 4 * lanes + 5))
    padding = draw(st.integers(0, 3))
    least = max(1, 6 - 2 * padding)
    side = draw(st.integers(least, least + 9))
    norm = nn.BatchNorm2d(outputs)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    middle = draw(st.sampled_from([[norm, nn.ReLU()], [nn.ReLU(), norm]]))
    pool = draw(st.sampled_from([nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(3)]))
    layers = [nn.Conv2d(inputs, outputs, 3, padding=padding, bias=draw(st.booleans())), *middle, pool]
    return nn.Sequential(*layers), (inputs, side, side)


fifteen = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""So many are drawn, the same ones every time."""


@pytest.mark.whole
@pytest.mark.usefixtures("quick")
@fifteen
@given(drawn=blocks(), images=st.integers(4, 9), threads=st.integers(1, 2))
def test_a_block_computes_what_pytorchs_layers_compute(
    drawn: tuple[nn.Sequential, tuple[int, int, int]], images: int, threads: int
) -> None:
    model, image = drawn
    # PyTorch 2.14 writes beyond its memory in 1×1 convolutions with a stride in float32.
    compare(model, image, images, threads, exact=model[0].kernel_size == (1, 1))


@pytest.mark.whole
@pytest.mark.usefixtures("quick")
@fifteen
@given(drawn=residuals(), images=st.integers(4, 9), threads=st.integers(1, 2))
def test_a_block_with_a_sum_computes_what_pytorchs_layers_compute(
    drawn: tuple[Residual, tuple[int, int, int]], images: int, threads: int
) -> None:
    model, image = drawn
    compare(model, image, images, threads)


@pytest.mark.whole
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("without", "halves", "lanes"),
    [("", False, 16), ("", False, 9), ("", True, 8), ("-mno-avx512f", False, 8), ("-mno-avx", False, 4)],
)
@fifteen
@given(data=st.data(), images=st.integers(4, 9), threads=st.integers(1, 2))
def test_a_block_of_many_channels_computes_what_pytorchs_layers_compute(
    without: str, halves: bool, lanes: int, data: st.DataObject, images: int, threads: int
) -> None:
    if without and platform.machine() != "x86_64":
        pytest.skip("of a processor with other instructions")
    model, image = data.draw(wide_blocks(lanes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "FLAGS", [*compiler.FLAGS, *([without] if without else [])])
        patch.setattr(compiler, "in_halves", lambda: halves)
        compiler.library.cache_clear()
        compare(model, image, images, threads)
    compiler.library.cache_clear()


@pytest.mark.slow
def test_threads_with_a_small_stack_have_room_for_many_channels() -> None:
    script = (
        "import torch; from torch import nn; from bantam.kernels.fuse import fuse; torch.set_num_threads(2)\n"
        "model = nn.Sequential(nn.Conv2d(360, 360, 3, padding=1), nn.BatchNorm2d(360), nn.ReLU())\n"
        "fused = fuse(model.to(memory_format=torch.channels_last), (360, 22, 22)).model\n"
        "fused(torch.randn(4, 360, 22, 22)).sum().backward(); print('done')"
    )
    # Without a limit of its own a thread has two mebibytes.
    command = f"ulimit -s unlimited && exec {sys.executable} -c {shlex.quote(script)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    if "ulimit" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == "done\n", done.stderr


def compare(model: nn.Module, image: tuple[int, int, int], images: int, threads: int, exact: bool = False) -> None:
    """Steps of blocks in C beside those of the layers; `exact` leaves out those of PyTorch in float32."""
    torch.set_num_threads(threads)
    double = copy.deepcopy(model).double()
    plain = double if exact else copy.deepcopy(model)
    done = fuse(model.to(memory_format=torch.channels_last), image)
    assert done.model is not None
    assert not done.left
    assert not done.reasons
    dtype = next(plain.parameters()).dtype
    for _ in range(3):  # a value so near to zero that rounding decides about it is a matter of luck
        x = torch.randn(images, *image)
        gradient = torch.randn(copy.deepcopy(model).train()(x).shape)
        ours = results(done.model, model, x, gradient)
        theirs = results(plain, plain, x.to(dtype), gradient.to(dtype))
        wanted = results(double, double, x.double(), gradient.double())
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
