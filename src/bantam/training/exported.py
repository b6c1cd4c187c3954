"""What may stand in the `export.json` of a run's folder, which an export writes."""

import json
from pathlib import Path
from typing import Any

from bantam.training.folder import REMEDY, write
from bantam.training.result import PERCENT

EXPORT = "export.json"

KINDS = ("float32", "int8")
"""The networks that an export writes."""


def write_export(folder: Path, answer: dict[str, Any]) -> None:
    """Write `export.json`."""
    write(folder / EXPORT, (json.dumps(answer, indent=2, allow_nan=False) + "\n").encode())


def read_export(folder: Path) -> dict[str, Any] | None:
    """Read `export.json`; None where there is none. Raises ValueError where it is damaged."""
    file = folder / EXPORT
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        for kind in KINDS:
            part = found[kind]
            if type(part["weight_bytes"]) is not int or not PERCENT(part["accuracy"]):
                raise ValueError(f"its {kind} network has no bytes or no accuracy")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): {REMEDY_EXPORT}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{file} is damaged ({reason}): {REMEDY_EXPORT}") from error
    return found  # type: ignore[no-any-return]


REMEDY_EXPORT = f"export the run again with python export.py, or {REMEDY.partition(',')[0]}"
