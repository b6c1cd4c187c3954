"""What the folder of one run holds. Nothing here raises for a damaged or half-finished one: its reason is told."""

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bantam import budget
from bantam.data import scored_on
from bantam.overrides import resuming
from bantam.report.numbers import plural
from bantam.training import folder as record
from bantam.training import saved
from bantam.training.costs import check_budget
from bantam.training.loop import Epoch

COLLAPSE = 5.0
"""Points below its best epoch at which a network ends that counts as fallen back."""


@dataclass
class Run:
    """What the folder of one run holds, as far as it can be read."""

    folder: Path
    config: InitVar[saved.Saved | None]
    """None where it is missing or damaged."""
    result: dict[str, Any]
    """`result.json`; empty where it is missing or damaged."""
    history: list[Epoch]
    problems: list[str]
    """What is missing or damaged, a sentence each."""

    def __post_init__(self, config: saved.Saved | None) -> None:
        result, settings = self.result, config.settings if config else {}
        self.settings = {key: value for key, value in settings.items() if not key.startswith("tracker.")}
        """The composed configuration under its dotted keys."""
        self.overrides = config.overrides if config else []
        """What was typed."""
        typed = dict(item.split("=", 1) for item in self.overrides if "=" in item)
        called = (source.get(key) for source in (result, typed) for key in ("experiment", "model"))
        self.name = str(next(filter(None, called), self.folder.name))
        """The experiment, or the model where there is none."""
        ended = (self.folder / record.RESULT).exists()
        self.state = str(result.get("verdict") or ("damaged" if ended else "unfinished"))
        """The verdict of a run that has ended; unfinished without a `result.json`, damaged with one that is."""
        self.layers = _layers(result, config)
        self.objective: float | None = result.get("objective")
        """Mean accuracy of the last epochs in percent."""
        self.seed: int | None = settings.get("seed") if result.get("seed") is None else result["seed"]
        self.target = number(settings.get("target.accuracy"))
        """Percent; nan where the configuration does not say it."""
        self.last: list[float] = result.get("last_accuracies") or []
        """Accuracies of the last epochs in percent, which the target is about."""
        self.last_by_epoch = [*enumerate(self.last, max(1, len(self.history) - len(self.last) + 1))]
        self.accuracies = [epoch.accuracy for epoch in self.history]
        """Percent, an epoch each."""
        self.fallen = bool(self.history) and max(self.accuracies) - self.accuracies[-1] > COLLAPSE
        """It ended far below its best epoch."""
        self.short = len(self.history) < number(settings.get("target.last_epochs"))
        """Fewer epochs than the target is about: what its last epochs are like cannot be said."""
        self.scored_images: int = result.get("scored_images") or 0
        split = str(result.get("split", "test"))
        if self.history:
            split = "test" if self.history[-1].validation_accuracy is None else "validation"
        self.split = scored_on({"split": split, "data": result.get("data")})
        """The images that were scored: test, validation, or held-out where neither was there."""
        self.images = f"{self.scored_images:,} {self.split} images of {result.get('data')}"
        self.confusion: list[list[int]] = result.get("confusion") or []
        """Truth by guess; empty in folders of a Bantam that did not write it."""
        names: list[str] = result.get("classes") or []
        numbers = [str(i) for i in range(len(self.confusion))]
        self.classes = names if len(names) == len(numbers) else numbers
        self.at_chance = bool(result.get("at_chance"))
        """The network never did better than always guessing the most frequent class."""
        self.verdict = self.state + " (at chance)" * self.at_chance
        self.judged = self.state in ("met", "not met")
        """Whether the target was met, or was not."""
        self.reason = ". ".join(filter(None, [*self.problems, str(result.get("reason") or "")]))
        """Why the run is in its state, with what is damaged."""


def number(value: Any) -> float:
    """A number as it is; nan for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def read_run(folder: Path) -> Run:
    """Read a run's folder; whatever is damaged or missing becomes a problem of the run."""
    problems: list[str] = []

    def attempt(read: Callable[[Path], Any]) -> Any:
        """What can be read of it; None where it cannot, which is a problem more."""
        try:
            return read(folder)
        except ValueError as error:  # without the folder, which is shown beside it
            problems.append(" ".join(str(error).replace(f"{folder}/", "").split()))

    config: saved.Saved | None = attempt(saved.load)
    if config is None:
        there = (folder / ".hydra" / "config.yaml").exists()
        problems[-1] = f"its configuration in .hydra is {'damaged' if there else 'missing'} ({problems[-1]})"
    elif wrong := config.wrong:
        problems.append(wrong)
    ended = (folder / record.RESULT).exists()
    read: tuple[dict[str, Any], list[str]] = (attempt(record.load_result) if ended else None) or ({}, [])
    result, damaged = read
    problems += [f"{record.RESULT} is damaged: {what}" for what in damaged]
    history: list[Epoch] = []
    if (folder / record.HISTORY).exists():
        history = attempt(record.read_history) or []
    elif result.get("objective") is not None:
        problems.append(f"{record.HISTORY} is missing")
    if history and (contradiction := record.contradiction(history, result)):
        problems.append(contradiction)
    if not ended:
        problems.append(_unfinished(folder, history, config))
    return Run(folder, config, result, history, problems)


def _unfinished(folder: Path, history: list[Epoch], config: saved.Saved | None) -> str:
    planned, checkpoint = config and config.settings.get("epochs"), folder / record.CHECKPOINT
    count = len(history)
    done = f"{count} of {plural(planned, 'epoch')}" if isinstance(planned, int) else plural(count, "epoch")
    sentence = f"it has no {record.RESULT}: {done} {'is' if count == 1 else 'are'} done"
    if checkpoint.exists():
        sentence += f", the last one at {datetime.fromtimestamp(checkpoint.stat().st_mtime):%Y-%m-%d %H:%M}. "
        sentence += f"It is running, or was interrupted and goes on with {resuming(folder)}"
    return sentence


def _layers(result: dict[str, Any], config: saved.Saved | None) -> list[budget.Layer]:
    """The layer table that the folder holds; where it holds none, of the network that its settings build."""
    if rows := result.get("layers"):
        lists = ([(key, tuple(v) if isinstance(v, list) else v) for key, v in row.items()] for row in rows)
        return [budget.Layer(**dict(row)) for row in lists]
    try:
        return check_budget(config.config, {"model": result.get("model")})[0] if config else []
    except budget.OverBudget as error:
        return error.layers
    except Exception:  # a folder of another version may name what there is no more
        return []


def is_run(folder: Path) -> bool:
    """Whether a folder holds a trace of a run."""
    return any((folder / name).exists() for name in (".hydra", record.RESULT, record.HISTORY, record.CHECKPOINT))
