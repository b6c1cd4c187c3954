"""The code of a network of one's own: what its class takes, and that only what was typed is imported."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bantam.own import code

NET = """
from typing import Literal, Optional

from beside import WIDTH
from torch import nn
from torch.nn import Linear


class Net(nn.Sequential):
    def __init__(
        self, side, width=WIDTH, rate=0.5, norm=True, kind="a", sizes=(1, 2), other=None, more: list[int] = [3],
        most: int | None = None, least: Optional[float] = 1.0, whole: float = 1, act=nn.ReLU,
        some: tuple[int, ...] = (), *args, classes: int, _hidden=1, **rest
    ):
        super().__init__(nn.Flatten(), nn.Linear(side * side, classes))


def made(width: int = 3):
    return nn.Linear(width, 10)


def helper():
    return nn.Linear
"""


@pytest.fixture
def file(tmp_path: Path) -> code.Code:
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    (tmp_path / "mine.py").write_text(NET)
    return code.read(tmp_path / "mine.py")


def test_arguments_have_the_types_of_their_annotations_or_defaults(file: code.Code) -> None:
    found = code.arguments(code.find(file, "Net"))
    kinds = {name: (entry.kind, entry.items, entry.optional, entry.default) for name, entry in found.items()}
    required = code.REQUIRED
    assert kinds == {
        "side": (Any, False, False, required),
        "width": (int, False, False, 8),
        "rate": (float, False, False, 0.5),
        "norm": (bool, False, False, True),
        "kind": (str, False, False, "a"),
        "sizes": (Any, False, False, [1, 2]),
        "other": (Any, False, True, None),
        "more": (int, True, False, [3]),
        "most": (int, False, True, None),
        "least": (float, False, True, 1.0),
        "whole": (float, False, False, 1),
        "some": (int, True, False, []),
        "classes": (int, False, False, required),
    }
    assert list(code.arguments(code.find(file, "made"))) == ["width"]

    class Bare(nn.Module):
        pass

    assert not code.arguments(Bare)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Nett", "has no class Nett: did you mean Net"),
        ("WIDTH", "has WIDTH, which is no class of torch.nn.Module: there are"),
        ("nn", "has nn, which is no class of torch.nn.Module: there are"),
    ],
)
def test_what_is_no_network_is_refused(file: code.Code, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        code.find(file, name)


def test_only_what_was_allowed_is_built_and_lists_are_lists(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, sizes):\n"
        "        super().__init__()\n        self.sizes = sizes\n"
    )
    own = code.read(tmp_path / "own.py")
    where = {"_file_": own.file, "_class_": "Net", "_sha256_": own.checksum}
    with pytest.raises(ValueError, match="was not typed: type model="):
        code.network(**where, sizes=(1, 2))
    code.allow(own)
    (tmp_path / "own.py").write_text("raise SystemExit")  # it is read once
    assert code.network(**where, sizes=(1, (2, 3))).sizes == [1, [2, 3]]


SEQUENCES = """
import collections.abc
from typing import List, Optional, Sequence, Tuple, Union
from torch import nn


class Net(nn.Sequential):
    def __init__(
        self, of: Sequence[int] = (8, 16), some: collections.abc.Iterable[float] = [1, 2.5], kernel: int = (3, 3),
        name: str = 1, flag: bool = "auto", most: List[int] = 3, either: Union[int, Tuple[int, int]] = (2, 2),
        pairs: tuple[tuple[int, int], ...] = ((1, 2),), plain=(1, (2, 3)), maybe: Optional[Sequence[int]] = None,
        width: int = 8.5, listed=[1, 2],
    ):
        super().__init__()
        self.given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
"""


def test_sequences_and_defaults_that_are_not_as_annotated(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SEQUENCES)
    own = code.read(tmp_path / "mine.py")
    found = code.arguments(code.find(own, "Net"))
    assert {name: (entry.kind, entry.items) for name, entry in found.items()} == {
        "of": (int, True),
        "some": (float, True),
        "pairs": (Any, True),
        "maybe": (int, True),
        **dict.fromkeys(("kernel", "name", "flag", "most", "either", "plain", "width", "listed"), (Any, False)),
    }
    code.allow(own)
    where = {"_file_": own.file, "_class_": "Net", "_sha256_": own.checksum}
    defaults = {name: entry.default for name, entry in found.items()}
    # What the class has as tuples it gets as tuples: its code may add others to them.
    assert code.network(**where, **defaults).given == {
        "of": (8, 16),
        "some": [1, 2.5],
        "kernel": (3, 3),
        "name": 1,
        "flag": "auto",
        "most": 3,
        "either": (2, 2),
        "pairs": ((1, 2),),
        "plain": (1, (2, 3)),
        "maybe": None,
        "width": 8.5,
        "listed": [1, 2],
    }
    given = code.network(**where, pairs=[[1, 2], [3, 4]], either=[1, 1], maybe=[1], of=[4]).given
    assert (given["pairs"], given["either"], given["maybe"], given["of"]) == (((1, 2), (3, 4)), (1, 1), [1], (4,))


def test_an_argument_that_is_no_key_is_explained(file: code.Code) -> None:
    code.allow(file)
    settings = {"_class_": "Net", "_sha256_": file.checksum}
    kept = "Net takes act, but no key can hold what it is by default, ReLU"
    assert code.about_argument(settings, "act", "GELU") == kept
    more = "Net may take it beside those that it names: add it, +model.depth=3"
    assert code.about_argument(settings, "depth", "3") == more
    assert code.about_argument(settings | {"_class_": "made"}, "depth", "3") == ""
    assert code.about_argument({"width": 3}, "depth", "3") == code.about_argument(None, "depth", "3") == ""


def test_a_copy_that_is_not_the_run_s_is_refused(tmp_path: Path) -> None:
    own = code.Code("mine.py", "x = 1\n")
    with pytest.raises(ValueError, match="does not exist; the run was trained with it: restore it"):
        code.restore(tmp_path, {"_sha256_": own.checksum})
    (tmp_path / code.COPY).write_text("x = 2\n")
    with pytest.raises(ValueError, match=r"is not the file that the run was trained with"):
        code.restore(tmp_path, {"_sha256_": own.checksum})
    assert code.copies_of({"_sha256_": own.checksum}) == {}
    (tmp_path / code.COPY).write_text(own.text)
    code.restore(tmp_path, {"_sha256_": own.checksum})
    assert code.copies_of({"_sha256_": own.checksum}) == {code.COPY: own.text}
    code.restore(tmp_path / "none", {})  # a network of Bantam's


def test_what_a_file_imports_from_beside_it_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(folder: str, width: int) -> tuple[code.Code, dict[str, str]]:
        place = tmp_path / folder
        (place / "parts").mkdir(parents=True, exist_ok=True)
        (place / "parts" / "__init__.py").write_text("")
        (place / "parts" / "sizes.py").write_text(f"WIDTH = {width}\n")
        (place / "mine.py").write_text(
            f"# {folder}\nfrom parts.sizes import WIDTH\nfrom torch import nn\n\n"
            "def make():\n    return nn.Linear(WIDTH, 2)\n"
        )
        own = code.read(place / "mine.py")
        code.allow(own)
        return own, {"_file_": own.file, "_class_": "make", "_sha256_": own.checksum}

    (one, of_one), (_, of_other) = made("one", 3), made("other", 5)
    assert code.network(**of_one).in_features == 3
    assert code.network(**of_other).in_features == 5
    kept = code.copies_of(of_other)
    assert kept[str(Path("parts", "sizes.py"))] == "WIDTH = 5\n"
    assert {*kept} == {code.COPY, str(Path("parts", "__init__.py")), str(Path("parts", "sizes.py"))}
    again, of_again = made("one", 44)
    assert again.checksum != one.checksum
    assert code.network(**of_one).in_features == 3  # as it was read
    assert code.network(**of_again).in_features == 44
    (tmp_path / "run").mkdir()
    for path, text in code.copies_of(of_again).items():
        (tmp_path / "run" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / path).write_text(text)
    made("one", 3)
    code.forget()
    copy = code.read(tmp_path / "run" / code.COPY)
    assert code.find(copy, "make")().in_features == 44
    assert copy.checksum == again.checksum
    monkeypatch.setattr(code, "_allowed", {})
    (tmp_path / "run" / "parts" / "sizes.py").write_text("WIDTH = 45\n")
    with pytest.raises(ValueError, match=r"what it imports \(parts/__init__.py, parts/sizes.py\)"):
        code.restore(tmp_path / "run", of_again)
    # Runs of before this was looked at have the checksum of their file alone.
    code.restore(tmp_path / "run", of_again | {"_sha256_": code.Code("", copy.text).checksum})


def test_a_mark_at_the_beginning_is_no_part_of_the_code(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n", encoding="utf-8-sig")
    assert code.read(tmp_path / "mine.py").text == "x = 1\n"


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        code.read(tmp_path / "mine.py")
