"""Hydra's source of the options that are networks of one's own: model=mine.py:Net, composed from its signature."""

import builtins
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf, StringNode

from bantam import overrides
from bantam.own import code

GROUP = "model"

FROM_DATA = {key: f"${{data.{key}}}" for key in ("channels", "side", "classes")}
"""Arguments that say what the images are, and where their values come from."""


class Typed(dict[str, code.Code | str]):
    """The code of each option that was typed, or why it cannot be had; what is edited later changes nothing."""

    def __deepcopy__(self, memo: Any) -> "Typed":
        """Hydra copies what it composes from for every job: what is read once is the same for all."""
        return self


def typed(words: Sequence[str]) -> Typed:
    """What a command line chooses as model=file.py:Class, its files read now, from the working folder."""
    found = Typed()
    for word in words:
        if not word.startswith(f"{GROUP}="):
            continue
        try:
            (override,) = OverridesParser.create().parse_overrides([word])
        except HydraException:
            continue  # Hydra refuses it
        for option in filter(is_code, _options(override)):
            try:
                found[option] = code.read(Path(os.path.abspath(Path(option.rpartition(":")[0]).expanduser())))
            except ValueError as error:
                found[option] = str(error)
    return found


def is_code(option: Any) -> bool:
    """Whether an option of the group is a class in a file."""
    file, colon, name = str(option).rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def _options(override: Override) -> list[str]:
    value: Any = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    return [str(getattr(item, "text", item)) for item in values]


class OwnNetworks(ConfigSource):
    """Answers for the options that were typed, and for no others: a file of options cannot name code."""

    def __init__(self, provider: str, path: str) -> None:
        """Read what this process was told on its command line, or in code."""
        super().__init__(provider, path)
        self.typed = typed(overrides.typed())

    @staticmethod
    def scheme() -> str:
        """As in own://networks."""
        return "own"

    def available(self) -> bool:
        """There is no folder that could be missing."""
        return True

    def is_group(self, config_path: str) -> bool:
        """It adds to a group that exists."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Whether it is an option that was typed."""
        return self._option(config_path) in self.typed

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        """Nothing: what is typed is known to whoever has typed it."""
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        """Compose an option from the signature of its class; raises ConfigCompositionException with the reason."""
        option = self._option(config_path)
        own = self.typed[option]
        try:
            if isinstance(own, str):
                raise ValueError(own)
            code.allow(own)
            keys = _keys(own, option.rpartition(":")[2])
        except (Exception, SystemExit) as error:  # code of one's own may raise anything
            raise ConfigCompositionException(f"model={option} cannot be used: {_told(error, own)}") from error
        return ConfigResult(
            config=keys,
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header={"package": None},
        )

    @staticmethod
    def _option(config_path: str) -> str:
        group, _, option = config_path.partition("/")
        return option.removesuffix(".yaml") if group == GROUP else ""


LEAVES: dict[Any, Any] = {int: IntegerNode, float: FloatNode, bool: BooleanNode, str: StringNode}


def _keys(own: code.Code, name: str) -> DictConfig:
    """The keys of an option: where its class is, and the arguments of that, each with its type."""
    keys: dict[str, Any] = {
        "_target_": StringNode(code.TARGET),
        "_file_": StringNode(own.file),
        "_class_": StringNode(name),
        "_sha256_": StringNode(own.checksum),
    }
    for key, argument in code.arguments(code.find(own, name)).items():
        value = FROM_DATA.get(key, MISSING if argument.default is code.REQUIRED else argument.default)
        if argument.items:
            keys[key] = ListConfig(value, element_type=argument.kind, is_optional=argument.optional)
        elif argument.kind in LEAVES:
            keys[key] = LEAVES[argument.kind](value, is_optional=argument.optional)
        else:
            keys[key] = value
    return DictConfig(keys)


def _told(error: BaseException, own: code.Code | str) -> str:
    """What an error says, and the line of the file in which it was raised."""
    text = " ".join(str(error).split())
    if isinstance(own, str) or (isinstance(error, ValueError) and text.startswith(own.file)):
        return text
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace and not isinstance(error, SyntaxError):
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == own.file else line
        trace = trace.tb_next
    text = error.msg if isinstance(error, SyntaxError) else text
    return f"{type(error).__name__} in {own.file}, line {line}: {text}"


NOT_TYPED = "Key '_file_' not in"
"""What OmegaConf says where a file has a network of one's own, and the one that is chosen is Bantam's."""


def typing(experiment: Path) -> str:
    """What must be typed beside an experiment of a search; empty where the file does not say which network."""
    text = experiment.read_text(encoding="utf-8")
    model = OmegaConf.select(OmegaConf.create(text), "model", default={})
    trial = re.search(r"^# Trial (\d+)", text, re.MULTILINE)
    if not {"_file_", "_class_"} <= model.keys():
        return ""
    kept = experiment.parent.parent / trial[1] / code.COPY if trial else Path()
    file = kept if kept.is_file() else Path(model["_file_"])
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return overrides.command_line([overrides.override(GROUP, f"{shown}:{model['_class_']}")])


class OwnNetworksPath(SearchPathPlugin):
    """Has Hydra look there after its own folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source."""
        search_path.append("bantam", "own://networks")


def register() -> None:
    """Make the source known to Hydra."""
    for plugin in (OwnNetworks, OwnNetworksPath):
        Plugins.instance().register(plugin)
