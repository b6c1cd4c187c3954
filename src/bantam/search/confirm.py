"""One seed lies: the best trials of a study again, on fresh seeds, and the winner alone on the test images."""

import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from joblib import cpu_count
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape

from bantam.report import folders as evidence
from bantam.search import terminal
from bantam.search.outcome import Candidate, experiment, write_experiment
from bantam.training import folder as record
from bantam.training import saved

TOP, SEEDS = 3, 5


def confirm(
    study: Path,
    top: int,
    seeds: int,
    script: Path,
    numbers: Sequence[int] = (),
    overrides: Sequence[str] = (),
    test: bool = True,
) -> None:
    """Train a study's best trials again and judge the best of them; writes `confirm/confirm.json`.

    The `top` trials, or those with the given `numbers`, are trained on `seeds` fresh seeds, to their end
    and scored on the study's validation images. The one with the highest mean is then trained on all
    training images with the same seeds and scored on the test images, unless `test` is false. What is finished
    already is not trained again. `overrides`, such as epochs=15, change all trials. `script` is train.py. Raises
    ValueError for a folder that is no study or has no completed trial, for a number that is none, for a study with
    two objectives, which has no best trial, where no numbers are given, and for overrides that `script` refuses,
    that are the confirmation's own affair, or that are not those of trials which are confirmed already.
    """
    console = Console(highlight=False)
    best = _chosen(study, top, numbers)
    cfg = saved.load(study / str(best[0][0])).config
    fresh = list(range(cfg.seed + 1, cfg.seed + 1 + seeds))
    folder = study / "confirm"
    split = f"data.split_seed={cfg.data.split_seed}"
    names = {number: f"trial_{number}" for number, _ in best}
    texts = {name: experiment(study / str(number), overrides) for number, name in names.items()}
    for name, text in texts.items():
        path = folder / "experiment" / f"{name}.yaml"
        confirmed = any(folder.glob(f"{name}-*/{record.RESULT}"))
        if confirmed and path.exists() and OmegaConf.load(path) != OmegaConf.create(text):
            raise ValueError(
                f"{path} is of a confirmation with other overrides than {' '.join(overrides) or 'none'}: "
                f"give the same ones, or move {folder} away"
            )
    if overrides:
        _check(script, texts, [f"seed={fresh[0]}", split])
    for name, text in texts.items():
        write_experiment(folder / "experiment" / f"{name}.yaml", text)

    _train(script, folder, "validation", list(names.values()), fresh, [split], console)
    candidates = []
    for number, searched in best:
        results = [record.read_result(_run(folder, names[number], "validation", seed)) for seed in fresh]
        objectives = [result["objective"] for result in results if result.get("objective") is not None]
        candidates.append(Candidate(number, searched, objectives, len(results) - len(objectives)))
    candidates.sort(key=lambda candidate: candidate.mean, reverse=True)
    winner = candidates[0]
    console.print(terminal.ranking(candidates, seeds))
    if winner.missing:
        raise ValueError(f"none of the {len(best)} trials of {study} came to its end on every fresh seed")

    ranking = [
        {**asdict(candidate), "mean": candidate.mean, "deviation": candidate.deviation} for candidate in candidates
    ]
    for row in ranking:
        row["mean"] = None if row["missing"] else row["mean"]
    summary: dict[str, Any] = {"ranking": ranking, "winner": winner.number, "seeds": fresh}
    runs = [_run(folder, names[winner.number], "test", seed) for seed in fresh]
    scored = test or all((run / record.RESULT).exists() for run in runs)
    if scored:
        _train(script, folder, "test", [names[winner.number]], fresh, ["data.validation=0"], console)
        tested = [record.read_result(run) for run in runs]
        verdict = summary["test"] = _judge(tested)
    record.write(folder / "confirm.json", (json.dumps(summary, indent=2) + "\n").encode())
    if not scored:
        console.print(evidence.AHEAD.format(winner.number))
        return
    first, target = tested[0], OmegaConf.create(texts[names[winner.number]]).target
    colour = {"met": "green", "not met": "red"}.get(verdict["verdict"], "yellow")
    sentences = [
        f"Trial {winner.number}, {first['parameters']:,} parameters, trained on {first['train_images']:,} images "
        f"and scored on {first['scored_images']:,} {first['split']} images: "
        f"[bold {colour}]{verdict['verdict']}[/]",
        f"{verdict['met']} of {seeds} seeds hold {target.accuracy:g} % in every one of the last "
        f"{target.last_epochs} epochs",
    ]
    if verdict["mean"] is not None:
        sentences.append(
            f"Mean of the last epochs {verdict['mean']:.3f} ± {verdict['deviation']:.3f} %, "
            f"lowest of them {verdict['lowest']:.2f} %"
        )
    console.print(". ".join([*sentences, f"{escape(str(folder))}/confirm.json"]), soft_wrap=True)


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


def _chosen(study: Path, top: int, numbers: Sequence[int]) -> list[tuple[int, float]]:
    """Number and objective of a study's best completed trials, or of those with the given numbers."""
    try:
        with (study / "trials.csv").open(newline="") as stream:
            done = [
                (int(r["number"]), float(r["objective"]))
                for r in csv.DictReader(stream)
                if r["state"] == "complete"
            ]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{study} is no study's folder: its trials.csv cannot be read ({error})") from error
    if not done:
        raise ValueError(f"{study} has no completed trial to confirm")
    ended = dict(done)
    for number in numbers:
        if number not in ended:
            raise ValueError(
                f"--trials names {number}, which is no completed trial of {study}: see trials.csv there"
            )
    if not numbers and evidence.has_front(study):
        front = ", ".join(str(t.number) for t in evidence.read_study(study).front)
        raise ValueError(
            f"{study} has two objectives, so none of its trials is the best: choose of its front, {front}, "
            "with --trials"
        )
    chosen = [(number, ended[number]) for number in dict.fromkeys(numbers)] or done
    return sorted(chosen, key=lambda trial: -trial[1])[: len(numbers) or top]


def _check(script: Path, texts: Mapping[str, str], overrides: list[str]) -> None:
    """Raise ValueError, with the reason, for the first experiment that `script` would refuse to train."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            write_experiment(Path(folder) / "experiment" / f"{name}.yaml", text)
            command = [
                *(sys.executable, str(script), "--config-dir", folder, f"experiment={name}", *overrides),
                *("dry_run=true", f"hydra.run.dir={folder}", "hydra.output_subdir=null"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = done.stderr.partition("Error: ")[2].split("\n\n")[0]
                raise ValueError(" ".join(reason.split()) or done.stderr)


def _run(folder: Path, name: str, split: str, seed: int) -> Path:
    """The folder of one training."""
    return folder / f"{name}-{split}-{seed}"


def _train(
    script: Path,
    folder: Path,
    split: str,
    names: list[str],
    seeds: list[int],
    overrides: list[str],
    console: Console,
) -> None:
    """Train every experiment with every seed in one multirun a set of seeds that is missing."""
    missing: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        runs = {seed: _run(folder, name, split, seed) for seed in seeds}
        for run in runs.values():
            if run.exists() and not (run / record.RESULT).exists():
                shutil.rmtree(run)  # it was interrupted: its seed is trained anew
        wanted = tuple(seed for seed, run in runs.items() if not run.exists())
        if wanted:
            missing.setdefault(wanted, []).append(name)
    total = sum(len(wanted) * len(group) for wanted, group in missing.items())
    for wanted, group in missing.items():
        cfg: Any = OmegaConf.load(folder / "experiment" / f"{group[0]}.yaml")
        side_by_side = max(1, cpu_count() // (cfg.threads or cpu_count())) if cfg.device == "cpu" else 1
        command = [
            *(sys.executable, str(script), "-m", "--config-dir", str(folder)),
            f"experiment={','.join(group)}",
            f"seed={','.join(map(str, wanted))}",
            *overrides,
            "report=false",
            "hydra/launcher=joblib",
            f"hydra.launcher.n_jobs={side_by_side}",
            f"hydra.sweep.dir={folder}",
            f"hydra.sweep.subdir=${{hydra.runtime.choices.experiment}}-{split}-${{seed}}",
        ]
        log = folder / "confirm.log"
        with log.open("ab") as stream, console.status("") as status:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
            try:
                while process.poll() is None:
                    done = sum((_run(folder, n, split, s) / record.RESULT).exists() for n in names for s in seeds)
                    left = total - (done - (len(names) * len(seeds) - total))
                    status.update(f"{split} images: {left} of {total} trainings left, {side_by_side} side by side")
                    time.sleep(0.5)
            except KeyboardInterrupt:
                process.wait()
                console.print("Interrupted. The same command line continues.")
                raise SystemExit(130) from None
        for name in group:
            for seed in wanted:
                if not (_run(folder, name, split, seed) / record.RESULT).exists():
                    raise ValueError(f"{_run(folder, name, split, seed)} was not trained: see {log}")
