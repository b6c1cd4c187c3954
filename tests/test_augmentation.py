import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from bantam import augmentation
from bantam.augmentation import Augmentation, jitter, light, mapping, saturate, turn_hue, warp

NEAREST, BILINEAR = InterpolationMode.NEAREST, InterpolationMode.BILINEAR


@pytest.fixture
def images() -> Tensor:
    """16 smooth images from 0 to 1 that look different from every side."""
    torch.manual_seed(0)
    return tv.gaussian_blur(torch.rand(16, 1, 28, 28), [5, 5]).clamp(0, 1)


def test_changes_fade_and_then_there_are_none() -> None:
    bytes_ = torch.randint(0, 256, (32, 1, 28, 28), dtype=torch.uint8)
    fading, steady = (Augmentation(0.2, 0.2, 20, 2, fade_start=start, fade_end=0.8) for start in (0.4, 0.8))
    plain = bytes_ / 255

    def change(kind: Augmentation, progress: float) -> Tensor:
        torch.manual_seed(0)
        return kind(bytes_, progress)

    assert [fading.strength(at) for at in (0, 0.4, 0.6, 0.8, 1)] == pytest.approx([1, 1, 0.5, 0, 0])
    assert torch.equal(change(fading, 0.3), change(steady, 0.7))
    weaker, full = ((change(kind, 0.6) - plain).abs().mean() for kind in (fading, steady))
    assert 0 < weaker < full
    assert torch.equal(change(fading, 0.8), plain)
    assert torch.equal(change(steady, 0.9), plain)


def test_by_default_changes_never_fade() -> None:
    assert Augmentation().strength(1 - 1e-9) == 1
    with pytest.raises(ValueError, match="fade_start is 0.5 and fade_end is 0.4: they must satisfy"):
        Augmentation(fade_start=0.5, fade_end=0.4)


def numbers(count: int, reach: float) -> Tensor:
    return (torch.rand(count) * 2 - 1) * reach


@pytest.mark.parametrize(("name", "mode"), [("nearest", NEAREST), ("bilinear", BILINEAR)])
def test_rotation_is_torchvisions_image_by_image(images: Tensor, name: str, mode: InterpolationMode) -> None:
    angle, zero, one = numbers(16, 180), torch.zeros(16), torch.ones(16)
    rotated = warp(images, mapping(angle, zero, zero, one, zero), name)
    expected = torch.stack(
        [tv.rotate(x, float(a), interpolation=mode) for x, a in zip(images, angle, strict=True)]
    )
    # A pixel whose source lies exactly between two may fall to either side.
    assert ((rotated - expected).abs() > 1e-3).float().mean() < 1e-3


def test_a_positive_angle_turns_counter_clockwise() -> None:
    image = torch.zeros(1, 1, 28, 28)
    image[..., 13:15, 20:] = 1  # a bar to the right
    zero, one = torch.zeros(1), torch.ones(1)
    turned = warp(image, mapping(torch.tensor([90.0]), zero, zero, one, zero), "nearest")
    assert turned[0, 0, :8, 13:15].mean() == 1  # points up
    assert turned.sum() == image.sum()


def test_affine_is_torchvisions_image_by_image(images: Tensor) -> None:
    angle, shear, scale = numbers(16, 30), numbers(16, 20), 1 + numbers(16, 0.3)
    right, down = numbers(16, 4).round(), numbers(16, 4).round()
    warped = warp(images, mapping(angle, right, down, scale, shear), "bilinear")
    expected = torch.stack(
        [
            # torchvision's affine counts angles clockwise and wants whole pixels.
            tv.affine(
                images[i],
                -float(angle[i]),
                [int(right[i]), int(down[i])],
                float(scale[i]),
                [float(shear[i]), 0.0],
                interpolation=BILINEAR,
            )
            for i in range(16)
        ]
    )
    torch.testing.assert_close(warped, expected, atol=1e-3, rtol=0)


def test_a_shift_moves_right_and_down_and_fills_with_black(images: Tensor) -> None:
    zero, one = torch.zeros(16), torch.ones(16)
    moved = warp(images, mapping(zero, zero + 3, zero + 2, one, zero), "bilinear")
    torch.testing.assert_close(moved[:, :, 2:, 3:], images[:, :, :-2, :-3], atol=1e-4, rtol=0)
    assert moved[:, :, :2].abs().max() < 1e-4
    assert moved[:, :, :, :3].abs().max() < 1e-4


def test_points_that_shift_alike_shift_the_image(images: Tensor) -> None:
    zero, one = torch.zeros(16), torch.ones(16)
    shifts = torch.stack([numbers(16, 3).round(), zero - 2], dim=1).view(16, 2, 1, 1).expand(-1, -1, 5, 5)
    expected = warp(images, mapping(zero, shifts[:, 0, 0, 0], zero - 2, one, zero), "bilinear")
    bent = warp(images, mapping(zero, zero, zero, one, zero), "bilinear", shifts)
    torch.testing.assert_close(bent, expected, atol=1e-4, rtol=0)
    assert (bent - images).abs().max() > 0.1


def test_a_point_that_shifts_bends_the_image_around_it_and_leaves_the_rest(images: Tensor) -> None:
    zero, one = torch.zeros(16), torch.ones(16)
    bend = torch.zeros(16, 2, 5, 5)
    bend[:, 0, 0, 0] = 3  # the upper left corner to the right
    bent = warp(images, mapping(zero, zero, zero, one, zero), "bilinear", bend)
    change = (bent - images).abs()
    assert change[:, :, :4, :4].mean() > 10 * change[:, :, 14:, 14:].mean()
    assert change[:, :, 14:, 14:].max() < 1e-4
    # What the corner shows comes from the left of it, outside the image: black.
    assert bent[:, :, 0, 0].abs().max() < 1e-4


def test_jitter_is_torchvisions_in_either_order(images: Tensor) -> None:
    brightness, contrast = 1 + numbers(16, 0.5), 1 + numbers(16, 0.5)
    contrast_first = torch.arange(16) % 2 == 0
    result = jitter(images.clone(), light(brightness, contrast, contrast_first))
    for i in range(16):
        steps = [
            lambda x, i=i: tv.adjust_brightness(x, float(brightness[i])),
            lambda x, i=i: tv.adjust_contrast(x, float(contrast[i])),
        ]
        expected = images[i]
        for step in reversed(steps) if contrast_first[i] else steps:
            expected = step(expected)
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


def test_jitter_of_colour_is_torchvisions_too() -> None:
    torch.manual_seed(0)
    images = tv.gaussian_blur(torch.rand(16, 3, 32, 32), [5, 5]).clamp(0, 1)
    brightness, contrast = 1 + numbers(16, 0.5), 1 + numbers(16, 0.5)
    result = jitter(images.clone(), light(brightness, contrast, torch.arange(16) % 2 == 0))
    for i in range(16):
        first, second = tv.adjust_brightness, tv.adjust_contrast
        if i % 2 == 0:
            expected = first(second(images[i], float(contrast[i])), float(brightness[i]))
        else:
            expected = second(first(images[i], float(brightness[i])), float(contrast[i]))
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


def test_changes_of_colour_are_torchvisions_image_by_image() -> None:
    torch.manual_seed(0)
    images = tv.gaussian_blur(torch.rand(16, 3, 32, 32), [5, 5]).clamp(0, 1)
    images[:, :, 0] = images[:, :1, 0]  # grey, where no hue is known
    images[:, 1, 1], images[:, 2, 2] = images[:, 0, 1], images[:, 1, 2]  # two colours are the same
    factor, turn = 1 + numbers(16, 1), numbers(16, 0.5)
    saturated = saturate(images.clone(), factor.view(-1, 1, 1, 1))
    turned = turn_hue(images.clone(), turn.view(-1, 1, 1, 1))
    for i in range(16):
        expected = tv.adjust_saturation(images[i], float(factor[i]))
        torch.testing.assert_close(saturated[i], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(turned[i], tv.adjust_hue(images[i], float(turn[i])), atol=1e-5, rtol=0)


def test_colour_is_drawn_by_itself_for_every_image() -> None:
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    torch.manual_seed(1)
    without = Augmentation(0.1, 0.1).draw(torch.ones(64))
    torch.manual_seed(1)
    augment = Augmentation(0.1, 0.1, saturation=0.3, hue=0.1)
    changes = augment.draw(torch.ones(64))
    assert torch.equal(changes.light, without.light)  # type: ignore[arg-type]
    for drawn_, middle, reach in ((changes.saturation, 1, 0.3), (changes.hue, 0, 0.1)):
        assert drawn_ is not None
        assert len((drawn_ - middle).abs().le(reach).nonzero()) == len(drawn_.unique()) == 64
    some = augment.apply(images[8:16], changes.of(slice(8, 16)))
    torch.testing.assert_close(some, augment.apply(images, changes)[8:16], atol=1e-6, rtol=0)


def test_all_channels_of_an_image_are_moved_alike() -> None:
    torch.manual_seed(0)
    grey = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)
    augment = Augmentation(degrees=20, pixels=3, scale=0.2, shear_degrees=5, elastic_pixels=2)
    changes = augment.draw(torch.ones(8))
    moved = augment.apply(grey.expand(-1, 3, -1, -1), changes)
    assert moved.shape == (8, 3, 32, 32)
    torch.testing.assert_close(moved, augment.apply(grey, changes).expand(-1, 3, -1, -1), atol=1e-6, rtol=0)


def test_no_augmentation_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(Augmentation()(images), images / 255)


def drawn(monkeypatch: pytest.MonkeyPatch, augment: Augmentation, count: int) -> dict[str, Tensor]:
    """The numbers that an augmentation draws for `count` images."""
    caught: dict[str, Tensor] = {}

    def catch_mapping(angle: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
        caught.update(angle=angle, right=right, down=down, scale=scale - 1, shear=shear)
        return torch.zeros(count, 2, 3)

    def catch_light(brightness: Tensor, contrast: Tensor, first: Tensor) -> Tensor:
        caught.update(brightness=brightness - 1, contrast=contrast - 1, first=first.float() - 0.5)
        return torch.zeros(4, count, 1, 1, 1)

    monkeypatch.setattr(augmentation, "mapping", catch_mapping)
    monkeypatch.setattr(augmentation, "light", catch_light)
    bend = augment.draw(torch.ones(count)).bend
    if bend is not None:
        assert bend.shape == (count, 2, 5, 5)
        caught.update(corner_right=bend[:, 0, 0, 0], middle_down=bend[:, 1, 2, 2])
    return caught


def test_every_image_gets_its_own_uniform_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    reach = {"brightness": 0.1, "contrast": 0.2, "angle": 7, "right": 2, "down": 2, "scale": 0.3, "shear": 5}
    reach |= {"corner_right": 1.5, "middle_down": 1.5}
    augment = Augmentation(0.1, 0.2, degrees=7, pixels=2, scale=0.3, shear_degrees=5, elastic_pixels=1.5)
    count = 20_000
    caught = drawn(monkeypatch, augment, count)
    for name, limit in reach.items():
        values = caught[name].double() / limit
        assert values.abs().max() <= 1 + 1e-4, name
        assert len(values.unique()) > 0.9 * count or name in ("brightness", "contrast"), name
        # Uniform on ±1: mean 0, variance 1/3, and a quarter of the images in every quarter.
        assert abs(values.mean()) < 5 * (1 / 3 / count) ** 0.5, name
        assert abs(values.var() - 1 / 3) < 0.02, name
        quarters = torch.histc(values.float(), 4, -1, 1) / count
        assert (quarters - 0.25).abs().max() < 0.02, name
    assert abs(caught["first"].mean()) < 0.02
    pairs = torch.corrcoef(torch.stack([caught[name] for name in reach]))
    assert (pairs - torch.eye(len(reach))).abs().max() < 0.05


def test_what_is_turned_off_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not drawn(monkeypatch, Augmentation(), 5)
    assert set(drawn(monkeypatch, Augmentation(brightness=0.1), 5)) == {"brightness", "contrast", "first"}
    only = drawn(monkeypatch, Augmentation(elastic_pixels=1.5), 5)
    assert only["corner_right"].any()
    assert not any(only[name].any() for name in ("angle", "right", "down", "scale", "shear"))


def test_the_same_seed_draws_the_same_images() -> None:
    images = torch.randint(0, 256, (32, 1, 28, 28), dtype=torch.uint8)
    augment = Augmentation(0.1, 0.1, 7, interpolation="nearest")
    torch.manual_seed(3)
    first = augment(images)
    second = augment(images)
    torch.manual_seed(3)
    assert torch.equal(first, augment(images))
    assert not torch.equal(first, second)
