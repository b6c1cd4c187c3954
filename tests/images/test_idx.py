import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import idx as packed
from torchvision.datasets.mnist import read_image_file, read_label_file

from bantam.images import downloads, idx


def test_arrays_are_those_that_torchvision_reads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(packed(random.integers(0, 256, (5, 4, 3))))
    labels.write_bytes(packed(np.arange(5)))
    assert torch.equal(idx.read(images, 3), read_image_file(str(images)))
    assert torch.equal(idx.read(labels, 1), read_label_file(str(labels)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a, no array",
        packed(np.zeros((2, 2, 2)))[:-1],
        packed(np.zeros((2, 2, 2))) + b"0",
        packed(np.zeros((2, 2, 2)))[:9],
        packed(np.zeros(8)),
        bytes([0, 0, 0x0D, 3]) + packed(np.zeros((2, 2, 2)))[4:],  # floats
    ],
    ids=["empty", "foreign", "too short", "too long", "cut in its axes", "one axis", "other numbers"],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(ValueError, match="does not begin|buffer|reshape"):
        idx.read(tmp_path / "images", 3)


@pytest.mark.whole
def test_mnist_is_read_without_torchvision(tmp_path: Path) -> None:
    """Importing it takes as long as all else before the first step."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digests = {}
    for name in downloads.MNIST_SHA256:
        content = packed(np.full((10, 28, 28), 7) if "images" in name else np.arange(10))
        (raw / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    code = f"""
import sys
from bantam import data
from bantam.images import downloads
downloads.MNIST_SHA256.update({digests})
read = data.auto({str(tmp_path)!r}, 0, 1, 0.1307, 0.3081)
assert read.name == "MNIST" and read.classes == tuple("0123456789")
assert read.train_images.shape == (10, 1, 28, 28) and int(read.train_images.sum()) == 10 * 28 * 28 * 7
assert read.held_out_labels.tolist() == list(range(10))
assert "torchvision" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
