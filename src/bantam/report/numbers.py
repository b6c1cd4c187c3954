"""How values are written: the same in every table, sentence and figure."""

import statistics
from collections.abc import Sequence
from typing import Any


def shown(value: Any, digits: int | None = None) -> str:
    """A value as text: numbers with as many digits after the point as asked, or four figures where none are.

    Thousands are set apart. Nothing for None.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and digits is None:
        return f"{value:,}"
    if isinstance(value, int | float):
        digits = 0 if digits is None and abs(value) >= 10_000 else digits
        return f"{value:.4g}" if digits is None else f"{value:,.{digits}f}"
    return str(value)


def mean_of(values: Sequence[float]) -> str:
    """The mean, and of several the standard deviation, as in "99.10 ± 0.20"; nothing where there are none."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}" if values else ""


def signed(points: float | None) -> str:
    """A difference in points, with its sign."""
    return "" if points is None else f"{points:+.2f}".replace("-", "\N{MINUS SIGN}")


def apart(points: float, other: str) -> str:
    """How far a value is from another, as in "0.40 points below test"."""
    where = "from" if abs(points) < 0.005 else "above" if points > 0 else "below"
    return f"{abs(points):.2f} points {where} {other}"


def plural(count: int, noun: str) -> str:
    """A count with its noun, as in "1 trial" and "2 trials"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: list[str], most: int = 3) -> str:
    """Some names and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
