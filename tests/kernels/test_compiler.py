import subprocess
from pathlib import Path

import pytest

from bantam import models
from bantam.kernels import compiler
from bantam.kernels.fuse import fuse

IMAGE = (1, 28, 28)


def test_compiled_blocks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.library.cache_clear()
    compiler.library("depthwise.c", SIDE=5, CHANNELS=2, KERNEL=3, BFLOAT16=0)
    (kept,) = (tmp_path / "bantam").iterdir()
    compiler.library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    compiler.library("depthwise.c", SIDE=5, CHANNELS=2, KERNEL=3, BFLOAT16=0)
    assert list((tmp_path / "bantam").iterdir()) == [kept]
    compiler.library.cache_clear()


@pytest.mark.parametrize(
    ("cc", "reason"),
    [("no-such-compiler", "there is no C compiler"), ("false", "cannot compile the blocks: exit code 1")],
)
def test_a_machine_that_cannot_compile_says_so(
    cc: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", cc)
    compiler.library.cache_clear()
    with pytest.raises(compiler.Unavailable, match=reason):
        fuse(models.V2(), IMAGE)
    compiler.library.cache_clear()
