"""Faults of the machine, which are not the trial's: a full disk, a storage that is away, a job that was killed."""

import errno
import re

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from bantam.cluster import NoCluster
from bantam.search.storage import first_line
from bantam.training.build import NoImages

EXIT_CODE = 75
"""Of a worker whose machine cannot train: for now, says sysexits.h."""

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)
"""What the disk says: full, over the quota, read-only, broken; too many files; a network folder that is gone."""

KILLED = ("TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError", "JobDied")
"""What the launchers of joblib, of Python, of submitit and of Ray raise where the process of a job was killed."""


class MachineFault(Exception):
    """This machine cannot train, for a reason in one sentence that does not lie in the trial."""


def raise_machine_fault(error: Exception) -> None:
    """Raise MachineFault where an error says that the machine cannot train."""
    if isinstance(error, SQLAlchemyError | StorageInternalError):
        raise MachineFault(f"the storage failed ({first_line(error)})") from error
    if isinstance(error, NoImages | NoCluster):
        raise MachineFault(str(error)) from error
    if isinstance(error, OSError) and error.errno in ERRORS:
        raise MachineFault(f"{type(error).__name__}: {error}") from error


def is_recorded(reason: str) -> bool:
    """Whether the reason that a job has recorded for its failure is the machine's."""
    found = re.search(r"OSError: \[Errno (\d+)\]", reason)
    return found is not None and int(found[1]) in ERRORS


def killed(error: Exception) -> bool:
    """Whether the process of a job was killed, so that nothing is known of the job itself."""
    return type(error).__name__ in KILLED
