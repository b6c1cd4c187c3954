"""Shows finished folders in trackers: what they do not know yet of runs, multiruns and studies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bantam.report import folders
from bantam.report.folders import Contents, Study
from bantam.report.runs import Run, read_run
from bantam.trackers import Entry, Tracker, key_of, noted, notes_in
from bantam.training import saved, terminal
from bantam.training.folder import REMEDY, seed_folders
from bantam.training.tracked import Tracked, entry_name, group_name, has_ended, parent_of


def send(paths: Iterable[Path], trackers: Mapping[str, Tracker], typed: Sequence[str] = ()) -> tuple[int, int]:
    """Tell trackers of what is in folders and has ended; returns how many were sent, and how many were not.

    What a tracker knows already is not sent again, and one that fails is asked no more. What is damaged is
    said, and not sent. `typed` are the overrides that say which trackers these are. Raises ValueError where a
    folder does not exist, or none has a run.
    """
    found = folders.gather(paths)
    for folder, reason in found.broken:
        if not (found.runs or found.studies):
            raise ValueError(f"{folder}: {reason}")
        terminal.show_warning(f"{folder} is left out: {reason}")
    sound, damaged = _sorted(runs(found))
    for study in found.studies:
        of_trials = [problem for problem in study.problems if not problem.startswith("confirm/")]
        known = [problem for problem in of_trials for folder in damaged if f"{folder}/" in problem]
        damaged |= {
            study.folder / problem: f"{study.folder}: {problem}" for problem in of_trials if problem not in known
        }
    for what in damaged.values():
        terminal.show_warning(f"{what}; it is left out")
    sent, failed = 0, len(damaged) * len(trackers)
    for option, tracker in trackers.items():
        wanted = [(run, entry) for run, entry in sound if not has_ended(run.folder, option, tracker, run.state)]
        for number, (run, entry) in enumerate(wanted):
            if not _send_run(run, entry, {option: tracker}, typed):
                failed += len(wanted) - number
                break
            sent += 1
        else:
            for study in found.studies:
                done, left = _send_over_budget(study, option, tracker)
                sent, failed = sent + done, failed + left
    return sent, failed


def runs(found: Contents) -> Iterator[Run]:
    """The runs in folders that have ended, those of trials and of confirmations too."""
    every = [run for run in found.runs if run.state != "unfinished"]
    for study in found.studies:
        for trial in study.trials:
            folder = study.folder / str(trial.number)
            runs_of_trial = [read_run(path) for path in (folder, *seed_folders(folder)) if path.is_dir()]
            every += [run for run in runs_of_trial if trial.state == "complete" or run.state != "unfinished"]
        confirm = study.folder / "confirm"
        confirmed = [read_run(r.folder) for r in study.confirmations if r.folder.parent == confirm]
        every += [run for run in confirmed if run.state != "unfinished"]
    yield from every


def _sorted(ended: Iterable[Run]) -> tuple[list[tuple[Run, Entry]], dict[Path, str]]:
    """The sound ones of these runs as trackers show them, and by folder what is damaged of the others."""
    sound, damaged = [], {}
    for run in ended:
        try:
            if run.problems:
                raise ValueError(f"{run.folder}: {run.problems[0]}")
            sound.append((run, entry_of(run)))
        except ValueError as error:
            what = str(error)
            damaged[run.folder] = what if REMEDY in what else f"{what}: {REMEDY}"
    return sound, damaged


def _send_run(run: Run, entry: Entry, trackers: Mapping[str, Tracker], typed: Sequence[str]) -> bool:
    """Tell trackers of a run from its beginning to its end; returns whether all were told."""
    tracked = Tracked(trackers, entry, terminal.show_warning, typed)
    tracked.begin(run.history)
    return tracked.end({**run.result, "verdict": run.state})


def entry_of(run: Run) -> Entry:
    """A run in a folder as trackers show it."""
    folder = run.folder.absolute()
    own = saved.load(run.folder)
    parent = parent_of(folder) if str(own.hydra.mode).endswith("MULTIRUN") else None
    return Entry(
        name=entry_name(folder, parent, run.name, run.seed),
        group=group_name(folder, run.name),
        settings=saved.shown(own.config),
        layers=[asdict(row) for row in run.layers],
        folder=folder,
        parent=parent,
    )


def _send_over_budget(study: Study, option: str, tracker: Tracker) -> tuple[int, int]:
    """Tell a tracker of the trials whose networks were too big to be trained: they have no folder."""
    sent = 0
    folder = study.folder.absolute()
    trials = [trial for trial in study.trials if trial.state == "over budget"]
    for number, trial in enumerate(trials):
        entry = Entry(
            name=f"{trial.number}: over budget",
            group="over budget",
            settings=trial.settings,
            layers=[],
            folder=folder / str(trial.number),
            parent=folder,
        )
        result: dict[str, Any] = {"verdict": "over budget", "reason": trial.reason, **trial.costs}

        key = f"{key_of(option, tracker)}, trial {trial.number}"
        if key in notes_in(folder):
            continue
        try:
            name = tracker.begin(entry, None, 0)
            tracker.end(result, [])
        except Exception as error:  # a tracker's library raises whatever its server leads it to
            left = len(trials) - number
            terminal.show_warning(f"tracker={option} cannot be told of {left} trials over the budget ({error})")
            return sent, left
        noted(folder, key, lambda name=name: name)  # type: ignore[misc]
        sent += 1
    return sent, 0
