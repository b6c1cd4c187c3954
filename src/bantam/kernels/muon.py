"""A step of Muon in C: on small matrices PyTorch's operations mostly wait for one another."""

import ctypes
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from bantam.kernels import compiler
from bantam.kernels.arguments import MuonArguments, MuonTensor, lie_alike
from bantam.optimizers import NEWTON_SCHULZ_STEPS, Muon, orthogonal

SOURCE = "muon.c"

MOST_ROWS = 128
"""Rows or columns, whichever are fewer: PyTorch multiplies larger matrices faster."""

Step = Callable[[dict[str, Any], Sequence[Tensor], Sequence[Tensor]], bool]


def in_c(optimizer: Optimizer) -> Optimizer:
    """The same optimizer; where it is a Muon and C can be compiled, C computes its steps from now on."""
    if type(optimizer) is Muon:
        with suppress(compiler.Unavailable):
            optimizer.kernel = taken(compiler.library(SOURCE, check, BFLOAT16=0))
    return optimizer


def taken(library: ctypes.CDLL) -> Step:
    """A function that takes the step of a group: its tensors, which have gradients, and their momenta.

    It returns False, with nothing done, where C does not compute them.
    """
    library.step.argtypes, library.step.restype = [ctypes.POINTER(MuonArguments)], None
    known: dict[bool, tuple[Sequence[object], ctypes.Array[MuonTensor], MuonArguments]] = {}
    """What was handed over last, of matrices and of vectors."""
    gradients: dict[bool, tuple[list[Tensor], Sequence[object]]] = {}
    """The gradients that it points to, and where: they may be others in every step, or lie elsewhere."""

    def step(group: dict[str, Any], parameters: Sequence[Tensor], momenta: Sequence[Tensor]) -> bool:
        matrices = bool(parameters) and parameters[0].ndim > 1
        where = [(each.data_ptr(), each.shape, each.stride()) for each in (*parameters, *momenta)]
        if matrices not in known or known[matrices][0] != where:
            if not all(map(_fits, parameters, momenta)):
                return False
            known[matrices] = where, *_handed_over(parameters, momenta)
            gradients.pop(matrices, None)
        _, tensors, arguments = known[matrices]
        grads = [p.grad for p in parameters if p.grad is not None]
        there = [(grad.data_ptr(), grad.stride()) for grad in grads]
        before, then = gradients.get(matrices, ([], []))
        if there != then or not all(map(operator.is_, grads, before)):
            gradients.pop(matrices, None)
            for tensor, p, grad in zip(tensors, parameters, grads, strict=True):
                usual = grad.stride() == p.stride() and grad.dtype == torch.float32
                if not usual and not _fits(p, grad):
                    return False
                tensor.gradient = grad.data_ptr()
            gradients[matrices] = grads, there
        arguments.lr, arguments.momentum, arguments.nesterov = group["lr"], group["momentum"], group["nesterov"]
        arguments.decay = 1 - group["lr"] * group["weight_decay"]
        library.step(arguments)
        # As PyTorch's operations do, so that a graph of before is refused.
        increment_version(parameters)
        return True

    return step


def _handed_over(
    parameters: Sequence[Tensor], momenta: Sequence[Tensor]
) -> tuple["ctypes.Array[MuonTensor]", MuonArguments]:
    tensors = (MuonTensor * len(parameters))()
    for tensor, p, momentum in zip(tensors, parameters, momenta, strict=True):
        tensor.weight, tensor.momentum = p.data_ptr(), momentum.data_ptr()
        tensor.rows, tensor.columns = p.shape[0], p[0].numel()
    steps = NEWTON_SCHULZ_STEPS if parameters and parameters[0].ndim > 1 else 0
    return tensors, MuonArguments(tensors=tensors, count=len(parameters), steps=steps)


def _fits(p: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie in memory alike, and are of a size that C computes."""
    return lie_alike(p, other) and (p.ndim == 1 or (p.ndim > 1 and 0 < min(len(p), p[0].numel()) <= MOST_ROWS))


def check(library: ctypes.CDLL, source: str, sizes: dict[str, int]) -> None:
    """Raise Unavailable where a library takes other steps than PyTorch."""
    step = taken(library)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for shape in ((5, 19), (48, 33), (16, 16), (7,)):
            p, momentum = torch.randn(shape), torch.zeros(shape)
            before, p.grad = p.clone(), torch.randn(shape)
            group = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5, "nesterov": True}
            direction = 1.9 * p.grad
            wanted = before * 0.95 - 0.1 * (orthogonal(direction) if p.ndim > 1 else direction)
            if not step(group, [p], [momentum]) or not torch.allclose(p, wanted, atol=1e-3):
                raise compiler.Unavailable(f"what this compiler makes of {source} is wrong")
