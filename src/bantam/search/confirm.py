"""Confirmation: one seed proves little, so the best trials get fresh seeds, and the winner the test images."""

import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from joblib import cpu_count
from omegaconf import OmegaConf

from bantam import budget, errors, option_files, trials_csv
from bantam.overrides import command_line, override
from bantam.report import folders
from bantam.search import terminal
from bantam.search.outcome import Candidate, damage_of, experiment, own_networks, write_experiment, write_options
from bantam.suggestions import SEARCH_AGAIN
from bantam.training import folder as files
from bantam.training import saved

OTHER = "or choose other trials of {} with --trials"
"""What helps as well where a trial's folder is damaged; the study's belongs into the braces."""


@dataclass(frozen=True)
class Confirmation:
    """What is trained again: the trials by name, on which seeds, from which images, into which folder."""

    folder: Path
    script: Path
    experiments: dict[str, str]
    """The text of each trial's experiment by its name."""
    networks: dict[str, list[str]]
    """What is typed beside an experiment: a network of one's own, trackers."""
    seeds: list[int]
    split: str
    """The override that keeps the study's validation images."""
    lock: list[int]
    """The descriptor that keeps others out, which what trains inherits: it may outlive this process."""

    def run(self, name: str, split: str, seed: int) -> Path:
        """The folder of one training."""
        return self.folder / f"{name}-{split}-{seed}"

    def experiment(self, name: str) -> Path:
        """The file of an experiment."""
        return self.folder / "experiment" / f"{name}.yaml"

    def write(self, folder: Path) -> None:
        """Write the experiments, and the options that only the trials have, into a folder for --config-dir."""
        for name, text in self.experiments.items():
            write_experiment(folder / "experiment" / f"{name}.yaml", text)
            write_options(folder, self.folder.parent / name.removeprefix(_name("")), self.script)


def confirm(
    study: Path,
    top: int,
    seeds: int,
    script: Path,
    numbers: Sequence[int] = (),
    overrides: Sequence[str] = (),
    test: bool = True,
    front: bool = False,
) -> None:
    """Train a study's best trials again and judge the best of them; writes `confirm/confirm.json`.

    The `top` trials, or those with the given `numbers`, or those of the `front` within the budget, are trained on
    `seeds` fresh seeds, to their end and scored on the study's validation images. The one with the highest mean is
    then trained on all training images with the same seeds and scored on the test images, unless `test` is false.
    What is finished already is not trained again. `overrides`, such as epochs=15, change all trials. `script` is
    train.py. Raises ValueError for a folder that is no study or has no completed trial, for a number that is none,
    for a study with two objectives, which has no best trial, where neither numbers are given nor `front`, and for
    overrides that `script` refuses, that are the confirmation's own affair, or that are not those of trials which
    are confirmed already; and InUse where another process confirms trials of the study.
    """
    trackers = [given for given in overrides if given.startswith("tracker")]
    changes = [given for given in overrides if given not in trackers]
    best = _choose(study, top, numbers, changes if front else None)
    with files.locked(study) as lock:
        _confirm(_plan(study, best, seeds, script, changes, trackers, lock), best, test, bool(overrides))


def _confirm(plan: Confirmation, best: list[tuple[int, float]], test: bool, changed: bool) -> None:
    """Train, rank and judge as planned; `changed` trials are first checked."""
    if changed:
        _check(plan)
    plan.write(plan.folder)
    _train(plan, "validation", plan.experiments, [plan.split])
    candidates = _rank(plan, best)
    winner, name = candidates[0], _name(candidates[0].number)
    terminal.show_ranking(candidates, len(plan.seeds))
    if winner.missing:
        results = {run: files.read_result(run) for run in (plan.run(name, "validation", s) for s in plan.seeds)}
        lost, result = next((run, found) for run, found in results.items() if found.get("objective") is None)
        raise ValueError(
            f"none of the {len(best)} trials of {plan.folder.parent} came to its end on every fresh seed; "
            f"{lost.name} {result['verdict']}: {result.get('reason')}"
        )
    rows = [_row(candidate) for candidate in candidates]
    summary: dict[str, Any] = {"ranking": rows, "winner": winner.number, "seeds": plan.seeds}
    runs = [plan.run(name, "test", seed) for seed in plan.seeds]
    tested = None
    if test or all((run / files.RESULT).exists() for run in runs):
        _train(plan, "test", [name], ["data.validation=0"])
        tested = [files.read_result(run) for run in runs]
        summary["test"] = _judge(tested)
    files.write(plan.folder / "confirm.json", (json.dumps(summary, indent=2) + "\n").encode())
    if tested is None:
        terminal.show_sentence(folders.AHEAD.format(winner.number))
        return
    target = OmegaConf.create(plan.experiments[name]).target
    terminal.show_test(winner.number, summary["test"], tested[0], target, f"{plan.folder}/confirm.json")


def _choose(
    study: Path, top: int, numbers: Sequence[int], front: Sequence[str] | None = None
) -> list[tuple[int, float]]:
    """Number and objective of a study's best completed trials, of those with these numbers, or of its `front`."""
    if not study.is_dir():
        raise ValueError(f"{study} is no study's folder: it {'is a file' if study.exists() else 'does not exist'}")
    found = trials_csv.read(study)
    if found.problems:
        what = "is damaged:" if found.trials else "is no study's folder: its"
        raise ValueError(f"{study} {what} {found.problems[0]}: {SEARCH_AGAIN}")
    completed = [t for t in found.trials if t.objective is not None and t.folder in (str(t.number), "")]
    done = [(t.number, t.objective or 0.0) for t in completed]
    if not done:
        raise ValueError(f"{study} has no completed trial to confirm")
    ended, numbers = dict(done), numbers if front is None else _front(study, front)
    if unknown := [number for number in numbers if number not in ended]:
        raise ValueError(f"--trials names {unknown[0]}, no completed trial of {study}: see its trials.csv")
    if not numbers and len(folders.objectives(study)) == 2:
        front = ", ".join(str(t.number) for t in folders.read_study(study).front)
        raise ValueError(
            f"{study} has two objectives, so none of its trials is the best: choose of its front, {front}, "
            "with --trials, or take all of it with --front"
        )
    chosen = [(number, ended[number]) for number in dict.fromkeys(numbers)] or done
    best = sorted(chosen, key=lambda trial: -trial[1])[: len(numbers) or top]
    for trial in found.trials:
        if trial.number in dict(best):
            _refuse_damaged(study, trial)
    return best


def _front(study: Path, overrides: Sequence[str]) -> list[int]:
    """The front of the completed trials that keep within the limits of `overrides` too, by cost.

    Raises ValueError where there is none.
    """
    limits = OmegaConf.from_dotlist(list(overrides)).get("budget") or {}
    found = folders.read_study(study)
    found.trials = [t for t in found.trials if max(budget.excess(t.costs, limits).values(), default=0) <= 0]
    if not found.front:
        raise ValueError(f"{study} has no completed trial within the budget: search more, or raise the limits")
    return [trial.number for trial in found.front]


def _refuse_damaged(study: Path, row: trials_csv.Trial) -> None:
    """Raise ValueError where a trial's folder is gone, damaged, or has another result than `trials.csv`."""
    trial, other = study / str(row.number), OTHER.format(study)
    for folder, objective in zip_longest([trial, *files.seed_folders(trial)], row.seeds or [row.objective or 0.0]):
        try:
            found = files.read_result(folder).get("objective") if folder else None
        except ValueError as error:
            raise ValueError(f"{error}, {other}") from error
        if found is None or objective is None or not math.isclose(found, objective):
            where = folder or f"a seed of {trial}"
            raise ValueError(f"{where} reached {found!r}, but trials.csv says {objective!r}: restore it, {other}")


def _name(number: int | str) -> str:
    """What a trial's experiment is called."""
    return f"trial_{number}"


def _plan(
    study: Path,
    best: list[tuple[int, float]],
    seeds: int,
    script: Path,
    overrides: Sequence[str],
    trackers: Sequence[str],
    lock: list[int],
) -> Confirmation:
    """What is to be trained. Raises ValueError where a trial was confirmed with other overrides."""
    for number, _ in best:
        if damage := damage_of(study / str(number)):
            raise ValueError(f"{damage}, {OTHER.format(study)}")
    own = saved.load(study / str(best[0][0]))
    cfg = own.config
    fresh = cfg.seed + int(OmegaConf.select(own.hydra, "sweeper.seeds", default=1))  # those of the search are not
    networks = own_networks(study / str(number) for number, _ in best)
    plan = Confirmation(
        study / "confirm",
        script,
        {_name(number): experiment(study / str(number), overrides) for number, _ in best},
        {
            _name(number): [*network, *(trackers or saved.tracker_overrides(cfg))]
            for (number, _), network in zip(best, networks, strict=True)
        },
        list(range(fresh, fresh + seeds)),
        f"data.split_seed={cfg.data.split_seed}",
        lock,
    )
    for name, text in plan.experiments.items():
        path = plan.experiment(name)
        confirmed = any(plan.folder.glob(f"{name}-*/{files.RESULT}"))
        if confirmed and path.exists() and _experiment_before(path, text) != OmegaConf.create(text):
            raise ValueError(
                f"{path} is of a confirmation with other overrides than {command_line(overrides) or 'none'}: "
                f"give the same ones, or move {plan.folder} away"
            )
    return plan


def _experiment_before(path: Path, wanted: str) -> Any:
    """The experiment that was confirmed. Raises ValueError where its file is damaged, or a part of `wanted`."""
    try:
        before = path.read_text(encoding="utf-8")
        if option_files.is_cut(before) or (wanted.startswith(before) and before != wanted):
            raise ValueError("it was cut off")
        found = OmegaConf.create(before)
        if "defaults" not in found:
            raise ValueError("it is no experiment")
        return found
    except Exception as error:  # whatever a damaged YAML file leads to
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}): restore it, or move {path.parent.parent} away") from error


def _check(plan: Confirmation) -> None:
    """Raise ValueError, with the reason, for the first experiment that `train.py` would refuse."""
    with tempfile.TemporaryDirectory() as folder:
        plan.write(Path(folder))
        for name in plan.experiments:
            command = [
                *(sys.executable, str(plan.script), "--config-dir", folder, f"experiment={name}"),
                *(f"seed={plan.seeds[0]}", plan.split, *plan.networks[name]),
                *("dry_run=true", override("hydra.run.dir", folder), "hydra.output_subdir=null"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = done.stderr.partition("Error: ")[2].split("\n\n")[0]
                raise ValueError(" ".join(reason.split()) or done.stderr)


def _rank(plan: Confirmation, best: list[tuple[int, float]]) -> list[Candidate]:
    """The trials by their mean over the fresh seeds, the highest first."""
    candidates = []
    for number, searched in best:
        results = [files.read_result(plan.run(_name(number), "validation", seed)) for seed in plan.seeds]
        objectives = [result["objective"] for result in results if result.get("objective") is not None]
        candidates.append(Candidate(number, searched, objectives, len(results) - len(objectives)))
    return sorted(candidates, key=lambda candidate: candidate.mean, reverse=True)


def _row(candidate: Candidate) -> dict[str, Any]:
    """A candidate in `confirm.json`."""
    mean = None if candidate.missing else candidate.mean
    return {**asdict(candidate), "mean": mean, "deviation": candidate.deviation}


def _judge(tested: list[dict[str, Any]]) -> dict[str, Any]:
    """The verdict over seeds; accuracies in percent. The target is met where every seed meets it."""
    verdicts = [result["verdict"] for result in tested]
    ended = [result for result in tested if result.get("objective") is not None]
    objectives = [result["objective"] for result in ended]
    met = verdicts.count("met")
    return {
        "verdict": "not judged" if "not judged" in verdicts else "met" if met == len(tested) else "not met",
        "met": met,
        "objectives": [result.get("objective") for result in tested],
        "mean": statistics.fmean(objectives) if objectives else None,
        "deviation": statistics.stdev(objectives) if len(objectives) > 1 else 0.0,
        "lowest": min((accuracy for result in ended for accuracy in result["last_accuracies"]), default=None),
    }


def _train(plan: Confirmation, split: str, names: Iterable[str], overrides: list[str]) -> None:
    """Train every experiment with every seed that is missing, in one multirun a set of seeds."""
    missing: dict[tuple[tuple[int, ...], tuple[str, ...]], list[str]] = {}
    for name in names:
        runs = {seed: plan.run(name, split, seed) for seed in plan.seeds}
        for run in runs.values():
            if run.exists() and _is_to_be_trained(run):
                with files.locked(run):
                    shutil.rmtree(run)
        wanted = tuple(seed for seed, run in runs.items() if not run.exists())
        if wanted:
            missing.setdefault((wanted, tuple(plan.networks[name])), []).append(name)
    for (seeds, network), group in missing.items():
        _multirun(plan, split, group, seeds, [*network, *overrides])


def _is_to_be_trained(run: Path) -> bool:
    """Whether a run was interrupted, or failed for a reason that may be mended: its seed is trained anew."""
    return not (run / files.RESULT).exists() or files.read_result(run)["verdict"] in files.NOT_TRAINED


def _multirun(
    plan: Confirmation, split: str, names: list[str], seeds: tuple[int, ...], overrides: list[str]
) -> None:
    """Train experiments, each with every seed, side by side. Raises ValueError where one was not trained."""
    cfg: Any = OmegaConf.load(plan.experiment(names[0]))
    side_by_side = max(1, cpu_count() // (cfg.threads or cpu_count())) if cfg.device == "cpu" else 1
    command = [
        *(sys.executable, str(plan.script), "-m", f"--config-dir={plan.folder}"),
        f"experiment={','.join(names)}",
        f"seed={','.join(map(str, seeds))}",
        *overrides,
        "report=false",
        "hydra/launcher=joblib",
        f"hydra.launcher.n_jobs={side_by_side}",
        override("hydra.sweep.dir", plan.folder),
        f"hydra.sweep.subdir=${{hydra.runtime.choices.experiment}}-{split}-${{seed}}",
    ]
    results = [plan.run(name, split, seed) / files.RESULT for name in names for seed in seeds]
    log, who = plan.folder / "confirm.log", f"{len(names)} trials"
    if len(names) <= 3:
        who = ", ".join(name.replace("_", " ") for name in names)
    with log.open("ab") as stream, terminal.waiting() as say:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, pass_fds=plan.lock
        )
        try:
            while process.poll() is None:
                left = sum(not result.exists() for result in results)
                say(f"{who}, {split} images: {left} of {len(results)} trainings left, {side_by_side} side by side")
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    continue
        except KeyboardInterrupt as stop:
            if errors.stopped_by(stop) != 130:  # Ctrl-C has reached that process as well
                process.terminate()
            process.wait()
            terminal.show_confirmation_interrupted()
            raise SystemExit(errors.stopped_by(stop)) from None
    for result in results:
        if not result.exists():
            raise ValueError(f"{result.parent} was not trained: see {log}")
