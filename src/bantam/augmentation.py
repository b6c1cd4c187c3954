"""Augmentation of whole batches, with numbers drawn for every image by itself.

It runs on the device that holds the images. B is the number of images in a batch, C of their channels, H and W
their height and width in pixels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in what is grey."""

COLOURS = len(GREY)
"""Channels of an image in colour."""

BENDS = (5, 5)
"""Points of an image, rows and columns, that an elastic change shifts."""


class Changes(NamedTuple):
    """What is done to B images; None where that is nothing."""

    light: Tensor | None = None
    """4×B×1×1×1, see `light`."""
    mapping: Tensor | None = None
    """B×2×3, see `mapping`."""
    bend: Tensor | None = None
    """B×2×rows×columns, see `warp`."""
    saturation: Tensor | None = None
    """B×1×1×1, see `saturate`."""
    hue: Tensor | None = None
    """B×1×1×1, see `turn_hue`."""

    def of(self, batch: slice) -> "Changes":
        """Those of some of the images."""
        light = None if self.light is None else self.light[:, batch]
        return Changes(light, *(None if numbers is None else numbers[batch] for numbers in self[1:]))


class Augmentation:
    """Random changes of brightness, contrast, colour and geometry; zero turns a change off.

    Per image: a brightness factor from 1 ± `brightness` and a contrast factor from 1 ± `contrast`,
    in random order; then, of images in colour, a saturation factor from 1 ± `saturation` and a turn of the hue
    by ± `hue` of the circle of colours; then an angle from ± `degrees` (counter-clockwise), a shift from
    ± `pixels` on either axis, a size factor from 1 ± `scale` and a shear angle from ± `shear_degrees`, about the
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
        saturation: float = 0.0,
        hue: float = 0.0,
    ) -> None:
        if fade_end < fade_start:
            raise ValueError(
                f"fade_start is {fade_start} and fade_end is {fade_end}: they must satisfy fade_start <= fade_end "
                "(fractions of the training)"
            )
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.degrees, self.pixels, self.scale, self.shear_degrees = degrees, pixels, scale, shear_degrees
        self.elastic_pixels, self.interpolation = elastic_pixels, interpolation
        self.fade_start, self.fade_end = fade_start, fade_end
        self.kernel: Callable[[Tensor, Changes, str], Tensor | None] | None = None
        """What may apply changes instead of PyTorch, or return None."""

    def strength(self, progress: float) -> float:
        """What the reach of every change is multiplied by, where `progress` runs from 0 to 1 over the training."""
        if progress < self.fade_start:
            return 1.0
        if progress >= self.fade_end:
            return 0.0
        return (self.fade_end - progress) / (self.fade_end - self.fade_start)

    def __call__(self, images: Tensor, progress: float = 0.0) -> Tensor:
        """Augment B×C×H×W bytes into floats from 0 to 1, as strongly as at this moment of the training."""
        strength = self.strength(progress)
        return self.apply(images, self.draw(torch.full((len(images),), strength, device=images.device)))

    def draw(self, strengths: Tensor) -> Changes:
        """Draw the changes of as many images as there are strengths, which are B floats.

        The numbers of an epoch are drawn at once: for a batch at a time it would take longer than to apply them.
        """
        if not strengths.any():
            return Changes()

        def uniform(*reaches: float) -> Sequence[Tensor]:
            """For each reach, B numbers within ± as much times the strength."""
            drawn = torch.empty(len(reaches), *strengths.shape, device=strengths.device).uniform_(-1, 1)
            return [numbers * reach for numbers, reach in zip(drawn.mul_(strengths), reaches, strict=True)]

        changes = Changes()
        if self.brightness or self.contrast:
            contrast_first = torch.rand_like(strengths) < 0.5
            brightness, contrast = uniform(self.brightness, self.contrast)
            changes = changes._replace(light=light(1 + brightness, 1 + contrast, contrast_first))
        if self.saturation:
            changes = changes._replace(saturation=1 + uniform(self.saturation)[0].view(-1, 1, 1, 1))
        if self.hue:
            changes = changes._replace(hue=uniform(self.hue)[0].view(-1, 1, 1, 1))
        if self.degrees or self.pixels or self.scale or self.shear_degrees or self.elastic_pixels:
            angle, shear, scale = uniform(self.degrees, self.shear_degrees, self.scale)
            right, down = uniform(self.pixels, self.pixels)
            changes = changes._replace(mapping=mapping(angle, right, down, 1 + scale, shear))
        if self.elastic_pixels:
            drawn = torch.empty(len(strengths), 2, *BENDS, device=strengths.device).uniform_(-1, 1)
            changes = changes._replace(bend=drawn * (self.elastic_pixels * strengths.view(-1, 1, 1, 1)))
        return changes

    def apply(self, images: Tensor, changes: Changes) -> Tensor:
        """Change B×C×H×W bytes into floats from 0 to 1."""
        x = self.kernel(images, changes, self.interpolation) if self.kernel else None
        return changed(images, changes, self.interpolation) if x is None else x


def changed(images: Tensor, changes: Changes, interpolation: str) -> Tensor:
    """B×C×H×W bytes with these changes, as floats from 0 to 1."""
    x = images.float().div_(255)
    if changes.light is not None:
        x = jitter(x, changes.light)
    if changes.saturation is not None:
        x = saturate(x, changes.saturation)
    if changes.hue is not None:
        x = turn_hue(x, changes.hue)
    if changes.mapping is not None:
        x = warp(x, changes.mapping, interpolation, changes.bend)
    return x


def light(brightness: Tensor, contrast: Tensor, contrast_first: Tensor) -> Tensor:
    """For `jitter`: B factors of brightness and of contrast as two lines, 4×B×1×1×1.

    Either is a line, factor × x + offset; an image takes the two in its order, which `contrast_first` says.
    A line's offset is so many times the image's mean.
    """
    stretched = 1 - contrast
    before = torch.where(contrast_first, stretched, 0)
    first = torch.where(contrast_first, contrast, brightness)
    second = torch.where(contrast_first, brightness, contrast)
    return torch.stack([first, before, second, stretched - before]).view(4, -1, 1, 1, 1)


def jitter(x: Tensor, light: Tensor) -> Tensor:
    """Multiply the brightness and stretch the contrast about the mean grey of B×C×H×W images, in their place.

    Between the two and after, values are clipped to 0 … 1.
    """
    first, before, second, after = light.unbind()
    offset = _mean(x).mul_(before)
    x.mul_(first).add_(offset).clamp_(0, 1)
    offset = _mean(x).mul_(after)
    return x.mul_(second).add_(offset).clamp_(0, 1)


def _mean(x: Tensor) -> Tensor:
    """The mean of each image, of three channels as grey as torchvision makes them; B×1×1×1."""
    if x.shape[1] != len(GREY):
        return x.mean(dim=(1, 2, 3), keepdim=True)
    shares = torch.tensor(GREY, device=x.device).view(1, -1, 1, 1)
    return x.mean(dim=(2, 3), keepdim=True).mul_(shares).sum(1, keepdim=True)


def saturate(x: Tensor, saturation: Tensor) -> Tensor:
    """Stretch the colours of B×3×H×W images about their grey, pixel by pixel, in their place; clipped to 0 … 1."""
    grey = (x * torch.tensor(GREY, device=x.device).view(1, -1, 1, 1)).sum(1, keepdim=True)
    return x.mul_(saturation).add_(grey.mul_(1 - saturation)).clamp_(0, 1)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of B×3×H×W images by B×1×1×1 fractions of the circle; brightest and darkest values stay."""
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    most = x.amax(1, keepdim=True)
    chroma = most - x.amin(1, keepdim=True)
    width = torch.where(chroma > 0, chroma, 1)
    by_blue, by_green = 4 + (red - green) / width, 2 + (blue - red) / width
    sixths = torch.where(red == most, (green - blue) / width, torch.where(green == most, by_green, by_blue))
    # Away from the sixth that is a channel's own it falls from `most` between the second and the third.
    away = (torch.tensor((5.0, 3.0, 1.0), device=x.device).view(1, -1, 1, 1) + sixths + 6 * turn) % 6
    return most - chroma * torch.minimum(away, 4 - away).clamp_(0, 1)


def mapping(angle: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """For `warp`: rotate, shear, scale and then shift about the centre, B×2×3.

    `angle` (counter-clockwise) and `shear` (along x) are B degrees, `right` and `down` B pixels,
    `scale` B factors. The same mapping as torchvision's `affine` with angle `-angle` (its angles run clockwise)
    and `rotate` with `angle`. It says where each pixel of the result comes from, both in pixels from the centre.
    """
    radians, slant = angle * (math.pi / 180), torch.tan(shear * (math.pi / 180))
    cos, sin = torch.cos(radians) / scale, torch.sin(radians) / scale
    # First undo the shift, then the rotation and scale, then the shear.
    xx, xy = cos + slant * sin, slant * cos - sin
    rows = [xx, xy, -(xx * right + xy * down), sin, cos, -(sin * right + cos * down)]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(x: Tensor, mapping: Tensor, interpolation: str, bend: Tensor | None = None) -> Tensor:
    """Change the geometry of B×C×H×W images, each by its own mapping; outside is black.

    `bend`, B×2×rows×columns: for points of the result, from corner to corner, by how many pixels of `x` what is
    seen there has come right and down before all that; for the others bicubic curves.
    """
    height, width = x.shape[-2:]
    # affine_grid with all images in one product, and x and y apart, as grid_sample reads them fastest.
    grid = (mapping.view(-1, 3) @ _pixels(height, width, x.device)).view(-1, 2, height, width)
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
