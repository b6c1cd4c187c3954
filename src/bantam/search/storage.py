"""The database of a search: its address, and opening it so that several processes may write."""

import warnings
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

MOST_RETRIES = 3
"""How often a trial is run again whose process died: one that kills its process must not do so for ever."""

SILENT = 4
"""Heartbeats after which a trial's process counts as dead."""

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
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
                storage = RDBStorage(
                    url,
                    engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}} if sqlite else {},
                    heartbeat_interval=hydra.sweeper.heartbeat,
                    grace_period=SILENT * hydra.sweeper.heartbeat,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MOST_RETRIES),
                )
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
    """The URL of a search's storage."""
    return hydra.sweeper.storage or f"sqlite:///{Path(hydra.sweep.dir).absolute()}/study.db"


def shown(url: str) -> str:
    """A storage's URL without its password."""
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{host}"
