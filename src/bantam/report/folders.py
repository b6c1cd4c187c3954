"""What the folders of multiruns and studies hold, and where runs are in them.

Nothing here raises for a folder that is damaged or half-finished: it appears with the reason.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bantam import budget, trials_csv
from bantam.overrides import command_line
from bantam.report.runs import Run, is_run, read_run
from bantam.suggestions import SEARCH_AGAIN
from bantam.training import folder as record
from bantam.training import saved
from bantam.trials_csv import Trial

AHEAD = "Trial {} is ahead on the validation images; it was not scored on the test images."


@dataclass
class Study:
    """What the folder of a search holds."""

    folder: Path
    trials: list[Trial] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """What was searched."""
    problems: list[str] = field(default_factory=list)
    best: list[Run] = field(default_factory=list)
    """The runs of the most accurate trial: of its first seed and, where it has them, of the others."""
    objectives: Sequence[str] = ("accuracy",)
    """With a cost beside the accuracy the result is the front, not the best trial."""
    confirmations: list[Run] = field(default_factory=list)
    """Runs of the best trials on fresh seeds, named after their trial; on validation and on test images."""
    confirmation: dict[str, Any] = field(default_factory=dict)
    """`confirm.json`."""

    @property
    def multi_objective(self) -> bool:
        return len(self.objectives) == 2

    @property
    def winner(self) -> str:
        """What the most accurate trial is called: with two objectives none is the best."""
        return "most accurate" if self.multi_objective else "best"

    @property
    def cost(self) -> str:
        """The cost that was an objective, or where none was the one by which networks are compared."""
        return self.objectives[1] if self.multi_objective else "parameters"

    @property
    def completed(self) -> list[Trial]:
        return [t for t in self.trials if t.objective is not None]

    @property
    def top(self) -> Trial | None:
        """The most accurate trial."""
        return max(self.completed, key=lambda t: t.objective or 0.0, default=None)

    @property
    def front(self) -> list[Trial]:
        """Completed trials that no other beats in accuracy at as low a cost, by cost."""
        counted = [t for t in self.completed if self.cost in t.costs]
        return [counted[i] for i in budget.front([(t.costs[self.cost], t.objective or 0.0) for t in counted])]


def read_study(folder: Path) -> Study:
    """Read a study's folder: `trials.csv`, the histories of its trials, and its confirmation."""
    trials, keys, problems = trials_csv.read(folder)
    study = Study(folder, trials, keys, [f"{what}: {SEARCH_AGAIN}" for what in problems])
    study.objectives = objectives(folder)
    lost = []
    for trial in study.trials:
        if trial.folder and not leads_out(folder / trial.folder, folder, (".", record.HISTORY)):
            try:
                trial.epochs.extend((e.epoch, e.accuracy) for e in record.read_history(folder / trial.folder))
            except ValueError as error:
                lost += [str(error)] * (trial.state in ("complete", "pruned"))  # others may not have begun
    if lost:
        study.problems.append(f"{lost[0]}" + f"; and {len(lost) - 1} more" * (len(lost) > 1))
    if study.top and (best := folder / str(study.top.number)).is_dir():
        study.best = [read_run(path) for path in (best, *record.seed_folders(best)) if not leads_out(path, folder)]
    if (folder / "confirm").is_dir():
        _read_confirmation(study, folder / "confirm")
    return study


def objectives(study: Path) -> Sequence[str]:
    """What a study was about, by what its trials were told."""
    for trial in study.glob("[0-9]*/.hydra"):
        with suppress(Exception):  # it may be damaged in any way: that of another trial says the same
            if not leads_out(trial.parent, study):
                found = list(saved.load(trial.parent).hydra.sweeper.objectives)
                return found if len(found) == 2 and found[1] in budget.COSTS else ("accuracy",)
    return ("accuracy",)


def _read_confirmation(study: Study, folder: Path) -> None:
    paths = (path for path in _ordered(folder) if is_run(path) and not leads_out(path, folder))
    study.confirmations = [read_run(path) for path in paths]
    for r in study.confirmations:
        study.problems += [f"confirm/{r.folder.name}: {problem}" for problem in r.problems]
        r.name = r.folder.name.partition("-")[0].replace("_", " ")
    try:
        read = json.loads((folder / "confirm.json").read_text(encoding="utf-8"))
        if not isinstance(read, dict) or type(read.get("winner")) is not int:
            raise ValueError("it has no winner")
        study.confirmation = read
    except FileNotFoundError:
        return  # the confirmation goes on, or was stopped
    except (OSError, ValueError) as error:
        study.problems.append(f"confirm/confirm.json cannot be read ({error}): confirm.py writes it anew")


@dataclass
class Contents:
    """Everything that the given folders hold."""

    runs: list[Run] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that are nothing of ours, and why."""


def _ordered(folder: Path) -> list[Path]:
    """The folders in a folder, job 2 before job 10."""
    paths = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(paths, key=lambda path: (len(path.name), path.name))


LINKS = (
    *(".", ".hydra", ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"),
    *(record.RESULT, record.HISTORY, record.CHECKPOINT, "export.json", "mistakes.png", "confusion.png"),
    *("trials.csv", "summary.json", "confirm", "confirm/confirm.json"),
)
"""What is read in a folder, which may be somebody else's: no link of theirs shows a file of this machine."""


def leads_out(folder: Path, root: Path, names: Sequence[str] = LINKS) -> str:
    """The first of these files in a folder that is a link out of the one that was given; empty where none is."""
    inside = os.path.realpath(root)  # unlike resolve() it takes a link to itself as it is
    return next((name for name in names if not Path(os.path.realpath(folder / name)).is_relative_to(inside)), "")


def gather(folders: Iterable[Path]) -> Contents:
    """Read runs, multiruns and studies, each folder once. Raises ValueError for one that does not exist."""
    found, seen = Contents(), set[Path]()

    def look(folder: Path, root: Path, depth: int) -> bool:
        """Add what a folder and those in it hold; returns whether there was anything."""
        if folder.resolve() in seen:
            return True
        seen.add(folder.resolve())
        try:
            if link := leads_out(folder, root):
                found.broken.append((folder, f"{link} is a link out of {root}: it is not followed"))
            elif any((folder / name).exists() for name in ("trials.csv", "summary.json")):
                found.studies.append(read_study(folder))
            elif is_run(folder):
                found.runs.append(read_run(folder))
            else:
                inner = _ordered(folder) if depth else []
                nothing = [path for path in inner if not look(path, root, depth - 1)]
                jobs = [path for path in nothing if path.name.isdigit()]  # where a run should be
                found.broken += [
                    (path, f"it {'holds no run' if any(path.iterdir()) else 'is empty'}") for path in jobs
                ]
                return len(inner) > len(nothing) or bool(jobs)
        except OSError as error:
            found.broken.append((folder, f"it cannot be read: {error.strerror}"))
        return True

    for folder in folders:
        if not folder.is_dir():
            several = [Path(part) for part in str(folder).split(",") if part]
            if "," in str(folder) and several and all(part.is_dir() for part in several):
                given = command_line(several)
                raise ValueError(f"{folder} is no folder: give folders with spaces instead of commas, {given}")
            raise ValueError(f"{folder} is no folder: give that of a run, a multirun or a study")
        if not look(folder, folder, depth=4):
            found.broken.append((folder, "it holds no run, no multirun and no study"))
    return found
