"""What a search found: its best trial or its front, the summary, and the experiments that repeat them."""

import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial

from bantam import budget, option_files
from bantam.config import Config
from bantam.overrides import command_line, override
from bantam.own import code
from bantam.search import distributions, seeds, trials
from bantam.search.space import Search
from bantam.search.trials import Trials
from bantam.training import folder as files
from bantam.training import saved

NOT_OVERRIDABLE = ("seed", "data", "dry_run", "resume")
"""Keys that a confirmation sets itself, so that its overrides may not."""


PINNED = ("device", "precision", "threads", "kernels")
"""Keys that an experiment takes from the result of its trial: what auto became there."""


def best(listed: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The completed trial with the highest accuracy, the first of equals."""
    done = _trained(listed)
    return max(done, key=lambda trial: trial.values[0], default=None)


def front(listed: Sequence[FrozenTrial], cost: str = "parameters") -> list[FrozenTrial]:
    """The completed trials that no other beats in accuracy at as low a cost, by cost."""
    done = [trial for trial in _trained(listed) if cost in trial.user_attrs]
    return [done[i] for i in budget.front([(t.user_attrs[cost], t.values[0]) for t in done])]


def _trained(listed: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The completed trials, without those that have the result of another one."""
    states = zip(listed, trials.states(listed), strict=True)
    return [trial for trial, state in states if state == "complete" and "same_as" not in trial.user_attrs]


def result(search: Search, listed: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that a search is for: its best, or with two objectives the front, by cost."""
    if search.multi_objective:
        return front(listed, search.cost)
    found = best(listed)
    return [] if found is None else [found]


def keep_best_weights(search: Search, listed: Trials, settled: set[int] | None = None) -> None:
    """Delete the weights and checkpoints of all trials that have ended, except those of the result.

    `settled` holds the numbers of those that are deleted already, and gets those that are deleted now.
    """
    settled = set() if settled is None else settled
    kept = {trial.number for trial in result(search, listed)}
    if search.settings.seeds > 1:  # what is queued again takes over the seeds that are trained
        done = {number for trial in listed if trial.state.is_finished() for number in trials.history(trial)}
        states = zip(listed, listed.states, strict=True)
        kept |= {trial.number for trial, state in states if state == "stopped" and trial.number not in done}
    for number in trials.ended(listed) - settled - kept:
        own = search.folder / str(number)
        for folder in (own, *files.seed_folders(own)):
            for name in (files.WEIGHTS, files.CHECKPOINT, files.CHECKPOINT_BEFORE):
                (folder / name).unlink(missing_ok=True)
        settled.add(number)


def remove_leftovers(search: Search, listed: Sequence[FrozenTrial]) -> None:
    """Delete what killed processes left half written in the folders of the study and of the trials that ended."""
    ended = [search.folder / str(trial.number) for trial in listed if trial.state.is_finished()]
    further = [folder for trial in ended for folder in files.seed_folders(trial)]
    confirmed = search.folder / "confirm"
    also = (search.folder / "experiment", confirmed, confirmed / "experiment")
    for folder in (search.folder, *also, *ended, *further):
        files.remove_leftovers(folder)


def write(search: Search, listed: Sequence[FrozenTrial], why: str) -> list[FrozenTrial]:
    """Write `trials.csv`, `summary.json` and an experiment for each trial of the result; returns the result.

    `why` says what ended the search: enough, timeout, the name of a signal, or an error in one sentence.
    """
    trials.write(search.folder, listed)
    found, counts = result(search, listed), trials.count(listed)
    several = search.settings.seeds > 1
    summary: dict[str, Any] = {
        "study": search.name,
        "began": min((t.datetime_start for t in listed if t.datetime_start), default=None),
        "ended": max((t.datetime_complete for t in listed if t.datetime_complete), default=None),
        "ended_by": why,
        "images": _images(search),
        **({"seeds": seeds.of_trials(search), "aggregate": search.settings.aggregate} if several else {}),
        "training_seconds": sum(trials.seconds(trial) or 0.0 for trial in listed),
        "trials": {state: counts[state] for state in (*trials.FINISHED, "over budget", "stopped")},
        "copies": sum("same_as" in trial.user_attrs for trial in listed),
    }
    if search.multi_objective:
        summary["front"] = [_entry(search, trial) for trial in found]
    else:
        summary["best"] = _entry(search, found[0]) if found else None
    files.write(search.folder / "summary.json", (json.dumps(summary, indent=2, default=str) + "\n").encode())
    if found:
        _write_experiments(search, found)
    return found


def name(search: Search, trial: FrozenTrial) -> str:
    """What the experiment is called that repeats a trial of the result."""
    return f"trial_{trial.number}" if search.multi_objective else "best"


def line(search: Search, trial: FrozenTrial) -> str:
    """The command that repeats a trial of the result, all its seeds, or why there is none."""
    why_not = lacks(search, trial)
    return f"It cannot be run again: {why_not}" if why_not else _line(search, trial)


def lacks(search: Search, trial: FrozenTrial) -> str:
    """What a trial lacks that is needed to run it again; empty where nothing."""
    file = search.folder / "experiment" / f"{name(search, trial)}.yaml"
    for place, kind in ((file.parent, "folder"), (file, "file")):
        if place.exists() and place.is_dir() != (kind == "folder"):
            return f"{place} is no {kind}: move it away"
    if _is_whole(file, trial):
        return ""
    return damage_of(search.folder / str(trial.number))


def damage_of(trial: Path) -> str:
    """Why a trial's folder does not say how it was trained; empty where it does."""
    if not trial.exists():
        return f"{trial} is gone: restore it"
    try:
        experiment(trial)
    except ValueError as error:
        return str(error)
    return ""


def _is_whole(file: Path, trial: FrozenTrial) -> bool:
    """Whether the experiment of a trial is there, and needs nothing of the trial's folder, which may be gone."""
    try:
        text = file.read_text(encoding="utf-8")
        found = OmegaConf.create(text)
        keys = {entry.name for entry in fields(Config)} - {"tracker"}
        of_trial = re.match(rf"(# @.*\n)+# Trial {trial.number}\b", text)
        return (
            bool(of_trial)
            and not option_files.is_cut(text)
            and keys <= found.keys()
            and "_sha256_" not in found.model
        )
    except Exception:  # whatever a damaged YAML file leads to
        return False


def _line(search: Search, trial: FrozenTrial) -> str:
    """The command that runs the experiment of a trial, with several seeds one after the other."""
    all_seeds = seeds.of_trials(search)
    several = len(all_seeds) > 1
    chosen = [
        override("experiment", name(search, trial)),
        *([f"seed={','.join(map(str, all_seeds))}"] * several),
        *own_network(search.folder / str(trial.number)),
    ]
    return command_line(["python", sys.argv[0], *["-m"] * several, "--config-dir", search.folder, *chosen])


def _write_experiments(search: Search, found: Sequence[FrozenTrial]) -> None:
    experiments = search.folder / "experiment"
    names = {name(search, trial): trial for trial in found}
    for old in experiments.glob("trial_*.yaml"):
        if old.stem not in names:  # it was on the front of a shorter search
            old.unlink()
    for experiment_name, trial in names.items():
        file, own, repeats = experiments / f"{experiment_name}.yaml", search.folder / str(trial.number), ""
        if search.settings.seeds > 1:
            reached = f"{trial.values[0]!r} %{seeds.in_words(search, trial)}"
            repeats = f"# The trial reached {reached}. This trains all its seeds:\n# {_line(search, trial)}\n"
        try:
            write_experiment(file, experiment(own, repeats=repeats))
            write_options(search.folder, own, Path(sys.argv[0]).absolute())
        except (ValueError, FileExistsError):  # its folder is gone or damaged: `line` says so
            if not _is_whole(file, trial):
                with suppress(OSError):
                    file.unlink()


def _images(search: Search) -> dict[str, Any]:
    """What all trials were trained and scored on, in `summary.json`."""
    images = search.prepared.data
    return {
        "data": images.name,
        "checksum": images.checksum,
        "train_images": len(images.train_labels),
        "validation_images": len(images.held_out_labels),
        "instead": images.instead,
    }


def _entry(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    """A trial of the result in `summary.json`."""
    return {
        "number": trial.number,
        "objective": trial.values[0],
        **({"objectives": seeds.objectives(trial)} if search.settings.seeds > 1 else {}),
        **{key: trial.user_attrs.get(key) for key in budget.COSTS},
        "settings": distributions.by_key(trial.params),
        "folder": str(search.folder / str(trial.number)),
    }


def experiment(trial: Path, overrides: Sequence[str] = (), repeats: str = "") -> str:
    """An experiment that repeats a trial exactly: all it had, with the machine's choices pinned.

    Of several seeds it is the first; `repeats` are comments that say how all are trained. Raises ValueError where
    an override is no `key=value` of the trial's configuration, or `NOT_OVERRIDABLE`.
    """
    own = saved.load(trial)
    _ = own.checked  # of a damaged or foreign file there is nothing to repeat
    result = files.read_result(trial)
    for key in ("objective", *PINNED):
        if result.get(key) is None:
            raise ValueError(f"{trial / files.RESULT} is damaged ({key} is None): {files.REMEDY}")
    values = OmegaConf.to_container(own.config, resolve=False)
    assert isinstance(values, dict)
    values.pop("tracker", None)  # where others train it, theirs is another
    values |= {key: result[key] for key in PINNED}
    named = values.keys() - {"model"} if own_network(trial) else values.keys()
    groups = [{f"override /{group}": option} for group, option in own.choices.items() if group in named]
    plain = OmegaConf.create(values)
    for given in overrides:
        _apply(plain, given, trial)
    changed = f" With {' '.join(overrides)}." if overrides else ""
    seed = f" with seed {own.config.seed}" * bool(repeats)
    head = f"# Trial {trial.name}{seed}: {result['objective']!r} % of the validation images.{changed}\n{repeats}"
    return "# @package _global_\n" + head + OmegaConf.to_yaml(OmegaConf.merge({"defaults": groups}, plain))


def own_network(trial: Path) -> list[str]:
    """The override for a trial's network where that is of one's own: it must be typed, no experiment names it."""
    try:
        settings = saved.load(trial).config.get("model")
    except ValueError:  # what reads more of the folder says so
        return []
    own = isinstance(settings, DictConfig) and "_sha256_" in settings
    return [override("model", f"{trial / code.COPY}:{settings.get('_class_')}")] if own else []


def own_networks(folders: Iterable[Path]) -> list[list[str]]:
    """As `own_network`, of each of these trials: the same for all that have the same version of a network."""
    found, known = list[list[str]](), dict[tuple[Any, Any], list[str]]()
    for trial in folders:
        typed = own_network(trial)
        settings = saved.load(trial).config.model if typed else {}
        version = settings.get("_sha256_"), settings.get("_class_")
        found.append(known.setdefault(version, typed))
    return found


def write_options(folder: Path, trial: Path, script: Path) -> None:
    """Write the options of a trial that are not in `conf/` where its experiment will be: they may be gone later.

    `script` is train.py, with `conf/` beside it. A network of one's own has no option.
    """
    own = saved.load(trial)
    for group, option in own.choices.items():
        known = script.parent / "conf" / group / f"{option}.yaml"
        no_option = option is None or (group == "model" and "_sha256_" in own.config.model)
        if group in own.config and not no_option and not known.exists():
            file = folder / group / f"{option}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            text = OmegaConf.to_yaml(OmegaConf.create(saved.pinned(own.config)[group]))
            files.write(file, option_files.marked(text).encode())


def _apply(plain: DictConfig, given: str, trial: Path) -> None:
    """Change one key of a trial's configuration. Raises ValueError where it may not or cannot be changed."""
    key, equals, _ = given.partition("=")
    if key.partition(".")[0] in NOT_OVERRIDABLE:
        raise ValueError(f"{key} is set by the confirmation itself: leave {command_line([given])} out")
    if not equals or isinstance(OmegaConf.select(plain, key, default={}), Mapping):
        raise ValueError(f"{given} is no key=value of the trial in {trial}: see its .hydra/config.yaml")
    try:
        plain.merge_with_dotlist([given])
    except Exception as error:  # of YAML or of OmegaConf
        raise ValueError(f"{given} cannot be read: {' '.join(str(error).split())}") from error


def write_experiment(path: Path, text: str) -> None:
    """Write a file that `experiment` made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, option_files.marked(text).encode())


@dataclass(frozen=True)
class Candidate:
    """A trial and what it reached on fresh seeds, in percent of the validation images."""

    number: int
    searched: float
    """What it reached in the search."""
    objectives: list[float]
    """One a seed that was trained to its end."""
    missing: int
    """Seeds that diverged or failed."""

    @property
    def mean(self) -> float:
        """Mean over the seeds; below everything where a seed did not come to its end."""
        return statistics.fmean(self.objectives) if self.objectives and not self.missing else float("-inf")

    @property
    def deviation(self) -> float:
        """Standard deviation of a single seed."""
        return statistics.stdev(self.objectives) if len(self.objectives) > 1 else 0.0
