"""Images of one's own in an .npz file: which arrays it must have, and what is wrong with others.

Only NumPy is imported: the shape of the images is needed before PyTorch is.
"""

import functools
import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

PARTS = ("train", "test")

LAYOUT = "N×H×W or, with channels, N×H×W×C"


class Shape(NamedTuple):
    """What a network must know of images."""

    channels: int
    side: int
    classes: int

    def __str__(self) -> str:
        return f"{self.channels}×{self.side}×{self.side} in {self.classes} classes"


class Arrays(NamedTuple):
    """Images as N×C×H×W bytes, labels as N numbers that count from 0."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    checksum: str
    """SHA-256 over all images and labels."""
    note: str = ""
    """What has been done to the images, in a sentence; empty where nothing."""


class Header(NamedTuple):
    """What is known of an array before it is loaded."""

    shape: tuple[int, ...]
    dtype: np.dtype


def checksum(arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 over arrays and their shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(repr((array.shape, array.dtype.str)).encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def shape(root: str) -> Shape:
    """Channels, side and number of classes, from the heads of the arrays and the labels alone.

    Raises ValueError, with the array, what it is and what helps, for a file that has no such arrays.
    """
    heads = _headers(root)
    for part in PARTS:
        _check_images(root, f"{part}_images", heads)
    _, side, _, *channels = heads["train_images"].shape
    named = len(_names(root, heads)) if "classes" in heads else None
    count = named or int(_labels(root, "train_labels", heads).max()) + 1
    return Shape(channels[0] if channels else 1, side, count)


def has_names(root: str) -> bool:
    """Whether the file says what its classes are called, and so how many there are."""
    return "classes" in _headers(root)


def read(root: str, classes: int) -> Arrays:
    """Load and check all arrays; labels must be below the number of `classes`.

    Raises ValueError, with the array, what it is and what helps, for whatever is wrong.
    """
    status = Path(root).stat() if Path(root).is_file() else None
    return _read(root, classes, (status.st_mtime_ns, status.st_size) if status else None)


@functools.lru_cache(maxsize=1)
def _read(root: str, classes: int, version: Any) -> Arrays:
    """As `read`; kept, since a run checks its data before its folder exists.

    `version` tells edited files apart.
    """
    heads = _headers(root)
    names = _names(root, heads) if "classes" in heads else tuple(map(str, range(classes)))
    train_images, train_labels = _part(root, "train", heads, names)
    test_images, test_labels = _part(root, "test", heads, names)
    if train_images.shape[1:] != test_images.shape[1:]:
        one, other = ("×".join(map(str, heads[f"{part}_images"].shape[1:])) for part in PARTS)
        raise ValueError(f"train_images in {root} are {one}, but test_images {other}: make them the same")
    every = (train_images, train_labels, test_images, test_labels)
    return Arrays(*every, names, checksum(every), _untrained(root, names, train_labels))


def _untrained(root: str, names: tuple[str, ...], labels: np.ndarray) -> str:
    """A sentence about the classes that no image is there to train on; empty where there is none."""
    without = [names[i] for i in np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)]
    if not without:
        return ""
    shown = ", ".join(without[:5]) + " …" * (len(without) > 5)
    return (
        f"train_labels in {Path(root).name} has none of {len(without)} of the {len(names)} classes ({shown}): "
        "a network cannot learn them"
    )


def _part(root: str, part: str, heads: dict[str, Header], names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images, N×C×H×W, and labels to train on or to test with."""
    _check_images(root, f"{part}_images", heads)
    images, labels = _load(root, f"{part}_images"), _labels(root, f"{part}_labels", heads)
    if len(images) != len(labels):
        raise ValueError(
            f"{root} has {len(images):,} {part}_images, but {len(labels):,} {part}_labels: save one label an image"
        )
    if labels.max() >= len(names):
        of = f"the {len(names)} names in classes" if "classes" in heads else f"{len(names)} classes"
        remedy = "correct them or add names" if "classes" in heads else "correct them, or set data.classes"
        raise ValueError(
            f"{part}_labels in {root} has {labels.max()}, but with {of} labels go from 0 to {len(names) - 1}: "
            + remedy
        )
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), labels


def _headers(root: str) -> dict[str, Header]:
    """Shape and type of each array in a file. Raises ValueError where it is no .npz file or lacks an array."""
    file = Path(root)
    if not file.is_file():
        reason = "is a folder" if file.is_dir() else "does not exist"
        raise ValueError(f"data.root={root} {reason}: give the .npz file with the images")
    try:
        with zipfile.ZipFile(file) as packed:
            found = {
                name.removesuffix(".npy"): _header(packed.open(name))
                for name in packed.namelist()
                if name.endswith(".npy")
            }
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise ValueError(f"data.root={root} is no .npz file ({error}): save one with numpy.savez") from error
    wanted = [f"{part}_{what}" for part in PARTS for what in ("images", "labels")]
    missing = [name for name in wanted if name not in found]
    if missing:
        remedy = (
            "the images to test on must be others than those to train on"
            if missing[0].startswith("test")
            else "see docs/data.md"
        )
        has = ", ".join(found) or "none"
        raise ValueError(f"{root} has no array {missing[0]} (it has {has}): save it under that name; {remedy}")
    return found


def _header(stream: IO[bytes]) -> Header:
    with stream:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        found, _, dtype = reader(stream)
    return Header(found, dtype)


def _load(root: str, name: str) -> np.ndarray:
    """An array; never one of Python's objects, which could run code."""
    try:
        with np.load(root, allow_pickle=False) as file:
            return np.asarray(file[name])
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise ValueError(f"{name} in {root} cannot be read ({error}): save the file again") from error


def _check_images(root: str, name: str, heads: dict[str, Header]) -> None:
    """Refuse images that are no bytes or no squares."""
    sizes, dtype = heads[name]
    is_ = f"{name} in {root} is {_described(heads[name])}"
    if dtype != np.uint8:
        remedy = _to_bytes(name, _load(root, name)) if dtype.kind in "fiub" else "save an array of numbers"
        raise ValueError(f"{is_}: images must be bytes from 0 to 255 (uint8): {remedy}")
    if len(sizes) not in (3, 4):
        raise ValueError(f"{is_}: images must be {LAYOUT}")
    if not all(sizes):
        raise ValueError(f"{is_}, which holds no image: save some")
    if sizes[1] != sizes[2]:
        last = len(sizes) == 4 and sizes[2] == sizes[3]
        remedy = f"save {name}.transpose(0, 2, 3, 1)" if last else "crop or pad them"
        raise ValueError(f"{is_}: images must be square, {LAYOUT}: {remedy}")


def _to_bytes(name: str, values: np.ndarray) -> str:
    """What makes bytes of other numbers without changing what they show."""
    least, most = (values.min(), values.max()) if values.size else (0, 0)
    if not (least >= 0 and most <= 255):  # NaN is neither
        return f"it goes from {least:g} to {most:g}, which astype would cut off: scale it to 0 to 255 first"
    what = f"(255 * {name})" if values.dtype.kind in "fb" and most <= 1 else name
    return f"save {what}{'.round()' * (values.dtype.kind == 'f')}.astype(numpy.uint8)"


def _labels(root: str, name: str, heads: dict[str, Header]) -> np.ndarray:
    """Labels as N numbers; those of N×1 are taken as such."""
    sizes, dtype = heads[name]
    is_ = f"{name} in {root} is {_described(heads[name])}"
    if len(sizes) == 2 and sizes[1] == 1:
        sizes = sizes[:1]
    if len(sizes) != 1:
        remedy = f": save {name}.{'reshape(-1)' if sizes[0] == 1 else 'argmax(1)'}" if len(sizes) == 2 else ""
        raise ValueError(f"{is_}: it must have one whole number for each image{remedy}")
    if dtype.kind not in "iu":
        whole = dtype.kind == "b" or (dtype.kind == "f" and bool((_load(root, name) % 1 == 0).all()))
        remedy = f"save {name}.astype(int)" if whole else "number the classes from 0"
        raise ValueError(f"{is_}: labels must be whole numbers from 0: {remedy}")
    if not sizes[0]:
        raise ValueError(f"{is_}, which holds no label: save one for each image")
    labels = _load(root, name).reshape(-1)
    if labels.min() < 0 or labels.max() >= 2**31:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{name} in {root} has {wrong}: labels must count from 0: correct them")
    return labels.astype(np.int64)


def _names(root: str, heads: dict[str, Header]) -> tuple[str, ...]:
    """What the classes are called."""
    sizes, dtype = heads["classes"]
    if dtype.kind not in "US" or len(sizes) != 1 or not sizes[0]:
        raise ValueError(
            f"classes in {root} is {_described(heads['classes'])}: it must have a name for each class, as "
            'numpy.array(["cat", "dog"])'
        )
    found = _load(root, "classes")
    try:
        names = tuple(map(str, (np.char.decode(found, "utf-8") if dtype.kind == "S" else found).tolist()))
        "".join(names).encode()
    except UnicodeError as error:
        raise ValueError(f"classes in {root} is no text in UTF-8 ({error}): save the names as text") from error
    if not all(names):
        raise ValueError(f"classes in {root} has a name without letters: give every class a name of its own")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"classes in {root} has {twice} twice: give every class a name of its own")
    return names


def _described(header: Header) -> str:
    """An array in words: 100×28×28 of uint8."""
    sizes = "×".join(map(str, header.shape)) or "a single value"
    return f"{sizes} of {'Python objects' if header.dtype.hasobject else header.dtype}"
