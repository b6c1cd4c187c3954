"""Is anything lost when processes are killed? Searches, runs and confirmations, killed at random and typed again.

    python benchmarks/kill.py 1 2 3 4 5             each seed decides about other moments
    python benchmarks/kill.py 1 --quick             a share of it
    python benchmarks/kill.py 1 2 --only disk       one part

For each seed: a search of 24 trials with three workers of which something (one process, the one that watches, all)
is killed with SIGKILL at random moments; two single runs; a confirmation. Once: a disk that is full for a while, a
PostgreSQL that is restarted, and processes that are suspended for longer than the grace period. The same line is
typed again until it is done. Then every setting must have been trained once, every training must have the numbers
that it has undisturbed, bit for bit, and no process and no temporary file may be left. Exits with 1 otherwise.

Linux only. A disk that is full is a small tmpfs for root, else a limit on the size of files. The database needs
PostgreSQL and psycopg, and is left out, with a sentence, where they are missing.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from joblib import cpu_count
from rich.console import Console
from rich.table import Table

from bantam.search import trials
from bantam.training import folder as files
from bantam.training import saved, setup
from bantam.training.run import run as train

PROJECT = Path(__file__).resolve().parent.parent
SMALL = ["data=mnist5k", "data.validation=1000", "model.width=3", "pictures=false", "report=false", "threads=1"]
N_TRIALS, N_JOBS, HEARTBEAT = 24, 3, 1
SEARCH = [
    *(
        "-m",
        "hydra/sweeper=bantam",
        "hydra.sweep.dir=study",
        *SMALL,
        "epochs=2",
        "optimizer.lr=interval(0.01,0.1)",
    ),
    *(f"hydra.sweeper.n_jobs={N_JOBS}", f"hydra.sweeper.heartbeat={HEARTBEAT}"),
]
SUSPENDED_SECONDS = (trials.GRACE_PERIOD + 4) * HEARTBEAT
ROUNDS = 40
"""How often a line is typed before it counts as one that never ends."""

console = Console()


@dataclass
class Found:
    """What was wrong after a part, and what had been done to it."""

    disturbed: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    trained: int = 0
    lost: int = 0
    twice: int = 0
    orphans: int = 0
    leftovers: int = 0
    different: int = 0
    sentences: list[str] = field(default_factory=list)
    """Whatever else was wrong."""

    @property
    def wrong(self) -> bool:
        return bool(self.lost or self.twice or self.orphans or self.leftovers or self.different or self.sentences)


@dataclass
class Line:
    """A command line that is typed again and again in one folder; its processes are known by a mark."""

    folder: Path
    words: list[str]
    found: Found
    limit: int | None = None
    """The largest file that it may write, in bytes; None: any."""
    mark: str = field(default_factory=lambda: f"BANTAM_KILL={uuid.uuid4().hex}")

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def type(self) -> subprocess.Popen[bytes]:
        """Start it."""
        self.found.rounds += 1
        name, _, value = self.mark.partition("=")
        environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src"), name: value, "COLUMNS": "200"}
        with (self.folder / "output.txt").open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, *self.words],
                cwd=self.folder,
                env=environment,
                stdout=stream,
                stderr=stream,
                preexec_fn=self._set_limit,
            )

    def _set_limit(self) -> None:
        if self.limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))

    def processes(self) -> list[int]:
        """The numbers of all its processes that live, whoever their parents are."""
        alive = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                zombie = ") Z " in (folder / "stat").read_text()
                if not zombie and self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    alive.append(int(folder.name))
        return alive

    def until_done(self, disturb: Callable[[subprocess.Popen[bytes]], bool]) -> None:
        """Type it until it ends with 0; `disturb` is called while it runs, until it returns False."""
        while self.found.rounds < ROUNDS:
            process = self.type()
            while process.poll() is None and disturb(process):
                pass
            code = process.wait()
            if code == 0:
                break
            if code > 0 and "another process is at work" in self.output:  # orphans, which are about to end
                time.sleep(1)
        else:
            self.found.sentences.append(f"typed {ROUNDS} times, and not done: {self.output[-300:]}")
        until = time.monotonic() + 20
        while self.processes() and time.monotonic() < until:
            time.sleep(0.2)
        self.found.orphans += len(self.processes())
        self.found.leftovers += sum(1 for _ in self.folder.rglob(f".*{files.ASIDE}"))
        self.found.sentences += ["a traceback"] * ("Traceback" in self.output)


def killing(line: Line, rng: random.Random, kills: int, seconds: float) -> Callable[[Any], bool]:
    """Kill something of a line's processes, up to so many times, each up to so many seconds after the last."""

    def kill(process: subprocess.Popen[bytes]) -> bool:
        if line.found.disturbed.total() >= kills:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.1, seconds))
            return False
        alive = line.processes()
        what = rng.choice(["one", "one", "first", "all"])
        line.found.disturbed[what] += 1
        for pid in {"one": [rng.choice(alive or [process.pid])], "first": [process.pid], "all": alive}[what]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return True

    return kill


def search(folder: Path, seed: int, found: Found, n_trials: int, *more: str) -> Line:
    """A search as it is typed."""
    settings = [f"hydra.sweeper.n_trials={n_trials}", f"hydra.sweeper.sampler.seed={seed}", *more]
    return Line(folder, [str(PROJECT / "train.py"), *SEARCH, *settings], found)


def check_search(line: Line, n_trials: int, storage: str = "") -> None:
    """Count what a search has lost, done twice, or trained otherwise than undisturbed."""
    found, folder = line.found, line.folder / "study"
    address = storage or f"sqlite:///{folder}/study.db"
    listed = optuna.load_study(study_name="search", storage=optuna.storages.RDBStorage(address)).trials
    states = trials.states(listed)
    ended = [trial for trial, state in zip(listed, states, strict=True) if state in trials.FINISHED]
    trained = [
        trial.params["optimizer.lr"] for trial, state in zip(listed, states, strict=True) if state == "complete"
    ]
    asked = {t.params["optimizer.lr"] for t, s in zip(listed, states, strict=True) if t.params and s != "surplus"}
    found.trained += len(trained)
    found.lost += len(asked - set(trained)) + max(0, n_trials - len(trained))
    found.twice += len(ended) - len(set(trained)) if len(ended) == len(trained) else 0
    if len(ended) != n_trials or len(trained) != len(ended):
        found.sentences.append(f"{Counter(states)} where {n_trials} trials were asked for")
    logs = "".join(path.read_text(errors="replace") for path in folder.glob("worker-*.log"))
    found.twice += sum(count - 1 for count in Counter(_verdicts(logs)).values())
    with (folder / "trials.csv").open(newline="") as stream:
        rows = Counter(row["state"] for row in csv.DictReader(stream))
    if rows["complete"] != n_trials or json.loads((folder / "summary.json").read_text())["ended_by"] != "enough":
        found.sentences.append(f"trials.csv has {rows}")
    numbers = [t.number for t, state in zip(listed, states, strict=True) if state == "complete"]
    found.different += sum(not as_undisturbed(folder / str(number)) for number in numbers)
    found.leftovers += sum(1 for _ in folder.glob("*/checkpoint*"))


def _verdicts(logs: str) -> Iterator[str]:
    """The job of every verdict that workers have printed."""
    for printed in logs.splitlines():
        words = printed.split(",")[0].split()
        if words[:1] == ["job"] and len(words) == 2 and "not judged" in printed:
            yield words[1]


def as_undisturbed(folder: Path) -> bool:
    """Whether a training has the numbers, and the weights where they are kept, of one that nothing disturbs."""
    own = saved.load(folder)
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        train(setup.prepare(own.config, setup.RunInfo(Path(place), dict(own.choices), 1, None)))
        if _numbers(folder) != _numbers(Path(place)):
            return False
        kept = folder / files.WEIGHTS
        return not kept.exists() or kept.read_bytes() == (Path(place) / files.WEIGHTS).read_bytes()


def _numbers(folder: Path) -> list[Any]:
    """The numbers of every epoch that do not depend on the time."""
    return [
        (e.epoch, e.lr, e.train_loss, e.train_accuracy, e.validation_accuracy, e.test_accuracy)
        for e in files.read_history(folder)
    ] + [files.read_result(folder)["objective"]]


def kill_search(folder: Path, rng: random.Random, quick: bool) -> Found:
    """A search of which something is killed."""
    found, n_trials = Found(), N_TRIALS // 2 if quick else N_TRIALS
    line = search(folder, rng.randrange(1000), found, n_trials)
    line.until_done(killing(line, rng, 5 if quick else 10, 8))
    check_search(line, n_trials)
    return found


def kill_runs(folder: Path, rng: random.Random, quick: bool) -> Found:
    """Single runs that are killed and resumed; one that was killed before its first epoch is typed again."""
    found = Found()
    for number in range(1 if quick else 2):
        run, mark = folder / f"run{number}", uuid.uuid4().hex
        begin = [
            str(PROJECT / "train.py"),
            *SMALL,
            "epochs=6",
            f"seed={rng.randrange(1000)}",
            f"hydra.run.dir={run}",
        ]
        own = Found()
        while own.rounds < ROUNDS and not (run / files.RESULT).exists():
            begun = (run / files.CHECKPOINT).exists() or (run / files.CHECKPOINT_BEFORE).exists()
            words = [begin[0], f"resume={run}"] if begun else begin
            line = Line(folder, words, own, mark=f"BANTAM_KILL={mark}")
            process = line.type()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(2, 9) if own.disturbed.total() < 4 else None)
            if process.poll() is None:
                process.kill()
                own.disturbed["first"] += 1
            process.wait()
        found.rounds += own.rounds
        found.disturbed += own.disturbed
        found.trained += 1
        found.lost += not (run / files.RESULT).exists()
        found.different += not as_undisturbed(run)
        found.orphans += len(line.processes())
        found.leftovers += sum(1 for _ in run.glob(f".*{files.ASIDE}")) + sum(1 for _ in run.glob("checkpoint*"))
        found.sentences += ["a traceback"] * ("Traceback" in line.output)
    return found


def kill_confirmation(folder: Path, rng: random.Random, quick: bool) -> Found:
    """A confirmation that is killed."""
    before, found = Found(), Found()
    search(folder, rng.randrange(1000), before, 2).until_done(lambda process: False)
    (folder / "output.txt").unlink()
    top, seeds = (1, 2) if quick else (2, 2)
    words = [str(PROJECT / "confirm.py"), "study", "--top", str(top), "--seeds", str(seeds)]
    line = Line(folder, words, found)
    line.until_done(killing(line, rng, 2 if quick else 4, 12))
    answer = json.loads((folder / "study" / "confirm" / "confirm.json").read_text())
    runs = [path.parent for path in (folder / "study" / "confirm").glob(f"*/{files.RESULT}")]
    found.trained = len(runs)
    found.lost += max(0, (top + 1) * seeds - len(runs)) + (len(answer["test"]["objectives"]) != seeds)
    found.twice += max(0, len(runs) - (top + 1) * seeds)
    found.different += sum(not as_undisturbed(run) for run in runs)
    found.leftovers += sum(1 for _ in folder.glob("study/confirm/*/checkpoint*"))
    return found


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of 16 MiB in a folder; yields False where only root may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = os.getuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path, rng: random.Random, quick: bool) -> Found:
    """A search whose disk is full twice, for as long as the line is not typed again."""
    found, n_trials = Found(), N_TRIALS // 2 if quick else N_TRIALS
    with small_disk(folder) as mounted:
        line = search(folder, rng.randrange(1000), found, n_trials)
        while found.disturbed.total() < (1 if quick else 2):
            if not mounted:
                line.limit = rng.randrange(100_000, 400_000)
            process = line.type()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(2, 12))
            found.disturbed["disk"] += 1
            if mounted:
                _fill(folder / "filler")
            if process.wait(300) == 0:
                break  # it had been done before
            (folder / "filler").unlink(missing_ok=True)
        line.limit = None
        line.until_done(lambda process: False)
        check_search(line, n_trials)
    return found


def _fill(path: Path) -> None:
    """Write until the disk is full to its last byte."""
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(size))


def restart_database(folder: Path, rng: random.Random, quick: bool) -> Found:
    """A search whose PostgreSQL is restarted."""
    sys.path.insert(0, str(PROJECT / "tests"))
    from searches import Postgresql

    found, n_trials = Found(), N_TRIALS // 2 if quick else N_TRIALS
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    place = Path(tempfile.mkdtemp(prefix="bantam-postgresql-"))
    server = Postgresql(programs, place)
    server.start()

    def restart(process: subprocess.Popen[bytes]) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(3, 10))
            return False
        found.disturbed["restart"] += 1
        server.stop()
        time.sleep(rng.uniform(0, 3))
        server.start()
        return found.disturbed.total() < (1 if quick else 3)

    try:
        line = search(folder, rng.randrange(1000), found, n_trials, f"hydra.sweeper.storage={server.address}")
        line.until_done(restart)
        if found.rounds > 1:
            found.sentences.append("the search did not wait for its database")
        check_search(line, n_trials, server.address)
    finally:
        server.stop()
        server.close()
        shutil.rmtree(place)
    return found


def suspend(folder: Path, rng: random.Random, quick: bool) -> Found:
    """A search of which one process after the other is suspended for longer than the grace period."""
    found, n_trials = Found(), N_TRIALS // 2 if quick else N_TRIALS
    line = search(folder, rng.randrange(1000), found, n_trials)

    def stop(process: subprocess.Popen[bytes]) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(5, 8))
            return False
        pid = rng.choice([process.pid, *line.processes()])
        found.disturbed["suspended"] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(SUSPENDED_SECONDS)
            os.kill(pid, signal.SIGCONT)
        return found.disturbed.total() < (1 if quick else 3)

    line.until_done(stop)
    check_search(line, n_trials)
    return found


PARTS = {
    "search": kill_search,
    "runs": kill_runs,
    "confirm": kill_confirmation,
    "disk": fill_disk,
    "database": restart_database,
    "suspended": suspend,
}
ONCE = ("disk", "database", "suspended")
"""Parts that take place with the first seed only."""


def can_have_database() -> bool:
    """Whether PostgreSQL and its driver are there."""
    with contextlib.suppress(ImportError):
        import psycopg  # noqa: F401

        return any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return False


def show(rows: list[tuple[str, int, Found, float]]) -> None:
    """Print what was found."""
    table = Table(box=None, title=f"{cpu_count()} cores")
    for column in ("part", "seed", "disturbed", "typed", "trained", "lost", "twice", "orphans", "leftovers"):
        table.add_column(column, justify="left" if column in ("part", "disturbed") else "right")
    for column in ("different", "seconds"):
        table.add_column(column, justify="right")
    for part, seed, found, seconds in rows:
        disturbed = ", ".join(f"{count} {what}" for what, count in found.disturbed.items())
        numbers = (found.rounds, found.trained, found.lost, found.twice, found.orphans, found.leftovers)
        table.add_row(part, str(seed), disturbed, *map(str, numbers), str(found.different), f"{seconds:.0f}")
    console.print(table)
    for part, seed, found, _ in rows:
        for sentence in found.sentences:
            console.print(f"{part} {seed}: {sentence}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="*", default=[1], help="each decides about other moments; 1")
    parser.add_argument("--quick", action="store_true", help="half the trials and kills")
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", default=list(PARTS), help="these parts; after the seeds"
    )
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parts = [part for part in PARTS if part in arguments.only]
    if "database" in parts and not can_have_database():
        console.print("The database is left out: PostgreSQL or psycopg is not on this machine.")
        parts.remove("database")
    rows: list[tuple[str, int, Found, float]] = []
    for seed in arguments.seeds:
        for part in parts:
            if part in ONCE and seed != arguments.seeds[0]:
                continue
            folder = Path(tempfile.mkdtemp(prefix=f"bantam-kill-{part}-{seed}-"))
            start = time.monotonic()
            with console.status(f"{part}, seed {seed}"):
                found = PARTS[part](folder, random.Random(f"{part} {seed}"), arguments.quick)
            rows.append((part, seed, found, time.monotonic() - start))
            console.print(
                f"{part} {seed}: {'wrong, see ' + str(folder) if found.wrong else 'right'}", markup=False
            )
            if not found.wrong:
                shutil.rmtree(folder)
    show(rows)
    if any(found.wrong for _, _, found, _ in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
