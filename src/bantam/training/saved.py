"""The configuration of a run as its folder has it: the only reader of `.hydra`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Saved:
    """What Hydra wrote into a run's folder."""

    folder: Path
    config: DictConfig
    """The composed configuration, its interpolations not resolved."""
    overrides: list[str]
    """What was typed for it."""

    @cached_property
    def hydra(self) -> DictConfig:
        """Hydra's own configuration. Raises ValueError where it cannot be read."""
        return _read(self.folder, "hydra.yaml").hydra  # type: ignore[no-any-return]

    @property
    def choices(self) -> Mapping[str, Any]:
        """The option chosen of each group, as in model=v2. Raises ValueError where they cannot be read."""
        return dict(self.hydra.runtime.choices)


def load(folder: Path) -> Saved:
    """Read a run's configuration and overrides. Raises ValueError, with the reason, if it is no run."""
    config = _read(folder, "config.yaml")
    overrides = _read(folder, "overrides.yaml")
    return Saved(folder, config, [str(item) for item in overrides])


def _read(folder: Path, name: str) -> Any:
    try:
        content = OmegaConf.load(folder / ".hydra" / name)
        if name != "overrides.yaml" and not isinstance(content, DictConfig):
            raise ValueError("no mapping")
        return content
    except Exception as error:  # whatever a damaged or foreign YAML file leads to
        reason = "it does not exist" if not folder.exists() else f"{type(error).__name__} in its .hydra/{name}"
        raise ValueError(f"{folder} is no run folder: {reason}") from error
