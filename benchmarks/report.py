"""How long does the report of a large search take, and how large is its page?

    python benchmarks/report.py

A study of 1,000 trials over the keys of `hparams_search=optuna` is made by Optuna and written as Bantam writes
one, without any training. Measured is what `report.py` does with it: reading, drawing and writing the page.
Plotly's own share of the page is counted apart: it is the same on every page.
"""

import argparse
import random
import re
import statistics
import tempfile
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from bantam.budget import COSTS
from bantam.report import page
from bantam.search import trials
from bantam.training import folder as record
from bantam.training.loop import Epoch

SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "optimizer.lr": optuna.distributions.FloatDistribution(0.005, 0.3, log=True),
    "optimizer.momentum": optuna.distributions.FloatDistribution(0.7, 0.97),
    "scheduler.step_size": optuna.distributions.IntDistribution(2, 10),
    "scheduler.gamma": optuna.distributions.FloatDistribution(0.05, 0.7),
    "model.width": optuna.distributions.IntDistribution(8, 20),
}
EPOCHS = 15
CONFIG = "seed: 1\nepochs: 15\ntarget: {accuracy: 99.4, last_epochs: 5}\nbudget: {parameters: 10000, epochs: 15}\n"


def write_study(folder: Path, count: int) -> None:
    """A study in a folder: half of its trials complete, three of ten over the budget, the others pruned."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    numbers = random.Random(1)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(count):
        trial = study.ask(SPACE)
        settings, width = trial.params, trial.params["model.width"]
        for key, size in zip(COSTS, (600, 110_000, 2400, 5000), strict=True):
            trial.set_user_attr(key, size * width)
        if width > 16:
            trial.set_constraint("parameters", 60.0 * width)
            trial.set_user_attr("reason", f"{60 * width} parameters too many")
            study.tell(trial, state=TrialState.PRUNED)
            continue
        end = 99 - abs(settings["optimizer.lr"] - 0.05) - numbers.random()
        accuracies = [end - 3 / epoch for epoch in range(1, EPOCHS + 1)]
        if number % 4 == 0:  # after epoch 5, as successive halving does
            accuracies = accuracies[:5]
            trial.set_user_attr("reason", f"pruned after epoch 5 of {EPOCHS}, at {accuracies[-1]:.2f} %")
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, statistics.fmean(accuracies[-5:]))
        write_trial(folder / str(number), settings, accuracies, len(accuracies) == EPOCHS)
    trials.write(folder, trials.read(study))


def write_trial(folder: Path, settings: dict[str, float], accuracies: list[float], done: bool) -> None:
    """The folder of a trial; files are written as they are, not flushed to the disk one by one."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(CONFIG)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {k}={v}\n" for k, v in settings.items()))
    (folder / ".hydra" / "hydra.yaml").write_text("hydra: {sweeper: {objectives: [accuracy]}}\n")
    history = [
        Epoch(epoch, settings["optimizer.lr"], 0.1, accuracy - 0.4, 0.05, accuracy, None, None, 20.0, 3000.0)
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    record.write_history(folder, history)
    result = {
        "verdict": "not judged" if done else "pruned",
        "reason": "validation images",
        "objective": statistics.fmean(accuracies[-5:]) if done else None,
        "last_accuracies": accuracies[-5:],
        "split": "validation",
    }
    record.write_result(folder, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="trials of the study")
    parser.add_argument(
        "--repeats", type=int, default=5, help="pages that are written, of which the median counts"
    )
    parser.add_argument("--output", type=Path, help="keep the last page here")
    arguments = parser.parse_args()
    times: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        write_study(study, arguments.trials)
        for _ in range(arguments.repeats):
            wall, processor = time.perf_counter(), time.process_time()
            written = page.write([study], arguments.output)
            times.append((time.perf_counter() - wall, time.process_time() - processor))
        text = written.read_text(encoding="utf-8")
    plotly = sum(map(len, re.findall(r'(?s)<script type="application/gzip" id="plotly".*?</script>', text)))
    table = Table(
        box=None, title=f"{arguments.trials:,} trials, medians of {arguments.repeats}, and the first page"
    )
    for column in ("", "median", "first"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in zip(("seconds", "of them on the processor"), zip(*times, strict=True), strict=True):
        table.add_row(name, f"{statistics.median(values):.2f}", f"{values[0]:.2f}")
    table.add_row("bytes without Plotly's", f"{len(text.encode()) - plotly:,}", "")
    table.add_row("bytes of Plotly's", f"{plotly:,}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
