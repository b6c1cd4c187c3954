"""Tells trackers what a run yields. One that fails costs a warning, never the run; what it missed comes later."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bantam.overrides import command_line, override
from bantam.trackers import NOTES, Entry, Tracker, key_of, notes_in
from bantam.training import saved, terminal
from bantam.training.folder import seed_folders, write
from bantam.training.loop import Epoch
from bantam.training.setup import Prepared

PICTURES = ("curves.png", "confusion.png", "mistakes.png")

CONFIRMATION = "confirm"
"""The folder in that of a study in which its best trials are trained again."""


def parent_of(folder: Path) -> Path:
    """The folder of the multirun or the study that a job's folder belongs to."""
    above = folder.parent
    if folder in seed_folders(above):
        above = above.parent
    return above.parent if above.name == CONFIRMATION else above


def follow(prepared: Prepared) -> "Tracked":
    """The trackers of a run that is about to begin, or to go on."""
    info, seed = prepared.info, prepared.cfg.seed
    folder = info.folder.absolute()
    parent = None if info.job is None else parent_of(folder)
    entry = Entry(
        name=entry_name(folder, parent, info.name, seed),
        group=group_name(folder, info.name) if prepared.trackers else "",  # reads the folder
        settings=saved.shown(prepared.cfg),
        layers=[asdict(row) for row in prepared.layers],
        folder=folder,
        parent=parent,
    )
    return Tracked(prepared.trackers, entry, terminal.show_warning, saved.tracker_overrides(prepared.cfg))


class Tracked:
    """The trackers of one run, by option, and what each of them has of it."""

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        entry: Entry,
        warn: Callable[[str], None],
        typed: Sequence[str] = (),
    ) -> None:
        """`warn` shows a sentence; `typed` are the overrides that say which trackers these are."""
        self._trackers, self._entry, self._warn, self._typed = trackers, entry, warn, typed
        self._epochs: list[Epoch] = []
        self._away: set[str] = set()
        self._notes = notes_in(entry.folder)

    def begin(self, history: Sequence[Epoch]) -> None:
        """A run begins, or goes on after these epochs."""
        self._epochs = list(history)
        for option in self._trackers:
            self._attempt(option, self._open)

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has ended."""
        self._epochs.append(epoch)
        for option in self._trackers:
            if option not in self._away:
                self._attempt(option, self._send)

    def end(self, result: Mapping[str, Any]) -> bool:
        """The run has ended; sends what was missed, and says what cannot be sent. Returns whether all was."""
        for option in self._trackers:
            if option in self._away:
                self._away.discard(option)
                self._attempt(option, self._open, last=True)
            if option not in self._away:
                self._attempt(option, lambda option: self._close(option, result), last=True)
        return not self._away

    def _open(self, option: str) -> None:
        note = self._note(option)
        note["epochs"] = min(note.get("epochs", 0), len(self._epochs))
        note["id"] = self._trackers[option].begin(self._entry, note.get("id"), note["epochs"])
        self._write()
        self._send(option)

    def _send(self, option: str) -> None:
        note = self._note(option)
        for epoch in self._epochs[note["epochs"] :]:
            self._trackers[option].epoch(asdict(epoch))
            note["epochs"] = epoch.epoch
        self._write()

    def _close(self, option: str, result: Mapping[str, Any]) -> None:
        folder = self._entry.folder
        pictures = [folder / name for name in PICTURES if (folder / name).exists()]
        self._trackers[option].end(result, pictures)
        self._note(option)["ended"] = result["verdict"]
        self._write()

    def _note(self, option: str) -> dict[str, Any]:
        """What is known of the run in a tracker: what it is called there, and how many epochs it has."""
        key = key_of(option, self._trackers[option])
        if not isinstance(self._notes.get(key), dict):
            self._notes[key] = {}
        note: dict[str, Any] = self._notes[key]
        if not isinstance(note.get("epochs", 0), int) or not isinstance(note.get("id", ""), str):
            note.clear()
        return note

    def _write(self) -> None:
        write(self._entry.folder / NOTES, (json.dumps(self._notes, indent=2) + "\n").encode())

    def _attempt(self, option: str, what: Callable[[str], None], last: bool = False) -> None:
        """Do something with a tracker; whatever goes wrong there is a warning."""
        try:
            what(option)
        except Exception as error:  # a tracker's library raises whatever its server leads it to
            self._away.add(option)
            reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
            if last:
                keys = [item for item in self._typed if item.startswith(f"tracker.{option}.")]
                words = ["python", "track.py", self._entry.folder, override("tracker", option), *keys]
                how = f"{command_line(words)} sends what is missing"
            else:
                how = "the training goes on, and what is missing is sent at its end"
            self._warn(f"tracker={option} cannot be told of {self._entry.name} ({reason}): {how}")


def has_ended(folder: Path, option: str, tracker: Tracker, verdict: str) -> bool:
    """Whether a tracker knows all of the run in a folder already."""
    note = notes_in(folder).get(key_of(option, tracker))
    return isinstance(note, dict) and note.get("ended") == verdict


def group_name(folder: Path, name: str) -> str:
    """What runs have in common that differ in their seed only: their name, and what else was typed for them."""
    try:
        typed = saved.load(folder).overrides
    except ValueError:
        typed = []
    return " ".join([name, *(item for item in typed if not item.lstrip("+~").startswith(NOT_TRAINED))])


NOT_TRAINED = (
    *("seed=", "data.split_seed=", "data.root=", "device=", "threads=", "pictures=", "report=", "tracker"),
    *("experiment=", "model=", "hydra"),
)
"""How overrides begin that do not tell groups of seeds apart, or that are in the name of a run."""


def entry_name(folder: Path, parent: Path | None, name: str, seed: int | None) -> str:
    """What a run is called in a tracker: v2, seed 1; one of several after its folder: 3: v2, seed 1."""
    where = f"{folder.relative_to(parent)}: " if parent else ""
    return f"{where}{name}, seed {seed}"
