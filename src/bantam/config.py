"""The typed schema of the configuration: every key, its type, its range and what it means.

The files in `conf/` hold the values and extend these types, so Hydra refuses an unknown key or a
wrong type while it composes. torch is not imported here: a mistake is answered at once.
"""

from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

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
class Component:
    """Something that is built from its keys: `_target_` is the class, the other keys its arguments."""

    _target_: str = MISSING


@dataclass
class Partial(Component):
    """A component whose remaining arguments (parameters, optimizer) exist only once the network does."""

    _partial_: bool = True


@dataclass
class Skeleton(Component):
    width: int = ranged(least=1)
    """Channels of the first three convolutions."""


@dataclass
class Study(Component):
    width: int = ranged(least=1)
    """Channels of every 3×3 convolution."""
    dropout: float = ranged(least=0, below=1)
    """Probability of dropping an element."""


@dataclass
class Flexible(Component):
    """Numbers of channels; 0 leaves a block out."""

    early1: int = ranged(least=0)
    """Channels of the first block before the pooling."""
    early2: int = ranged(least=0)
    """Channels of the second."""
    early3: int = ranged(least=0)
    """Channels of the third."""
    transition: int = ranged(least=0)
    """Channels of the 1×1 block after the pooling."""
    late1: int = ranged(least=0)
    """Channels of the first 3×3 block after the pooling."""
    late2: int = ranged(least=0)
    """Channels of the second."""
    late3: int = ranged(least=0)
    """Channels of the third."""
    late4: int = ranged(least=0)
    """Channels of the fourth."""
    head: int = ranged(least=0)
    """Channels of the 1×1 block after the global average."""
    linear: bool = MISSING
    """A linear layer at the end; false: the 10 channels of the last block are the logits."""
    dilation: int = ranged(least=1)
    """Dilation of the late convolutions."""
    shared: bool = MISSING
    """Late convolutions of the same shape are one, each time with batch norm of its own."""
    early_separable: bool = MISSING
    """Early convolutions but the first are two: 3×3 of every channel by itself, and 1×1."""
    late_separable: bool = MISSING
    """Late convolutions are two: 3×3 of every channel by itself, and 1×1."""
    dropout: float = ranged(least=0, below=1)
    """Probability of dropping an element."""


@dataclass
class SGD(Partial):
    lr: float = ranged(above=0)
    """Learning rate."""
    momentum: float = ranged(least=0, below=1)
    """Momentum."""
    nesterov: bool = MISSING
    """Nesterov's form of momentum."""
    weight_decay: float = ranged(least=0)
    """Weight decay, as an L2 penalty."""


@dataclass
class AdamW(Partial):
    lr: float = ranged(above=0)
    """Learning rate."""
    betas: list[float] = ranged(least=0, below=1)
    """Decay of the averages of the gradient and of its square."""
    weight_decay: float = ranged(least=0)
    """Weight decay, apart from the gradient."""


@dataclass
class Muon(Partial):
    lr: float = ranged(above=0)
    """Learning rate of convolutions and linear layers: how far a step moves them in every direction."""
    vector_lr: float = ranged(above=0)
    """Learning rate of batch norm; a schedule changes both rates."""
    momentum: float = ranged(least=0, below=1)
    """Momentum."""
    nesterov: bool = MISSING
    """Nesterov's form of momentum."""
    weight_decay: float = ranged(least=0)
    """Weight decay of convolutions and linear layers."""


@dataclass
class Constant(Partial):
    factor: float = ranged(above=0, most=1)
    """What the learning rate is multiplied by in the first epochs."""
    total_iters: int = ranged(least=0)
    """How many epochs these are."""


@dataclass
class Step(Partial):
    step_size: int = ranged(least=1)
    """Epochs between two reductions."""
    gamma: float = ranged(above=0, most=1)
    """What the learning rate is multiplied by."""


@dataclass
class MultiStep(Partial):
    milestones: list[int] = ranged(least=1)
    """Epochs after which the rate is reduced."""
    gamma: float = ranged(above=0, most=1)
    """What the learning rate is multiplied by."""


@dataclass
class Milestones(Partial):
    epochs: int = ranged(least=1)
    """Length of the training."""
    milestones: list[float] = ranged(above=0, below=1)
    """Fractions of the training after which the rate is reduced."""
    gamma: float = ranged(above=0, most=1)
    """What the learning rate is multiplied by."""


@dataclass
class Cosine(Partial):
    T_max: int = ranged(least=1)
    """Epochs until the rate reaches eta_min."""
    eta_min: float = ranged(least=0)
    """Lowest learning rate."""


@dataclass
class OneCycle(Partial):
    epochs: int = ranged(least=1)
    """Length of the training."""
    warmup: float = ranged(least=0, below=1)
    """Fraction of the training after which the rate reaches optimizer.lr."""
    end: float = ranged(above=0, most=1)
    """Fraction of the training after which the rate has reached its floor."""
    initial: float = ranged(above=0, most=1)
    """First rate, as a fraction of optimizer.lr."""
    floor: float = ranged(least=0, most=1)
    """Last rate, as a fraction of optimizer.lr."""


@dataclass
class LossDip(Partial):
    factor: float = ranged(above=0, most=1)
    """What the learning rate is multiplied by when the loss dips less than before."""


@dataclass
class Augmentation(Component):
    brightness: float = ranged(least=0, most=1)
    """Brightness is multiplied by a factor from 1 ± this."""
    contrast: float = ranged(least=0, most=1)
    """Contrast is multiplied by a factor from 1 ± this."""
    degrees: float = ranged(least=0, most=180)
    """Rotation by up to ± this."""
    pixels: float = ranged(least=0, most=28)
    """Shift by up to ± this on either axis."""
    scale: float = ranged(least=0, below=1)
    """Size is multiplied by a factor from 1 ± this."""
    shear_degrees: float = ranged(least=0, below=90)
    """Shear by up to ± this."""
    elastic_pixels: float = ranged(least=0, most=28)
    """Shift of each of 5×5 points by up to ± this on either axis, with smooth curves in between."""
    interpolation: Literal["nearest", "bilinear"] = MISSING
    """How values between pixels are computed."""
    fade_start: float = ranged(least=0, most=1)
    """Fraction of the training after which the changes begin to fade; 1: never."""
    fade_end: float = ranged(least=0, most=1)
    """Fraction of the training after which there are no changes."""


@dataclass
class Dataset(Component):
    mean: float = ranged()
    """Mean of the pixels from 0 to 1, which normalisation subtracts."""
    std: float = ranged(above=0)
    """Standard deviation of the pixels, which normalisation divides by."""
    validation: int = ranged(least=0)
    """Training images held out and scored instead of the test images; 0 scores the test images."""
    split_seed: int = ranged(least=0)
    """Decides which images are held out."""


@dataclass
class Files(Dataset):
    root: str = MISSING
    """Folder that holds, or will hold, the downloaded files."""


@dataclass
class Auto(Files):
    became: Literal["MNIST", "mnist5k"] | None = MISSING
    """Which of the two it stands for; null: decided once when a command is typed, for all its jobs or trials."""


@dataclass
class TorchvisionDataset(Files):
    dataset: Literal["MNIST", "FashionMNIST", "KMNIST"] = MISSING
    """Class of torchvision.datasets with MNIST's file format."""


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
    """null: all cores, divided among the jobs that run side by side."""
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


SCHEMAS: dict[str, dict[str, type[Component]]] = {
    "model": {"skeleton": Skeleton, "study": Study, "flexible": Flexible},
    "optimizer": {"sgd": SGD, "adamw": AdamW, "muon": Muon},
    "scheduler": {
        "constant": Constant,
        "step": Step,
        "multistep": MultiStep,
        "milestones": Milestones,
        "cosine": Cosine,
        "one_cycle": OneCycle,
        "loss_dip": LossDip,
    },
    "augmentation": {"augmentation": Augmentation},
    "data": {"dataset": Dataset, "files": Files, "auto": Auto, "torchvision": TorchvisionDataset},
}
"""What the options of the groups extend."""


def register() -> None:
    """Store the schema for Hydra, `schema/<group>/<name>` for components, and the source of one's own networks."""
    source.register()
    store = ConfigStore.instance()
    store.store(name="schema", node=Config, replace=True)
    for group, components in {**SCHEMAS, "tracker": TRACKERS}.items():
        for name, node in components.items():
            store.store(group=f"hydra/schema/{group}", name=name, node=node, replace=True)


def sentence(error: Exception) -> str:
    """What OmegaConf says in several lines, in one, after the key that it is about."""
    key = getattr(error, "full_key", None)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{key}: {first}" if key else first
