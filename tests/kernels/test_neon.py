"""What the C code computes on AArch64, by qemu, beside PyTorch's layers in double precision."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import qemu
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bantam.kernels import compiler, muon, selfcheck
from bantam.kernels.chain import Chain
from bantam.kernels.fuse import fuse
from bantam.models import V2, Flexible
from bantam.optimizers import Muon

pytestmark = pytest.mark.slow

IMAGE = (1, 28, 28)


@pytest.fixture(autouse=True, params=["gcc", "clang"])
def neon(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from qemu.libraries(tmp_path, request.param, monkeypatch)


def step(forward: nn.Module, model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of all parameters and the running statistics."""
    model.zero_grad()
    logits = forward.train()(x)
    F.cross_entropy(logits, labels).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().double(), {**found, **dict(model.named_buffers())}


class Residual(nn.Module):
    """Two sums, one with ReLU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5))
        self.two = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.MaxPool2d(9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x) + x
        return self.two[2](F.relu(x + self.two[:2](x)))


CHAMPION = {"early1": 12, "early2": 24, "transition": 0, "late1": 32, "late2": 40, "late3": 48, "late4": 56}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), Residual(), nn.Flatten()
    ),
    "v2": lambda: V2(dropout=0.0),
    "champion": lambda: Flexible(**CHAMPION, early_separable=True, late_separable=True),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_is_that_of_the_layers(network: str, request: pytest.FixtureRequest) -> None:
    if network == "champion" and "clang" in request.node.callspec.id:
        pytest.skip("a minute under qemu: that of gcc is enough")
    torch.manual_seed(1)
    model = NETWORKS[network]().to(memory_format=torch.channels_last).train()
    exact = copy.deepcopy(model).double()
    fused = fuse(model, IMAGE)
    assert fused.model is not None
    assert any(isinstance(module, Chain) for module in fused.model.modules()) == (network == "champion")
    for threads in (1, 2) if network == "v2" else (2,):
        torch.set_num_threads(threads)
        x, labels = torch.randn(5, *IMAGE), torch.randint(10, (5,))
        logits, ours = step(fused.model, model, x, labels)
        wanted, theirs = step(exact, exact, x.double(), labels)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert (ours[name].double() - value).abs().max() <= 1e-4 * value.abs().max(), name


def test_what_dropout_drops_has_no_gradient() -> None:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(5)
    model = nn.Sequential(nn.Conv2d(1, 5, 3, bias=False), norm, nn.ReLU(), nn.Dropout(0.3))
    fused = fuse(model, IMAGE).model
    assert fused is not None
    y = fused.train()(torch.randn(8, *IMAGE))
    y.sum().backward()
    kept = (y != 0).sum((0, 2, 3))
    assert 0.3 < kept.sum() / y.numel() < 0.4  # of what ReLU leaves
    torch.testing.assert_close(norm.bias.grad, kept / 0.7)


def test_what_is_wrong_is_seen() -> None:
    sizes = {"SIDE": 6, "CI": 2, "CO": 5, "KERNEL": 3, "RELU_FIRST": 1, "POOL": 2, "BFLOAT16": 0, "MATRIX_UNIT": 0}
    library = compiler.library("block.c", selfcheck.compare, **sizes)
    with pytest.raises(compiler.Unavailable, match=r"what this compiler makes of block.c is wrong"):
        selfcheck.compare(library, "block.c", sizes | {"RELU_FIRST": 0})


def test_steps_of_muon_are_those_of_pytorch() -> None:
    torch.manual_seed(2)
    ours = NETWORKS["champion"]().to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    optimizers = [Muon(model.parameters(), lr=0.05, weight_decay=0.1) for model in (ours, theirs)]
    assert muon.in_c(optimizers[0]) is optimizers[0]
    assert optimizers[0].kernel is not None
    for _ in range(2):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-4)
