"""Optimizers that `torch.optim` does not have."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that brings singular values near 1, after K. Jordan (2024), as `torch.optim.Muon` has them."""


NEWTON_SCHULZ_STEPS = 5


class Muon(Optimizer):
    """SGD with momentum whose steps are orthogonal matrices; convolutions are matrices too.

    `torch.optim.Muon` takes matrices only. Here a kernel is one with a row for every output channel. Such a
    step has singular values near 1, so `lr` says how far every direction of a layer moves. What has one
    dimension only, the factors and offsets of batch norm, takes plain steps with a rate of its own,
    `vector_lr`, and does not decay.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.05,
        vector_lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        listed = list(params)
        matrices = {"params": [p for p in listed if p.ndim > 1], "weight_decay": weight_decay}
        vectors = {"params": [p for p in listed if p.ndim < 2], "lr": vector_lr, "weight_decay": 0.0}
        groups = [group for group in (matrices, vectors) if group["params"]]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov})
        self.kernel: Callable[[dict[str, Any], list[Tensor], list[Tensor]], bool] | None = None
        """What may take the step of a group instead: of its parameters with gradients, and their momenta."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            parameters = [p for p in group["params"] if p.grad is not None]
            momenta = [self._momentum(p) for p in parameters]
            if self.kernel and self.kernel(group, parameters, momenta):
                continue
            for p, buffer in zip(parameters, momenta, strict=True):
                moved = buffer.mul_(momentum).add_(p.grad)
                direction = p.grad.add(moved, alpha=momentum) if group["nesterov"] else moved
                if p.ndim > 1:
                    direction = orthogonal(direction.flatten(1)).view(p.shape)
                p.mul_(1 - lr * group["weight_decay"]).add_(direction, alpha=-lr)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]  # type: ignore[no-any-return]


def orthogonal(matrix: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """The nearest matrix with orthogonal rows (or columns, of which there may be fewer), roughly.

    Its singular values lie between 0.7 and 1.2 where those of `matrix` are not far apart; a tall one is made
    longer by the root of its height to width, so that outputs of every layer change as much.
    """
    rows, columns = matrix.shape
    a, b, c = COEFFICIENTS
    x = matrix.mT if rows > columns else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT * (rows / columns) ** 0.5 if rows > columns else x
