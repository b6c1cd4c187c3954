"""What every command does alike: mistakes in one sentence, exit codes, signals, output that any terminal takes."""

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bantam.overrides import command_line, override
from bantam.training import terminal


class Terminated(KeyboardInterrupt):
    """A signal asks this process to end, as Ctrl-C does."""

    signal = signal.SIGTERM


def begin() -> None:
    """What a command does first: it makes its output fit any terminal, and ends after SIGTERM as after Ctrl-C."""
    fit_output()
    _refuse_undecodable()
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _refuse_undecodable() -> None:
    """Exit with 1 where a name cannot be written into a configuration: its letters are unknown to the locale."""
    for text in (*sys.argv, os.getcwd()):
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode(errors="replace").decode()
            why = "has letters that this locale does not know: set PYTHONUTF8=1, or a locale with UTF-8"
            terminal.show_error(ValueError(f"{shown} {why}"))
            raise SystemExit(1) from None


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def fit_output() -> None:
    """Have what a terminal cannot show printed as question marks: no command fails for that."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def stopped_by(error: BaseException | None) -> int | None:
    """The exit code of what a signal has stopped: 130 after Ctrl-C, 143 after SIGTERM; None for anything else."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + int(getattr(error, "signal", signal.SIGINT))
    if isinstance(error, SystemExit) and error.code in (130, 143):
        return int(error.code)
    return None


@contextmanager
def in_one_sentence(folder: Path | None = None) -> Iterator[None]:
    """Show what goes wrong in one sentence and exit with 1: Hydra ignores other exceptions that leave a callback.

    What is not the user's mistake has its traceback in a file, in `folder` where that can be written;
    HYDRA_FULL_ERROR=1 shows every traceback.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        terminal.show_stopped()
        raise SystemExit(stopped_by(stop)) from None
    except BrokenPipeError:  # nobody reads on, as in `python report.py runs | head`
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        show_traceback()
        if not isinstance(error, ValueError | OmegaConfBaseException | HydraException):
            error = RuntimeError(_with_remedy(error, folder))
        terminal.show_error(error)
        raise SystemExit(1) from None


def show_traceback() -> None:
    """Print the traceback of the error that is handled, where HYDRA_FULL_ERROR=1 asks for it."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()


def _with_remedy(error: Exception, folder: Path | None) -> str:
    """What happened, where the traceback is, and how it goes on."""
    from bantam.training.build import failure
    from bantam.training.folder import CHECKPOINT, CHECKPOINT_BEFORE

    what = failure(error)
    trace = _write_traceback(folder) or "no file, but HYDRA_FULL_ERROR=1 shows it"
    if folder is None:
        return f"this command has failed ({what}; the traceback is in {trace}): mend that, and type it again"
    shown = terminal.short_path(folder)
    if any((folder / name).exists() for name in (CHECKPOINT, CHECKPOINT_BEFORE)):
        line = command_line(["python", "train.py", override("resume", shown)])
        return f"{shown} stopped ({what}; the traceback is in {trace}): when that is mended, {line} continues it"
    return (
        f"{shown} was not trained ({what}; the traceback is in {trace}): mend that, and type the same line again"
    )


def _write_traceback(folder: Path | None) -> Path | None:
    """Write the traceback of the error that is handled into a file: into the folder, or a temporary one."""
    text = traceback.format_exc()
    with suppress(OSError):  # the disk is full, or there is no folder yet
        if folder is not None:
            (folder / "error.txt").write_text(text, encoding="utf-8", errors="replace")
            return folder / "error.txt"
    with (
        suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", prefix="bantam-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file,
    ):
        file.write(text)
        return Path(file.name)
    return None
