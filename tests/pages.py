"""The commands in README.md, RESULTS.md and `docs/`, as tests read them."""

import re
from pathlib import Path

from commands import PROJECT

DOCS = sorted((PROJECT / "docs").glob("*.md"))
ALL = [*(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "RESULTS.md")), *DOCS]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language, "" for commands, and text."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def lines(block: str) -> list[str]:
    """The commands of a block, those over several lines joined."""
    return [line.strip() for line in re.sub(r"\\\n *", "", block).splitlines() if line.strip()]


def commands(page: Path, *languages: str) -> list[str]:
    """The commands of a page: those in blocks without a language, or with one of these."""
    return [line for language, block in blocks(page) if language in ("", *languages) for line in lines(block)]
