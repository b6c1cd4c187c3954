"""Trackers are told what a run yields, and nothing that goes wrong with them changes the run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from single_runs import at, history

from bantam.trackers import Entry, Record, notes_in
from bantam.training import saved, setup
from bantam.training.run import run
from bantam.training.setup import prepare
from bantam.training.tracked import follow, group_name, parent_of

Compose = Callable[..., DictConfig]


class Fake:
    """Remembers what it is told, and fails in the calls that it is made to."""

    address = "here"

    def __init__(self, *failing: str) -> None:
        self.failing, self.told = list(failing), list[Any]()

    def _call(self, name: str, *what: Any) -> None:
        if self.failing and self.failing[0] == name:
            self.failing.pop(0)
            raise ConnectionError(f"no answer\nto {name}")
        self.told.append((name, *what))

    def begin(self, entry: Entry, known: str | None, done: int) -> str:
        self.entry = entry
        self._call("begin", known, done)
        return "one"

    def epoch(self, record: Record) -> None:
        self._call(f"epoch {record['epoch']}")

    def end(self, result: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        self.result = result
        self._call("end", result["verdict"], [picture.name for picture in pictures])


@pytest.fixture
def train(
    composed: Compose, few: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., float]:
    """Train three epochs with a tracker."""

    def train_with(tracker: Fake, stop_after: int = 0, prune: bool = False) -> float:
        monkeypatch.setattr(setup, "build_trackers", lambda cfg: {"fake": tracker})
        prepared = prepare(composed(*few, "epochs=3"), at(tmp_path))

        def stop(epoch: int, accuracy: float) -> bool:
            if epoch == stop_after and not prune:
                raise KeyboardInterrupt
            return epoch == stop_after

        return run(prepared, stop)

    return train_with


EPOCHS = [("epoch 1",), ("epoch 2",), ("epoch 3",)]


def test_without_a_tracker_nothing_is_read_from_the_folder(
    composed: Compose, few: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[Path]()
    monkeypatch.setattr(saved, "load", read.append)
    follow(prepare(composed(*few), at(tmp_path))).begin([])
    assert read == []


def test_a_tracker_is_told_three_things(train: Callable[..., float], tmp_path: Path) -> None:
    tracker = Fake()
    objective = train(tracker)
    assert tracker.told == [("begin", None, 0), *EPOCHS, ("end", tracker.result["verdict"], [])]
    assert tracker.result["objective"] == objective
    assert tracker.entry.name == "v2, seed 1"
    assert tracker.entry.settings["optimizer.lr"] == 0.025
    assert "tracker" not in {key.partition(".")[0] for key in tracker.entry.settings}
    assert "| conv 3×3 → ReLU → norm → dropout | 4×26×26 | 3 | 44 | 24,336 |" in tracker.entry.table
    assert notes_in(tmp_path) == {"fake here": {"epochs": 3, "id": "one", "ended": tracker.result["verdict"]}}


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        (("begin",), [("begin", None, 0), *EPOCHS]),
        (("epoch 1",), [("begin", None, 0), ("begin", "one", 0), *EPOCHS]),
        (("epoch 3",), [("begin", None, 0), *EPOCHS[:2], ("begin", "one", 2), EPOCHS[2]]),
    ],
)
def test_what_was_missed_is_sent_at_the_end(
    train: Callable[..., float], tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: Any, told: Any
) -> None:
    tracker = Fake(*failing)
    train(tracker)
    assert tracker.told[:-1] == told
    assert tracker.told[-1][0] == "end"
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("Warning: tracker=fake cannot be told of v2, seed 1 (no answer to") == 1
    assert "the training goes on, and what is missing is sent at its end" in said


def test_a_tracker_that_stays_away_changes_nothing(
    train: Callable[..., float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = train(Fake("epoch 2", "begin"))
    said = " ".join(capsys.readouterr().out.split())
    assert f"python track.py {tmp_path} tracker=fake sends what is missing" in said
    assert notes_in(tmp_path)["fake here"] == {"epochs": 1, "id": "one"}
    assert len(history(tmp_path)) == 3
    assert objective == objective


def test_a_resumed_run_continues_its_entry(train: Callable[..., float]) -> None:
    first, second = Fake(), Fake()
    with pytest.raises(SystemExit):
        train(first, stop_after=2)
    assert first.told == [("begin", None, 0), *EPOCHS[:2]]
    train(second)
    assert second.told[:-1] == [("begin", "one", 2), EPOCHS[2]]


def test_a_pruned_run_is_marked_as_such(train: Callable[..., float]) -> None:
    tracker = Fake()
    train(tracker, stop_after=1, prune=True)
    assert tracker.told[1:] == [EPOCHS[0], ("end", "pruned", [])]


@pytest.mark.whole
def test_damaged_notes_make_a_new_entry(train: Callable[..., float], tmp_path: Path) -> None:
    for text in ("", "[]", '{"fake here": 5}', '{"fake here": {"epochs": "2", "id": 7}}'):
        for path in tmp_path.iterdir():
            if path.is_file():
                path.unlink()
        (tmp_path / "trackers.json").write_text(text)
        tracker = Fake()
        train(tracker)
        assert tracker.told[0] == ("begin", None, 0)


def test_seeds_and_confirmations_belong_to_the_study(tmp_path: Path) -> None:
    study = tmp_path / "study"
    for name in ("3", "3/seed-7", "confirm/trial_3-test-7"):
        (study / name).mkdir(parents=True)
        assert parent_of(study / name) == study


def test_a_group_is_what_was_typed_but_the_seed(tmp_path: Path) -> None:
    assert group_name(tmp_path, "v2") == "v2"
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 1\n")
    typed = ("model=v2", "seed=4", "model.width=9", "tracker=[mlflow]", "tracker.mlflow.uri=a", "epochs=3")
    (tmp_path / ".hydra" / "overrides.yaml").write_text("".join(f"- {item}\n" for item in typed))
    assert group_name(tmp_path, "v2") == "v2 model.width=9 epochs=3"
