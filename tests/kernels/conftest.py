"""The tests of the kernels need a C compiler."""

import pytest

from bantam.kernels import compiler
from bantam.kernels.blocks import functions


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Skip where nothing can be compiled: there the networks run on PyTorch alone."""
    try:
        functions((4, 1, 1, 3, False, 1, False))
    except compiler.Unavailable as error:
        pytest.skip(str(error))
