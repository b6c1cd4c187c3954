"""Blocks that are one function, beside the same blocks one by one."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from layer_results import assert_weights_may_be_set_anew
from torch import Tensor, nn

from bantam.kernels import compiler
from bantam.kernels.blocks import Block
from bantam.kernels.fuse import fuse
from bantam.kernels.stack import Stack

IMAGE = (1, 16, 16)

PRECISIONS = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not compiler.bfloat16(), reason="no bfloat16")),
]


def network() -> nn.Sequential:
    """Three blocks: dropout and a max-pool, a bias and an average, channels that are no whole vectors."""
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(12), nn.Dropout(0.2), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Dropout(0.1), nn.AvgPool2d(2)),
        *(nn.Conv2d(10, 9, 1, bias=False), nn.BatchNorm2d(9), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 10)),
    )
    return model.to(memory_format=torch.channels_last).train()


def stacked(model: nn.Module, precision: torch.dtype = torch.float32) -> tuple[nn.Module, Stack]:
    found = fuse(model, IMAGE, precision).model
    assert found is not None
    (stack,) = (module for module in found.modules() if isinstance(module, Stack))
    assert len(stack.listed) == 3
    assert all(block.libraries for block in stack.listed)
    return found, stack


def step(forward: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(len(x))
    model.zero_grad()
    logits = forward(x)
    F.cross_entropy(logits.float(), torch.arange(len(x)) % 10).backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_stack_computes_what_its_blocks_compute(threads: int, precision: torch.dtype) -> None:
    torch.set_num_threads(threads)
    model = network()
    other = copy.deepcopy(model)
    forward, stack = stacked(model, precision)
    by_block, blocks = stacked(other, precision)
    blocks.usable = lambda x: None  # type: ignore[method-assign]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        for count in (7, 33, 5):  # the memory of a larger batch serves a smaller one
            x = torch.randn(count, *IMAGE)
            assert stack.usable(x)
            logits, ours = step(forward, model, x)
            wanted, theirs = step(by_block, other, x)
            assert torch.equal(logits, wanted)
            assert all(map(torch.equal, ours, theirs))
    for our, their in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert our[0] == their[0]
        assert torch.equal(our[1], their[1])


def test_a_second_forward_pass_leaves_the_first_as_it_was() -> None:
    model = network()
    forward, _ = stacked(model)
    x, other = torch.randn(2, 6, *IMAGE)
    _, wanted = step(forward, model, x)
    wanted = [grad.clone() for grad in wanted]
    torch.manual_seed(6)
    model.zero_grad()
    first = forward(x)
    forward(other)
    F.cross_entropy(first, torch.arange(6)).backward()
    found = [p.grad for p in model.parameters()]
    assert all(torch.equal(our, their) for our, their in zip(found, wanted, strict=True) if our is not None)


def test_a_result_that_is_thrown_away_keeps_no_memory_busy() -> None:
    forward, stack = stacked(network())
    results: list[Tensor] = []
    stack.register_forward_hook(lambda module, inputs, output: results.append(output.detach()))
    x, other = torch.randn(2, 6, *IMAGE)
    logits = forward(x)
    assert stack.usable(other) is None  # its backward pass may come
    del logits
    assert stack.usable(other)
    before = results[0].clone()
    forward(other).sum().backward()
    assert torch.equal(results[0], before)  # whoever looks at the maps keeps them
    assert stack.usable(x)


def test_a_third_forward_pass_makes_the_first_invalid() -> None:
    model = network()
    forward, _ = stacked(model)
    x = torch.randn(6, *IMAGE)
    first = forward(x).sum()
    first.backward(retain_graph=True)
    forward(x).sum().backward()
    with pytest.raises(RuntimeError, match="keep the results of a forward pass"):
        first.backward()


def test_weights_that_were_changed_in_the_meantime_are_refused() -> None:
    model = network()
    forward, _ = stacked(model)
    loss = forward(torch.randn(6, *IMAGE)).sum()
    with torch.no_grad():
        model[5].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_weights_may_be_set_anew_before_the_backward_pass() -> None:
    model = network()
    for dropout in (layer for layer in model if isinstance(layer, nn.Dropout)):
        dropout.p = 0.0
    assert_weights_may_be_set_anew(model, lambda model: stacked(model)[0], torch.randn(6, *IMAGE))


def test_the_gradient_of_the_input_is_that_of_the_layers() -> None:
    model = network()
    for dropout in (layer for layer in model if isinstance(layer, nn.Dropout)):
        dropout.p = 0.0
    exact = copy.deepcopy(model).double()
    forward, _ = stacked(model)
    x = torch.randn(6, *IMAGE, requires_grad=True)
    y = x.detach().double().requires_grad_()
    F.cross_entropy(forward(x), torch.arange(6)).backward()
    F.cross_entropy(exact(y), torch.arange(6)).backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=0, atol=1e-5)


def test_frozen_statistics_are_left_to_the_layers() -> None:
    model = network()
    forward, stack = stacked(model)
    forward.train()
    norm = stack.listed[1].norm[0]
    norm.eval()
    assert stack.usable(torch.randn(6, *IMAGE)) is None
    before = norm.running_mean.clone()
    step(forward, model, torch.randn(6, *IMAGE))
    assert torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 0


def test_outside_training_the_blocks_compute() -> None:
    model = network()
    forward, stack = stacked(model)
    forward.eval()
    assert stack.usable(torch.randn(6, *IMAGE)) is None
    x = torch.randn(6, *IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(forward(x), model.eval()(x), rtol=0, atol=1e-5)


def test_a_block_alone_is_no_stack() -> None:
    model = nn.Sequential(*network()[:5], nn.Flatten(), nn.Linear(12 * 49, 10))
    found = fuse(model.train(), IMAGE).model
    assert found is not None
    assert [type(each) for each in found.blocks] == [Block]  # type: ignore[union-attr, arg-type]
