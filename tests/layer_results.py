"""What a network computes in a step, and how far two of them may be from one another."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def results(network: nn.Module, model: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Output, gradients and statistics of a step in training, and the output outside of it.

    `network` computes with the parameters of `model`; `gradient` is that of its output.
    """
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(0)
    y = network.train()(x)
    found = {"output": y.detach().clone()}
    (y * gradient).sum().backward()
    assert x.grad is not None
    found["gradient of the input"] = x.grad
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[f"gradient of {name}"] = parameter.grad
    found |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        found["output outside training"] = network.eval()(x)
    return found


def assert_as_exact(ours: dict[str, Tensor], theirs: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Our results are about as near to those in double precision as PyTorch's are."""
    assert ours.keys() == theirs.keys() == exact.keys()
    for name, value in exact.items():
        value = value.double()
        far, allowed = (float((found[name].double() - value).norm()) for found in (ours, theirs))
        length, elements = float(value.norm()), value.numel()
        assert far <= 10 * allowed + 1e-3 * (length + 0.1 * elements**0.5), (name, far, allowed, length)


def assert_weights_may_be_set_anew(model: nn.Module, joined: Callable[[nn.Module], nn.Module], x: Tensor) -> None:
    """Setting the `data` of weights between forward and backward pass changes no gradient of a network in C.

    `joined` makes the faster twin of a network, whose linear layer, the last one, PyTorch takes as it is then.
    """
    other = copy.deepcopy(model)
    forward, unchanged = joined(model), joined(other)
    unchanged(x).square().sum().backward()
    sums = forward(x).square().sum()
    for p in [*model.parameters()][:-2]:
        p.data = torch.full_like(p, torch.nan)
    others = [torch.full_like(p, torch.nan) for p in model.parameters() for _ in range(20)]  # where they were
    sums.backward()
    assert others
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)
