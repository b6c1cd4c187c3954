"""Bantam: experiments and searches for small neural networks within a budget.

From Python: `bantam.train(…)`, `bantam.load(folder)`, `bantam.search(…)`, `bantam.Run(folder)`. They are imported,
and PyTorch with them, when they are first asked for.
"""

from importlib import import_module
from typing import Any

_NAMES = {"train": "bantam.python", "load": "bantam.python", "Run": "bantam.training.finished"}

__all__ = ["Run", "load", "search", "train"]


def __getattr__(name: str) -> Any:
    """One of `__all__`; `search` is the package, which can be called."""
    if name == "search":
        return import_module("bantam.search")
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a notebook offers to complete."""
    return [*globals(), *__all__]
