"""Steps of Muon in C beside those of PyTorch."""

import copy

import torch
from torch import nn

from bantam.kernels import muon
from bantam.models import Flexible
from bantam.optimizers import Muon


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Flexible(early1=12, early2=24, late1=32, late2=40, early_separable=True, late_separable=False)
    return model.to(memory_format=torch.channels_last)


def optimizer(model: nn.Module) -> Muon:
    return Muon(model.parameters(), lr=0.05, weight_decay=0.1)


def train(model: nn.Module, optimizer: Muon, steps: int, seed: int) -> None:
    """Steps with random gradients, in the order in which kernels lie in memory."""
    torch.manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape).to(
                p.dtype, memory_format=torch.channels_last if p.ndim == 4 else torch.preserve_format
            )
        optimizer.step()


def test_steps_are_those_of_pytorch() -> None:
    ours, theirs = network(), network()
    in_c = muon.in_c(optimizer(ours))
    assert isinstance(in_c, Muon)
    assert in_c.kernel is not None
    train(ours, in_c, 5, seed=1)
    train(theirs, optimizer(theirs), 5, seed=1)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-4)


def test_a_resumed_optimizer_goes_on_to_the_bit() -> None:
    begun = network()
    first = muon.in_c(optimizer(begun))
    train(begun, first, 3, seed=1)  # type: ignore[arg-type]
    resumed = copy.deepcopy(begun)
    second = muon.in_c(optimizer(resumed))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(begun, first, 3, seed=2)  # type: ignore[arg-type]
    train(resumed, second, 3, seed=2)  # type: ignore[arg-type]
    assert all(map(torch.equal, begun.parameters(), resumed.parameters()))


def test_gradients_that_lie_elsewhere_are_found_again() -> None:
    ours, theirs = network(), network()
    optimizers = muon.in_c(optimizer(ours)), optimizer(theirs)
    before = []
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradient = torch.randn_like(p)
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            before.append(p.grad.data)  # or other numbers might lie there, or the same
            p.grad.data, q.grad = gradient, gradient.clone()
        for each in optimizers:
            each.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-4)


def test_what_c_does_not_compute_is_left_to_pytorch() -> None:
    ours, theirs = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
    theirs.load_state_dict(ours.state_dict())
    train(ours.double(), muon.in_c(optimizer(ours)), 2, seed=1)  # type: ignore[arg-type]
    train(theirs, optimizer(theirs), 2, seed=1)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_other_optimizers_stay_as_they_are() -> None:
    sgd = torch.optim.SGD(nn.Linear(2, 2).parameters())
    assert muon.in_c(sgd) is sgd
