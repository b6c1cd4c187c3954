"""Steps of SGD in C beside those of PyTorch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR

from bantam.kernels import compiler, sgd
from bantam.models import V2

OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.8},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"weight_decay": 0.1},
    # What C does not compute.
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "maximize": True},
    {"momentum": 0.9, "fused": True},
    {"momentum": 0.9, "lr": torch.tensor(0.05)},
]


def computed_in_c(optimizer: Optimizer) -> bool:
    """Whether its steps are those of C, where C computes them."""
    return "step" in vars(optimizer)


def twins(**options: Any) -> tuple[nn.Module, SGD, nn.Module, SGD]:
    """Two like networks: one with steps in C, and one with PyTorch's."""
    torch.set_num_threads(1)  # with more PyTorch cannot add what is sparse
    torch.manual_seed(0)
    ours = V2().to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.05, **options}
    in_c = sgd.in_c(SGD(ours.parameters(), **settings))
    assert isinstance(in_c, SGD)
    assert computed_in_c(in_c)
    return ours, in_c, theirs, SGD(theirs.parameters(), **settings)


def take(steps: int, *pairs: tuple[nn.Module, SGD], change: Callable[[Tensor], Tensor] = lambda g: g) -> None:
    """Steps of several networks with the same random gradients."""
    for step in range(steps):
        for model, optimizer in pairs:
            torch.manual_seed(step)
            for p in model.parameters():
                p.grad = change(torch.randn_like(p))
            optimizer.step()


def same(ours: nn.Module, theirs: nn.Module) -> None:
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_steps_and_what_is_saved_are_those_of_pytorch(options: dict[str, Any]) -> None:
    ours, in_c, theirs, in_pytorch = twins(**options)
    take(4, (ours, in_c), (theirs, in_pytorch))
    same(ours, theirs)
    saved, wanted = in_c.state_dict(), in_pytorch.state_dict()
    assert saved["param_groups"] == wanted["param_groups"]
    for i, state in wanted["state"].items():
        if state["momentum_buffer"] is not None:
            torch.testing.assert_close(saved["state"][i]["momentum_buffer"], state["momentum_buffer"])


def test_a_resumed_optimizer_goes_on_to_the_bit() -> None:
    ours, in_c, resumed, of_resumed = twins(momentum=0.8)
    sgd.in_c(of_resumed)
    take(3, (ours, in_c))
    resumed.load_state_dict(ours.state_dict())
    of_resumed.load_state_dict(copy.deepcopy(in_c.state_dict()))
    take(2, (ours, in_c), (resumed, of_resumed))
    assert all(map(torch.equal, ours.parameters(), resumed.parameters()))


def test_momenta_that_are_dropped_begin_anew() -> None:
    ours, in_c, theirs, in_pytorch = twins(momentum=0.8)
    take(2, (ours, in_c), (theirs, in_pytorch))
    in_c.state.clear()
    in_pytorch.state.clear()
    take(2, (ours, in_c), (theirs, in_pytorch))
    same(ours, theirs)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda g: g.contiguous(), id="in another order"),
        pytest.param(lambda g: g.to_sparse(), id="sparse"),
        pytest.param(lambda g: g[:1].expand_as(g), id="with numbers that share memory"),
    ],
)
def test_gradients_that_lie_otherwise_in_memory_are_not_misread(change: Callable[[Tensor], Tensor]) -> None:
    ours, in_c, theirs, in_pytorch = twins()
    take(2, (ours, in_c), (theirs, in_pytorch), change=change)
    same(ours, theirs)


def test_weights_and_gradients_are_followed_to_where_they_move() -> None:
    ours, in_c, theirs, in_pytorch = twins(momentum=0.8)
    take(2, (ours, in_c), (theirs, in_pytorch))
    for p in ours.parameters():
        p.data = p.data.clone()
    list(ours.parameters())[3].requires_grad_(False)
    list(theirs.parameters())[3].requires_grad_(False)
    take(2, (ours, in_c), (theirs, in_pytorch))
    same(ours, theirs)
    for optimizer in (in_c, in_pytorch):
        torch.manual_seed(9)
        optimizer.add_param_group({"params": [nn.Parameter(torch.randn(5))]})
        optimizer.param_groups[0]["params"][0].grad = None
        optimizer.step()
    same(ours, theirs)


def test_tensors_of_another_size_or_order_in_the_same_place_are_seen() -> None:
    for change in (lambda t: t[:2], lambda t: t.t()):
        taken = []
        for in_c in (True, False):
            torch.manual_seed(0)
            weight = nn.Parameter(torch.randn(3, 3))
            weight.grad = torch.randn(3, 3)
            memory = weight.data
            optimizer: Optimizer = SGD([weight], lr=0.1)
            optimizer = sgd.in_c(optimizer) if in_c else optimizer
            optimizer.step()
            if change(memory).shape == memory.shape:
                weight.data = change(memory)  # its gradient lies as before
            else:
                gradient = weight.grad
                weight.grad = None
                weight.data, weight.grad = change(memory), change(gradient)
            optimizer.step()
            taken.append(memory.clone())
        torch.testing.assert_close(*taken)


def test_a_graph_of_before_the_step_is_refused_as_it_is_by_pytorch() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = sgd.in_c(SGD([weight], lr=0.1))
    (weight**2).sum().backward()
    of_before = (weight**2).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        of_before.backward()


def test_schedules_of_pytorch_find_its_function() -> None:
    ours, in_c, _, _ = twins()
    schedule = StepLR(in_c, 1, gamma=0.5)
    take(1, (ours, in_c))
    schedule.step()
    assert in_c.param_groups[0]["lr"] == 0.025


def test_networks_in_bfloat16_are_left_to_pytorch() -> None:
    ours, in_c, theirs, in_pytorch = twins(momentum=0.8)
    for model in (ours, theirs):
        model.bfloat16()
        for p in model.parameters():
            p.grad = None
    take(2, (ours, in_c), (theirs, in_pytorch))
    same(ours, theirs)


def test_hooks_and_closures_are_called() -> None:
    ours, in_c, _, _ = twins()
    called = []
    in_c.register_step_post_hook(lambda *_: called.append("hook"))
    take(1, (ours, in_c))
    assert in_c.step(lambda: 3.0) == 3.0
    assert called == ["hook", "hook"]


def test_without_a_compiler_pytorch_takes_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    compiler.library.cache_clear()
    optimizer = sgd.in_c(SGD([nn.Parameter(torch.ones(3))], lr=0.1))
    assert not computed_in_c(optimizer)
    monkeypatch.undo()
    compiler.library.cache_clear()


def test_other_optimizers_are_left_as_they_are() -> None:
    class Own(SGD):
        pass

    for made_by in (torch.optim.AdamW, Own):
        optimizer = sgd.in_c(made_by([nn.Parameter(torch.ones(3))], lr=0.1))
        assert not computed_in_c(optimizer)
