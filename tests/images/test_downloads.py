import functools
import gzip
import hashlib
import http.server
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from small_data import idx

from bantam import data
from bantam.images import downloads

MEAN_STD = (0.1307, 0.3081)
FILES = tuple(downloads.MNIST_SHA256)


def little_dataset() -> dict[str, bytes]:
    """Four files of 40 training and 20 test images."""
    random = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": idx(random.integers(0, 256, (40, 28, 28))),
        "train-labels-idx1-ubyte": idx(np.arange(40) % 10),
        "t10k-images-idx3-ubyte": idx(random.integers(0, 256, (20, 28, 28))),
        "t10k-labels-idx1-ubyte": idx(np.arange(20) % 10),
    }


@pytest.fixture(autouse=True)
def fresh_cache() -> None:
    downloads.read.cache_clear()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server of a little Fashion-MNIST on this machine; yields the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    resources = []
    for name, content in little_dataset().items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            torchvision.datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"]
        )
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
        yield folder
        server.shutdown()


def fashion(root: Path, validation: int = 0) -> data.Data:
    return data.torchvision_dataset("FashionMNIST", str(root), validation, 1, *MEAN_STD)


def test_download_verify_and_read_again_without_the_server(server: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    images = fashion(root)
    assert images.name == "FashionMNIST"
    assert images.classes[0] == "T-shirt/top"
    assert len(images.train_labels) == 40
    assert len(images.held_out_labels) == 20
    assert sorted(file.name for file in (root / "FashionMNIST" / "raw").iterdir()) == [
        "SHA256SUMS",
        *sorted(FILES),
    ]
    assert [path.name for path in (root / "FashionMNIST").iterdir()] == ["raw"]  # nothing left aside
    shutil.rmtree(server)
    downloads.read.cache_clear()
    assert fashion(root).checksum == images.checksum


def test_a_damaged_download_is_not_kept(server: Path, tmp_path: Path) -> None:
    (server / f"{FILES[2]}.gz").write_bytes(b"not what was promised")
    with pytest.raises(downloads.DownloadFailed, match="FashionMNIST is not in data.root="):
        fashion(tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_what_a_killed_download_has_left_is_removed_once_it_is_old(server: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    left = [
        root / "FashionMNIST" / ".bantam-download-a" / "file",
        root / "FashionMNIST" / "raw" / ".bantam-images.1f.part",
    ]
    at_work = root / "FashionMNIST" / ".bantam-download-b" / "file"
    hour_ago = time.time() - downloads.ABANDONED_SECONDS - 60
    for file in (*left, at_work):
        file.parent.mkdir(parents=True)
        file.touch()
        for path in (file, file.parent):
            os.utime(path, (hour_ago, hour_ago))
    at_work.write_bytes(b"it goes on")  # its folder has not changed, but what is in it
    fashion(root)
    there = {path.name for path in root.rglob(".*")}
    assert there == {".bantam-download-b"}


def truncate(raw: Path) -> str:
    file = raw / FILES[0]
    file.write_bytes(file.read_bytes()[:-1])
    return f"{FILES[0]} is truncated or altered"


def alter(raw: Path) -> str:
    file = raw / FILES[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return f"{FILES[1]} is truncated or altered"


def swap(raw: Path) -> str:
    (raw / FILES[1]).rename(raw / "aside")
    (raw / FILES[3]).rename(raw / FILES[1])
    (raw / "aside").rename(raw / FILES[3])
    return f"{FILES[1]} is truncated or altered"


def remove(raw: Path) -> str:
    (raw / FILES[2]).unlink()
    return f"{FILES[2]} is missing"


DAMAGES = pytest.mark.parametrize("damage", [truncate, alter, swap, remove])


@DAMAGES
def test_damaged_files_are_named(server: Path, tmp_path: Path, damage: Callable[[Path], str]) -> None:
    fashion(tmp_path)
    message = damage(tmp_path / "FashionMNIST" / "raw")
    downloads.read.cache_clear()
    with pytest.raises(ValueError, match=message):
        fashion(tmp_path)


@DAMAGES
def test_damaged_mnist_is_named_and_not_replaced_by_auto(
    mnist_root: str, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(Path(mnist_root) / "MNIST" / "raw" / name, raw / name)
    message = damage(raw)
    with pytest.raises(ValueError, match=message):
        data.auto(str(tmp_path), 0, 1, *MEAN_STD)


@pytest.mark.parametrize("damage", [truncate, swap])
def test_files_without_checksums_must_at_least_fit_together(
    server: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    fashion(tmp_path)
    raw = tmp_path / "FashionMNIST" / "raw"
    (raw / "SHA256SUMS").unlink()
    downloads.read.cache_clear()
    assert len(fashion(tmp_path).train_labels) == 40
    damage(raw)
    downloads.read.cache_clear()
    with pytest.raises(ValueError, match="the files in|the files are swapped"):
        fashion(tmp_path)


def test_auto_falls_back_when_the_connection_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{closed.getsockname()[1]}/"]
        )
        with pytest.raises(downloads.DownloadFailed):
            data.torchvision_dataset("MNIST", str(tmp_path), 0, 1, *MEAN_STD)
        images = data.auto(str(tmp_path), 5000, 1, *MEAN_STD)
    assert images.name == "mnist5k"
    assert len(images.held_out_labels) == 1000
    assert "could not be downloaded (Connection refused)" in images.not_judged
    assert images.instead.startswith("MNIST is not in data.root=")
    assert images.instead.endswith("; 1,000 validation images are held out, not 5,000")
    assert images.not_judged.startswith(images.instead)


def test_what_auto_became_is_not_decided_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(dataset: str, root: str) -> str:
        raise AssertionError("there is a connection again")

    monkeypatch.setattr(downloads, "download", download)
    images = data.auto(str(tmp_path), 0, 1, *MEAN_STD, became="mnist5k")
    assert images.name == "mnist5k"
    assert images.instead.startswith("MNIST is not in data.root=")
    monkeypatch.setattr(downloads, "download", lambda dataset, root: "no route to host")
    with pytest.raises(downloads.DownloadFailed, match="MNIST is not in data.root="):  # not mnist5k without a word
        data.auto(str(tmp_path), 0, 1, *MEAN_STD, became="MNIST")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            "Error downloading a.gz:\nTried https://x/a.gz, got:\n<urlopen error [Errno 111] Connection refused>\n"
            "Tried http://y/a.gz, got:\n<urlopen error [Errno 111] Connection refused>\n",
            "Connection refused",
        ),
        ("Tried x, got:\nHTTP Error 404: Not Found\nTried y, got:\n<urlopen error timed out>\n", "HTTP Error 404"),
        ("<urlopen error [Errno -2] Name or service not known>", "Name or service not known"),
        ("something\n  else", "something else"),
        ("", "RuntimeError"),
    ],
)
def test_why_a_download_failed_is_said_once(error: str, reason: str) -> None:
    said = downloads._reason(RuntimeError(error))
    assert said.startswith(reason)
    assert said.count(reason) == 1
    assert "Tried" not in said


def test_files_that_were_downloaded_by_hand_are_unpacked(server: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    shutil.copytree(server, raw)
    shutil.rmtree(server)
    assert len(fashion(tmp_path / "root").train_labels) == 40
    assert {file.name for file in raw.iterdir()} == {*FILES, *(f"{name}.gz" for name in FILES)}


def test_a_damaged_file_that_was_downloaded_by_hand_is_named(server: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    shutil.copytree(server, raw)
    packed = raw / f"{FILES[2]}.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{FILES[2]}.gz cannot be unpacked .*: download it again"):
        fashion(tmp_path / "root")
    assert not list(raw.glob(".*"))


def test_a_silent_server_costs_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "DOWNLOAD_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        monkeypatch.setattr(
            torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"]
        )
        start = time.monotonic()
        with pytest.raises(downloads.DownloadFailed):
            data.torchvision_dataset("MNIST", str(tmp_path), 0, 1, *MEAN_STD)
    assert time.monotonic() - start < 30
    assert socket.getdefaulttimeout() is None


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.root=.*file cannot be written"):
        data.torchvision_dataset("MNIST", str(tmp_path / "file"), 0, 1, *MEAN_STD)


def write_idx(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_letters_of_emnist_are_put_upright_and_count_from_0(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = {"train": random.integers(0, 256, (52, 28, 28)), "test": random.integers(0, 256, (26, 28, 28))}
    files = {f"emnist-letters-{part}-images-idx3-ubyte": idx(found) for part, found in images.items()}
    files |= {f"emnist-letters-{p}-labels-idx1-ubyte": idx(np.arange(len(i)) % 26 + 1) for p, i in images.items()}
    write_idx(tmp_path / "EMNIST" / "raw", files)
    found = data.torchvision_dataset("EMNISTLetters", str(tmp_path), 0, 1, None, None, classes=26)
    assert found.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert found.held_out_labels.tolist() == list(range(26))
    assert found.train_images[3, 0].tolist() == images["train"][3].T.tolist()
    with pytest.raises(ValueError, match="data.classes is 10, but EMNISTLetters has 1×28×28 images of 26 classes"):
        data.torchvision_dataset("EMNISTLetters", str(tmp_path), 0, 1, None, None)


def test_qmnist_has_one_label_an_image(tmp_path: Path) -> None:
    files = {}
    for part in ("train", "test"):
        labels = np.arange(160, dtype=">i4").reshape(20, 8)
        labels[:, 0] = np.arange(20) % 10
        header = bytes([0, 0, 0x0C, 2]) + b"".join(size.to_bytes(4, "big") for size in labels.shape)
        files[f"qmnist-{part}-labels-idx2-int"] = header + labels.tobytes()
        files[f"qmnist-{part}-images-idx3-ubyte"] = idx(np.full((20, 28, 28), 7))
    write_idx(tmp_path / "QMNIST" / "raw", files)
    found = data.torchvision_dataset("QMNIST", str(tmp_path), 0, 1, 0.5, 0.5)
    assert found.train_labels.tolist() == [*range(10)] * 2
    assert found.classes == tuple("0123456789")


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The archive of a little CIFAR-10 in a folder; its first batch of images, N×C×H×W."""
    kind, random = torchvision.datasets.CIFAR10, np.random.default_rng(0)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    batches = {}
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        batches[name] = random.integers(0, 256, (20, 3072)).astype(np.uint8)
        content = pickle.dumps({"data": batches[name], "labels": [i % 10 for i in range(20)]})
        (folder / name).write_bytes(content)
    names = [f"thing {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))

    def listed(*files: str) -> list[list[str]]:
        return [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in files]

    monkeypatch.setattr(kind, "train_list", listed(*sorted(batches)[:5]))
    monkeypatch.setattr(kind, "test_list", listed("test_batch"))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": listed("batches.meta")[0][1]})
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as packed:
        packed.add(folder, kind.base_folder)
    shutil.rmtree(folder)
    return batches["data_batch_1"].reshape(-1, 3, 32, 32)


def test_cifar10_is_unpacked_and_read_in_colour(tmp_path: Path, cifar: np.ndarray) -> None:
    found = data.torchvision_dataset("CIFAR10", str(tmp_path), 0, 1, None, None, channels=3, side=32)
    assert found.train_images.shape == (100, 3, 32, 32)
    assert found.train_images[:20].tolist() == cifar.tolist()
    assert found.held_out_images.is_contiguous()
    assert found.classes[2] == "thing 2"
    assert len(found.mean) == len(found.std) == 3
    assert not list(tmp_path.glob(".*"))


def test_damaged_files_of_cifar10_are_never_unpickled(tmp_path: Path, cifar: np.ndarray) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cifar-10-python.tar.gz cannot be unpacked .*: download it again"):
        data.torchvision_dataset("CIFAR10", str(tmp_path), 0, 1, None, None, channels=3, side=32)
    assert not list(tmp_path.glob("cifar-10-batches-py"))
    archive.write_bytes(content)
    downloads.unpack("CIFAR10", str(tmp_path))
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    with pytest.raises(
        ValueError, match="the files in .* are not those of CIFAR10: Dataset not found or corrupted"
    ):
        data.torchvision_dataset("CIFAR10", str(tmp_path), 0, 1, None, None, channels=3, side=32)
