"""Blocks in bfloat16, by both ways of multiplying it."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from emulation import emulate
from small_networks import NETWORKS
from torch import Tensor, nn

from bantam import models
from bantam.kernels import compiler
from bantam.kernels.fuse import fuse

pytestmark = pytest.mark.slow

IMAGE = (1, 28, 28)


class Rounded(torch.autograd.Function):
    """To bfloat16 and back; gradients pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def far(ours: Tensor, theirs: Tensor) -> float:
    """How far a tensor is from another, as a fraction of the other's length."""
    return float(((ours.double() - theirs).norm() / theirs.norm()).detach())


EMULATED = (
    {"side": 13, "dropout": 0.3},
    {"side": 9, "dropout": 0.3},
    {"side": 8, "dropout": 0.3},
    {"side": 12, "dropout": 0.3},
)
"""Cases that are tried on every processor, with its missing instructions in plain C."""


@pytest.fixture(params=["tiles", "vectors"])
def products(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, emulated_cache: Path
) -> Iterator[None]:
    """Both ways of multiplying bfloat16; most cases are skipped where the processor does not have them."""
    tiles = request.param == "tiles"
    if not (compiler.matrix_unit() if tiles else compiler.bfloat16()):
        case = request.node.callspec.params.items()
        if not any(chosen.items() <= case for chosen in EMULATED):
            pytest.skip(f"this processor does not multiply bfloat16 in {request.param}")
        emulate(monkeypatch, emulated_cache)
    monkeypatch.setattr(compiler, "matrix_unit", lambda: tiles)
    compiler.library.cache_clear()
    yield
    compiler.library.cache_clear()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("relu_first", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs", "side", "kernel", "pool", "padding"),
    [
        (1, 16, 28, 3, 1, 0),
        (16, 16, 26, 3, 2, 0),
        (16, 10, 12, 3, 1, 0),
        (8, 5, 13, 3, 2, 0),
        (15, 15, 9, 3, 1, 0),
        (9, 11, 12, 3, 2, 0),
        (3, 17, 9, 5, 1, 0),
        (17, 33, 7, 3, 1, 0),
        (40, 48, 6, 1, 1, 0),
        (12, 24, 24, 1, 2, 0),
        (16, 8, 11, 1, 1, 0),
        (2, 200, 3, 3, 1, 0),
        (3, 5, 9, 3, 2, 1),
        (16, 17, 13, 5, 1, 3),
        (16, 20, 8, 3, 2, 1),
        (2, 5, 40, 3, 1, 0),
        (1, 3, 20, 17, 1, 0),
    ],
)
@pytest.mark.usefixtures("products")
def test_in_bfloat16_a_block_is_as_exact_as_its_numbers(
    inputs: int, outputs: int, side: int, kernel: int, pool: int, padding: int, relu_first: bool, dropout: float
) -> None:
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(outputs)
    middle = [nn.ReLU(), norm] if relu_first else [norm, nn.ReLU()]
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False)
    convolution.weight.data = convolution.weight.data.bfloat16().float()
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    exact = copy.deepcopy([convolution, *middle])
    layers = [convolution, *middle, *([models.Dropout(dropout)] if dropout else [])]
    pooling = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
    fused = fuse(nn.Sequential(*layers, pooling).train(), (inputs, side, side), torch.bfloat16).model
    twin = nn.Sequential(*copy.deepcopy(layers)).train()
    unpooled = fuse(twin, (inputs, side, side), torch.bfloat16).model
    assert fused is not None
    assert unpooled is not None
    torch.set_num_threads(2)
    for count in (9, 4):
        x = torch.randn(count, inputs, side, side).bfloat16().to(memory_format=torch.channels_last)
        x.requires_grad_()
        torch.manual_seed(4)
        y = fused(x)
        assert y.dtype == torch.bfloat16
        weight = torch.randn(y.shape).bfloat16()
        convolution.weight.grad = norm.weight.grad = norm.bias.grad = None
        (y * weight).sum().backward()
        torch.manual_seed(4)
        x_ = x.detach().double().requires_grad_()
        exact[0].double().zero_grad()
        z = exact[1].double()(Rounded.apply(exact[0](x_)))
        z = exact[2].double()(z)
        if dropout:
            # A zero of ReLU may or may not be dropped: its gradient is none in either case.
            kept = unpooled(x.detach()) != 0
            assert 0.2 < (~kept).double().mean() < 0.8
            z = z * kept / (1 - dropout)
        wanted = pooling(z)
        exact[1].zero_grad()
        exact[2].zero_grad()
        (wanted * weight.double()).sum().backward()
        assert far(y, wanted) < 0.004
        assert x.grad is not None
        assert far(x.grad, x_.grad) < 0.05  # type: ignore[arg-type]
        exact_norm = next(layer for layer in exact if isinstance(layer, nn.BatchNorm2d))
        for ours, theirs in zip((convolution, norm), (exact[0], exact_norm), strict=True):
            for parameter, wanted_ in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert far(parameter.grad, wanted_.grad) < 0.05  # type: ignore[arg-type]
        for buffer, wanted_ in zip(norm.buffers(), exact_norm.buffers(), strict=True):
            torch.testing.assert_close(buffer.double(), wanted_.double(), rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.usefixtures("products")
def test_in_bfloat16_networks_are_as_exact_as_with_pytorchs_kernels(network: Any) -> None:
    torch.manual_seed(1)
    model = network().to(memory_format=torch.channels_last)
    fused = fuse(model, IMAGE, torch.bfloat16).model
    assert fused is not None
    x = torch.randn(64, *IMAGE)
    for training in (True, False):
        model.train(training)
        exact = copy.deepcopy(model).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            theirs = copy.deepcopy(model)(x)
            ours = fused.train(training)(x)
        assert far(ours, exact) < 1.5 * far(theirs, exact) + 0.002


@pytest.mark.usefixtures("products")
def test_pytorchs_own_products_in_bfloat16_are_not_disturbed() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(2, 300, 300).bfloat16().unbind()
    fused = fuse(models.V2(), IMAGE, torch.bfloat16).model
    assert fused is not None
    before = a @ b
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            fused.train()(torch.randn(4, *IMAGE)).float().sum().backward()
        assert torch.equal(a @ b, before)
