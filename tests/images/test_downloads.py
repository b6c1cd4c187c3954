import functools
import gzip
import hashlib
import http.server
import shutil
import socket
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
