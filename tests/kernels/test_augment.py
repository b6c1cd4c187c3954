"""Augmentation in C beside PyTorch's operations."""

import pytest
import torch
from torch import Tensor

from bantam.augmentation import Augmentation, Changes
from bantam.kernels import augment, compiler


def pair(shape: tuple[int, int, int], **reaches: float) -> tuple[Augmentation, Augmentation]:
    """An augmentation by PyTorch's operations, and the same one in C."""
    ours = augment.in_c(Augmentation(**reaches), shape)  # type: ignore[arg-type]
    assert ours.kernel
    return Augmentation(**reaches), ours  # type: ignore[arg-type]


def images(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8)


AFFINE = {"degrees": 30.0, "pixels": 4.0, "scale": 0.3, "shear_degrees": 20.0}
LIGHT = {"brightness": 0.4, "contrast": 0.4}


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 9, 17), (3, 32, 32)])
@pytest.mark.parametrize("reaches", [{}, AFFINE, LIGHT, AFFINE | LIGHT, AFFINE | {"elastic_pixels": 2.0}])
def test_images_are_changed_as_pytorch_does(shape: tuple[int, int, int], reaches: dict[str, float]) -> None:
    torch.manual_seed(0)
    theirs, ours = pair(shape, **reaches)
    bytes_, changes = images(32, shape), theirs.draw(torch.ones(32))
    torch.testing.assert_close(ours.apply(bytes_, changes), theirs.apply(bytes_, changes), rtol=0, atol=2e-5)
    some = slice(5, 12)
    part = ours.apply(bytes_[some], changes.of(some))
    assert torch.equal(part, ours.apply(bytes_, changes)[some])


def test_what_comes_in_from_far_outside_is_black() -> None:
    _, ours = pair((1, 8, 8))
    far = torch.tensor(
        [[[1.0, 0, x], [0, 1.0, y]] for x, y in ((1e30, 0), (0, -1e30), (float("nan"), 0), (8.5, 0))]
    )
    assert ours.apply(images(4, (1, 8, 8)), Changes(mapping=far)).abs().max() == 0


def test_the_nearest_pixels_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    shape = (1, 28, 28)
    theirs = Augmentation(**(AFFINE | LIGHT), interpolation="nearest")  # type: ignore[arg-type]
    ours = augment.in_c(Augmentation(interpolation="nearest"), shape)
    bytes_, changes = images(64, shape), theirs.draw(torch.ones(64))
    apart = (ours.apply(bytes_, changes) - theirs.apply(bytes_, changes)).abs() > 1e-5
    # A place that lies between two, but for rounding, may fall to either side.
    assert apart.float().mean() < 1e-4


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
@pytest.mark.parametrize("interpolation", augment.INTERPOLATIONS)
def test_a_single_wrong_pixel_is_seen_but_where_another_may_be_as_near(
    interpolation: str, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(augment.Kernel):
        def __call__(self, images: Tensor, changes: Changes, how: str) -> Tensor | None:
            output = super().__call__(images, changes, how)
            if output is not None and how == interpolation and changes.mapping is not None:
                output[0, 0, 5, 5] += wrong
            return output

    sizes = {"CHANNELS": 1, "HIGH": 28, "WIDE": 28, "BFLOAT16": 0}
    library = compiler.library(augment.SOURCE, augment.check, **sizes)
    monkeypatch.setattr(augment, "Kernel", Wrong)
    if interpolation == "nearest":
        augment.check(library, augment.SOURCE, sizes)
    else:
        with pytest.raises(compiler.Unavailable, match="what this compiler makes of augment.c is wrong"):
            augment.check(library, augment.SOURCE, sizes)


@pytest.mark.parametrize("shape", [(1, 256, 256), (1, 16, 4096)])
def test_the_check_allows_for_rounding_far_from_the_middle(shape: tuple[int, int, int]) -> None:
    assert augment.in_c(Augmentation(degrees=1.0), shape).kernel


def test_another_interpolation_and_other_images_are_left_to_pytorch() -> None:
    bicubic = Augmentation(**AFFINE, interpolation="bicubic")  # type: ignore[arg-type]
    _, bilinear = pair((1, 28, 28), **AFFINE)
    assert bilinear.kernel
    bytes_, changes = images(4, (1, 28, 28)), bicubic.draw(torch.ones(4))
    assert bilinear.kernel(bytes_, changes, "bicubic") is None
    assert bilinear.kernel(images(4, (1, 20, 28)), changes, "bilinear") is None
    wanted = bicubic.apply(bytes_, changes)
    assert torch.equal(augment.in_c(bicubic, (1, 28, 28)).apply(bytes_, changes), wanted)


def test_an_augmentation_of_ones_own_stays_as_it_is() -> None:
    class Own(Augmentation):
        pass

    assert augment.in_c(Own(degrees=10.0), (1, 28, 28)).kernel is None
