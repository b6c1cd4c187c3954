"""Arrays in MNIST's format, which is called IDX.

torchvision reads them too, but importing it takes as long as all else before the first step of a run.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BYTES = 8
"""What stands in a file for numbers of one byte without a sign."""


def read(file: Path, axes: int) -> Tensor:
    """The array of bytes in a file, of so many axes.

    Raises ValueError for other numbers or axes, and where the file is shorter or longer than it says.
    """
    content = file.read_bytes()
    if content[:4] != bytes((0, 0, BYTES, axes)):
        raise ValueError(f"{file.name} does not begin as a file of bytes with {axes} axes")
    sides = np.frombuffer(content, ">u4", axes, offset=4)
    numbers = np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * axes)
    return torch.from_numpy(numbers.reshape(sides))
