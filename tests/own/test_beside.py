"""Modules beside a network's file: which they are, and that they are imported as they were read."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from bantam.own import code


def test_modules_of_that_name_from_elsewhere_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModuleType("parts_of_a_notebook")
    monkeypatch.setitem(sys.modules, "parts_of_a_notebook", other)
    (tmp_path / "parts_of_a_notebook.py").write_text("from inner.deep import sizes\nWIDTH = sizes.WIDTH\n")
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    (tmp_path / "inner" / "deep" / "sizes.py").write_text("from ..wide import WIDTH\nimport json, mine\n")
    (tmp_path / "inner" / "wide.py").write_text("WIDTH = 7\n")
    (tmp_path / "json.py").write_text("raise SystemError('the module of Python was asked for')\n")
    (tmp_path / "mine.py").write_text(
        "def make():\n    import torch, parts_of_a_notebook as parts\n    return torch.nn.Linear(parts.WIDTH, 2)\n"
    )
    own = code.read(tmp_path / "mine.py")
    names = ("inner/deep/sizes.py", "inner/wide.py", "mine.py", "parts_of_a_notebook.py")
    assert tuple(path for path, _ in own.beside) == names
    made = code.find(own, "make")
    code.forget()
    assert sys.modules["parts_of_a_notebook"] is other
    monkeypatch.delitem(sys.modules, "parts_of_a_notebook")
    assert made().in_features == 7


def test_packages_of_any_depth_are_read_anew(tmp_path: Path) -> None:
    widths = []
    for folder, width in (("one", 3), ("other", 5)):
        (tmp_path / folder / "outermost" / "middle").mkdir(parents=True)
        (tmp_path / folder / "outermost" / "middle" / "sizes.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "mine.py").write_text(
            "from torch import nn\nfrom outermost.middle.sizes import WIDTH\n"
            "def make(): return nn.Linear(WIDTH, 2)\n"
        )
        widths.append(code.find(code.read(tmp_path / folder / "mine.py"), "make")().in_features)
    assert widths == [3, 5]
    code.forget()
    assert "outermost" not in sys.modules
