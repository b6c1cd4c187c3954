"""Writes `reference.md` from the schema of the configuration and the files in `conf/`."""

import ast
import inspect
import json
from collections.abc import Iterable
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from bantam import config, options, tracker_keys
from bantam.search import sweeper

PAGE = Path(__file__).with_name("reference.md")
CONF = Path(__file__).resolve().parent.parent / "conf"
OPTUNA = "https://optuna.readthedocs.io/en/stable/reference/samplers/index.html"
SIGNS = {"above": ">", "at least": "≥", "below": "<", "at most": "≤"}

INHERITED = {
    "sampler": "What proposes the settings of a trial; the options are below.",
    "params": "Ranges of an `hparams_search`; those on the command line are added, or replace them.",
    "custom_search_space": "A key of Hydra's stock sweeper, which is refused here.",
}
"""The meaning of keys that hydra-optuna-sweeper declares."""

HEAD = """
# Reference: every key

Every key can be set on the command line, as in `python train.py optimizer.lr=0.025`. A group has the keys of the
option that is chosen: `model.dropout` exists with `model=v2`, but not with `model=skeleton`. Types and ranges are
checked before anything is trained.

This page is made by `python docs/reference.py` from `src/bantam/config.py`, `src/bantam/options.py`,
`src/bantam/search/sweeper.py` and the files in `conf/`.

## The run
"""

EXPERIMENTS = """
## `experiment`, `hparams_search`

Their options set keys of the whole configuration. An `experiment` is a recipe; an `hparams_search` is a search,
and needs `-m`.
"""

SEARCH = """
## `hydra.sweeper`

The keys of a search: they exist with `-m hparams_search=…` and with `-m hydra/sweeper=bantam`. [Search](search.md)
explains them.
"""

SAMPLERS = """
### `hydra/sweeper/sampler`

Options: {}.

`multivariate_tpe` is `tpe` with `multivariate=true` and `constant_liar=true`; the others come with
hydra-optuna-sweeper. Their keys are the arguments of [Optuna's samplers]({}), as in
`hydra.sweeper.sampler.seed=1`.

### `hydra/sweeper/pruner`
"""


def docstrings(module: ModuleType) -> dict[tuple[str, str], str]:
    """A module's docstrings of classes, under (class, ""), and of their attributes, under (class, attribute)."""
    found = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            found[node.name, ""] = " ".join((ast.get_docstring(node) or "").split())
            for entry, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(entry, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[node.name, ast.unparse(entry.target)] = " ".join(ast.literal_eval(below.value).split())
    return found


DOCSTRINGS = docstrings(config) | docstrings(options) | docstrings(sweeper) | docstrings(tracker_keys)


def meaning(schema: type, key: str) -> str:
    """What a key means. Raises ValueError where no docstring says it."""
    for kind in schema.__mro__:
        if text := DOCSTRINGS.get((kind.__name__, key)):
            return text
    if schema is sweeper.SearchConf and key in INHERITED:
        return INHERITED[key]
    raise ValueError(f"{schema.__name__}.{key} has no docstring: write one below it")


def type_name(annotation: Any) -> str:
    """A type as the page calls it."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if isinstance(annotation, UnionType):
        parts = get_args(annotation)
        return " or ".join(
            [type_name(part) for part in parts if part is not NoneType] + ["null"] * (NoneType in parts)
        )
    if get_origin(annotation) is list:
        return f"list of {type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "dict"
    return str(annotation.__name__) if annotation in (int, float, bool, str) else "option"


def value(given: Any) -> str:
    """A value as it is typed."""
    given = given.name if isinstance(given, Enum) else given
    return f"`{json.dumps(given, ensure_ascii=False)}`".replace('"', "")


def row(prefix: str, schema: type, entry: Field[Any], default: str) -> str:
    """The line of a key: its name, type, range, default and meaning."""
    known = entry.metadata.get("limits", {}).items()
    limits = ", ".join(
        f"{SIGNS[word]} {limit if isinstance(limit, str) else f'{limit:,}'}" for word, limit in known
    )
    kind = f"{type_name(entry.type)} {limits}".strip()
    cells = (f"`{prefix}{entry.name}`", kind, default, meaning(schema, entry.name))
    return f"| {' | '.join(cells)} |"


def table(rows: Iterable[str]) -> list[str]:
    """A table of keys."""
    return ["", "| key | type and range | default | meaning |", "| --- | --- | --- | --- |", *rows]


def keys(schema: type) -> list[Field[Any]]:
    """The keys that a user may set."""
    return [entry for entry in fields(schema) if not entry.name.startswith("_") and entry.name != "defaults"]


def rows(schema: type, values: dict[str, Any], prefix: str = "") -> list[str]:
    """The lines of the keys of a part of the configuration, and of the parts within it."""
    lines = []
    for entry in keys(schema):
        if entry.name not in values:
            continue
        if isinstance(entry.type, type) and is_dataclass(entry.type) and isinstance(values[entry.name], dict):
            lines += rows(entry.type, values[entry.name], f"{prefix}{entry.name}.")
        else:
            lines.append(row(prefix, schema, entry, value(values[entry.name])))
    return lines


def comment(path: Path) -> str:
    """The comment at the head of a file in `conf/`."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line[2:] for line in lines[:end] if not line.startswith(("# @package", "# python train.py")))


def group(name: str) -> list[str]:
    """The options of a group of components, and their keys."""
    lines = ["", f"## `{name}`", ""]
    by_schema: dict[type, dict[str, Any]] = {}
    for path in sorted((CONF / name).glob("*.yaml")):
        node = compose("config", [f"{name}={path.stem}"])[name]
        values = OmegaConf.to_container(node, resolve=False)
        by_schema.setdefault(OmegaConf.get_type(node), {})[path.stem] = values
        lines.append(f"- `{name}={path.stem}` builds `{node._target_}`. {comment(path)}".rstrip())
    for schema, found in by_schema.items():
        if len(by_schema) > 1:
            lines += ["", f"Keys of {', '.join(f'`{option}`' for option in found)}:"]
        lines += table(row(f"{name}.", schema, key, default(found, key.name)) for key in keys(schema))
    return lines


def trackers() -> list[str]:
    """The options of `tracker`, and their keys."""
    lines = ["", "## `tracker`", "", "Several at once are a list: `tracker=[tensorboard,mlflow]`.", ""]
    lines += [f"- `tracker={path.stem}`: {comment(path)}" for path in sorted((CONF / "tracker").glob("*.yaml"))]
    for option, schema in tracker_keys.TRACKERS.items():
        values = OmegaConf.to_container(compose("config", [f"tracker={option}"]).tracker[option], resolve=False)
        if keys(schema):
            lines += table(rows(schema, values, f"tracker.{option}."))
    return lines


def default(options: dict[str, Any], key: str) -> str:
    """The default of a key, and of which options it is where they differ."""
    found: dict[str, list[str]] = {}
    for option, values in options.items():
        found.setdefault(value(values[key]), []).append(option)
    return "; ".join(text if len(found) == 1 else f"{text} ({', '.join(names)})" for text, names in found.items())


def search() -> list[str]:
    """The keys of a search, its samplers and its pruners."""
    schema = OmegaConf.structured(sweeper.SearchConf)
    values = {key: None if OmegaConf.is_missing(schema, key) else schema[key] for key in schema}
    values = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in values.items()}
    for choice in values["defaults"]:
        values |= choice
    store = ConfigStore.instance()
    samplers = sorted(name.removesuffix(".yaml") for name in store.list("hydra/sweeper/sampler"))
    samplers.remove("motpe")  # which only says that it was removed
    lines = [*SEARCH.splitlines(), *table(rows(sweeper.SearchConf, values, "hydra.sweeper."))]
    lines += SAMPLERS.format(", ".join(f"`{name}`" for name in samplers), OPTUNA).splitlines()
    for file in sorted(store.list("hydra/sweeper/pruner")):
        node = store.load(f"hydra/sweeper/pruner/{file}").node
        kind, option = OmegaConf.get_type(node), file.removesuffix(".yaml")
        lines += ["", f"`{option}` builds `{node._target_}`. {DOCSTRINGS[kind.__name__, '']}".rstrip()]
        if keys(kind):
            lines += table(rows(kind, OmegaConf.to_container(node, resolve=False), "hydra.sweeper.pruner."))
    return lines


def page() -> str:
    """The whole page."""
    config.register()
    sweeper.register()
    with initialize_config_dir(str(CONF)):
        values = OmegaConf.to_container(compose("config"), resolve=False)
        own = {key: values[key] for key in values if not (CONF / key).is_dir()}
        lines = [*HEAD.splitlines()[1:], *table(rows(config.Config, own))]
        for name in ("model", "optimizer", "scheduler", "augmentation", "data"):
            lines += group(name)
        lines += trackers()
    lines += EXPERIMENTS.splitlines()
    for name in ("experiment", "hparams_search"):
        paths = sorted((CONF / name).glob("*.yaml"))
        lines += ["", *(f"- `{name}={path.stem}`: {comment(path)}" for path in paths)]
    return "\n".join([*lines, *search()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
