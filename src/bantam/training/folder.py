"""The files of a run: history, checkpoint, weights and result, each written aside and renamed."""

import csv
import glob
import hashlib
import io
import json
import os
import pickle
import platform
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from bantam import budget
from bantam.config import unreadable
from bantam.overrides import resuming
from bantam.training.loop import Epoch
from bantam.training.result import FINISHED, damage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HISTORY, RESULT, WEIGHTS, CHECKPOINT = "history.csv", "result.json", "weights.safetensors", "checkpoint.pt"

CHECKPOINT_BEFORE = "checkpoint.before.pt"
"""That of the epoch before: for the case that the last one is damaged."""

CHECKSUM = b"sha256 "
"""How a checkpoint begins: its first line has the checksum of the others."""

STATE = ("model", "optimizer", "history", "checksum", "threads", "precision", "kernels")
"""What every checkpoint has."""

NOT_TRAINED = ("refused", "failed")
"""Verdicts of runs that are begun again when the same line is typed: what was wrong may be mended."""

REMEDY = "restore it, or train the run again"
"""What helps where a file of a finished run is damaged."""

ASIDE = ".part"
"""How the names of files end that are being written."""


SEED = "seed-"
"""How the names of folders begin in which further seeds of a trial are trained, within the trial's own."""


def seed_folders(trial: Path) -> list[Path]:
    """The folders of a trial's further seeds, in order; empty where it has none."""
    found = [path for path in trial.glob(f"{SEED}*") if path.name.removeprefix(SEED).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(SEED)))


class InUse(ValueError):
    """Another process is at work in a folder."""


@contextmanager
def locked(folder: Path) -> Iterator[list[int]]:
    """Keep a folder for this process, and for those that inherit the descriptor, until all of them have ended.

    Yields the descriptor, in a list; it is empty where a system has no such locks. Raises InUse where another
    process has the folder.
    """
    if fcntl is None:
        yield []
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"another process is at work in {folder}: wait until it has ended, or stop it") from None
        yield [descriptor]
    finally:
        os.close(descriptor)


def refuse_used(folder: Path) -> None:
    """Raise ValueError where a folder holds a run already: another would overwrite it."""
    names = (RESULT, CHECKPOINT, CHECKPOINT_BEFORE, HISTORY, WEIGHTS)
    used = [name for name in names if os.path.lexists(folder / name)]
    if used:
        how = f"continue it with {resuming(folder)}, or choose another folder"
        raise ValueError(f"{folder} already holds a run ({used[0]}): {how}")


def write(path: Path, content: bytes) -> None:
    """Write a whole file or none, one that outlives a power cut: into a file beside it, which is then renamed.

    Raises ValueError where a folder has the file's name.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a file of that name is to be written: move it away")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{ASIDE}"):  # of a process that was killed
        with suppress(OSError):  # somebody is at work on it after all, and the system keeps it
            left.unlink()
    while True:
        try:
            _write_aside(path, content)
            break
        except FileNotFoundError:  # somebody took the file beside it for a leftover, or the folder is gone
            if not path.parent.is_dir():
                raise
    if os.name == "posix":  # the new name is in the folder, which is flushed by itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_aside(path: Path, content: bytes) -> None:
    # Processes of two containers may have the same number, so that cannot make the name.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}{ASIDE}")
    try:
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what processes left that were killed while they wrote; who is writing there now begins again."""
    for aside in folder.glob(f".*{ASIDE}"):
        aside.unlink(missing_ok=True)


def write_history(folder: Path, history: list[Epoch]) -> None:
    """Write `history.csv`, a row an epoch; numbers in full precision, empty where nothing was scored."""
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, [f.name for f in fields(Epoch)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(epoch) for epoch in history)
    write(folder / HISTORY, text.getvalue().encode())


def read_history(folder: Path) -> list[Epoch]:
    """Read `history.csv` back. Raises ValueError where it is missing, cut off, or not one of ours."""
    file, names = folder / HISTORY, [f.name for f in fields(Epoch)]
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
        if header != names:
            raise ValueError(
                f"its columns are {', '.join(header)[:60]!r}, not those of a history" if header else "it is empty"
            )
        epochs = [_epoch(row, number) for number, row in enumerate(rows, 1)]
        if not epochs:
            raise ValueError("it has no epoch")
        return epochs
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read ({unreadable(error)}): {REMEDY}") from error


def _epoch(row: list[str], number: int) -> Epoch:
    """An epoch of a history. Raises ValueError where its row is cut off, or another's."""
    first, *others = row or [""]
    if len(row) != len(fields(Epoch)):
        raise ValueError(
            f"the row of epoch {number} {'is cut off' if len(row) < len(fields(Epoch)) else 'has too many values'}"
        )
    epoch = Epoch(int(first), *(float(value) if value else None for value in others))  # type: ignore[arg-type]
    scored = epoch.test_accuracy if epoch.validation_accuracy is None else epoch.validation_accuracy
    if None in (epoch.lr, epoch.train_loss, epoch.train_accuracy, epoch.images_per_second, scored):
        raise ValueError(f"the row of epoch {epoch.epoch} is cut off")
    if epoch.epoch != number:
        raise ValueError(f"the row of epoch {number} is that of epoch {epoch.epoch}")
    for accuracy in (epoch.train_accuracy, scored):
        if not 0 <= (accuracy or 0.0) <= 100:
            raise ValueError(f"an accuracy of epoch {number} is {accuracy} %")
    return epoch


def contradiction(history: list[Epoch], result: dict[str, Any]) -> str:
    """What a history and a result say differently, where they are not of one run; empty where nothing."""
    epochs, last = result.get("epochs"), result.get("last_accuracies") or []
    if epochs is not None and epochs != len(history):
        return f"{HISTORY} has {len(history)} of the {epochs} epochs in {RESULT}"
    if last and [epoch.accuracy for epoch in history[-len(last) :]] != last:
        return f"{HISTORY} and {RESULT} are not of one run: they end at other accuracies"
    return ""


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write `result.json`, each list of numbers on one line."""
    text = json.dumps(result, indent=2, allow_nan=False)
    # No string holds a line break, so nothing within one is matched.
    text = re.sub(r"\[\n[-+.\de,\s]+\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)
    write(folder / RESULT, (text + "\n").encode())


def load_result(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read `result.json`: what is sound in it, and a phrase for each key that is not.

    Raises ValueError where it is missing or no result.
    """
    file = folder / RESULT
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not folder.exists():
            raise ValueError(f"{folder} is gone: {REMEDY}") from error
        raise ValueError(
            f"{folder} holds no {RESULT}: it is no finished run; train it to its end, or restore it"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({unreadable(error)}): {REMEDY}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} cannot be read: it is not the result of a run: {REMEDY}")
    damaged = damage(found)
    return {key: value for key, value in found.items() if key not in damaged}, list(damaged.values())


def read_result(folder: Path) -> dict[str, Any]:
    """Read `result.json`. Raises ValueError where it is missing or damaged."""
    result, damaged = load_result(folder)
    if damaged:
        raise ValueError(f"{folder / RESULT} is damaged ({damaged[0]}): {REMEDY}")
    return result


def read_finished(folder: Path) -> dict[str, Any]:
    """Read the `result.json` of a run that came to its end. Raises ValueError where it did not, or is damaged."""
    result = read_result(folder)
    if result.get("objective") is None and result["verdict"] not in ("met", "not met", "not judged"):
        raise ValueError(f"{folder} was {result['verdict']}: it has no weights to evaluate")
    for key in FINISHED:
        if result.get(key) is None:
            raise ValueError(f"{folder / RESULT} is damaged ({key} is None): {REMEDY}")
    return result


def write_weights(folder: Path, model: nn.Module) -> None:
    """Write `weights.safetensors`, from which no code can be executed."""
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in budget.saved_tensors(model).items()
    }
    write(folder / WEIGHTS, save(state))


def read_weights(folder: Path, model: nn.Module) -> None:
    """Load `weights.safetensors` into a network. Raises ValueError where they do not belong to it."""
    file = folder / WEIGHTS
    try:
        state = load(file.read_bytes())
        first = {id(tensor): name for name, tensor in budget.saved_tensors(model).items()}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if first[id(tensor)] in state:  # shared ones are written once; older versions wrote all of their names
                state.setdefault(name, state[first[id(tensor)]])
        model.load_state_dict(state)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {WEIGHTS}: it is no finished run; {REMEDY}") from error
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:  # what damaged bytes lead it to
        raise ValueError(f"{file} is damaged ({unreadable(error)}): {REMEDY}") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{file} holds the weights of another network ({reason}): {REMEDY}") from error


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write what a resumed run needs, tensors, numbers and strings only, and keep the one before."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    if (folder / CHECKPOINT).exists():
        os.replace(folder / CHECKPOINT, folder / CHECKPOINT_BEFORE)
    write(folder / CHECKPOINT, CHECKSUM + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def read_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """Read the checkpoint, or the one before where it is damaged, without executing code; None without any.

    Raises ValueError where none can be read.
    """
    problem = None
    for name in (CHECKPOINT, CHECKPOINT_BEFORE):
        if os.path.lexists(folder / name):  # a link that leads nowhere is damaged, not missing
            try:
                return _read_checkpoint(folder / name, device)
            except ValueError as error:
                problem = problem or error
    if problem:
        raise problem
    return None


def _read_checkpoint(file: Path, device: torch.device) -> dict[str, Any]:
    remedy = "delete it to start this run anew"
    try:
        content = file.read_bytes()
        if content.startswith(CHECKSUM):  # older ones have none
            first, _, content = content.partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != first.removeprefix(CHECKSUM):
                raise ValueError("its checksum is another")
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        of_torch = isinstance(error, pickle.UnpicklingError)  # its advice is to execute whatever is in the file
        reason = "it is no checkpoint" if of_torch else unreadable(error)
        raise ValueError(f"{file} is damaged ({reason}): {remedy}") from error
    missing = [key for key in STATE if not isinstance(state, dict) or key not in state]
    if missing:
        raise ValueError(f"{file} is damaged (it has no {missing[0]}): {remedy}")
    return state  # type: ignore[no-any-return]


def remove_checkpoints(folder: Path) -> None:
    """Delete what only a resumed run needs."""
    for name in (CHECKPOINT, CHECKPOINT_BEFORE):
        (folder / name).unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about a run's numbers."""
    packages = ("bantam", "torch", "torchvision", "hydra-core", "omegaconf", "optuna", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def commit() -> str | None:
    """The project's git commit, with "-dirty" where tracked files differ; None outside a repository."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
