"""The parts of a run as its configuration names them: what a constructor refuses becomes one sentence."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bantam import config
from bantam.augmentation import COLOURS
from bantam.nearest import nearest
from bantam.own import code
from bantam.schedulers import Schedule, TorchSchedule
from bantam.trackers import Tracker

Choices = Mapping[str, Any]
"""The option chosen of each group, as in model=v2."""


def build(cfg: DictConfig, key: str, choices: Choices) -> Any:
    """Instantiate a group; what its constructor refuses becomes a ValueError that names the group."""
    if key == "augmentation":
        _check_colour(cfg)
    try:
        if key == "model" and cfg.model.get("_target_") == code.TARGET:
            settings: Any = OmegaConf.to_container(cfg.model, resolve=True)
            built = code.network(**{name: value for name, value in settings.items() if name != "_target_"})
            _shape_lazy_layers(built, image_shape(cfg))
        else:
            built = instantiate(cfg[key], _execution_whitelist_=config.TARGETS[key])
    except (Exception, SystemExit) as error:  # a constructor that refuses its arguments may raise anything
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if key == "data" and cause is not None and config.raised_in(cause):
            raise NoImages(str(cause)) from cause
        raise cannot_be_built(
            key, choices, _with_near_key(cfg, key, cause or error), own_arguments(cfg) if key == "model" else {}
        ) from error
    if key == "model" and not isinstance(built, nn.Module):
        raise cannot_be_built(key, choices, ValueError(f"it is no network but {type(built).__name__}"))
    if type(built).__module__.startswith(("torch._dynamo.", "torch.jit.")):
        what = f"it is compiled already ({type(built).__name__}): return the network itself, and use compile=true"
        raise cannot_be_built(key, choices, ValueError(what))
    return built


def _shape_lazy_layers(model: Any, shape: tuple[int, int, int]) -> None:
    """Give layers such as nn.LazyConv2d their weights, whose shapes follow from what images come to there."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    if any(map(is_lazy, tensors)):
        with torch.no_grad():
            model.eval()(torch.zeros(2, *shape, device=tensors[0].device))
        model.train()


def _check_colour(cfg: DictConfig) -> None:
    """Raise ValueError for changes of colour where images have none."""
    channels = cfg.data.channels
    for key in ("saturation", "hue") if channels != COLOURS else ():
        if cfg.augmentation.get(key):
            raise ValueError(
                f"augmentation.{key} is {cfg.augmentation[key]}, but images of {channels} "
                f"channel{'s' * (channels != 1)} have no colour: set augmentation.{key}=0"
            )


def image_shape(cfg: DictConfig) -> tuple[int, int, int]:
    """Channels, height and width of an image, as the data have said before they are read."""
    return cfg.data.channels, cfg.data.side, cfg.data.side


class NoImages(ValueError):
    """The images cannot be had: files are missing or damaged, or too few of them."""


def _with_near_key(cfg: DictConfig, key: str, error: BaseException) -> BaseException:
    """For a key that the option does not take, which was added by +: a sentence with the one that is meant."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or not found or found[1] not in cfg[key]:
        return error
    others = [str(name) for name in cfg[key] if not str(name).startswith("_") and name != found[1]]
    near = nearest(found[1], others)
    meant = f"did you mean {key}.{near}?" if near else f"its keys are {', '.join(others) or 'none'}"
    return ValueError(f"it takes no {found[1]}: {meant}")


class CannotBeBuilt(ValueError):
    """An option of a group refuses its keys."""


def cannot_be_built(
    key: str, choices: Choices, cause: BaseException, own: Mapping[str, Any] = MappingProxyType({})
) -> CannotBeBuilt:
    """The sentence for a group whose option refuses its keys; `own` are those of a class of one's own."""
    values = {name: repr(value) if isinstance(value, str) else value for name, value in own.items()}
    given = f" with {', '.join(f'{name}={value}' for name, value in values.items())}" * bool(own)
    remedy = f": change {' or '.join([*(f'{key}.{name}' for name in own), 'that line'])}" * bool(own)
    return CannotBeBuilt(f"{key}={choices.get(key)} cannot be built{given}: {told(cause)}{remedy}")


def own_arguments(cfg: DictConfig) -> dict[str, Any]:
    """The keys of a network of one's own; empty for one of Bantam's."""
    if cfg.model.get("_target_") != code.TARGET:
        return {}
    return {str(name): value for name, value in cfg.model.items() if not str(name).startswith("_")}


def told(error: BaseException) -> str:
    """What an error says, in one line; and where it was raised, unless a class raises a ValueError by itself."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if os.path.isabs(frame.filename) and is_own(frame.filename)]
    if not own or (config.raised_in(error) and own[-1] is frames[-1]):
        return text or type(error).__name__
    where = f"{own[-1].filename}, line {own[-1].lineno}"
    return f"{type(error).__name__} in {where}" + f": {text}" * bool(text)


PACKAGE = Path(config.__file__).parent

EDITED = ("models.py", "optimizers.py", "schedulers.py", "augmentation.py")
"""Files of Bantam's that somebody edits who adds a network, a rate or an augmentation."""

LIBRARIES = ("site-packages", "dist-packages", f"python{sys.version_info.major}.{sys.version_info.minor}")
"""Folders of code that nobody edits."""


def is_own(file: str) -> bool:
    """Whether code is of whoever uses Bantam: neither a library's nor what builds, runs and counts networks."""
    path = Path(file)
    if PACKAGE in path.parents:
        return path.parent == PACKAGE and path.name in EDITED
    return not {*path.parts} & {*LIBRARIES}


class PartFailed(Exception):
    """What a group's option is made of fails in the training."""


def failure(error: Exception) -> str:
    """An error that nobody foresaw, in one line: its type, what it says, and where in code of one's own."""
    if isinstance(error, PartFailed):
        return str(error)
    kind, text = type(error).__name__, told(error)
    if isinstance(error, OSError) or not text.startswith(kind):
        return f"{kind}: {' '.join(str(error).split())}"
    return text


def blame(error: BaseException, parts: Mapping[str, Iterable[object]], choices: Choices) -> BaseException:
    """What to raise for an error in the training: a sentence that names the option which raised it."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        owner, file = frame.f_locals.get("self"), frame.f_code.co_filename
        for key, objects in parts.items():
            # What a class calls may have no self: a function beside it, or the backward of its autograd function.
            if any(owner is part or file == _own_file(part) for part in objects):
                return PartFailed(f"{key}={choices.get(key)} fails: {told(error)}")
    return PartFailed(f"the training fails: {told(error)}") if isinstance(error, ValueError) else error


def _own_file(part: object) -> str | None:
    """The file of an object's class; None where it is a library's."""
    file = getattr(sys.modules.get(type(part).__module__), "__file__", None) or ""
    return file if is_own(file) else None


def build_model(cfg: DictConfig, choices: Choices, device: torch.device) -> nn.Module:
    """The network with the first weights of its seed."""
    torch.manual_seed(cfg.seed)
    model: nn.Module = build(cfg, "model", choices)
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    return model.to(device, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def build_optimizer(cfg: DictConfig, choices: Choices, model: nn.Module) -> Optimizer:
    """The optimizer of a network's parameters. Raises ValueError where it refuses its keys."""
    if not any(True for _ in model.parameters()):
        raise ValueError(f"model={choices.get('model')} has no parameters, so there is nothing to train")
    optimizer = build(cfg, "optimizer", choices)
    _import_no_compiler(getattr(optimizer, "func", None))
    try:
        built: Optimizer = optimizer(model.parameters())
        for group in built.param_groups if type(built) is SGD else ():
            # All parameters in a few calls, which compute the same numbers as a few for each.
            group["foreach"] = group["foreach"] is not False and not (group["fused"] or group["differentiable"])
        return built
    except Exception as error:  # a constructor that refuses its arguments may raise anything
        raise cannot_be_built("optimizer", choices, _with_near_key(cfg, "optimizer", error)) from error


def _import_no_compiler(made_by: Any) -> None:
    """Let an optimizer be made, and take steps, without torch._dynamo, which takes long to import.

    Its methods ask it, when they are first called, for what keeps torch.compile out of them. Only networks are
    compiled here, so they are the same without that. `made_by` is what the configuration calls, a class as a rule.
    """
    for method in (
        Optimizer.add_param_group,
        Optimizer.state_dict,
        Optimizer.load_state_dict,
        Optimizer.zero_grad,
    ):
        function = getattr(method, "__wrapped__", None)
        if function is not None and not hasattr(function, "__dynamo_disable"):
            setattr(function, "__dynamo_disable", function)  # its name would be mangled
    own = (
        vars(made_by).get("step")
        if isinstance(made_by, type) and made_by.__module__.startswith("torch.optim.")
        else None
    )
    if getattr(own, "__code__", None) is not None and own.__code__.co_name == "_use_grad":  # type: ignore[union-attr]
        made_by.step = _without_graph_break(own.__wrapped__)  # type: ignore[union-attr]


def _without_graph_break(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step of one of PyTorch's optimizers, with gradients where it is differentiable, as PyTorch calls it."""

    @wraps(step)
    def as_pytorch(self: Optimizer, *arguments: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **named)

    return as_pytorch


def build_trackers(cfg: DictConfig) -> dict[str, Tracker]:
    """The trackers by option. Raises ValueError where a package is missing."""
    found = {}
    for option, node in cfg.tracker.items():
        try:
            found[str(option)] = instantiate(node, _execution_whitelist_=config.TARGETS["tracker"])
        except InstantiationException as error:
            if not isinstance(error.__cause__, ValueError):
                raise
            raise ValueError(str(error.__cause__)) from error
    return found


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
        raise cannot_be_built("scheduler", choices, _with_near_key(cfg, "scheduler", error)) from error


def dry_run_schedule(cfg: DictConfig, choices: Choices, schedule: Schedule, rates: Sequence[float]) -> list[float]:
    """The rate in the middle of every epoch, at a constant loss; refuses rates that no optimizer can take."""
    name = f"scheduler={choices.get('scheduler')}"
    try:
        for lr in rates:
            schedule.rate(lr, 0.0, [])
    except Exception as error:  # torch builds its schedulers here, and they may raise anything
        raise cannot_be_built("scheduler", choices, _with_near_key(cfg, "scheduler", error)) from error
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
