"""Has Hydra compose a search whose fixed keys only some of the searched options have, as scheduler.warmup=0.3."""

from collections.abc import Sequence
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig

from bantam.launch import SWEEPER

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
    return item.key_or_group.partition(".")[0]


def _searched(cfg: DictConfig, typed: Sequence[Override]) -> set[str]:
    """The keys and groups that are searched, by what was typed or by an option of hparams_search."""
    spaces = [cfg.hydra.sweeper.params or {}, *(entry.get("params") or {} for entry in cfg.hydra.sweeper.spaces)]
    return {item.key_or_group for item in typed if item.is_sweep_override()} | {
        str(key) for space in spaces for key in space
    }


def register() -> None:
    """Have Hydra compose so in this process."""
    ConfigLoaderImpl._load_configuration_impl = _compose  # type: ignore[assignment, method-assign]
