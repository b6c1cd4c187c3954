"""Compile C for this processor, keep what was compiled, and say what the processor can do.

`library` brings a C file of this folder as a shared library, its sizes as constants. What a processor computes in
(`bfloat16`, `matrix_unit`) decides which of the code is used.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=gnu11")

ASK_FOR_UNIT = (158, 0x1023, 18)
"""The system call arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA): a Linux process asks for its tiles once."""


class Unavailable(ValueError):
    """This machine cannot compile the blocks."""


def cache() -> Path:
    """Where compiled blocks are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bantam"


def compiler() -> str | None:
    """Path of the C compiler; None where there is none, or none that this works with."""
    return None if os.name == "nt" else shutil.which(os.environ.get("CC", "cc"))


@functools.cache
def matrix_unit() -> bool:
    """Whether this processor multiplies matrices of bfloat16 (AMX), and the system lets this process do so."""
    if sys.platform != "linux" or not torch.cpu.get_capabilities().get("amx_bf16"):
        return False
    return ctypes.CDLL(None).syscall(*ASK_FOR_UNIT) == 0  # type: ignore[no-any-return]


def bfloat16() -> bool:
    """Whether this processor computes in bfloat16: in vectors, and those with a matrix unit in tiles too."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


@functools.cache
def library(name: str, **sizes: int) -> ctypes.CDLL:
    """A C file beside this one with its sizes as constants, compiled or found compiled. Raises Unavailable."""
    cc = compiler()
    if cc is None:
        raise Unavailable("there is no C compiler (cc): install one, for example gcc")
    constants = "".join(f"#define {size} {int(value)}\n" for size, value in sizes.items())
    here = Path(__file__).parent
    source = constants + (here / name).read_text()
    headers = [header.read_text() for header in sorted(here.glob("*.h"))]
    # The processor and the compiler belong to the key: a home folder may be shared by unlike machines.
    key = "".join((source, *headers, *FLAGS, cc, _processor()))
    path = cache() / f"block-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                (Path(folder) / "block.c").write_text(source)
                _compile(cc, Path(folder))
                os.replace(Path(folder) / "block.so", path)
        # RTLD_NOW: what is missing shows here, not in the middle of a training.
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError as error:
        raise Unavailable(f"compiled blocks cannot be kept in {path.parent} or loaded: {error}") from error


def _compile(cc: str, folder: Path) -> None:
    # Linked without OpenMP: PyTorch's own, which is loaded already, serves. Two of them, each with
    # its threads spinning for work, would take the processor from one another.
    for command in (
        [cc, *FLAGS, f"-I{Path(__file__).parent}", "-fopenmp", "-fPIC", "-c", "block.c", "-o", "block.o"],
        [cc, "-shared", "block.o", "-o", "block.so", "-lm"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            reason = next((line for line in lines if "error" in line), [*lines, f"exit code {done.returncode}"][0])
            raise Unavailable(f"{cc} cannot compile the blocks: {reason}")


@functools.cache
def _processor() -> str:
    """What distinguishes this processor from others for the compiler."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{sys.platform} {os.uname().machine}"
