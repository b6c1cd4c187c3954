"""The modules beside a network's file that it imports: read with it, and imported from those texts."""

import ast
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from typing import Any

ELSEWHERE = {*sys.stdlib_module_names, "bantam", "torch"}
"""What is never taken from beside a file, whatever is there."""


def texts(folder: Path, text: str) -> dict[str, str]:
    """By path, the modules in `folder` that a text imports anywhere, and those that they import.

    Raises OSError and UnicodeDecodeError where one cannot be read.
    """
    found: dict[str, str] = {}
    _add(folder, text, [], found)
    return dict(sorted(found.items()))


def _add(folder: Path, text: str, package: list[str], found: dict[str, str]) -> None:
    for name in _imported(text, package):
        for end in range(1, len(name) + 1 if name[0] not in ELSEWHERE else 0):
            *parents, last = name[:end]
            for path, inner in (
                (Path(*parents, last, "__init__.py"), name[:end]),
                (Path(*parents, f"{last}.py"), parents),
            ):
                if path.as_posix() not in found and (folder / path).is_file():
                    found[path.as_posix()] = (folder / path).read_text(encoding="utf-8-sig")
                    _add(folder, found[path.as_posix()], inner, found)


def _imported(text: str, package: list[str]) -> Iterator[list[str]]:
    """The names of modules that a text may import, each in its parts; `package` is where it is itself."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # told when it is executed
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            yield from ([*base, alias.name] for alias in node.names)


class _Loader(ExecutionLoader):
    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_source(self, fullname: str) -> str:
        return self.text

    def is_package(self, fullname: str) -> bool:
        return self.path.name == "__init__.py"


class _Finder(MetaPathFinder):
    """Finds the modules beside the file that was executed last."""

    def __init__(self) -> None:
        self.folder, self.texts = Path(), dict[str, str]()
        self.found = set[str]()
        """The names of what it has found."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        place = fullname.replace(".", "/")
        for module in (f"{place}/__init__.py", f"{place}.py"):
            if module in self.texts:
                self.found.add(fullname)
                return spec_from_loader(fullname, _Loader(self.folder / module, self.texts[module]))
        if any(module.startswith(f"{place}/") for module in self.texts):  # a folder without __init__.py
            self.found.add(fullname)
            return ModuleSpec(fullname, None, is_package=True)
        return None

    def modules(self) -> set[str]:
        """The names of those modules, and of their packages."""
        parts = [path.removesuffix(".py").removesuffix("/__init__").split("/") for path in self.texts]
        return {".".join(name[:end]) for name in parts for end in range(1, len(name) + 1)}


_finder = _Finder()


@contextmanager
def importable(folder: Path, texts: Mapping[str, str]) -> Iterator[None]:
    """Have modules of these texts imported where a file from the folder asks for them.

    They are imported from them later too, unless another file was executed in between.
    """
    forget()
    _finder.folder, _finder.texts = folder, dict(texts)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    others = {name: sys.modules.pop(name) for name in _finder.modules() if name in sys.modules}
    try:
        yield
    finally:
        sys.modules.update(others)  # such as a notebook's own import, perhaps of another version
        _finder.found -= others.keys()


def forget() -> None:
    """Take out of `sys.modules` what was imported from texts."""
    for name in _finder.found:
        sys.modules.pop(name, None)
    _finder.found.clear()
