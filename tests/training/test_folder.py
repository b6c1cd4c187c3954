import pickle
from pathlib import Path

import pytest
import torch
from epochs import epoch

from bantam import models
from bantam.training import folder as files


def test_weights_that_are_shared_are_written_and_read(tmp_path: Path) -> None:
    shape = {"transition": 0, "late1": 16, "late2": 16, "late3": 0, "shared": True}
    torch.manual_seed(0)
    written, read = models.Flexible(**shape), models.Flexible(**shape)
    files.write_weights(tmp_path, written)
    files.read_weights(tmp_path, read)
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), read.parameters(), strict=True))


@pytest.mark.parametrize("validation", [False, True])
def test_history_comes_back_exactly(tmp_path: Path, validation: bool) -> None:
    written = [epoch(i, 100 / 3 + i, validation=validation) for i in range(1, 4)]
    files.write_history(tmp_path, written)
    assert files.read_history(tmp_path) == written
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert header == (
        "epoch,lr,train_loss,train_accuracy,validation_loss,validation_accuracy,test_loss,test_accuracy,"
        "seconds,images_per_second"
    )


@pytest.mark.parametrize("content", [None, "epoch,colour\n1,red\n", "epoch,lr\nx,y\n"])
def test_a_history_that_is_none_is_one_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "history.csv").write_text(content)
    with pytest.raises(ValueError, match="history.csv cannot be read"):
        files.read_history(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(tmp_path / "file", b"old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(content[:1])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        files.write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_weights_come_back_and_only_into_their_own_network(tmp_path: Path) -> None:
    model = models.V2(width=4).to(memory_format=torch.channels_last)
    files.write_weights(tmp_path, model)
    other = models.V2(width=4)
    files.read_weights(tmp_path, other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    for network in (models.V2(width=5), models.Skeleton(width=4)):
        with pytest.raises(ValueError, match="holds the weights of another network"):
            files.read_weights(tmp_path, network)
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        files.read_weights(tmp_path, other)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="it is no finished run"):
        files.read_weights(tmp_path, other)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_checkpoint_cannot_execute_code(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"model": Malicious(proof)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt is damaged"):
        files.read_checkpoint(tmp_path, torch.device("cpu"))
    assert not proof.exists()
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(ValueError, match="checkpoint.pt is damaged"):
        files.read_checkpoint(tmp_path, torch.device("cpu"))
    assert not proof.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_a_result_that_is_none_is_one_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be read|holds no result.json"):
        files.read_result(tmp_path)


def test_versions_and_commit() -> None:
    assert {"python", "torch", "hydra-core"} <= set(files.versions())
    assert files.commit() is None or len(files.commit() or "") >= 40
