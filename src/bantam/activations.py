"""The activations that a network keeps while it computes an image: what an inference needs beside its weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class Memory(TorchFunctionMode):
    """Notes what every operation of a network reads and makes, to say what an inference must keep meanwhile.

    An operation needs its inputs and its outputs at the same time, beside everything that a later one still reads,
    as the branch around a residual block. Views and operations in place take no memory, nor do elementwise ones
    and batch norm, which may write over an input that nobody reads later. Weights are not counted, nor is what an
    operation needs for itself.
    """

    def __init__(self, weights: Sequence[Tensor], step: Callable[[], int], returned: Callable[..., None]) -> None:
        """`step` says to which step of the network an operation belongs; `returned` is called after each."""
        super().__init__()
        self._step, self._returned = step, returned
        self._weights = {id(tensor.untyped_storage()) for tensor in weights}
        self._operations: list[tuple[int, bool, dict[int, int], dict[int, int]]] = []
        self._alive: list[Any] = []  # the same storage has the same id as long as it is referred to

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        made = self._sizes(output)
        if made:
            read = self._sizes([args, kwargs])
            self._operations.append((self._step(), _is_elementwise(function), read, made))
        self._returned(function, args, kwargs or {}, output)
        return output

    def _sizes(self, values: Any) -> dict[int, int]:
        """The bytes of the tensors in nested values that are no weights, by the memory in which they lie."""
        storages = [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        self._alive += storages
        return {id(each): each.nbytes() for each in storages if id(each) not in self._weights}

    def kept_by_step(self, image: Tensor, output: Any) -> dict[int, int]:
        """The most bytes that are kept at a time in each step."""
        last_read = dict[int, int]()
        for i, (_, _, read, _) in enumerate(self._operations):
            last_read |= dict.fromkeys(read, i)
        last_read |= dict.fromkeys(self._sizes(output), len(self._operations))
        kept, most = self._sizes(image), dict[int, int]()
        for i, (step, elementwise, read, made) in enumerate(self._operations):
            kept |= read
            done = [each for each in {**read, **made} if last_read.get(each, i) == i]
            for each in made.keys() - kept.keys():
                over = [old for old in done if elementwise and kept.get(old) == made[each]]
                if over:
                    del kept[over[0]]
                kept[each] = made[each]
            most[step] = max(most.get(step, 0), sum(kept.values()))
            for each in done:
                kept.pop(each, None)
        return most


def _is_elementwise(function: Any) -> bool:
    """Whether each element that an operation makes is of one element of its inputs, as PyTorch says of its own."""
    name = getattr(function, "__name__", "").strip("_")
    if name in ("batch_norm", "dropout"):  # with the statistics of an evaluation
        return True
    operation = getattr(torch.ops.aten, name, None)
    overloads = operation.overloads() if operation else ()
    return any(torch.Tag.pointwise in getattr(operation, each).tags for each in overloads)
