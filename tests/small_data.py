"""Data folders with a few images, in the file format of MNIST."""

from pathlib import Path

import numpy as np

from bantam import data


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the file format of MNIST."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def few_images(root: Path) -> Path:
    """A data folder with a little Fashion-MNIST, made of digits: nothing in the code knows the difference."""
    images = data.mnist5k(0, 1, 0.1307, 0.3081)
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, pixels, labels in (
        ("train", images.train_images[:300], images.train_labels[:300]),
        ("t10k", images.held_out_images[:100], images.held_out_labels[:100]),
    ):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels[:, 0].numpy()))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels.numpy()))
    return root
