"""What every command does alike: mistakes in one sentence, exit codes, signals, output that any terminal takes."""

import atexit
import functools
import gc
import os
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

from hydra._internal import utils
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigSource
from omegaconf.errors import OmegaConfBaseException

from bantam.config import raised_in, unreadable
from bantam.overrides import resuming, without_dashes
from bantam.own import source
from bantam.suggestions import suggestion
from bantam.training import settings, terminal

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Terminated(KeyboardInterrupt):
    """A signal asks this process to end, as Ctrl-C does."""

    signal = signal.SIGTERM


def begin() -> None:
    """What a command does first: its output fits any terminal, option files are named, SIGTERM is as Ctrl-C."""
    # Importing PyTorch makes a million objects that stay. To look for unused ones among them after every 700th,
    # and at the end once more, takes a quarter of a short command.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    fit_output()
    utils.run_and_report = _run_and_report
    utils._get_rerun_overrides = _rerun_overrides
    hydra_main._run_hydra = _run_hydra
    hydra_main.get_args_parser = _args_parser
    _refuse_undecodable()
    _end_with_parent()
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


PARENT = "BANTAM_PARENT"
"""The variable with the number of the process that has started this command and shows what it prints."""


def _end_with_parent() -> None:
    """Be terminated when the process is gone that has started this command, such as the kernel of a notebook."""
    parent = os.environ.pop(PARENT, None)
    if parent is not None and os.name == "posix":
        when_parent_is_gone(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))


def when_parent_is_gone(parent: int, then: Callable[[], object]) -> None:
    """Call `then`, in a thread, as soon as the parent of this process is no longer the one of that number."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        then()

    threading.Thread(target=watch, daemon=True).start()


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
    except BrokenPipeError:
        end_unread()
    except Exception as error:
        show_traceback()
        if about := in_our_words(error):
            error = about
        elif not is_meant_for_users(error):
            error = RuntimeError(_with_remedy(error, folder))
        terminal.show_error(error)
        raise SystemExit(1) from None


def end_unread() -> NoReturn:
    """Exit with 1 where nobody reads on, as in `python report.py runs | head`."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(1) from None


def is_meant_for_users(error: BaseException) -> bool:
    """Whether an error is a sentence about what was typed: of Hydra or OmegaConf, or one that Bantam has made.

    A ValueError that Python or a library raises within our code, such as that of `int("x")`, is a fault of ours.
    """
    if isinstance(error, OmegaConfBaseException | HydraException):
        return not isinstance(error, AttributeError | KeyError)  # a key that our code has asked for
    return raised_in(error).partition(".")[0] in ("__main__", "bantam")


def in_our_words(error: Exception) -> ValueError | None:
    """One sentence for what Hydra says in many lines: a damaged option file, an unknown option or key."""
    return about_option_file(error) or suggestion(error)


def told_shortly(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """For code: what goes wrong is a ValueError with one sentence where that says it all, and else as it is.

    A run or a search that was stopped raises KeyboardInterrupt.
    """

    @functools.wraps(function)
    def told(*positional: Given.args, **named: Given.kwargs) -> Result:
        try:
            return function(*positional, **named)
        except SystemExit as end:
            if stopped_by(end) is None:
                raise
            stopped: BaseException = KeyboardInterrupt()
        except Exception as error:
            if not (about := in_our_words(error)) and not is_meant_for_users(error):
                raise
            terminal.show_layers(error)
            stopped = ValueError(" ".join(str(about or error).split()))
        raise stopped  # here, so that the traceback has no more than this line

    return told


class OptionFileError(ValueError):
    """A file of options, such as `experiment/best.yaml`, that cannot be read or composed."""


IN_FILE = re.compile(r"(?:In|Invalid defaults list in) '([^']+)'[:,] (?:\w+ raised while composing config:\s*)?")
"""How Hydra begins where it names the option in which an error lies."""


def about_option_file(error: Exception) -> OptionFileError | None:
    """The sentence for what that lies in an option file; None where it lies elsewhere, as in what was typed."""
    text = " ".join(str(error).split())
    found = IN_FILE.match(text)
    if isinstance(error, MissingConfigException):  # Hydra lists the options that there are
        return None
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        owner, file = frame.f_locals.get("self"), frame.f_locals.get("full_path", "")
        repository = getattr(owner, "repository", None)
        if found and repository:
            having = (folder for folder in repository.get_sources() if folder.is_config(found[1]))
            file = next((f"{folder.path}/{found[1]}.yaml" for folder in having), "")
        elif not isinstance(owner, ConfigSource) or isinstance(error, HydraException):
            continue
        if Path(file).exists():
            if source.NOT_TYPED in text and (typed := source.typing(Path(file))):
                what = "has a network of your own, which is imported only when it is typed"
                return OptionFileError(f"{settings.short_path(Path(file))} {what}: add {typed}")
            reason = (text[found.end() :] if found else unreadable(error)).partition(" full_key:")[0]
            return OptionFileError(
                f"{settings.short_path(Path(file))} cannot be used ({reason}): correct it, or restore it"
            )
    return None


_plain_run_and_report = utils.run_and_report


def _run_and_report(func: Callable[[], Any]) -> Any:
    """Hydra's own way of showing what goes wrong, except for what it says in many lines."""

    def watched() -> Any:
        try:
            return func()
        except Exception as error:
            about = in_our_words(error)
            if about is None or wants_tracebacks():
                raise
            terminal.show_error(about)
            raise SystemExit(1) from None

    return _plain_run_and_report(watched)


_plain_rerun_overrides = utils._get_rerun_overrides


def _rerun_overrides(job_dir: str) -> tuple[str | None, list[str]]:
    """What --experimental-rerun runs: what was typed for the run in a folder, if that is whole."""
    from bantam.training import saved

    with in_one_sentence():
        own = saved.load(Path(job_dir))
        _ = own.choices
        if not own.are_words:
            raise ValueError(f"{job_dir}/.hydra/overrides.yaml is no list of overrides: restore it")
        try:
            name, typed = _plain_rerun_overrides(job_dir)
            job = own.hydra.job
            sound = isinstance(name, str) and all(isinstance(item, str) for item in typed)
            if (
                not sound
                or not isinstance(job.get("id"), str | None)
                or not isinstance(job.get("num"), int | None)
            ):
                raise ValueError("hydra.job or hydra.overrides is not what Hydra has written")
        except Exception as error:  # whatever a damaged file leads to
            what = f"{job_dir}/.hydra/hydra.yaml is damaged ({unreadable(error)})"
            raise ValueError(f"{what}: restore it, or train the run again") from error
        return name, typed


hydra_main: Any = sys.modules["hydra.main"]  # the module: `hydra.main` is its function
run_hydra: Callable[..., None] = hydra_main._run_hydra
"""What a command line is given to; in a worker of a search it is not Hydra, which would compose it again."""


def _run_hydra(*positional: Any, **named: Any) -> None:
    """Hydra's own, except for how it shows which of its options do not go together."""
    try:
        run_hydra(*positional, **named)
    except BrokenPipeError:
        end_unread()
    except ValueError as error:
        if raised_in(error) != utils.__name__ or wants_tracebacks():
            raise
        terminal.show_error(error)
        raise SystemExit(1) from None


def _args_parser() -> Any:
    """Hydra's own, except for what it says of keys that are typed with dashes, as in --epochs=3."""
    parser: Any = utils.get_args_parser()
    plain = parser.error

    def error(message: str) -> NoReturn:
        if about := without_dashes(message):
            terminal.show_error(ValueError(about))
            raise SystemExit(1)
        raise SystemExit(plain(message))

    parser.error = error
    return parser


def show_traceback() -> None:
    """Print the traceback of the error that is handled, where HYDRA_FULL_ERROR=1 asks for it."""
    if wants_tracebacks():
        traceback.print_exc()


def wants_tracebacks() -> bool:
    """Whether HYDRA_FULL_ERROR=1 asks for every traceback in the terminal."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _with_remedy(error: Exception, folder: Path | None) -> str:
    """What happened, where the traceback is, and how it goes on."""
    from bantam.training.build import failure
    from bantam.training.folder import CHECKPOINT, CHECKPOINT_BEFORE

    what = failure(error)
    trace = write_traceback(folder) or "no file, but HYDRA_FULL_ERROR=1 shows it"
    if folder is None:
        return f"this command has failed ({what}; the traceback is in {trace}): mend that, and type it again"
    shown = settings.short_path(folder)
    if any((folder / name).exists() for name in (CHECKPOINT, CHECKPOINT_BEFORE)):
        how = f"when that is mended, {resuming(shown)} continues it"
        return f"{shown} stopped ({what}; the traceback is in {trace}): {how}"
    ended = "stopped" if (folder / SEARCHED).exists() else "was not trained"
    return f"{shown} {ended} ({what}; the traceback is in {trace}): mend that, and type the same line again"


SEARCHED = "trials.csv"
"""The file of a search that has begun."""


def write_traceback(folder: Path | None) -> Path | None:
    """Write the traceback of the error that is handled into a file: into the folder, or a temporary one."""
    from bantam.training.folder import write

    content = traceback.format_exc().encode(errors="replace")
    name = f"bantam-error-{secrets.token_hex(4)}.txt"
    for file in (folder / "error.txt" if folder else None, Path(tempfile.gettempdir()) / name):
        # The disk is full, there is no folder yet, or a folder has the name: no file stays behind.
        with suppress(OSError, ValueError):
            if file is not None:
                write(file, content)
                return file
    return None
