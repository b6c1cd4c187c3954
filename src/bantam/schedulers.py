"""Learning-rate schedules: each one says the rate for a moment of the training."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Schedule(Protocol):
    """What the training asks before every step; a schedule of your own is a class with the method `rate`."""

    follows_loss: bool = False
    """The rates depend on the training loss, so those shown before the training are a guess."""
    drops_momentum: bool = False
    """Where the rate has changed since the last epoch, the optimizer forgets its state."""

    def rate(self, lr: float, epoch: float, losses: Sequence[float]) -> float:
        """The learning rate of a parameter group whose own rate is `lr`.

        `epoch` is counted from 0, in steps: 2.5 is the middle of the third. `losses` are the mean training losses
        of the epochs that have ended.
        """
        ...


class _Unmoving(torch.optim.SGD):
    """An optimizer that has nothing to train: a step of SGD's own would import torch._dynamo."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do nothing."""


class TorchSchedule(Schedule):
    """A schedule of `torch.optim.lr_scheduler`, which moves at the end of every epoch."""

    def __init__(self, scheduler: Callable[[Optimizer], LRScheduler]) -> None:
        self.scheduler = scheduler
        self.following: dict[float, Iterator[float]] = {}
        self.known: dict[float, list[float]] = {}

    def rate(self, lr: float, epoch: float, losses: Sequence[float]) -> float:
        """The rate that the scheduler gives an optimizer with the rate `lr` in this epoch."""
        known = self.known.setdefault(lr, [])
        following = self.following.setdefault(lr, self._rates(lr))
        while len(known) <= int(epoch):
            known.append(next(following))
        return known[int(epoch)]

    def _rates(self, lr: float) -> Iterator[float]:
        """The rates of one epoch after the other, read off an optimizer that has nothing to train."""
        optimizer = _Unmoving([torch.zeros(1)], lr=lr)
        scheduler = self.scheduler(optimizer)
        while True:
            yield float(optimizer.param_groups[0]["lr"])
            optimizer.step()  # torch wants it before the scheduler's step
            scheduler.step()


class OneCycle(Schedule):
    """A linear warm-up to the optimizer's rate, then a cosine down to (almost) zero; changes every step.

    `warmup` and `end` are fractions of the training of so many `epochs`: where the peak and where the floor is
    reached; after `end` the rate stays at the floor. `initial` and `floor` are fractions of the peak rate.
    Raises ValueError where the warm-up does not end before `end`.
    """

    def __init__(
        self, epochs: int, warmup: float = 0.2, end: float = 1.0, initial: float = 0.04, floor: float = 0.0001
    ) -> None:
        if not 0 <= warmup < end <= 1:
            raise ValueError(
                f"warmup is {warmup} and end is {end}: they must satisfy 0 <= warmup < end <= 1 "
                "(fractions of the training)"
            )
        self.epochs, self.warmup, self.end, self.initial, self.floor = epochs, warmup, end, initial, floor

    def rate(self, lr: float, epoch: float, losses: Sequence[float]) -> float:
        """The peak rate `lr` times a factor that depends on the progress alone."""
        progress = epoch / self.epochs
        if progress < self.warmup:
            return lr * (self.initial + (1 - self.initial) * progress / self.warmup)
        cosine = (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (self.end - self.warmup)))) / 2
        return lr * (self.floor + (1 - self.floor) * cosine)


class Milestones(Schedule):
    """The rate is multiplied by `gamma` at every milestone, a fraction of the training of so many `epochs`.

    A milestone may lie within an epoch; the same `milestones` serve trainings of any length.
    """

    def __init__(self, epochs: int, milestones: Sequence[float], gamma: float) -> None:
        self.epochs, self.milestones, self.gamma = epochs, milestones, gamma

    def rate(self, lr: float, epoch: float, losses: Sequence[float]) -> float:
        """The rate `lr` times `gamma`, once for every milestone that is passed."""
        return lr * self.gamma ** sum(epoch / self.epochs >= milestone for milestone in self.milestones)


class LossDip(Schedule):
    """The skeleton's own rule: lower the rate when the training loss falls by a smaller share than before.

    After epoch t >= 4 with training losses L: dip d(t) = (L(t-1) - L(t)) / L(t-1) and its relative
    change c(t) = (d(t) - d(t-1)) / d(t-1). If c(t) < 0 the rate is multiplied by `factor` and the
    momentum is dropped, as the study does by building a new optimizer. A previous dip or loss of
    exactly zero has no relative change: the rate stays.
    """

    follows_loss = True
    drops_momentum = True

    def __init__(self, factor: float = 0.9) -> None:
        self.factor = factor

    def rate(self, lr: float, epoch: float, losses: Sequence[float]) -> float:
        """The rate `lr`, lowered once for every epoch so far whose loss dipped less."""
        for t in range(4, len(losses) + 1):
            if self._dips_less(losses[:t]):
                lr *= self.factor
        return lr

    def _dips_less(self, losses: Sequence[float]) -> bool:
        before, previous, last = losses[-3:]
        if 0 in (before, previous):
            return False
        previous_dip, dip = (before - previous) / before, (previous - last) / previous
        return previous_dip != 0 and (dip - previous_dip) / previous_dip < 0
