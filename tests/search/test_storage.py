from collections.abc import Callable

import pytest

from bantam.search.space import Search
from bantam.search.study import open_study


def test_an_unreachable_storage_is_one_sentence_without_the_password(
    searching: Callable[..., Search],
) -> None:
    for url, reason in (
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("nonsense", "Could not parse"),
        ("nodialect://me:secret@host/db", "Can't load plugin"),
    ):
        with pytest.raises(ValueError, match="hydra.sweeper.storage=.* cannot be opened") as error:
            open_study(searching(f"hydra.sweeper.storage='{url}'"))
        assert reason in str(error.value)
        assert "secret" not in str(error.value)
