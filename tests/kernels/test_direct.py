"""Loss and gradients without autograd, beside those with it."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bantam.kernels.direct import Direct, direct
from bantam.kernels.fuse import fuse

IMAGE = (1, 12, 12)


def network(bias: bool = False, last: int = 8) -> nn.Sequential:
    torch.manual_seed(1)
    return (
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Conv2d(4, 4, 3, groups=4, bias=False),
            *(nn.Conv2d(4, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10, bias=bias)),
        )
        .to(memory_format=torch.channels_last)
        .train()
    )


def found(model: nn.Module) -> tuple[nn.Module, Direct | None]:
    fused = fuse(model, IMAGE).model
    assert fused is not None
    return fused, direct(fused.train(), IMAGE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_are_those_of_autograd(bias: bool, smoothing: float) -> None:
    model = network(bias)
    exact = copy.deepcopy(model).double()
    _, step = found(model)
    assert step
    for count in (9, 33, 4):  # more images than before, and fewer: the last batch of an epoch
        x, labels = torch.randn(count, *IMAGE), torch.randint(10, (count,))
        loss, correct = step(x, labels, smoothing)
        exact.zero_grad()
        logits = exact(x.double())
        F.cross_entropy(logits, labels, label_smoothing=smoothing).backward()
        assert loss == pytest.approx(float(F.cross_entropy(logits.detach(), labels)), rel=1e-5)
        assert correct == int((logits.argmax(1) == labels).sum())
        for p, q in zip(model.parameters(), exact.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-4 * float(q.grad.abs().max()))
    for buffer, wanted in zip(model.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(buffer.double(), wanted.double(), rtol=1e-4, atol=1e-6)


def test_parameters_that_are_somewhere_else_are_found_again() -> None:
    model = network()
    fused, step = found(model)
    assert step
    x, labels = torch.randn(5, *IMAGE), torch.randint(10, (5,))
    step(x, labels, 0.0)
    for p in model.parameters():
        p.data = p.data.clone() * 1.5
        p.grad = None
    fused(torch.randn(20, *IMAGE)).sum().backward()  # and the chain has other memory
    for p in model.parameters():
        p.grad = None
    loss, _ = step(x, labels, 0.0)
    wanted = F.cross_entropy(model(x), labels)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert all(p.grad is not None for p in model.parameters())


def frozen(model: nn.Sequential) -> None:
    model[0].weight.requires_grad_(False)


def watched(model: nn.Sequential) -> None:
    model[10].register_forward_hook(lambda module, inputs, output: None)


def with_gradients_watched(model: nn.Sequential) -> None:
    model[10].weight.register_hook(lambda gradient: gradient)


@pytest.mark.parametrize("change", [frozen, watched, with_gradients_watched])
def test_what_needs_autograd_gets_it(change: Callable[[nn.Sequential], None]) -> None:
    model = network()
    change(model)
    assert found(model)[1] is None


def test_outside_training_there_is_nothing_to_compute() -> None:
    fused, step = found(network())
    assert step
    assert direct(fused.eval(), IMAGE) is None


def test_other_networks_have_autograd() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert direct(network(), IMAGE) is None
    fused = fuse(Twice(*network()), IMAGE).model
    assert fused is not None
    assert direct(fused.train(), IMAGE) is None


def test_nan_is_seen_in_the_loss() -> None:
    _, step = found(network())
    assert step
    x = torch.full((3, *IMAGE), float("nan"))
    loss, _ = step(x, torch.zeros(3, dtype=torch.int64), 0.0)
    assert loss != loss
