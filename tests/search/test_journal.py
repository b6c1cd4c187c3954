import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from searches import SPACE, hydra, work

from bantam.search import journal, processes, storage, trials
from bantam.search.space import Search
from bantam.search.study import open_study


def in_journal(folder: Path) -> str:
    return f"hydra.sweeper.storage=journal://{folder}/study.log"


@pytest.mark.whole
@pytest.mark.parametrize("sampler", ["multivariate_tpe", "nsgaii"])
def test_a_search_in_a_journal_goes_on_where_it_was(
    searching: Callable[..., Search], tmp_path: Path, sampler: str
) -> None:
    line = (in_journal(tmp_path), f"hydra/sweeper/sampler={sampler}")
    first = work(searching(*line, "hydra.sweeper.n_trials=3"))
    assert trials.count(first)["complete"] == 3
    listed = work(searching(*line, "hydra.sweeper.n_trials=5"))
    assert trials.count(listed)["complete"] == 5
    assert [trial.params for trial in listed[: len(first)]] == [trial.params for trial in first]
    assert all(trial.user_attrs["heartbeat"] >= 0 for trial in listed)
    assert not (tmp_path / "study" / "study.db").exists()


def test_a_trial_that_was_stopped_is_run_again(searching: Callable[..., Search], tmp_path: Path) -> None:
    line = (in_journal(tmp_path), "hydra.sweeper.n_trials=2")
    study = open_study(searching(*line, space=SPACE[:1]))
    trial = study.ask()
    trial.suggest_float("optimizer.lr", 0.01, 0.1)
    assert trials.end(study, trial.number, trials.STOPPED)
    assert not trials.end(study, trial.number, trials.STOPPED)
    listed = work(searching(*line, space=SPACE[:1]))
    assert trials.states(listed) == ["stopped", "complete", "complete"]
    assert listed[1].params == trial.params


def test_of_many_processes_one_runs_a_trial_that_waits(tmp_path: Path) -> None:
    first = optuna.create_study(storage=journal.open_journal(tmp_path / "study.log"), study_name="one")
    for i in range(12):
        first.enqueue_trial({"x": i})

    def claim(_: int) -> list[int]:
        study = optuna.load_study(storage=journal.open_journal(tmp_path / "study.log"), study_name="one")
        return [study.ask().number for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        claimed = [number for numbers in pool.map(claim, range(4)) for number in numbers]
    assert sorted(claimed) == list(range(12))
    assert {trial.state for trial in first.trials} == {TrialState.RUNNING}


@pytest.mark.parametrize("tail", [b'{"op_code":8,"worker_', b"{", b'{"op_code":4,"study_id":0}'])
def test_half_a_line_at_the_end_is_cut_off_before_the_next(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "study.log"
    study = optuna.create_study(storage=journal.open_journal(file), study_name="one")
    study.ask()
    whole = file.read_bytes()
    with file.open("ab") as stream:
        stream.write(tail)
    other = optuna.load_study(storage=journal.open_journal(file), study_name="one")
    assert len(other.trials) == 1
    other.ask()
    assert file.read_bytes().startswith(whole + b"{")
    study.ask()  # a process that has read the half line, too
    assert len(study.trials) == len(other.trials) == 3
    assert len(optuna.load_study(storage=journal.open_journal(file), study_name="one").trials) == 3


def test_a_journal_with_a_damaged_line_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.log"
    study = optuna.create_study(storage=journal.open_journal(file), study_name="one")
    study.ask()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b'{"op_code\n', *lines[1:]]))
    with pytest.raises(ValueError, match="cannot be opened: .*study.log is damaged, so restore it"):
        journal.open_journal(file)
    file.write_bytes(b"what somebody has written")
    with pytest.raises(ValueError, match="cannot be opened: the file is there, and no journal"):
        journal.open_journal(file)
    assert file.read_bytes() == b"what somebody has written"
    with pytest.raises(
        ValueError, match=r"\(No such file or directory\): choose a file in a folder that is there"
    ):
        journal.open_journal(tmp_path / "nowhere" / "study.log")


def test_a_lock_that_a_dead_process_has_left_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "study.log"
    backend = journal.Journal(file)
    os.symlink(file, f"{file}.lock")
    backend._lock.grace_period = 0.1  # type: ignore[attr-defined]
    backend.append_logs([{"op_code": 0}])
    assert file.read_bytes() == b'{"op_code":0}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["study.log"]


def test_the_path_of_a_journal_does_not_depend_on_where_a_job_is(tmp_path: Path) -> None:
    node = hydra("hparams_search=optuna", "hydra.sweeper.storage=journal://shared/study.log")
    node.runtime.cwd = str(tmp_path)
    assert storage.address(node) == f"journal://{tmp_path}/shared/study.log"


def test_sqlite_on_a_network_file_system_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "proc /proc proc rw 0 0\n/dev/sda / ext4 rw 0 0\nserver:/a /net/my\\040data nfs4 rw 0 0\n"
        "tmpfs /net/my\\040data/fast tmpfs rw 0 0\nbroken\n"
    )
    for folder, kind in (
        ("/net/my data/study", "nfs4"),
        ("/net/my data", "nfs4"),
        ("/net/my data/fast/study", ""),
        ("/home/study", ""),
    ):
        assert journal.network_file_system(Path(folder), mounts) == kind
    assert journal.network_file_system(tmp_path, tmp_path / "nowhere") == ""
    node = hydra("hparams_search=optuna")
    node.runtime.cwd = "/net"
    assert storage.warning(node) == ""
    monkeypatch.setattr(journal, "network_file_system", lambda folder: "nfs4")
    assert storage.warning(node) == (
        "multirun/optuna is on a network file system (nfs4), where SQLite is not safe when several machines "
        "search: use hydra.sweeper.storage=journal:///net/multirun/optuna/study.log"
    )
    node.sweeper.storage = "journal:///net/study.log"
    assert storage.warning(node) == ""


def test_a_signal_leaves_no_lock(
    searching: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = searching(in_journal(tmp_path))
    study = open_study(wanted)
    trial = study.ask()
    signal.signal(signal.SIGINT, processes.stop)  # `searching` restores what was there
    for kind in (journal.JournalFileSymlinkLock, journal.JournalFileOpenLock):
        acquire = kind.acquire

        def acquire_and_send(self: object, acquire: Callable[[object], bool] = acquire) -> bool:
            acquired = acquire(self)
            os.kill(os.getpid(), signal.SIGINT)
            return acquired

        monkeypatch.setattr(kind, "acquire", acquire_and_send)
    with pytest.raises(processes.Stopped):
        trial.set_user_attr("noted", 1)
    monkeypatch.undo()
    assert [*tmp_path.glob("study.log*")] == [tmp_path / "study.log"]
    trial.set_user_attr("more", 2)
    assert study.trials[trial.number].user_attrs == {"noted": 1, "more": 2}
