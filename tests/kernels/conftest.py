"""The tests of the kernels need a C compiler."""

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
