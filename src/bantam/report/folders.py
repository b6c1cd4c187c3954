"""What the folders of runs, multiruns and studies hold.

Nothing here raises for a folder that is damaged or half-finished: it appears with the reason.
"""

import csv
import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bantam import budget, config
from bantam.training import folder as record
from bantam.training import setup
from bantam.training.loop import Epoch

AHEAD = "Trial {} is ahead on the validation images; it was not scored on the test images."

NUMBERS = (
    *("objective", "best_accuracy", "best_epoch", "parameters", "multiply_adds", "seed", "epochs"),
    *("scored_images", "train_images", "threads"),
)
"""Keys of `result.json` that must be numbers, not below 0, where they are there."""


@dataclass
class Run:
    """What the folder of one run holds, as far as it can be read."""

    folder: Path
    name: str
    """The experiment, or the model where there is none."""
    result: dict[str, Any]
    """`result.json`; empty where it is missing or damaged."""
    history: list[Epoch]
    settings: dict[str, Any]
    """The composed configuration under its dotted keys."""
    overrides: list[str]
    """What was typed."""
    layers: list[budget.Layer]
    problems: list[str]
    """What is missing or damaged, a sentence each."""

    @property
    def state(self) -> str:
        """The verdict of a run that has ended; unfinished without a `result.json`, damaged with one that is."""
        ended = (self.folder / record.RESULT).exists()
        return str(self.result.get("verdict") or ("damaged" if ended else "unfinished"))

    @property
    def reason(self) -> str:
        """Why the run is in its state, with what is damaged."""
        return ". ".join([*self.problems, *([str(self.result["reason"])] if self.result.get("reason") else [])])

    @property
    def objective(self) -> float | None:
        """Mean accuracy of the last epochs in percent."""
        return self.result.get("objective")

    @property
    def seed(self) -> int | None:
        return self.result.get("seed", self.settings.get("seed"))

    @property
    def target(self) -> float:
        """Percent; nan where neither the result nor the configuration says it."""
        return number(self.settings.get("target.accuracy"))

    @property
    def last(self) -> list[float]:
        """Accuracies of the last epochs in percent, which the target is about."""
        return [float(value) for value in self.result.get("last_accuracies") or []]

    @property
    def scored_images(self) -> int:
        return int(self.result.get("scored_images") or 0)

    @property
    def split(self) -> str:
        """The images that were scored: test or validation."""
        if self.history:
            return "test" if self.history[-1].validation_accuracy is None else "validation"
        return str(self.result.get("split", "test"))

    @property
    def confusion(self) -> list[list[int]]:
        """Truth by guess; empty in folders of a Bantam that did not write it."""
        matrix = self.result.get("confusion")
        square = isinstance(matrix, list) and all(
            isinstance(row, list) and len(row) == len(matrix) and all(isinstance(n, int) for n in row)
            for row in matrix
        )
        return matrix if square and matrix else []

    @property
    def classes(self) -> list[str]:
        named, count = self.result.get("classes"), len(self.confusion)
        return [str(name) for name in (named if isinstance(named, list) and len(named) == count else range(count))]


def number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def read_run(folder: Path) -> Run:
    """Read a run's folder; whatever is damaged or missing becomes a problem of the run."""
    problems: list[str] = []
    settings, overrides = _settings(folder, problems)
    result: dict[str, Any] = {}
    if (folder / record.RESULT).exists():
        try:
            result = record.read_result(folder)
        except ValueError as error:
            problems.append(_within(folder, error))
    for key in NUMBERS:
        if result.get(key) is not None and not number(result[key]) >= 0:
            problems.append(f"{record.RESULT} is damaged: {key} is {result.pop(key)!r}")
    last = result.get("last_accuracies")
    if last is not None and not (isinstance(last, list) and all(number(value) >= 0 for value in last)):
        problems.append(f"{record.RESULT} is damaged: last_accuracies are {result.pop('last_accuracies')!r}")
    history: list[Epoch] = []
    if (folder / record.HISTORY).exists():
        try:
            history = record.read_history(folder)
        except ValueError as error:
            problems.append(_within(folder, error))
    elif result.get("objective") is not None:
        problems.append(f"{record.HISTORY} is missing")
    if not (folder / record.RESULT).exists():
        problems.append(_unfinished(folder, history, settings))
    name = result.get("experiment") or result.get("model") or _chosen(overrides) or folder.name
    return Run(folder, str(name), result, history, settings, overrides, _layers(folder, result), problems)


def _within(folder: Path, error: Exception) -> str:
    """An error's sentence without the folder, which is shown beside it."""
    return " ".join(str(error).replace(f"{folder}/", "").split())


def _settings(folder: Path, problems: list[str]) -> tuple[dict[str, Any], list[str]]:
    try:
        # Unresolved: data.root may ask for an environment variable that this machine does not have.
        composed = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=False)
        overrides = [str(item) for item in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
        settings = dict(config.flat(composed))
        for key, value in settings.items():
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            if reference and reference[1] in settings:
                settings[key] = settings[reference[1]]
        return settings, overrides
    except Exception as error:  # whatever a damaged or foreign YAML file leads to
        missing = not (folder / ".hydra" / "config.yaml").exists()
        what = "missing" if missing else f"damaged ({type(error).__name__})"
        problems.append(f"its configuration in .hydra is {what}")
        return {}, []


def _chosen(overrides: list[str]) -> str:
    chosen = dict(item.split("=", 1) for item in overrides if "=" in item)
    return chosen.get("experiment") or chosen.get("model") or ""


def _unfinished(folder: Path, history: list[Epoch], settings: dict[str, Any]) -> str:
    planned = settings.get("epochs")
    done = f"{len(history)} of {planned} epochs" if planned else f"{len(history)} epochs"
    sentence = f"it has no {record.RESULT}: {done} are done"
    if (folder / record.CHECKPOINT).exists():
        when = datetime.fromtimestamp((folder / record.CHECKPOINT).stat().st_mtime)
        sentence += (
            f", the last one at {when:%Y-%m-%d %H:%M}. It is running, or was interrupted and goes on with resume="
        )
    return sentence


def _layers(folder: Path, result: dict[str, Any]) -> list[budget.Layer]:
    """The layer table that the folder holds; where it holds none, of the network that its settings build."""
    with suppress(TypeError):
        rows = [budget.Layer(**{**row, "shape": tuple(row["shape"])}) for row in result.get("layers") or []]
        if rows:
            return rows
    with suppress(Exception):  # a folder of another version may name what there is no more
        cfg: Any = OmegaConf.load(folder / ".hydra" / "config.yaml")
        info = setup.RunInfo(folder, {"model": result.get("model")}, 1, None)
        try:
            return setup.check_budget(cfg, info)[0]
        except budget.OverBudget as error:
            return error.layers
    return []


@dataclass(frozen=True)
class Trial:
    """A row of `trials.csv` with the epochs of the trial's folder."""

    number: int
    state: str
    reason: str
    settings: dict[str, Any]
    parameters: int | None
    objective: float | None
    """Percent of the validation images; None where it was not trained to its end."""
    seconds: float | None
    epochs: list[tuple[int, float]]
    """Epoch and accuracy in percent."""


@dataclass
class Study:
    """What the folder of a search holds."""

    folder: Path
    trials: list[Trial]
    keys: list[str]
    """What was searched."""
    problems: list[str]
    best: Run | None
    """The run of the best trial."""
    two: bool = False
    """Parameters were an objective beside the accuracy: the result is the front, not the best trial."""
    confirmations: list[Run] = field(default_factory=list)
    """Runs of the best trials on fresh seeds, named after their trial; on validation and on test images."""
    confirmation: dict[str, Any] = field(default_factory=dict)
    """`confirm.json`."""

    @property
    def completed(self) -> list[Trial]:
        return [t for t in self.trials if t.objective is not None]

    def count(self, state: str) -> int:
        return sum(t.state == state for t in self.trials)

    @property
    def limit(self) -> int | None:
        """`budget.parameters`."""
        value = self.best.settings.get("budget.parameters") if self.best else None
        return value if isinstance(value, int) else None

    @property
    def front(self) -> list[Trial]:
        """Completed trials that no other beats in accuracy with as few parameters, by parameters."""
        sized = [t for t in self.completed if t.parameters is not None]
        return [sized[i] for i in budget.front([(t.parameters or 0, t.objective or 0.0) for t in sized])]


COLUMNS = ("number", "state", "reason", "parameters", "objective", "seconds", "folder")
"""Columns of `trials.csv` beside the searched keys."""


def read_study(folder: Path) -> Study:
    """Read a study's folder: `trials.csv`, the histories of its trials, and its confirmation."""
    problems: list[str] = []
    found: list[Trial] = []
    keys: list[str] = []
    try:
        with (folder / "trials.csv").open(newline="") as stream:
            rows = csv.DictReader(stream)
            keys = [key for key in rows.fieldnames or [] if key not in COLUMNS]
            for line, row in enumerate(rows, 2):
                try:
                    found.append(_trial(folder, row, keys))
                except (KeyError, TypeError, ValueError, AssertionError):
                    problems.append(f"line {line} of trials.csv is damaged")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"trials.csv cannot be read: {error}")
    study = Study(folder, found, keys, problems, None, has_front(folder))
    if study.completed:
        number = max(study.completed, key=lambda t: t.objective or -math.inf).number
        if (folder / str(number)).is_dir():
            study.best = read_run(folder / str(number))
            study.best.name = f"trial {number}"
    _read_confirmation(study)
    return study


def has_front(study: Path) -> bool:
    """Whether a study has two objectives, by what its trials were told."""
    for hydra in study.glob("[0-9]*/.hydra/hydra.yaml"):
        with suppress(Exception):  # it may be damaged in any way: that of another trial says the same
            return len(OmegaConf.load(hydra).hydra.sweeper.objectives) == 2
    return False


def _trial(folder: Path, row: dict[str, str], keys: list[str]) -> Trial:
    number = int(row["number"])
    epochs: list[tuple[int, float]] = []
    if row["folder"]:
        with suppress(ValueError):  # damaged or not begun: its row says what became of it
            epochs = [(e.epoch, e.accuracy) for e in record.read_history(folder / row["folder"])]
    return Trial(
        number,
        row["state"],
        row["reason"],
        {key: _value(row[key]) for key in keys if row[key] != ""},
        int(row["parameters"]) if row["parameters"] else None,
        float(row["objective"]) if row["objective"] else None,
        float(row["seconds"]) if row["seconds"] else None,
        epochs,
    )


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _read_confirmation(study: Study) -> None:
    folder = study.folder / "confirm"
    runs = [read_run(path) for path in _ordered(folder) if is_run(path)] if folder.is_dir() else []
    for r in runs:
        study.problems += [f"confirm/{r.folder.name}: {problem}" for problem in r.problems]
    for r in runs:
        r.name = r.folder.name.partition("-")[0].replace("_", " ")
    study.confirmations = runs
    if (folder / "confirm.json").exists():
        try:
            read = json.loads((folder / "confirm.json").read_text())
            study.confirmation = read if isinstance(read, dict) else {}
        except (OSError, ValueError) as error:
            study.problems.append(f"confirm/confirm.json cannot be read: {error}")


@dataclass
class Evidence:
    """Everything that the given folders hold."""

    runs: list[Run] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that are nothing of ours, and why."""


def is_run(folder: Path) -> bool:
    """Whether a folder holds a trace of a run."""
    names = (".hydra", record.RESULT, record.HISTORY, record.CHECKPOINT)
    return any((folder / name).exists() for name in names)


def _ordered(folder: Path) -> list[Path]:
    """The folders in a folder, job 2 before job 10."""
    paths = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def gather(folders: Iterable[Path]) -> Evidence:
    """Read runs, multiruns and studies, each folder once. Raises ValueError for one that does not exist."""
    found = Evidence()
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give that of a run, a multirun or a study")
        if not _look(folder, found, seen, depth=4):
            found.broken.append((folder, "it holds no run, no multirun and no study"))
    return found


def _look(folder: Path, evidence: Evidence, seen: set[Path], depth: int) -> bool:
    """Add what a folder and those in it hold; returns whether there was anything."""
    if folder.resolve() in seen:
        return True
    seen.add(folder.resolve())
    try:
        if (folder / "trials.csv").exists():
            evidence.studies.append(read_study(folder))
            return True
        if is_run(folder):
            evidence.runs.append(read_run(folder))
            return True
        inner = _ordered(folder) if depth else []
    except OSError as error:
        evidence.broken.append((folder, f"it cannot be read: {error.strerror}"))
        return True
    found = False
    for path in inner:
        if _look(path, evidence, seen, depth - 1):
            found = True
        elif path.name.isdigit():  # where a job should be
            evidence.broken.append((path, "it is empty" if not any(path.iterdir()) else "it holds no run"))
            found = True
    return found
