"""Augmentation of whole batches, with numbers drawn for every image by itself.

It runs on the device that holds the images. B is the number of images in a batch, H and W their
height and width in pixels.
"""

import functools
import math

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

        def draw(reach: float, *size: int) -> Tensor:
            """B numbers, or B tensors of a size, uniform within ± `reach`."""
            return torch.empty(count, *size, device=x.device).uniform_(-reach * strength, reach * strength)

        if self.brightness or self.contrast:
            contrast_first = torch.rand(count, device=x.device) < 0.5
            x = jitter(x, 1 + draw(self.brightness), 1 + draw(self.contrast), contrast_first)
        if self.degrees or self.pixels or self.scale or self.shear_degrees or self.elastic_pixels:
            angle, shear = draw(self.degrees), draw(self.shear_degrees)
            right, down = draw(self.pixels), draw(self.pixels)
            scale = 1 + draw(self.scale)
            bend = draw(self.elastic_pixels, 2, *BENDS) if self.elastic_pixels else None
            x = warp(x, angle, right, down, scale, shear, self.interpolation, bend)
        return x


def jitter(x: Tensor, brightness: Tensor, contrast: Tensor, contrast_first: Tensor) -> Tensor:
    """Multiply the brightness and stretch the contrast about the mean of B×1×H×W images, a factor each.

    `contrast_first` says, per image, in which order; between the two and after, values are clipped
    to 0 … 1.
    """
    brightness, contrast = brightness.view(-1, 1, 1, 1), contrast.view(-1, 1, 1, 1)
    contrast_first = contrast_first.view(-1, 1, 1, 1)
    # Either is a line, factor × x + offset; an image takes the two in its order, and all of them together.
    offset = torch.where(contrast_first, _mean(x) * (1 - contrast), 0)
    x = x.mul(torch.where(contrast_first, contrast, brightness)).add_(offset).clamp_(0, 1)
    offset = torch.where(contrast_first, 0, _mean(x) * (1 - contrast))
    return x.mul_(torch.where(contrast_first, brightness, contrast)).add_(offset).clamp_(0, 1)


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
    radians, slant = angle * (math.pi / 180), torch.tan(shear * (math.pi / 180))
    cos, sin = torch.cos(radians) / scale, torch.sin(radians) / scale
    # grid_sample asks where each output pixel comes from: first undo the shift, then the rotation
    # and scale, then the shear. Square pixels are kept when height and width differ.
    xx, xy = cos + slant * sin, -sin + slant * cos
    yx, yy = sin, cos
    dx, dy = -2 * right / width, -2 * down / height
    ratio = height / width
    theta = torch.stack(
        [
            torch.stack([xx, xy * ratio, xx * dx + xy * ratio * dy], dim=1),
            torch.stack([yx / ratio, yy, yx / ratio * dx + yy * dy], dim=1),
        ],
        dim=1,
    )
    # affine_grid with all images in one product, and x and y apart, as grid_sample reads them fastest.
    grid = (theta.view(-1, 3) @ _pixels(height, width, x.device)).view(-1, 2, height, width)
    if bend is not None:
        pixel = torch.tensor([2 / width, 2 / height], device=x.device).view(1, 2, 1)
        curves = _curves(*bend.shape[-2:], height, width, x.device)
        grid = grid - ((bend.flatten(2) * pixel) @ curves).view_as(grid)
    return F.grid_sample(
        x, grid.permute(0, 2, 3, 1), mode=interpolation, padding_mode="zeros", align_corners=False
    )


@functools.cache
def _pixels(height: int, width: int, device: torch.device) -> Tensor:
    """3×(H·W): x and y of every pixel's centre, in an image that reaches from -1 to 1, and a row of ones."""
    x, y = ((2 * torch.arange(size, device=device) + 1) / size - 1 for size in (width, height))
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx.flatten(), yy.flatten(), torch.ones(height * width, device=device)])


@functools.cache
def _curves(rows: int, columns: int, height: int, width: int, device: torch.device) -> Tensor:
    """(rows·columns)×(H·W): how much of every point's shift reaches every pixel."""
    points = torch.eye(rows * columns, device=device).view(-1, 1, rows, columns)
    return F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True).flatten(1)
