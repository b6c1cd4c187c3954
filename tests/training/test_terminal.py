from pathlib import Path

import pytest
from made_folders import write_run
from rich.console import Console

from bantam.training import terminal


def test_jobs_that_had_other_images_under_the_same_name_are_not_compared_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "0", data="mine.npz", data_checksum="a" * 64)
    write_run(tmp_path / "1", data="other.npz", data_checksum="b" * 64)
    assert terminal.summarize(tmp_path)
    assert "Warning" not in capsys.readouterr().out
    write_run(tmp_path / "2", data="mine.npz", data_checksum="c" * 64)
    assert terminal.summarize(tmp_path)
    warning = "the jobs had different images of mine.npz, so their accuracies cannot be compared"
    assert warning in capsys.readouterr().out


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
