"""Hydra in a search: keys that only some options have, what trials have in common, and what workers compose."""

import re
from collections.abc import Sequence
from copy import deepcopy
from functools import wraps
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.execution_policy import _get_active_execution_whitelist
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import configure_log
from hydra.errors import ConfigCompositionException, OverrideParseException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from bantam import snapshot
from bantam.launch import SWEEPER
from bantam.snapshot import Snapshot

_plain: Any = ConfigLoaderImpl._load_configuration_impl


@wraps(_plain)
def _compose(self: ConfigLoaderImpl, *positional: Any, run_mode: RunMode, **named: Any) -> DictConfig:
    """Hydra's own, which composes a multirun with the default of each searched group, whatever its options are.

    A key that this default lacks is left to `space.read` and `checks.check`: they know the options.
    """
    typed: Sequence[Override] | None = named.get("parsed_overrides")
    try:
        return _plain(self, *positional, run_mode=run_mode, **named)  # type: ignore[no-any-return]
    except ConfigCompositionException:
        if run_mode != RunMode.MULTIRUN or typed is None:
            raise
        cfg = _without(self, [item for item in typed if not _is_of_option(item)], *positional, **named)
        if cfg is None or cfg.hydra.sweeper.get("_target_") != SWEEPER:
            raise
        searched = _searched(cfg, typed)
        kept = [item for item in typed if not (_is_of_option(item) and searched & {_group(item), "experiment"})]
        if len(kept) == len(typed):
            raise
    composed: DictConfig = _plain(self, *positional, run_mode=run_mode, **{**named, "parsed_overrides": kept})
    composed.hydra.overrides.task = [item.input_line for item in typed if not item.is_hydra_override()]
    return composed


def _without(loader: ConfigLoaderImpl, kept: list[Override], *positional: Any, **named: Any) -> DictConfig | None:
    """What is composed of these overrides; None where that cannot be composed either."""
    try:
        return _plain(  # type: ignore[no-any-return]
            loader, *positional, run_mode=RunMode.MULTIRUN, **{**named, "parsed_overrides": kept}
        )
    except ConfigCompositionException:
        return None


def _is_of_option(item: Override) -> bool:
    """Whether it gives one value to a key of an option."""
    plain = item.type == OverrideType.CHANGE and not item.is_sweep_override() and not item.is_hydra_override()
    return plain and "." in item.key_or_group


def _group(item: Override) -> str:
    return re.split(r"[.\[]", item.key_or_group, maxsplit=1)[0]


def _chooses(loader: ConfigLoaderImpl, item: Override) -> bool:
    """Whether it chooses an option of a group, which comes before all values wherever it is typed."""
    return loader.repository.group_exists(item.key_or_group) and not isinstance(item.value(), dict)


def _searched(cfg: DictConfig, typed: Sequence[Override]) -> set[str]:
    """The keys and groups that are searched, by what was typed or by an option of hparams_search."""
    spaces = [cfg.hydra.sweeper.params or {}, *(entry.get("params") or {} for entry in cfg.hydra.sweeper.spaces)]
    return {item.key_or_group for item in typed if item.is_sweep_override()} | {
        str(key) for space in spaces for key in space
    }


_plain_job: Any = ConfigLoaderImpl.load_sweep_config


class Composed(dict[tuple[str, ...], DictConfig]):
    """By their overrides, what jobs of one multirun have in common."""

    multirun: DictConfig | None = None


composed = Composed()
"""Of this process."""

MAX_COMPOSED = 100
"""Compositions that are kept: of a key without a dot every value is another one."""


@wraps(_plain_job)
def _compose_job(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
    """Hydra's own, which composes all groups anew for every job, in a tenth of a second.

    The trials of a search that have the same options differ in values alone; Hydra applies those last.
    """
    try:
        typed = OverridesParser.create().parse_overrides(sweep_overrides)
        plain = all(item.type == OverrideType.CHANGE and not item.is_sweep_override() for item in typed)
    except OverrideParseException:
        plain = False
    if not plain or master_config.hydra.sweeper._target_ != SWEEPER:
        return _plain_job(self, master_config, sweep_overrides)  # type: ignore[no-any-return]
    whole = {_group(item) for item in typed if not _is_of_option(item) and not _chooses(self, item)}
    values = [item for item in typed if _is_of_option(item) and _group(item) not in whole]  # their order counts
    common = [str(item.input_line) for item in typed if item not in values]
    if composed.multirun is not master_config or len(composed) >= MAX_COMPOSED:
        composed.clear()
        composed.multirun = master_config
    if tuple(common) not in composed:
        composed[tuple(common)] = _plain_job(self, master_config, common)
    job = deepcopy(composed[tuple(common)])
    self._apply_overrides_to_config(values, job)
    job.hydra.overrides.task = [item.input_line for item in typed if not item.is_hydra_override()]
    return job


def context(config: DictConfig, options: Snapshot, known: Composed, name: str) -> HydraContext:
    """Make Hydra in this process what it is in the one that has composed a search.

    `known` is what is `composed` there, and `name` what Hydra calls the script.
    """
    composed.clear()
    composed.update(known)
    composed.multirun = config
    loader = ConfigLoaderImpl(options.search_path)
    snapshot.give(loader, options)
    GlobalHydra.instance().initialize(Hydra(name, loader))
    HydraConfig.instance().set_config(config)
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return HydraContext(loader, Callbacks(config), _get_active_execution_whitelist())


def register() -> None:
    """Have Hydra compose so in this process."""
    ConfigLoaderImpl._load_configuration_impl = _compose  # type: ignore[assignment, method-assign]
    ConfigLoaderImpl.load_sweep_config = _compose_job  # type: ignore[method-assign]
