"""What a configuration's network costs, and the refusal of one that is over the budget."""

import bisect
import math
import re

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bantam import budget
from bantam.own.source import FROM_DATA
from bantam.training.build import CannotBeBuilt, Choices, build, image_shape, own_arguments, told


def check_budget(cfg: DictConfig, choices: Choices) -> tuple[list[budget.Layer], dict[str, int]]:
    """Count what the network costs; returns its layers and its costs. Raises OverBudget."""
    layers, costs = count(cfg, choices)
    over = {key: excess for key, excess in budget.excess(costs, cfg.budget).items() if excess > 0}
    if not over:
        return layers, costs
    amounts = (
        f"{budget.in_words({key: costs[key]})}, {excess:,} over the {cfg.budget[key] - 1:,} "
        f"that budget.{key}={cfg.budget[key]:,} allows"
        for key, excess in over.items()
    )
    raise budget.OverBudget(
        f"model={choices.get('model')} has {', and '.join(amounts)}: "
        f"{_smaller(cfg, choices)} or raise {' and '.join(f'budget.{key}' for key in over)}",
        layers,
        costs,
    )


_counted: dict[tuple[str, tuple[int, int, int]], tuple[list[budget.Layer], dict[str, int]]] = {}
"""What this process has counted, by the configuration of a network and the shape of an image: trials share it."""


def count(cfg: DictConfig, choices: Choices) -> tuple[list[budget.Layer], dict[str, int]]:
    """The layers and the costs of the network, counted once."""
    network = (OmegaConf.to_yaml(cfg.model, resolve=True), image_shape(cfg))
    if network not in _counted:
        _counted[network] = _count(cfg, choices)
    return _counted[network]


def _count(cfg: DictConfig, choices: Choices) -> tuple[list[budget.Layer], dict[str, int]]:
    """The network is run on the meta device where it is large."""
    model, shape = _without_values(cfg, choices), image_shape(cfg)
    if budget.count(model) <= budget.SMALL and math.prod(shape) <= budget.SMALL:
        model = _network(cfg, choices, "cpu")
    try:
        layers = budget.layers(model, shape)
    except (Exception, SystemExit) as error:  # a network of one's own may raise anything
        cause, size = error.__cause__ or error, "×".join(map(str, shape))
        said = f"model={choices.get('model')}: a {size} image does not fit through this network: {told(cause)}"
        raise ValueError(f"{said}{_remedy(cfg, said)}") from error
    return layers, budget.costs(model, layers)


NOT_MULTIPLIED = re.compile(r"mat1 and mat2 shapes cannot be multiplied \(1x(\d+) and (\d+)x(\d+)\)")
"""What PyTorch says of a linear layer that gets more or fewer numbers of the one image than it takes."""


def _remedy(cfg: DictConfig, said: str) -> str:
    """What helps where an image does not fit through a network of one's own."""
    if not own_arguments(cfg):
        return ""
    if sizes := NOT_MULTIPLIED.search(said):
        gets, takes, makes = sizes.groups()
        return f": a linear layer takes {takes} numbers and gets {gets}, so write nn.Linear({gets}, {makes})"
    return f": change model.* or {'that line' if ', line ' in said else 'its layers'}"


def _without_values(cfg: DictConfig, choices: Choices) -> nn.Module:
    """The network on the meta device, or on the CPU where its class needs values or says itself where it lies."""
    try:
        return _network(cfg, choices, "meta")
    except CannotBeBuilt:
        return _network(cfg, choices, "cpu")


def _network(cfg: DictConfig, choices: Choices, device: str) -> nn.Module:
    with torch.device(device):
        return build(cfg, "model", choices)  # type: ignore[no-any-return]


def _smaller(cfg: DictConfig, choices: Choices) -> str:
    """What makes the network smaller: its largest width within the budget, or its largest keys."""

    def too_wide(width: int) -> bool:
        narrower: DictConfig = OmegaConf.merge(cfg, {"model": {"width": width}})  # type: ignore[assignment]
        if any(cfg.budget[key] is not None for key in ("multiply_adds", "activations")):
            _, costs = count(narrower, choices)
        else:  # the others need no image to be computed
            costs = budget.costs(_without_values(narrower, choices), [])
        return max(budget.excess(costs, cfg.budget).values()) > 0

    if "width" in cfg.model:
        width = bisect.bisect_left(range(1, cfg.model.width), True, key=too_wide)
        if width:
            return f"lower model.width to {width}"
    own = {key: value for key, value in cfg.model.items() if key not in FROM_DATA}
    numbers = {key: value for key, value in own.items() if isinstance(value, int) and value > 1}
    keys = [f"model.{key!s}" for key in sorted(numbers, key=lambda key: -numbers[key])[:3]]
    return f"lower {' or '.join(keys)}" if keys else "choose a smaller network"
