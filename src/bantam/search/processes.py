"""Worker processes of a search, which need not import everything anew.

On Linux they are forks of a process that does nothing but import, while the search is still being checked;
elsewhere, where system libraries do not survive a fork, each one begins from nothing.
"""

import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from bantam import errors

STOP_SECONDS = 60
"""How long a worker may take to requeue its trial before it is killed."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What asks a search to stop."""


class Stopped(KeyboardInterrupt):
    """A signal asks this process to stop."""

    def __init__(self, number: int) -> None:
        """`number` is that of the signal."""
        super().__init__()
        self.signal = signal.Signals(number)


def stop(number: int, frame: FrameType | None) -> None:
    """A handler of signals that raises `Stopped`."""
    interrupt(Stopped(number))


_calls = threading.local()
"""In each thread, whether what it does must not be broken off (`whole`), and the error that waits (`error`)."""


def interrupt(error: KeyboardInterrupt) -> None:
    """Raise what a signal asks for: now, or within `uninterrupted` at its end; a second one does not wait."""
    if getattr(_calls, "whole", False) and _calls.error is None:
        _calls.error = error
    else:
        raise error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait meanwhile: what is broken off while it holds a lock would lock others out."""
    if getattr(_calls, "whole", False):
        yield
        return
    _calls.whole, _calls.error = True, None
    try:
        yield
    finally:
        _calls.whole = False
        if _calls.error is not None:
            raise _calls.error


if sys.platform == "linux":
    CONTEXT = multiprocessing.get_context("forkserver")
else:
    CONTEXT = multiprocessing.get_context("spawn")


@contextmanager
def imports() -> Iterator[None]:
    """Import what stays: Python does not look for unused objects among it, now or later, here or in a fork."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def preload() -> None:
    """Begin to import what workers need, in the background; does nothing where that is done."""
    if sys.platform == "linux":
        CONTEXT.set_forkserver_preload(["bantam.search.preloaded"])
        # Signals to the whole group must not end the process that forks workers: they would be lost with it. It
        # starts the tracker too where there is none, and that would unblock the signals.
        multiprocessing.resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(log: Path, work: Callable[[Any, Any], None], task: Any) -> BaseProcess:
    """Start a worker: this very command line, but `work` gets what Hydra would; it writes to `log`.

    `work` is called with the task, which can be pickled, and with what a job does: train.py's own function.
    """
    preload()
    log.touch()
    worker = CONTEXT.Process(target=_enter, args=(sys.argv, log, work, task))
    worker.start()
    return worker


def _enter(arguments: list[str], log: Path, work: Callable[[Any, Any], None], task: Any) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # so that Ctrl-C reaches only who watches
    with log.open("ab") as stream:
        for output in (1, 2):
            os.dup2(stream.fileno(), output)
    errors.run_hydra = lambda **named: work(task, named["task_function"])
    sys.argv = arguments
    try:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        # As Python does when a program ends: joblib's processes are told that no work will come. `multiprocessing`
        # would wait for them first, and does so five minutes.
        threading._shutdown()  # type: ignore[attr-defined]


def abandoned() -> bool:
    """In a worker, whether the process that watches is gone."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def stop_workers(workers: Iterable[BaseProcess]) -> None:
    """Have all workers requeue their trials, and wait for them; a second Ctrl-C kills them."""
    workers = list(workers)
    try:
        for worker in workers:
            if worker.is_alive():
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(worker.pid, signal.SIGINT)  # type: ignore[arg-type]
        for worker in workers:
            worker.join(STOP_SECONDS)
    except KeyboardInterrupt:
        pass
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
