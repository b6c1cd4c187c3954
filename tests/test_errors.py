"""How commands end: by a mistake, by a signal, by an error in one's own class, and in any terminal."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import PROJECT, Bantam, Forks
from omegaconf import OmegaConf
from single_runs import history

from bantam import errors
from bantam.training.folder import read_result, refuse_used

Few = tuple[str, ...]


def changed(folder: Path, name: str, code: str) -> str:
    """A script that runs a command with classes of one's own."""
    path = folder / f"{name}.py"
    path.write_text(
        f"import runpy, sys\n{code}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return str(path)


@pytest.mark.whole
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_multirun_that_a_signal_stops_starts_no_other_job_and_goes_on(
    bantam: Bantam, few: Few, tmp_path: Path, sign: signal.Signals, code: int, launcher: str
) -> None:
    line = ["-m", *few, "epochs=3", "seed=1,2,3", "report=false", "hydra.sweep.dir=my runs"]
    if launcher == "joblib":
        line += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    process = bantam.start("train.py", *line, hold=1)
    bantam.wait_until_held("0")
    process.send_signal(sign)
    output, _ = process.communicate(timeout=60)
    assert process.wait() == code, output
    assert "Traceback" not in output
    assert not (tmp_path / "my runs" / "1").exists()
    assert "Stopped. Finished jobs are kept; continue with:" in output
    again = output[output.index("continue with:\n") :].splitlines()[1]
    assert again.startswith("python ")
    assert "my runs" in again
    bantam.let_go()
    done = bantam("train.py", *line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "job 0, v2 epoch  1/3" not in done.stdout
    assert bantam("train.py", *few, "epochs=3", "hydra.run.dir=whole").returncode == 0
    assert history(tmp_path / "my runs" / "0") == history(tmp_path / "whole")


@pytest.mark.whole
def test_a_run_that_is_terminated_says_how_it_goes_on(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    process = bantam.start("train.py", *few, "epochs=3", "hydra.run.dir=run", hold=1)
    bantam.wait_until_held("run")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.wait() == 143
    assert "Continue with:\npython train.py resume=run" in output
    bantam.let_go()
    assert bantam("train.py", "resume=run").returncode == 0


ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "TERM": "dumb"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
PLAIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}


@pytest.fixture(params=[ASCII, LATIN, PLAIN], ids=["ascii", "latin-1", "C"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Variables of a terminal that cannot show everything."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def there(environment: dict[str, str], forks: Forks, tmp_path: Path) -> Iterator[Bantam]:
    """Runs commands in `environment`: in forks of a Python that was started in it where that reads it early."""
    own = Forks("latin-1", **environment) if environment is PLAIN else forks
    commands = Bantam(tmp_path, own, **environment)
    yield commands
    commands.close()
    if own is not forks:
        own.close()


@pytest.mark.slow
def test_output_that_a_terminal_cannot_show_degrades(
    there: Bantam, environment: dict[str, str], finished_study: Path, few: Few, tmp_path: Path
) -> None:
    def run(script: str, *arguments: str, code: int = 0) -> str:
        done = there(script, *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    name = "run" if environment is PLAIN else "r\u00fcn"
    shown = run("train.py", *few, f"hydra.run.dir='{name}'", "dry_run=true")
    assert ("3\u00d73" if environment is LATIN else "3?3") in shown
    run("train.py", *few, f"hydra.run.dir='{name}'")
    run("train.py", "-m", *few, "hydra.sweep.dir=runs", "hydra/launcher=joblib", "seed=1,2")
    for script in ("evaluate.py", "table.py", "report.py"):
        run(script, name)
        run(script, "--help")
    assert "×" in (tmp_path / name / "report.html").read_text(encoding="utf-8")
    assert "10,897 parameters" in run("train.py", "model.width=17", code=1)
    if environment is PLAIN:
        refused = there.interpreter("train.py", *few, "hydra.run.dir='r\u00fcn'", **environment)
        assert refused.returncode == 1
        assert "Traceback" not in refused.stderr
        assert "set PYTHONUTF8=1" in refused.stderr
    study = shutil.copytree(finished_study, tmp_path / "multirun" / "optuna")
    run("report.py", str(study.relative_to(tmp_path)))
    run("confirm.py", "--help")


@pytest.mark.whole
@pytest.mark.parametrize(
    ("code", "override", "said"),
    [
        (
            "import bantam.augmentation as a\n"
            "def call(self, *arguments, **named):\n"
            "    return 1 / 0\n"
            "a.Augmentation.draw = call",
            "augmentation=study",
            "augmentation=study fails: ZeroDivisionError in {}, line 4: division by zero",
        ),
        (
            "import bantam.models as m\n"
            "def forward(self, images):\n"
            "    return images.nonsense\n"
            "m.V2.forward = forward",
            "model=v2",
            "model=v2: a 1×28×28 image does not fit through this network: AttributeError in {}, line 4: ",
        ),
        (
            "import bantam.models as m\n"
            "def init(self, **keys):\n"
            "    self.none = {}['width']\n"
            "m.V2.__init__ = init",
            "model=v2",
            "model=v2 cannot be built: KeyError in {}, line 4: 'width'",
        ),
        (
            "import bantam.schedulers as s\n"
            "def rate(self, lr, epoch, losses):\n"
            "    return losses[7]\n"
            "s.OneCycle.rate = rate",
            "scheduler=one_cycle",
            "scheduler=one_cycle cannot be built: IndexError in {}, line 4: list index out of range",
        ),
    ],
    ids=["augmentation", "forward", "model", "scheduler"],
)
def test_an_error_in_ones_own_class_names_file_line_group_and_option(
    bantam: Bantam, few: Few, tmp_path: Path, code: str, override: str, said: str
) -> None:
    script = changed(tmp_path, "mine", code)
    train = str(PROJECT / "train.py")
    done = bantam(script, train, *few, override, "hydra.run.dir=run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line)
    assert said.format(script) in line
    shown = bantam(script, train, *few, override, "hydra.run.dir=again", HYDRA_FULL_ERROR="1")
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    line = ["-m", *few, override, "hydra.sweep.dir=runs", "report=false"]
    jobs = bantam(script, train, *line)
    assert jobs.returncode == 1
    assert "Traceback" not in jobs.stdout + jobs.stderr
    assert said.format(script) in " ".join(jobs.stdout.split())
    jobs = bantam(script, train, *line[:-2], "hydra.sweep.dir=others", "report=false", HYDRA_FULL_ERROR="1")
    assert "Traceback" in jobs.stdout + jobs.stderr


FULL = "def full(*arguments, **named):\n    raise OSError(28, 'No space left on device')\n"


@pytest.mark.parametrize("script", ["evaluate.py", "report.py", "table.py"])
def test_a_machine_that_fails_is_one_sentence_in_every_command(
    bantam: Bantam, finished_run: Path, tmp_path: Path, script: str
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "README.md").write_text("<!-- table -->\n<!-- /table -->\n")
    where, name = ("evaluate", "score") if script == "evaluate.py" else ("folder", "write")
    mine = changed(tmp_path, "mine", f"import bantam.training.{where} as module\n{FULL}module.{name} = full")
    line = [str(PROJECT / script), run.name, *(["--into", "README.md"] if script == "table.py" else [])]
    done = bantam(mine, *line)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (said,) = (line for line in done.stderr.splitlines() if line)
    assert said.startswith("Error: ")
    assert "No space left on device" in said
    assert any(word in said for word in ("mend that", "give another"))
    if script == "evaluate.py":
        assert "Traceback" in bantam(mine, *line, HYDRA_FULL_ERROR="1").stderr


@pytest.mark.whole
def test_nobody_reads_on(bantam: Bantam, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    mine = changed(tmp_path, "closed", "import os\nr, w = os.pipe()\nos.dup2(w, 1)\nos.close(r)\nos.close(w)")
    done = bantam.interpreter(mine, str(PROJECT / "report.py"), "run")
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert os.path.exists(tmp_path / "run" / "report.html")


@pytest.mark.parametrize("line", [["hydra.run.dir=runs"], ["-m", "hydra.sweep.dir=runs", "seed=1,2"]])
def test_a_disk_that_is_full_at_the_start_is_one_sentence(
    bantam: Bantam, few: Few, tmp_path: Path, line: list[str]
) -> None:
    code = (
        "import tempfile\n"
        "def full(*arguments, **named):\n"
        "    raise OSError(28, 'No space left on device')\n"
        "tempfile.TemporaryFile = full"
    )
    done = bantam(changed(tmp_path, "full", code), str(PROJECT / "train.py"), *few, *line)
    assert done.returncode == 1
    (said,) = (line for line in done.stderr.splitlines() if line)
    assert said.endswith(".dir=runs cannot be written (No space left on device): choose another one")


@pytest.mark.whole
def test_a_disk_that_is_full_between_two_jobs_is_one_sentence(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    code = (
        "import hydra.core.utils as u\n"
        "save = u._save_config\n"
        "def full(cfg, filename, output_dir):\n"
        "    if output_dir.parent.name == '1':\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    save(cfg, filename, output_dir)\n"
        "u._save_config = full"
    )
    line = [str(PROJECT / "train.py"), "-m", *few, "seed=1,2", "hydra.sweep.dir=runs", "report=false"]
    done = bantam(changed(tmp_path, "full", code), *line)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (said,) = (line for line in done.stderr.splitlines() if line)
    assert said.startswith(
        "Error: runs was not trained (OSError: [Errno 28] No space left on device; the traceback"
    )
    assert said.endswith("mend that, and type the same line again")
    again = bantam("train.py", *line[1:])
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stdout


OWN_FAULT = "import bantam.training.setup as s\ndef mine(name):\n    return int('not a number')\ns._device = mine"
"""A ValueError that Python raises within Bantam: no sentence for the user."""


@pytest.mark.whole
def test_a_fault_of_ours_is_not_shown_as_a_mistake_of_the_user(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    script, train = changed(tmp_path, "mine", OWN_FAULT), str(PROJECT / "train.py")
    single = bantam(script, train, *few, "hydra.run.dir=run")
    assert single.returncode == 1
    (said,) = (line for line in single.stderr.splitlines() if line)
    assert "ValueError" in said
    assert "the traceback is in" in said
    jobs = bantam(script, train, "-m", *few, "hydra.sweep.dir=runs", "report=false")
    assert jobs.returncode == 1
    assert read_result(tmp_path / "runs" / "0")["verdict"] == "failed"
    assert "not a number" in (tmp_path / "runs" / "0" / "error.txt").read_text()
    shown = bantam(script, train, "-m", *few, "hydra.sweep.dir=others", "dry_run=true")
    assert shown.returncode == 1
    assert "the traceback is in" in shown.stderr
    search = ("hydra/sweeper=bantam", "hydra.sweep.dir=study", "optimizer.lr=interval(0.01,0.1)")
    searched = bantam(script, train, "-m", *few, *search, "data.validation=100")
    assert searched.returncode == 1
    (said,) = (line for line in searched.stderr.splitlines() if line)
    assert "the traceback is in" in said
    evaluated = bantam(changed(tmp_path, "other", OWN_FAULT), str(PROJECT / "evaluate.py"), "runs/0")
    assert evaluated.returncode == 1


@pytest.mark.parametrize(
    ("raised", "meant"),
    [
        (lambda: refuse_used(Path(".")), True),
        (lambda: int("x"), False),
        (lambda: json.loads("{"), False),
        (lambda: (_ for _ in ()).throw(ValueError("not of Bantam")), False),
        (lambda: torch.zeros(2).reshape(3), False),
        (lambda: OmegaConf.create({"a": "${b}"}).a, True),
    ],
)
def test_only_what_bantam_says_is_meant_for_users(
    raised: Callable[[], object], meant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "history.csv").touch()
    with pytest.raises(Exception) as caught:  # noqa: PT011
        raised()
    assert errors.is_meant_for_users(caught.value) == meant


def test_a_schedule_that_fails_in_the_training_is_blamed_itself(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    code = (
        "import bantam.schedulers as s\n"
        "def rate(self, lr, epoch, losses):\n"
        "    return float('nan') if losses and losses[-1] != 1.0 else lr\n"
        "s.OneCycle.rate = rate"
    )
    line = [str(PROJECT / "train.py"), *few, "scheduler=one_cycle", "epochs=3", "hydra.run.dir=run"]
    done = bantam(changed(tmp_path, "mine", code), *line)
    assert done.returncode == 1
    assert "scheduler=one_cycle sets the learning rate of epoch 2 to nan: change scheduler.*" in done.stderr
    assert "optimizer.lr" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x[:, :5] if self.training else x", "returns 2×5 for two images in training, not 2×10"),
        ("(x, x) if self.training else x", "returns tuple for two images in training, not 2×10"),
        ("x.nonsense if self.training else x", "cannot compute a batch of two images in training: AttributeError"),
        ("x.detach()", "returns logits that have no gradient"),
        ("x.argmax(1, keepdim=True).expand(-1, 10)", "returns logits that have no gradient"),
    ],
)
def test_a_network_that_is_wrong_in_training_only_is_named(
    bantam: Bantam, few: Few, tmp_path: Path, body: str, said: str
) -> None:
    code = (
        "import bantam.models as m\n"
        "forward = m.V2.forward\n"
        "def mine(self, images):\n"
        "    x = forward(self, images)\n"
        f"    return {body}\n"
        "m.V2.forward = mine"
    )
    script = changed(tmp_path, "mine", code)
    done = bantam(script, str(PROJECT / "train.py"), *few, "hydra.run.dir=run")
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line)
    assert f"model=v2 {said}" in line
    assert f"{script}, line " in line
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_no_empty_traceback(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    code = (
        "import bantam.training.folder as f\n"
        "def full(path, content):\n"
        "    path.with_name('.x.part').write_bytes(b'')\n"
        "    path.with_name('.x.part').unlink()\n"
        "    raise OSError(28, 'No space left on device')\n"
        "f._write_aside = full"
    )
    done = bantam(changed(tmp_path, "full", code), str(PROJECT / "train.py"), *few, "hydra.run.dir=run")
    assert done.returncode == 1
    assert "HYDRA_FULL_ERROR=1 shows it" in done.stderr
    assert not (tmp_path / "run" / "error.txt").exists()


def test_help_that_nobody_reads_to_its_end_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, str(PROJECT / "train.py"), "--help"]
    done = subprocess.run(line, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""
