import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_images import stripes, write_folder

from bantam.images import pictures


def only(tmp_path: Path, picture: Image.Image, channels: int, side: int = 2, name: str = "a.png") -> np.ndarray:
    """What a picture is read as: C×H×W."""
    for part in ("train", "test"):
        shutil.rmtree(tmp_path / part, ignore_errors=True)
        (tmp_path / part / "all").mkdir(parents=True)
        picture.save(tmp_path / part / "all" / name)
    return pictures.read(str(tmp_path), channels, side).train_images[0]


def pixels(*rows: list[object], dtype: type = np.uint8) -> np.ndarray:
    return np.array(rows, dtype)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ("10", "9", "x"))
    (tmp_path / "train" / "9" / ".DS_Store").touch()
    (tmp_path / "train" / "Thumbs.db").touch()
    assert pictures.classes(root) == ("9", "10", "x")
    found = pictures.read(root, 3, 20)
    assert found.train_images.shape == (30, 3, 20, 20)
    assert found.train_images.dtype == np.uint8
    assert found.classes == ("9", "10", "x")
    assert found.test_labels.tolist() == [1] * 10 + [0] * 10 + [2] * 10  # as the folders are read
    images, labels = stripes(30, 3, 20, 3)
    assert np.array_equal(found.train_images[0], images[labels == 0][0].transpose(2, 0, 1))
    assert not found.note


def test_a_name_is_the_same_however_its_letters_are_written(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ("F\u00fcchse", "Hund"))  # one letter; some systems write two
    (tmp_path / "test" / "F\u00fcchse").rename(tmp_path / "test" / "Fu\u0308chse")
    (tmp_path / "train" / "__MACOSX").mkdir()
    assert pictures.classes(root) == ("F\u00fcchse", "Hund")
    assert sorted({*pictures.read(root, 1, 20).test_labels.tolist()}) == [0, 1]
    (tmp_path / "train" / "Fu\u0308chse").mkdir()
    with pytest.raises(ValueError, match="has two folders .*, whose names differ in bytes only: rename one"):
        pictures.classes(root)


def test_pictures_of_another_size_are_resized_and_that_is_said(tmp_path: Path) -> None:
    root = write_folder(tmp_path, side=20)
    Image.new("RGB", (40, 10), "red").save(tmp_path / "test" / "dog" / "wide.png")
    found = pictures.read(root, 1, 28)
    assert found.train_images.shape == (20, 1, 28, 28)
    note = "41 of 41 pictures are resized to 28×28 pixels (data.side), 1 of them stretched: they are not square"
    assert found.note == note
    assert pictures.read(root, 3, 20).note.startswith("1 of 41 pictures are resized to 20×20")


RED = (255, 0, 0)


def test_all_kinds_of_pictures_become_what_is_asked(tmp_path: Path) -> None:
    grey = Image.fromarray(pixels([0, 50], [100, 255]))
    assert only(tmp_path, grey, 1).tolist() == [[[0, 50], [100, 255]]]
    assert only(tmp_path, grey, 3).tolist() == [[[0, 50], [100, 255]]] * 3
    colour = Image.fromarray(pixels([RED, (0, 255, 0)], [(0, 0, 255), (9, 9, 9)]))
    assert only(tmp_path, colour, 3)[:, 0, 0].tolist() == [255, 0, 0]
    assert only(tmp_path, colour, 1).tolist() == [[[76, 150], [29, 9]]]
    palette = colour.quantize(4)
    assert only(tmp_path, palette, 3).tolist() == only(tmp_path, colour, 3).tolist()
    assert only(tmp_path, Image.new("1", (2, 2), 1), 1).tolist() == [[[255, 255], [255, 255]]]
    photograph = only(tmp_path, Image.new("CMYK", (2, 2), (0, 255, 255, 0)), 3, name="a.jpg")
    assert photograph[0].min() > 200 > 60 > photograph[1:].max()


def test_what_is_transparent_is_white_whatever_colour_it_hides(tmp_path: Path) -> None:
    half = pixels([(255, 0, 0, 0), (0, 0, 0, 128)], [(0, 0, 0, 255), (0, 255, 0, 0)])
    for channels in (1, 3):
        found = only(tmp_path, Image.fromarray(half), channels)
        assert found[:, 0, 0].tolist() == [255] * channels
        assert found[:, 0, 1].tolist() == [127] * channels
        assert found[:, 1, 0].tolist() == [0] * channels
        assert found[:, 1, 1].tolist() == [255] * channels
    grey = Image.fromarray(pixels([[0, 0], [0, 255]], [[9, 255], [9, 0]]))
    assert only(tmp_path, grey, 1).tolist() == [[[255, 0], [9, 255]]]
    palette = Image.new("P", (2, 2))
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    assert only(tmp_path, Image.open(tmp_path / "p.png"), 1).min() == 255


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    deep = Image.fromarray(pixels([0, 257], [25700, 65535], dtype=np.uint16))
    assert only(tmp_path, deep, 1).tolist() == [[[0, 1], [100, 255]]]
    assert only(tmp_path, deep, 3)[2].tolist() == [[0, 1], [100, 255]]


def test_a_photograph_stands_as_its_camera_was_held(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise
    picture = Image.fromarray(pixels([0, 0], [255, 255]))
    for part in ("train", "test"):
        (tmp_path / part / "all").mkdir(parents=True)
        picture.save(tmp_path / part / "all" / "a.png", exif=exif)
    assert pictures.read(str(tmp_path), 1, 2).train_images[0].tolist() == [[[255, 0], [255, 0]]]


def test_an_edited_picture_is_read_anew(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    first = pictures.read(root, 1, 20).checksum
    assert pictures.read(root, 1, 20).checksum == first
    Image.new("L", (20, 20), 7).save(tmp_path / "test" / "cat" / "0.png")
    assert pictures.read(root, 1, 20).checksum != first


def unreadable(root: Path) -> str:
    (root / "train" / "cat" / "new.png").write_bytes(b"no picture")
    return r"train/cat/new.png cannot be read as a picture \(.*\): replace or delete it"


def truncated(root: Path) -> str:
    file = root / "test" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:-200])
    return "test/dog/1.png cannot be read as a picture"


def fractions(root: Path) -> str:
    Image.new("F", (20, 20)).save(root / "train" / "cat" / "f.tiff")
    return r"train/cat/f.tiff cannot be read as a picture \(its values are fractions"


def empty_class(root: Path) -> str:
    (root / "train" / "bird").mkdir()
    return "train/bird is empty: put pictures into it, or delete it"


def only_in_test(root: Path) -> str:
    (root / "test" / "bird").mkdir()
    return "test/bird is a class that train lacks"


def text(root: Path) -> str:
    (root / "train" / "cat" / "notes.txt").touch()
    return "train/cat/notes.txt is no picture: in the folder of a class there must be pictures only"


def deeper(root: Path) -> str:
    (root / "train" / "cat" / "more").mkdir()
    return "train/cat/more is a folder"


def beside(root: Path) -> str:
    (root / "test" / "a.png").touch()
    return "test/a.png is in no class"


def no_test(root: Path) -> str:
    shutil.rmtree(root / "test")
    return r"data.root=.* has no folder test: put pictures into test/<class>/ that are not in train"


def no_train(root: Path) -> str:
    shutil.rmtree(root / "train")
    return r"data.root=.* has no folder train: put pictures to train on into train/<class>/"


def no_class(root: Path) -> str:
    shutil.rmtree(root / "train" / "cat")
    shutil.rmtree(root / "train" / "dog")
    return "train has no folder in it"


def empty_test(root: Path) -> str:
    shutil.rmtree(root / "test" / "cat")
    shutil.rmtree(root / "test" / "dog")
    return "test is empty: put pictures into test/<class>/"


def dangling(root: Path) -> str:
    (root / "train" / "cat" / "link.png").symlink_to("nothing.png")
    return r"train/cat/link.png cannot be read as a picture \(No such file or directory\): replace or delete it"


def circular(root: Path) -> str:
    (root / "test" / "cat" / "link.png").symlink_to("link.png")
    return r"test/cat/link.png cannot be read as a picture \(Too many levels .*\): replace or delete it"


def no_text(root: Path) -> str:
    os.mkdir(os.fsencode(root / "train") + b"/\xff")
    return "the name of .*train/.* is no text in UTF-8: rename it"


@pytest.mark.parametrize(
    "damage",
    [
        *(dangling, circular, no_text),
        *(unreadable, truncated, fractions, empty_class, only_in_test, text, deeper, beside),
        *(no_test, no_train, no_class, empty_test),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path: Path, damage: object) -> None:
    root = write_folder(tmp_path)
    message = damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as caught:
        pictures.read(root, 1, 20)
    assert "\n" not in str(caught.value)


def test_pictures_have_one_or_three_channels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.channels is 2: pictures have 1"):
        pictures.read(write_folder(tmp_path), 2, 20)
