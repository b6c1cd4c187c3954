"""Which input pixels each element of a network's tensors depends on, carried through every operation."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

Rule = Callable[[dict[str, Any]], Any]
"""From the arguments of an operation by name, bounds in the place of tensors, to bounds of its outputs."""

Field = int | tuple[int, int]
"""The side of a square of pixels, or the height and the width of a rectangle."""

NOTHING, UNKNOWN = -torch.inf, torch.nan


class ReceptiveFields:
    """The rectangle of input pixels that each element depends on, for the tensors of a forward pass.

    A rectangle is four bounds: the largest -row, row, -column and column. What depends on several elements has the
    largest bounds of theirs, so that a bound passes through a convolution as a map passes through a max-pool.
    Elements that depend on no pixel have bounds of -inf; those of an operation that has no rule here, and all that
    depends on them, nan. What counts is what is computed, not values: a product with a weight of 0 depends too.
    """

    def __init__(self, image: Tensor) -> None:
        """Begin with an image, 1×C×H×W, each of whose pixels depends on itself."""
        rows, columns = (torch.arange(float(side), device="cpu") for side in image.shape[-2:])
        places = (-rows[:, None], rows[:, None], -columns, columns)
        self._bounds: Any = WeakTensorKeyDictionary()
        self._bounds[image] = [place.expand(image.shape).clone() for place in places]
        self._lost = False

    def of(self, tensor: Tensor) -> Field | None:
        """The rectangle of the element that sees most; None where it cannot be known."""
        if self._lost:
            return None
        top, bottom, left, right = self._bounds.get(tensor) or [torch.tensor(NOTHING, device="cpu")] * 4
        height, width = (top + bottom + 1).clamp_(min=0).flatten(), (left + right + 1).clamp_(min=0).flatten()
        if not len(height):
            return 0
        most = (height * width).argmax()  # nan is most of all
        high, wide = float(height[most]), float(width[most])
        if math.isnan(high):
            return None
        return int(high) if high == wide else (int(high), int(wide))

    def carry(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
        """Give what an operation of `torch.ops.aten` has made its bounds."""
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if operation.is_view and not any(leaf in self._bounds for leaf in inputs):
            return  # of weights, which depend on no pixel
        bounds = []
        for which in range(4):
            bound = partial(self._bound, operation, which)
            sub_args = [_mapped(bound, value) for value in args]
            sub_kwargs = {key: _mapped(bound, value) for key, value in kwargs.items()}
            try:
                made = _apply(operation, sub_args, sub_kwargs)
            except (RuntimeError, LookupError, TypeError, ValueError):  # a form of it that has no rule
                made = None
            bounds.append(_fitted(made, outputs, (sub_args, sub_kwargs)))
        for tensor, own in zip(outputs, zip(*bounds, strict=True), strict=True):
            self._keep(operation, tensor, list(own))
        self._lost |= operation._schema.is_mutable and not outputs

    def _bound(self, operation: Any, which: int, leaf: Any) -> Any:
        """A bound in the place of a tensor; positions that depend on no pixel stay as they are."""
        if not isinstance(leaf, Tensor):
            return leaf
        own = self._bounds.get(leaf)
        positions = _name(operation) in INDEXED and not leaf.is_floating_point()
        if positions and (own is None or _is_nothing(own[which])):
            return leaf
        return own[which] if own else torch.tensor(NOTHING, device="cpu").expand(leaf.shape)

    def _keep(self, operation: Any, tensor: Tensor, bounds: list[Tensor]) -> None:
        """Bounds share memory as their tensors do: what is written in place into one is seen in its views."""
        returns = operation._schema.returns[0].alias_info
        if operation.is_view or torch.Tag.inplace_view in operation.tags:
            self._bounds[tensor] = bounds
        elif not (returns and returns.is_write):
            self._bounds[tensor] = [bound.clone() for bound in bounds]
        elif tensor in self._bounds:
            for old, new in zip(self._bounds[tensor], bounds, strict=True):
                old.copy_(new)
        else:  # it is written over a weight, or into a part of one
            self._lost |= not all(map(_is_nothing, bounds))


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """An argument of an operation with something else in the place of its tensors."""
    return [function(item) for item in value] if isinstance(value, list | tuple) else function(value)


def _is_nothing(bound: Tensor) -> bool:
    return bool((bound == NOTHING).all())


def _name(operation: Any) -> str:
    """Of an operation, the same of one that works in place."""
    name: str = operation.overloadpacket.__name__
    return name if name.startswith("__") else name.rstrip("_")


def _apply(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What an operation makes of bounds; None where there is no rule for it."""
    name = _name(operation)
    if name == "view":  # bounds may lie otherwise in memory than their tensor
        return args[0].reshape(args[1])
    if name in MOVES or name in INDEXED:
        return operation(*args, **kwargs)
    names = (argument.name for argument in operation._schema.arguments)
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    if name in RULES:
        return RULES[name](arguments)
    if name in POINTWISE or torch.Tag.pointwise in operation.tags:
        return _joined([leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)])
    return None


def _fitted(made: Any, outputs: Sequence[Tensor], inputs: Any) -> list[Tensor]:
    """A bound for each output; where a rule has made none, unknown if an input depends on pixels."""
    found = list(made) if isinstance(made, tuple | list) else [made]
    found = [
        bound if isinstance(bound, Tensor) and bound.shape == own.shape else None
        for bound, own in zip_longest(found[: len(outputs)], outputs)
    ]
    depends = False
    if any(bound is None and own.numel() for bound, own in zip(found, outputs, strict=True)):
        bounds = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        depends = not all(map(_is_nothing, bounds))
    rest = torch.tensor(UNKNOWN if depends else NOTHING, device="cpu")
    return [rest.expand(own.shape) if b is None else b for b, own in zip(found, outputs, strict=True)]


def _joined(bounds: Sequence[Tensor]) -> Tensor:
    return reduce(torch.maximum, bounds)


def _reduced(a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of sums and their like; some make two: values and indices, variance and mean."""
    dim = a.get("dim")
    dims = list(range(a["self"].dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    bound = a["self"].amax(dims, a.get("keepdim", False))
    return bound, bound


def _along(bound: Tensor, *dims: int) -> Tensor:
    """Each element depends on all that differ from it only in these dimensions."""
    return bound.amax(dims, keepdim=True).expand(bound.shape)


def _topk(a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    bound = _along(a["self"], a.get("dim", -1)).narrow(a.get("dim", -1), 0, a["k"])
    return bound, bound


def _product(a: dict[str, Any]) -> Tensor:
    """Of matrices and vectors: an element depends on a row of one and a column of the other, and what is added."""
    tensors = [value for value in a.values() if isinstance(value, Tensor)]
    one, other = tensors[-2:]
    if other.dim() == 1:
        product = torch.maximum(one.amax(-1), other.amax())
    else:
        product = torch.maximum(one.amax(-1, keepdim=True), other.amax(-2, keepdim=True))
    return torch.maximum(product, tensors[0]) if len(tensors) == 3 else product


def _of_image_only(a: dict[str, Any]) -> None:
    """Raise LookupError where weights are computed from the image."""
    if not all(_is_nothing(a[key]) for key in ("weight", "bias") if a.get(key) is not None):
        raise LookupError


def _convolution(a: dict[str, Any]) -> Tensor:
    """As a max-pool does, after the largest channel of each group; a transposed one of maps with gaps."""
    _of_image_only(a)
    x, weight, groups, transposed = a["input"], a["weight"], a["groups"], a["transposed"]
    sides, space = weight.shape[2:], weight.dim() - 2
    keys = ("stride", "padding", "dilation", "output_padding")
    stride, padding, dilation, more = (list(a[key]) * (space if len(a[key]) == 1 else 1) for key in keys)
    x = x.unflatten(1, (groups, -1)).amax(2)
    before = after = padding
    if transposed:
        gaps = [(side - 1) * step + 1 for side, step in zip(x.shape[2:], stride, strict=True)]
        wide = x.new_full((*x.shape[:2], *gaps), NOTHING)
        wide[(..., *(slice(None, None, step) for step in stride))] = x
        before = [d * (side - 1) - p for d, side, p in zip(dilation, sides, padding, strict=True)]
        after = [pad + extra for pad, extra in zip(before, more, strict=True)]
        x, stride = wide, [1] * space
    x = F.pad(x, [pad for pair in zip(before[::-1], after[::-1], strict=True) for pad in pair], value=NOTHING)
    x = POOLS[space](x, tuple(sides), tuple(stride), dilation=tuple(dilation))
    outputs = weight.shape[1] if transposed else weight.shape[0] // groups
    return x.repeat_interleave(outputs, 1)


POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _average_pool(a: dict[str, Any]) -> Tensor:
    pool = POOLS[len(a["kernel_size"]) if a["self"].dim() > 3 else a["self"].dim() - 1]
    stride, padding, ceil_mode = a.get("stride") or None, a.get("padding", 0), a.get("ceil_mode", False)
    return pool(a["self"], a["kernel_size"], stride, padding, ceil_mode=ceil_mode)


def _group_norm(a: dict[str, Any]) -> Tensor:
    _of_image_only(a)
    return _along(a["input"].unflatten(1, (a["group"], -1)).flatten(2), 2).reshape(a["input"].shape)


def _layer_norm(a: dict[str, Any]) -> Tensor:
    _of_image_only(a)
    return _along(a["input"], *range(-len(a["normalized_shape"]), 0))


def _batch_norm(a: dict[str, Any]) -> Tensor:
    _of_image_only(a)
    return _along(a["input"], 0, *range(2, a["input"].dim())) if a.get("training") else a["input"]


def _attention(a: dict[str, Any]) -> Tensor:
    """Of each query on all keys and values."""
    if a.get("is_causal") or a.get("attn_mask") is not None:
        raise LookupError
    query, key, value = a["query"], a["key"], a["value"]
    return _joined([query.amax(-1, keepdim=True), key.amax((-2, -1), keepdim=True), value.amax(-2, keepdim=True)])


def _unfolded(a: dict[str, Any]) -> Tensor:
    high, wide = a["padding"]
    x = F.pad(a["self"], (wide, wide, high, high), value=NOTHING)
    return F.unfold(x, a["kernel_size"], a["dilation"], 0, a["stride"])


def _interpolated(operation: Any, a: dict[str, Any]) -> Tensor:
    """Of maps that are made larger or smaller, one side after the other: what has a weight in an element."""
    x, rest = a["self"], {key: value for key, value in a.items() if key != "self"}
    sides = x.shape[2:]
    for dim, side in enumerate(sides, 2):
        shape = [side if other == dim else 1 for other in range(2, x.dim())]
        rows = torch.eye(side, device="cpu").view(1, side, *shape).expand(1, side, *sides)
        weights = operation(rows, **rest)[0].movedim(dim - 1, 1)
        weights = weights.reshape(*weights.shape[:2], -1)[..., 0]
        x = torch.stack([x.movedim(dim, 0)[has].amax(0) for has in (weights != 0).T], dim)
    return x  # type: ignore[no-any-return]


def _distance(a: dict[str, Any]) -> Tensor:
    """Between each row of one matrix and each of another."""
    return torch.maximum(a["x1"].amax(-1)[..., :, None], a["x2"].amax(-1)[..., None, :])


def _triangle(keep: Callable[..., Tensor], a: dict[str, Any]) -> Tensor:
    return a["self"].masked_fill(keep(torch.ones_like(a["self"]), a.get("diagonal", 0)) == 0, NOTHING)  # type: ignore[no-any-return]


def _filled(a: dict[str, Any]) -> Tensor:
    value = a["value"]
    return value.expand(a["self"].shape) if isinstance(value, Tensor) else torch.full_like(a["self"], NOTHING)


# fmt: off
MOVES = frozenset((
    "_unsafe_view", "_reshape_alias", "expand", "permute", "transpose", "t", "squeeze", "unsqueeze", "slice",
    "select", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "alias", "detach",
    "lift_fresh", "clone", "cat", "stack", "flip", "roll", "repeat", "diagonal", "unfold", "pixel_shuffle",
    "pixel_unshuffle", "rot90",
    "channel_shuffle", "native_channel_shuffle", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d",
    "adaptive_max_pool3d",
))
"""Operations that put elements elsewhere, or take the largest: they do with bounds what they do with values."""

INDEXED = frozenset(("index_select", "gather", "index"))
"""Operations that take elements from positions."""

POINTWISE = frozenset((
    "hardswish", "hardsigmoid", "_prelu_kernel", "rrelu_with_noise", "native_dropout", "log_sigmoid_forward",
    "fake_quantize_per_tensor_affine_cachemask",
))
"""Operations on single elements that are not marked as such by PyTorch."""

REDUCTIONS = (
    "sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "argmax", "argmin", "var", "std",
    "var_mean", "std_mean", "norm", "linalg_vector_norm", "logsumexp", "median", "nansum", "aminmax",
)
INTERPOLATIONS = (
    "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa", "upsample_trilinear3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
)
NEW = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "zero")
# fmt: on

RULES: dict[str, Rule] = {
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(NEW, lambda a: torch.full_like(a["self"], NOTHING)),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty"), lambda a: a["self"].new_full(a["size"], NOTHING)),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"), _product),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average_pool),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit"), _batch_norm),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), lambda a: _along(a["self"], a["dim"])),
    **{name: partial(_interpolated, getattr(torch.ops.aten, name)) for name in INTERPOLATIONS},
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), _distance),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp"), lambda a: a["self"].cummax(a["dim"]).values),
    "tril": partial(_triangle, torch.tril),
    "triu": partial(_triangle, torch.triu),
    "glu": lambda a: torch.maximum(*a["self"].chunk(2, a.get("dim", -1))),
    "native_group_norm": _group_norm,
    "convolution": _convolution,
    "_adaptive_avg_pool2d": lambda a: F.adaptive_max_pool2d(a["self"], a["output_size"]),
    "_adaptive_avg_pool3d": lambda a: F.adaptive_max_pool3d(a["self"], a["output_size"]),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "sort": lambda a: (_along(a["self"], a.get("dim", -1)),) * 2,
    "topk": _topk,
    "constant_pad_nd": lambda a: F.pad(a["self"], a["pad"], value=NOTHING),
    "im2col": _unfolded,
    "copy": lambda a: a["src"].expand(a["self"].shape),
    "_to_copy": lambda a: a["self"].clone(),
    "fill": _filled,
}
"""How bounds pass through other operations, by their names in `torch.ops.aten`."""
