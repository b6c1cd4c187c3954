"""The storage of a search: its address, opening it so that several processes may write, and waiting for it."""

import functools
import inspect
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from bantam import resolve
from bantam.search import journal, processes

LOCK_SECONDS = 120
"""How long a process waits for another one to be done with an SQLite file."""

AWAY_SECONDS = 600
"""How long a process waits for a server that does not answer."""

RESTART_SECONDS = 15
"""How long a command that has just been typed waits for one: its address may be wrong."""


def _whole(sqlite: bool) -> AbstractContextManager[None]:
    """Signals wait meanwhile: a lock of SQLite would stay, which a server takes back with the connection."""
    return processes.uninterrupted() if sqlite else nullcontext()


class Patient(RDBStorage):
    """A storage that waits for its server, which may be restarted while a search goes on."""

    def remove_session(self) -> None:
        """Give this thread's connection back; its transaction ends."""
        with _whole(self.engine.dialect.name == "sqlite"):
            super().remove_session()


_calls = threading.local()
"""In each thread, the name of the storage's method that runs; None where none does."""


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is called again until the server answers; what it calls itself does not wait again."""

    @functools.wraps(method)
    def call(self: Patient, *arguments: Any, **named: Any) -> Any:
        if getattr(_calls, "method", None):
            return method(self, *arguments, **named)
        _calls.method = method.__name__
        try:
            return _call_until_answered(self, functools.partial(method, self, *arguments, **named))
        finally:
            _calls.method = None

    return call


def _only_reads() -> bool:
    """Whether the method of the storage that runs in this thread writes nothing."""
    name = getattr(_calls, "method", None) or ""
    return name.startswith("get_") or name == "_get_trials"


def _call_until_answered(storage: Patient, call: Callable[[], Any]) -> Any:
    until = time.monotonic() + AWAY_SECONDS
    said = False
    sqlite = storage.engine.dialect.name == "sqlite"
    while True:
        try:
            with _whole(sqlite):
                return call()
        except (SQLAlchemyError, StorageInternalError) as error:
            if not is_away(error) or time.monotonic() > until:
                raise
            if not said:
                _show_waiting(error)
                said = True
            with suppress(SQLAlchemyError):  # its connection cannot be rolled back
                storage.remove_session()
        time.sleep(0.5)


for _name, _method in vars(RDBStorage).items():
    if inspect.isfunction(_method) and not _name.startswith("__") and _name != "remove_session":
        setattr(Patient, _name, _patient(_method))


def is_away(error: Exception) -> bool:
    """Whether a server does not answer, which may do so later; a file that cannot be used will not."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):  # the connection broke before, within a transaction
        return True
    return isinstance(cause, OperationalError | InterfaceError) and "sqlite" not in type(cause.orig).__module__


def first_line(error: Exception) -> str:
    """What a database says of an error, without the statement."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return str(getattr(cause, "orig", None) or error.__cause__ or error).strip().splitlines()[0]


def _show_waiting(error: Exception) -> None:
    print(f"The storage does not answer ({first_line(error)}): waiting for it.", flush=True)


def open_storage(hydra: DictConfig, wait: bool = False) -> BaseStorage:
    """Open the storage of a search, and make it where there is none.

    With `wait`, for workers and jobs, the process that watches has made and checked it, and a server may be away
    for long. Raises ValueError where it cannot be reached or written.
    """
    url = address(hydra)
    if url.startswith(journal.SCHEME):
        return journal.open_journal(Path(url.removeprefix(journal.SCHEME)))
    sqlite = url.startswith("sqlite")
    options: dict[str, Any] = {"skip_compatibility_check": wait, "skip_table_creation": wait}
    if sqlite:
        options["engine_kwargs"] = {"connect_args": {"timeout": LOCK_SECONDS}}
    until = time.monotonic() + (AWAY_SECONDS if wait else RESTART_SECONDS)
    races, said = 0, False
    while True:
        try:
            with _whole(sqlite):
                storage = Patient(url, **options)
            break
        except (SQLAlchemyError, StorageInternalError, RuntimeError, ImportError, ValueError) as error:
            if _is_race(error) and races < 4:
                races += 1
            elif is_away(error) and time.monotonic() < until:
                if not said:
                    _show_waiting(error)
                    said = True
                time.sleep(0.5)
            else:
                reason = first_line(error)
                remedy = "restore the file, or choose another" if sqlite else "start it, or correct its address"
                what = f"hydra.sweeper.storage={shown(url)} cannot be opened: {reason}"
                raise ValueError(f"{what}; {remedy}") from error
    if sqlite:
        with _whole(sqlite):
            _lock_before_writing(storage)
    return storage


def _is_race(error: Exception) -> bool:
    """Whether another process has just made the same tables, or noted their version: the later one tries again."""
    exists = isinstance(error, SQLAlchemyError) and "already exists" in str(error)
    return isinstance(error, IntegrityError) or exists


def _lock_before_writing(storage: RDBStorage) -> None:
    """Have SQLite lock at the beginning of a transaction that will write.

    Optuna reads and then writes within one transaction, to claim a trial for example. SQLite locks at the first
    write only, so that two processes would claim the same one. Whoever only reads does not lock: he who waits for
    a lock sleeps longer and longer, and a search reads more than it writes.
    """

    @event.listens_for(storage.engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def lock(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN" if _only_reads() else "BEGIN IMMEDIATE")

    storage.remove_session()
    storage.engine.dispose()  # the connections that were made before


def address(hydra: DictConfig) -> str:
    """The URL of a search's storage; its folder does not depend on where a job has changed to."""
    given = str(hydra.sweeper.storage or "")
    if given.startswith(journal.SCHEME):
        return f"{journal.SCHEME}{Path(hydra.runtime.cwd, given.removeprefix(journal.SCHEME)).absolute()}"
    if given:
        return resolve.absolute(given, Path(hydra.runtime.cwd)) if given.startswith(resolve.SQLITE) else given
    file = Path(hydra.runtime.cwd, hydra.sweep.dir).absolute() / "study.db"
    if any(character in str(file) for character in "?{}"):  # a query to SQLAlchemy, a template to Optuna
        return f"sqlite:///file:{quote(str(file))}?uri=true"
    return f"sqlite:///{file}"


def warning(hydra: DictConfig) -> str:
    """What speaks against a search's storage, in a sentence; empty where nothing is known to do so."""
    folder = Path(hydra.runtime.cwd, hydra.sweep.dir)
    kind = "" if hydra.sweeper.storage else journal.network_file_system(folder)
    if not kind:
        return ""
    return (
        f"{hydra.sweep.dir} is on a network file system ({kind}), where SQLite is not safe when several machines "
        f"search: use hydra.sweeper.storage={journal.SCHEME}{folder.absolute()}/study.log"
    )


def shown(url: str) -> str:
    """A storage's URL without its password."""
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{host}"
