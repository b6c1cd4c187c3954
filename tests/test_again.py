"""A command line typed again, in another folder, at another time, after an interruption or some damage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import PROJECT, Bantam
from conftest import SMALL
from omegaconf import OmegaConf
from single_runs import history

from bantam.training import folder as files


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PATCHED = """
import runpy, sys
import bantam.training.folder as files
written = files.write_history
def patched(folder, rows):
    {body}
files.write_history = patched
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a command in which writing a history does something else."""

Few = tuple[str, ...]
TRAIN = str(PROJECT / "train.py")


@pytest.fixture
def multirun(bantam: Bantam, few: Few, tmp_path: Path) -> list[str]:
    """A finished multirun of two jobs in `runs`; returns its command line."""
    line = ["-m", *few, "seed=1,2", "report=false", "hydra.sweep.dir=runs"]
    result = bantam("train.py", *line)
    assert result.returncode == 0, result.stderr
    return line


@pytest.mark.whole
def test_a_multirun_typed_again_skips_what_is_finished_and_starts_what_is_missing(
    bantam: Bantam, tmp_path: Path, multirun: list[str]
) -> None:
    before = contents(tmp_path / "runs" / "0")
    weights = (tmp_path / "runs" / "1" / "weights.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "runs" / "1")
    result = bantam("train.py", *multirun)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "job 0, v2: finished before (not judged)" in result.stdout
    assert "job 1, v2 epoch  1/1" in result.stdout
    assert contents(tmp_path / "runs" / "0") == before
    assert (tmp_path / "runs" / "1" / "weights.safetensors").read_bytes() == weights
    (tmp_path / "runs" / "report.html").mkdir()
    reported = bantam("train.py", *multirun, "report=true")
    assert reported.returncode == 1  # all is trained, but the report that was asked for is not there
    assert "No report was written (runs/report.html is a folder" in reported.stderr


@pytest.mark.whole
def test_an_interrupted_job_goes_on_from_its_checkpoint(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    line = ["-m", *few, "epochs=2", "seed=1,2", "report=false"]
    assert bantam("train.py", *line, "hydra.sweep.dir=whole").returncode == 0
    (tmp_path / "killed.py").write_text(PATCHED.format(body="written(folder, rows); raise KeyboardInterrupt"))
    assert bantam(str(tmp_path / "killed.py"), TRAIN, *line, "hydra.sweep.dir=runs").returncode != 0
    assert (tmp_path / "runs" / "0" / "checkpoint.pt").exists()
    result = bantam("train.py", *line, "hydra.sweep.dir=runs")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "job 0, v2 epoch  1/2" not in result.stdout
    for number in "01":
        whole, again = tmp_path / "whole" / number, tmp_path / "runs" / number
        assert history(again) == history(whole)
        assert (again / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@pytest.mark.whole
def test_a_job_that_failed_or_was_refused_is_tried_again(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    line = ["-m", *few, "epochs=2", "seed=1,2", "report=false"]
    body = "raise OSError(28, 'No space left on device', str(folder))"
    (tmp_path / "full.py").write_text(PATCHED.format(body=body))
    failed = bantam(str(tmp_path / "full.py"), TRAIN, *line, "hydra.sweep.dir=runs")
    assert failed.returncode == 1
    assert [files.read_result(tmp_path / "runs" / number)["verdict"] for number in "01"] == ["failed"] * 2
    (tmp_path / "runs" / "1" / "result.json").write_text('{"verdict": "refused", "reason": "no images"}')
    again = bantam("train.py", *line, "hydra.sweep.dir=runs")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "finished before" not in again.stdout
    assert bantam("train.py", *line, "hydra.sweep.dir=whole").returncode == 0
    for number in "01":
        assert history(tmp_path / "runs" / number) == history(tmp_path / "whole" / number)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.lr=0.5",
            "runs/0 holds a run with optimizer.lr=0.025, not 0.5: choose another hydra.swe",
        ),
        ("seed=3,2", "runs/0 holds a run with seed=1, not 3"),
        ("model=v1", "runs/0 holds a run with model=v2, not v1: choose another hydra.sweep.dir"),
    ],
)
def test_another_multirun_is_refused_before_anything_is_touched(
    bantam: Bantam, tmp_path: Path, multirun: list[str], override: str, message: str
) -> None:
    before = contents(tmp_path)
    result = bantam("train.py", *multirun, override)
    assert result.returncode == 1
    assert f"Error: {message}" in result.stderr
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "subdir", ["${optimizer.lr}/${seed}", "${hydra.job.id}", "${hydra.job.override_dirname}", "a/${hydra.job.num}"]
)
def test_a_multirun_finds_its_jobs_in_whatever_folders_they_are(
    bantam: Bantam, few: Few, tmp_path: Path, subdir: str
) -> None:
    line = ["-m", *few, "seed=1,2", "report=false", "hydra.sweep.dir=runs", f"hydra.sweep.subdir='{subdir}'"]
    done = bantam("train.py", *line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left no folder" not in done.stdout
    before = contents(tmp_path)
    again = bantam("train.py", *line)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("finished before") == 2
    assert contents(tmp_path) == before


def test_two_jobs_with_one_folder_are_refused(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    done = bantam("train.py", "-m", *few, "seed=1,2", "hydra.sweep.dir=runs", "hydra.sweep.subdir=same")
    assert done.returncode == 1
    assert "Error: hydra.sweep.subdir is same for the jobs 0 and 1, but every job has a folder" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.whole
def test_a_reference_to_a_key_that_differs_among_jobs_is_of_every_job(
    bantam: Bantam, few: Few, tmp_path: Path
) -> None:
    rates = ("scheduler.gamma=0.2,0.3", "optimizer.lr='${scheduler.gamma}'")
    line = ["-m", *few, *rates, "seed='${hydra:job.num}'", "report=false", "hydra.sweep.dir=runs"]
    for _ in range(2):  # typed again it goes on
        done = bantam("train.py", *line)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [row["lr"] for number in "01" for row in history(tmp_path / "runs" / number)] == ["0.2", "0.3"]
    shown = bantam("train.py", "-m", *few, *rates, "dry_run=true")
    assert "gamma 0.3" in shown.stdout
    (tmp_path / "runs" / "1" / "result.json").unlink()
    (tmp_path / "runs" / "1" / "weights.safetensors").unlink()
    resumed = bantam("train.py", "resume=runs/1")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["lr"] for row in history(tmp_path / "runs" / "1")] == ["0.3"]


def test_a_run_needs_no_variable_of_the_environment_that_it_was_begun_with(
    bantam: Bantam, few: Few, tmp_path: Path
) -> None:
    begun = bantam("train.py", *few, "hydra.run.dir=run", "seed='${oc.env:OWN_SEED}'", OWN_SEED="3")
    assert begun.returncode == 0, begun.stderr
    scored = bantam("evaluate.py", "run")
    assert scored.returncode == 0, scored.stderr
    missing = bantam("train.py", *few, "hydra.run.dir=other", "seed='${oc.env:OWN_SEED}'")
    assert missing.stderr.count("\n") == 1
    assert "the environment variable OWN_SEED is not set, which ${oc.env:OWN_SEED} takes: set it" in missing.stderr


@pytest.mark.whole
def test_a_multirun_without_folders_of_hydra_is_summed_up_all_the_same(
    bantam: Bantam, few: Few, tmp_path: Path
) -> None:
    line = ["-m", *few, "seed=1,2", "report=false", "hydra.sweep.dir=runs", "hydra.output_subdir=null"]
    result = bantam("train.py", *line, "optimizer.lr=0.02,1e30")
    assert result.returncode == 1
    assert result.stdout.count("diverged") >= 4  # two lines and two rows of the table
    before = contents(tmp_path)
    other = bantam("train.py", *line, "optimizer.lr=0.03,1e30")  # Bantam has kept what they were trained with
    assert other.returncode == 1
    assert "runs/0 holds a run with optimizer.lr=0.02, not 0.03: choose another hydra.sweep.dir" in other.stderr
    assert contents(tmp_path) == before
    shutil.rmtree(tmp_path / "runs" / "0" / ".hydra")
    unknown = bantam("train.py", *line, "optimizer.lr=0.02,1e30")
    assert unknown.returncode == 1
    assert "runs/0 holds a run (result.json), but nothing says what it was trained with" in unknown.stderr


@pytest.mark.parametrize("name", [".hydra", "result.json"])
def test_jobs_of_a_sweeper_that_chooses_them_later_never_take_up_folders(
    bantam: Bantam, few: Few, tmp_path: Path, name: str
) -> None:
    line = ["-m", *few, "hydra/sweeper=optuna", "optimizer.lr=interval(0.01,0.1)", "hydra.sweep.dir=runs"]
    shown = bantam("train.py", *line, "dry_run=true")
    assert shown.returncode == 1
    assert "and OptunaSweeper decides later: leave dry_run out, or hydra/sweeper" in shown.stderr
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "0" / name).mkdir(parents=True)
    again = bantam("train.py", *line)
    assert again.returncode == 1
    assert "runs holds jobs already, such as 0, and those of OptunaSweeper may be others" in again.stderr
    assert contents(tmp_path) == {}


def test_the_seed_is_that_of_the_environment_in_which_a_run_was_begun(
    bantam: Bantam, few: Few, tmp_path: Path
) -> None:
    line = [*few, "seed=${oc.env:SEED}", "hydra.run.dir=run"]
    assert bantam("train.py", *line, SEED="3").returncode == 0
    assert OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml").seed == 3
    result = bantam("evaluate.py", "run", SEED="4")
    assert result.returncode == 0, result.stderr
    assert "exactly as recorded" in result.stdout


def test_paths_are_those_of_the_folder_in_which_the_command_was_typed(
    bantam: Bantam, tmp_path: Path, mnist_root: str
) -> None:
    (tmp_path / "here").symlink_to(mnist_root)
    few = ("model.width=4", "epochs=1", "pictures=false", "threads=1", "report=false", "dry_run=true")
    line = ["-m", *few, "data=auto", "data.root=here", "hydra.job.chdir=true", "hydra.sweep.dir=runs"]
    result = bantam("train.py", *line)
    assert "MNIST: 60,000 images to train on" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("damage", ["empty", "keys", "foreign"])
def test_a_damaged_checkpoint_is_refused_and_no_other_run_begins(
    bantam: Bantam, finished_run: Path, tmp_path: Path, damage: str
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "result.json").unlink()
    if damage == "keys":
        torch.save({"model": {}}, run / "checkpoint.pt")
    else:
        (run / "checkpoint.pt").write_bytes(b"" if damage == "empty" else b"no checkpoint at all")
    before = contents(tmp_path)
    result = bantam("train.py", "resume=run")
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if line)
    assert line.startswith("Error: run/checkpoint.pt is damaged")
    assert "delete it to start this run anew" in line
    assert contents(tmp_path) == before


@pytest.mark.whole
def test_what_is_no_mistake_of_the_user_is_one_sentence_with_the_traceback_in_a_file(
    bantam: Bantam, few: Few, tmp_path: Path
) -> None:
    body = "raise OSError(28, 'No space left on device', str(folder))"
    (tmp_path / "full.py").write_text(PATCHED.format(body=body))
    result = bantam(str(tmp_path / "full.py"), TRAIN, *few, "epochs=2", "hydra.run.dir=a run")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line)
    assert line.startswith("Error: a run stopped (OSError: [Errno 28] No space left on device")
    assert "python train.py 'resume='\"'\"'a run'\"'\"''" in line
    assert "full.py" in (tmp_path / "a run" / "error.txt").read_text()
    result = bantam("train.py", "resume='a run'")
    assert result.returncode == 0, result.stderr
    shutil.rmtree(tmp_path / "a run")
    shown = bantam(str(tmp_path / "full.py"), TRAIN, *few, "hydra.run.dir=run", HYDRA_FULL_ERROR="1")
    assert "Traceback" in shown.stderr


@pytest.mark.whole
def test_a_run_is_evaluated_without_the_files_that_it_was_composed_from(
    bantam: Bantam, tmp_path: Path, mnist_root: str
) -> None:
    option = tmp_path / "mine" / "experiment" / "own.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# @package _global_\nmodel:\n  width: 4\n")
    line = ["--config-dir", "mine", "experiment=own", *SMALL, "hydra.run.dir=run"]
    assert bantam("train.py", *line).returncode == 0
    shutil.rmtree(tmp_path / "mine")
    result = bantam("evaluate.py", "run")
    assert result.returncode == 0, result.stderr
    result = bantam("evaluate.py", "run", "data=mnist", f"data.root={mnist_root}")
    assert result.returncode == 0, result.stderr
    assert "the two are not comparable" in result.stdout


def test_a_result_without_its_keys_is_one_sentence(bantam: Bantam, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    del result["data_checksum"]
    files.write_result(tmp_path / "run", result)
    done = bantam("evaluate.py", "run")
    assert done.returncode == 1
    assert "Error: run/result.json is damaged (data_checksum is None): restore it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.whole
def test_every_job_that_trains_on_other_images_says_so(bantam: Bantam, tmp_path: Path) -> None:
    refused = "http://127.0.0.1:9"  # no proxy answers at this address
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), refused)
    line = ["-m", *SMALL[1:], "data.root=none", "data.validation=2000", "seed=1,2", "hydra.job.chdir=true"]
    result = bantam("train.py", *line, "report=false", "hydra.sweep.dir=runs", **nowhere)
    assert result.returncode == 0, result.stderr
    words = " ".join(result.stdout.replace("│", " ").split())
    assert words.count("Training on mnist5k: 3,000 images only") == 2
    assert words.count("1,000 validation images are held out, not 2,000") >= 2
    for number in "01":
        recorded = files.read_result(tmp_path / "runs" / number)
        assert "1,000 validation images are held out, not 2,000" in recorded["reason"]
        assert recorded["scored_images"] == 1000
        assert OmegaConf.load(tmp_path / "runs" / number / ".hydra" / "config.yaml").data.became == "mnist5k"
    assert not (tmp_path / "none").exists()
    for file in (tmp_path / "runs").glob("*/.hydra/config.yaml"):  # of a version without that key
        file.write_text(file.read_text().replace("  became: mnist5k\n", ""))
    again = bantam("train.py", *line, "report=false", "hydra.sweep.dir=runs", **nowhere)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("finished before") == 2
    evaluated = bantam("evaluate.py", "runs/0", **nowhere)
    assert "exactly as recorded" in evaluated.stdout, evaluated.stderr


def served(folder: Path, few_root: Path) -> str:
    """A script in which a download of Fashion-MNIST is a copy of the few images, and is noted in a file."""
    code = (
        "import runpy, shutil, sys, torchvision.datasets as d\n"
        "def download(self):\n"
        f"    open({str(folder / 'downloads')!r}, 'a').write('one\\n')\n"
        f"    shutil.copytree({str(few_root / 'FashionMNIST' / 'raw')!r}, self.raw_folder)\n"
        "d.FashionMNIST.download = download\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    (folder / "served.py").write_text(code)
    return str(folder / "served.py")


@pytest.mark.whole
@pytest.mark.parametrize("line", [(), ("-m", "seed=1,2")])
def test_a_dry_run_keeps_no_download(
    bantam: Bantam, few_root: Path, tmp_path: Path, line: tuple[str, ...]
) -> None:
    script, temporary = served(tmp_path, few_root), tmp_path / "temporary"
    temporary.mkdir()
    words = (*line, "model.width=4", "data=fashion_mnist", "data.root=none")
    done = bantam(script, TRAIN, *words, "dry_run=true", TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert "300 images to train on" in done.stdout
    assert (tmp_path / "downloads").read_text() == "one\n"
    assert {path.name for path in tmp_path.iterdir()} == {"served.py", "downloads", "temporary"}
    assert list(temporary.iterdir()) == []
    trained = bantam(script, TRAIN, *words[len(line) :], "epochs=1", "pictures=false", "hydra.run.dir=run")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "none" / "FashionMNIST" / "raw" / "SHA256SUMS").exists()


@pytest.mark.whole
def test_what_auto_stands_for_is_decided_once_for_all_jobs(bantam: Bantam, few: Few, tmp_path: Path) -> None:
    code = (
        "import runpy, sys, bantam.data as d\n"
        "def decide(root):\n"
        "    open('decided', 'a').write(f'{root}\\n')\n"
        "    return 'mnist5k'\n"
        "d.decide = decide\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    (tmp_path / "counted.py").write_text(code)
    line = ["-m", *few[1:5], "data=auto,mnist5k", "seed=1,2", "report=false", "hydra.sweep.dir=runs"]
    done = bantam(str(tmp_path / "counted.py"), TRAIN, *line, BANTAM_DATA="none")
    assert (tmp_path / "decided").read_text() == f"{tmp_path}/none\n", done.stdout + done.stderr


@pytest.mark.whole
def test_a_resumed_run_has_the_seed_of_the_environment_in_which_it_was_begun(
    bantam: Bantam, few: Few, tmp_path: Path
) -> None:
    line = [*few, "seed=${oc.env:SEED}", "epochs=2"]
    process = bantam.start("train.py", *line, "hydra.run.dir=run", hold=1, SEED="3")
    bantam.wait_until_held("run")
    process.kill()
    process.wait()
    bantam.let_go()
    done = bantam("train.py", "resume=run", SEED="4")
    assert done.returncode == 0, done.stderr
    assert bantam("train.py", *line, "hydra.run.dir=whole", SEED="3").returncode == 0
    assert files.read_result(tmp_path / "run")["seed"] == 3
    assert history(tmp_path / "run") == history(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_needs_no_option_files_afterwards(bantam: Bantam, few: Few, few_root: Path, tmp_path: Path) -> None:
    """Evaluated, resumed, reported and, as the best trial of a search, confirmed and run again without them."""
    mine = tmp_path / "mine"
    for group in ("experiment", "optimizer"):
        (mine / group).mkdir(parents=True)
    (mine / "experiment" / "best.yaml").write_text(
        "# @package _global_\ndefaults:\n- override /optimizer: own\nmodel:\n  width: 4\n"
    )
    shutil.copy(PROJECT / "conf" / "optimizer" / "sgd.yaml", mine / "optimizer" / "own.yaml")
    line = ["--config-dir", "mine", "experiment=best", *few]
    assert bantam("train.py", *line, "hydra.run.dir=run").returncode == 0
    search = ("-m", "hydra/sweeper=bantam", "hydra.sweep.dir=study", "optimizer.lr=interval(0.01,0.1)")
    one = ("hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "data.validation=100", "report=false")
    searched = bantam("train.py", *search, *line, *one)
    assert searched.returncode == 0, searched.stdout + searched.stderr
    process = bantam.start("train.py", *line, "epochs=2", "hydra.run.dir=stopped", hold=1)
    bantam.wait_until_held("stopped")
    process.kill()
    process.wait()
    bantam.let_go()
    shutil.rmtree(mine)
    for words in (
        ("evaluate.py", "run"),
        ("evaluate.py", "run", "data=fashion_mnist", f"data.root={few_root}"),
        ("train.py", "resume=stopped"),
        ("report.py", "run", "study"),
        ("confirm.py", "study", "--top", "1", "--seeds", "2", "--validation-only"),
        ("confirm.py", "study", "optimizer.momentum=0.8", "--top", "1", "--seeds", "2", "--validation-only"),
        ("train.py", "--config-dir", "study", "experiment=best", "hydra.run.dir=again"),
    ):
        if "optimizer.momentum=0.8" in words:
            shutil.rmtree(tmp_path / "study" / "confirm")
        done = bantam(*words)
        assert done.returncode == 0, (words, done.stdout + done.stderr)
    again, trial = (files.read_result(tmp_path / name) for name in ("again", "study/0"))
    assert again["objective"] == trial["objective"]
    assert OmegaConf.load(tmp_path / "again" / ".hydra" / "hydra.yaml").hydra.runtime.choices.optimizer == "own"


def test_evaluate_names_the_option_that_belongs_to_the_run(bantam: Bantam, finished_run: Path) -> None:
    done = bantam("evaluate.py", str(finished_run), "model=v1")
    assert done.returncode == 1
    assert "Error: model belongs to the run: only data, device" in done.stderr
