"""The tests of the kernels need a C compiler."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bantam.kernels import compiler, selfcheck


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Skip where nothing can be compiled: there the networks run on PyTorch alone."""
    try:
        compiler.library("depthwise.c", selfcheck.compare, SIDE=4, CHANNELS=1, KERNEL=3, BFLOAT16=0)
    except compiler.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def emulated_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where blocks with emulated instructions are kept."""
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code that is compiled quickly, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(compiler, "FLAGS", [flag.replace("-O3", "-O1") for flag in compiler.FLAGS])
        compiler.library.cache_clear()
        yield
    compiler.library.cache_clear()
