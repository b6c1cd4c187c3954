"""A search space whose keys may have conditions."""

from collections.abc import Mapping
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution

from bantam.overrides import written
from bantam.search import distributions
from bantam.search.distributions import key_of

Condition = Mapping[str, Any]
"""By group or key the option or value that a trial must have, or a list of them; as in `{scheduler: step}`."""


class Space(dict[str, BaseDistribution]):
    """Distributions by the name under which Optuna knows them: a key, with its condition where it has several."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions: dict[str, list[Condition]] = {}
        """By name the conditions of which one must be met; a name that is not here has none."""
        self.groups: set[str] = set()
        """The names of groups, whose values are options."""

    def add(self, key: str, values: BaseDistribution, when: Condition, loader: ConfigLoader) -> None:
        """Have a key searched where a condition is met; an empty one always is."""
        name = next((name for name in self if key_of(name) == key and self[name] == values), None)
        if name is None:
            taken = any(key_of(name) == key for name in self)
            name = distributions.name(key, when) if taken else key
            self[name] = values
            if when:
                self.conditions[name] = []
        if name in self.conditions:
            self.conditions[name].append(when)
            if not when:
                del self.conditions[name]
        if options(key, loader):
            self.groups.add(name)

    def remove(self, key: str) -> None:
        """Forget a key, under whatever condition."""
        for name in [name for name in self if key_of(name) == key]:
            del self[name]
            self.conditions.pop(name, None)
            self.groups.discard(name)

    def ordered(self) -> list[str]:
        """The names, those with a condition first: what has none is for the trials that meet no condition."""
        return sorted(self, key=lambda name: name not in self.conditions)

    def keys_searched(self) -> set[str]:
        """The keys and groups, without conditions."""
        return {key_of(name) for name in self}


def options(group: str, loader: ConfigLoader) -> list[str]:
    """The options of a group; empty where it is none."""
    return loader.get_group_options(group.partition("@")[0], ObjectType.CONFIG) if "." not in group else []


def has(cfg: DictConfig, key: str) -> bool:
    """Whether a configuration has a key, with whatever value; keys that are added or left out count as had."""
    if key.startswith(("+", "~")):
        return True
    parent, _, last = key.rpartition(".")
    try:
        node = OmegaConf.select(cfg, parent) if parent else cfg
        return last in list(node) if OmegaConf.is_dict(node) else OmegaConf.select(cfg, key) is not None
    except OmegaConfBaseException:
        return False


def allowed(wanted: Any) -> list[str]:
    """The values that a condition allows for a key, as they are typed."""
    return [
        written(value) for value in (wanted if OmegaConf.is_list(wanted) or isinstance(wanted, list) else [wanted])
    ]
