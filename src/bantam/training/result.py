"""What may stand in `result.json`: the kind and the range of every key."""

from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from typing import Any

from bantam.budget import COSTS, Layer

Check = Callable[[Any], bool]


def _number(least: float = 0.0, most: float = 1e300) -> Check:
    return lambda value: isinstance(value, int | float) and type(value) is not bool and least <= value <= most


def _count(least: int = 0, most: int = 10**15) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _kind(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds)


def _one_of(words: Collection[str]) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _each(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _layer(row: Any) -> bool:
    kinds: dict[str, Check] = {field.name: _count() for field in fields(Layer)}
    kinds |= {"name": _kind(str), "shape": _each(_count()), "receptive_field": _field}
    required = {field.name for field in fields(Layer) if field.default is MISSING}  # the others are newer
    return (
        isinstance(row, dict)
        and required <= row.keys() <= kinds.keys()
        and all(kinds[key](value) or (value is None and key not in required) for key, value in row.items())
    )


def _field(value: Any) -> bool:
    return value is None or _count()(value) or (_each(_count())(value) and len(value) == 2)


def _square(rows: Any) -> bool:
    return _each(_each(_count()))(rows) and all(len(row) == len(rows) for row in rows)


PERCENT, TEXT, MAPPING = _number(0, 100), _kind(str), _kind(dict)

KEYS: dict[str, Check] = {
    **dict.fromkeys(("verdict", "reason", "experiment", "model", "data", "data_checksum", "device"), TEXT),
    **dict.fromkeys(("processor", "started", "commit"), TEXT),
    **dict.fromkeys(("target", "budget", "versions"), MAPPING),
    **dict.fromkeys(("objective", "best_accuracy"), PERCENT),
    **dict.fromkeys(("best_epoch", "seed", "epochs", *COSTS), _count()),
    **dict.fromkeys(("train_images", "scored_images"), _count()),
    **dict.fromkeys(("training_seconds", "total_seconds", "images_per_second"), _number()),
    **dict.fromkeys(("at_chance", "compile"), _kind(bool)),
    "last_accuracies": _each(PERCENT),
    "layers": _each(_layer),
    "split": _one_of(("test", "validation")),
    "threads": _count(1, 2**16),
    "precision": _one_of(("float32", "bfloat16")),
    "kernels": _one_of(("native", "torch")),
    **dict.fromkeys(("mean", "std"), _each(_number(-1e300))),
    "confusion": _square,
    "classes": _each(TEXT),
}
"""What each key must be where it is there and not null. Others, of another version, are not looked at."""

FINISHED = ("objective", "threads", "scored_images", "split", "data", "data_checksum", "precision", "kernels")
"""What the result of a finished run has."""


def damage(result: dict[str, Any]) -> dict[str, str]:
    """The keys of a result that have values which cannot be, each with a phrase that says so."""
    found = {
        key: f"{key} {'are' if key == 'last_accuracies' else 'is'} {_shortened(result[key])}"
        for key, fits in KEYS.items()
        if result.get(key) is not None and not fits(result[key])
    }
    if result.get("verdict") is None:
        found["verdict"] = "it has no verdict"
    return found


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}…"
