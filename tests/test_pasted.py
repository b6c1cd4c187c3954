"""Commands that are printed to be pasted are quoted for the shell and for Hydra, whatever a folder is called."""

import ast
import shlex
from pathlib import Path

import pytest
from commands import PROJECT, Bantam
from conftest import SMALL
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_folders import write_run
from omegaconf import DictConfig

from bantam import errors, launch, markdown
from bantam.overrides import command_line, override, resuming
from bantam.report import folders, groups, runs
from bantam.search import outcome
from bantam.training import folder as files
from bantam.training import terminal
from bantam.training.setup import RunInfo

NAME = "s, (x)=ü it's [1] {2} $HOME?"


def typed(said: str, after: str, before: str = "") -> list[str]:
    """The words that a shell makes of the command that is said between two phrases."""
    _, found, rest = said.partition(after)
    assert found, said
    return shlex.split(rest.partition(before)[0] if before else rest)


def resumes(words: list[str], folder: Path) -> bool:
    """Whether a command continues the run in a folder, as Hydra reads it."""
    assert words[:2] == ["python", "train.py"]
    (parsed,) = OverridesParser.create().parse_overrides(words[2:])
    return parsed.key_or_group == "resume" and str(parsed.value()) == str(folder)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in a folder with an odd name, below the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = write_run(Path(NAME))
    (folder / "checkpoint.pt").touch()
    return folder


def test_what_continues_a_run_can_be_pasted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="already holds a run") as used:
        files.refuse_used(run)
    assert resumes(typed(str(used.value), "continue it with ", ", or choose"), run)
    terminal.show_interruption(RunInfo(run.absolute(), {}, 1, None), 2, 3)
    assert resumes(typed(capsys.readouterr().out, "Continue with:\n"), run)
    with pytest.raises(SystemExit), errors.in_one_sentence(run):
        raise OSError(28, "No space left on device")
    assert resumes(typed(capsys.readouterr().err, "when that is mended, ", " continues it"), run)
    (run / "result.json").unlink()
    assert resumes(typed(runs.read_run(run).reason, "goes on with "), run)
    with pytest.raises(ValueError, match="unfinished") as unfinished:
        markdown.table(groups.group(folders.gather([run]).runs))
    assert resumes(typed(str(unfinished.value), "finish it with ", ", or leave"), run)
    assert resumes(shlex.split(resuming(run)), run)


@pytest.mark.whole
def test_what_is_to_be_left_out_can_be_found_in_what_was_typed(bantam: Bantam, run: Path, tmp_path: Path) -> None:
    given = override("data.root", NAME)
    done = bantam("train.py", override("resume", NAME), given, "epochs=7")
    assert done.returncode == 1
    done = bantam("train.py", "-m", override("resume", NAME), *SMALL, "dry_run=true")
    assert "resume continues one run: leave -m out" in done.stdout
    done = bantam("train.py", "-m", override("resume", NAME), *SMALL)
    assert done.stderr == "Error: resume continues one run: leave -m out\n"
    assert not (tmp_path / "multirun").exists()
    done = bantam("confirm.py", NAME, override("data.root", NAME))
    assert done.returncode == 1
    with pytest.raises(ValueError, match="leave .* out") as refused:
        outcome._apply(DictConfig({}), given, run)
    assert typed(str(refused.value), "leave ", " out") == [given]


def test_a_multirun_that_was_stopped_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "-m", override("data.root", NAME), "seed=1,2"])
    words = shlex.split(launch._again(DictConfig({"hydra": {"sweep": {"dir": NAME}}})))
    assert words[2:] == ["-m", override("data.root", NAME), "seed=1,2", override("hydra.sweep.dir", NAME)]


@pytest.mark.parametrize("words", [["a b"], ["x=(1)", "ü"], [override("k", NAME)]])
def test_a_shell_makes_the_same_words_of_it(words: list[str]) -> None:
    assert shlex.split(command_line(words)) == words


def test_a_path_is_no_option_of_the_command() -> None:
    assert command_line(["python", "confirm.py", Path("-s"), "-m"]) == "python confirm.py ./-s -m"


def printed_by_hand(tree: ast.AST) -> list[int]:
    """The lines in which a text with values is made into a command without `command_line`."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for text, value in zip(node.values, node.values[1:], strict=False):
            before = text.value if isinstance(text, ast.Constant) else ""
            asks = before.endswith(("resume=", "--config-dir ", "hydra.sweep.dir=", "hydra.run.dir=", "leave "))
            command = any(
                f"python {name}.py" in str(before) for name in ("train", "confirm", "report", "evaluate")
            )
            if isinstance(value, ast.FormattedValue) and (asks or command):
                quoted = {"command_line", "resuming", "override", "group"} & {
                    name.id for name in ast.walk(value) if isinstance(name, ast.Name)
                }
                found += [] if quoted else [node.lineno]
    return found


def test_no_command_is_made_by_hand() -> None:
    sources = [*(PROJECT / "src").rglob("*.py"), *PROJECT.glob("*.py")]
    found = {path.name: printed_by_hand(ast.parse(path.read_text())) for path in sources}
    assert {name: lines for name, lines in found.items() if lines} == {}
