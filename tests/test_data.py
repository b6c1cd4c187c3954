import pytest
import torch
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
