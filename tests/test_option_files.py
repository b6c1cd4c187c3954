import shutil
from pathlib import Path

import pytest
from commands import Bantam

from bantam import option_files

EXPERIMENT = "# @package _global_\n# Trial 3: 98.1 % of the validation images.\nmodel:\n  width: 4\nepochs: 1\n"


def test_a_file_is_cut_wherever_it_ends_too_early() -> None:
    whole = option_files.marked(EXPERIMENT)
    assert not option_files.is_cut(whole)
    assert not option_files.is_cut(whole.replace("width: 4", "width: 5").replace("\n", "\r\n"))
    assert all(option_files.is_cut(whole[:end]) for end in range(1, len(whole) - 1))
    for other in (EXPERIMENT, "", "# @package _global_\n", "model:\n"):
        assert not option_files.is_cut(other)


@pytest.mark.whole
@pytest.mark.parametrize(
    "line",
    [
        ("dry_run=true",),
        ("-m", "seed=1,2", "dry_run=true"),
        ("-m", "hydra/sweeper=bantam", "optimizer.lr=interval(0.01,0.1)"),
    ],
)
def test_no_experiment_is_composed_that_is_cut_between_two_lines(
    bantam: Bantam, finished_study: Path, tmp_path: Path, line: tuple[str, ...]
) -> None:
    """What it lacks would be trained with defaults."""
    study = shutil.copytree(finished_study, tmp_path / "study")
    best = study / "experiment" / "best.yaml"
    command = ("train.py", *line, "--config-dir", "study", "experiment=best")
    if "dry_run=true" in line:
        assert bantam(*command).returncode == 0
    text = best.read_text()
    for end in (text.index("\ntarget:") + 1, len("# @last_line whole\n# @package _global_\n")):
        best.write_text(text[:end])
        done = bantam(*command)
        assert done.returncode == 1
        said = "study/experiment/best.yaml cannot be used (it is cut off: its last line is missing): correct it,"
        assert done.stderr == f"Error: {said} or restore it\n"
    assert not {"outputs", "multirun"} & {path.name for path in tmp_path.iterdir()}
