"""A few images, and a finished run to export."""

from dataclasses import replace

import pytest

from bantam.data import Data, mnist5k


@pytest.fixture(scope="session")
def images() -> Data:
    """The packaged images, fewer of them."""
    data = mnist5k(0, 1, 0.1307, 0.3081)
    return replace(data, train_images=data.train_images[:400])
