"""The typed schema of a run: the keys that are in no group, and what a configuration may build.

`options.py` has the keys of the groups. The files in `conf/` hold the values and extend these types, so Hydra
refuses an unknown key or a wrong type while it composes. torch is not imported: a mistake is answered at once.
"""

import dis
import functools
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from bantam import option_files
from bantam.options import SCHEMAS
from bantam.own import source
from bantam.ranges import ranged
from bantam.tracker_keys import TRACKERS

TARGETS = {
    "model": ("bantam.models.*",),
    "optimizer": ("bantam.optimizers.*", "torch.optim.*"),
    "scheduler": ("bantam.schedulers.*", "torch.optim.*"),
    "augmentation": ("bantam.augmentation.*",),
    "data": ("bantam.data.*",),
    "tracker": ("bantam.trackers.*",),
}
"""The only `_target_`s that a group may name: a security boundary, so keep it short."""

WHITELIST = ("bantam.launch.Preflight", *chain.from_iterable(TARGETS.values()))
"""All that a configuration may name."""


@dataclass
class Budget:
    parameters: int | None = ranged(least=1)
    """A network must have strictly fewer parameters; null: any number."""
    epochs: int = ranged(least=1)
    """The most epochs that a training may take."""
    multiply_adds: int | None = ranged(None, least=1)
    """A network must do strictly fewer multiply-adds for an image; null: any number."""
    bytes: int | None = ranged(None, least=1)
    """The weights as saved, batch norm's statistics included, must take strictly fewer bytes; null: any number."""
    activations: int | None = ranged(None, least=1)
    """What an inference of one image keeps at a time must take strictly fewer bytes; null: any number."""


@dataclass
class Target:
    accuracy: float = ranged(above=0, most=100)
    """Percent of the test images to be reached in every one of the last epochs."""
    last_epochs: int = ranged(least=1)
    """How many epochs at the end must reach it, and are averaged into the objective."""


@dataclass
class Config:
    """All keys of a run; the groups come from their folders in `conf/`."""

    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    augmentation: Any = MISSING
    data: Any = MISSING
    budget: Budget = field(default_factory=Budget)
    target: Target = field(default_factory=Target)
    epochs: int = ranged(least=1)
    """Length of the training."""
    batch_size: int = ranged(least=1)
    """Images a step."""
    label_smoothing: float = ranged(least=0, below=1)
    """Share of the label that the training loss spreads over all classes; 0: none."""
    ema: float = ranged(least=0, below=1)
    """Decay of a moving average of the weights, as in 0.998, which is then scored and saved; 0: no average."""
    seed: int = ranged(least=0, most=2**40)
    """Seed of the weights, of the order of the images, of augmentation and dropout."""
    device: Literal["auto", "cpu", "cuda", "mps"] = MISSING
    """auto: a GPU (CUDA, MPS) where there is one, else the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = MISSING
    """auto: bfloat16 where the device computes it natively, else float32."""
    threads: int | None = ranged(least=1)
    """null: the cores that are free when the run begins; jobs side by side divide all of them."""
    channels_last: bool = MISSING
    """Memory layout B×H×W×C, the faster one for convolutions; false for B×C×H×W."""
    kernels: Literal["auto", "native", "torch"] = MISSING
    """What computes the blocks of a network in training: C compiled for this processor, or PyTorch; auto: C on a
    CPU where there is a compiler, in channels_last."""
    compile: bool = MISSING
    """torch.compile the network: needs a C++ compiler and half a minute."""
    pictures: bool = MISSING
    """Draw curves.png, confusion.png and mistakes.png into the run's folder."""
    report: bool = MISSING
    """Write report.html into the folder of a multirun or a search when it ends."""
    tracker: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = MISSING
    """Show what would be trained, and stop."""
    resume: str | None = MISSING
    """Folder of an interrupted run to continue in place."""


@functools.cache
def register() -> None:
    """Store the schema for Hydra, `schema/<group>/<name>` for components, and the source of one's own networks.

    What is stored stays, so further calls of a process do nothing.
    """
    source.register()
    option_files.register()
    store = ConfigStore.instance()
    store.store(name="schema", node=Config, replace=True)
    for group, components in {**SCHEMAS, "tracker": TRACKERS}.items():
        for name, node in components.items():
            store.store(group=f"hydra/schema/{group}", name=name, node=node, replace=True)


def raised_in(error: BaseException) -> str:
    """The module that has raised a ValueError with `raise`, to refuse what it was given.

    Empty where Python did, such as that of `int("x")`; one that was only made is Bantam's.
    """
    last = error.__traceback__
    if not isinstance(error, ValueError) or last is None:
        return "bantam" if isinstance(error, ValueError) else ""
    while last.tb_next is not None:
        last = last.tb_next
    by_raise = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return str(last.tb_frame.f_globals.get("__name__", "")) if by_raise else ""


def unreadable(error: Exception) -> str:
    """Why a file cannot be read, in few words."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem and mark:
        return f"{problem}, line {mark.line + 1}"
    if isinstance(error, OSError):  # OmegaConf raises one for YAML that is a number
        return error.strerror or "it has no keys"
    if isinstance(error, UnicodeError):
        return "it is no text"
    text = " ".join(str(error).split()).partition(" full_key:")[0]  # OmegaConf adds what it is about
    return (text or type(error).__name__).partition(' in "')[0]


def sentence(error: Exception) -> str:
    """What OmegaConf says in several lines, in one, after the key that it is about."""
    key = getattr(error, "full_key", None)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{key}: {first}" if key else first
