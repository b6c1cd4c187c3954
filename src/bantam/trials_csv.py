"""`trials.csv`, what a search writes about its trials: its columns, and its rows as they are read.

A search writes it, and the report, a confirmation and the trackers read it.
"""

import csv
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bantam import budget
from bantam.config import unreadable

OF_SEEDS = ("mean", "deviation", "seeds")
"""Columns of `trials.csv` where trials have several seeds: their mean, its deviation, what each has reached."""

COLUMNS = ("number", "state", "reason", *budget.COSTS, "objective", *OF_SEEDS, "seconds", "folder")
"""Columns of `trials.csv`, in which the searched keys stand behind the reason."""


@dataclass(frozen=True)
class Trial:
    """A row of `trials.csv` with the epochs of the trial's folder."""

    number: int
    state: str
    reason: str
    settings: dict[str, Any]
    costs: dict[str, int]
    """What its network costs, as far as it is known, by the keys of `budget.COSTS`."""
    objective: float | None
    """Percent of the validation images; None where it was not trained to its end."""
    seconds: float | None
    epochs: list[tuple[int, float]]
    """Epoch and accuracy in percent, of its first seed."""
    seeds: list[float] = field(default_factory=list)
    """What each seed has reached, in percent; empty where a trial has one."""
    folder: str = ""
    """Its name in the folder of the study; empty where it was not trained."""


class Rows(NamedTuple):
    """What was read."""

    trials: list[Trial]
    keys: list[str]
    """What was searched."""
    problems: list[str]
    """A phrase for each thing that is damaged or missing."""


def read(folder: Path) -> Rows:
    """The sound rows of a search's folder, and what is wrong with the others; it never raises."""
    trials, keys, problems = dict[int, Trial](), list[str](), list[str]()
    try:
        with (folder / "trials.csv").open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not {"number", "state", "objective"} <= {*(reader.fieldnames or ())}:
                raise ValueError("its first line is not that of a study")
            keys = [key for key in reader.fieldnames or () if key not in COLUMNS]
            for line, row in enumerate(reader, 2):
                trial = _trial(row, keys)
                if trial is None or trials.setdefault(trial.number, trial) is not trial:
                    problems.append(f"trials.csv is damaged (line {line})")
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"trials.csv cannot be read ({unreadable(error)})")
    return Rows([*trials.values()], keys, problems or _missing(folder, [t.state for t in trials.values()]))


def _missing(folder: Path, states: list[str]) -> list[str]:
    """A phrase for each kind of trial that `summary.json` has counted more of than there are rows."""
    try:
        counts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["trials"]
        return [
            f"trials.csv is damaged ({found} {state.replace('complete', 'completed')} trials of {count})"
            for state, count in counts.items()
            if state != "stopped" and (found := states.count(state)) < int(count)
        ]
    except FileNotFoundError:
        return []  # the search goes on, or was killed
    except (OSError, ValueError) as error:
        return [f"summary.json is damaged ({unreadable(error)})"]
    except (KeyError, TypeError, AttributeError):
        return ["summary.json is damaged (it does not count the trials)"]


def _trial(row: dict[str, str], keys: list[str]) -> Trial | None:
    """A row of `trials.csv`; None where it is cut off or too long, or has no numbers where they belong."""
    if None in (*row, *row.values()):
        return None
    with suppress(ValueError):
        objective = float(row["objective"]) if row["objective"] else None
        trial = Trial(
            number=int(row["number"]),
            state=row["state"],
            reason=row.get("reason", ""),
            settings={key: _value(row[key]) for key in keys if row[key] != ""},
            costs={key: int(row[key]) for key in budget.COSTS if row.get(key)},
            objective=objective,
            seconds=float(row["seconds"]) if row.get("seconds") else None,
            epochs=[],
            seeds=[float(value) for value in row.get("seeds", "").split()],
            folder=row.get("folder", ""),
        )
        told = (objective is not None) == (trial.state == "complete")
        # A mean less its error may be below 0.
        return trial if told and -100 <= (objective or 0.0) <= 100 else None
    return None


def _value(text: str) -> int | float | str:
    """A number as a search writes it; whatever is spelled otherwise, such as 007, is the text that was typed.

    So are nan and inf, which no range spans.
    """
    for kind in (int, float):
        with suppress(ValueError):
            number: int | float = kind(text)
            if math.isfinite(number) and repr(number) == text:
                return number
    return text
