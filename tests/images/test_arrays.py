import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_images import arrays as made
from small_images import write_npz

from bantam.images import arrays


class Bomb:
    """Says when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


def test_shape_and_arrays_of_colour_images(tmp_path: Path) -> None:
    root = write_npz(tmp_path / "my.npz")
    assert arrays.shape(root) == (3, 20, 3)
    found = arrays.read(root, 3)
    assert found.train_images.shape == (60, 3, 20, 20)
    assert found.test_images.shape == (30, 3, 20, 20)
    assert found.train_images.dtype == np.uint8
    assert np.array_equal(found.train_images[5, 1], made()["train_images"][5, :, :, 1])
    assert found.train_labels.tolist() == [0, 1, 2] * 20
    assert found.classes == ("0", "1", "2")


def test_grey_images_names_and_labels_as_columns(tmp_path: Path) -> None:
    changes = made(channels=1)
    changes |= {name: changes[name].reshape(-1, 1).astype(np.uint8) for name in ("train_labels", "test_labels")}
    root = write_npz(tmp_path / "my.npz", **changes, classes=np.array(["ant", "bee", "cat", "dog"]))
    assert arrays.shape(root) == (1, 20, 4)  # of the last no image is there
    found = arrays.read(root, 4)
    assert found.train_images.shape == (60, 1, 20, 20)
    assert found.classes == ("ant", "bee", "cat", "dog")
    assert found.train_labels.dtype == np.int64
    encoded = np.char.encode(np.array(["ant", "bee", "cät"]), "utf-8")
    as_bytes = write_npz(tmp_path / "bytes.npz", **changes, classes=encoded)
    assert arrays.read(as_bytes, 3).classes == ("ant", "bee", "cät")


def test_the_checksum_is_of_what_the_arrays_hold(tmp_path: Path) -> None:
    root = write_npz(tmp_path / "my.npz")
    np.savez(tmp_path / "plain.npz", **made())
    first = arrays.read(root, 3).checksum
    assert arrays.read(str(tmp_path / "plain.npz"), 3).checksum == first
    images = made()["test_images"]
    images[0, 0, 0, 0] += 1
    write_npz(tmp_path / "my.npz", test_images=images)  # a file that was edited is read anew
    assert arrays.read(root, 3).checksum != first


def wrong(images: Any = None, labels: Any = None, **changes: Any) -> dict[str, Any]:
    if images is not None:
        changes["train_images"] = images
    if labels is not None:
        changes["train_labels"] = labels
    return changes


IMAGES, LABELS = made()["train_images"], made()["train_labels"]

WRONG = [
    (
        wrong(IMAGES / 255),
        r"train_images in .*my.npz is 60×20×20×3 of float64: images must be bytes from 0 to 255 ",
    ),
    (wrong(IMAGES / 255), r"save \(255 \* train_images\).round\(\).astype\(numpy.uint8\)"),
    (wrong(IMAGES.astype(float)), r"save train_images.round\(\).astype\(numpy.uint8\)"),
    (wrong(IMAGES.astype(int)), r"int64: images must be bytes .*: save train_images.astype\(numpy.uint8\)"),
    (wrong(IMAGES > 9), r"bool: .*: save \(255 \* train_images\).astype\(numpy.uint8\)"),
    (
        wrong(IMAGES.astype(np.uint16) * 256),
        "uint16: .*: it goes from 0 to 6.*, which astype would cut off: scale",
    ),
    (wrong(-IMAGES.astype(np.int16)), "int16: .*: it goes from -.* to 0, which astype would cut off: scale"),
    (wrong(IMAGES * 300.0), "float64: .*: it goes from 0 to .* scale it to 0 to 255 first"),
    (wrong(IMAGES * np.nan), "float64: .*: it goes from nan to nan"),
    (wrong(test_images=IMAGES[:30].astype("S")), "test_images in .* save an array of numbers"),
    (wrong(IMAGES[:, :, :, 0].reshape(60, -1)), "train_images in .* is 60×400 of uint8: images must be N×H×W"),
    (wrong(IMAGES.transpose(0, 3, 1, 2)), r"60×3×20×20 of uint8: images must be square.*transpose\(0, 2, 3, 1\)"),
    (wrong(IMAGES[:, :15]), "60×15×20×3 of uint8: images must be square, .*: crop or pad them"),
    (wrong(IMAGES[:0], LABELS[:0]), "train_images in .* holds no image"),
    (wrong(IMAGES[:50]), "has 50 train_images, but 60 train_labels: save one label an image"),
    (wrong(test_images=IMAGES[:30, :15, :15]), "train_images in .* are 20×20×3, but test_images 15×15×3"),
    (wrong(test_images=None), "has no array test_images .*the images to test on must be others"),
    (wrong(train_images=None, x_train=IMAGES), r"no array train_images \(it has .*x_train.*docs/data.md"),
    (wrong(train_labels=None), "has no array train_labels"),
    (wrong(labels=LABELS - 1), "train_labels in .* has -1: labels must count from 0"),
    (wrong(labels=LABELS.astype(float)), r"train_labels in .* float64: .*: save train_labels.astype\(int\)"),
    (
        wrong(labels=LABELS.astype(str)),
        "train_labels in .* labels must be whole numbers from 0: number the classes",
    ),
    (wrong(labels=LABELS[None]), r"train_labels in .* is 1×60 of .*: save train_labels.reshape\(-1\)"),
    (wrong(labels=LABELS + 0.5), r"train_labels in .* is 60 of float64: .*: number the classes from 0"),
    (wrong(labels=np.eye(3)[LABELS]), r"train_labels in .* is 60×3 of float64: .*: save train_labels.argmax\(1\)"),
    (wrong(labels=LABELS[:, None, None]), "train_labels in .* must have one whole number for each image"),
    (wrong(test_labels=np.full(30, 7)), "test_labels in .* has 7, but with 3 classes labels go from 0 to 2"),
    (
        wrong(classes=np.array(["a", "b"])),
        "train_labels in .* has 2, but with the 2 names in classes labels go from",
    ),
    (wrong(classes=np.array(["a", "b", "a"])), "classes in .* has a twice"),
    (
        wrong(classes=np.array([b"a", b"\xff", b"c"])),
        "classes in .* is no text in UTF-8 .*: save the names as text",
    ),
    (
        wrong(classes=np.array(["a", "\ud800", "c"])),
        "classes in .* is no text in UTF-8 .*: save the names as text",
    ),
    (wrong(classes=np.array(["a", "", "c"])), "classes in .* has a name without letters: give every class a"),
    (wrong(classes=np.arange(3)), "classes in .* is 3 of int64: it must have a name for each class"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_is_wrong_is_said_with_the_name_of_the_array(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    root = write_npz(tmp_path / "my.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        arrays.read(root, arrays.shape(root).classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_labels", "classes"])
def test_nothing_is_unpickled(tmp_path: Path, name: str) -> None:
    objects = np.empty(60, object)
    objects[:] = [Bomb() for _ in range(60)]
    root = write_npz(tmp_path / "my.npz", **{name: objects})
    with pytest.raises(ValueError, match=f"{name} in .* is 60 of Python objects"):
        arrays.read(root, arrays.shape(root).classes)


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root=.*none.npz does not exist: give the .npz file"):
        arrays.shape(str(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match=r"data.root=.* is a folder: give the .npz file"):
        arrays.shape(str(tmp_path))
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("no arrays")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as packed:
        packed.writestr("train_images.npy", b"no array")
    for name in ("one.npy", "text.npz", "other.npz"):
        with pytest.raises(
            ValueError, match=rf"data.root=.*{name} is no .npz file \(.*\): save one with numpy.savez"
        ):
            arrays.shape(str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    with pytest.raises(ValueError, match=r"has no array train_images \(it has none\)"):
        arrays.shape(str(tmp_path / "empty.npz"))


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    file = tmp_path / "my.npz"
    np.savez(file, **made())
    content = bytearray(file.read_bytes())
    start = re.search(rb"test_images.npy", content)
    assert start
    content[start.end() + 3000] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match="test_images in .* cannot be read .*: save the file again"):
        arrays.read(str(file), 3)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is no .npz file"):
        arrays.shape(str(file))


def test_classes_without_an_image_to_train_on_are_named(tmp_path: Path) -> None:
    root = write_npz(tmp_path / "my.npz")
    assert not arrays.read(root, 3).note
    root = write_npz(tmp_path / "from1.npz", train_labels=LABELS + 1)
    note = "train_labels in from1.npz has none of 1 of the 4 classes (0): a network cannot learn them"
    assert arrays.read(root, 4).note == note
    assert "none of 9 of the 12 classes (0, 4, 5, 6, 7 …)" in arrays.read(root, 12).note
