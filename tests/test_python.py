"""Bantam from code: the same runs as from the command line, in a process that goes on afterwards."""

import asyncio
import logging
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pages
import pytest
import torch
from commands import PROJECT, Bantam
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from PIL import Image

import bantam as package
from bantam import data, launch, overrides, python, resolve
from bantam.images import downloads
from bantam.kernels import compiler
from bantam.training import predict, terminal
from bantam.training.folder import write_result

Few = tuple[str, ...]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def state() -> tuple[Any, ...]:
    """What a training changes in a process and leaves as it was."""
    return (
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        GlobalHydra.instance().is_initialized(),
        list(logging.getLogger().handlers),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        overrides.from_python.get(),
        (downloads.keep_downloads, compiler.keep_compiled),
    )


def test_importing_is_quick_and_offers_what_there_is() -> None:
    code = (
        "import sys, bantam; print([n for n in ('torch', 'hydra', 'optuna', 'pandas') if n in sys.modules]); "
        "print(*[n for n in dir(bantam) if n in bantam.__all__])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "Run load search train"]
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = package.trian


@pytest.mark.whole
def test_a_run_is_that_of_the_command_line(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    typed = bantam("train.py", *few, "hydra.run.dir=typed")
    assert typed.returncode == 0, typed.stderr
    before = state()
    run = package.train(*few, "hydra.run.dir=called")
    assert state() == before
    assert run.folder == tmp_path / "called"
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (Path("typed"), Path("called"))]
    assert names[0] == names[1]
    for name in ("weights.safetensors", ".hydra/config.yaml"):
        assert Path("typed", name).read_bytes() == Path("called", name).read_bytes()
    own = [OmegaConf.load(Path(f, ".hydra/hydra.yaml")).hydra for f in ("typed", "called")]
    assert own[0].runtime.choices == own[1].runtime.choices
    assert own[0].runtime.cwd == own[1].runtime.cwd
    assert own[1].runtime.output_dir == str(run.folder)
    assert own[0].job.name == own[1].job.name
    again = bantam("evaluate.py", "called")
    assert "exactly as recorded" in again.stdout, again.stderr


@pytest.mark.whole
def test_a_run_has_history_verdict_and_network(few: Few, capsys: pytest.CaptureFixture[str]) -> None:
    run = package.train(*few, "epochs=2", "ema=0.9", "seed=3")
    assert "epoch  2/2" in capsys.readouterr().out
    assert list(run.history.epoch) == [1, 2]
    assert run.accuracy == run.history.test_accuracy.iloc[-1]
    assert run.objective == pytest.approx(run.history.test_accuracy.mean())
    assert (run.verdict, run.result["seed"], run.config.seed) == ("not judged", 3, 3)
    assert "2 epochs were trained" in run.reason
    assert re.fullmatch(r"Run\('.*': v2, seed 3: not judged, [\d.]+ % in the last epochs\)", repr(run))
    assert "<table" in run._repr_html_()
    assert repr(package.Run(run)) == repr(run)
    network = package.load(run)
    assert not any(module.training for module in network.modules())
    images = data.torchvision_dataset("FashionMNIST", run.config.data.root, 0, 1, 0.1307, 0.3081)
    found = network.predict(images.held_out_images.squeeze(1))
    right = (found.classes == images.held_out_labels).float().mean().item()
    assert 100 * right == pytest.approx(run.accuracy)
    assert network.classes == images.classes


@pytest.mark.whole
def test_drawing_leaves_matplotlib_as_it_is(few: Few) -> None:
    import matplotlib

    before = matplotlib.rcParams._get_backend_or_none()  # type: ignore[attr-defined]
    words = [word for word in few if not word.startswith("pictures=")]
    run = package.train(*words)
    assert (run.folder / "mistakes.png").exists()
    assert matplotlib.rcParams._get_backend_or_none() == before  # type: ignore[attr-defined]


def test_a_second_configuration_follows_in_the_same_process(few: Few) -> None:
    first = package.train(*few)
    second = package.train(*few, "model=v1", "optimizer.lr=0.01")
    third = package.train(*few)
    assert len({run.folder for run in (first, second, third)}) == 3
    assert (second.result["model"], second.config.optimizer.lr) == ("v1", 0.01)
    weights = [(run.folder / "weights.safetensors").read_bytes() for run in (first, second, third)]
    assert weights[0] == weights[2] != weights[1]


def test_it_trains_in_a_thread_in_which_an_event_loop_runs(few: Few) -> None:
    runs: list[package.Run] = []

    async def train() -> None:
        runs.append(package.train(*few))

    thread = threading.Thread(target=lambda: asyncio.run(train()))
    thread.start()
    thread.join()
    assert runs[0].verdict == "not judged"


class InEpoch:
    """Raises in the place of the line of an epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        monkeypatch.setattr(terminal, "show_epoch", self)
        self.error = error

    def __call__(self, *others: object) -> None:
        raise self.error


@pytest.mark.whole
def test_a_run_that_was_stopped_is_resumed_to_the_same_bits(
    few: Few, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state()
    with monkeypatch.context() as patch:
        InEpoch(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            package.train(*few, "epochs=2", "hydra.run.dir=stopped")
    assert state() == before
    assert "Continue with:\nbantam.train('resume=stopped')" in capsys.readouterr().out
    assert repr(package.Run("stopped")).endswith("not finished)")
    assert len(package.Run("stopped").history) == 1
    with pytest.raises(ValueError, match="seed is 4 here, but the run in stopped has 1"):
        package.train("resume=stopped", "seed=4")
    resumed = package.train("resume=stopped")
    whole = package.train(*few, "epochs=2", "hydra.run.dir=whole")
    weights = [(run.folder / "weights.safetensors").read_bytes() for run in (resumed, whole)]
    assert weights[0] == weights[1]
    with pytest.raises(ValueError, match=r"stopped is finished \(not judged\)"):
        package.train("resume=stopped")
    with pytest.raises(ValueError, match=r"continue it with bantam.train\('resume=.*whole'\), or choose"):
        package.train(*few, "hydra.run.dir=whole")


def test_a_fault_of_ours_keeps_its_traceback(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()
    InEpoch(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours") as raised:
        package.train(*few)
    assert raised.traceback[-1].name == "__call__"
    assert state() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("optimizer.lrr=1",),
            r"optimizer.lrr is no key: did you mean optimizer.lr=1\? ",
        ),
        (("optimizer.lr=nan",), "optimizer.lr is nan: it must be a finite number above 0"),
        (("optimizer.lr=high",), "Value 'high' of type 'str' could not be converted to Float"),
        (
            ("experiment=champoin",),
            r"experiment=champoin does not exist: did you mean experiment=champion\? .* v2_as_recorded$",
        ),
        (("model.width=17",), "model=v2 has 10,897 parameters, 898 over the 9,999"),
        (("epochs=16",), "epochs is 16, 1 over budget.epochs=15"),
        (("model.width=4,5",), "model.width=4,5 stands for several runs: call bantam.train once for each"),
        (("hparams_search=optuna",), r"hparams_search=optuna searches only with bantam.search\(…\)"),
        (("model=mine.py:Net",), "mine.py is no file of Python: it does not exist"),
        (("-m",), "'-m' is no override: give each by itself, as key=value"),
        (("model=v2 epochs=1",), "'model=v2 epochs=1' is no override: give each by itself, as key=value"),
        (("data.root=~/my.npz",), """only in quotes: write 'data.root="~/my.npz"'$"""),
        ((16,), "16 is no text: give overrides as in"),
        (("resume=nowhere",), "nowhere is no run folder: it does not exist"),
        (("data=mnist", "data.root=nowhere/MNIST"), "."),
    ],
)
def test_a_mistake_is_one_sentence(
    words: tuple[Any, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "download", lambda dataset, root: "no server")
    monkeypatch.setattr(resolve, "forget", lambda: None)
    with pytest.raises(ValueError, match=message) as raised:
        package.train(*words)
    assert "\n" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert len(raised.traceback) == 2
    assert not list(tmp_path.iterdir())


def test_options_and_networks_of_ones_own(few: Few, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nbatch_size: 50\n")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, hidden: int = 8):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))\n"
    )
    words = [word for word in few if not word.startswith("model.")]
    run = package.train(*words, "experiment=mine", "model=mine.py:Net", "model.hidden=6", config_dir="own")
    assert (run.config.batch_size, run.config.model.hidden) == (50, 6)
    (tmp_path / "mine.py").unlink()
    assert package.load(run.folder).predict(np.zeros((28, 28), np.uint8)).probabilities.shape == (1, 10)
    with pytest.raises(ValueError, match="config_dir=.*nowhere is no folder"):
        package.train(*few, config_dir="nowhere")


def test_a_dry_run_trains_nothing(few: Few, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state()
    assert package.train(*few, "dry_run=true") is None
    assert "none: dry_run" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert state() == before


def test_only_one_trains_in_a_process(few: Few) -> None:
    with python._training, pytest.raises(ValueError, match="this process is training already"):
        package.train(*few)


def test_what_was_installed_without_its_options_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolve, "__file__", str(tmp_path / "site-packages" / "bantam" / "resolve.py"))
    with pytest.raises(ValueError, match="conf/, are not in .*: install Bantam from its folder"):
        package.train()


def test_the_page_about_python_works(
    finished_run: Path, finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines run as they are, but for what takes long: that is composed, and something finished is returned."""
    from bantam.search import sweeper
    from bantam.search.python import Study
    from bantam.training.finished import Run

    monkeypatch.chdir(shutil.copytree(finished_study.parents[1], tmp_path / "searched"))
    shutil.copytree(finished_run, "outputs/2026-11-24/23-07-57")
    database = optuna.storages.RDBStorage("sqlite:///multirun/optuna/study.db")
    sweeper.register()

    def train(*words: str) -> Run:
        launch.compose(words, None, RunMode.RUN)
        return Run(finished_run)

    def search(*words: str, **settings: Any) -> Study:
        launch.compose([*words, *(f"hydra.sweeper.{k}={v}" for k, v in settings.items())], None, RunMode.MULTIRUN)
        return Study("optuna", database, Path("multirun/optuna").absolute())

    monkeypatch.setattr(package, "train", train)
    monkeypatch.setattr(package, "search", search)
    names: dict[str, Any] = {"images": np.zeros((3, 28, 28), np.uint8)}
    lines = [block for language, block in pages.blocks(PROJECT / "docs" / "python.md") if language == "python"]
    exec("\n".join(lines), names)
    assert names["study"].best_value == names["study"].best.objective
    assert len(names["found"].classes) == 3
    database.engine.dispose()


def test_an_older_run_is_loaded() -> None:
    champion = PROJECT / "docs" / "results" / "champion" / "0"
    network = package.load(champion)
    images = data.mnist5k(0, 0, 0.1307, 0.3081)
    found = network.predict(images.held_out_images.squeeze(1).numpy())
    assert network.classes == tuple("0123456789")
    assert (found.classes == images.held_out_labels.numpy()).mean() > 0.99


@pytest.fixture
def network() -> predict.Network:
    """Takes a picture for the class that is its brightest channel, or its brightness."""
    return predict.Network(torch.nn.Flatten(), (1, 2, 2), "abcd", 0.5, 0.25)


def test_bytes_are_normalised_as_in_training(network: predict.Network) -> None:
    images = np.array([[[255, 0], [0, 0]], [[0, 0], [0, 128]]], np.uint8)
    found = network.predict(images)
    assert [network.classes[i] for i in found.classes] == ["a", "d"]
    logits = (torch.tensor(images / 255).float().flatten(1) - 0.5) / 0.25
    np.testing.assert_allclose(found.probabilities, logits.softmax(1).numpy(), rtol=1e-6)
    assert torch.equal(network.predict(torch.tensor(images)).classes, torch.tensor([0, 3]))
    assert network.predict(images[0]).classes.tolist() == [0]
    assert network.predict(list(images)).classes.tolist() == [0, 3]
    images.flags.writeable = False
    assert network.predict(images).classes.tolist() == [0, 3]


def test_images_in_colour_have_their_channels_last() -> None:
    means = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network = predict.Network(means, (3, 2, 4), ("red", "green", "blue"), [0.1, 0.2, 0.3], [1.0, 1.0, 1.0])
    images = np.zeros((2, 2, 4, 3), np.uint8)
    images[0, ..., 2], images[1, ..., 0] = 200, 200
    assert network.predict(images).classes.tolist() == [2, 0]
    assert network.predict(images[1]).classes.tolist() == [0]
    with pytest.raises(ValueError, match="images are 2×3×2×4: this network takes N×2×4×3, or one image of 2×4×3"):
        network.predict(images.transpose(0, 3, 1, 2))


def test_a_network_that_is_trained_further_predicts_in_evaluation_mode() -> None:
    network = predict.Network(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9)), (1, 2, 2), "abcd", 0, 1
    )
    images = np.full((2, 2), 255, np.uint8)
    network.train()
    assert network.predict(images).probabilities.tolist() == [[0.25] * 4]
    assert network.training


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 2)), "images are float64: predict takes uint8, from 0 to 255, and normalises them itself"),
        (torch.zeros(1, 2, 2), "images are float32: predict takes uint8"),
        (np.zeros((3, 3), np.uint8), "images are 3×3: this network takes N×2×2, or one image of 2×2"),
        (np.zeros((1, 1, 2, 2), np.uint8), "images are 1×1×2×2: this network takes N×2×2"),
        (np.zeros((0, 2, 2), np.uint8), "images are 0×2×2: there is none among them"),
        ("seven.png", "images are no array of numbers"),
        ([[1, 2], [3]], "images are no array of numbers"),
    ],
)
def test_other_images_are_refused(network: predict.Network, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        network.predict(images)


@pytest.mark.parametrize("name", ["result.json", "weights.safetensors", ".hydra/config.yaml"])
def test_a_folder_that_lacks_something_is_one_sentence(finished_run: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=r"run") as raised:
        package.load(folder)
    assert "\n" not in str(raised.value)
    assert len(raised.traceback) == 2


def test_a_run_without_weights_says_how_it_ended(finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    write_result(folder, {"verdict": "diverged", "reason": "the loss became nan", "model": "v2", "seed": 1})
    run = package.Run(folder)
    assert (run.verdict, run.objective, run.accuracy) == ("diverged", None, None)
    assert repr(run).endswith("v2, seed 1: diverged)")
    with pytest.raises(ValueError, match="was diverged: it has no weights"):
        run.load()


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., str]:
    """Write a picture of 28×28 bytes into a file, in some mode."""
    image = data.mnist5k(0, 0, 0.1307, 0.3081).train_images[5, 0].numpy()

    def write(name: str, change: Callable[[Any], Any] = lambda image: image, size: int = 28) -> str:
        made = Image.fromarray(change(image))
        made.resize((size, size)).save(tmp_path / name)
        return name

    return write


def transparent(image: Any) -> Any:
    """Black ink on nothing."""
    return np.dstack([np.zeros((28, 28, 3), np.uint8), image])


def test_pictures_in_files_are_predicted(bantam: Bantam, picture: Callable[..., str]) -> None:
    champion = str(PROJECT / "docs" / "results" / "champion" / "0")
    plain = picture("plain.png")
    deep = picture("deep.png", lambda image: image.astype(np.uint16) * 257)
    big = picture("a big one.jpg", size=140)
    done = bantam("predict.py", champion, plain, deep, big)
    assert done.returncode == 0, done.stderr
    *notes, first, second, third = done.stdout.splitlines()
    assert notes == ["Note: a big one.jpg: resized from 140×140 to 28×28 pixels"]
    for line, name in ((first, plain), (second, deep), (third, big)):
        assert re.fullmatch(rf"{name} +0 +\d+\.\d %   then \d +\d+\.\d %", line)


def test_a_white_ground_is_noted_and_inverted_where_that_is_asked_for(
    bantam: Bantam, picture: Callable[..., str]
) -> None:
    champion = str(PROJECT / "docs" / "results" / "champion" / "0")
    paper, ink = picture("paper.png", lambda image: 255 - image), picture("ink.png", transparent)
    noted = bantam("predict.py", champion, paper, ink).stdout
    for name in (paper, ink):
        assert re.search(rf"Note: {name} is bright \(mean 0.\d+\), and .* dark \(0.13\): .* add --invert", noted)
    inverted = bantam("predict.py", champion, "--invert", paper, ink).stdout
    assert "is bright" not in inverted
    assert [line.split()[1] for line in inverted.splitlines()[-2:]] == ["0", "0"]
    dark = bantam("predict.py", champion, "--invert", picture("plain.png")).stdout
    assert "leave --invert out" in dark


def test_what_is_taken_of_a_file_with_several_pictures_is_said(
    bantam: Bantam, picture: Callable[..., str], tmp_path: Path
) -> None:
    champion = str(PROJECT / "docs" / "results" / "champion" / "0")
    with Image.open(tmp_path / picture("plain.png")) as first:
        first.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", first.size, 255)])
    done = bantam("predict.py", champion, "a.gif")
    assert "Note: a.gif: the first of 2 pictures in it is taken" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].split()[1] == "0"


def test_what_is_no_picture_is_one_sentence(bantam: Bantam, picture: Callable[..., str], tmp_path: Path) -> None:
    champion = str(PROJECT / "docs" / "results" / "champion" / "0")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / picture("plain.png")).read_bytes()[:100])
    for arguments, message in (
        (
            [champion, "plain.png", "text.png"],
            "Error: text.png cannot be read as a picture (its content is no picture that is known): give",
        ),
        ([champion, "cut.png"], "Error: cut.png cannot be read as a picture ("),
        (
            [champion, "nothing.png"],
            "Error: nothing.png cannot be read as a picture (No such file or directory): give",
        ),
        ([champion, "."], "Error: . cannot be read as a picture (Is a directory): give the file of a picture"),
        (["nowhere", "plain.png"], "Error: nowhere is no run folder: it does not exist"),
    ):
        done = bantam("predict.py", *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith(message)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


def test_help_comes_before_what_takes_time(bantam: Bantam) -> None:
    done = bantam.interpreter("predict.py", "--help", options=("-X", "importtime"))
    assert "--invert" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "hydra", "numpy", "rich"} & imported
