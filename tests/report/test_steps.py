from pathlib import Path

from made_folders import LAYERS, write_run

from bantam import budget
from bantam.report import runs, steps


def test_what_changed_is_a_row_a_group_without_seed_and_machine(tmp_path: Path) -> None:
    constant = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0}
    before = runs.read_run(write_run(tmp_path / "0"))
    settings = {"scheduler": constant, "optimizer": {"lr": 0.1, "momentum": 0.9}, "batch_size": 64, "threads": 3}
    after = runs.read_run(write_run(tmp_path / "1", seed=2, settings=settings))
    found = {key: (old, new) for key, old, new in steps.changes(before, after)}
    assert found["optimizer"] == ("lr 0.025, momentum 0.8", "lr 0.1, momentum 0.9")
    assert found["scheduler"][0] == "StepLR: step_size 2, gamma 0.1"
    assert found["scheduler"][1].startswith("ConstantLR: ")
    assert found["batch_size"] == ("128", "64")
    assert set(found) == {"optimizer", "scheduler", "batch_size"}
    assert steps.changes(before, before) == []


def test_layers_that_went_and_came() -> None:
    smaller = [LAYERS[0], budget.Layer("linear", (10, 1, 1), 28, 90, 80)]
    assert steps.layer_changes(LAYERS, smaller) == [
        "− linear, 10, 250 parameters",
        "+ linear, 10×1×1, 90 parameters",
    ]
    other = [budget.Layer("conv 5×5", (10, 24, 24), 5, 250, 240)]
    assert steps.layer_changes(LAYERS, other) == ["Another network: none of its 1 layers is one of the other's."]
    assert steps.layer_changes([], other) == ["+ conv 5×5, 10×24×24, 250 parameters"]
    same = [LAYERS[0], budget.Layer("linear", (10, 1, 1), 28, 250, 240)]
    assert steps.layer_changes(LAYERS, same) == []
