from typing import Any

import pytest

from bantam.report.numbers import listed, plural, shown, signed


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, None, ""),
        (True, None, "true"),
        (9680, None, "9,680"),
        (0.24996760676, None, "0.25"),
        (0.00001, None, "1e-05"),
        (123456.7, None, "123,457"),
        (98.5, 3, "98.500"),
        (99, 2, "99.00"),
        ("v2", None, "v2"),
    ],
)
def test_values_are_written_one_way(value: Any, digits: int | None, text: str) -> None:
    assert shown(value, digits) == text


def test_differences_have_a_sign_and_counts_a_noun() -> None:
    assert (signed(0.5), signed(-0.5), signed(None)) == ("+0.50", "−0.50", "")
    assert (plural(1, "trial"), plural(1200, "trial")) == ("1 trial", "1,200 trials")
    assert listed(["a", "b", "c", "d"]) == "a, b, c and 1 more"
