"""A step of SGD in C: of small tensors PyTorch's calls, and Python around them, take longer than the numbers."""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as of_torch

from bantam.kernels import compiler
from bantam.kernels.arguments import SgdArguments, SgdTensor, lie_alike

SOURCE = "sgd.c"


def in_c(optimizer: Optimizer) -> Optimizer:
    """The same optimizer; where it is PyTorch's SGD and C can be compiled, C computes its steps from now on."""
    if type(optimizer) is SGD:
        with suppress(compiler.Unavailable):
            step = Step(compiler.library(SOURCE, check, BFLOAT16=0))
            # A method like any other: PyTorch's schedulers look for its function.
            optimizer.step = MethodType(lambda self, closure=None: step(self, closure), optimizer)  # type: ignore[method-assign]
    return optimizer


class Step:
    """What takes the place of the `step` of one SGD; its momenta stay where they are saved and loaded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.step.argtypes, library.step.restype = [ctypes.POINTER(SgdArguments)], None
        self.library = library
        self.places: list[object] = []
        """How many tensors each group had in the last step, and where and how they lay."""
        self.groups: list[SgdArguments] = []
        """What C gets of each group, as long as they lie there."""

    def __call__(self, optimizer: SGD, closure: Any = None) -> Any:
        """Take a step, as PyTorch does where C does not compute it; returns what `closure` does."""
        if closure is not None or not _usual(optimizer):
            return SGD.step(optimizer, closure)
        tensors = [_tensors(optimizer, group) for group in optimizer.param_groups]
        if any(gradient.is_sparse for of_group in tensors for _, gradient, *_ in of_group):
            return SGD.step(optimizer)
        places: list[object] = [len(of_group) for of_group in tensors]
        places += [
            (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            for of_group in tensors
            for each in of_group
            for tensor in each
        ]
        if places != self.places:
            if not all(lie_alike(*each) for of_group in tensors for each in of_group):
                return SGD.step(optimizer)
            self.groups = [_arguments(of_group) for of_group in tensors]
            self.places = places
        for arguments, group in zip(self.groups, optimizer.param_groups, strict=True):
            arguments.lr, arguments.momentum = group["lr"], group["momentum"]
            arguments.weight_decay, arguments.nesterov = group["weight_decay"], group["nesterov"]
            self.library.step(arguments)
        # As PyTorch's operations do, so that a graph of before is refused.
        increment_version([p for of_group in tensors for p, *_ in of_group])
        return None


def _usual(optimizer: SGD) -> bool:
    """Whether nothing but its numbers is asked of an optimizer's step."""
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        of_torch._global_optimizer_pre_hooks,
        of_torch._global_optimizer_post_hooks,
    )
    return not any(hooks) and not any(
        group["dampening"]
        or group["maximize"]
        or group["differentiable"]
        or group["fused"]
        or isinstance(group["lr"], Tensor)
        for group in optimizer.param_groups
    )


def _tensors(optimizer: SGD, group: dict[str, Any]) -> list[tuple[Tensor, ...]]:
    """Every parameter of a group that has a gradient, that, and where there is one its momentum."""
    found: list[tuple[Tensor, ...]] = []
    for p in group["params"]:
        if p.grad is None:
            continue
        if not group["momentum"]:
            found.append((p, p.grad))
            continue
        state = optimizer.state[p]
        buffer = state.get("momentum_buffer")
        if buffer is None:  # in a first step the momentum is the gradient
            state["momentum_buffer"] = buffer = torch.zeros_like(p)
        found.append((p, p.grad, buffer))
    return found


def _arguments(tensors: Sequence[Sequence[Tensor]]) -> SgdArguments:
    handed_over = (SgdTensor * len(tensors))()
    for each, (p, gradient, *momentum) in zip(handed_over, tensors, strict=True):
        each.weight, each.gradient, each.count = p.data_ptr(), gradient.data_ptr(), p.numel()
        each.momentum = momentum[0].data_ptr() if momentum else None
    return SgdArguments(tensors=handed_over, count=len(tensors))


def check(library: ctypes.CDLL, source: str, sizes: dict[str, int]) -> None:
    """Raise Unavailable where a library takes other steps than PyTorch."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        every: tuple[dict[str, Any], ...] = ({}, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1})
        for options in every:
            ours, theirs = ([torch.ones(37, requires_grad=True)] for _ in range(2))
            in_pytorch = SGD(theirs, lr=0.1, **options)
            optimizer, in_c = SGD(ours, lr=0.1, **options), Step(library)
            for _ in range(3):
                ours[0].grad = theirs[0].grad = torch.randn(37)
                in_c(optimizer)
                SGD.step(in_pytorch)
            if not torch.allclose(ours[0], theirs[0], atol=1e-6):
                raise compiler.Unavailable(f"what this compiler makes of {source} is wrong")
