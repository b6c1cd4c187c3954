"""Overrides as Hydra reads them, and command lines as a shell does."""

import re
import shlex
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

PLAIN = re.compile(r"[\w./:@%+-]+", re.ASCII)
"""Text that Hydra's grammar takes as it is, in any place."""


def override(key: str, value: Any) -> str:
    """`key=value` that Hydra reads back as this very value: text with spaces, commas, … is quoted."""
    return f"{key}={written(value)}"


def written(value: Any) -> str:
    """What stands after `key=` for a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(written(item) for item in value) + "]"
    text = str(value)
    if PLAIN.fullmatch(text) and not _means_else(text):
        return text
    return QuotedString(text, Quote.single).with_quotes()


def _means_else(text: str) -> bool:
    """Whether Hydra would read a number, a truth value or null where a text is meant."""
    if text.lower() in ("null", "true", "false", "nan", "inf", "-inf", "+inf"):
        return True
    try:
        float(text.replace("_", ""))
    except ValueError:
        return False
    return True


def command_line(words: Iterable[object]) -> str:
    """A command, or a part of one, as it is pasted into a shell."""
    return shlex.join(str(word) for word in words)


def resuming(folder: object) -> str:
    """The command that continues a run."""
    return command_line(["python", "train.py", override("resume", folder)])
