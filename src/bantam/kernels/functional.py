"""The layers that functions and methods in a forward stand for: `F.relu(x)` is what `nn.ReLU` computes."""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bantam.kernels.traced import Mode

RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
POOLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys(
        (F.max_pool2d, torch.max_pool2d),
        (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    ),
    F.avg_pool2d: (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
}
"""The layers of functions, with what those take behind the maps, in their order."""


class FunctionalDropout(nn.Dropout):
    """`F.dropout(x, p, training=self.training)` as a layer: in training when that module is."""

    def __init__(self, p: float, module: nn.Module) -> None:
        self.of: tuple[nn.Module] = (module,)
        super().__init__(p)

    @property
    def training(self) -> bool:
        return self.of[0].training

    @training.setter
    def training(self, mode: bool) -> None:
        """That module alone decides."""


def layer_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The layer that computes what a node does, of the one value that it gets; None where there is none."""
    if not (node.args and isinstance(node.args[0], fx.Node)):
        return None
    if node.op == "call_module":
        alone = len(node.args) == 1 and not node.kwargs
        return root.get_submodule(str(node.target)) if alone else None
    others = [each for each in node.all_input_nodes if each is not node.args[0]]
    if node.target is F.dropout:
        return _dropout(node, root, others)
    if others or node.op not in ("call_function", "call_method"):
        return None
    if node.target in RELUS:
        return nn.ReLU()
    return _pool(node)


def _dropout(node: fx.Node, root: nn.Module, others: list[fx.Node]) -> nn.Module | None:
    """Only where the mode of a module says whether it drops."""
    given = inspect.signature(F.dropout).bind(*node.args, **node.kwargs).arguments
    if [given.get("training")] != others or others[0].op != "call_module":
        return None
    mode, p = root.get_submodule(str(others[0].target)), given.get("p", 0.5)
    if not isinstance(mode, Mode) or not isinstance(p, float | int):
        return None
    return FunctionalDropout(p, mode.of[0])


def _pool(node: fx.Node) -> nn.Module | None:
    if node.target not in POOLS:
        return None
    kind, names = POOLS[node.target]
    given = dict(zip(names, node.args[1:], strict=False)) | {
        key: value for key, value in node.kwargs.items() if key != "input"
    }
    return kind(**given)


def sum_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two maps that a node adds; None where it does something else."""
    sums: tuple[Callable[..., Any] | str, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
    if node.op not in ("call_function", "call_method") or node.target not in sums or node.kwargs:
        return None
    maps = [each for each in node.args if isinstance(each, fx.Node)]
    return (maps[0], maps[1]) if len(node.args) == len(maps) == 2 else None
