"""The configuration of a run as its folder has it, and with overrides: the only reader and writer of `.hydra`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from bantam import ranges
from bantam.config import Config, sentence, unreadable
from bantam.nearest import nearest
from bantam.options import SCHEMAS
from bantam.overrides import override
from bantam.own import code
from bantam.own.source import FROM_DATA
from bantam.suggestions import suggestion
from bantam.tracker_keys import TRACKERS


@dataclass(frozen=True)
class Saved:
    """What Hydra wrote into a run's folder."""

    folder: Path
    config: DictConfig
    """The composed configuration, its interpolations not resolved."""
    overrides: list[str]
    """What was typed for it, its interpolations not resolved."""
    are_words: bool = True
    """Whether that is text, as what is typed is."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration under its dotted keys; `${key}` is what that key says, other interpolations stay."""
        values = dict(flat(OmegaConf.to_container(self.config, resolve=False)))
        return {key: followed(values, key) for key in values}

    @cached_property
    def hydra(self) -> DictConfig:
        """Hydra's own configuration. Raises ValueError where it cannot be read."""
        found: Any = _read(self.folder, "hydra.yaml").get("hydra")
        if not isinstance(found, DictConfig):
            raise _damaged(self.folder, "hydra.yaml", "has no hydra.runtime.choices")
        return found

    @property
    def choices(self) -> Mapping[str, Any]:
        """The option chosen of each group, as in model=v2. Raises ValueError where they cannot be read."""
        try:
            return dict(self.hydra.runtime.choices)
        except (OmegaConfBaseException, AttributeError, TypeError) as error:
            raise _damaged(self.folder, "hydra.yaml", "has no hydra.runtime.choices") from error

    @property
    def wrong(self) -> str:
        """What in the configuration cannot be, in a sentence; empty where nothing. Keys may be missing."""
        try:
            typed(self.config)
        except ValueError as error:
            return f".hydra/config.yaml is damaged, or of another version of Bantam: {error}"
        return ""

    @cached_property
    def checked(self) -> DictConfig:
        """The configuration with its types. Raises ValueError for what the command line would have refused."""
        try:
            cfg = typed(self.config)
            ranges.validate(cfg)
        except (OmegaConfBaseException, ValueError) as error:
            file = self.folder / ".hydra" / "config.yaml"
            raise ValueError(
                f"{file} is damaged, or of another version of Bantam ({sentence(error)}): "
                "restore it, or train the run again"
            ) from error
        return cfg


def typed(cfg: DictConfig) -> DictConfig:
    """A configuration that was saved, with the types that it had when it was composed.

    A group has the schema with the same keys. Raises ValueError for an unknown key or a value of another type.
    """
    nodes: Any = OmegaConf.to_container(cfg, resolve=False)
    try:
        for group, kinds in SCHEMAS.items():
            own = nodes.get(group)
            if not isinstance(own, dict) or not isinstance(own.get("_target_"), str):
                raise ValueError(f"{group} is {own!r}, which cannot be built")
            for kind in kinds.values():
                if {entry.name for entry in fields(kind)} == set(own):
                    nodes[group] = OmegaConf.merge(_schema(kind), own)
        for option, own in (nodes.get("tracker") or {}).items():  # older runs have none
            keys = TRACKERS.get(option)
            if keys and isinstance(own, dict) and {entry.name for entry in fields(keys)} == set(own):
                nodes["tracker"][option] = OmegaConf.merge(_schema(keys), own)
        return OmegaConf.merge(_schema(Config), nodes)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(sentence(error)) from error


_schemas: dict[Any, DictConfig] = {}


def _schema(kind: Any) -> DictConfig:
    """A typed configuration, which a merge copies: to make one takes longer."""
    if kind not in _schemas:
        _schemas[kind] = OmegaConf.structured(kind)
    return _schemas[kind]


def _complete(cfg: DictConfig) -> DictConfig:
    """A configuration that was saved, with the keys that older runs lack and what these had instead of them."""
    nodes: Any = OmegaConf.to_container(cfg, resolve=False)
    data, model, augmentation = (nodes.get(group) for group in ("data", "model", "augmentation"))
    if isinstance(data, dict):
        for key, value in {"channels": 1, "side": 28, "classes": 10}.items():
            data.setdefault(key, value)
        if data.get("_target_") == "bantam.data.auto":
            data.setdefault("became", None)
    if isinstance(augmentation, dict) and augmentation.get("_target_") == "bantam.augmentation.Augmentation":
        for key in ("saturation", "hue"):
            augmentation.setdefault(key, 0.0)
    for kind in SCHEMAS["model"].values() if isinstance(model, dict) else ():
        keys = {entry.name for entry in fields(kind)}
        if keys - FROM_DATA.keys() == model.keys() - FROM_DATA.keys():
            nodes["model"] = model | {key: FROM_DATA[key] for key in FROM_DATA if key in keys - model.keys()}
    return cfg if nodes == OmegaConf.to_container(cfg, resolve=False) else OmegaConf.create(nodes)


def load(folder: Path) -> Saved:
    """Read a run's configuration and overrides. Raises ValueError, with the reason, if it is no run."""
    config = _complete(_read(folder, "config.yaml"))
    overrides: Any = OmegaConf.to_container(OmegaConf.create(_read(folder, "overrides.yaml")), resolve=False)
    are_words = all(isinstance(item, str) for item in overrides)
    return Saved(folder, config, [str(item) for item in overrides], are_words)


def _read(folder: Path, name: str) -> Any:
    if not folder.is_dir():
        reason = "it is a file" if folder.exists() else "it does not exist"
        raise ValueError(f"{folder} is no run folder: {reason}; give the folder of one run, with a .hydra in it")
    try:
        content = OmegaConf.load(folder / ".hydra" / name)
    except FileNotFoundError as error:
        runs = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/.hydra"))
        if runs and not (folder / ".hydra").exists():
            raise ValueError(f"{folder} is no run folder, but holds some: give one, such as {runs[-1]}") from error
        raise _damaged(folder, name, "is missing") from error
    except Exception as error:  # whatever a damaged or foreign YAML file leads to
        raise _damaged(folder, name, f"cannot be read ({unreadable(error)})") from error
    wanted, kind = (ListConfig, "list") if name == "overrides.yaml" else (DictConfig, "mapping")
    if name == "overrides.yaml" and content == {}:  # nothing was typed, or the file is empty
        return []
    if not isinstance(content, wanted) or (wanted is DictConfig and not content):
        raise _damaged(folder, name, f"is no {kind}")
    return content


def _damaged(folder: Path, name: str, reason: str) -> ValueError:
    """The sentence for a file of `.hydra` that cannot be used."""
    remedy = "restore it, or train the run again"
    return ValueError(f"{folder} is no run folder: its .hydra/{name} {reason}; {remedy}")


def begin(folder: Path, config: DictConfig) -> None:
    """Write what Hydra writes into the folder of a run: a composed configuration, its own part, what was typed."""
    from bantam.training.folder import write

    own = folder / ".hydra"
    own.mkdir(parents=True, exist_ok=True)
    config = config.copy()
    with read_write(config), open_dict(config):
        config.hydra.runtime.output_dir = str(folder.absolute())
        hydra = config.pop("hydra")
    for name, node in {
        "config.yaml": config,
        "hydra.yaml": OmegaConf.create({"hydra": hydra}),
        "overrides.yaml": hydra.overrides.task,
    }.items():
        write(own / name, OmegaConf.to_yaml(node).encode())


def save(folder: Path, cfg: DictConfig, hydra: Any = None) -> None:
    """Write the configuration that Hydra has written again, with what came from outside as it is now.

    A network of one's own is kept beside it. With `hydra` all of it is written where Hydra was told not to.

    The environment and the clock would answer otherwise later. References such as ${epochs} are kept, so that
    changing `epochs` goes on changing what follows from it.
    """
    from bantam.training.folder import write

    file = folder / ".hydra" / "config.yaml"
    if hydra is not None and not file.exists():  # hydra.output_subdir is null or another folder
        whole = cfg.copy()
        with open_dict(whole):
            whole.hydra = OmegaConf.to_container(hydra, resolve=False)
        begin(folder, whole)
    for path, text in code.copies_of(cfg.model).items() if folder.is_dir() else ():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write(folder / path, text.encode())
    if file.exists():
        write(file, OmegaConf.to_yaml(OmegaConf.create(pinned(cfg))).encode())


def pinned(cfg: DictConfig) -> Any:
    """A configuration as nested dicts, with values in the place of ${oc.env:…}, ${now:…} and their like."""
    return _pinned(OmegaConf.to_container(cfg, resolve=False), OmegaConf.to_container(cfg, resolve=True))


def _pinned(raw: Any, resolved: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _pinned(value, resolved[key]) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_pinned(*pair) for pair in zip(raw, resolved, strict=True)]
    return resolved if calls_resolver(raw) else raw


def calls_resolver(raw: Any) -> bool:
    """Whether a value has ${oc.env:…}, ${now:…} and their like, beside plain references such as ${epochs}."""
    return isinstance(raw, str) and "${" in re.sub(r"\$\{[^{}:]*\}", "", raw)


def merged(own: Saved, overrides: list[str], config_name: str = "config") -> tuple[DictConfig, list[str]]:
    """A run's own configuration with overrides; returns it and the keys that differ.

    Only the option of a group that is chosen anew is read from `conf/`: everything else is as the run's folder has
    it. Raises ValueError where an override cannot be read or names no key of the run.
    """
    cfg = OmegaConf.create(pinned(own.config))
    groups = {"tracker", *(group.lstrip("/") for group in own.choices if not group.startswith("hydra/"))}
    try:
        for parsed in OverridesParser.create().parse_overrides(overrides):
            key = parsed.key_or_group
            if key in groups and not isinstance(parsed.value(), dict):
                composed = compose(config_name, [str(parsed.input_line)])
                if key not in composed:
                    raise ValueError(f"{parsed.input_line} chooses a whole recipe: give the single keys")
                OmegaConf.update(cfg, key, OmegaConf.to_container(composed[key], resolve=False), merge=False)
            elif parsed.is_sweep_override() or parsed.is_delete() or parsed.is_add():
                raise ValueError(f"{parsed.input_line} is no plain key=value")
            elif not _has(cfg, key):
                near = nearest(key, [*groups, *(name for name, _ in flat(pinned(own.config)))])
                meant = f": did you mean {near}?" if near else ""
                raise ValueError(f"{key} is no key of the run in {own.folder}{meant}")
            else:
                value: Any = parsed.value()
                OmegaConf.update(cfg, key, getattr(value, "text", value))
        for name in FROM_DATA:  # null stands for what the files had
            if OmegaConf.select(cfg, f"data.{name}") is None and "data" in groups:
                OmegaConf.update(cfg, f"data.{name}", OmegaConf.select(own.config, f"data.{name}"))
    except (HydraException, OmegaConfBaseException) as error:
        raise suggestion(error) or ValueError(" ".join(str(error).split())) from error
    return cfg, differences(own.config, cfg)


MISSING_KEY = object()


def _has(cfg: DictConfig, key: str) -> bool:
    """Whether a configuration has a key, be it one that has no value yet."""
    if OmegaConf.select(cfg, key, default=MISSING_KEY) is not MISSING_KEY:
        return True
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def shown(cfg: DictConfig) -> dict[str, Any]:
    """The keys of a run and their values as trackers show them."""
    found = dict(flat(OmegaConf.to_container(cfg, resolve=True)))
    return {key: value for key, value in found.items() if key.partition(".")[0] not in NOT_SHOWN}


def tracker_overrides(cfg: DictConfig) -> list[str]:
    """What is typed to have the trackers of a run."""
    own: Any = OmegaConf.to_container(cfg.tracker, resolve=True) if cfg.get("tracker") else {}
    keys = [(f"tracker.{option}.{key}", value) for option, node in own.items() for key, value in node.items()]
    plain = [override(key, value) for key, value in keys if not key.endswith("_target_")]
    return [override("tracker", [*own]), *plain] if own else []


NOT_SHOWN = ("tracker", "resume", "dry_run", "report")
"""Keys that say nothing of what is trained."""


def differences(old: DictConfig, new: DictConfig) -> list[str]:
    """The dotted keys in which two configurations differ; what only refers to another key does not.

    Neither does a key that is null from one that is not there: older versions lack some that are null by default.
    """
    before, after = dict(flat(pinned(old))), dict(flat(pinned(new)))
    return [
        key
        for key in {**before, **after}
        if before.get(key) != after.get(key) and followed(before, key) != followed(after, key)
    ]


def followed(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; where that is `${other}`, what the other one says, and None without the key."""
    value, seen = values.get(key), {key}
    while isinstance(value, str) and (found := re.fullmatch(r"\$\{([\w.]+)\}", value)):
        other = found[1]
        if other in seen or other not in values:
            break
        seen.add(other)
        value = values[other]
    return value


def chosen(own: Saved, overrides: list[str]) -> dict[str, Any]:
    """The option of each group that a run has with overrides, which `merged` has read."""
    typed = OverridesParser.create().parse_overrides(overrides)
    return {
        **own.choices,
        **{item.key_or_group: item.value() for item in typed if item.key_or_group in own.choices},
    }


def in_words(own: Saved, now: DictConfig, choices: Mapping[str, Any], key: str) -> tuple[str, Any, Any]:
    """A key in which a run differs from a configuration with these options, its value in the run, and that there.

    Where another option was chosen, which brings the key, it is the group with the two options.
    """
    for group in ("experiment", key.partition(".")[0]):
        old, new = own.choices.get(group), choices.get(group)
        if group in choices and old != new:
            return group, old, new
    return key, OmegaConf.select(own.config, key), OmegaConf.select(now, key)


def flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts under their dotted keys; lists are leaves."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from flat(value, f"{key}.{name}".lstrip("."))
    else:
        yield key, node
