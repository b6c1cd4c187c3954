import pickle
from pathlib import Path

import pytest
import torch

from bantam import models
from bantam.training import folder as record
from bantam.training.loop import Epoch


def epoch(number: int, accuracy: float, *, validation: bool = False) -> Epoch:
    scored, other = (0.1 / 3, accuracy), (None, None)
    return Epoch(number, 0.025, 1 / 3, 98.5, *(scored + other if validation else other + scored), 1.5, 2000.0)


def history(*accuracies: float) -> list[Epoch]:
    return [epoch(i, accuracy) for i, accuracy in enumerate(accuracies, 1)]


def judge(accuracies: list[float], not_judged: str = "") -> record.Verdict:
    return record.judge(
        history(*accuracies),
        target=99.4,
        last_epochs=5,
        most_epochs=15,
        not_judged=not_judged,
        most_frequent=11.35,
        scored_images=10_000,
    )


def test_weights_that_are_shared_are_written_and_read(tmp_path: Path) -> None:
    shape = {"transition": 0, "late1": 16, "late2": 16, "late3": 0, "shared": True}
    torch.manual_seed(0)
    written, read = models.Flexible(**shape), models.Flexible(**shape)
    record.write_weights(tmp_path, written)
    record.read_weights(tmp_path, read)
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), read.parameters(), strict=True))


def test_met_is_every_one_of_the_last_epochs() -> None:
    verdict = judge([98.0, 99.4, 99.5, 99.41, 99.4, 99.45])
    assert verdict.verdict == "met"
    assert "the lowest is 99.40 %" in verdict.reason
    assert verdict.objective == pytest.approx((99.4 + 99.5 + 99.41 + 99.4 + 99.45) / 5)
    assert (verdict.best_accuracy, verdict.best_epoch) == (99.5, 3)


def test_not_met_says_which_epochs_and_how_far() -> None:
    verdict = judge([99.9, 99.4, 99.38, 99.41, 99.4, 99.25])
    assert verdict.verdict == "not met"
    assert "missed in epoch 3 by 0.02, epoch 6 by 0.15 points" in verdict.reason


def test_not_judged_says_why() -> None:
    assert judge([99.9] * 5, "data=mnist5k").verdict == "not judged"
    assert judge([99.9] * 5, "data=mnist5k").reason == "data=mnist5k"
    verdict = judge([99.9] * 4)
    assert verdict.verdict == "not judged"
    assert "4 epochs were trained, and the target is about the last 5" in verdict.reason
    assert verdict.objective == pytest.approx(99.9)


@pytest.mark.parametrize(("best", "at_chance"), [(11.35, True), (12.2, True), (12.5, False), (98.0, False)])
def test_a_network_that_never_leaves_chance_is_called_so(best: float, at_chance: bool) -> None:
    verdict = judge([9.8, 10.1, best, 11.35, 9.8])
    assert verdict.verdict == "not met"
    assert verdict.at_chance == at_chance
    assert ("never left chance" in verdict.reason) == at_chance


@pytest.mark.parametrize("validation", [False, True])
def test_history_comes_back_exactly(tmp_path: Path, validation: bool) -> None:
    written = [epoch(i, 100 / 3 + i, validation=validation) for i in range(1, 4)]
    record.write_history(tmp_path, written)
    assert record.read_history(tmp_path) == written
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
        record.read_history(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write(tmp_path / "file", b"old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(content[:1])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        record.write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_weights_come_back_and_only_into_their_own_network(tmp_path: Path) -> None:
    model = models.V2(width=4).to(memory_format=torch.channels_last)
    record.write_weights(tmp_path, model)
    other = models.V2(width=4)
    record.read_weights(tmp_path, other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    for network in (models.V2(width=5), models.Skeleton(width=4)):
        with pytest.raises(ValueError, match="holds the weights of another network"):
            record.read_weights(tmp_path, network)
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        record.read_weights(tmp_path, other)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="it is no finished run"):
        record.read_weights(tmp_path, other)


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
        record.read_checkpoint(tmp_path, torch.device("cpu"))
    assert not proof.exists()
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(ValueError, match="checkpoint.pt is damaged"):
        record.read_checkpoint(tmp_path, torch.device("cpu"))
    assert not proof.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_a_result_that_is_none_is_one_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be read|holds no result.json"):
        record.read_result(tmp_path)


def test_versions_and_commit() -> None:
    assert {"python", "torch", "hydra-core"} <= set(record.versions())
    assert record.commit() is None or len(record.commit() or "") >= 40
