"""The moving average of a network's weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a network's weights and batch-norm statistics, in a network of its own.

    Every step keeps the share `decay` of it; less of the first ones, which are far from anything good:
    of step n at most (n + 1) / (n + 10).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay, self.steps = decay, 0
        # Listed once: with so few weights, finding them would take longer than averaging them.
        averages, currents = ([*network.parameters(), *network.buffers()] for network in (self.model, model))
        whole = [not tensor.is_floating_point() for tensor in currents]
        # Themselves, not detached: those would stay where they are when a network sets the `data` of its weights.
        self.averages, self.counts = _separate(averages, whole)
        self.current, self.current_counts = _separate(currents, whole)

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights into the average; nothing waits for an accelerator."""
        self.steps += 1
        kept = min(self.decay, (self.steps + 1) / (self.steps + 10))
        torch._foreach_lerp_(self.averages, self.current, 1 - kept)
        if self.counts:  # a network without batch norm counts nothing
            torch._foreach_copy_(self.counts, self.current_counts)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the average back from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def _separate(tensors: list[Tensor], second: list[bool]) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors in two lists: those to be averaged, and those to be copied."""
    pairs = list(zip(tensors, second, strict=True))
    return [tensor for tensor, other in pairs if not other], [tensor for tensor, other in pairs if other]
