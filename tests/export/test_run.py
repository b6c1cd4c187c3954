"""`python export.py`: what it writes, what it verifies, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Bantam
from conftest import SMALL
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from single_runs import at
from torch import nn

from bantam.export import run as exporting
from bantam.export.graph import Session
from bantam.training import folder as files
from bantam.training.setup import prepare_finished

for package in exporting.PACKAGES:
    pytest.importorskip(package, reason="pip install -e '.[export]'")

Compose = Callable[..., DictConfig]

MINE = """from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 5, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Linear(width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last(nn.functional.adaptive_avg_pool2d(x, 4).reshape(len(x), -1))
"""


@pytest.mark.whole
def test_a_run_of_ones_own_network_leaves_its_folder(bantam: Bantam, few: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    trained = bantam("train.py", *few, "model=mine.py:Net", "ema=0.9", "hydra.run.dir=run")
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "mine.py").unlink()
    done = bantam("export.py", "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("run/network.onnx: ")
    assert "100.00 % of the predictions as in PyTorch" in first
    assert second.startswith("run/network-int8.onnx: ")
    run = tmp_path / "run"
    answer = json.loads((run / "export.json").read_text())
    assert answer["float32"]["agreement"] == 100
    assert answer["float32"]["accuracy"] == pytest.approx(answer["recorded_accuracy"], abs=1.01)
    for kind, name in (("float32", "network.onnx"), ("int8", "network-int8.onnx")):
        content = (run / name).read_bytes()
        assert (answer[kind]["file"], answer[kind]["file_bytes"]) == (name, len(content))
        assert Session(content, name)(np.zeros((5, 28, 28), np.uint8)).shape == (5, 10)
    assert [path.name for path in run.glob(".*") if path.is_file()] == []
    assert bantam("evaluate.py", "run").returncode == 0
    table = bantam("table.py", "run", "--bytes").stdout.splitlines()
    assert table[0].endswith("| bytes in int8 | accuracy in int8, % |")
    assert table[2].endswith(f"| {answer['int8']['weight_bytes']:,} | {answer['int8']['accuracy']:.2f} |")


@pytest.mark.whole
def test_bytes_are_those_of_the_budget_without_batch_norm(
    bantam: Bantam, few: tuple[str, ...], composed: Compose, tmp_path: Path
) -> None:
    trained = bantam("train.py", *few, "model=skeleton", "hydra.run.dir=run")
    assert trained.returncode == 0, trained.stderr
    cfg = composed(*few, "model=skeleton", "kernels=torch")
    answer = exporting.export(prepare_finished(cfg, at(tmp_path / "run")))
    assert answer["bytes"] == files.read_result(tmp_path / "run")["bytes"]
    assert 0 < answer["float32"]["weight_bytes"] - answer["bytes"] < 64  # the normalisation, and shapes


@pytest.mark.whole
def test_a_network_that_predicts_otherwise_is_not_written(
    composed: Compose, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "export.json").write_text("before")
    prepared = prepare_finished(composed(*SMALL, "kernels=torch"), at(run))
    plain = exporting.graph

    def otherwise(model: nn.Module, *others: object) -> object:
        with torch.no_grad():
            next(model.parameters()).mul_(-1)
        return plain(model, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "graph", otherwise)
    sentence = r"predicts otherwise in ONNX for [\d,]+ of 1,000 held-out images .* so nothing is written"
    with pytest.raises(ValueError, match=sentence):
        exporting.export(prepared)
    assert not list(run.glob("*.onnx"))
    assert (run / "export.json").read_text() == "before"


def test_other_images_than_those_of_the_run_are_refused(
    composed: Compose, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    prepared = prepare_finished(composed(*SMALL, "data.validation=500", "kernels=torch"), at(run))
    with pytest.raises(ValueError, match="was scored on 1,000 held-out images of mnist5k, which are not those of"):
        exporting.export(prepared)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> ModuleSpec | None:
        return None if name == "onnxruntime" else ModuleSpec(name, None)

    monkeypatch.setattr(exporting, "find_spec", found)
    with pytest.raises(ValueError, match=r"an export needs onnxruntime: pip install -e '.\[export\]'"):
        exporting.check_extra()


def test_a_broken_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("no libx.so")

    monkeypatch.setattr(exporting, "import_module", broken)
    with pytest.raises(
        ValueError, match=r"needs onnx, which cannot be imported \(.*no libx.so\): pip install --force"
    ):
        exporting.check_extra()


@pytest.mark.parametrize("name", ["network.onnx", "network-int8.onnx", "export.json"])
def test_a_folder_in_the_place_of_a_file_is_said_before_anything_is_written(
    composed: Compose, finished_run: Path, tmp_path: Path, name: str
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is a folder, and a file of that name is to be written"):
        exporting.export(prepare_finished(composed(*SMALL, "kernels=torch"), at(run)))
    assert [path.name for path in [*run.glob("*.onnx"), *run.glob("export.json")]] == [name]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("stop", "ends"),
    [
        (
            OSError(28, "No space left on device"),
            pytest.raises(ValueError, match=r"cannot be written \(No space left on device\): make room"),
        ),
        (KeyboardInterrupt(), pytest.raises(KeyboardInterrupt)),
    ],
    ids=["full disk", "ctrl-c"],
)
def test_of_what_stops_an_export_no_half_remains(
    composed: Compose,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
    ends: AbstractContextManager[object],
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    plain = files.write

    def stopped(path: Path, content: bytes) -> None:
        if path.name == "network-int8.onnx":
            raise stop
        plain(path, content)

    monkeypatch.setattr(files, "write", stopped)
    with ends:
        exporting.export(prepare_finished(composed(*SMALL, "kernels=torch"), at(run)))
    assert not [*run.glob("*.onnx"), *run.glob("export.json")]


def test_weights_that_are_not_finite_are_one_sentence(
    composed: Compose, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    weights = load_file(run / "weights.safetensors")
    next(tensor for name, tensor in weights.items() if name.endswith("weight"))[:] = torch.nan
    save_file(weights, run / "weights.safetensors")
    sentence = r"weights.safetensors is damaged \(logits of 1,000 of 1,000 images are not finite\): restore it"
    with pytest.raises(ValueError, match=sentence):
        exporting.export(prepare_finished(composed(*SMALL, "kernels=torch"), at(run)))
    assert not [*run.glob("*.onnx"), *run.glob("export.json")]


@pytest.mark.parametrize(("recorded", "lines"), [(96.5, 2), (96.4, 2), (90.0, 3)])
def test_weights_of_another_run_are_noticed(recorded: float, lines: int) -> None:
    part = {"file": "x", "weight_bytes": 1, "file_bytes": 2, "accuracy": 96.5, "agreement": 100.0}
    known = {"scored_images": 1000, "split": "test", "data": "mnist5k", "recorded_accuracy": recorded}
    said = exporting.in_words({**known, "float32": part, "int8": part}, "run").splitlines()
    assert len(said) == lines
    assert " 96.50 % of 1,000 held-out images of mnist5k, " in said[0]
    if lines == 3:
        assert said[2] == "Recorded were 90.00 %, so the weights are those of another run."
        known["recorded_precision"] = "bfloat16"
        said = exporting.in_words({**known, "float32": part, "int8": part}, "run").splitlines()
        assert "another run, or bfloat16 rounds otherwise than these files" in said[2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "Error: nowhere is no run folder: it does not exist"),
        (
            ("run", "model.width=5"),
            "Error: model.width belongs to the run: only data.root, device, threads can be",
        ),
        (("run", "data=fashion_mnist"), "Error: data belongs to the run: only data.root, device, threads can be"),
        (("half",), "Error: half holds no result.json: it is no finished run"),
    ],
)
def test_what_is_no_finished_run_is_one_sentence(
    bantam: Bantam, finished_run: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    for name in ("run", "half"):
        shutil.copytree(finished_run, tmp_path / name)
    (tmp_path / "half" / "result.json").unlink()
    done = bantam("export.py", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1


def test_table_says_which_run_is_not_exported(bantam: Bantam, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    refused = bantam("table.py", "run", "--bytes")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "Error: run has no export.json: python export.py run writes it; or leave --bytes out"
    ]
