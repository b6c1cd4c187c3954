from pathlib import Path

import pytest
from made_folders import write_run
from rich.console import Console

from bantam.training import terminal


def test_a_row_a_job_in_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    narrow = Console(record=True, width=80, quiet=False)
    monkeypatch.setattr(terminal, "console", narrow)
    sweep = Path("multirun/2026-11-28/16-33-10")
    for job in (0, 1, 10):
        write_run(sweep / str(job), name="flyweight", verdict="not met")
    assert terminal.summarize(sweep)
    _, folder, _, *rows = narrow.export_text().splitlines()
    assert folder == str(sweep)
    assert [row.split()[0] for row in rows] == ["0", "1", "10"]
    assert all(row.rstrip().endswith("not met") for row in rows)
