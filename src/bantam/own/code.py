"""The code of a network of one's own: its file as it was read, its class, and the arguments that this takes."""

import hashlib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from bantam.own import beside

TARGET = "bantam.own.code.network"
"""The `_target_` of a network of one's own, which Hydra does not build: it knows none of its classes."""

COPY = "network.py"
"""What the copy in a run's folder is called."""


CHECKSUM, FILE = "model._sha256_", "model._file_"
"""The keys of a configuration that say which version of which file a network is of."""


@dataclass(frozen=True)
class Code:
    """A file of Python as it was read: what is edited afterwards changes nothing."""

    file: str
    text: str
    beside: tuple[tuple[str, str], ...] = ()
    """The modules in its folder that it imports, by path, with their texts."""

    @cached_property
    def checksum(self) -> str:
        """What tells this version of the file, and of what it imports, from others."""
        return _checksum(self.text, *(part for module in self.beside for part in module))


def _checksum(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


MODULE = "bantam_own_"
"""What the modules begin with that files of code are."""

_allowed: dict[str, Code] = {}
"""By checksum: only what was typed, or lies in a run's folder that was typed, is ever imported."""


def read(file: Path) -> Code:
    """Read a file of code, and what it imports from beside it. Raises ValueError where one cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
        return Code(str(file), text, tuple(beside.texts(file.parent, text).items()))
    except (OSError, UnicodeDecodeError) as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else f"it cannot be read: {error}"
        raise ValueError(f"{file} is no file of Python: {reason}") from error


def allow(code: Code) -> None:
    """Let `network` import this version of a file."""
    _allowed.setdefault(code.checksum, code)


def restore(folder: Path, settings: Any) -> None:
    """Allow the copy in the folder of a run whose network is of one's own.

    Raises ValueError where it is gone, or is not what the run was trained with.
    """
    checksum = settings.get("_sha256_")
    if checksum is None or checksum in _allowed:
        return
    try:
        code = read(folder / COPY)
    except ValueError as error:
        raise ValueError(f"{error}; the run was trained with it: restore it") from error
    if checksum not in (code.checksum, _checksum(code.text)):  # the latter in runs of before modules were kept
        raise ValueError(f"{shown(folder / COPY, code)} is not the file that the run was trained with: restore it")
    _allowed.setdefault(checksum, code)


def copies_of(settings: Any) -> dict[str, str]:
    """The texts that belong into a run's folder, by path: of its network's file and what it imports beside it.

    There are none where the network is Bantam's.
    """
    code = _allowed.get(settings.get("_sha256_", ""))
    return {**dict(code.beside), COPY: code.text} if code else {}


def shown(file: object, version: Code | str) -> str:
    """A file as a message names what may have changed: with the modules that this version imports, if any."""
    own = _allowed.get(version) if isinstance(version, str) else version
    modules = ", ".join(path for path, _ in own.beside) if own else ""
    return f"{file}, or what it imports ({modules})," if modules else str(file)


def forget() -> None:
    """Have files of code, and what they import from beside them, read anew, as another process would."""
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]
    beside.forget()
    importlib.invalidate_caches()


def network(_file_: str, _class_: str, _sha256_: str, **arguments: Any) -> Any:
    """Build a network of one's own. Raises ValueError for code that nobody has typed."""
    code = _allowed.get(_sha256_)
    if code is None:
        raise ValueError(
            f"this version of {_file_} was not typed: type model=<folder of a run that has it>/{COPY}:{_class_}"
        )
    factory = find(code, _class_)
    hints, parameters = _hints(factory), inspect.signature(factory).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    given = {key: _as(hints.get(key), defaults.get(key), value) for key, value in arguments.items()}
    return factory(**given)


def _as(hint: Any, default: Any, value: Any) -> Any:
    """A sequence as the class has it: a tuple where its annotation or its default is one, otherwise a list."""
    if not _is_sequence(value):
        return value
    parts = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) in (list, tuple)]
    items = typing.get_args(parts[0])[0] if parts and typing.get_args(parts[0]) else None
    defaults = [*default] if _is_sequence(default) and default else [None]
    made = [_as(items, defaults[min(at, len(defaults) - 1)], item) for at, item in enumerate(value)]
    of_tuple = hint is tuple or any(typing.get_origin(part) is tuple for part in parts[:1])
    return tuple(made) if of_tuple or isinstance(default, tuple) else made


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _hints(factory: Any) -> dict[str, Any]:
    """The annotations of its arguments; none where they have names that exist for a type checker only."""
    try:
        return typing.get_type_hints(inspect.getattr_static(factory, "__init__", factory))
    except Exception:
        return {}


def find(code: Code, name: str) -> Any:
    """A class, or a function that makes a network. Raises ValueError where the file has none of that name."""
    module = _module(code)
    found = getattr(module, name, None)
    own = {key: value for key, value in vars(module).items() if _makes_networks(value, module)}
    if name not in own:
        close = get_close_matches(name, own, 1)
        what = f"has no class {name}" if found is None else f"has {name}, which is no class of torch.nn.Module"
        there = f": did you mean {close[0]}?" if close else f": there are {', '.join(own)}" * bool(own)
        raise ValueError(f"{code.file} {what}{there}")
    return found


def _makes_networks(value: Any, module: types.ModuleType) -> bool:
    from torch import nn

    if isinstance(value, type):
        return issubclass(value, nn.Module)
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _module(code: Code) -> types.ModuleType:
    """The file as a module, executed once a process. Raises whatever the file raises."""
    name = f"{MODULE}{code.checksum}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = code.file
        sys.modules[name] = module
        try:
            with beside.importable(Path(code.file).parent, dict(code.beside)), _folder_of(code):
                exec(compile(code.text, code.file, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@contextmanager
def _folder_of(code: Code) -> Iterator[None]:
    """Let a file also find there what only its execution tells, as Python lets a script."""
    folder = str(Path(code.file).parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


REQUIRED = object()
"""The default of an argument that has none."""


@dataclass(frozen=True)
class Argument:
    """What a class takes, as far as a configuration can hold it."""

    kind: Any
    """int, float, bool, str or Any, of each item where it is a list."""
    items: bool
    optional: bool
    """Whether it may be null."""
    default: Any


def arguments(factory: Any) -> dict[str, Argument]:
    """The arguments that a configuration can hold; others keep their defaults."""
    hints, found = _hints(factory), dict[str, Argument]()
    for name, parameter in inspect.signature(factory).parameters.items():
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        default = list(default) if isinstance(default, tuple) else default
        plain = default is REQUIRED or default is None or isinstance(default, int | float | str | list)
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if plain and named and not name.startswith("_"):
            found[name] = _argument(hints.get(name), default)
    return found


def about_argument(settings: Any, name: str, value: str) -> str:
    """What to say of an argument of a network of one's own that is no key; empty where it is none."""
    own = _allowed.get((settings or {}).get("_sha256_", ""))
    if own is None:
        return ""
    parameters = inspect.signature(find(own, settings["_class_"])).parameters
    if name in parameters and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
        default = parameters[name].default
        shown = getattr(default, "__name__", None) or " ".join(str(default).split())
        return f"{settings['_class_']} takes {name}, but no key can hold what it is by default, {shown}"
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return f"{settings['_class_']} may take it beside those that it names: add it, +model.{name}={value}"
    return ""


SEQUENCES = (list, tuple, Sequence, Iterable)

HOLDS: dict[Any, Any] = {int: int, float: int | float, bool: bool, str: str}
"""The types of a key, and what may be its default."""


def _argument(hint: Any, default: Any) -> Argument:
    """What a key takes: as annotated where a configuration knows that type, else as its default is."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = [*typing.get_args(hint)] if union else [hint]
    optional = default is None or type(None) in parts
    (kind,) = kinds if len(kinds := [part for part in parts if part is not type(None)]) == 1 else (Any,)
    items = [item for item in typing.get_args(kind) if item is not ...]
    if typing.get_origin(kind) in SEQUENCES and len(set(items)) == 1:
        kind = items[0]
    elif hint is None and default is not REQUIRED and default is not None:
        kind, items = type(default), []
    else:
        items = []
    given = default is not REQUIRED and default is not None
    values = default if items and isinstance(default, list) else [default]
    if given and (bool(items) > isinstance(default, list) or not all(_holds(kind, value) for value in values)):
        kind, items = Any, []  # its annotation says something else than its default
    return Argument(kind if kind in HOLDS else Any, bool(items), optional or kind is Any, default)


def _holds(kind: Any, value: Any) -> bool:
    return kind not in HOLDS or (isinstance(value, HOLDS[kind]) and (kind is bool or not isinstance(value, bool)))
