from pathlib import Path

import pytest
from made_folders import EVIL, story, write_run, write_study
from rich.console import Console

from bantam.report import folders, tables, terminal
from bantam.report import page as report


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
    shown = console.export_text()
    assert "Study study\n" in shown
    assert "\nHistory" not in shown  # of a figure only what is found in it is said here
    assert "\nSettings side by side: The front has mostly" in shown
    assert "\nThe front\n" in shown
    assert "\nThe front\nNo trial is as accurate with fewer parameters.\n" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_table_cuts_letters_or_numbers(tmp_path: Path, width: int) -> None:
    narrow = Console(record=True, width=width, quiet=False)
    study = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7))
    found = report.read([study, story(tmp_path / "runs")])
    terminal.show(found, narrow)
    shown = narrow.export_text()
    head, *lines = shown.split("\nRuns\n")[1].splitlines()
    assert "mean of last" in head or width < 60
    assert max(map(len, [head, *lines[:8]])) <= width
    words = set(shown.split())
    assert {"unfinished", "flexible"} <= words or width < 80
    missing = shown.split("Not shown, because the terminal is too narrow: ")[1].split("\n")[0].split(", ")
    table = tables.runs(folders.gather([tmp_path / "runs"]).runs, {})
    assert table is not None
    for i, title in enumerate(table.titles):
        if title not in missing and i:
            assert {word for row in table.rows for word in row[i].text.split()} <= words, title


def test_a_wide_terminal_shows_every_column(tmp_path: Path) -> None:
    wide = Console(record=True, width=300, quiet=False)
    terminal.show(report.read([write_study(tmp_path / "study", (97.0, 99.0))]), wide)
    shown = wide.export_text()
    assert "Not shown" not in shown
    assert "optimizer.lr" in shown.split("\nTrials\n")[1]


@pytest.mark.whole
def test_of_many_trials_the_best_are_shown_and_of_many_runs_all(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = write_study(tmp_path / "study", tuple(90 + i / 10 for i in range(25)), pruned=0, over=0)
    for i in range(45):
        write_run(tmp_path / "runs" / f"{i}", seed=i)
    terminal.show(report.read([study, tmp_path / "runs"]), console)
    shown = console.export_text()
    assert "… and 5 more rows, which the page has" in shown
    assert shown.count("more rows") == 1
    assert "runs/44 " in shown
