import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from omegaconf import DictConfig
from single_runs import at, history, train

from bantam.training import folder as files
from bantam.training.evaluate import evaluate
from bantam.training.run import LIMITING, _state, run
from bantam.training.setup import prepare, prepare_finished
from bantam.training.status import Line

Compose = Callable[..., DictConfig]
Few = tuple[str, ...]


@pytest.mark.whole
def test_a_run_is_its_folder(composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = composed(*SMALL, "epochs=2", "pictures=true", "threads=1")
    objective = train(cfg, at(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confusion.png",
        "curves.png",
        "history.csv",
        "mistakes.png",
        "result.json",
        "weights.safetensors",
    ]
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0]["lr"] == "0.025"
    assert rows[0]["validation_accuracy"] == ""
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["verdict"] == "not judged"
    assert "mnist5k" in result["reason"]
    assert result["objective"] == objective
    assert result["objective"] == pytest.approx(sum(float(row["test_accuracy"]) for row in rows) / 2)
    assert (result["parameters"], result["multiply_adds"]) == (692, 136_120)
    assert result["bytes"] == 4 * 692 + 5 * (2 * 4 * 4 + 8)
    assert result["activations"] == max(row["activations"] for row in result["layers"])
    assert result["activations"] == 4 * 4 * (26 * 26 + 24 * 24)
    assert dict(result["budget"]) == {
        "parameters": 10_000,
        "epochs": 15,
        "multiply_adds": None,
        "bytes": None,
        "activations": None,
    }
    assert (result["seed"], result["epochs"], result["threads"], result["device"]) == (1, 2, 1, "cpu")
    assert result["precision"] in ("float32", "bfloat16")
    assert len(result["data_checksum"]) == 64
    assert {"versions", "commit", "training_seconds", "total_seconds", "model"} <= set(result)
    for name in ("curves", "confusion", "mistakes"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert " %   test " not in printed  # they are a part of MNIST's training images
    for text in (
        "Training on mnist5k: 4,000 images only",
        f" %   held-out {float(rows[0]['test_accuracy']):.2f} %",
        "the target is not judged",
        "conv 3×3 → ReLU → norm → dropout",
        "692 parameters of fewer than 10,000",
        "v2: not judged",
    ):
        assert text in printed


def test_the_objective_is_of_the_validation_images_where_some_are_held_out(
    composed: Compose, tmp_path: Path
) -> None:
    objective = train(composed(*SMALL, "data.validation=500"), at(tmp_path))
    (row,) = history(tmp_path)
    assert float(row["validation_accuracy"]) == objective
    assert row["test_accuracy"] == row["test_loss"] == ""
    result = files.read_result(tmp_path)
    assert (result["split"], result["scored_images"], result["train_images"]) == ("validation", 500, 3500)


def test_a_result_says_what_was_to_be_left_of_the_processor(
    composed: Compose, few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LIMITING:
        monkeypatch.delenv(name, raising=False)
    train(composed(*SMALL, *few), at(tmp_path / "0"))
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    train(composed(*SMALL, *few), at(tmp_path / "1"))
    free, told = (files.read_result(tmp_path / name)["processor"] for name in "01")
    assert told == f"{free} (ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2)"


def test_divergence_is_recorded(composed: Compose, few: Few, tmp_path: Path) -> None:
    cfg = composed(*few, "optimizer.lr=1e30")
    objective = train(cfg, at(tmp_path))
    assert objective != objective
    result = files.read_result(tmp_path)
    assert result["verdict"] == "diverged"
    assert "in epoch 1, step" in result["reason"]
    assert "at a learning rate of 1e+30" in result["reason"]
    assert result["objective"] is None
    assert not (tmp_path / "checkpoint.pt").exists()


class Stop(Exception):
    """Stands for a kill after some epochs."""


@pytest.mark.parametrize(
    "recipe",
    [
        ["scheduler=step"],
        ["scheduler=multistep", "scheduler.milestones=[1,2]"],
        ["scheduler=one_cycle"],
        ["scheduler=loss_dip"],
        ["scheduler=cosine", "optimizer=adamw"],
        ["scheduler=one_cycle", "optimizer=muon"],
        ["ema=0.9", "label_smoothing=0.1", "augmentation.fade_start=0.3", "augmentation.fade_end=0.7"],
    ],
    ids=lambda recipe: recipe[0],
)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    composed: Compose, few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: list[str]
) -> None:
    cfg = composed(*few, "epochs=5", *recipe)
    train(cfg, at(tmp_path / "whole"))

    written = files.write_history

    def stop(folder: Path, rows: list[Any]) -> None:
        if len(rows) == 3:  # after the checkpoint of epoch 3, before its history
            raise Stop
        written(folder, rows)

    monkeypatch.setattr(files, "write_history", stop)
    with pytest.raises(Stop):
        train(cfg, at(tmp_path / "stopped"))
    monkeypatch.undo()
    assert len(history(tmp_path / "stopped")) == 2
    train(cfg, at(tmp_path / "stopped"))
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    whole, stopped = (tmp_path / name / "weights.safetensors" for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


def test_the_average_is_what_is_scored_and_saved(
    composed: Compose, few: Few, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed(*few, "ema=0.9")
    info = at(tmp_path)
    prepared = prepare(cfg, info)
    run(prepared)
    capsys.readouterr()
    read = prepare(cfg, info).model
    files.read_weights(tmp_path, read)
    assert prepared.average is not None
    saved = read.state_dict()
    for name, value in prepared.average.model.state_dict().items():
        assert torch.equal(saved[name], value)
    assert not torch.equal(saved["0.weight"], prepared.model.state_dict()["0.weight"])
    assert evaluate(prepare_finished(cfg, at(tmp_path)))
    assert "exactly as recorded" in capsys.readouterr().out


def test_a_run_is_not_resumed_with_other_data(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(*SMALL, "epochs=2")
    info = at(tmp_path)
    prepared = prepare(cfg, info)
    files.write_checkpoint(tmp_path, {**_state(prepared, []), "checksum": "another"})
    with pytest.raises(ValueError, match="was begun with other data than mnist5k"):
        train(cfg, info)


def test_a_finished_run_is_not_resumed(composed: Compose, few: Few, tmp_path: Path) -> None:
    cfg = composed(*few)
    train(cfg, at(tmp_path))
    with pytest.raises(ValueError, match="is finished"):
        train(cfg, at(tmp_path))


def test_a_run_is_resumed_with_the_kernels_that_it_was_begun_with(composed: Compose, tmp_path: Path) -> None:
    info = at(tmp_path)
    interrupted = prepare(composed(*SMALL, "epochs=2", "kernels=torch"), info)
    files.write_checkpoint(tmp_path, {**_state(interrupted, []), "kernels": "native"})
    with pytest.raises(ValueError, match="was begun with native kernels, which kernels=torch does not choose"):
        run(interrupted)


def test_that_fewer_threads_would_be_faster_is_noted_in_the_first_epochs_and_changes_no_bit(
    composed: Compose,
    few: Few,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bantam.training.setup.choose", lambda asked, side_by_side, load: (asked or 2, ""))
    train(composed(*few, "epochs=3", "threads=2"), at(tmp_path / "asked"))
    assert "threads=1 would be" not in capsys.readouterr().out

    def advice(number: int, load: object, once: Callable[[], object]) -> str:
        once()
        return f"threads=1 would be 3.0 times as fast as the {number} threads"

    monkeypatch.setattr("bantam.training.run.advice", advice)
    train(composed(*few, "epochs=3", "threads=null"), at(tmp_path / "chosen"))
    said = capsys.readouterr().out
    assert said.count("Note: threads=1 would be 3.0 times as fast as the 2 threads\n") == 2
    assert said.index("epoch  2/3") < said.rindex("Note: ") < said.index("epoch  3/3")
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("asked", "chosen")]
    assert weights[0] == weights[1]


def test_where_there_is_no_bar_a_line_says_how_far_an_epoch_is(
    composed: Compose,
    few: Few,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    update = Line.update

    def look_at_once(line: Line, text: str) -> None:
        update(line, text)
        line.look()

    monkeypatch.setattr("bantam.training.status.SECONDS", 0.0)
    monkeypatch.setattr(Line, "update", look_at_once)
    train(composed(*few, "epochs=2"), at(tmp_path))
    assert re.search(r"v2 epoch  1/2   300 of 300 images   loss \d\.\d{4}\n", capsys.readouterr().out)
