"""Compilers for x86-64 and for AArch64, whichever of the two this machine is."""

import platform
import shutil
import subprocess

import pytest

from bantam.kernels import compiler

COMPILERS = {
    "gcc": {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc"},
    "clang": {"x86_64": "clang --target=x86_64-linux-gnu", "aarch64": "clang --target=aarch64-linux-gnu"},
}
"""Their commands where the machine is of the other kind."""


def command(name: str, machine: str) -> list[str]:
    """gcc or clang for this kind of machine. Skips the test where there is none, or not the library's headers."""
    found = name if platform.machine() == machine else COMPILERS[name][machine]
    words = found.split()
    if not shutil.which(words[0]):
        pytest.skip(f"there is no {words[0]}")
    headers = "#include <stdlib.h>\n#include <pthread.h>\n"
    done = subprocess.run([*words, "-E", "-x", "c", "-"], input=headers, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{found} finds no headers of the C library")
    return words


def flags(command: list[str], machine: str, processor: str) -> list[str]:
    """Bantam's flags for a machine, with a processor in place of the one that it runs on."""
    usual = [flag.replace("native", processor) for flag in compiler.flags(machine)]
    return usual + list(compiler.flags_of_its_own(tuple(command), machine))
