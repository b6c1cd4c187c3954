from pathlib import Path

import pytest
from made_folders import EVIL, story, write_study
from rich.console import Console

from bantam.report import page as report
from bantam.report import terminal


@pytest.fixture
def console() -> Console:
    """A terminal that remembers what it shows."""
    return Console(record=True, width=160, quiet=False)


def test_the_terminal_shows_what_the_page_shows(tmp_path: Path, console: Console) -> None:
    page = report.read([story(tmp_path / "runs")])
    terminal.show(page, console)
    shown = console.export_text()
    written = report.render(page)
    for sentence in ("met by 0 of 3 seeds", "3 against 3 seeds", "conv 3×3 → ReLU", "lowest of the last epochs"):
        assert sentence in shown
        assert sentence in written
    assert EVIL in shown


def test_a_front_is_a_table_of_its_own(tmp_path: Path, console: Console) -> None:
    terminal.show(
        report.read([write_study(tmp_path / "study", (97.0, 99.0, 98.0), multi_objective=True)]), console
    )
    assert "Study study: the front" in console.export_text()
