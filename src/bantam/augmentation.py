"""Augmentation of whole batches, with numbers drawn for every image by itself.

It runs on the device that holds the images. B is the number of images in a batch, H and W their
height and width in pixels.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BENDS = (5, 5)
"""Points of an image, rows and columns, that an elastic change shifts."""


class Augmentation:
    """Random changes of brightness, contrast and geometry; zero turns a change off.

    Per image: a brightness factor from 1 ± `brightness` and a contrast factor from 1 ± `contrast`,
    in random order; then an angle from ± `degrees` (counter-clockwise), a shift from ± `pixels` on
    either axis, a size factor from 1 ± `scale` and a shear angle from ± `shear_degrees`, about the
    centre; a shift from ± `elastic_pixels` on either axis for each of 5×5 points of the result, along the axes
    of the image as it was, with smooth curves in between. What comes in from outside is black. The parts are
    those of torchvision's ColorJitter, RandomRotation, RandomAffine and, nearly, ElasticTransform, which draw
    one set of numbers for a whole batch.

    All of these shrink to nothing between `fade_start` and `fade_end`, fractions of the training.
    Raises ValueError where the end comes before the start.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        degrees: float = 0.0,
        pixels: float = 0.0,
        scale: float = 0.0,
        shear_degrees: float = 0.0,
        elastic_pixels: float = 0.0,
        interpolation: str = "bilinear",
        fade_start: float = 1.0,
        fade_end: float = 1.0,
    ) -> None:
        if fade_end < fade_start:
            raise ValueError(
                f"fade_start is {fade_start} and fade_end is {fade_end}: they must satisfy fade_start <= fade_end "
                "(fractions of the training)"
            )
        self.brightness, self.contrast = brightness, contrast
        self.degrees, self.pixels, self.scale, self.shear_degrees = degrees, pixels, scale, shear_degrees
        self.elastic_pixels, self.interpolation = elastic_pixels, interpolation
        self.fade_start, self.fade_end = fade_start, fade_end

    def strength(self, progress: float) -> float:
        """What the reach of every change is multiplied by, where `progress` runs from 0 to 1 over the training."""
        if progress < self.fade_start:
            return 1.0
        if progress >= self.fade_end:
            return 0.0
        return (self.fade_end - progress) / (self.fade_end - self.fade_start)

    def __call__(self, images: Tensor, progress: float = 0.0) -> Tensor:
        """Augment B×H×W bytes into B×1×H×W floats from 0 to 1, as strongly as at this moment of the training."""
        x = images.unsqueeze(1).float().div_(255)
        count, strength = len(x), self.strength(progress)
        if strength == 0:
            return x

        def draw(*reaches: float) -> Sequence[Tensor]:
            """For each reach, B numbers uniform within ± as much: drawn together, since small operations add up."""
            drawn = torch.empty(len(reaches), count, device=x.device).uniform_(-strength, strength)
            return drawn.mul_(_column(reaches, x.device)).unbind()

        if self.brightness or self.contrast:
            brightness, contrast, order = draw(self.brightness, self.contrast, 1.0)
            x = jitter(x, 1 + brightness, 1 + contrast, order < 0)
        if self.degrees or self.pixels or self.scale or self.shear_degrees or self.elastic_pixels:
            reaches = (self.degrees, self.shear_degrees, self.pixels, self.pixels, self.scale)
            angle, shear, right, down, scale = draw(*reaches)
            bend = None
            if reach := self.elastic_pixels * strength:
                bend = torch.empty(count, 2, *BENDS, device=x.device).uniform_(-reach, reach)
            x = warp(x, angle, right, down, 1 + scale, shear, self.interpolation, bend)
        return x


def jitter(x: Tensor, brightness: Tensor, contrast: Tensor, contrast_first: Tensor) -> Tensor:
    """Multiply the brightness and stretch the contrast about the mean of B×1×H×W images, a factor each.

    `contrast_first` says, per image, in which order; between the two and after, values are clipped
    to 0 … 1.
    """
    first = torch.where(contrast_first, contrast, brightness).view(-1, 1, 1, 1)
    second = torch.where(contrast_first, brightness, contrast).view(-1, 1, 1, 1)
    # Either is a line, factor × x + offset; an image takes the two in its order, and all of them together.
    stretched = 1 - contrast
    before = torch.where(contrast_first, stretched, 0)
    after = (stretched - before).view(-1, 1, 1, 1)
    offset = _mean(x).mul_(before.view(-1, 1, 1, 1))
    x = x.mul(first).add_(offset).clamp_(0, 1)
    offset = _mean(x).mul_(after)
    return x.mul_(second).add_(offset).clamp_(0, 1)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3), keepdim=True)


def warp(
    x: Tensor,
    angle: Tensor,
    right: Tensor,
    down: Tensor,
    scale: Tensor,
    shear: Tensor,
    interpolation: str,
    bend: Tensor | None = None,
) -> Tensor:
    """Rotate, shear, scale and then shift B×1×H×W images about their centre, each by its own numbers.

    `angle` (counter-clockwise) and `shear` (along x) are B degrees, `right` and `down` B pixels,
    `scale` B factors; outside is black. The same mapping as torchvision's `affine` with angle
    `-angle` (its angles run clockwise) and `rotate` with `angle`. `bend`, B×2×rows×columns: for points of the
    result, from corner to corner, by how many pixels of `x` what is seen there has come right and down before all
    that; for the others bicubic curves.
    """
    height, width = x.shape[-2:]
    radians, slant = torch.stack([angle, shear]).mul_(math.pi / 180)
    slant = torch.tan(slant)
    cos, sin = torch.cos(radians) / scale, torch.sin(radians) / scale
    # grid_sample asks where each output pixel comes from: first undo the shift, then the rotation
    # and scale, then the shear.
    xx, xy = torch.addcmul(cos, slant, sin), torch.addcmul(-sin, slant, cos)
    dx, dy = torch.addcmul(xx * right, xy, down), torch.addcmul(sin * right, cos, down)
    theta = torch.stack([xx, xy, -dx, sin, cos, -dy], dim=1)
    # affine_grid with all images in one product, and x and y apart, as grid_sample reads them fastest.
    grid = (theta.view(-1, 3) @ _pixels(height, width, x.device)).view(-1, 2, height, width)
    if height != width:
        grid[:, 1] *= width / height
    if bend is not None:
        pixel = torch.tensor([2 / width, 2 / height], device=x.device).view(1, 2, 1)
        curves = _curves(*bend.shape[-2:], height, width, x.device)
        grid = grid - ((bend.flatten(2) * pixel) @ curves).view_as(grid)
    return F.grid_sample(
        x, grid.permute(0, 2, 3, 1), mode=interpolation, padding_mode="zeros", align_corners=False
    )


@functools.cache
def _column(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device).unsqueeze(1)


@functools.cache
def _pixels(height: int, width: int, device: torch.device) -> Tensor:
    """3×(H·W): x and y of every pixel from the centre, and ones, where the width is 2, as grid_sample has it."""
    x, y = (torch.arange(size, device=device) - (size - 1) / 2 for size in (width, height))
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx.flatten(), yy.flatten(), torch.ones(height * width, device=device)]) * (2 / width)


@functools.cache
def _curves(rows: int, columns: int, height: int, width: int, device: torch.device) -> Tensor:
    """(rows·columns)×(H·W): how much of every point's shift reaches every pixel."""
    points = torch.eye(rows * columns, device=device).view(-1, 1, rows, columns)
    return F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True).flatten(1)
