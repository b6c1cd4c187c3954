"""What is searched: from the command line to distributions and to the configuration of each trial."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import CategoricalDistribution

from bantam import ranges
from bantam.budget import COSTS
from bantam.overrides import written
from bantam.search import conditions, distributions, samplers
from bantam.search.conditions import Condition, Space
from bantam.search.distributions import key_of
from bantam.suggestions import suggestion
from bantam.training import setup

Composition = tuple[DictConfig, dict[str, Any], list[str]]
"""A configuration, the option of each group in it, and the fixed overrides that it has."""


@dataclass
class Search:
    """What the command line asks for, the same in the process that watches and in its workers."""

    config: DictConfig
    context: HydraContext
    launcher: Launcher
    space: Space
    fixed: list[str]
    """The overrides that every trial has whose composition has their keys."""
    plain: DictConfig
    """The configuration with these overrides, and the first options of the groups that are searched."""
    choices: dict[str, Any]
    """The option of each group in it, as in model=v2."""
    notes: list[str] = field(default_factory=list)
    """What `check` has changed, a sentence each."""

    @property
    def hydra(self) -> DictConfig:
        hydra: DictConfig = self.config.hydra
        return hydra

    @property
    def settings(self) -> DictConfig:
        """`hydra.sweeper.*`."""
        settings: DictConfig = self.config.hydra.sweeper
        return settings

    @cached_property
    def grid_size(self) -> int | None:
        """How many settings a grid has; None where the sampler is no grid."""
        sampler = samplers.build(self.settings.sampler, self.space, self.points)
        return len(sampler.points) if isinstance(sampler, samplers.Grid) else None

    @cached_property
    def first(self) -> tuple[DictConfig, setup.RunInfo]:
        """The configuration with the first value of every range, as `compose` makes it."""
        return compose(self, end(self, 0, {}))

    @cached_property
    def prepared(self) -> setup.Prepared:
        """The first setting, built, whatever its size: it says what `auto` stands for on this machine."""
        cfg, info = self.first
        cfg = deepcopy(cfg)
        cfg.budget |= dict.fromkeys(COSTS)
        return setup.prepare(cfg, info)

    def points(self) -> list[dict[str, Any]]:
        """All settings. Raises ValueError where a key has no steps."""
        return list(points(self))

    @cached_property
    def _compositions(self) -> dict[tuple[tuple[str, Any], ...], Composition]:
        return {}

    def composition(self, settings: Mapping[str, Any]) -> Composition:
        """Configuration, options and fixed overrides of the trials with the options among these settings.

        Raises ValueError where they cannot be composed.
        """
        chosen = {key_of(name): value for name, value in settings.items() if name in self.space.groups}
        if not self.space.groups:
            return self.plain, self.choices, self.fixed
        known = tuple(chosen.items())
        if known not in self._compositions:
            self._compositions[known] = _with_options(self.config, self.context, self.fixed, chosen)
        return self._compositions[known]

    @property
    def multi_objective(self) -> bool:
        """Whether a cost is an objective beside the accuracy, so that the result is a front."""
        return len(self.settings.objectives) == 2

    @property
    def cost(self) -> str:
        """The cost that is an objective, or where there is none the one by which networks are compared."""
        return str(self.settings.objectives[1]) if self.multi_objective else "parameters"

    def second_objective(self, costs: Mapping[str, Any]) -> tuple[int, ...]:
        """The cost that is an objective, of those of a network that is trained; empty where none is."""
        return (costs[self.cost],) if self.multi_objective and self.cost in costs else ()

    @cached_property
    def folder(self) -> Path:
        """Where the study and its trials are."""
        return Path(self.config.hydra.sweep.dir)

    @property
    def name(self) -> str:
        """What the study is called in all that is shown: as its folder. Its name in a storage may be another."""
        return self.folder.absolute().name

    @property
    def another(self) -> str:
        """What is typed to begin another study."""
        named = self.name == self.settings.study_name
        return f"{'hydra.sweeper.study_name' if named else 'hydra.sweep.dir'}=…"


def read(config: DictConfig, context: HydraContext, launcher: Launcher, arguments: list[str]) -> Search:
    """Split `hydra.sweeper.params` and the command line into a search space and fixed overrides.

    The command line wins: it may fix a key that `params` varies, and vary one that `params` fixes.
    Raises ValueError for a range that cannot be searched.
    """
    ranges.validate_ranges(config.hydra.sweeper, "hydra.sweeper")
    space, loader = Space(), context.config_loader
    fixed: dict[str, str] = {}
    given: list[tuple[str, Condition]] = [(line, {}) for line in arguments]
    params = config.hydra.sweeper.params or {}
    plain: list[tuple[str, Condition]] = [(f"{key!s}={value}", {}) for key, value in params.items()]
    for line, when in [*plain, *_conditional(config), *given]:
        key, distribution = distributions.parse(line, loader)
        if (line, when) in given:
            space.remove(key)
            fixed.pop(key, None)
        if distribution is not None:
            space.add(key, distribution, when, loader)
        elif when:
            space.add(key, CategoricalDistribution([line.partition("=")[2]]), when, loader)
        else:
            fixed[key] = line
    lines = list(fixed.values())
    first = {key_of(name): distributions.ends(space[name])[0] for name in space.groups - space.conditions.keys()}
    cfg, choices, _ = _with_options(config, context, lines, first)
    return Search(config, context, launcher, space, lines, cfg, choices)


def _conditional(config: DictConfig) -> Iterator[tuple[str, Condition]]:
    """The lines of `hydra.sweeper.spaces`, each with its condition. Raises ValueError where one is no space."""
    spaces: Any = OmegaConf.to_container(config.hydra.sweeper.spaces)
    for i, entry in enumerate(spaces):
        if set(entry) != {"when", "params"} or not all(isinstance(part, dict) and part for part in entry.values()):
            raise ValueError(
                f"hydra.sweeper.spaces[{i}] is {entry}: it must have params, and when they are searched, "
                "as in {when: {scheduler: step}, params: {scheduler.gamma: 'interval(0.1, 0.9)'}}"
            )
        for key, value in entry["params"].items():
            yield f"{key}={value if isinstance(value, str) else written(value)}", entry["when"]


def _with_options(
    config: DictConfig, context: HydraContext, fixed: list[str], chosen: Mapping[str, Any]
) -> Composition:
    """Compose with chosen options; a fixed key that they do not have is left out."""
    if not chosen:
        return (*composed(config, context, fixed), fixed)
    options = [f"{key}={value}" for key, value in chosen.items()]
    with suppress(ValueError):  # most have all keys: composed once
        return (*composed(config, context, [*fixed, *options]), fixed)
    keys = {line: distributions.parse(line, context.config_loader)[0] for line in fixed}
    of_options = [line for line in fixed if "." in keys[line] and not line.startswith(("+", "~"))]
    cfg, choices = composed(config, context, [*(line for line in fixed if line not in of_options), *options])
    kept = [line for line in fixed if line not in of_options or conditions.has(cfg, keys[line])]
    if any(line in of_options for line in kept):
        cfg, choices = composed(config, context, [*kept, *options])
    return cfg, choices, kept


def composed(config: DictConfig, context: HydraContext, overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """Compose a trial's configuration as its job will; also returns what its options are called.

    Raises ValueError where it cannot be composed.
    """
    try:
        cfg = context.config_loader.load_sweep_config(config, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise suggestion(error) or ValueError(" ".join(f"{error} {error.__cause__ or ''}".split())) from error
    with read_write(cfg), open_dict(cfg):
        hydra = cfg.pop("hydra")
    return cfg, dict(hydra.runtime.choices)


def overrides(search: Search, settings: dict[str, Any]) -> list[str]:
    """All overrides of a trial: those that every trial has, and its own settings."""
    fixed = search.composition(settings)[2]
    return [*fixed, *(distributions.override(key_of(name), value) for name, value in settings.items())]


def known_settings(search: Search) -> tuple[list[dict[str, Any]], list[str]]:
    """The settings of `hydra.sweeper.enqueue`, and why which of them are left out, a sentence each.

    Keys that are not searched are left out of them. Settings that are not in the space are left out where a range
    was typed beside settings that were not. Raises ValueError for all others.
    """
    typed: Any = OmegaConf.to_container(search.hydra.overrides, resolve=False)
    by_hand = any(line.startswith("hydra.sweeper.enqueue") for line in typed["hydra"])
    keys = {distributions.parse(line, search.context.config_loader)[0] for line in typed["task"]}
    found, left_out = [], []
    for entry in search.settings.enqueue:
        settings: dict[str, Any] = {}
        try:
            for key, value in entry.items():
                settings |= _known(search, str(key), value)
        except ValueError as error:
            reason = f"hydra.sweeper.enqueue sets {key!s}, but {error}"
            if by_hand or key not in keys:
                raise ValueError(f"{reason}: change the one or the other") from error
            left_out.append(f"{reason}: these settings are left out")
        else:
            found += [settings] if settings else []
    return found, list(dict.fromkeys(left_out))  # several settings may have the same reason


def _known(search: Search, key: str, value: Any) -> dict[str, Any]:
    """A known value under each name of its key whose range has it. Raises ValueError where none has."""
    found: dict[str, Any] = {}
    reason: ValueError | None = None
    for name, values in search.space.items():
        if key_of(name) == key:
            try:
                found[name] = distributions.matching(value, values)
            except ValueError as error:
                reason = error
    if reason and not found:
        raise reason
    return found


def compose(search: Search, settings: dict[str, Any]) -> tuple[DictConfig, setup.RunInfo]:
    """A trial's configuration, as its job will have it, and where it runs with what options.

    Raises ValueError where it cannot be composed.
    """
    if any(name.startswith(("+", "~")) for name in settings):
        cfg, choices = composed(search.config, search.context, overrides(search, settings))
    else:
        plain, choices, _ = search.composition(settings)
        cfg = deepcopy(plain)
        try:
            for name, value in settings.items():
                if name not in search.space.groups:
                    OmegaConf.update(cfg, key_of(name), distributions.value(value), merge=False)
        except OmegaConfBaseException as error:
            said = f"{key_of(name)}={settings[name]} is refused: {str(error).splitlines()[0]}"
            remedy = "; between several values of a choice there are commas" if " " in str(settings[name]) else ""
            raise ValueError(f"{said}{remedy}") from error
    return cfg, setup.RunInfo(search.folder, choices, search.settings.n_jobs or -1, None)


def following(search: Search, chosen: Mapping[str, Any]) -> str | None:
    """The next name that a trial with these settings needs a value for; None where it has all.

    Groups come first, since the composition decides about the rest.
    """
    space, decided = search.space, {key_of(name) for name in chosen}
    for name in space.ordered():
        if name in space.groups and key_of(name) not in decided and _is_met(search, name, chosen):
            return name
    cfg = search.composition(chosen)[0]
    for name in space.ordered():
        key = key_of(name)
        if (
            name not in space.groups
            and key not in decided
            and conditions.has(cfg, key)
            and _is_met(search, name, chosen)
        ):
            return name
    return None


def _is_met(search: Search, name: str, chosen: Mapping[str, Any]) -> bool:
    """Whether one of the conditions of a name is met by what is chosen so far."""
    known = search.space.conditions.get(name)
    if known is None:
        return True
    values = {key_of(other): value for other, value in chosen.items()}
    cfg, choices, _ = search.composition(chosen)

    def now(key: str) -> str:
        if key in values:
            return str(values[key]) if isinstance(values[key], str) else written(values[key])
        return written(choices[key] if key in choices else OmegaConf.select(cfg, key))

    return any(all(now(key) in conditions.allowed(wanted) for key, wanted in when.items()) for when in known)


def points(search: Search, chosen: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """All settings that a trial can have. Raises ValueError where a key has no steps."""
    chosen = chosen or {}
    name = following(search, chosen)
    if name is None:
        yield dict(chosen)
        return
    for value in distributions.values(key_of(name), search.space[name]):
        yield from points(search, {**chosen, name: value})


def end(search: Search, which: int, wanted: Condition) -> dict[str, Any]:
    """The first (0) or last (-1) settings of a space, with what is wanted where that can be had."""
    chosen: dict[str, Any] = {}
    while (name := following(search, chosen)) is not None:
        values, ends = search.space[name], distributions.ends(search.space[name])
        chosen[name] = ends[which]
        if isinstance(values, CategoricalDistribution) and key_of(name) in wanted:
            fitting = [v for v in values.choices if _typed(v) in conditions.allowed(wanted[key_of(name)])]
            chosen[name] = fitting[0] if fitting else ends[which]
    return chosen


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else written(value)


def compositions(search: Search) -> Iterator[Condition]:
    """What to want, so that every option of every group and every condition is seen once."""
    yield {}
    for name, values in search.space.items():
        for when in search.space.conditions.get(name, [{}]):
            if when:
                yield when
            if name in search.space.groups and isinstance(values, CategoricalDistribution):
                for option in values.choices:
                    yield {**when, key_of(name): option}


def objectives(search: Search) -> str:
    """`hydra.sweeper.objectives` as it is typed."""
    return f"[{','.join(map(str, search.settings.objectives))}]"
