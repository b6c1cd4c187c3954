"""The files of a run: history, checkpoint, weights and result, each written aside and renamed."""

import csv
import hashlib
import io
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from bantam.training.loop import Epoch

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

FINISHED: dict[str, Any] = {
    **{"objective": (int, float), "threads": int, "scored_images": int},
    **{"split": str, "data": str, "data_checksum": str, "precision": str, "kernels": str},
}
"""What the result of a finished run has, and its types."""

ASIDE = ".part"
"""How the names of files end that are being written."""


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
    used = [name for name in (RESULT, CHECKPOINT, CHECKPOINT_BEFORE, HISTORY) if (folder / name).exists()]
    if used:
        raise ValueError(
            f"{folder} already holds a run ({used[0]}): continue it with resume={folder}, or choose another folder"
        )


def write(path: Path, content: bytes) -> None:
    """Write a whole file or none, one that outlives a power cut: into a file beside it, which is then renamed."""
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
    """Read `history.csv` back. Raises ValueError where it is missing or not one of ours."""
    try:
        with (folder / HISTORY).open(newline="") as stream:
            epochs = [
                Epoch(**{k: int(v) if k == "epoch" else float(v) if v else None for k, v in row.items()})  # type: ignore[arg-type]
                for row in csv.DictReader(stream)
            ]
        for epoch in epochs:
            scored = epoch.test_accuracy if epoch.validation_accuracy is None else epoch.validation_accuracy
            if None in (epoch.lr, epoch.train_loss, epoch.train_accuracy, epoch.images_per_second, scored):
                raise ValueError(f"the row of epoch {epoch.epoch} is cut off")
        return epochs
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / HISTORY} cannot be read: {error}") from error


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write `result.json`, each list of numbers on one line."""
    text = json.dumps(result, indent=2, allow_nan=False)
    # No string holds a line break, so nothing within one is matched.
    text = re.sub(r"\[\n[-+.\de,\s]+\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)
    write(folder / RESULT, (text + "\n").encode())


def read_result(folder: Path) -> dict[str, Any]:
    """Read `result.json`. Raises ValueError where it is missing or damaged."""
    try:
        result = json.loads((folder / RESULT).read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {RESULT}: it is no finished run") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / RESULT} cannot be read: {error}") from error
    if not isinstance(result, dict):
        raise ValueError(f"{folder / RESULT} cannot be read: it is not the result of a run")
    return result


def read_finished(folder: Path) -> dict[str, Any]:
    """Read the `result.json` of a run that came to its end. Raises ValueError where it did not, or is damaged."""
    result = read_result(folder)
    if result.get("objective") is None:
        raise ValueError(f"{folder} was {result.get('verdict')}: it has no weights to evaluate")
    for key, kind in FINISHED.items():
        if not isinstance(result.get(key), kind) or isinstance(result[key], bool):
            raise ValueError(
                f"{folder / RESULT} is damaged ({key} is {result.get(key)!r}): restore it, or train the run again"
            )
    return result


def write_weights(folder: Path, model: nn.Module) -> None:
    """Write `weights.safetensors`, from which no code can be executed."""
    # Shared weights have several names and are written under each: the format knows no aliases.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    write(folder / WEIGHTS, save(state))


def read_weights(folder: Path, model: nn.Module) -> None:
    """Load `weights.safetensors` into a network. Raises ValueError where they do not belong to it."""
    file = folder / WEIGHTS
    try:
        model.load_state_dict(load_file(file))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {WEIGHTS}: it is no finished run") from error
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{file} holds the weights of another network: {reason}") from error


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
        if (folder / name).exists():
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
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
