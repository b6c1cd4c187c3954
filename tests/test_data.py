from pathlib import Path

import numpy as np
import pytest
import torch
from small_images import write_folder, write_npz
from torch import Tensor

from bantam import data

MEAN_STD = (0.1307, 0.3081)


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def test_the_real_mnist(mnist_root: str) -> None:
    images = data.torchvision_dataset("MNIST", mnist_root, 0, 1, *MEAN_STD)
    assert images.train_images.shape == (60_000, 1, 28, 28)
    assert images.train_images.dtype == torch.uint8
    assert images.held_out_images.shape == (10_000, 1, 28, 28)
    assert images.split == "test"
    assert not images.not_judged
    assert images.classes == tuple("0123456789")
    pixels = images.train_images.float() / 255
    assert pixels.mean() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std() == pytest.approx(0.3081, abs=1e-4)


def test_mnist5k_is_stratified_and_its_split_does_not_depend_on_the_seed() -> None:
    images = data.mnist5k(0, 1, *MEAN_STD)
    assert images.train_images.shape == (4000, 1, 28, 28)
    assert images.held_out_images.shape == (1000, 1, 28, 28)
    assert images.train_labels.bincount().tolist() == [400] * 10
    assert images.held_out_labels.bincount().tolist() == [100] * 10
    assert "mnist5k" in images.not_judged
    assert same(images.held_out_images, data.mnist5k(0, 2, *MEAN_STD).held_out_images)


def test_mnist5k_is_part_of_mnists_training_images(mnist_root: str) -> None:
    whole = data.torchvision_dataset("MNIST", mnist_root, 0, 1, *MEAN_STD)
    known = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(whole.train_images, whole.train_labels, strict=True)
    }
    few = data.mnist5k(0, 1, *MEAN_STD)
    assert all(
        known[image.numpy().tobytes()] == int(label)
        for image, label in zip(few.held_out_images, few.held_out_labels, strict=True)
    )


def test_validation_images_leave_training_and_replace_the_test_images() -> None:
    whole = data.mnist5k(0, 1, *MEAN_STD)
    images = data.mnist5k(500, 1, *MEAN_STD)
    assert images.split == "validation"
    assert len(images.train_labels) == 3500
    assert images.held_out_labels.bincount().tolist() == [50] * 10
    rows = {image.numpy().tobytes() for image in whole.train_images}
    kept = [image.numpy().tobytes() for image in images.train_images]
    held_out = [image.numpy().tobytes() for image in images.held_out_images]
    assert set(kept) | set(held_out) == rows
    assert not set(kept) & set(held_out)


def test_the_seed_decides_which_images_are_held_out() -> None:
    first, again, other = (data.mnist5k(500, seed, *MEAN_STD).held_out_images for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("validation", [5, 3995, 5000])
def test_a_validation_set_that_cannot_be_is_refused(validation: int) -> None:
    with pytest.raises(ValueError, match="data.validation is .* from 10 to 3,990"):
        data.mnist5k(validation, 1, *MEAN_STD)


def own(tmp_path: Path, validation: int = 0, mean: data.Numbers = None, std: data.Numbers = None) -> data.Data:
    return data.npz(write_npz(tmp_path / "my.npz"), 3, 20, 3, validation, 1, mean, std)


def test_mean_and_deviation_are_those_of_the_images_that_are_trained_on(tmp_path: Path) -> None:
    for validation in (0, 15):
        images = own(tmp_path, validation)
        pixels = images.train_images.double() / 255
        assert len(images.train_labels) == 60 - validation
        assert images.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
        assert images.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-12)
        normal = images.normalise(images.train_images.float() / 255)
        assert normal.mean((0, 2, 3)).abs().max() < 1e-5
        assert (normal.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert own(tmp_path).mean != own(tmp_path, 15).mean
    assert own(tmp_path).checksum == own(tmp_path, 15).checksum


def test_numbers_that_are_given_are_kept(tmp_path: Path) -> None:
    assert own(tmp_path, mean=0.5, std=[0.1, 0.2, 0.3]).mean == (0.5,)
    images = own(tmp_path, mean=0.5, std=[0.1, 0.2, 0.3])
    assert images.normalise(torch.full((1, 3, 2, 2), 0.6))[0, :, 0, 0].tolist() == pytest.approx([1, 0.5, 1 / 3])
    with pytest.raises(ValueError, match="data.mean has 2 numbers, but my.npz has images of 3 channels"):
        own(tmp_path, mean=[0.1, 0.2])


def test_a_channel_without_contrast_is_refused_unless_its_deviation_is_given(tmp_path: Path) -> None:
    root = write_npz(tmp_path / "my.npz", train_images=np.full((60, 20, 20, 3), 9, np.uint8))
    with pytest.raises(ValueError, match="channel 1 of my.npz has the same value in every pixel .* data.std=1"):
        data.npz(root, 3, 20, 3, 0, 1, None, None)
    assert data.npz(root, 3, 20, 3, 0, 1, 0.0, 1.0).std == (1,)
    alone = data.npz(root, 3, 20, 3, 0, 1, None, 1.0)  # as the message says
    assert (alone.std, alone.mean) == ((1,), pytest.approx((9 / 255,) * 3))


def test_images_stay_bytes(tmp_path: Path) -> None:
    images = own(tmp_path)
    assert images.train_images.untyped_storage().nbytes() == 60 * 3 * 20 * 20
    assert images.shape == (3, 20, 20)


def test_a_class_with_a_single_image_cannot_be_held_out(tmp_path: Path) -> None:
    labels = np.zeros(60, int)
    labels[:2] = 1, 2
    root = write_npz(tmp_path / "my.npz", train_labels=labels)
    with pytest.raises(
        ValueError, match="data.validation is 9, but my.npz has a single training image of the class 1"
    ):
        data.npz(root, 3, 20, 3, 9, 1, None, None)


def test_a_folder_of_pictures_brings_its_classes_and_what_was_done_to_them(tmp_path: Path) -> None:
    images = data.folder(write_folder(tmp_path / "pets"), 1, 28, 2, 4, 1, None, None)
    assert (images.name, images.classes, images.shape) == ("pets", ("cat", "dog"), (1, 28, 28))
    assert (len(images.train_labels), len(images.held_out_labels), images.split) == (16, 4, "validation")
    assert images.note.startswith("40 of 40 pictures are resized to 28×28 pixels")
