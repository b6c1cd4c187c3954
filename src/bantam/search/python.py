"""A search from Python: train.py as a process of its own, whose lines are shown, and the study that it leaves."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import optuna
from hydra.types import RunMode
from omegaconf import DictConfig
from optuna.storages import BaseStorage

from bantam import config, errors, launch, overrides, resolve
from bantam.search import outcome, storage, sweeper, trials
from bantam.training.finished import Run


class Study(optuna.Study):
    """An Optuna study, with the folder of its trials."""

    def __init__(self, name: str, database: BaseStorage, folder: Path) -> None:
        """`folder` holds a folder for each trial, and the report."""
        super().__init__(name, database)
        self.folder = folder

    @property
    def best(self) -> Run:
        """The run of the best trial, which is what `best.yaml` repeats; of several seeds the first."""
        found = outcome.best(trials.read(self))
        if found is None:
            raise ValueError(f"no trial of the study in {self.folder} was trained to its end")
        return Run(self.folder / str(found.number))

    def __repr__(self) -> str:
        """What it is called, and where it is."""
        return f"Study({str(self.folder)!r}, {len(trials.ended(trials.read(self)))} trials have ended)"


@errors.told_shortly
def search(*words: str, config_dir: str | os.PathLike[str] | None = None, **settings: Any) -> Study:
    """Search with the overrides of `train.py -m`, `bantam.search("hparams_search=optuna", n_trials=10)`.

    `settings` are keys of hydra.sweeper: n_trials, n_jobs, study_name, timeout, … `config_dir` is as --config-dir.
    It trains in processes of its own, and the same call continues what was stopped. Raises ValueError with one
    sentence for what cannot be searched, and KeyboardInterrupt where it was stopped.
    """
    given = overrides.from_python.set(words)
    try:
        config.register()
        sweeper.register()
        place = Path(config_dir).absolute() if config_dir is not None else None
        composed = launch.compose(_readable(words), place, RunMode.MULTIRUN)
        if composed.hydra.sweeper._target_ != launch.SWEEPER:
            raise ValueError(
                "bantam.search needs to know what it searches: give it hparams_search=optuna, or "
                "hydra/sweeper=bantam with ranges, as in optimizer.lr=interval(0.01,0.1)"
            )
        words = (*words, *(overrides.override(f"hydra.sweeper.{key}", value) for key, value in settings.items()))
        composed = launch.compose(words, place, RunMode.MULTIRUN)
        here = [overrides.override(key, value) for key, value in _of_now(composed).items()]
        own = ["--config-dir", str(place)] if place else []
        _run([str(resolve.project() / "train.py"), "-m", *own, *words, *here])
    finally:
        overrides.from_python.reset(given)
    hydra = composed.hydra
    return Study(str(hydra.sweeper.study_name), storage.open_storage(hydra), Path(hydra.sweep.dir).absolute())


def _readable(words: Sequence[object]) -> list[str]:
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f'{word!r} is no text: give overrides as in bantam.search("hparams_search=optuna")')
    return [str(word) for word in words]


def _of_now(composed: DictConfig) -> dict[str, str]:
    """Name and folder of the study where they are made of the time: the process that searches has another."""
    found = {}
    for key in ("hydra.sweeper.study_name", "hydra.sweep.dir"):
        parent: Any = composed.hydra.sweeper if key.endswith("study_name") else composed.hydra.sweep
        name = key.rpartition(".")[2]
        if "${now:" in str(parent._get_node(name)._value()):
            found[key] = str(parent[name])
            parent[name] = found[key]
    return found


def _run(command: Sequence[str]) -> None:
    """Run a command of Bantam to its end, and show what it prints. Raises what it says went wrong."""
    folder = str(resolve.project() / "src")
    path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, errors.PARENT: str(os.getpid())}
    piped = None  # in a terminal the command shows its own live table
    if not sys.stdout.isatty():
        piped = subprocess.PIPE
        environment["TTY_COMPATIBLE"] = "0"  # a notebook says to its processes that it has colours
        environment.pop("FORCE_COLOR", None)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        with subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=piped,
            stderr=stderr,
            env=environment,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # an interrupt reaches it once, from here
        ) as process:
            try:
                code = _follow(process)
            finally:
                if process.poll() is None:
                    process.kill()
        stderr.seek(0)
        _judge(code, stderr)


def _follow(process: subprocess.Popen[str]) -> int:
    """Show what a process prints until it ends; interrupts are handed on, the third one kills it."""
    interrupts = 0
    while True:
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
            return process.wait()
        except KeyboardInterrupt:
            interrupts += 1
            if os.name == "posix" and interrupts < 3:
                process.send_signal(signal.SIGINT)
            else:
                process.terminate() if interrupts < 3 else process.kill()


def _judge(code: int, stderr: IO[str]) -> None:
    """Raise what a process has written about its end: ValueError for a sentence, else RuntimeError."""
    said = stderr.read().strip()
    if code in (130, 143):
        raise SystemExit(code)
    if code == 0:
        if said:
            print(said, file=sys.stderr)
        return
    sentence = re.search(r"^Error: (.*(?:\n.*)*)", said, flags=re.MULTILINE)
    if sentence and "Traceback (most recent call last)" not in said:
        raise ValueError(sentence[1])
    raise RuntimeError(f"the search has ended with exit code {code}:\n{said}")
