"""The parts of a run as its configuration names them: what a constructor refuses becomes one sentence."""

import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
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
        built = instantiate(cfg[key], _execution_whitelist_=config.TARGETS[key])
    except Exception as error:  # a constructor that refuses its arguments may raise anything
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if key == "data" and isinstance(cause, ValueError):
            raise cause from None
        raise cannot_be_built(key, choices, cause or error) from error
    if key == "model" and not isinstance(built, nn.Module):
        raise cannot_be_built(key, choices, ValueError(f"it is no network but {type(built).__name__}"))
    return built


class CannotBeBuilt(ValueError):
    """An option of a group refuses its keys."""


def cannot_be_built(key: str, choices: Choices, cause: BaseException) -> CannotBeBuilt:
    """The sentence for a group whose option refuses its keys."""
    return CannotBeBuilt(f"{key}={choices.get(key)} cannot be built: {told(cause)}")


def told(error: BaseException) -> str:
    """What an error says, in one line; and where it was raised, unless a class raises a ValueError by itself."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in Path(frame.filename).parts for part in NOT_OWN)]
    own = [frame for frame in own if Path(frame.filename).parent != Path(__file__).parent]
    deliberate = isinstance(error, ValueError) and (frames[-1].line or "").startswith("raise ") if frames else True
    if not own or deliberate:
        return text or type(error).__name__
    where = f"{own[-1].filename}, line {own[-1].lineno}"
    return f"{type(error).__name__} in {where}" + f": {text}" * bool(text)


NOT_OWN = ("site-packages", "dist-packages", "kernels", f"python{sys.version_info.major}.{sys.version_info.minor}")
"""Folders of code that nobody edits who adds a network, a rate or an augmentation."""


class PartFailed(Exception):
    """What a group's option is made of fails in the training."""


def blame(error: Exception, parts: Mapping[str, Iterable[object]], choices: Choices) -> PartFailed | None:
    """The sentence for an error that one of a run's parts raised; None where it was raised elsewhere."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        owner = frame.f_locals.get("self")
        for key, objects in parts.items():
            if any(owner is part for part in objects):
                return PartFailed(f"{key}={choices.get(key)} fails: {told(error)}")
    return None


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
            what = f"{name} fails after epoch {epoch - 1} ({told(error)})"
            raise ValueError(f"{what}: change scheduler.*") from error
        if not 0 <= rate < float("inf"):
            raise ValueError(
                f"{name} sets the learning rate of epoch {epoch} to {rate}: "
                "change scheduler.* so that it stays at 0 or above"
            )
        found.append(rate)
    return found
