"""Folders of runs and of searches as tests need them, written in no time: nothing is trained."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bantam import budget, trials_csv
from bantam.report import groups, runs
from bantam.report.groups import Group
from bantam.training import folder as record
from bantam.training.loop import Epoch

LAYERS = [
    budget.Layer("conv 3×3 → ReLU", (16, 26, 26), 3, 144, 97_344),
    budget.Layer("linear", (10,), 28, 250, 240),
]

EVIL = "<script>window.evil=1</script><b>%{x}"
"""A name that must stay text, on the page and in its figures."""

SETTINGS: dict[str, Any] = {
    "model": {"_target_": "bantam.models.V2", "width": 16, "dropout": 0.05},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.025, "momentum": 0.8},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.1},
    "augmentation": {"_target_": "bantam.augmentation.Augmentation", "degrees": 0.0},
    "data": {"_target_": "bantam.data.auto", "split_seed": "${seed}", "root": "${oc.env:NOWHERE}"},
    "budget": {"parameters": 10000, "epochs": 15},
    "target": {"accuracy": 99.0, "last_epochs": 3},
    "epochs": 4,
    "batch_size": 128,
}


def write_run(
    folder: Path,
    accuracies: tuple[float, ...] = (97.0, 99.1, 99.2, 99.3),
    seed: int = 1,
    name: str = "v2",
    overrides: tuple[str, ...] = (),
    verdict: str = "met",
    settings: dict[str, Any] | None = None,
    **result: Any,
) -> Path:
    """A finished run's folder with test accuracies in percent; the learning rate falls after epoch 2."""
    (folder / ".hydra").mkdir(parents=True)
    config = OmegaConf.merge(SETTINGS, {"seed": seed}, settings or {})
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config))
    typed = [f"experiment={name}", f"seed={seed}", *overrides]
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(typed)))
    rates = [0.025, 0.025, 0.0025, 0.0025]
    history = [
        Epoch(i + 1, rates[min(i, 3)], 0.1, value - 0.4, None, None, 0.05, value, 30.0, 2000.0)
        for i, value in enumerate(accuracies)
    ]
    record.write_history(folder, history)
    last = list(accuracies[-3:])
    written = {
        "verdict": verdict,
        "reason": "because",
        "objective": sum(last) / len(last),
        "best_accuracy": max(accuracies),
        "best_epoch": accuracies.index(max(accuracies)) + 1,
        "last_accuracies": last,
        "at_chance": False,
        "experiment": name,
        "model": name,
        "seed": seed,
        "parameters": 394,
        "layers": [asdict(row) for row in LAYERS],
        "data": "MNIST",
        "split": "test",
        "train_images": 60000,
        "scored_images": 10000,
    }
    record.write_result(folder, written | result)
    return folder


def of_seeds(folder: Path, ends: tuple[float, ...], name: str = "v2", **more: Any) -> Group:
    """A group whose seeds end at some accuracies."""
    seeds = [
        runs.read_run(write_run(folder / f"{name}{i}", (90.0, end, end, end), i, name, **more))
        for i, end in enumerate(ends)
    ]
    (found,) = groups.group(seeds)
    return found


def one(folder: Path, *accuracies: float, **more: Any) -> Group:
    run = runs.read_run(write_run(folder, accuracies, **more))
    return Group(run.name, [run])


def write_study(
    folder: Path,
    objectives: tuple[float | None, ...],
    pruned: int = 1,
    over: int = 1,
    multi_objective: bool = False,
    cost: str = "parameters",
) -> Path:
    """A study's folder: completed trials, then pruned ones, then networks over the budget.

    With another `cost` than parameters, that is what differs.
    """
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i, objective in enumerate(objectives):
        write_run(folder / str(i), (90.0, 95.0, objective or 0.0, objective or 0.0))
        hydra = {"hydra": {"sweeper": {"objectives": ["accuracy", cost][: 1 + multi_objective]}}}
        (folder / str(i) / ".hydra" / "hydra.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(hydra)))
        costs = {"parameters": 5000, cost: 2000 + 1000 * i}
        rows.append({"state": "complete", **costs, "objective": objective, "folder": i})
    for _ in range(pruned):
        write_run(folder / str(len(rows)), (60.0, 70.0), verdict="pruned", objective=None)
        rows.append({"state": "pruned", "reason": "given up", "parameters": 3000, "folder": len(rows)})
    rows += [{"state": "over budget", "reason": "too many", "parameters": 12_000} for _ in range(over)]
    columns = [*trials_csv.COLUMNS[:3], "optimizer.lr", "model", *trials_csv.COLUMNS[3:]]
    with (folder / "trials.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow(
                {
                    "number": i,
                    "optimizer.lr": 0.01 * (i + 1),
                    "model": "v1" if i == 2 else "v2",
                    "seconds": 9.5,
                    **row,
                }
            )
    return folder


def story(folder: Path) -> Path:
    """A multirun with two groups of seeds, one that was refused and one that was interrupted."""
    matrix = [[50 - (i != j) * 49 - (j == 9) for j in range(10)] for i in range(10)]
    scored = {"confusion": matrix, "classes": [str(i) for i in range(10)]}
    for i, end in enumerate((98.9, 99.1, 99.0)):
        write_run(folder / f"{i}", (97.0, 99.2, end, end), i, "v1", verdict="not met", **scored)
    for i, end in enumerate((99.3, 99.35, 99.4)):
        other = {"model": {"_target_": "bantam.models.Flexible"}}
        write_run(folder / f"{i + 3}", (97.0, 99.2, end, end), i, "flexible", settings=other, **scored)
    refused = write_run(folder / "6", name="big", settings={"model": {"width": 99}})
    (refused / "history.csv").unlink()
    record.write_result(refused, {"verdict": "refused", "reason": f"too big {EVIL}", "model": "big"})
    (write_run(folder / "7", name="late", settings={"epochs": 9}) / "result.json").unlink()
    return folder


def thousand(folder: Path) -> Path:
    """A study of 1,000 trials of 15 epochs: half complete, half pruned, two widths over the budget."""
    folder.mkdir()
    rows = ["number,state,reason,optimizer.lr,model.width,parameters,objective,seconds,folder"]
    for i in range(1000):
        width, rate = 8 + i % 11, 0.001 * (1 + i)
        if width > 16:
            rows.append(f"{i},over budget,too many,{rate},{width},{600 * width},,0.1,")
            continue
        (folder / f"{i}").mkdir()
        epochs = 15 if i % 2 else 7
        lines = [f"{e},{rate},0.1,98,0.05,{97 + e / 10 + i / 2000},,,20,3000" for e in range(1, epochs + 1)]
        head = "epoch,lr,train_loss,train_accuracy,validation_loss,validation_accuracy,test_loss,test_accuracy"
        (folder / f"{i}" / "history.csv").write_text("\n".join([f"{head},seconds,images_per_second", *lines]))
        end = f"complete,,{rate},{width},{600 * width},{98.5 + i / 2000}" if epochs == 15 else ""
        rows.append(f"{i},{end or f'pruned,given up,{rate},{width},{600 * width},'},300,{i}")
    (folder / "trials.csv").write_text("\n".join(rows) + "\n")
    return folder
