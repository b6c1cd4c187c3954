"""Overrides as Hydra reads them, and command lines as a shell does."""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

PLAIN = re.compile(r"[\w./:@%+-]+", re.ASCII)
"""Text that Hydra's grammar takes as it is, in any place."""


from_python: ContextVar[Sequence[str] | None] = ContextVar("from_python", default=None)
"""The overrides that code has given, in a notebook for example; None where they are of a command line."""


def typed() -> Sequence[str]:
    """The overrides that were typed, as a command line or in code."""
    given = from_python.get()
    return sys.argv[1:] if given is None else given


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


def without_dashes(message: str) -> str:
    """What to say of a key that was typed with dashes, as options are; empty for what argparse says else."""
    found = re.match(r"unrecognized arguments: (-+([\w.@/]+)(=\S*)?)", message)
    if found is None:
        return ""
    typed, key, value = found.groups()
    key = f"{key}{value or '=…'}"
    return f"{typed} is no option: a key is typed without dashes, {key}; python train.py --help lists them all"


def command_line(words: Iterable[object]) -> str:
    """A command, or a part of one, as it is pasted into a shell; a path is no option, however its name begins."""
    return shlex.join(
        f"./{word}" if isinstance(word, Path) and str(word)[:1] == "-" else str(word) for word in words
    )


def resuming(folder: object) -> str:
    """What continues a run: a command or, where code has begun it, a call."""
    if from_python.get() is not None:
        return f"bantam.train({override('resume', folder)!r})"
    return command_line(["python", "train.py", override("resume", folder)])
