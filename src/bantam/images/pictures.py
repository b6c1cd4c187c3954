"""Images of one's own as pictures in folders, `train/<class>/*.png` and `test/<class>/*.png`."""

import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bantam.images.arrays import PARTS, Arrays, checksum

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")

IGNORED = ("Thumbs.db", "desktop.ini", "__MACOSX")
"""What a desktop leaves in a folder, beside hidden files."""

MODES = {1: "L", 3: "RGB"}
"""What Pillow calls pictures of so many channels."""

Listing = tuple[tuple[str, str, str, int, int], ...]
"""Part, class and path of every picture, with the time and the size that tell edited ones apart."""


def classes(root: str) -> tuple[str, ...]:
    """The names of the classes: the folders in `train`, numbers in their order. Raises ValueError without any."""
    for part in PARTS:
        if not (Path(root) / part).is_dir():
            remedy = (
                f"put pictures to train on into {part}/<class>/"
                if part == "train"
                else f"put pictures into {part}/<class>/ that are not in train"
            )
            raise ValueError(f"data.root={root} has no folder {part}: {remedy}")
    names = [_called(entry) for entry in _entries(Path(root) / "train") if entry.is_dir()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{root}/train has two folders {twice}, whose names differ in bytes only: rename one")
    if not names:
        raise ValueError(f"{root}/train has no folder in it: put the pictures of each class into one of its name")
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)))


def _called(folder: Path) -> str:
    """The name of a class: some systems write ü as one letter, some as u and two dots, which look the same."""
    return unicodedata.normalize("NFC", folder.name)


def read(root: str, channels: int, side: int) -> Arrays:
    """Read all pictures, as many channels and as large as asked; checks what is where.

    Those of another size are resized, and those that are no squares stretched; transparent ones are laid on white.
    Raises ValueError, with the file or folder and what helps, for a picture that cannot be read, a class without
    pictures or one that is not in `train`, and whatever else lies there.
    """
    if channels not in MODES:
        raise ValueError(f"data.channels is {channels}: pictures have 1 (grey) or 3 (red, green, blue)")
    names = classes(root)
    return _read(root, channels, side, names, tuple(_listed(Path(root), names)))


def load(path: str, channels: int, remedy: str = "replace or delete it") -> Image.Image:
    """A picture of 1 or 3 channels, transparent parts on white; the first of several in a file.

    Raises ValueError, with the `remedy`, where it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                values = np.asarray(picture).astype(np.float64)
                if values.min() < 0 or values.max() >= 2**16:
                    raise ValueError("its values do not go from 0 to 65,535")
                picture = Image.fromarray((values / 257).round().astype(np.uint8))
            elif picture.mode == "F":
                raise ValueError("its values are fractions, not bytes")
            elif picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert(MODES[channels])
    except Exception as error:  # whatever a damaged file leads to
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is no picture that is known"
        raise ValueError(f"{path} cannot be read as a picture ({reason}): {remedy}") from error


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, hidden files aside. Raises ValueError for what has no name in UTF-8."""
    try:
        found = sorted(entry for entry in folder.iterdir() if entry.name[0] != "." and entry.name not in IGNORED)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}): correct what may be read there") from error
    for entry in found:
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(entry).decode(errors="replace")
            raise ValueError(f"the name of {shown} is no text in UTF-8: rename it") from error
    return found


def _listed(root: Path, names: tuple[str, ...]) -> Iterator[tuple[str, str, str, int, int]]:
    """Each picture, with what tells it from an edited one."""
    for part in PARTS:
        for folder in _entries(root / part):
            if not folder.is_dir():
                raise ValueError(f"{folder} is in no class: put it into the folder of one, or delete it")
            if _called(folder) not in names:
                raise ValueError(f"{folder} is a class that train lacks: add pictures to train on, or delete it")
            files = _entries(folder)
            if not files:
                raise ValueError(f"{folder} is empty: put pictures into it, or delete it")
            for file in files:
                if file.suffix.lower() not in SUFFIXES:
                    what = "a folder" if file.is_dir() else "no picture"
                    raise ValueError(
                        f"{file} is {what}: in the folder of a class there must be pictures only "
                        f"({', '.join(SUFFIXES)})"
                    )
                try:
                    status = file.stat()
                except OSError as error:  # a link that leads nowhere
                    raise ValueError(
                        f"{file} cannot be read as a picture ({error.strerror}): replace or delete it"
                    ) from error
                yield part, _called(folder), str(file), status.st_mtime_ns, status.st_size
        if not any(folder.is_dir() for folder in _entries(root / part)):
            raise ValueError(f"{root / part} is empty: put pictures into {part}/<class>/")


@functools.lru_cache(maxsize=1)
def _read(root: str, channels: int, side: int, names: tuple[str, ...], listed: Listing) -> Arrays:
    """As `read`; kept, since a run checks its data before its folder exists."""
    number, changes = {name: i for i, name in enumerate(names)}, Counter[str]()

    def part(which: str) -> tuple[np.ndarray, np.ndarray]:
        pictures = [(name, path) for one, name, path, *_ in listed if one == which]
        images = np.empty((len(pictures), channels, side, side), np.uint8)
        for i, (_, path) in enumerate(pictures):
            picture = load(path, channels)
            if picture.size != (side, side):
                changes["resized"] += 1
                changes["stretched"] += picture.width != picture.height
                picture = picture.resize((side, side), Image.Resampling.BILINEAR)
            images[i] = np.asarray(picture).reshape(side, side, channels).transpose(2, 0, 1)
        return images, np.array([number[name] for name, _ in pictures], np.int64)

    every = (*part("train"), *part("test"))
    note = ""
    if changes["resized"]:
        note = (
            f"{changes['resized']:,} of {len(listed):,} pictures are resized to {side}×{side} pixels (data.side)"
        )
        note += f", {changes['stretched']:,} of them stretched: they are not square" * bool(changes["stretched"])
    return Arrays(*every, names, checksum(every), note)
