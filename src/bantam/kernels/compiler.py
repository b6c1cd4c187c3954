"""Compile C for this processor, keep what was compiled, and say what the processor can do.

`library` brings a C file of this folder as a shared library, its sizes as constants. What a processor computes in
(`bfloat16`, `matrix_unit`) decides which of the code is used.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

ARM = ("aarch64", "arm64")
"""What Linux and macOS call these processors."""


LIMITS = {"default": ("-mno-avx",), "avx2": ("-mno-avx512f",)}
"""What the compiler is told where ATEN_CPU_CAPABILITY, which is PyTorch's, limits the vectors that are used."""


def flags(machine: str) -> tuple[str, ...]:
    """What the compiler is told on such a machine: for ARM, clang knows the processor by another name."""
    native = "-mcpu=native" if machine in ARM else "-march=native"
    return ("-O3", native, "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=gnu11")


def limits(machine: str) -> tuple[str, ...]:
    """What the compiler is told besides, so that it uses no larger vectors than PyTorch does."""
    return LIMITS.get(os.environ.get("ATEN_CPU_CAPABILITY", ""), ()) if machine == "x86_64" else ()


FLAGS = (*flags(platform.machine()), *limits(platform.machine()))


def flags_of_its_own(command: tuple[str, ...], machine: str) -> tuple[str, ...]:
    """What one compiler is told and the other is not."""
    if "clang" in _version(command):
        # Apple's knows OpenMP, but not the flag.
        return ("-Xclang", "-fopenmp") if sys.platform == "darwin" else ("-fopenmp",)
    # For ARM gcc brings forward what a loop reads: then its sums do not fit the registers.
    return ("-fopenmp", "-fno-schedule-insns") if machine in ARM else ("-fopenmp",)


ASK_FOR_UNIT = (158, 0x1023, 18)
"""The system call arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA): a Linux process asks for its tiles once."""

SOURCES = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted(Path(__file__).parent.iterdir())
    if path.suffix in (".c", ".h")
}
"""Read when this file is imported: later, in a worker that was forked, they may be those of another version."""

OPENMP = ("GOMP_", "omp_get_", "__kmpc_")
"""How the functions of OpenMP begin that gcc and clang call."""

OTHERS_WRITE = 0o022
"""The bits of a file's mode that let its group and all others write."""


keep_compiled = True
"""False in a dry run, which creates nothing: what it compiles is for this process alone."""


class Unavailable(ValueError):
    """This machine cannot compile the blocks."""


def cache() -> Path:
    """Where compiled blocks are kept. Raises RuntimeError for a user without a home folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "bantam"


def compiler() -> tuple[str, ...] | None:
    """The C compiler's command, its path first; None where there is none, or none that this works with."""
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    path = None if os.name == "nt" else shutil.which(command[0])
    return None if path is None else (path, *command[1:])


@functools.cache
def matrix_unit() -> bool:
    """Whether this processor multiplies matrices of bfloat16 (AMX), and the system lets this process do so.

    ONEDNN_MAX_CPU_ISA, which tells PyTorch's library what to use of a processor, holds here too.
    """
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() or "DEFAULT"
    allowed = most in ("DEFAULT", "ALL") or "AMX" in most
    if sys.platform != "linux" or not (allowed and bfloat16() and torch.cpu.get_capabilities().get("amx_bf16")):
        return False
    return ctypes.CDLL(None).syscall(*ASK_FOR_UNIT) == 0  # type: ignore[no-any-return]


def bfloat16() -> bool:
    """Whether this processor computes in bfloat16: in vectors, and those with a matrix unit in tiles too."""
    return not limits("x86_64") and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def forget() -> None:
    """Keep what is compiled from now on, and look for what is kept, as another command would."""
    global keep_compiled
    if not keep_compiled:
        library.cache_clear()
    keep_compiled = True


@functools.cache
def library(name: str, check: Callable[..., None], **sizes: int) -> ctypes.CDLL:
    """A C file beside this one with its sizes as constants, compiled or found compiled.

    What was just compiled is kept only after `check(library, name, sizes)`. That raises Unavailable as this does.
    """
    command = compiler()
    if command is None:
        raise Unavailable("there is no C compiler (cc): install one, for example gcc")
    constants = "".join(f"#define {size} {int(value)}\n" for size, value in sizes.items())
    constants += f"#define HALVES {int(in_halves())}\n"
    headers = {name: text for name, text in SOURCES.items() if name.endswith(".h")}
    sources = {"block.c": constants + SOURCES[name], "threads.c": SOURCES["threads.c"], **headers}
    # The processor and the compiler belong to the key: a home folder may be shared by unlike machines.
    more = flags_of_its_own(command, platform.machine())
    parts = (*sources.values(), *FLAGS, *more, *command, _version(command), _processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folders, reasons = list(_folders()), []
    for folder in folders:
        with suppress(OSError):
            if found := _found(folder, key):
                return found
    with ExitStack() as until_loaded:
        if not keep_compiled:
            folders = [Path(until_loaded.enter_context(tempfile.TemporaryDirectory(prefix="bantam-")))]
        for folder in folders:
            try:
                _own(folder)
                with _built(folder, command, sources) as path:
                    path, built = _with_threads(command, path)
                    check(built, name, sizes)
                    os.replace(path, folder / _file_name(key, path.read_bytes()))
                return built
            except Unavailable as error:
                reasons.append(str(error))
            except OSError as error:
                reasons.append(f"compiled blocks cannot be kept in {folder} or loaded: {error}")
    raise Unavailable(reasons[0] if reasons else "there is neither a home nor a temporary folder to compile in")


def _folders() -> Iterator[Path]:
    """Where compiled blocks may be kept: if not in the cache, because it is read-only or full, beside it."""
    with suppress(RuntimeError):
        yield cache()
    with suppress(FileNotFoundError):
        yield Path(tempfile.gettempdir()) / f"bantam-{os.getuid()}"


def _own(folder: Path) -> None:
    """Make a folder that nobody else can write to: what is loaded from it runs as this user."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid == os.getuid() and status.st_mode & OTHERS_WRITE:
        folder.chmod(0o700)
    elif not _trusted(status):
        raise Unavailable(f"{folder} belongs to another user: remove it or set XDG_CACHE_HOME")


def _trusted(status: os.stat_result) -> bool:
    """Whether only this user, or root, can have written a file."""
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & OTHERS_WRITE


def _file_name(key: str, content: bytes) -> str:
    """A compiled file's name, which has its checksum: one that was damaged does not match its name."""
    return f"block-{key}-{hashlib.sha256(content).hexdigest()[:24]}.so"


def _found(folder: Path, key: str) -> ctypes.CDLL | None:
    """What was compiled before; what is damaged, or was put there by somebody else, is removed."""
    for path in folder.glob(f"block-{key}-*.so") if _trusted(folder.stat()) else ():
        with suppress(OSError):  # another process may remove the same file, or have another OpenMP
            if _trusted(path.stat()) and path.name == _file_name(key, path.read_bytes()):
                return _load(path)
            if keep_compiled:
                path.unlink()
    return None


@contextmanager
def _built(folder: Path, command: tuple[str, ...], sources: dict[str, str]) -> Iterator[Path]:
    """The compiled sources in a folder of its own, which is locked as long as its process lives."""
    import fcntl  # nothing is compiled where it is missing

    for left in folder.glob("building-*"):
        with suppress(OSError), _descriptor(left) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)  # its process was killed
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-", ignore_cleanup_errors=True) as name:
        building = Path(name)
        with _descriptor(building) as descriptor:
            with suppress(OSError):  # some network folders know no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for file, text in sources.items():
                (building / file).write_text(text, encoding="utf-8")
            _compile(command, building)
            yield building / "block.so"


@contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _compile(compiler: tuple[str, ...], folder: Path) -> None:
    # Linked without OpenMP: PyTorch's own, which is loaded already, serves. Two of them, each with
    # its threads spinning for work, would take the processor from one another. Apple's linker must
    # be told that something is found later.
    later = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
    more = flags_of_its_own(compiler, platform.machine())
    _call(compiler, folder, *FLAGS, *more, "-fPIC", "-c", "block.c", "-o", "block.o")
    _call(compiler, folder, "-shared", *later, "block.o", "-o", "block.so", "-lm")


def _with_threads(compiler: tuple[str, ...], path: Path) -> tuple[Path, ctypes.CDLL]:
    """What was compiled, loaded; with threads of its own where PyTorch's OpenMP is not this compiler's."""
    try:
        return path, _load(path)
    except OSError as error:
        if not any(name in str(error) for name in OPENMP):
            raise
    _call(compiler, path.parent, "-O2", "-std=gnu11", "-fPIC", "-pthread", "-c", "threads.c", "-o", "threads.o")
    _call(compiler, path.parent, "-shared", "-pthread", "block.o", "threads.o", "-o", "threads.so", "-lm")
    path = path.with_name("threads.so")
    return path, _load(path)


def _call(compiler: tuple[str, ...], folder: Path, *arguments: str) -> None:
    """Let the compiler do something in a folder. Raises Unavailable with its reason where it cannot."""
    done = _run([*compiler, *arguments], cwd=folder, env={**os.environ, "TMPDIR": str(folder)})
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = next((line for line in lines if "error" in line), [*lines, f"exit code {done.returncode}"][0])
        raise Unavailable(f"{compiler[0]} cannot compile the blocks: {reason}")


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", **options)


def _load(path: Path) -> ctypes.CDLL:
    # RTLD_NOW: what is missing shows here, not in the middle of a training.
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW)


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    """What the compiler says about itself; nothing where it does not run, which shows when it compiles."""
    with suppress(OSError):
        return _run([*command, "--version"]).stdout
    return ""


@functools.cache
def in_halves(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor adds the halves of 512 bits one after another, as AMD's Zen 4 does.

    It computes as much with vectors of 256 bits, of which a value that is the same for all lanes serves two.
    """
    with suppress(OSError):
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        told = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
        return told.get("vendor_id") == "AuthenticAMD" and told.get("cpu family") == "25"
    return False


@functools.cache
def _processor() -> str:
    """What distinguishes this processor from others for the compiler."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        telling = ("model name", "flags", "Features", "CPU ")
        return "".join(sorted({line for line in lines if line.startswith(telling)}))
    with suppress(OSError):
        return _run(["sysctl", "-n", "machdep.cpu.brand_string"]).stdout
    return f"{sys.platform} {platform.machine()}"
