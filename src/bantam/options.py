"""The keys of the options of each group: their types, their ranges and what they mean.

The files in `conf/` hold the values and extend these types. torch is not imported here.
"""

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING

from bantam.ranges import ranged


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
    channels: int = ranged(least=1)
    """Channels of an image."""
    side: int = ranged(least=1)
    """Height and width of an image in pixels."""
    classes: int = ranged(least=2)
    """How many logits there are."""


@dataclass
class Study(Skeleton):
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
    """A linear layer at the end; false: the channels of the last block, one a class, are the logits."""
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
    channels: int = ranged(least=1)
    """Channels of an image."""
    classes: int = ranged(least=2)
    """How many logits there are."""


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
    saturation: float = ranged(0.0, least=0, most=1)
    """Saturation is multiplied by a factor from 1 ± this: of images in colour."""
    hue: float = ranged(0.0, least=0, most=0.5)
    """Hue is turned by up to ± this fraction of the circle of colours: of images in colour."""
    degrees: float = ranged(least=0, most=180)
    """Rotation by up to ± this."""
    pixels: float = ranged(least=0, most="data.side")
    """Shift by up to ± this on either axis."""
    scale: float = ranged(least=0, below=1)
    """Size is multiplied by a factor from 1 ± this."""
    shear_degrees: float = ranged(least=0, below=90)
    """Shear by up to ± this."""
    elastic_pixels: float = ranged(least=0, most="data.side")
    """Shift of each of 5×5 points by up to ± this on either axis, with smooth curves in between."""
    interpolation: Literal["nearest", "bilinear"] = MISSING
    """How values between pixels are computed."""
    fade_start: float = ranged(least=0, most=1)
    """Fraction of the training after which the changes begin to fade; 1: never."""
    fade_end: float = ranged(least=0, most=1)
    """Fraction of the training after which there are no changes."""


@dataclass
class Dataset(Component):
    channels: int | None = ranged(least=1, most=256)
    """Channels of an image: 1 is grey, 3 are red, green and blue; null: as the files have it."""
    side: int | None = ranged(least=1, most=1024)
    """Height and width of an image in pixels; null: as the files have it."""
    classes: int | None = ranged(least=2, most=10_000)
    """How many classes there are; null: as the files have it."""
    mean: float | int | list[float | int] | None = ranged()
    """Mean of the pixels from 0 to 1, which normalisation subtracts: one number, or one for each channel; null:
    computed from the training images."""
    std: float | int | list[float | int] | None = ranged(above=0)
    """Standard deviation of the pixels, which normalisation divides by, likewise."""
    validation: int = ranged(least=0)
    """Training images held out and scored instead of the test images; 0 scores the test images."""
    split_seed: int = ranged(least=0)
    """Decides which images are held out."""


@dataclass
class Files(Dataset):
    root: str = MISSING
    """Folder that holds, or will hold, the downloaded files."""


@dataclass
class Own(Dataset):
    root: str = MISSING
    """Where the images are: an .npz file, or a folder with the folders train and test."""


@dataclass
class Auto(Files):
    became: Literal["MNIST", "mnist5k"] | None = MISSING
    """Which of the two it stands for; null: decided once when a command is typed, for all its jobs or trials."""


@dataclass
class TorchvisionDataset(Files):
    dataset: Literal["MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNISTLetters", "CIFAR10"] = MISSING
    """Which of torchvision's datasets."""


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
    "data": {"dataset": Dataset, "files": Files, "own": Own, "auto": Auto, "torchvision": TorchvisionDataset},
}
"""What the options of the groups extend."""
