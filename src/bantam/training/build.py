"""The parts of a run as its configuration names them: what a constructor refuses becomes one sentence."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bantam import config
from bantam.schedulers import Schedule, TorchSchedule

Choices = Mapping[str, Any]
"""The option chosen of each group, as in model=v2."""


def build(cfg: DictConfig, key: str, choices: Choices) -> Any:
    """Instantiate a group; what its constructor refuses becomes a ValueError that names the group."""
    try:
        return instantiate(cfg[key], _execution_whitelist_=config.WHITELIST)
    except InstantiationException as error:
        cause = error.__cause__
        if key == "data" and isinstance(cause, ValueError):
            raise cause from None
        raise cannot_be_built(key, choices, cause or error) from error


def cannot_be_built(key: str, choices: Choices, cause: BaseException) -> ValueError:
    """The sentence for a group whose option refuses its keys."""
    return ValueError(f"{key}={choices.get(key)} cannot be built: {' '.join(str(cause).split())}")


def build_optimizer(cfg: DictConfig, choices: Choices, model: nn.Module) -> Optimizer:
    """The optimizer of a network's parameters. Raises ValueError where it refuses its keys."""
    optimizer = build(cfg, "optimizer", choices)
    try:
        return optimizer(model.parameters())  # type: ignore[no-any-return]
    except Exception as error:  # a constructor that refuses its arguments may raise anything
        raise cannot_be_built("optimizer", choices, error) from error


def build_schedule(cfg: DictConfig, choices: Choices) -> Schedule:
    """A schedule of ours, or one of torch's, which waits for its optimizer."""
    built: Any = build(cfg, "scheduler", choices)
    if not isinstance(built, partial):
        return built  # type: ignore[no-any-return]
    if isinstance(built.func, type) and issubclass(built.func, LRScheduler):
        return TorchSchedule(built)
    try:
        return built()  # type: ignore[no-any-return] # ours need no optimizer
    except Exception as error:
        raise cannot_be_built("scheduler", choices, error) from error


def dry_run_schedule(cfg: DictConfig, choices: Choices, schedule: Schedule, rates: Sequence[float]) -> list[float]:
    """The rate in the middle of every epoch, at a constant loss; refuses rates that no optimizer can take."""
    name = f"scheduler={choices.get('scheduler')}"
    try:
        for lr in rates:
            schedule.rate(lr, 0.0, [])
    except Exception as error:  # torch builds its schedulers here, and they may raise anything
        raise cannot_be_built("scheduler", choices, error) from error
    found = []
    for epoch in range(1, cfg.epochs + 1):
        try:
            rate = schedule.rate(rates[0], epoch - 0.5, [1.0] * (epoch - 1))
        except Exception as error:
            raise ValueError(f"{name} fails after epoch {epoch - 1} ({error}): change scheduler.*") from error
        if not 0 <= rate < float("inf"):
            raise ValueError(
                f"{name} sets the learning rate of epoch {epoch} to {rate}: "
                "change scheduler.* so that it stays at 0 or above"
            )
        found.append(rate)
    return found
