import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bantam.overrides import command_line, override

TEXTS = ("a b", "a=b", "x,y", "(z)", "über/straße", "it's", 'say "hi"', "$HOME", "back\\slash", "a\\'b", "[a]")
OTHERS = ("~/x", "1", "true", "null", "1e5", "", "${oc.env:X}", "end\\", 1, 1e-5, True, None)


@pytest.mark.parametrize("value", [*TEXTS, *OTHERS])
def test_hydra_reads_back_what_was_written(value: object) -> None:
    (line,) = shlex.split(command_line([override("key", value)]))
    parsed = OverridesParser.create().parse_override(line)
    assert parsed.key_or_group == "key"
    read = parsed.value()
    assert getattr(read, "text", read) == value
    assert type(getattr(read, "text", read)) is type(value)


def test_lists_and_dicts_are_read_back() -> None:
    read = OverridesParser.create().parse_override(override("key", [1, "a b", None])).value()
    assert isinstance(read, list)
    assert [getattr(item, "text", item) for item in read] == [1, "a b", None]
    assert override("key", {"a": 1, "b": "c,d"}) == "key={a:1,b:'c,d'}"


def test_what_needs_no_quotes_has_none() -> None:
    assert override("resume", "outputs/2026-11-25/10-00-00") == "resume=outputs/2026-11-25/10-00-00"
    assert command_line(["python", "train.py", "optimizer.lr=0.1"]) == "python train.py optimizer.lr=0.1"
