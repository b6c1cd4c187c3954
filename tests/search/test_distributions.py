"""Ranges of the command line: honoured as they are written, or refused with the reason."""

from typing import Any

import pytest
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from bantam.search import distributions


def parsed(line: str) -> BaseDistribution:
    key, found = distributions.parse(line, None)  # type: ignore[arg-type]
    assert key == "a"
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a=interval(0.01,0.1)", FloatDistribution(0.01, 0.1)),
        ("a=tag(log,interval(0.01,0.1))", FloatDistribution(0.01, 0.1, log=True)),
        ("a=int(interval(1,10))", IntDistribution(1, 10)),
        ("a=tag(log,int(interval(1,10)))", IntDistribution(1, 10, log=True)),
        ("a=range(8,21)", IntDistribution(8, 20)),
        ("a=range(8,21,4)", IntDistribution(8, 20, step=4)),
        ("a=range(20,8,-4)", IntDistribution(12, 20, step=4)),
        ("a=tag(log,range(1,101))", IntDistribution(1, 100, log=True)),
        ("a=range(0.1,1,0.3)", FloatDistribution(0.1, 0.7, step=0.3)),
        ("a=float(range(1,4))", FloatDistribution(1.0, 3.0, step=1.0)),
        ("a=int(range(0.5,9,1.5))", CategoricalDistribution([0, 2, 3, 5, 6, 8])),
        ("a=range(0,1000000000000)", IntDistribution(0, 999_999_999_999)),
        ("a=1,2.5,x", CategoricalDistribution([1, 2.5, "x"])),
        ("a=true,false", CategoricalDistribution([True, False])),
        ("a=sort(3,1,2)", CategoricalDistribution([1, 2, 3])),
        ("a=choice([1,2],[3,'b c'])", CategoricalDistribution(["[1,2]", "[3,'b c']"])),
        ("a='b c',d", CategoricalDistribution(["'b c'", "d"])),
    ],
)
def test_ranges_are_searched_as_they_are_written(line: str, expected: BaseDistribution) -> None:
    assert parsed(line) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a=tag(log,range(1,100,2))", "a logarithmic range has steps of 1 only"),
        ("a=tag(log,range(0.1,1,0.1))", "a logarithmic range has steps of 1 only"),
        ("a=tag(log,float(range(1,9)))", "a logarithmic range has steps of 1 only"),
        ("a=tag(log,range(0,100))", "a logarithmic scale begins above 0, not at 0"),
        ("a=tag(log,interval(0,0.1))", "a logarithmic scale begins above 0, not at 0.0"),
        ("a=tag(log,interval(-1,1))", "a logarithmic scale begins above 0, not at -1.0"),
        ("a=tag(log,choice(1,10))", "tag log would be ignored: choices have no scale"),
        ("a=tag(fine,interval(1,10))", "tag fine would be ignored: only log is known"),
        ("a=shuffle(range(1,4))", "shuffle would be ignored"),
        ("a=shuffle(1,2,3)", "shuffle would be ignored"),
        ("a=range(1,10,0)", "its step is 0"),
        ("a=range(5,1)", "it contains no value"),
        ("a=interval(3,1)", "3.0 is above 1.0: write the lower end first"),
        ("a=int(interval(3,1))", "3 is above 1: write the lower end first"),
    ],
)
def test_what_would_be_ignored_is_refused_with_the_reason(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match="cannot be searched: ") as error:
        parsed(line)
    assert str(error.value).startswith(f"{line} cannot be searched: {reason}")


def test_one_value_is_no_range() -> None:
    for line, key in (("a=1", "a"), ("a=[1,2]", "a"), ("~a", "~a"), ("+a=x", "+a")):
        assert distributions.parse(line, None) == (key, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "value", "found"),
    [
        ("a=choice([1,2],[3,4])", [3, 4], "[3,4]"),
        ("a=choice({x:1},{x:2})", {"x": 2}, "{x:2}"),
        ("a=sgd,adamw", "adamw", "adamw"),
        ("a='b c',d", "b c", "'b c'"),
        ("a=1,2", 2, 2),
        ("a=range(8,21,4)", 12, 12),
        ("a=range(8,21)", 12.0, 12),
        ("a=interval(0,1)", 1, 1.0),
        ("a=choice([1,2],[3,4])", [1, 3], None),
        ("a=1,2", True, None),
        ("a=1,2", "1", None),
        ("a=range(8,21,4)", 13, None),
        ("a=range(8,21)", 12.5, None),
        ("a=range(8,21)", "12", None),
        ("a=interval(0,1)", 1.01, None),
        ("a=interval(0,1)", True, None),
    ],
)
def test_values_are_in_a_range_or_not(line: str, value: Any, found: Any) -> None:
    given = OmegaConf.create([value])._get_node(0)
    given = value if not isinstance(value, list | dict) else given
    if found is None:
        with pytest.raises(ValueError, match="is not in"):
            distributions.matching(given, parsed(line))
    else:
        matched = distributions.matching(given, parsed(line))
        assert (matched, type(matched)) == (found, type(found))
        assert distributions.override("a", matched).startswith("a=")
