"""The layers that functions and methods in a forward stand for: `F.relu(x)` is what `nn.ReLU` computes."""

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bantam.kernels.chain import Chain
from bantam.kernels.compiled import Compiled
from bantam.kernels.reasons import hooked
from bantam.kernels.stack import Stack
from bantam.kernels.traced import Mode, is_layer

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


IN_PLACE = ("iadd", "isub", "imul", "itruediv", "setitem")


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


def other_of(node: fx.Node, one: fx.Node) -> fx.Node | None:
    """What a node adds to a value; None where it does not, or changes something else in its place."""
    if node.op not in ("call_function", "call_method") or node.kwargs or len(node.args) != 2:
        return None
    if node.target in (operator.iadd, "add_"):
        other = node.args[1] if node.args[0] is one else None
    elif node.target in (operator.add, torch.add, "add"):
        other = node.args[1] if node.args[0] is one else node.args[0]
    else:
        return None
    # A parameter is no map, but has the same value for all images or pixels.
    return other if isinstance(other, fx.Node) and other.op != "get_attr" and other is not one else None


def changes_something(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node may change a value in its place."""
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        known = isinstance(layer, Compiled | Chain | Stack | Mode) or (is_layer(layer) and not hooked(layer))
        return not known or bool(getattr(layer, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.op in ("call_function", "call_method") and (name.endswith("_") or name in IN_PLACE)
    return in_place or bool(node.kwargs.get("inplace"))
