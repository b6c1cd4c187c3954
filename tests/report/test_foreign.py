"""Reports of folders that somebody else has sent: nothing in them is believed, built or followed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Bantam
from made_folders import write_run, write_study

from bantam.report import folders, page
from bantam.report.runs import read_run

SECRET = "the password of this machine"


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.mkdir", "path": "{}"},
        {"_target_": "builtins.open", "file": "{}", "mode": "w"},
        {"_target_": "subprocess.check_output", "args": "touch {}", "shell": True},
        {"_target_": "bantam.models.torch.save", "obj": 1, "f": "{}"},
        {"_target_": "bantam.data.os.mkdir", "path": "{}"},
        {"_target_": "bantam.data.downloads.download", "dataset": "MNIST", "root": "{}"},
        {
            **{"_target_": "bantam.data.torchvision_dataset", "dataset": "MNIST", "root": "{}", "validation": 0},
            **{"split_seed": 1, "mean": 0.1, "std": 1.0},
        },
        {
            "_target_": "bantam.models.V2",
            "width": {"_target_": "bantam.data.downloads.download", "dataset": "MNIST", "root": "{}"},
        },
        {"_target_": "bantam.kernels.compiler.compiler"},
        {"_target_": "bantam.models.V2", "width": {"_target_": "os.mkdir", "path": "{}"}},
    ],
)
def test_nothing_but_a_network_is_built(tmp_path: Path, model: dict[str, Any]) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return value.format(tmp_path / "made") if isinstance(value, str) else value

    folder = write_run(tmp_path / "runs" / "0", layers=None, settings={"model": filled(model)})
    assert read_run(folder).layers == []
    page.write([tmp_path / "runs"])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("key", ["model", "optimizer", "scheduler", "augmentation", "data"])
@pytest.mark.parametrize("target", ["os.mkdir", "bantam.data.torchvision_dataset"])
def test_evaluate_builds_only_what_belongs_to_a_group(
    bantam: Bantam, finished_run: Path, tmp_path: Path, key: str, target: str
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    file = run / ".hydra" / "config.yaml"
    lines, inside = [], False
    for line in file.read_text().splitlines():
        inside = line == f"{key}:" or (inside and line.startswith(" "))
        if not inside:
            lines.append(line)
    argument = {"os.mkdir": "path: made", "bantam.data.torchvision_dataset": "dataset: MNIST\n  root: made"}[
        target
    ]
    file.write_text("\n".join([*lines, f"{key}:", f"  _target_: {target}", f"  {argument}"]))
    done = bantam("evaluate.py", "run")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {key}=")
    assert "run/.hydra/config.yaml is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name",
    ["result.json", "history.csv", ".hydra", ".hydra/config.yaml", ".hydra/overrides.yaml", "mistakes.png", "."],
)
def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    other = write_run(tmp_path / "outside" / "0", overrides=(f"x={SECRET}",), reason=SECRET, name=SECRET)
    (other / "mistakes.png").write_bytes(SECRET.encode())
    write_run(tmp_path / "runs" / "0")
    run = tmp_path / "runs" / "1"
    if name != ".":
        write_run(run)
        target = run / name
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        target.symlink_to(other / name)
    else:
        run.symlink_to(other)
    found = folders.gather([tmp_path / "runs"])
    assert [r.folder.name for r in found.runs] == ["0"]
    ((path, why),) = found.broken
    assert path == run
    assert f"{name} is a link out of {tmp_path / 'runs'}: it is not followed" in why
    written = page.write([tmp_path / "runs"]).read_text()
    assert SECRET not in written
    assert folders.gather([run]).runs == [] if name != "." else len(folders.gather([run]).runs) == 1


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0")
    (tmp_path / "runs" / "best").symlink_to("0")
    assert len(folders.gather([tmp_path / "runs"]).runs) == 1
    (tmp_path / "here").symlink_to(tmp_path / "runs")
    assert len(folders.gather([tmp_path / "here"]).runs) == 1


def test_a_study_shows_no_trial_that_lies_outside_of_it(tmp_path: Path) -> None:
    write_run(tmp_path / "secret")
    study = write_study(tmp_path / "study", (97.0, 99.0))
    text = (study / "trials.csv").read_text()
    lines = text.splitlines()
    lines[1] = f"{lines[1].rpartition(',')[0]},{tmp_path / 'secret'}"
    lines[2] = f"{lines[2].rpartition(',')[0]},../secret"
    (study / "trials.csv").write_text("\n".join(lines) + "\n")
    shutil.rmtree(study / "1")
    (study / "1").symlink_to(tmp_path / "secret")
    read = folders.read_study(study)
    assert [trial.epochs for trial in read.trials[:2]] == [[], []]
    assert read.best == []
