"""Small images of one's own, as arrays in a file and as pictures in folders: stripes, a colour for each class."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def stripes(count: int, classes: int, side: int, channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """N×H×W×C bytes and N labels."""
    random, labels = np.random.default_rng(seed), np.arange(count) % classes
    images = random.integers(0, 100, (count, side, side, channels))
    for image, label in zip(images, labels, strict=True):
        first = label * (side - 2) // classes
        image[first : first + 2, :, label % channels] += 150
    return images.astype(np.uint8), labels


def arrays(classes: int = 3, side: int = 20, channels: int = 3, train: int = 60, seed: int = 0) -> dict[str, Any]:
    """What an .npz file holds."""
    images, labels = stripes(train, classes, side, channels, seed)
    test_images, test_labels = stripes(train // 2, classes, side, channels, seed + 1)
    if channels == 1:
        images, test_images = images[..., 0], test_images[..., 0]
    named = {"train_images": images, "train_labels": labels}
    return named | {"test_images": test_images, "test_labels": test_labels}


def write_npz(file: Path, **changes: Any) -> str:
    """Save arrays of images, some of them changed or, where None, left out; returns the file's path."""
    kept = {name: array for name, array in (arrays() | changes).items() if array is not None}
    np.savez_compressed(file, **kept)
    return str(file)


def write_folder(folder: Path, names: tuple[str, ...] = ("cat", "dog"), side: int = 20, count: int = 10) -> str:
    """Save pictures into folders; returns the path of the uppermost one."""
    for part, seed in (("train", 0), ("test", 1)):
        images, labels = stripes(count * len(names), len(names), side, 3, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = folder / part / names[label] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return str(folder)
