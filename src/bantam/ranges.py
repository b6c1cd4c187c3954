"""Ranges of configuration keys, and the check that a composed configuration keeps to its types and ranges."""

import math
import operator
from collections.abc import Iterator
from dataclasses import field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf


def ranged(
    default: Any = MISSING,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | str | None = None,
) -> Any:
    """A key, required unless it has a default, whose number or numbers lie in a range.

    `most` may be another key, as in "data.side".
    """
    limits = {"above": above, "at least": least, "below": below, "at most": most}
    return field(default=default, metadata={"limits": {k: v for k, v in limits.items() if v is not None}})


def validate(cfg: DictConfig) -> None:
    """Raise ValueError, naming the key, for an added unknown key, a missing value or one out of its range."""
    for node, name in ((cfg, ""), (cfg.budget, "budget."), (cfg.target, "target.")):
        kind = OmegaConf.get_type(node)
        known = [entry.name for entry in fields(kind)] if is_dataclass(kind) else list(node)
        for key in node:
            if key not in known:
                close = get_close_matches(str(key), known, 1)
                hint = f"did you mean {name}{close[0]}?" if close else "see python train.py --help"
                raise ValueError(f"{name}{key!s} is no key of Bantam: {hint}")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        have = "has no value: set it" if len(missing) == 1 else "have no value: set them"
        example = " ".join(f"{key}=…" for key in missing)
        raise ValueError(f"{', '.join(missing)} {have}, for example {example}")
    validate_ranges(cfg.data, "data")  # first, since networks take their channels, side and classes from there
    validate_ranges(cfg)


def validate_ranges(node: DictConfig, at: str = "") -> None:
    """Raise ValueError for a number out of its range below a node that stands at the key `at`."""
    for key, value, known in _numbers(node, at):
        keys = {word: limit for word, limit in known.items() if isinstance(limit, str)}
        limits = known | {word: OmegaConf.select(node, limit) for word, limit in keys.items()}
        limits = {word: limit for word, limit in limits.items() if limit is not None}
        of = {word: f", which is {limit}" for word, limit in keys.items()}
        words = " and ".join(f"{word} {limit:,}{of.get(word, '')}" for word, limit in limits.items())
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}: it must be a finite number{' ' + words if words else ''}")
        if not all(INSIDE[word](value, limit) for word, limit in limits.items()):
            raise ValueError(f"{key} is {value:,}: it must be {words}")


INSIDE = {"above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le}


def _numbers(
    node: Any, key: str = "", limits: dict[str, Any] | None = None
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """All numbers below a node, each with its full key and the limits that the schema sets."""
    if isinstance(node, DictConfig):
        kind = OmegaConf.get_type(node)
        schema = fields(kind) if is_dataclass(kind) else ()
        known = {entry.name: entry.metadata.get("limits") for entry in schema}
        for name, value in node.items():
            yield from _numbers(value, f"{key}.{name!s}".lstrip("."), known.get(str(name)))
    elif isinstance(node, ListConfig):
        for value in node:
            yield from _numbers(value, key, limits)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield key, node, limits or {}
