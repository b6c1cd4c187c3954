import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from omegaconf import DictConfig, OmegaConf

from bantam.kernels import compiler
from bantam.training import folder as record
from bantam.training import run

Compose = Callable[..., DictConfig]


def history(folder: Path) -> list[dict[str, str]]:
    """The rows of history.csv without their timings."""
    with (folder / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def at(folder: Path, **changes: Any) -> run.Place:
    folder.mkdir(exist_ok=True)
    choices = {"model": "v2", "experiment": None, "optimizer": "sgd", "scheduler": "step"}
    return run.Place(folder, {**choices, **changes}, 1, None)


def train(cfg: DictConfig, place: run.Place) -> float:
    return run.run(run.prepare(cfg, place), place)


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
    assert (result["seed"], result["epochs"], result["threads"], result["device"]) == (1, 2, 1, "cpu")
    assert result["precision"] in ("float32", "bfloat16")
    assert len(result["data_checksum"]) == 64
    assert {"versions", "commit", "training_seconds", "total_seconds", "model"} <= set(result)
    for name in ("curves", "confusion", "mistakes"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for text in (
        "Training on mnist5k: 4,000 images only",
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
    result = record.read_result(tmp_path)
    assert (result["split"], result["scored_images"], result["train_images"]) == ("validation", 500, 3500)


@pytest.mark.parametrize(("limit", "fits"), [(9681, True), (9680, False)])
def test_the_budget_is_strict(composed: Compose, place: run.Place, limit: int, fits: bool) -> None:
    cfg = composed("data=mnist5k", f"budget.parameters={limit}")
    if fits:
        assert run.prepare(cfg, place).parameters == 9680
    else:
        with pytest.raises(run.OverBudget, match="has 9,680 parameters, 1 over the 9,679 that"):
            run.prepare(cfg, place)


def test_of_many_keys_over_budget_names_the_widest(composed: Compose, place: run.Place) -> None:
    with pytest.raises(run.OverBudget, match="lower model.late3 or model.late2 or model.early2 or raise"):
        run.prepare(composed("model=flexible", "model.late3=40"), place)


def test_over_budget_names_count_excess_and_remedy_before_data_are_opened(
    composed: Compose, place: run.Place
) -> None:
    cfg = composed("model.width=17", "data.root=/nowhere", "data=mnist")
    with pytest.raises(run.OverBudget) as caught:
        run.prepare(cfg, place)
    assert str(caught.value) == (
        "model=v2 has 10,897 parameters, 898 over the 9,999 that budget.parameters=10,000 allows: "
        "lower model.width to 16 or raise budget.parameters"
    )
    assert sum(row.parameters for row in caught.value.rows) == 10_897


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=16"], "epochs is 16, 1 over budget.epochs=15: lower epochs or raise budget.epochs"),
        (["batch_size=100000"], "batch_size is 100,000, but mnist5k has 4,000 images to train on"),
        (["model._target_=os.system"], "model=v2 cannot be built: .*whitelist"),
        (["model._target_=bantam.data.os.system"], "model=v2 cannot be built: .*whitelist"),
        (["data._target_=bantam.training.folder.write"], "data=.* cannot be built: .*whitelist"),
        (["+optimizer.colour=1"], "optimizer=sgd cannot be built: .*colour"),
        (["optimizer.nesterov=true", "optimizer.momentum=0"], "optimizer=sgd cannot be built: Nesterov"),
        (["scheduler._target_=torch.optim.lr_scheduler.Nope"], "scheduler=step cannot be built"),
        (["+scheduler.last_epoch=3"], "scheduler=step cannot be built: .*initial_lr"),
        (["device=cuda"], "device is cuda, which this machine does not have"),
        (["data.validation=4000"], "data.validation is 4,000"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    composed: Compose, place: run.Place, overrides: list[str], message: str
) -> None:
    if overrides == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ValueError, match=message):
        run.prepare(composed("data=mnist5k", *overrides), place)
    assert not list(place.folder.iterdir())


def test_a_schedule_that_leaves_the_sensible_is_refused_by_rehearsal(composed: Compose, place: run.Place) -> None:
    cfg = OmegaConf.create(OmegaConf.to_container(composed("data=mnist5k")))
    assert run._rehearse(cfg, place) == pytest.approx([0.025] * 6 + [0.0025] * 6 + [0.00025] * 3)
    cfg.scheduler = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "_partial_": True, "gamma": -0.5}
    with pytest.raises(ValueError, match=r"scheduler=step sets the learning rate of epoch 2 to -0.0125"):
        run.prepare(cfg, place)
    cfg.scheduler = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 0}
    with pytest.raises(ValueError, match=r"scheduler=step fails after epoch 1 \(.*zero\)"):
        run.prepare(cfg, place)


def test_divergence_is_recorded(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*SMALL, "optimizer.lr=1e30")
    objective = train(cfg, at(tmp_path))
    assert objective != objective
    result = record.read_result(tmp_path)
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
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: list[str]
) -> None:
    cfg = composed(*SMALL, "epochs=5", *recipe)
    train(cfg, at(tmp_path / "whole"))

    written = record.write_history

    def stop(folder: Path, rows: list[Any]) -> None:
        if len(rows) == 3:  # after the checkpoint of epoch 3, before its history
            raise Stop
        written(folder, rows)

    monkeypatch.setattr(record, "write_history", stop)
    with pytest.raises(Stop):
        train(cfg, at(tmp_path / "stopped"))
    monkeypatch.undo()
    assert len(history(tmp_path / "stopped")) == 2
    train(cfg, at(tmp_path / "stopped"))
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    whole, stopped = (tmp_path / name / "weights.safetensors" for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


def test_the_average_is_what_is_scored_and_saved(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed(*SMALL, "ema=0.9")
    place = at(tmp_path)
    prepared = run.prepare(cfg, place)
    run.run(prepared, place)
    capsys.readouterr()
    read = run.prepare(cfg, place).model
    record.read_weights(tmp_path, read)
    assert prepared.average is not None
    saved = read.state_dict()
    for name, value in prepared.average.model.state_dict().items():
        assert torch.equal(saved[name], value)
    assert not torch.equal(saved["0.weight"], prepared.model.state_dict()["0.weight"])
    assert run.evaluate(tmp_path, cfg, {})
    assert "exactly as recorded" in capsys.readouterr().out


def test_a_run_is_not_resumed_with_other_data(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(*SMALL, "epochs=2")
    place = at(tmp_path)
    prepared = run.prepare(cfg, place)
    record.write_checkpoint(tmp_path, {**run._state(prepared, []), "checksum": "another"})
    with pytest.raises(ValueError, match="was begun with other data than mnist5k"):
        train(cfg, place)


def test_a_finished_run_is_not_resumed(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*SMALL)
    train(cfg, at(tmp_path))
    with pytest.raises(ValueError, match="is finished"):
        train(cfg, at(tmp_path))


def test_evaluate_repeats_the_recorded_accuracy(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed(*SMALL)
    train(cfg, at(tmp_path))
    assert run.evaluate(tmp_path, cfg, {})
    assert "exactly as recorded" in capsys.readouterr().out
    assert run.evaluate(tmp_path, composed(*SMALL, "data.validation=500"), {})
    assert "the two are not comparable" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds the weights of another network"):
        run.evaluate(tmp_path, composed(*SMALL, "model.width=5"), {})


def test_precision_auto_is_bfloat16_where_the_processor_computes_in_it(
    composed: Compose, place: run.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(*overrides: str) -> torch.dtype:
        return run.prepare(composed(*SMALL, *overrides), place).precision

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert chosen() == chosen("kernels=torch") == chosen("model=skeleton") == torch.bfloat16
    assert chosen("precision=float32") == chosen("kernels=torch", "precision=float32") == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert chosen() == chosen("model=skeleton") == torch.float32
    assert chosen("precision=bfloat16") == torch.bfloat16


def test_kernels_auto_takes_c_on_a_cpu_where_it_can_and_else_pytorch(
    composed: Compose, place: run.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(*overrides: str) -> str:
        return run.prepare(composed(*SMALL, "precision=float32", *overrides), place).kernels

    assert chosen("kernels=torch") == "torch"
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "bfloat16", lambda: False)
        assert chosen("precision=bfloat16") == "torch"
        with pytest.raises(ValueError, match="kernels is native, but this processor does not compute in bfloat16"):
            chosen("precision=bfloat16", "kernels=native")
    assert chosen("channels_last=false") == "torch"
    assert chosen("model=skeleton") == "torch"  # it has no block that the C code knows
    monkeypatch.setenv("CC", "no-such-compiler")
    compiler.library.cache_clear()
    assert chosen() == "torch"
    with pytest.raises(ValueError, match="kernels is native, but there is no C compiler .* kernels=auto"):
        chosen("kernels=native")
    monkeypatch.undo()
    compiler.library.cache_clear()
    if shutil.which(os.environ.get("CC", "cc")):
        assert chosen() == chosen("kernels=native") == "native"
        if compiler.bfloat16():
            assert chosen("precision=bfloat16") == chosen("precision=bfloat16", "kernels=native") == "native"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("channels_last=false",), "in channels_last; device is cpu, channels_last False: use kernels=auto"),
        (("compile=true",), "kernels is native, but compile is true"),
        (("model=skeleton",), "kernels is native, but model=skeleton has no block"),
    ],
)
def test_kernels_native_refuses_what_it_does_not_compute(
    composed: Compose, tmp_path: Path, overrides: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match="kernels is native") as error:
        run.prepare(composed(*SMALL, "kernels=native", *overrides), at(tmp_path, model="skeleton"))
    assert sentence in str(error.value)


def test_a_run_is_resumed_with_the_kernels_that_it_was_begun_with(composed: Compose, tmp_path: Path) -> None:
    place = at(tmp_path)
    interrupted = run.prepare(composed(*SMALL, "epochs=2", "kernels=torch"), place)
    record.write_checkpoint(tmp_path, {**run._state(interrupted, []), "kernels": "native"})
    with pytest.raises(ValueError, match="was begun with native kernels, which kernels=torch does not choose"):
        run.run(interrupted, place)
