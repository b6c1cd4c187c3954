"""A picture in a file, as bytes of the size and the channels that a network takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bantam.images import pictures

BRIGHT = 0.5
"""The mean of a picture, from 0 to 1, from which on its ground is taken for white."""


@dataclass(frozen=True)
class Picture:
    """A picture as a network sees it, and what was done to it."""

    file: Path
    bytes_: Any
    """H×W, in colour H×W×C."""
    done: list[str]
    """What was changed, a phrase each."""
    inverted: bool

    def notes(self, training_mean: float) -> Iterator[str]:
        """Sentences about what was changed, and about a ground that is not that of the training images."""
        if self.done:
            yield f"{self.file}: {', '.join(self.done)}"
        mean = float(self.bytes_.mean()) / 255
        if (mean > BRIGHT) == (training_mean > BRIGHT):
            return
        kinds = ("bright", "dark") if mean > BRIGHT else ("dark", "bright")
        option = "leave --invert out" if self.inverted else "add --invert"
        yield (
            f"{self.file} is {kinds[0]} (mean {mean:.2f}), and the training images are {kinds[1]} "
            f"({training_mean:.2f}): if black and white are exchanged in it, {option}"
        )


def read(file: Path, shape: Sequence[int], invert: bool = False) -> Picture:
    """Read a picture of any size for a network that takes channels×height×width.

    Raises ValueError where it cannot be read.
    """
    channels, height, width = shape
    if channels not in pictures.MODES:
        raise ValueError(
            f"the network takes {channels} channels, which no picture has: use bantam.load(…).predict"
        )
    picture, done = pictures.load(str(file), channels, "give the file of a picture"), []
    with Image.open(file) as opened:
        if opened.has_transparency_data:
            done.append("what is transparent is white")
        if (frames := getattr(opened, "n_frames", 1)) > 1:
            done.append(f"the first of {frames} pictures in it is taken")
    if picture.size != (width, height):
        done.append(f"resized from {picture.width}×{picture.height} to {width}×{height} pixels")
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    found = np.array(picture)
    return Picture(file, 255 - found if invert else found, done, invert)
