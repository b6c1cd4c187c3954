"""The database of a search: its address, and opening it so that several processes may write."""

from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

LOCK_SECONDS = 120
"""How long a process waits for another one to be done with an SQLite file."""


def open_storage(hydra: Any) -> RDBStorage:
    """Open the storage of a search, and make it where there is none.

    Raises ValueError where it cannot be reached or written.
    """
    url = address(hydra)
    sqlite = url.startswith("sqlite")
    for attempt in range(5):
        try:
            storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}} if sqlite else {})
            break
        except (SQLAlchemyError, RuntimeError, ImportError, ValueError) as error:
            # Processes that start together may both create the tables, or note their version: the later one
            # tries again.
            race = isinstance(error, IntegrityError) or (
                isinstance(error, SQLAlchemyError) and "already exists" in str(error)
            )
            if attempt == 4 or not race:
                reason = str(getattr(error, "orig", None) or error.__cause__ or error).strip().splitlines()[0]
                raise ValueError(f"hydra.sweeper.storage={shown(url)} cannot be opened: {reason}") from error
    if sqlite:
        # Optuna reads and then writes within one transaction, to claim a trial for example. SQLite
        # locks at the first write only, so two processes would claim the same one.
        @event.listens_for(storage.engine, "connect")
        def leave_transactions_to_us(connection: Any, _: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(storage.engine, "begin")
        def lock_before_reading(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        storage.remove_session()
        storage.engine.dispose()  # the connections that were made before
    return storage


def address(hydra: Any) -> str:
    """The URL of a search's storage; its folder does not depend on where a job has changed to."""
    folder = Path(hydra.runtime.cwd, hydra.sweep.dir).absolute()
    return hydra.sweeper.storage or f"sqlite:///{folder}/study.db"


def shown(url: str) -> str:
    """A storage's URL without its password."""
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{host}"
