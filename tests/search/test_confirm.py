"""Confirmation: with a script that pretends to train where that is enough, with the real one once."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import PROJECT, Bantam
from omegaconf import DictConfig, OmegaConf
from searches import LINE, Finished, wait_for

from bantam import errors
from bantam.own import code
from bantam.report import analysis, folders
from bantam.search import confirm, terminal
from bantam.training import folder as record

PRETENDER = """
import json, pathlib, sys
given = dict(item.split("=", 1) for item in sys.argv[1:] if "=" in item)
if "dry_run" in given:
    place = pathlib.Path(sys.argv[sys.argv.index("--config-dir") + 1])
    text = (place / "experiment" / (given["experiment"] + ".yaml")).read_text()
    sys.exit("Error: model.width is too much" if "width: 99" in text else 0)
folder = pathlib.Path(given["hydra.sweep.dir"])
split = "test" if given.get("data.validation") == "0" else "validation"
with (folder / "commands").open("a") as log:
    print(" ".join(sys.argv[1:]), file=log)
for name in given["experiment"].split(","):
    for seed in given["seed"].split(","):
        run = folder / f"{name}-{split}-{seed}"
        run.mkdir()
        value = VALUES[name, split] + int(seed) / 1000
        result = {"objective": value, "verdict": VERDICT(int(seed)) if split == "test" else "not judged",
                  "reason": "", "last_accuracies": [value - 0.01, value + 0.01], "parameters": 9680,
                  "train_images": 60000, "scored_images": 10000, "split": split}
        (run / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def study(tmp_path: Path, composed: Callable[..., DictConfig]) -> Path:
    """A study of four completed trials; 3 was the best by a single seed."""
    folder = tmp_path / "study"
    cfg = composed("model=v2", "data=mnist", "data.validation=5000")
    rows = ["number,state,reason,objective"]
    for number, objective in enumerate((99.1, 99.3, 99.2, 99.5)):
        trial = folder / str(number)
        (trial / ".hydra").mkdir(parents=True)
        OmegaConf.save(cfg, trial / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create([]), trial / ".hydra" / "overrides.yaml")
        choices = {"hydra": {"runtime": {"choices": {"model": "v2", "data": "mnist", "experiment": None}}}}
        OmegaConf.save(OmegaConf.create(choices), trial / ".hydra" / "hydra.yaml")
        record.write_result(
            trial,
            {
                **{"objective": objective, "verdict": "not judged", "device": "cpu", "threads": 1},
                **{"precision": "float32", "kernels": "torch"},
            },
        )
        rows.append(f"{number},complete,,{objective}")
    rows.append("4,pruned,given up,")
    (folder / "trials.csv").write_text("\n".join(rows) + "\n")
    return folder


def pretender(folder: Path, verdict: str = '"met"') -> Path:
    """A script in place of train.py: trial 1 is the best over several seeds."""
    values = {("trial_1", "validation"): 99.4, ("trial_2", "validation"): 99.2, ("trial_3", "validation"): 99.3}
    values |= {("trial_1", "test"): 99.45}
    script = folder / "pretender.py"
    script.write_text(f"VALUES = {values!r}\nVERDICT = lambda seed: {verdict}\n{PRETENDER}")
    return script


def commands(study: Path) -> list[dict[str, str]]:
    lines = (study / "confirm" / "commands").read_text().splitlines()
    return [dict(item.split("=", 1) for item in line.split() if "=" in item) for line in lines]


def summary(study: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((study / "confirm" / "confirm.json").read_text())
    return answer


def test_the_best_three_are_ranked_by_their_mean_over_fresh_seeds(study: Path, tmp_path: Path) -> None:
    confirm.confirm(study, 3, 5, pretender(tmp_path))
    first, second = commands(study)
    assert first["experiment"] == "trial_3,trial_1,trial_2"  # 0 was fourth
    assert first["seed"] == second["seed"] == "2,3,4,5,6"  # the search had seed 1
    assert first["data.split_seed"] == "1"  # the validation images stay the study's
    assert "data.validation" not in first
    assert [row["number"] for row in summary(study)["ranking"]] == [1, 3, 2]
    assert summary(study)["ranking"][0]["mean"] == pytest.approx(99.404)
    assert summary(study)["ranking"][0]["deviation"] == pytest.approx(0.00158, abs=1e-5)


def test_the_winner_alone_sees_the_test_images_and_once(study: Path, tmp_path: Path) -> None:
    script = pretender(tmp_path)
    confirm.confirm(study, 3, 5, script)
    tests = [command for command in commands(study) if command.get("data.validation") == "0"]
    assert [command["experiment"] for command in tests] == ["trial_1"]
    confirm.confirm(study, 3, 5, script)
    assert len(commands(study)) == 2  # nothing is trained or scored again


def test_trials_with_one_version_of_a_network_of_ones_own_are_trained_side_by_side(
    study: Path, tmp_path: Path
) -> None:
    for number, version in ((1, "a"), (2, "b"), (3, "a")):
        file = study / str(number) / ".hydra" / "config.yaml"
        cfg = OmegaConf.load(file)
        own = {"_target_": code.TARGET, "_file_": "/mine.py", "_class_": "Net", "_sha256_": version}
        cfg.model = own | {"width": number}
        OmegaConf.save(cfg, file)
    confirm.confirm(study, 3, 5, pretender(tmp_path), test=False)
    trained = [(command["experiment"], command["model"]) for command in commands(study)]
    assert trained == [
        ("trial_3,trial_1", f"{study}/3/network.py:Net"),
        ("trial_2", f"{study}/2/network.py:Net"),
    ]


def test_trials_can_be_named(study: Path, tmp_path: Path) -> None:
    confirm.confirm(study, 3, 5, pretender(tmp_path), [2, 1, 2])
    assert commands(study)[0]["experiment"] == "trial_1,trial_2"
    assert summary(study)["winner"] == 1
    with pytest.raises(ValueError, match="--trials names 4, no completed trial of .*study"):
        confirm.confirm(study, 3, 5, pretender(tmp_path), [1, 4])


def test_of_a_front_trials_must_be_named(study: Path, tmp_path: Path) -> None:
    rows = ["number,state,reason,parameters,objective,seconds,folder"]
    sizes = [(9, 99.1), (8, 99.3), (7, 99.2)]
    rows += [f"{i},complete,,{size},{value},1,{i}" for i, (size, value) in enumerate(sizes)]
    (study / "trials.csv").write_text("\n".join(rows) + "\n")
    hydra = OmegaConf.load(study / "0" / ".hydra" / "hydra.yaml")
    hydra.hydra.sweeper = {"objectives": ["accuracy", "parameters"]}
    OmegaConf.save(hydra, study / "0" / ".hydra" / "hydra.yaml")
    for path in study.glob("[1-4]/.hydra/hydra.yaml"):
        shutil.copy(study / "0" / ".hydra" / "hydra.yaml", path)
    with pytest.raises(ValueError, match="has two objectives, .*: choose of its front, 2, 1, with --trials"):
        confirm.confirm(study, 3, 5, pretender(tmp_path))
    confirm.confirm(study, 3, 5, pretender(tmp_path), [1])
    assert summary(study)["winner"] == 1


@pytest.mark.whole
def test_a_front_is_taken_within_the_budget(study: Path, tmp_path: Path) -> None:
    rows = ["number,state,reason,parameters,multiply_adds,objective,seconds,folder"]
    sizes = [(9, 90, 99.1), (8, 80, 99.3), (7, 99, 99.2)]
    rows += [f"{i},complete,,{size},{work},{value},1,{i}" for i, (size, work, value) in enumerate(sizes)]
    rows.append("3,over budget,too many,5,5,,1,")
    (study / "trials.csv").write_text("\n".join(rows) + "\n")
    assert confirm._front(study, []) == [2, 1]
    assert confirm._front(study, ["epochs=15", "budget.parameters=8"]) == [2]
    assert confirm._front(study, ["budget.multiply_adds=95", "budget.bytes=null"]) == [1]
    with pytest.raises(ValueError, match="no completed trial within the budget: search more, or raise the limits"):
        confirm._front(study, ["budget.parameters=7"])
    with pytest.raises(ValueError, match="nowhere has no completed trial"):
        confirm._front(study / "nowhere", [])
    confirm.confirm(study, 3, 5, pretender(tmp_path), front=True)
    assert commands(study)[0]["experiment"] == "trial_1,trial_2"
    assert summary(study)["winner"] == 1


@pytest.mark.whole
def test_all_may_be_changed_alike_but_not_half_of_them(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = pretender(tmp_path)
    overrides = ["model.width=12", "threads=null", "target.last_epochs=2"]
    confirm.confirm(study, 3, 5, script, [1], overrides)
    experiment = OmegaConf.load(study / "confirm" / "experiment" / "trial_1.yaml")
    assert (experiment.model.width, experiment.threads, experiment.precision) == (12, None, "float32")
    assert "hold 99.4 % in every one of the last 2 epochs" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match="with other overrides than none: give the same ones, or move .*confirm away"
    ):
        confirm.confirm(study, 3, 5, script, [1])
    with pytest.raises(ValueError, match="with other overrides than model.width=13"):
        confirm.confirm(study, 3, 5, script, [0, 1], ["model.width=13"])
    assert not (study / "confirm" / "experiment" / "trial_0.yaml").exists()
    confirm.confirm(study, 3, 5, script, [1], overrides[::-1])
    assert len(commands(study)) == 2  # in another order they are the same


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.size=12", "is no key=value of the trial in"),
        ("model=12", "is no key=value of the trial in"),
        ("12", "is no key=value of the trial in"),
        ("model.width=[", "cannot be read"),
        ("data.validation=0", "data.validation is set by the confirmation itself: leave data.validation=0 out"),
        ("seed=5", "seed is set by the confirmation itself: leave seed=5 out"),
        ("model.width=99", "^model.width is too much$"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_blocks_nothing(
    study: Path, tmp_path: Path, override: str, sentence: str
) -> None:
    script = pretender(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        confirm.confirm(study, 3, 5, script, [1], [override])
    assert not (study / "confirm").exists()
    confirm.confirm(study, 3, 5, script, [1], ["model.width=12"])


@pytest.mark.whole
def test_the_test_images_may_wait(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = pretender(tmp_path)
    confirm.confirm(study, 3, 5, script, test=False)
    assert len(commands(study)) == 1
    assert summary(study)["winner"] == 1
    assert "test" not in summary(study)
    ahead = "Trial 1 is ahead on the validation images; it was not scored on the test images."
    assert ahead in " ".join(capsys.readouterr().out.split())
    assert analysis.confirmation(folders.read_study(study)) == ahead
    confirm.confirm(study, 3, 5, script)
    assert commands(study)[1]["data.validation"] == "0"
    assert summary(study)["test"]["verdict"] == "met"
    confirm.confirm(study, 3, 5, script, test=False)  # what was scored stays judged
    assert summary(study)["test"]["verdict"] == "met"
    assert len(commands(study)) == 2


@pytest.mark.parametrize(
    ("verdict", "expected", "met"),
    [
        ('"met"', "met", 5),
        ('"met" if seed > 2 else "not met"', "not met", 4),
        ('"not judged"', "not judged", 0),
    ],
)
def test_the_verdict_is_over_the_seeds(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict: str, expected: str, met: int
) -> None:
    confirm.confirm(study, 3, 5, pretender(tmp_path, verdict))
    test = summary(study)["test"]
    assert (test["verdict"], test["met"]) == (expected, met)
    assert test["lowest"] == pytest.approx(99.442)
    shown = capsys.readouterr().out
    assert f"{met} of 5 seeds hold 99.4 % in every one of the last 5 epochs" in shown
    assert "Mean of the last epochs 99.454 ± 0.002 %" in shown


def test_a_part_of_a_training_set_is_not_called_test_images(capsys: pytest.CaptureFixture[str]) -> None:
    test = {"verdict": "not judged", "met": 0, "objectives": [97.0], "mean": None}
    first = {"parameters": 9680, "train_images": 4000, "scored_images": 1000, "split": "test", "data": "mnist5k"}
    target = OmegaConf.create({"accuracy": 99.4, "last_epochs": 5})
    terminal.show_test(1, test, first, target, "confirm.json")
    assert "scored on 1,000 held-out images: not judged" in " ".join(capsys.readouterr().out.split())


@pytest.mark.whole
def test_an_interrupted_confirmation_trains_only_what_is_missing(study: Path, tmp_path: Path) -> None:
    script = pretender(tmp_path)
    confirm.confirm(study, 3, 5, script)
    (study / "confirm" / "trial_2-validation-4" / "result.json").unlink()
    confirm.confirm(study, 3, 5, script)
    last = commands(study)[-1]
    assert (last["experiment"], last["seed"]) == ("trial_2", "4")


def test_what_terminates_a_confirmation_terminates_what_it_trains(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, ended = pretender(tmp_path), []

    class Training:
        """A process that goes on until it is terminated."""

        def __init__(self, *arguments: object, **named: object) -> None: ...

        def poll(self) -> None:
            raise errors.Terminated

        def terminate(self) -> None:
            ended.append("terminated")

        def wait(self) -> None:
            ended.append("waited for")

    monkeypatch.setattr(subprocess, "Popen", Training)
    with pytest.raises(SystemExit) as stop:
        confirm.confirm(study, 1, 2, script)
    assert (stop.value.code, ended) == (143, ["terminated", "waited for"])


def test_a_trial_that_diverges_on_a_seed_does_not_win(study: Path, tmp_path: Path) -> None:
    script = pretender(tmp_path)
    confirm.confirm(study, 3, 5, script)
    run = study / "confirm" / "trial_1-validation-4"
    record.write_result(run, {"verdict": "diverged", "reason": "nan", "objective": None})
    script.write_text(script.read_text().replace("'trial_1', 'test'", "'trial_3', 'test'"))
    confirm.confirm(study, 3, 5, script)
    assert summary(study)["winner"] == 3
    assert summary(study)["ranking"][-1]["missing"] == 1


def test_an_experiment_of_a_trial_is_complete(study: Path) -> None:
    confirm.write_experiment(study / "experiment" / "best.yaml", confirm.experiment(study / "3"))
    text = (study / "experiment" / "best.yaml").read_text()
    assert text.startswith("# @last_line whole\n# @package _global_\n")
    values = OmegaConf.create(text)
    assert values.defaults == [{"override /model": "v2"}, {"override /data": "mnist"}]
    assert (values.device, values.threads, values.precision) == ("cpu", 1, "float32")


def test_a_second_confirmation_of_a_study_says_that_there_is_one(study: Path, tmp_path: Path) -> None:
    script = pretender(tmp_path)
    with (
        record.locked(study),
        pytest.raises(record.InUse, match="another process is at work in .*study: wait until"),
    ):
        confirm.confirm(study, 3, 5, script)
    assert not (study / "confirm").exists()
    confirm.confirm(study, 3, 5, script)


@pytest.mark.whole
def test_the_lock_of_a_confirmation_dies_with_what_it_trains(study: Path, tmp_path: Path) -> None:
    """confirm.py is killed, and its trainings go on: the next one may not remove their folders."""
    script = pretender(tmp_path)
    waits = f"import time\nopen({str(tmp_path / 'trains')!r}, 'w').close()\ntime.sleep(120)\n"
    script.write_text(waits + script.read_text())
    code = (
        "from pathlib import Path; from bantam.search import confirm; "
        f"confirm.confirm(Path({str(study)!r}), 3, 5, Path({str(script)!r}))"
    )
    first = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_for(lambda: (tmp_path / "trains").exists(), 120)
    first.kill()
    first.wait()
    with pytest.raises(record.InUse):
        confirm.confirm(study, 3, 5, pretender(tmp_path))
    os.killpg(first.pid, signal.SIGKILL)  # its trainings too
    wait_for(lambda: free(study), 60)
    confirm.confirm(study, 3, 5, pretender(tmp_path))
    assert summary(study)["winner"] == 1


def free(folder: Path) -> bool:
    """Whether nobody has a folder."""
    with contextlib.suppress(record.InUse), record.locked(folder):
        return True
    return False


def test_a_folder_in_which_another_process_trains_is_not_removed(study: Path, tmp_path: Path) -> None:
    run = study / "confirm" / "trial_1-validation-2"
    run.mkdir(parents=True)
    with record.locked(run), pytest.raises(record.InUse, match=r"trial_1-validation-2: wait until it has ended"):
        confirm.confirm(study, 3, 5, pretender(tmp_path))
    assert run.exists()
    confirm.confirm(study, 3, 5, pretender(tmp_path))


def test_trials_of_older_studies_can_be_confirmed() -> None:
    """Their `.hydra` folders name classes where they were: bantam.sweeper, bantam.trials."""
    trial = PROJECT / "docs" / "results" / "architecture" / "3"
    assert "bantam.trials.Dominated" in (trial / ".hydra" / "hydra.yaml").read_text()
    assert "_target_: bantam.models.Flexible" in confirm.experiment(trial)
    with pytest.raises(ValueError, match="has two objectives"):
        confirm._choose(trial.parent, 3, ())


def test_a_copy_of_a_trial_is_not_confirmed_beside_it(study: Path, tmp_path: Path) -> None:
    rows = ["number,state,reason,objective,folder", "1,complete,,99.3,1", "2,complete,,99.2,2"]
    rows.append("5,complete,the settings of trial 1,99.3,1")
    (study / "trials.csv").write_text("\n".join(rows) + "\n")
    confirm.confirm(study, 3, 5, pretender(tmp_path))
    assert commands(study)[0]["experiment"] == "trial_1,trial_2"


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is no study's folder"),
        ("nonsense\n1\n", "is no study's folder"),
        ("number,state,objective\n1,pruned,\n", "has no completed trial to confirm"),
    ],
)
def test_what_is_no_study_is_one_sentence(tmp_path: Path, content: str | None, sentence: str, front: bool) -> None:
    if content is not None:
        (tmp_path / "trials.csv").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        confirm.confirm(tmp_path, 3, 5, PROJECT / "train.py", front=front)


@pytest.mark.parametrize("verdict", ["refused", "failed"])
def test_a_seed_that_failed_is_trained_again_by_the_same_command_line(
    study: Path, tmp_path: Path, verdict: str
) -> None:
    script = pretender(tmp_path)
    confirm.confirm(study, 1, 2, script, [1], test=False)
    whole = summary(study)
    run = study / "confirm" / "trial_1-validation-3"
    for again in (True, False):
        record.write_result(run, {"verdict": verdict, "reason": "the disk is full"})
        if again:
            confirm.confirm(study, 1, 2, script, [1], test=False)
            assert summary(study) == whole
    script.write_text(script.read_text().replace('result = {"objective": value,', 'result = {"objective": None,'))
    with pytest.raises(ValueError, match=r"on every fresh seed; trial_1-validation-3 not judged: "):
        confirm.confirm(study, 1, 2, script, [1], test=False)


def test_what_a_killed_confirmation_left_half_written_is_removed(study: Path, tmp_path: Path) -> None:
    script = pretender(tmp_path)
    confirm.confirm(study, 1, 2, script, [1])
    for name in (".confirm.json.01.part", "experiment/.trial_1.yaml.01.part"):
        (study / "confirm" / name).write_text("half")
    confirm.confirm(study, 1, 2, script, [1])
    assert not list(study.rglob(".*.part"))


def test_the_command_line_refuses_nonsense_in_one_sentence(
    bantam: Bantam,
) -> None:
    for arguments, sentence in (
        (("nowhere",), "Error: nowhere is no study's folder"),
        (("nowhere", "--front"), "Error: nowhere is no study's folder: it does not exist"),
        (("nowhere", "--top", "0"), "Error: --top is 0: it must be at least 1"),
        (("nowhere", "epochs=15", "--trials", "1", "2"), "Error: nowhere is no study's folder"),
        (("nowhere", "--seeds", "1"), "Error: --seeds is 1: it must be at least 2"),
    ):
        refused = bantam("confirm.py", *arguments)
        assert refused.returncode == 1
        assert refused.stderr.startswith(sentence)


@pytest.mark.slow
def test_a_search_that_is_confirmed_at_its_end(bantam: Bantam, finished: Finished) -> None:
    """The whole way with real trainings."""
    done = bantam(
        "train.py",
        *LINE,
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.confirm.top=1",
        "hydra.sweeper.confirm.seeds=2",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = finished.folder / "multirun" / "optuna"
    best = json.loads((folder / "summary.json").read_text())["best"]["number"]
    answer = summary(folder)
    assert (answer["winner"], answer["seeds"]) == (best, [2, 3])
    assert answer["test"]["verdict"] == "not judged"  # after two epochs, for a target about five
    splits = {path.name: record.read_result(path)["split"] for path in (folder / "confirm").glob("trial_*")}
    assert splits == {
        f"trial_{best}-validation-2": "validation",
        f"trial_{best}-validation-3": "validation",
        f"trial_{best}-test-2": "test",
        f"trial_{best}-test-3": "test",
    }


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        (
            "trials.csv",
            "number,state,reason,objective\n0,complete,,99.1\n",
            "1 completed trials of 4.*type the command",
        ),
        ("trials.csv", "", r"its trials.csv cannot be read \(its first line is not that of a study\): type"),
        (
            "trials.csv",
            "number,state,reason,objective\n0,complete",
            r"is no study's folder: its trials.csv is damaged \(line 2\): type",
        ),
        ("summary.json", '{"trials"', r"summary.json is damaged \(Expecting ':'.*type the command line"),
        ("summary.json", "[]", r"summary.json is damaged \(it does not count the trials\): type"),
        ("3/result.json", None, r"study/3 holds no result.json.*, or choose other trials"),
        ("3/result.json", "{", r"3/result.json cannot be read.*, or choose other trials"),
        (
            "3/result.json",
            '{"objective": 12.0, "verdict": "met"}',
            "study/3 reached 12.0, but trials.csv says 99.5: restore it",
        ),
    ],
)
def test_a_damaged_study_is_one_sentence(
    study: Path, tmp_path: Path, file: str, content: str | None, sentence: str
) -> None:
    (study / "summary.json").write_text('{"trials": {"complete": 4}}')
    if content is None:
        (study / file).unlink()
    else:
        (study / file).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        confirm.confirm(study, 3, 5, pretender(tmp_path))
    assert not (study / "confirm").exists()


CUT = b"a half of what was written"


@pytest.mark.parametrize(
    "content", [b"", b"7", b"[1, 2]", b"version: 2\n", b"\x89PNG\xff", b'a: [b, "c\n', CUT, None]
)
def test_a_damaged_experiment_of_a_confirmation_is_one_sentence(
    study: Path, tmp_path: Path, content: bytes | None
) -> None:
    script = pretender(tmp_path)
    confirm.confirm(study, 1, 2, script, [1])
    file = study / "confirm" / "experiment" / "trial_1.yaml"
    whole = file.read_bytes()
    file.unlink()
    if content is None:
        file.mkdir()
    elif content == CUT:
        file.write_bytes(whole[: whole.index(b"defaults") + len(whole) // 2])
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"trial_1.yaml is damaged \(\w.*\): restore it, or move .*/confirm away"):
        confirm.confirm(study, 1, 2, script, [1])
