import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Bantam, Forked, Forks
from optuna.trial import TrialState
from searches import LINE, SPACE, Finished, Postgresql, stored, wait_for, workers

from bantam.overrides import override
from bantam.report import page
from bantam.search import faults, processes, terminal, trials, watch
from bantam.search.space import Search
from bantam.search.study import open_study
from bantam.training import folder as record

STORAGES = ("", "journal://{}/study.log")
"""SQLite in the study's folder, and a journal in a folder that machines may share."""


def kept_in(storage: str) -> list[str]:
    """The overrides that name a storage."""
    return [f"hydra.sweeper.storage={storage}"] if storage else []


def test_the_best_trial_is_repeated_exactly_by_the_line_that_the_search_prints(
    bantam: Bantam, finished: Finished
) -> None:
    folder = finished.folder / "multirun" / "optuna"
    assert "python " in finished.output
    assert "--config-dir multirun/optuna experiment=best" in finished.output
    best = json.loads((folder / "summary.json").read_text())["best"]
    again = bantam("train.py", "--config-dir", "multirun/optuna", "experiment=best", "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr
    result = record.read_result(finished.folder / "again")
    assert result["objective"] == best["objective"]
    assert result["parameters"] == best["parameters"]
    same = bantam("evaluate.py", f"multirun/optuna/{best['number']}")
    assert same.returncode == 0, same.stdout


@pytest.mark.whole
def test_a_study_that_has_its_trials_says_so_and_does_nothing(bantam: Bantam, finished: Finished) -> None:
    before = stored(finished.folder).trials
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert "has its 3 trials" in done.stdout
    assert stored(finished.folder).trials == before


@pytest.mark.slow
def test_bad_trials_are_pruned_and_good_ones_are_not(bantam: Bantam, tmp_path: Path) -> None:
    """Rates of nearly nothing after two good ones: the median pruner has to see that across processes."""
    done = bantam(
        "train.py",
        *LINE,
        "data=mnist5k",
        "data.validation=2000",
        "epochs=3",
        "optimizer.lr=choice(0.000001,0.1)",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=1",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2",
        "hydra.sweeper.pruner.n_warmup_steps=2",
        "hydra.sweeper.enqueue=["
        "{optimizer.lr:0.1,optimizer.momentum:0.9},{optimizer.lr:0.1,optimizer.momentum:0.8},"
        "{optimizer.lr:0.000001,optimizer.momentum:0.9},{optimizer.lr:0.000001,optimizer.momentum:0.8}]",
        "hydra/launcher=joblib",
    )
    assert done.returncode == 0, done.stderr
    listed = stored(tmp_path).trials
    assert trials.states(listed) == ["complete", "complete", "pruned", "pruned"]
    assert list(listed[2].intermediate_values) == [1, 2]
    folder = tmp_path / "multirun" / "optuna" / "2"
    result = record.read_result(folder)
    assert (result["verdict"], result["epochs"]) == ("pruned", 2)
    assert sorted(path.name for path in folder.iterdir()) == [".hydra", "history.csv", "result.json"]


@pytest.mark.whole
@pytest.mark.parametrize("storage", STORAGES)
def test_a_killed_search_goes_on_where_it_was(
    started: Callable[..., Forked], bantam: Bantam, tmp_path: Path, storage: str
) -> None:
    storage = storage.format(tmp_path)
    process = started("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", *kept_in(storage))
    bantam.wait_until_held("0")
    bantam.let_go("0")
    bantam.wait_until_held("1")
    assert len(stored(tmp_path, storage).trials) == 2
    for worker in workers(process):
        os.kill(worker, signal.SIGKILL)
    process.kill()
    process.wait()
    assert stored(tmp_path, storage).trials[1].state == TrialState.RUNNING
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", *kept_in(storage))
    assert done.returncode == 0, done.stdout + done.stderr
    listed = stored(tmp_path, storage).trials
    assert trials.states(listed) == ["complete", "stopped", "complete", "complete"]
    assert listed[2].params == listed[1].params or listed[3].params == listed[1].params


def test_a_search_in_a_folder_that_is_named_by_the_time_is_continued_with_that_folder(
    searching: Callable[..., Search], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, also in (
        ("2026-11-29/14-30-00", " with hydra.sweep.dir="),
        ("2026-11-29", ""),
        ("mine", ""),
    ):
        (wanted := searching()).folder = Path("multirun", folder)
        named = f"{also}multirun/{folder}" * bool(also)
        assert terminal.continues(wanted) == f"the same command line{named} continues the search"
        terminal.show_interruption(wanted, "SIGINT")
        said = capsys.readouterr().out
        assert said == f"Interrupted (SIGINT). The same command line{named} continues the search.\n"


@pytest.mark.whole
@pytest.mark.parametrize("storage", STORAGES)
def test_ctrl_c_requeues_the_trials(
    started: Callable[..., Forked], bantam: Bantam, tmp_path: Path, storage: str
) -> None:
    storage = storage.format(tmp_path)
    process = started("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", *kept_in(storage))
    bantam.wait_until_held("0", "1")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output
    assert "The same command line continues the search" in output
    assert "Traceback" not in output
    # Two processes may queue a stopped trial at once: the second entry is surplus, and never run.
    states = [state for state in trials.states(stored(tmp_path, storage).trials) if state != "surplus"]
    assert states == ["stopped", "stopped", "waiting", "waiting"]
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", *kept_in(storage))
    assert done.returncode == 0, done.stdout + done.stderr
    states = [state for state in trials.states(stored(tmp_path, storage).trials) if state != "surplus"]
    assert states == ["stopped", "stopped", "complete", "complete"]


@pytest.mark.whole
@pytest.mark.parametrize("storage", STORAGES)
def test_a_killed_worker_is_replaced(
    started: Callable[..., Forked], bantam: Bantam, tmp_path: Path, storage: str
) -> None:
    storage = storage.format(tmp_path)
    process = started("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", *kept_in(storage))
    bantam.wait_until_held("0", "1")
    os.kill(workers(process)[0], signal.SIGKILL)
    bantam.let_go()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    counts = trials.count(stored(tmp_path, storage).trials)
    assert (counts["complete"], counts["stopped"], counts["running"]) == (3, 1, 0)


@pytest.mark.whole
@pytest.mark.parametrize("storage", STORAGES)
def test_the_same_command_line_in_a_second_terminal_joins_the_search(
    started: Callable[..., Forked], bantam: Bantam, tmp_path: Path, storage: str
) -> None:
    storage = storage.format(tmp_path)
    overrides = ("hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1", *kept_in(storage))
    both = [started(*overrides), started(*overrides)]
    bantam.wait_until_held("0", "1")  # each has one worker: both take part
    bantam.let_go()
    for process in both:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    listed = stored(tmp_path, storage).trials
    counts = trials.count(listed)
    assert (counts["complete"], counts["running"], counts["waiting"]) == (4, 0, 0)
    settings = [
        tuple(trial.params.values())
        for trial, state in zip(listed, trials.states(listed), strict=True)
        if state != "surplus"
    ]
    assert len(set(settings)) == 4  # one seed for two processes, and yet nothing twice
    folders = [path for path in (tmp_path / "multirun" / "optuna").iterdir() if path.name.isdigit()]
    assert len(folders) == 4


@pytest.mark.whole
def test_timeout_lets_the_running_trial_end_and_begins_no_other(
    started: Callable[..., Forked], bantam: Bantam, tmp_path: Path
) -> None:
    seconds = 5
    process = started(f"hydra.sweeper.timeout={seconds}", "hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=99")
    bantam.wait_until_held("0")
    time.sleep(seconds)  # the search began before
    bantam.let_go()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    counts = trials.count(stored(tmp_path).trials)
    assert (counts["complete"], counts["running"]) == (1, 0)


@pytest.mark.whole
def test_a_search_needs_m_and_a_fitting_schedule(bantam: Bantam) -> None:
    for arguments, sentence in (
        (("hparams_search=optuna",), "hparams_search=optuna searches only with -m"),
        (("-m", "hparams_search=optuna", "scheduler=cosine"), "scheduler=cosine has no step_size, which"),
        (("-m", "hparams_search=optuna", "experiment=champion"), "scheduler=one_cycle has no step_size"),
    ):
        refused = bantam("train.py", *arguments, "data=mnist5k", "data.validation=1000")
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert refused.stderr.startswith("Error: ")
        assert sentence in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.whole
def test_four_workers_on_postgresql_lose_nothing_when_two_are_killed(
    started: Callable[..., Forked], bantam: Bantam, postgresql: Postgresql, tmp_path: Path
) -> None:
    process = started(
        f"hydra.sweeper.storage={postgresql.address}", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=4"
    )
    bantam.wait_until_held("0", "1", "2", "3")
    killed = workers(process)[:2]
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    bantam.let_go()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    listed = stored(tmp_path, postgresql.address).trials
    states = trials.states(listed)
    counts = trials.count(listed)
    assert (counts["complete"], counts["running"], counts["waiting"]) == (6, 0, 0)
    assert counts["stopped"] == 2
    finished = [trial for trial, state in zip(listed, states, strict=True) if state == "complete"]
    for trial, state in zip(listed, states, strict=True):
        if state == "stopped":  # it was run again, once
            assert [other.params for other in finished].count(trial.params) == 1
    assert len({tuple(trial.params.values()) for trial in finished}) == 6
    for trial in finished:
        assert record.read_result(tmp_path / "multirun" / "optuna" / str(trial.number))["objective"] == trial.value


@pytest.mark.whole
def test_trials_run_where_submitit_puts_them(bantam: Bantam, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install -e '.[submitit]'")
    done = bantam(
        "train.py", *LINE, "hydra/launcher=submitit_local", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = stored(tmp_path).trials
    assert trial.state == TrialState.COMPLETE
    assert list(trial.intermediate_values) == [1, 2]  # reported from submitit's process
    assert record.read_result(tmp_path / "multirun" / "optuna" / "0")["objective"] == trial.value


@pytest.mark.whole
def test_sigterm_is_in_the_summary(started: Callable[..., Forked], bantam: Bantam, tmp_path: Path) -> None:
    process = started("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    bantam.wait_until_held("0")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Interrupted (SIGTERM). The same command line continues the search" in output
    summary = json.loads((tmp_path / "multirun" / "optuna" / "summary.json").read_text())
    assert (summary["ended_by"], summary["best"]) == ("SIGTERM", None)
    assert summary["trials"]["stopped"] == 1
    assert trials.states(stored(tmp_path).trials) == ["stopped", "waiting"]


@pytest.mark.whole
def test_the_end_says_why(bantam: Bantam, finished: Finished) -> None:
    folder = finished.folder / "multirun" / "optuna"
    assert "Ended since all trials are done." in finished.output
    assert json.loads((folder / "summary.json").read_text())["ended_by"] == "enough"
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=5", "hydra.sweeper.timeout=0.001")
    assert done.returncode == 0, done.stderr
    sentence = "Ended since hydra.sweeper.timeout=0.001 has passed; 2 trials are missing: the same command line"
    assert sentence in " ".join(done.stdout.split())
    assert json.loads((folder / "summary.json").read_text())["ended_by"] == "timeout"


def test_a_worker_whose_machine_cannot_train_stops_the_search_with_its_sentence(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = searching("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", space=SPACE[:1])

    def start(log: Path, *handed_on: object) -> SimpleNamespace:
        log.write_text("Trial 0\nOSError: [Errno 28] No space left on device: 'history.csv'\n")
        return SimpleNamespace(exitcode=faults.EXIT_CODE, is_alive=lambda: False, join=lambda seconds: None)

    monkeypatch.setattr(processes, "start_worker", start)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    with pytest.raises(ValueError, match="No space left on device") as error:
        watch.watch(wanted, open_study(wanted))
    assert str(error.value) == (
        "OSError: [Errno 28] No space left on device: 'history.csv': when that is mended, the same command line "
        "continues the search"
    )
    summary = json.loads((wanted.folder / "summary.json").read_text())
    assert summary["ended_by"] == str(error.value)


def test_a_short_search_writes_a_page_with_its_last_trials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written, now, too_soon = list[str](), [0.0], [True, False, False]

    def while_running(folder: Path) -> bool:
        written.append(folder.name)
        return not too_soon.pop(0)

    monkeypatch.setattr(page, "while_running", while_running)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    search = SimpleNamespace(config=SimpleNamespace(report=True), folder=tmp_path / "study")
    pages = watch.Pages(search, 0.0)  # type: ignore[arg-type]

    def look(ended: bool, last: bool) -> list[str]:
        pages.look(ended, last)
        pages.join()
        return [*written]

    assert [look(False, False), look(True, False), look(True, False)] == [[]] * 3
    assert look(False, True) == ["study"]  # too soon after the last one: tried again
    assert look(False, True) == ["study"] * 2
    assert look(False, True) == ["study"] * 2  # nothing is new
    now[0] = 30.0
    assert look(True, False) == ["study"] * 3
    search.config.report = False
    pages = watch.Pages(search, 0.0)  # type: ignore[arg-type]
    assert look(True, False) == look(True, True) == ["study"] * 3


@pytest.mark.whole
def test_the_page_is_written_while_the_search_goes_on(
    started: Callable[..., Forked], bantam: Bantam, tmp_path: Path
) -> None:
    process = started("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "report=true")
    bantam.wait_until_held("0")
    bantam.let_go("0")
    bantam.wait_until_held("1")
    page = tmp_path / "multirun" / "optuna" / "report.html"
    wait_for(page.exists, 120)
    running = page.read_text()
    bantam.let_go()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "http-equiv" in running or "reload" in running
    assert page.read_text() != running


@pytest.mark.whole
def test_a_search_goes_on_when_postgresql_was_restarted(
    started: Callable[..., Forked], bantam: Bantam, postgresql: Postgresql, tmp_path: Path
) -> None:
    process = started(
        f"hydra.sweeper.storage={postgresql.address}", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"
    )
    bantam.wait_until_held("0", "1")
    postgresql.stop()
    bantam.let_go()
    time.sleep(2)  # heartbeats, looks and reports meet no server
    assert process.poll() is None
    postgresql.start()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    listed = stored(tmp_path, postgresql.address).trials
    assert trials.count(listed) == {"complete": 4}
    assert "waiting for it" in output + "".join(log.read_text() for log in tmp_path.rglob("worker-*.log"))


@pytest.mark.slow
def test_what_is_printed_can_be_pasted_whatever_the_folder_is_called(bantam: Bantam, tmp_path: Path) -> None:
    name = "s, (x)=ü it's [1] {2} $HOME?"
    found = bantam(
        *("train.py", "-m", "hydra/sweeper=bantam", *LINE[2:], override("hydra.sweep.dir", name)),
        *(override("hydra.sweeper.study_name", name), "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1"),
    )
    assert found.returncode == 0, found.stdout + found.stderr
    *_, line, _, confirmation = found.stdout.splitlines()
    assert "experiment=best" in line
    command = line.replace("python ", f"{shlex.quote(sys.executable)} ", 1) + " hydra.run.dir=again"
    pasted = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert pasted.returncode == 0, pasted.stderr
    best = json.loads((tmp_path / name / "summary.json").read_text())["best"]
    assert record.read_result(tmp_path / "again")["objective"] == best["objective"]
    script, *words = shlex.split(confirmation)[1:]
    assert words == [name]
    confirmed = bantam(script, *words, "--top", "1", "--seeds", "2", "--validation-only")
    assert confirmed.returncode == 0, confirmed.stdout + confirmed.stderr
    assert (tmp_path / name / "confirm" / "confirm.json").exists()


@pytest.mark.whole
@pytest.mark.parametrize("damage", ["gone", "result", "configuration"])
def test_a_search_ends_without_the_folder_of_its_best_trial(
    bantam: Bantam, finished: Finished, tmp_path: Path, damage: str
) -> None:
    study = tmp_path / "multirun" / "optuna"
    number = json.loads((study / "summary.json").read_text())["best"]["number"]
    if damage == "gone":
        shutil.rmtree(study / str(number))
    elif damage == "result":
        file = study / str(number) / "result.json"
        file.write_bytes(file.read_bytes()[:100])
    else:
        (study / str(number) / ".hydra" / "config.yaml").write_bytes(b"")
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("--config-dir multirun/optuna experiment=best")  # which is whole
    assert "confirm.py" not in done.stdout
    (study / "experiment" / "best.yaml").unlink()
    done = bantam("train.py", *LINE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"It cannot be run again: multirun/optuna/{number}")
    assert "restore it" in last or "train it" in last
    assert not (study / "experiment" / "best.yaml").exists()


@pytest.mark.whole
@pytest.mark.parametrize("wanted", ["0", "1"])
def test_the_traceback_of_a_trial_is_in_the_terminal_where_that_is_asked_for(
    forks: Forks, tmp_path: Path, wanted: str
) -> None:
    draw = "def draw(self, *words, **named): return 1 / 0"
    code = f"import bantam.augmentation as a\n{draw}\na.Augmentation.draw = draw"
    commands = Bantam(tmp_path, forks, before=code)
    one = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "hydra.sweeper.max_failure_rate=1")
    done = commands("train.py", *LINE, "augmentation=study", *one, HYDRA_FULL_ERROR=wanted)
    commands.close()
    assert done.returncode == 1
    assert "division by zero" in done.stdout
    shown = done.stdout + done.stderr
    assert shown.count("Traceback (most recent call last)") >= 2 * int(wanted)
    assert ("Traceback" in shown) == (wanted == "1")


@pytest.mark.whole
def test_a_search_that_goes_on_says_how_far_it_is_and_one_that_is_refused_writes_no_report(
    bantam: Bantam, finished: Finished, tmp_path: Path
) -> None:
    line = (*LINE, "report=true", "hydra.sweeper.n_jobs=1")
    refused = bantam("train.py", *line, "hydra.sweeper.n_trials=4", "label_smoothing=0.1")
    assert refused.returncode == 1
    assert "label_smoothing is 0.1 here, but 0.0 in the study optuna" in refused.stderr
    assert "report" not in refused.stdout
    assert not (tmp_path / "multirun" / "optuna" / "report.html").exists()
    done = bantam("train.py", *line, "hydra.sweeper.n_trials=4")
    assert done.returncode == 0, done.stderr
    assert "optuna: continuing, 3 of 4 done." in done.stdout
    assert (tmp_path / "multirun" / "optuna" / "report.html").exists()


@pytest.mark.whole
def test_where_there_is_no_table_a_line_says_how_far_a_search_is(
    tmp_path: Path, forks: Forks, few: tuple[str, ...]
) -> None:
    often = "import bantam.training.status as status; status.SECONDS = status.LOOK_SECONDS = 0.1"
    commands = Bantam(tmp_path, forks, often)
    one = ("data.validation=100", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "report=false")
    done = commands("train.py", "-m", "hparams_search=optuna", *few, *one)
    commands.close()
    assert done.returncode == 0, done.stderr
    assert re.search(r"^optuna: 0 of 1 trials .* no best yet", done.stdout, flags=re.MULTILINE)


@pytest.mark.whole
def test_a_search_says_once_on_what_images_it_trains_instead(bantam: Bantam, tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    line = ("-m", "hydra/sweeper=bantam", "hydra.sweep.dir=study", "optimizer.lr=interval(0.01,0.1)", "epochs=1")
    small = ("data.validation=2000", "model.width=3", "threads=1", "report=false", "pictures=false")
    one = ("hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1")
    done = bantam("train.py", *line, *small, *one, BANTAM_DATA=str(tmp_path / "none"), **nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    words = " ".join(done.stdout.replace("│", " ").split())
    assert words.count("Training on mnist5k: 3,000 images only") == 1
    assert words.count("MNIST is not in data.root=") == 1
    assert words.index("Training on mnist5k") < words.index("trial 0")
    assert "validation images of mnist5k" in words
    images = json.loads((tmp_path / "study" / "summary.json").read_text())["images"]
    assert (images["data"], images["validation_images"]) == ("mnist5k", 1000)
    assert "1,000 validation images are held out, not 2,000" in images["instead"]


@pytest.mark.whole
def test_data_that_vanish_in_the_middle_of_a_search_stop_it_and_cost_no_trial(
    started: Callable[..., Forked], bantam: Bantam, few_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(few_root, tmp_path / "data")
    monkeypatch.setenv("BANTAM_DATA", str(root))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing answers there
    wanted = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    process = started(*wanted)
    bantam.wait_until_held("0")
    (root / "FashionMNIST").rename(root / "away")
    (worker,) = workers(process)
    os.kill(worker, signal.SIGKILL)  # the one that replaces it has no images in memory
    bantam.let_go()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    said = next(line for line in output.splitlines() if line.startswith("Error: "))
    assert "FashionMNIST is not in data.root=" in said
    assert "the same command line continues the search" in said
    (root / "away").rename(root / "FashionMNIST")
    done = bantam("train.py", *LINE, *wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = trials.count(stored(tmp_path).trials)
    assert (counts["complete"] + counts["pruned"], counts["failed"]) == (2, 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_damaged_kernel_is_built_anew_in_a_search(
    bantam: Bantam, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = (*LINE, "hydra.sweeper.n_jobs=1")
    assert bantam("train.py", *line, "hydra.sweeper.n_trials=4").returncode == 0
    compiled = list((tmp_path / "cache").rglob("*.so"))
    assert compiled
    for file in compiled:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    done = bantam("train.py", *line, "hydra.sweeper.n_trials=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert trials.count(stored(tmp_path).trials)["failed"] == 0
    kernels = {record.read_result(path.parent)["kernels"] for path in tmp_path.rglob("[0-9]/result.json")}
    assert kernels == {"native"}


@pytest.mark.whole
def test_processes_with_other_clocks_and_time_zones_leave_each_others_trials_alone(
    forks: Forks, few_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = "import time; now = time.time; time.time = lambda: now() + 7200; time.tzset()"
    here, there = Bantam(tmp_path, forks), Bantam(tmp_path, forks, before=shift)
    line = (*LINE, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1", "hydra.sweeper.heartbeat=1")
    first = here.start("train.py", *line, hold=1, TZ="Asia/Tokyo")
    here.wait_until_held("0")
    second = there.start("train.py", *line, hold=1, TZ="America/Los_Angeles")
    there.wait_until_held("1")
    time.sleep(trials.GRACE_PERIOD + 3)  # long enough to be taken for dead
    listed = stored(tmp_path).trials
    assert [trial.state for trial in listed] == [TrialState.RUNNING] * 2
    here.let_go()
    there.let_go()
    for process in (first, second):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    here.close()
    there.close()
    assert trials.count(stored(tmp_path).trials)["stopped"] == 0


NETWORK = """
from torch import nn

class Tiny(nn.Sequential):
    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
"""


@pytest.mark.whole
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_network_of_ones_own_is_counted_and_trained_by_workers(
    bantam: Bantam, few: tuple[str, ...], tmp_path: Path, launcher: str
) -> None:
    (tmp_path / "mine.py").write_text(NETWORK)
    space = ("model=mine.py:Tiny", "model.width=4,40,900", "hydra/sweeper/sampler=grid")
    options = (
        f"hydra/launcher={launcher}",
        *(["hydra.job.name=trial_${hydra.job.num}"] if launcher == "basic" else []),  # joblib's reads it too early
        "hydra.sweep.dir=multirun/optuna",
        "hydra.sweeper.study_name=optuna",
        "hydra.sweeper.n_jobs=1",  # of several one may begin a point of the grid that another has begun
        "data.validation=100",
    )
    done = bantam("train.py", "-m", "hydra/sweeper=bantam", *few, *space, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = stored(tmp_path).trials
    states = dict(zip((t.params["model.width"] for t in listed), trials.states(listed), strict=True))
    assert states == {4: "complete", 40: "complete", 900: "over budget"}
    assert all(t.user_attrs["parameters"] == 20 * t.params["model.width"] + 10 for t in listed)
