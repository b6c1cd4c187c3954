"""The journal of a search: a file on a shared folder to which every process appends, which needs no server."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock

from bantam.search import processes

SCHEME = "journal://"
"""How the address of a journal begins, before the path of its file."""

FIRST = b'{"op_code":'
"""How a journal begins."""

NETWORK = (
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.sshfs",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "smb3",
)
"""Types of file systems that several machines mount."""


def open_journal(file: Path) -> JournalStorage:
    """Open a journal, and make it where there is none. Raises ValueError where it is none or cannot be written."""
    refusal = f"hydra.sweeper.storage={SCHEME}{file} cannot be opened"
    try:
        with file.open("a+b") as stream:
            stream.seek(0)
            if not FIRST.startswith(stream.read(len(FIRST))):
                raise ValueError(f"{refusal}: the file is there, and no journal")
        return Undisturbed(Journal(file))
    except OSError as error:
        remedy = "choose a file in a folder that is there and can be written"
        raise ValueError(f"{refusal} ({error.strerror}): {remedy}") from error
    except StorageInternalError as error:
        raise ValueError(f"{refusal}: {error}, so restore it, or begin another study in another file") from error


class Undisturbed(JournalStorage):
    """Optuna's, whose methods no signal breaks off: a lock would stay, or what it has read be half of a line's."""


def _undisturbed(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        with processes.uninterrupted():
            return method(*arguments, **named)

    return call


for _name, _method in vars(JournalStorage).items():
    if inspect.isfunction(_method) and not _name.startswith("_"):
        setattr(Undisturbed, _name, _undisturbed(_method))


class Journal(JournalFileBackend):
    """Optuna's journal, in which a line that was cut off does not make all that follow unreadable.

    A disk that was full, a power cut or a network folder that went away may leave half a line at the end. The lock
    is a symbolic link beside the journal, which NFS makes for a single process only. One that a dead process has
    left is taken over after half a minute.
    """

    def __init__(self, file: Path) -> None:
        path = str(file)
        super().__init__(path, JournalFileSymlinkLock(path) if os.name == "posix" else JournalFileOpenLock(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines behind the last whole one, flushed to the disk."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs).encode()
        self._lock.acquire()
        try:
            with open(self._file_path, "r+b") as stream:
                end = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, end - 1))
                if stream.read(1) not in (b"", b"\n"):
                    stream.seek(0)
                    end = stream.read().rfind(b"\n") + 1
                    stream.truncate(end)
                stream.seek(end)
                stream.write(lines)
                stream.flush()
                os.fsync(stream.fileno())
        finally:
            self._lock.release()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines from a number on. Raises StorageInternalError where one is damaged."""
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise StorageInternalError(f"{self._file_path} is damaged") from error


def network_file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the network file system that a folder is on; empty where it is on none, or nobody says."""
    try:
        lines = [line.split(" ") for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    kinds = {Path(line[1].replace("\\040", " ")): line[2] for line in lines if len(line) > 2}
    resolved = folder.resolve()
    kind = next((kinds[path] for path in (resolved, *resolved.parents) if path in kinds), "")
    return kind if kind in NETWORK else ""
