"""The commands of the README, of the guide, and of the pages about search and report are run, shortened.

Those in blocks that say ```sh are not run; `test_docs.py` checks them, and the commands of all other pages.
"""

import re
import shlex
import shutil
from pathlib import Path

import pages
import pytest
from commands import Bantam
from conftest import PROJECT

README = (PROJECT / "README.md").read_text()
RUN = [PROJECT / "README.md", *(PROJECT / "docs" / name for name in ("guide.md", "search.md", "report.md"))]
COMMANDS = pages.commands(RUN[0])
INSTALLS = [
    "pip install -e . && python train.py model=v2 optimizer.lr=0.025",
    "pip install -e '.[dev]' && pytest -n auto",
]
DAILY = (
    "python train.py model=v2 optimizer.lr=0.025",
    "python train.py -m model=skeleton,v1,v2",
    "python train.py -m hparams_search=optuna",
    "python train.py -m experiment=champion 'seed=range(0,10)'",
)


def shortened(words: list[str]) -> list[str]:
    """A training command with overrides that make it a matter of seconds."""
    words = [re.sub(r"range\((\d+),\d+\)", r"range(\1,2)", word) for word in words]
    words = [re.sub(r"^epochs=\d+$", "epochs=2", word) for word in words]
    words = ["data.validation=100" if word == "data.validation=5000" else word for word in words]  # of 300
    if any(word.startswith(("hparams_search=", "hydra/sweeper=bantam")) for word in words):
        words += ["hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "data.validation=100"]
    if "--help" in words or any(word.startswith("resume=") for word in words):
        return words
    return [
        *words,
        *(
            item
            for item in ("epochs=1", "pictures=false", "report=false", "threads=1")
            if not any(item in word for word in words)
        ),
    ] + ([] if any(word.startswith("data=") for word in words) else ["data=fashion_mnist"])


def test_the_readme_has_its_commands() -> None:
    assert COMMANDS[:2] == INSTALLS
    for command in DAILY:
        assert command in COMMANDS


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.whole
@pytest.mark.parametrize(
    "command",
    [
        *(command for command in COMMANDS if command not in INSTALLS),
        *(
            pytest.param(command, marks=pytest.mark.slow)
            for command in dict.fromkeys(command for page in RUN[1:] for command in pages.commands(page))
            if command not in COMMANDS
        ),
    ],
)
def test_command(
    bantam: Bantam, few_root: Path, finished_run: Path, finished_study: Path, tmp_path: Path, command: str
) -> None:
    python, script, *words = shlex.split(command)
    assert python == "python"
    if "<date>/<time>" in command:
        folder = tmp_path / "outputs" / "date" / "time"
        shutil.copytree(finished_run, folder)
        words = [word.replace("<date>/<time>", "date/time") for word in words]
        if words[0].startswith("resume="):  # as if it had been killed in its first epoch
            for file in folder.iterdir():
                if file.is_file():
                    file.unlink()
    elif script in ("report.py", "table.py"):  # of a multirun, which a command before has made
        shutil.copy(PROJECT / "README.md", tmp_path)
        if words[0].startswith("docs/"):
            (tmp_path / "docs").symlink_to(PROJECT / "docs")
        else:
            shutil.copytree(finished_run, tmp_path / words[0] / "0")
    if script == "train.py":
        words = shortened(words)
    if script == "confirm.py":
        shutil.copytree(finished_study, tmp_path / "multirun" / "optuna")
        words += ["--top", "1", "--seeds", "2"]
    # The first command is run as a newcomer runs it, all others in forks.
    run = bantam.interpreter if command == DAILY[0] else bantam
    result = run(script, *words, BANTAM_DATA=str(few_root))
    refused = "model.width=17" in words
    assert result.returncode == (1 if refused else 0), result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    if refused:
        (promised,) = (line.strip() for line in README.splitlines() if line.strip().startswith("Error: "))
        assert result.stderr.splitlines()[0] == promised
        assert not (tmp_path / "outputs").exists()


@pytest.mark.whole
def test_adding_a_network_takes_the_class_of_the_readme(bantam: Bantam, tmp_path: Path) -> None:
    (class_,) = (block for language, block in pages.blocks(RUN[0]) if language == "python")
    (tmp_path / "mine.py").write_text(class_)
    assert "`python train.py model=mine.py:Tiny model.width=12`" in README
    arguments = ["model=mine.py:Tiny", "model.width=12", "data=mnist5k", "epochs=1", "pictures=false"]
    result = bantam("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert "conv 5×5 → ReLU" in result.stdout
    # Its folder has a name of its own: two commands of one second would share one.
    arguments += ["model.width=60", "hydra.run.dir=wide"]
    result = bantam("train.py", *arguments)
    assert result.returncode == 1
    assert "model=mine.py:Tiny has 11,110 parameters, 1,111 over the 9,999" in result.stderr
