"""Searches from code: in a process of their own, which is shown, interrupted, and never left alone."""

import builtins
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bantam as package
from bantam import errors, overrides
from bantam.search import python

Few = tuple[str, ...]

search: Any = package.search
"""The package, which is a function too."""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (
            ("model=v2",),
            {"n_trials": 2},
            "bantam.search needs to know what it searches: give it hparams_search=optuna",
        ),
        (
            ("hparams_search=optuna",),
            {"n_trial": 2},
            "hydra.sweeper.n_trial is no key: did you mean hydra.sweeper.n_trials=2",
        ),
        (("hparams_search=optuna", "optimizer.lrr=1"), {}, "optimizer.lrr is no key: did you mean optimizer.lr=1"),
        (
            ("hparams_search=optunna",),
            {},
            "hparams_search=optunna does not exist: did you mean hparams_search=optuna",
        ),
        ((10,), {}, "10 is no text: give overrides as in"),
        (("hparams_search=optuna",), {"config_dir": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_sentence_before_a_process_starts(
    words: tuple[Any, ...], settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(python, "_run", None)
    with pytest.raises(ValueError, match=message) as raised:
        search(*words, **settings)
    assert "\n" not in str(raised.value)
    assert overrides.from_python.get() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.whole
def test_a_search_leaves_its_study(few: Few, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = {"n_trials": 1, "n_jobs": 1, "study_name": "small"}
    study = search("hparams_search=optuna", *few, "data.validation=100", "report=false", **one)
    said = capfd.readouterr().out
    assert re.search(r"trial   0 complete", said)
    assert study.folder == tmp_path / "multirun" / "small"
    assert study.best.folder == study.folder / "0"
    assert study.best_value == study.best.objective
    assert list(study.trials_dataframe().state) == ["COMPLETE", "WAITING"]  # a known setting is in the queue
    assert study.best.load().predict(study.best.load().mean.new_zeros(28, 28).byte()).classes.shape == (1,)
    assert repr(study) == f"Study({str(study.folder)!r}, 1 trials have ended)"


def test_a_folder_that_is_called_as_the_time_is_the_one_that_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(python, "_run", commands.append)
    monkeypatch.setattr(python.storage, "open_storage", lambda hydra: None)  # type: ignore[attr-defined]
    monkeypatch.setattr(python, "Study", lambda name, database, folder: folder)
    folder = search("hydra/sweeper=bantam", "optimizer.lr=interval(0.01,0.1)", n_trials=3)
    (command,) = commands
    assert command[1:4] == ["-m", "hydra/sweeper=bantam", "optimizer.lr=interval(0.01,0.1)"]
    assert "hydra.sweeper.n_trials=3" in command
    assert f"hydra.sweep.dir={folder.relative_to(Path.cwd())}" in command
    named = search("hparams_search=optuna", config_dir=".")
    assert named == Path.cwd() / "multirun" / "optuna"
    assert commands[1][1:] == ["-m", "--config-dir", str(Path.cwd()), "hparams_search=optuna"]


PATIENT = """
import signal, sys, time
def stop(number, frame):
    print("requeued", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
print("trial 0", flush=True)
time.sleep(600)
"""


def test_an_interrupt_is_handed_on_and_the_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def interrupted(text: str, **others: Any) -> None:
        said.append(text)
        if text == "trial 0\n":
            raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        errors.told_shortly(python._run)(["-c", PATIENT])
    assert said == ["trial 0\n", "requeued\n"]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "import sys; sys.exit('Error: n_trials is 0:\\n it must be more')",
            ValueError,
            "n_trials is 0: it must be",
        ),
        ("1 / 0", RuntimeError, "exit code 1:\nTraceback .*ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(130)", KeyboardInterrupt, ""),
    ],
)
def test_what_a_search_says_went_wrong_is_raised(code: str, error: type[BaseException], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        errors.told_shortly(python._run)(["-c", code])


def test_what_is_printed_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    python._run(["-c", "from rich.console import Console; print(Console().is_terminal)"])
    assert capsys.readouterr() == ("False\n", "")
    python._run(["-c", "import sys; print('trial 0: 99 ×'); print('a warning', file=sys.stderr)"])
    assert capsys.readouterr() == ("trial 0: 99 ×\n", "a warning\n")


@pytest.mark.skipif(sys.platform == "win32", reason="processes have parents on POSIX only")
def test_a_search_ends_with_the_process_that_began_it() -> None:
    child = (
        "from bantam import errors; import time; errors._end_with_parent(); print(1, flush=True); time.sleep(600)"
    )
    parent = (
        "import os, subprocess, sys; from bantam import errors; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, stderr=sys.stdout, "
        "env={**os.environ, errors.PARENT: str(os.getpid())}); child.stdout.readline(); print(1, flush=True); "
        "os.close(1); os.close(2); os._exit(0)"
    )
    # The child keeps the pipe for its errors open as long as it lives.
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.stdout == "1\n"
