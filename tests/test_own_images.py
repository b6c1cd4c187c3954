"""Images of one's own on the command line: dry run, training, resuming, scoring, searching, the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Bantam, Forks
from conftest import trained
from finished import once
from omegaconf import OmegaConf
from small_images import arrays, write_folder, write_npz

QUICK = ("epochs=1", "batch_size=10", "threads=1", "kernels=torch", "report=false")
NAMES = np.array(["red", "green", "blue"])


@pytest.fixture(scope="session")
def trained_npz(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A folder with images in colour, colours.npz, and the run that was trained on them in the folder run."""

    def train(folder: Path) -> None:
        write_npz(folder / "colours.npz", classes=NAMES)
        trained(forks, folder, "data=npz", "data.root=colours.npz", *QUICK, "model.width=4", "hydra.run.dir=run")

    return once(tmp_path_factory, "trained-npz", train)


@pytest.mark.whole
def test_a_dry_run_counts_the_network_for_these_images(bantam: Bantam, tmp_path: Path) -> None:
    write_npz(tmp_path / "letters.npz", **arrays(classes=26, side=32, train=104))
    settings = ("data=npz", "data.root=letters.npz", "model=flexible", "batch_size=10", "dry_run=true")
    refused = bantam("train.py", *settings)
    assert refused.returncode == 1
    assert "model=flexible has 10,148 parameters, 149 over the 9,999" in refused.stderr
    assert "lower model.late3 or model.late2 or model.early2 or raise budget" in refused.stderr
    done = bantam("train.py", *settings, "model.late3=22", "augmentation=affine")
    assert done.returncode == 0, done.stderr
    assert "3×32×32 pixels, 26 classes, mean 0." in " ".join(done.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["letters.npz"]


def test_a_run_has_all_that_it_has_of_digits(trained_npz: Path) -> None:
    result = json.loads((trained_npz / "run" / "result.json").read_text())
    assert (result["data"], result["classes"]) == ("colours.npz", ["red", "green", "blue"])
    assert np.array(result["confusion"]).sum() == 30
    assert len(result["mean"]) == len(result["std"]) == 3
    assert result["layers"][0]["parameters"] == 4 * 3 * 9 + 8
    data = OmegaConf.load(trained_npz / "run" / ".hydra" / "config.yaml").data
    assert (data.channels, data.side, data.classes, data.mean) == (3, 20, 3, None)
    assert Path(data.root).is_absolute()
    assert (trained_npz / "run" / "mistakes.png").exists()


@pytest.mark.whole
def test_it_is_scored_again_and_on_others_with_the_numbers_of_its_training(
    bantam: Bantam, trained_npz: Path, tmp_path: Path
) -> None:
    run = str(trained_npz / "run")
    moved = bantam("evaluate.py", run)
    assert "colours.npz does not exist: give the .npz file with the images" in moved.stderr
    again = bantam("evaluate.py", run, f"data.root={trained_npz / 'colours.npz'}")
    assert "30 test images of colours.npz, exactly as recorded" in again.stdout, again.stderr
    brighter = {name: array for name, array in arrays().items() if name.endswith("labels")}
    for name in ("train_images", "test_images"):  # other training images: their mean must not count
        brighter[name] = arrays()[name] if name == "test_images" else arrays()[name] // 4
    for changes in ({}, {"classes": NAMES}):
        write_npz(tmp_path / "other.npz", **brighter, **changes)
        other = bantam("evaluate.py", run, "data=npz", "data.root=other.npz")
        recorded = again.stdout.split(" %")[0]
        assert other.stdout.startswith(f"{recorded} % of 30 test images of other.npz."), (
            other.stdout + other.stderr
        )
        assert "the two are not comparable" in other.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            arrays(side=24),
            "other.npz has images of 3×24×24 in 3 classes, but the run was trained on 3×20×20 in 3 cla",
        ),
        (arrays(channels=1), "other.npz has images of 1×20×20 in 3 classes, but the run was trained on 3×20×20"),
        (
            arrays(classes=5),
            "other.npz has images of 3×20×20 in 5 classes, but the run was trained on 3×20×20 in 3",
        ),
        (
            {"classes": NAMES[::-1]},
            "other.npz numbers its classes blue, green, red …, but the run was trained on red",
        ),
    ],
)
def test_images_of_another_shape_are_refused(
    bantam: Bantam, trained_npz: Path, tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    write_npz(tmp_path / "other.npz", **changes)
    done = bantam("evaluate.py", str(trained_npz / "run"), "data=npz", "data.root=other.npz")
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.whole
def test_a_folder_and_a_multirun_of_several_data(bantam: Bantam, tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef net(channels: int, side: int, classes: int):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, classes))\n"
    )
    done = bantam(
        *("train.py", "-m", "model=mine.py:net,flexible", "data=folder", "data.root=pets", "data.channels=1,3"),
        *(*QUICK, "pictures=false", "hydra.sweep.dir=jobs"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 of 40 pictures are resized to 28×28 pixels" in done.stdout
    results = [json.loads((tmp_path / "jobs" / str(i) / "result.json").read_text()) for i in range(4)]
    assert [result["parameters"] for result in results[:2]] == [28 * 28 * 2 + 2, 3 * 28 * 28 * 2 + 2]
    assert {tuple(result["classes"]) for result in results} == {("cat", "dog")}
    report = bantam("report.py", "jobs", "--output", "report.html")
    assert report.returncode == 0, report.stdout + report.stderr


def test_a_single_class_is_refused_where_it_is_the_images_that_have_it(bantam: Bantam, tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", ("cat",))
    write_npz(tmp_path / "my.npz", **arrays(classes=1))
    for settings in (("data=folder", "data.root=pets"), ("data=npz", "data.root=my.npz")):
        done = bantam("train.py", *settings, "dry_run=true")
        root = settings[1].partition("=")[2]
        assert f"{root} has a single class, and a network tells several apart: add images" in done.stderr


@pytest.mark.whole
def test_a_search_on_images_of_ones_own(bantam: Bantam, tmp_path: Path) -> None:
    write_npz(tmp_path / "my.npz")
    search = (
        *("train.py", "-m", "hparams_search=optuna", "data=npz", "data.root=my.npz", *QUICK, "pictures=false"),
        *("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "model.width=4"),
    )
    done = bantam(*search)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data.validation is 15 here, not 5,000: my.npz has only 60 images to train on" in done.stdout
    again = bantam(*search)
    assert "2 complete" in again.stdout, again.stdout + again.stderr
    study = tmp_path / "multirun" / "optuna"
    best = json.loads((study / "summary.json").read_text())["best"]
    line = ("--config-dir", str(study), "experiment=best", "hydra.run.dir=again", "report=false")
    assert bantam("train.py", *line).returncode == 0
    assert json.loads((tmp_path / "again" / "result.json").read_text())["objective"] == best["objective"]
    write_npz(tmp_path / "my.npz", **arrays(seed=5))
    other = bantam(*search)
    assert other.returncode == 1
    assert "what data became is my.npz with the checksum" in other.stderr
