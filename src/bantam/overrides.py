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


FUNCTION = re.compile(r"[\[{]|\w+\(")
"""How a value begins that is more than text: a list, a dictionary, a range."""

CLOSING = {"(": ")", "[": "]", "{": "}"}


def unclosed(value: str) -> str:
    """What is missing, or too many, among the brackets and quotes of a value; empty where nothing, or for text."""
    if not FUNCTION.match(value) and not value.startswith(("'", '"')):
        return ""
    wanted: list[str] = []
    characters, before = iter(value), "("
    for character in characters:
        begins, before = before in "([{,:", character if character != " " else before
        if character in "'\"" and begins:
            for inner in characters:
                if inner == "\\":
                    next(characters, "")
                elif inner == character:
                    break
            else:
                return f"begins a quote that does not end: add {character}"
        elif character in CLOSING:
            wanted.append(CLOSING[character])
        elif character in CLOSING.values() and not wanted:
            return f"has a {character} that closes nothing: leave it out"
        elif character in CLOSING.values() and (closing := wanted.pop()) != character:
            return f"has a {character} where {closing} is missing: add {closing}"
    return f"is cut off: add {''.join(reversed(wanted))}" if wanted else ""


def with_commas(text: str) -> str:
    """An override, or a value, with commas where there are spaces between values: model=v1, v2 as model=v1,v2."""
    text = re.sub(r"\\?\s+", " ", text.strip(" ,"))  # Hydra writes a space in a text with a backslash
    text = re.sub(r" *([,:=(\[{]) *", r"\1", text)
    return re.sub(r" *([)\]}])", r"\1", text).replace(" ", ",")


def split_by_spaces(word: str, words: Sequence[str]) -> str:
    """The override of which a word is a part, where a shell has split it at spaces, with commas instead.

    Empty where the word is no part of one: of model=v1 v2 both are.
    """
    if word not in words:
        return ""
    first = last = words.index(word)
    while first and _is_part(words[first]):
        first -= 1
    while last + 1 < len(words) and _is_part(words[last + 1]):
        last += 1
    alone = first == last or "=" not in words[first].strip("=") or words[first].startswith("-")
    spaces_around = last + 1 < len(words) and words[last + 1].startswith("=")  # as in epochs = 3
    return "" if alone or spaces_around else with_commas(" ".join(words[first : last + 1]))


def _is_part(word: str) -> bool:
    """Whether a word may be a further value of the override in front of it."""
    return bool(word) and "=" not in word and not word.startswith("-")


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
