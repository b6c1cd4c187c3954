"""Train what was prepared into its folder, or go on where the folder's checkpoint ends."""

import os
import platform
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from bantam.budget import OverBudget
from bantam.data import Data
from bantam.training import folder as files
from bantam.training import terminal
from bantam.training.build import PartFailed, blame
from bantam.training.loop import SCORING_BATCH, BadRate, Diverged, Epoch, score, train
from bantam.training.setup import Prepared, RunInfo
from bantam.training.threads import LOOKS, Load, advice
from bantam.training.tracked import Tracked, follow
from bantam.training.verdict import Verdict, judge


def run(prepared: Prepared, should_prune: Callable[[int, float], bool] = lambda epoch, accuracy: False) -> float:
    """Train, or continue where the folder's checkpoint ends, and write the folder; returns the objective.

    The objective is the mean accuracy of the last epochs in percent; nan where the training diverged
    or was pruned. `should_prune` is told every epoch's accuracy and decides whether it was the last. Raises InUse
    where another process trains in the folder.
    """
    with files.locked(prepared.info.folder):
        return _run(prepared, should_prune)


def _run(prepared: Prepared, should_prune: Callable[[int, float], bool]) -> float:
    started = time.time()
    cfg, info = prepared.cfg, prepared.info
    files.remove_leftovers(info.folder)
    history = _restore(prepared)
    terminal.describe(prepared)
    load = Load()
    tracked = follow(prepared)
    tracked.begin(history)
    try:
        with terminal.progress(prepared, len(history)) as show:
            for epoch in train(prepared.training, history, show):
                history.append(epoch)
                files.write_checkpoint(info.folder, _state(prepared, history))
                files.write_history(info.folder, history)
                terminal.show_epoch(prepared, epoch)
                tracked.epoch(epoch)
                load = _look_at_threads(prepared, epoch.epoch, load)
                if should_prune(epoch.epoch, epoch.accuracy) and epoch.epoch < cfg.epochs:
                    reason = f"pruned after epoch {epoch.epoch} of {cfg.epochs}, at {epoch.accuracy:.2f} %"
                    return _end_early(prepared, tracked, "pruned", reason, history, started)
    except KeyboardInterrupt as stop:
        terminal.show_interruption(info, len(history) + 1, cfg.epochs)
        raise SystemExit(128 + getattr(stop, "signal", signal.SIGINT)) from None
    except Diverged as error:
        return _end_early(prepared, tracked, "diverged", str(error), history, started)
    except BadRate as error:
        raise PartFailed(f"scheduler={info.choices.get('scheduler')} {error}") from error
    except (Exception, SystemExit) as error:
        blamed = blame(error, prepared.parts, info.choices)
        if blamed is error:
            raise
        raise blamed from error
    return _end(prepared, tracked, history, started)


def _look_at_threads(prepared: Prepared, epoch: int, load: Load) -> Load:
    """Say after one of the first epochs where fewer threads would be faster; returns what measures the next one.

    They stay as they are: results repeat bit for bit with one number of threads only.
    """
    own_choice = prepared.cfg.threads is None and prepared.info.side_by_side == 1
    if not own_choice or prepared.threads == 1 or prepared.device.type != "cpu" or epoch > LOOKS:
        return load
    images = prepared.data.held_out_images[:SCORING_BATCH]
    sentence = advice(
        prepared.threads,
        load,
        lambda: score(prepared.scoring_model, images, prepared.data, prepared.precision),
    )
    if sentence:
        terminal.show_note(sentence)
    return Load()


def _end(prepared: Prepared, tracked: Tracked, history: list[Epoch], started: float) -> float:
    """Judge a training that came to its end and write its folder; returns the objective."""
    cfg, images, info = prepared.cfg, prepared.data, prepared.info
    logits = score(prepared.scoring_model, images.held_out_images, images, prepared.precision)
    verdict = judge(
        history,
        target=cfg.target.accuracy,
        last_epochs=cfg.target.last_epochs,
        most_epochs=cfg.budget.epochs,
        not_judged=images.not_judged,
        most_frequent=100 * images.held_out_labels.bincount().max().item() / len(images.held_out_labels),
        scored_images=len(images.held_out_labels),
    )
    files.write_weights(info.folder, prepared.result_model)
    if cfg.pictures:
        from bantam.training import pictures

        heading = f"{info.name}, {prepared.parameters:,} parameters, seed {cfg.seed}"
        pictures.draw(info.folder, heading, history, logits, images, cfg.target.accuracy)
    scored = {"confusion": _confusion(logits, images), "classes": list(images.classes)}
    result = _result(prepared, verdict, history, started)
    files.write_result(info.folder, result | scored)
    files.remove_checkpoints(info.folder)
    terminal.show_verdict(info, verdict)
    tracked.end(result)
    assert verdict.objective is not None
    return verdict.objective


def _end_early(
    prepared: Prepared, tracked: Tracked, word: str, reason: str, history: list[Epoch], started: float
) -> float:
    """Write the folder of a training that was pruned or diverged and has no objective; returns nan."""
    best = max(history, key=lambda epoch: epoch.accuracy, default=None)
    accuracy, number = (best.accuracy, best.epoch) if best else (None, None)
    verdict = Verdict(word, reason, None, accuracy, number, [], False)
    folder = prepared.info.folder
    result = _result(prepared, verdict, history, started)
    files.write_result(folder, result)
    files.remove_checkpoints(folder)
    terminal.show_verdict(prepared.info, verdict)
    tracked.end(result)
    return float("nan")


def _state(prepared: Prepared, history: list[Epoch]) -> dict[str, Any]:
    """What a resumed run needs; random numbers follow from the seed and the epoch, rates from the history."""
    return {
        "model": prepared.model.state_dict(),
        "optimizer": prepared.optimizer.state_dict(),
        "history": [asdict(epoch) for epoch in history],
        "checksum": prepared.data.checksum,
        "threads": prepared.threads,
        "precision": str(prepared.precision),
        "kernels": prepared.kernels,
        "device": prepared.device.type,
        **({"average": prepared.average.state_dict()} if prepared.average else {}),
    }


def _restore(prepared: Prepared) -> list[Epoch]:
    """Load the folder's checkpoint, if it has one, into what was prepared; returns its history.

    Raises ValueError where the run is finished, or was begun with other data or another precision.
    """
    folder = prepared.info.folder
    if os.path.lexists(folder / files.RESULT):
        result = files.read_result(folder)
        raise ValueError(f"{folder} is finished ({result.get('verdict')}): there is nothing to resume")
    state = files.read_checkpoint(folder, prepared.device)
    if state is None:
        _look_for_results(prepared.info)
        return []
    if state["checksum"] != prepared.data.checksum:
        raise ValueError(
            f"{folder} was begun with other data than {prepared.data.name} as it is now: restore data.root"
        )
    if state["precision"] != str(prepared.precision):
        begun = str(state["precision"]).removeprefix("torch.")
        raise ValueError(
            f"{folder} was begun in {begun}, which precision=auto does not "
            "choose on this machine: a run is resumed where it was begun"
        )
    if state["kernels"] != prepared.kernels:
        raise ValueError(
            f"{folder} was begun with {state['kernels']} kernels, which kernels={prepared.cfg.kernels} does not "
            "choose on this machine: a run is resumed where it was begun"
        )
    try:
        prepared.model.load_state_dict(state["model"])
        prepared.optimizer.load_state_dict(state["optimizer"])
        if prepared.average:
            prepared.average.load_state_dict(state["average"])
        history = [Epoch(**epoch) for epoch in state["history"]]
        prepared.threads, prepared.busy = int(state["threads"]), ""
        torch.set_num_threads(prepared.threads)
    except Exception as error:  # torch raises whatever it is led to by the state of another network
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder / files.CHECKPOINT} is not of this run ({reason}): delete it to start this run anew"
        ) from error
    files.write_history(folder, history)
    return history


def _look_for_results(info: RunInfo) -> None:
    """Say that a run without a checkpoint starts anew where it had begun.

    Raises ValueError for a single one that was trained to its end, and whose result is gone.
    """
    ended = os.path.lexists(info.folder / files.WEIGHTS)
    if ended and info.job is None:
        raise ValueError(
            f"{info.folder} was trained to its end, since it has {files.WEIGHTS} and no {files.CHECKPOINT}, but "
            f"its {files.RESULT} is gone: restore it, or delete {files.WEIGHTS} to train this run anew"
        )
    if ended or (info.folder / files.HISTORY).exists():
        terminal.show_lost(info, files.RESULT if ended else files.CHECKPOINT)


def _result(prepared: Prepared, verdict: Verdict, history: list[Epoch], started: float) -> dict[str, Any]:
    cfg, images = prepared.cfg, prepared.data
    speeds = sorted(epoch.images_per_second for epoch in history)
    return {
        **asdict(verdict),
        **_identity(prepared.info, cfg.seed),
        "target": dict(cfg.target),
        "budget": dict(cfg.budget),
        **prepared.costs,
        "layers": [asdict(layer) for layer in prepared.layers],
        "epochs": len(history),
        "data": images.name,
        "data_checksum": images.checksum,
        "mean": list(images.mean),
        "std": list(images.std),
        "train_images": len(images.train_labels),
        "split": images.split,
        "scored_images": len(images.held_out_labels),
        "device": prepared.device.type,
        "processor": _processor(prepared.device),
        "threads": prepared.threads,
        "precision": str(prepared.precision).removeprefix("torch."),
        "kernels": prepared.kernels,
        "compile": cfg.compile,
        "training_seconds": sum(epoch.seconds for epoch in history),
        "total_seconds": time.time() - started,
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "versions": files.versions(),
        "commit": files.commit(),
    }


def _confusion(logits: torch.Tensor, images: Data) -> list[list[int]]:
    """How many images of each class (row) were taken for each class (column), from N×classes logits."""
    count = len(images.classes)
    pairs = images.held_out_labels.long() * count + logits.argmax(1)
    matrix: list[list[int]] = pairs.bincount(minlength=count * count).reshape(count, count).tolist()
    return matrix


def _identity(info: RunInfo, seed: int | None) -> dict[str, Any]:
    return {
        "experiment": info.choices.get("experiment"),
        "model": info.choices.get("model"),
        "seed": seed,
    }


LIMITING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
"""Variables that tell PyTorch, and with it the C code, which instructions of the processor to leave."""


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor())
    # PyTorch and the C code round otherwise where they are told not to use all that it has.
    told = [f"{key}={os.environ[key]}" for key in LIMITING if os.environ.get(key)]
    return f"{name} ({', '.join(told)})" if told else name


def refuse(error: Exception, info: RunInfo, seed: int | None) -> None:
    """Record in a job's folder that it was refused, and why; the other jobs go on."""
    terminal.show_refusal(info, error)
    if isinstance(error, files.InUse) or (info.folder / files.RESULT).exists():
        return
    result = {"verdict": "refused", "reason": " ".join(str(error).split()), **_identity(info, seed)}
    if isinstance(error, OverBudget):
        result |= {**error.costs, "layers": [asdict(layer) for layer in error.layers]}
    files.write_result(info.folder, result)


def fail(error: Exception, trace: str, info: RunInfo, seed: int | None) -> None:
    """Record in a job's folder that it broke, with the traceback in error.txt; the other jobs go on."""
    reason = str(error) if isinstance(error, PartFailed) else f"{type(error).__name__}: {error}"
    terminal.show_failure(info, reason)
    with suppress(OSError):  # the disk is full: what has happened is the more important
        files.write(info.folder / "error.txt", trace.encode())
    files.write_result(info.folder, {"verdict": "failed", "reason": reason, **_identity(info, seed)})
