import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from epochs import epoch
from safetensors.torch import save_file
from torch import nn

from bantam import budget, models
from bantam.training import folder as files


@pytest.mark.parametrize(
    "network",
    [
        models.Skeleton,
        models.V2,
        lambda: models.Flexible(head=12),
        lambda: models.Flexible(transition=0, late1=16, late2=16, late3=0, shared=True),
    ],
)
def test_the_bytes_of_the_budget_are_those_of_the_saved_weights(
    tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    model = network()
    files.write_weights(tmp_path, model)
    content = (tmp_path / "weights.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")  # the names and shapes, with their length before them
    costs = budget.costs(model, [])
    assert costs["bytes"] == len(content) - header
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert costs["bytes"] == 4 * costs["parameters"] + buffers


def test_weights_of_an_older_version_have_shared_ones_under_every_name(tmp_path: Path) -> None:
    shape = {"transition": 0, "late1": 16, "late2": 16, "late3": 0, "shared": True}
    written, read = models.Flexible(**shape), models.Flexible(**shape)  # type: ignore[arg-type]
    save_file({name: value.clone() for name, value in written.state_dict().items()}, tmp_path / files.WEIGHTS)
    files.read_weights(tmp_path, read)
    for name, value in written.state_dict().items():
        assert torch.equal(value, read.state_dict()[name])


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

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
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


def test_files_that_a_killed_process_left_are_removed_and_no_others(tmp_path: Path) -> None:
    files.write(tmp_path / "history.csv", b"kept")
    (tmp_path / ".result.json.0123456789abcdef.part").write_bytes(b"hal")
    (tmp_path / ".hydra").mkdir()
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hydra", "history.csv"]


def state(number: int) -> dict[str, object]:
    weights = {"weight": torch.arange(100.0)}
    return {**dict.fromkeys(files.STATE, 0), "history": [], "model": weights, "epoch": number}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1000] + bytes(byte ^ 255 for byte in content[-1000:-936]) + content[-936:],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"foreign",
    ],
    ids=["flipped", "halved", "empty", "foreign"],
)
def test_of_a_damaged_checkpoint_the_one_before_is_read(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cpu = torch.device("cpu")
    for number in (1, 2):
        files.write_checkpoint(tmp_path, state(number))
    file = tmp_path / "checkpoint.pt"
    assert (files.read_checkpoint(tmp_path, cpu) or {})["epoch"] == 2
    file.write_bytes(damage(file.read_bytes()))
    assert (files.read_checkpoint(tmp_path, cpu) or {})["epoch"] == 1
    (tmp_path / "checkpoint.before.pt").unlink()
    with pytest.raises(ValueError, match="checkpoint.pt is damaged .*: delete it to start this run anew"):
        files.read_checkpoint(tmp_path, cpu)


def test_killed_between_two_checkpoints_there_is_still_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_checkpoint(tmp_path, state(1))

    def killed(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            files.write_checkpoint(tmp_path, state(2))
    assert (files.read_checkpoint(tmp_path, torch.device("cpu")) or {})["epoch"] == 1


def test_a_checkpoint_without_its_keys_is_damaged_and_an_old_one_needs_no_checksum(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    torch.save({key: value for key, value in state(1).items() if key != "optimizer"}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="damaged .it has no optimizer."):
        files.read_checkpoint(tmp_path, cpu)
    torch.save(state(1), tmp_path / "checkpoint.pt")
    assert (files.read_checkpoint(tmp_path, cpu) or {})["epoch"] == 1


@pytest.mark.parametrize(
    ("key", "value"), [("threads", "two"), ("threads", None), ("data_checksum", 3), ("objective", "high")]
)
def test_a_finished_result_has_its_keys_and_types(tmp_path: Path, key: str, value: object) -> None:
    whole = {"objective": 99.0, "threads": 1, "scored_images": 10, "split": "test", "data": "MNIST"}
    whole |= {"data_checksum": "0", "precision": "float32", "kernels": "torch", "verdict": "met"}
    files.write_result(tmp_path, whole)
    assert files.read_finished(tmp_path) == whole
    files.write_result(tmp_path, {**whole, key: value})
    with pytest.raises(ValueError, match=f"result.json is damaged .{key} is .*restore it, or train the run again"):
        files.read_finished(tmp_path)


def test_a_file_that_is_written_removes_what_killed_writers_of_it_left(tmp_path: Path) -> None:
    for name in (".a.json.0123.part", ".b.json.0123.part", ".a.json", "a.json.part"):
        (tmp_path / name).write_text("half")
    files.write(tmp_path / "a.json", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", ".b.json.0123.part", ".a.json", "a.json.part"}
