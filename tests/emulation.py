"""The processor's instructions for bfloat16 in plain C, on processors that do not have them."""

from pathlib import Path

import pytest

from bantam.kernels import compiler

FLAGS = [*(flag.replace("-O3", "-O1") for flag in compiler.FLAGS)]
FLAGS += ["-include", str(Path(__file__).parent / "kernels" / "emulated.h")]


def emulate(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Compile for them from now on, into a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(compiler, "FLAGS", FLAGS)
    monkeypatch.setattr(compiler, "bfloat16", lambda: True)
