"""Learning-rate schedules that `torch.optim.lr_scheduler` does not have."""

import math
from typing import Any

from torch.optim import Optimizer


class OneCycle:
    """A linear warm-up to the optimizer's rate, then a cosine down to (almost) zero; changes every step.

    `warmup` and `end` are fractions of the training: where the peak and where the floor is reached;
    after `end` the rate stays at the floor. `initial` and `floor` are fractions of the peak rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        warmup: float = 0.2,
        end: float = 1.0,
        initial: float = 0.04,
        floor: float = 0.0001,
    ) -> None:
        if not 0 <= warmup < end <= 1:
            raise ValueError(
                f"warmup is {warmup} and end is {end}: they must satisfy 0 <= warmup < end <= 1 "
                "(fractions of the training)"
            )
        self.optimizer = optimizer
        self.epochs, self.warmup, self.end, self.initial, self.floor = epochs, warmup, end, initial, floor
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.step(0.0)

    def factor(self, progress: float) -> float:
        """The rate as a fraction of its peak, where `progress` runs from 0 to 1 over the training."""
        if progress < self.warmup:
            return self.initial + (1 - self.initial) * progress / self.warmup
        cosine = (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (self.end - self.warmup)))) / 2
        return self.floor + (1 - self.floor) * cosine

    def step(self, epoch: float) -> None:
        """Set the rate for a moment of the training, in epochs; 2.5 is the middle of the third."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.factor(epoch / self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the peak rates, since the optimizer's own have moved."""
        return {"peaks": self.peaks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the peak rates back from a checkpoint."""
        self.peaks = list(state["peaks"])


class LossDip:
    """The skeleton's own rule: lower the rate when the training loss falls by a smaller share than before.

    After epoch t >= 4 with training losses L: dip d(t) = (L(t-1) - L(t)) / L(t-1) and its relative
    change c(t) = (d(t) - d(t-1)) / d(t-1). If c(t) < 0 the rate is multiplied by `factor` and the
    momentum is dropped, as the study does by building a new optimizer. A previous dip or loss of
    exactly zero has no relative change: the rate stays.
    """

    def __init__(self, optimizer: Optimizer, factor: float = 0.9) -> None:
        self.optimizer = optimizer
        self.factor = factor
        self.losses: list[float] = []

    def step(self, loss: float) -> None:
        """Record the training loss of the epoch that just ended and apply the rule."""
        self.losses.append(loss)
        if len(self.losses) < 4 or 0 in self.losses[-3:-1]:
            return
        before, previous, last = self.losses[-3:]
        previous_dip, dip = (before - previous) / before, (previous - last) / previous
        if previous_dip != 0 and (dip - previous_dip) / previous_dip < 0:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.factor
            self.optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the losses back from a checkpoint."""
        self.losses = list(state["losses"])
