import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError, PendingRollbackError, SQLAlchemyError

from bantam.search import processes, storage
from bantam.search.space import Search
from bantam.search.study import open_study


@pytest.mark.whole
def test_an_unreachable_storage_is_one_sentence_without_the_password(
    searching: Callable[..., Search],
) -> None:
    for url, reason in (
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("journal:///no/such/folder/study.log", "No such file or directory"),
        ("nonsense", "Could not parse"),
        ("nodialect://me:secret@host/db", "Can't load plugin"),
    ):
        with pytest.raises(ValueError, match="hydra.sweeper.storage=.* cannot be opened") as error:
            open_study(searching(f"hydra.sweeper.storage='{url}'"))
        assert reason in str(error.value)
        assert "secret" not in str(error.value)


def test_a_file_of_a_storage_is_where_the_command_was_typed(searching: Callable[..., Search]) -> None:
    hydra = searching("hydra.sweeper.storage=sqlite:///study.db").hydra
    assert storage.address(hydra) == f"sqlite:///{Path.cwd()}/study.db"


def away() -> OperationalError:
    """What SQLAlchemy says of a server that does not answer."""

    class Refused(Exception):
        """As psycopg's."""

    return OperationalError("SELECT 1", {}, Refused("connection refused\nIs the server running?"))


@pytest.mark.whole
def test_a_server_that_is_away_for_a_while_is_waited_for(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = open_study(searching())
    times = 0
    get = storage.RDBStorage.__dict__["get_all_studies"]

    def refuse_twice(self: storage.RDBStorage) -> object:
        nonlocal times
        times += 1
        if times < 3:
            raise away()
        return get(self)

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(storage.Patient, "get_all_studies", storage._patient(refuse_twice))
    assert [found.study_name for found in study._storage.get_all_studies()] == ["search"]
    assert capsys.readouterr().out == "The storage does not answer (connection refused): waiting for it.\n"


def test_a_server_is_not_waited_for_for_ever(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(searching())

    def refuse(self: storage.RDBStorage) -> object:
        raise away()

    monkeypatch.setattr(storage, "AWAY_SECONDS", -1)
    monkeypatch.setattr(storage.Patient, "get_all_studies", storage._patient(refuse))
    with pytest.raises(OperationalError, match="connection refused"):
        study._storage.get_all_studies()


def test_an_sqlite_file_can_be_read_while_another_process_is_about_to_write(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0)
    monkeypatch.setattr(storage, "AWAY_SECONDS", -1)
    search = searching()
    study = open_study(search)
    study.enqueue_trial({})
    database = storage.open_storage(search.hydra, wait=True)
    study_id = database.get_study_id_from_name("search")
    database.remove_session()
    with closing(sqlite3.connect(search.folder / "study.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert [trial.number for trial in database.get_all_trials(study_id)] == [0]
        assert database.get_study_user_attrs(study_id)["definition"]
        with pytest.raises((OperationalError, StorageInternalError)):  # it waits for the lock, here no second
            database.create_new_trial(study_id)
        database.remove_session()
        other.execute("ROLLBACK")
    assert database.create_new_trial(study_id)
    database.remove_session()


def test_a_file_that_cannot_be_used_is_not_waited_for(tmp_path: Path) -> None:
    database = storage.Patient(f"sqlite:///{tmp_path}/study.db")
    database.remove_session()
    database.engine.dispose()
    (tmp_path / "study.db").write_bytes(b"no database")
    with pytest.raises((SQLAlchemyError, StorageInternalError)) as error:
        database.get_all_studies()
    assert not storage.is_away(error.value)


def test_a_connection_that_broke_within_a_transaction_is_waited_for(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy asks for a rollback before it connects again, and that too may meet no server."""
    study = open_study(searching())
    times = 0
    get = storage.RDBStorage.__dict__["get_all_studies"]
    remove = storage.RDBStorage.remove_session

    def broken_twice(self: storage.RDBStorage) -> object:
        nonlocal times
        times += 1
        if times < 3:
            raise PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")
        return get(self)

    def remove_broken(self: storage.RDBStorage) -> None:
        remove(self)
        if times < 3:
            raise away()

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(storage.Patient, "get_all_studies", storage._patient(broken_twice))
    monkeypatch.setattr(storage.Patient, "remove_session", remove_broken)
    assert [other.study_name for other in study._storage.get_all_studies()] == ["search"]
    assert times == 3


def test_a_command_that_is_typed_while_the_server_restarts_waits_for_it(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = 0
    patient = storage.Patient

    def refuse_twice(*arguments: object, **named: object) -> storage.Patient:
        nonlocal times
        times += 1
        if times < 3:
            raise away()
        return patient(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(storage, "Patient", refuse_twice)
    wanted = searching()
    storage.open_storage(wanted.hydra)
    assert times == 3
    assert capsys.readouterr().out == "The storage does not answer (connection refused): waiting for it.\n"
    times = 0
    monkeypatch.setattr(storage, "RESTART_SECONDS", 0)
    with pytest.raises(ValueError, match="cannot be opened: connection refused"):
        storage.open_storage(wanted.hydra)


def test_a_signal_waits_until_the_storage_has_answered_and_leaves_no_lock(
    searching: Callable[..., Search], tmp_path: Path
) -> None:
    wanted = searching()
    study = open_study(wanted)
    database = storage.open_storage(wanted.hydra, wait=True)
    assert isinstance(database, storage.Patient)
    trial_id = database.create_new_trial(database.get_study_id_from_name(study.study_name))
    left = 0

    def send(*_: object) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            os.kill(os.getpid(), signal.SIGINT)

    def free() -> bool:
        with closing(sqlite3.connect(tmp_path / "study" / "study.db", timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            return True

    signal.signal(signal.SIGINT, processes.stop)  # `searching` restores what was there
    event.listen(database.engine, "before_cursor_execute", send)
    for name in ("first", "second"):
        left = 1
        with pytest.raises(processes.Stopped):
            database.set_trial_user_attr(trial_id, name, 1)
        assert free()
    left = 1
    with pytest.raises(processes.Stopped):
        database.get_all_trials(1)
    assert free()
    left = 2  # whoever presses twice does not wait
    with pytest.raises(processes.Stopped):
        database.set_trial_user_attr(trial_id, "third", 1)
    event.remove(database.engine, "before_cursor_execute", send)
    database.remove_session()
    assert database.get_trial(trial_id).user_attrs == {"first": 1, "second": 1}


def test_a_storage_that_is_being_opened_is_opened_whole(searching: Callable[..., Search]) -> None:
    wanted = searching()
    open_study(wanted)
    counts, left = [0, 0], 0

    def count(*_: object) -> None:
        nonlocal left
        counts[-1] += 1
        while left > 0:
            left -= 1
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, processes.stop)  # `searching` restores what was there
    event.listen(Engine, "before_cursor_execute", count)
    try:
        storage.open_storage(wanted.hydra, wait=True)
        counts.reverse()
        left = 1
        with pytest.raises(processes.Stopped):
            storage.open_storage(wanted.hydra, wait=True)
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    assert counts[0] == counts[1] > 0
