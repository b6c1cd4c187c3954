"""Augmentation in C: for small images PyTorch's operations mostly go through memory."""

import ctypes
from contextlib import suppress

import torch
from torch import Tensor

from bantam.augmentation import Augmentation, Changes, changed, mapping
from bantam.kernels import compiler
from bantam.kernels.arguments import AugmentArguments

SOURCE = "augment.c"

LARGEST = 2**16
"""Numbers of an image of one channel: more would not fit on the stack."""

INTERPOLATIONS = ("bilinear", "nearest")

TOLERANCE, SIDE = 1e-4, 100
"""How far a pixel may be from PyTorch's, which lies between 0 and 1; of a longer side, in proportion, farther.

The farther a place is from the middle, the more it is rounded.
"""

MOST_UNLIKE = 0.01
"""The share of pixels that may be farther where the nearest ones are taken: another one may be as near."""


def in_c(augmentation: Augmentation, shape: tuple[int, int, int]) -> Augmentation:
    """The same augmentation; where C can be compiled, it changes C×H×W images from now on."""
    channels, height, width = shape
    if type(augmentation) is Augmentation and height * width <= LARGEST:
        with suppress(compiler.Unavailable):
            sizes = {"CHANNELS": channels, "HIGH": height, "WIDE": width, "BFLOAT16": 0}
            augmentation.kernel = Kernel(compiler.library(SOURCE, check, **sizes), shape)
    return augmentation


class Kernel:
    """What changes B×C×H×W bytes as `Augmentation.apply` does."""

    def __init__(self, library: ctypes.CDLL, shape: tuple[int, int, int]) -> None:
        library.augment.argtypes, library.augment.restype = [ctypes.POINTER(AugmentArguments)], None
        self.library, self.shape, self.arguments = library, torch.Size(shape), AugmentArguments()

    def __call__(self, images: Tensor, changes: Changes, interpolation: str) -> Tensor | None:
        """Floats from 0 to 1; None, where C does not make those changes."""
        light, warped, *others = changes
        if any(other is not None for other in others) or (light is not None and self.shape[0] > 1):
            return None
        if warped is not None and (interpolation not in INTERPOLATIONS or not warped.is_contiguous()):
            return None
        if light is not None and light.stride(1) != 1:
            return None
        if images.shape[1:] != self.shape or not images.is_contiguous() or not images.is_cpu:
            return None
        output = torch.empty(images.shape)
        arguments = self.arguments
        arguments.input, arguments.output, arguments.images = images.data_ptr(), output.data_ptr(), len(images)
        arguments.mapping = None if warped is None else warped.data_ptr()
        arguments.light = None if light is None else light.data_ptr()
        arguments.nearest = interpolation == "nearest"
        arguments.step = 0 if light is None else light.stride(0)
        self.library.augment(arguments)
        return output


def check(library: ctypes.CDLL, source: str, sizes: dict[str, int]) -> None:
    """Raise Unavailable where a library changes images in another way than PyTorch."""
    shape = sizes["CHANNELS"], sizes["HIGH"], sizes["WIDE"]
    tolerance = TOLERANCE * max(1, max(shape[1:]) / SIDE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
        angle, right, down, scale, shear = torch.rand(5, 4)
        light = torch.rand(4, 4).view(4, 4, 1, 1, 1) if shape[0] == 1 else None
        found = mapping(20 * angle, 3 * right, -3 * down, 0.8 + scale, 10 * shear)
        for changes in (Changes(), Changes(mapping=found), Changes(light, found)):
            for interpolation in INTERPOLATIONS:
                ours = Kernel(library, shape)(images, changes, interpolation)
                theirs = changed(images, changes, interpolation)
                most = MOST_UNLIKE if interpolation == "nearest" and changes.mapping is not None else 0.0
                # Not a number is no nearer than any.
                if ours is None or (~((ours - theirs).abs() <= tolerance)).float().mean() > most:
                    raise compiler.Unavailable(f"what this compiler makes of {source} is wrong")
