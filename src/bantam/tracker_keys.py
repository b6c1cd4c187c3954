"""The keys of the trackers: types, ranges and meanings."""

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING

from bantam.ranges import ranged


@dataclass
class TensorBoard:
    _target_: str = MISSING


@dataclass
class MLflow:
    _target_: str = MISSING
    uri: str = MISSING
    """Address of the server, or of a database: sqlite:///mlflow.db."""
    experiment: str = MISSING
    """What its experiment is called; it is created where it is not there."""
    timeout: float = ranged(above=0)
    """Seconds in which the server must answer; then the training goes on without it."""


@dataclass
class WandB:
    _target_: str = MISSING
    project: str = MISSING
    """What its project is called."""
    entity: str | None = MISSING
    """User or team; null: the default of the account."""
    mode: Literal["online", "offline"] = MISSING
    """offline: files that `wandb sync` sends later."""
    folder: str = MISSING
    """Folder in which its files are kept."""
    timeout: float = ranged(above=0)
    """Seconds in which the server must answer; then the training goes on without it."""


TRACKERS: dict[str, type] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
"""What the options of `tracker` extend."""
