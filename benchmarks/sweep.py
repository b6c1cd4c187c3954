"""How many finished trials an hour? Bantam's search with and without workers and pruning, and the stock sweeper.

    python benchmarks/sweep.py

Every search has the default space on the images that come with a package, fifteen epochs a trial, its own
sampler seed a turn, and begins in an empty folder; they take turns, and the medians are compared. A
trial is finished when its training came to its end or was given up by the pruner; what the stock sweeper
launches only to see it refused for its size is counted apart. The blocks of all widths are compiled beforehand,
since otherwise whoever comes first would do so for the others.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from joblib import cpu_count
from rich.console import Console
from rich.table import Table

TRAIN = str(Path(__file__).resolve().parent.parent / "train.py")
SMALL = ["data=mnist5k", "data.validation=1000", "pictures=false"]
BANTAM = ["hparams_search=optuna", "hydra.sweep.dir=study"]
STOCK = [
    "hydra/sweeper=optuna",
    "hydra.sweeper.direction=maximize",
    "hydra.sweeper.n_jobs=1",
    "hydra.sweeper.max_failure_rate=1.0",
    "hydra.sweep.dir=study",
    "optimizer.lr=tag(log, interval(0.005, 0.3))",
    "optimizer.momentum=interval(0.7, 0.97)",
    "scheduler.step_size=range(2, 11)",
    "scheduler.gamma=interval(0.05, 0.7)",
    "model.width=range(8, 21)",
]
CASES = {
    "stock sweeper": STOCK,
    "Bantam, one worker, no pruning": [*BANTAM, "hydra.sweeper.n_jobs=1", "hydra/sweeper/pruner=none"],
    "Bantam, one worker": [*BANTAM, "hydra.sweeper.n_jobs=1"],
    "Bantam, a worker a core, no pruning": [*BANTAM, "hydra/sweeper/pruner=none"],
    "Bantam": BANTAM,
}


def search(case: list[str], trials: int, seed: int) -> tuple[float, int, int, float]:
    """Hours, finished trials, launches wasted on networks over the budget, and the best objective in percent."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"hydra.sweeper.n_trials={trials}", f"hydra.sweeper.sampler.seed={seed}"]
        command = [sys.executable, TRAIN, "-m", *case, *settings, *SMALL]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        hours = (time.perf_counter() - start) / 3600
        results = [json.loads(file.read_text()) for file in (Path(folder) / "study").glob("*/result.json")]
        if not results:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        wasted = sum(result["verdict"] == "refused" for result in results)
        listed = Path(folder) / "study" / "trials.csv"
        if listed.exists():
            with listed.open(newline="") as stream:
                finished = sum(row["state"] in ("complete", "pruned") for row in csv.DictReader(stream))
        else:
            finished = len(results) - wasted
        return hours, finished, wasted, max(result.get("objective") or 0.0 for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="searches of each kind, taking turns")
    parser.add_argument("--trials", type=int, default=10, help="trials in a search")
    arguments = parser.parse_args()
    console = Console()
    with console.status("compiling"), tempfile.TemporaryDirectory() as folder:
        widths = [sys.executable, TRAIN, "-m", "model.width=range(8,17)", "epochs=1", "report=false", *SMALL]
        subprocess.run(widths, cwd=folder, capture_output=True, check=True)
    found: dict[str, list[tuple[float, int, int, float]]] = {name: [] for name in CASES}
    for turn in range(arguments.repeats):
        for name, case in CASES.items():
            with console.status(f"turn {turn + 1} of {arguments.repeats}: {name}"):
                found[name].append(search(case, arguments.trials, turn + 1))
    table = Table(
        box=None, title=f"{arguments.trials} trials, medians of {arguments.repeats}, {cpu_count()} cores"
    )
    for column in ("", "trials an hour", "ratio", "minutes", "launches wasted", "best, %"):
        table.add_column(column, justify="left" if not column else "right")
    rates = {name: statistics.median(done / hours for hours, done, _, _ in turns) for name, turns in found.items()}
    for name, turns in found.items():
        table.add_row(
            name,
            f"{rates[name]:.0f}",
            f"{rates[name] / rates['stock sweeper']:.2f}",
            f"{60 * statistics.median(turn[0] for turn in turns):.1f}",
            f"{statistics.median(turn[2] for turn in turns):.0f}",
            f"{statistics.median(turn[3] for turn in turns):.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
