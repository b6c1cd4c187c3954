"""The command line: what people type and what they get, in processes of their own."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Bantam, Forks
from conftest import PROJECT, SMALL
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict, read_write
from searches import wait_for
from single_runs import history

from bantam import launch
from bantam import overrides as quoting
from bantam.kernels import compiler
from bantam.search import sweeper


def only_run(tmp_path: Path) -> Path:
    """The folder of the only single run."""
    (folder,) = tmp_path.glob("outputs/*/*")
    return folder


@pytest.mark.whole
def test_a_typo_is_refused_before_torch_is_imported(bantam: Bantam, tmp_path: Path) -> None:
    # An interpreter of its own, since it is about what that imports.
    for override, message in (
        ("optimizer.lrr=1", "Error: optimizer.lrr is no key: did you mean optimizer.lr=1?"),
        ("optimizer.lr=nan", "Error: optimizer.lr is nan: it must be a finite number above 0"),
    ):
        result = bantam.interpreter("train.py", override, options=("-X", "importtime"))
        assert result.returncode == 1
        imported = [line.split("|")[-1].strip() for line in result.stderr.splitlines() if "import time:" in line]
        assert "hydra" in imported
        assert not {"torch", "optuna", "numpy", "sklearn", "matplotlib"} & set(imported)
        said = "\n".join(line for line in result.stderr.splitlines() if "import time:" not in line)
        assert message in said
        assert "Traceback" not in said
        assert not list(tmp_path.iterdir())


def test_over_budget_is_one_sentence_above_the_table_and_no_folder(bantam: Bantam, tmp_path: Path) -> None:
    result = bantam("train.py", "model=v2", "model.width=17")
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert lines[0] == (
        "Error: model=v2 has 10,897 parameters, 898 over the 9,999 that budget.parameters=10,000 allows: "
        "lower model.width to 16 or raise budget.parameters"
    )
    assert lines[3].split() == ["layer", "output", "field", "parameters", "multiply-adds"]
    assert lines[-1].split() == ["total", "10,897", "2,121,974"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.run.dir=file/run"], "hydra.run.dir=file/run cannot be written"),
        (["resume=nowhere"], "nowhere is no run folder: it does not exist"),
        (["resume=empty"], "empty is no run folder"),
        (["data=mnist", "data.root=damaged"], "train-images-idx3-ubyte is truncated or altered"),
        (["model._target_=os.system", "+model.command=touch proof"], "whitelist"),
        (["-m", "hydra.sweep.dir=file/runs"], "hydra.sweep.dir=file/runs cannot be written"),
        (["hydra.run.dir=${nothing}"], "Interpolation key 'nothing' not found"),
        (["-m", "hydra.sweep.dir=${nothing}"], "Interpolation key 'nothing' not found"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_one_error_and_nothing_is_written(
    bantam: Bantam, tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    raw = tmp_path / "damaged" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        kind = "idx3" if "images" in name else "idx1"
        (raw / f"{name}-{kind}-ubyte").write_bytes(b"\x00" * 16)
    before = sorted(tmp_path.rglob("*"))
    result = bantam("train.py", *overrides)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (("model=[v1,v2]", "dry_run=true"), "model=[v1,v2] chooses several options of one group: choose one, or"),
        (("-m", "scheduler=[step,cosine]"), "compare them, -m scheduler=step,cosine"),
    ],
)
def test_several_options_of_one_group_are_refused(
    bantam: Bantam, tmp_path: Path, line: tuple[str, ...], sentence: str
) -> None:
    done = bantam("train.py", *line)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_dry_run_shows_everything_and_trains_nothing(bantam: Bantam, tmp_path: Path) -> None:
    result = bantam("train.py", "data=mnist5k", "dry_run=true")
    assert result.returncode == 0
    assert not list(tmp_path.iterdir())
    words = " ".join(result.stdout.split())
    for text in (
        "9,680 parameters of fewer than 10,000; 15 epochs of at most 15",
        "32 an epoch, 480 in all, 128 images each",
        "sgd: lr 0.025, momentum 0.8",
        "0.025 0.025 0.025 0.025 0.025 0.025 0.0025",
        "total 9,680 1,885,408",
    ):
        assert text in words


COUNTING = """
import json, runpy, sys
from bantam import ranges, resolve
from bantam.training import setup

counts = {}

def counted(module, name):
    function = getattr(module, name)
    def call(*arguments):
        counts[name] = counts.get(name, 0) + 1
        return function(*arguments)
    setattr(module, name, call)

counted(ranges, "validate")
counted(resolve, "settle")
for name in ("prepare", "check_budget", "build_model", "build_optimizer", "_load_data", "dry_run_schedule"):
    counted(setup, name)
script = sys.argv[1]
sys.argv = sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    print("counts", json.dumps(counts))
"""
"""Runs a command and says how often what a configuration passes was called."""


def test_a_single_run_is_validated_counted_and_built_once(bantam: Bantam, tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    arguments = [*SMALL, "hydra.run.dir=run"]
    result = bantam(str(tmp_path / "counting.py"), str(PROJECT / "train.py"), *arguments)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1].removeprefix("counts "))
    assert len(counts) == 8
    assert set(counts.values()) == {1}
    assert (tmp_path / "run" / "result.json").exists()


def test_help_names_groups_options_and_the_commands(bantam: Bantam) -> None:
    result = bantam("train.py", "--help")
    assert result.returncode == 0
    commands = [line for line in result.stdout.splitlines() if line.strip().startswith("python ")]
    assert len(commands) == 14
    for text in (
        "model: dilated, flexible, shared, skeleton, v1, v2",
        "scheduler: constant, cosine",
        "target:",
        "batch_size: 128",
    ):
        assert text in result.stdout
    assert "schema" not in result.stdout


def test_shell_completion_knows_groups_and_keys(bantam: Bantam) -> None:
    def complete(line: str) -> str:
        return bantam("train.py", "-sc", "query=bash", COMP_LINE=f"python train.py {line}", COMP_POINT="99").stdout

    assert "model=skeleton" in complete("model=")
    assert "optimizer.lr=" in complete("optimizer.")


@pytest.mark.whole
def test_a_multirun_goes_on_after_refused_and_diverged_jobs(bantam: Bantam, tmp_path: Path) -> None:
    result = bantam("train.py", "-m", *SMALL, "model.width=17,4", "optimizer.lr=0.02,1e30", "hydra.sweep.dir=runs")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    verdicts = {}
    for number in range(4):
        verdicts[number] = json.loads((tmp_path / "runs" / str(number) / "result.json").read_text())
    assert [verdicts[i]["verdict"] for i in range(4)] == ["refused", "refused", "not judged", "diverged"]
    assert "10,897 parameters, 898 over" in verdicts[0]["reason"]
    assert not (tmp_path / "runs" / "0" / "weights.safetensors").exists()
    assert (tmp_path / "runs" / "2" / "weights.safetensors").exists()
    above, table = result.stdout[: result.stdout.rindex("folder")], result.stdout[result.stdout.rindex("folder") :]
    assert above.endswith("runs\n")
    assert re.findall(r"^(\d) ", table, flags=re.MULTILINE) == ["0", "1", "2", "3"]


def test_a_broken_job_is_recorded_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with initialize_config_dir(str(PROJECT / "conf")):
        config = compose("config", list(SMALL), return_hydra_config=True)
    with read_write(config), open_dict(config):
        config.hydra.mode = RunMode.MULTIRUN
        config.hydra.job.num = 3
        config.hydra.runtime.output_dir = str(tmp_path)
        HydraConfig.instance().set_config(config)
        del config["hydra"]

    def broken(*arguments: object) -> float:
        raise RuntimeError("the roof fell in")

    monkeypatch.setattr("bantam.training.run.run", broken)
    try:
        assert math.isnan(launch.job(config, sweeper.reporter))
    finally:
        HydraConfig.instance().cfg = None
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["verdict"], result["reason"]) == ("failed", "RuntimeError: the roof fell in")
    assert "in broken" in (tmp_path / "error.txt").read_text()


def test_a_fault_of_a_launcher_is_not_hidden_by_the_jobs_it_left(forks: Forks, tmp_path: Path) -> None:
    before = (
        "from hydra_plugins.hydra_joblib_launcher import _core\n"
        "def launch(*args, **kwargs):\n"
        "    raise KeyError('of the launcher')\n"
        "_core.launch = launch\n"
    )
    bantam = Bantam(tmp_path, forks, before)
    done = bantam("train.py", "-m", *SMALL, "hydra/launcher=joblib", "seed=1,2")
    bantam.close()
    assert done.returncode == 1
    assert "of the launcher" in done.stderr
    assert "left no folder" not in done.stdout


@pytest.mark.whole
def test_jobs_side_by_side_divide_the_threads(bantam: Bantam, tmp_path: Path) -> None:
    result = bantam(
        "train.py",
        "-m",
        *SMALL,
        "threads=null",
        "hydra/launcher=joblib",
        "seed=1,2",
        "hydra.sweep.dir=runs",
        "hydra.launcher.n_jobs=2",
    )
    assert result.returncode == 0, result.stderr
    results = [json.loads((tmp_path / "runs" / str(i) / "result.json").read_text()) for i in range(2)]
    assert [r["seed"] for r in results] == [1, 2]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert all(r["threads"] <= max(1, cores // 2) for r in results)
    assert results[0]["objective"] != results[1]["objective"]


@pytest.mark.whole
def test_a_used_folder_is_not_overwritten(bantam: Bantam, few: tuple[str, ...], tmp_path: Path) -> None:
    arguments = [*few, "hydra.run.dir=run"]
    assert bantam("train.py", *arguments).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    result = bantam("train.py", *arguments, "seed=2")
    assert result.returncode == 1
    assert "Error: run already holds a run (result.json)" in result.stderr
    shutil.copytree(tmp_path / "run", tmp_path / "a run, (x)")
    result = bantam("train.py", *few, quoting.override("hydra.run.dir", "a run, (x)"))
    line = quoting.command_line(["python", "train.py", quoting.override("resume", "a run, (x)")])
    assert f"continue it with {line}, or choose another folder" in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    result = bantam("train.py", "resume=run")
    assert result.returncode == 1
    assert "Error: run is finished (not judged): there is nothing to resume" in result.stderr


def interrupt(bantam: Bantam, arguments: list[str], epochs: int, sign: signal.Signals) -> tuple[int, str]:
    """Start a run in the folder run, send it a signal when so many epochs are done; its exit code and output."""
    process = bantam.start("train.py", *arguments, "hydra.run.dir=run", hold=epochs)
    bantam.wait_until_held("run")
    process.send_signal(sign)
    output, _ = process.communicate(timeout=60)
    return process.wait(), output


@pytest.mark.whole
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_an_interrupted_run_resumes_in_place_and_ends_bitwise_the_same(
    bantam: Bantam, few: tuple[str, ...], tmp_path: Path, sign: signal.Signals
) -> None:
    arguments = [*few, "epochs=8", "scheduler=one_cycle", "model.width=6"]
    code, output = interrupt(bantam, arguments, 3, sign)
    if sign == signal.SIGINT:
        assert code == 130
        assert "python train.py resume=run" in output
        assert "Traceback" not in output
    assert not (tmp_path / "run" / "result.json").exists()
    configuration = (tmp_path / "run" / ".hydra" / "config.yaml").read_bytes()

    result = bantam("train.py", "resume=run", "optimizer.lr=0.5")
    assert result.returncode == 1
    assert "Error: optimizer.lr is 0.5 here, but the run in run has 0.025" in result.stderr
    result = bantam("train.py", "resume=run", "model=v1")
    assert "Error: model is v1 here, but the run in run has v2: " in result.stderr
    result = bantam("train.py", "resume=run", "model.width=8", "augmentation=study")
    assert "leave model.width=8 augmentation=study out" in result.stderr

    result = bantam("train.py", "resume=run", "optimizer.lr=0.025")  # the run's own value contradicts nothing
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / ".hydra" / "config.yaml").read_bytes() == configuration
    assert bantam("train.py", *arguments, "hydra.run.dir=whole").returncode == 0
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    run, whole = (tmp_path / name / "weights.safetensors" for name in ("run", "whole"))
    assert run.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.whole
def test_evaluate_a_finished_run(bantam: Bantam, finished_run: Path, tmp_path: Path, mnist_root: str) -> None:
    folder = str(shutil.copytree(finished_run, tmp_path / "run"))
    result = bantam("evaluate.py", folder)
    assert result.returncode == 0, result.stderr
    assert "of 1,000 held-out images of mnist5k, exactly as recorded" in result.stdout
    result = bantam("evaluate.py", folder, "data=mnist", BANTAM_DATA=mnist_root)
    assert result.returncode == 0, result.stderr
    assert (
        "of 10,000 test images of MNIST. The run itself was scored on 1,000 held-out images of mnist5k"
        in result.stdout
    )
    for arguments, message in (
        ((str(tmp_path),), "is no run folder"),
        ((folder, "optimizer.lr=1"), "optimizer.lr belongs to the run"),
        ((folder, "data=nope"), "data=nope does not exist: "),
    ):
        result = bantam("evaluate.py", *arguments)
        assert result.returncode == 1
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_fallback_to_mnist5k_cannot_be_overlooked(bantam: Bantam, tmp_path: Path) -> None:
    # No proxy answers at this address, so nothing can be downloaded, wherever the test runs.
    refused = "http://127.0.0.1:9"
    result = bantam(
        "train.py", "model.width=4", "epochs=1", "pictures=false", BANTAM_DATA=str(tmp_path / "none"),
        http_proxy=refused, https_proxy=refused, HTTP_PROXY=refused, HTTPS_PROXY=refused,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Training on mnist5k: 4,000 images only" in result.stdout
    recorded = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert recorded["data"] == "mnist5k"
    assert recorded["verdict"] == "not judged"
    assert "could not be downloaded" in recorded["reason"]


@pytest.mark.whole
@pytest.mark.parametrize("chdir", ["true", "false"])
def test_a_dry_run_creates_nothing(bantam: Bantam, tmp_path: Path, chdir: str) -> None:
    small = ("data=mnist5k", "data.validation=1000", "dry_run=true", f"hydra.job.chdir={chdir}")
    for words, code, shown in (
        (small, 0, "411 parameters"),
        (("-m", "seed=1,2", *small), 0, "411 parameters"),
        (("-m", "seed=1,2", "hydra/launcher=joblib", *small), 0, "411 parameters"),
        (("-m", "model.width=3,90", *small), 1, "refused"),
        (("-m", "hparams_search=optuna", *small), 1, "dry_run is about one run"),
        (("-m", "hydra/sweeper=bantam", "optimizer.lr=interval(0.01,0.1)", *small), 1, "dry_run is about one run"),
    ):
        new = {"XDG_CACHE_HOME": f"{tmp_path}/cache", "TMPDIR": str(tmp_path)} if words == small else {}
        done = bantam("train.py", *(() if "model.width=3,90" in words else ("model.width=3",)), *words, **new)
        assert done.returncode == code, done.stdout + done.stderr
        assert shown in done.stdout + done.stderr
        assert list(tmp_path.iterdir()) == []
        if new and compiler.compiler():
            assert "native kernels" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "already holds a run (result.json): continue it with python train.py resume="),
        (("nowhere",), "nowhere is no run folder: it does not exist; give the folder of one run"),
        (
            ("no choices",),
            "no choices is no run folder: its .hydra/hydra.yaml has no hydra.runtime.choices; restore",
        ),
        (("no overrides",), "no overrides/.hydra/hydra.yaml is damaged (Missing key overrides): restore it"),
        (("no job",), "no job/.hydra/hydra.yaml is damaged (Input cfg is not an OmegaConf config object"),
        (("config 5",), "config 5/.hydra/hydra.yaml is damaged (hydra.job or hydra.overrides is not what"),
        (("id",), "id/.hydra/hydra.yaml is damaged (hydra.job or hydra.overrides is not what"),
        (("numbers",), "numbers/.hydra/overrides.yaml is no list of overrides: restore it"),
        (("no hydra",), "no hydra is no run folder: its .hydra/config.yaml is missing; restore it"),
        (("run", "-m"), "--experimental-rerun does not support --multirun"),
    ],
)
def test_a_run_that_hydra_cannot_run_again_is_one_sentence(
    bantam: Bantam, finished_run: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    if words[0] != "nowhere":
        own = shutil.copytree(finished_run, tmp_path / words[0]) / ".hydra"
    if words[0] == "no choices":
        (own / "hydra.yaml").write_text("hydra: {}")
    parts = {
        "no overrides": "job: {}",
        "no job": "overrides: {hydra: [], task: []}\n  job: null",
        "config 5": "overrides: {hydra: [], task: []}\n  job: {config_name: 5, id: '???', num: '???'}",
        "id": "overrides: {hydra: [], task: []}\n  job: {config_name: config, id: {a: 1}, num: '???'}",
    }
    if words[0] in parts:
        (own / "hydra.yaml").write_text("hydra:\n  runtime: {choices: {}}\n  " + parts[words[0]])
    if words[0] == "numbers":
        (own / "overrides.yaml").write_text("- 1")
    if words[0] == "no hydra":
        shutil.rmtree(own)
    done = bantam("train.py", "--experimental-rerun", *words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr


@pytest.mark.whole
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_jobs_end_when_the_process_that_launched_them_is_killed(tmp_path: Path) -> None:
    """Those of joblib would train on, and then wait for work for five minutes."""
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", *SMALL, "epochs=15"]
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "train.py"), *words, "hydra.sweep.dir=jobs"],
        cwd=tmp_path,
        env={**os.environ, "BANTAM_TEST": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def alive() -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"BANTAM_TEST={tmp_path}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    wait_for(lambda: any(tmp_path.glob("jobs/*/.hydra/config.yaml")), 120)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(), 20)
