"""A table of finished runs in Markdown, such as the first one of the README."""

import re
import statistics
from pathlib import Path

from bantam.overrides import command_line, resuming
from bantam.report.groups import Group
from bantam.report.numbers import mean_of, shown
from bantam.training import folder as record
from bantam.training.exported import EXPORT, read_export

MARKS = re.compile(r"(?s)<!-- table\b.*?-->\n.*?<!-- /table -->")
"""The part of a file that is rewritten; its first line holds the command that wrote it."""


def table(groups: list[Group], exported: bool = False) -> str:
    """A row for every group of seeds, in Markdown; `exported` adds what their networks are in int8.

    Raises ValueError where they cannot stand in one table, or where a run has not been exported.
    """
    if not groups:
        raise ValueError("there is no run in these folders: give those of multiruns that have ended")
    for g in groups:
        for r in g.every:
            if r.state in ("unfinished", "damaged"):
                why = f" ({r.problems[0]})" if r.problems else ""
                how = f"finish it with {resuming(r.folder)}, or leave its folder out"
                raise ValueError(f"{r.folder} is {r.state}: {how}{why}")
            if r.split == "validation":
                raise ValueError(f"{r.folder} was scored on validation images: the table is about the test images")
            if r.problems:
                raise ValueError(f"{r.folder} is damaged ({r.problems[0]}); or leave its folder out")
    targets = {g.first.target for g in groups}
    if len(targets) > 1:
        raise ValueError("the runs have several targets: give folders with the same target.accuracy")
    cells = [_row(g) | (_in_int8(g) if exported else {}) for g in groups]
    rows = [[*cells[0]], ["---"] * len(cells[0]), *([*row.values()] for row in cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(g: Group) -> dict[str, str]:
    """The cells of a group; means over its seeds. CPU-minutes are of all threads together, scoring included."""
    ended, one = g.ended, "one seed" * (len(g.runs) == 1)
    on_cpu = bool(ended) and all(r.result.get("device") == "cpu" for r in ended)
    minutes = [sum(e.seconds for e in r.history) / 60 * float(r.result.get("threads") or 1) for r in ended]
    word = {"met": "yes", "not met": "no"}.get(g.verdict, g.verdict)
    return {
        "`experiment=`": f"`{g.label}`",
        "parameters": shown(g.parameters),
        "epochs": str(max((len(r.history) for r in ended), default="")),
        "CPU-minutes": f"{statistics.fmean(minutes):.1f}" if on_cpu else "",
        "last epochs": str(g.first.settings.get("target.last_epochs", "")),
        "their mean, %": mean_of(g.objectives),
        f"{g.first.target:g} % in every one of them": ", ".join(filter(None, [word, g.repeats or one])),
    }


def _in_int8(g: Group) -> dict[str, str]:
    """Bytes of a group's networks in int8, of the largest where they differ, and their mean accuracy."""
    found = []
    for r in g.ended:
        answer = read_export(r.folder)
        if answer is None:
            command = command_line(["python", "export.py", r.folder])
            raise ValueError(f"{r.folder} has no {EXPORT}: {command} writes it; or leave --bytes out")
        found.append(answer["int8"])
    largest = max((part["weight_bytes"] for part in found), default=None)
    return {"bytes in int8": shown(largest), "accuracy in int8, %": mean_of([part["accuracy"] for part in found])}


def write_into(path: Path, rows: str, command: str) -> None:
    """Replace what stands between the marks of a file. Raises ValueError where it has none."""
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--into={path} cannot be read: {getattr(error, 'strerror', 'it is no text')}") from error
    if len(MARKS.findall(before)) != 1:
        raise ValueError(f"--into={path} must have one line <!-- table --> and one line <!-- /table --> below it")
    written = f"<!-- table: {command} -->\n{rows}\n<!-- /table -->"
    try:
        record.write(path, MARKS.sub(lambda found: written, before).encode())
    except OSError as error:
        raise ValueError(f"--into={path} cannot be written ({error.strerror}): give another file") from error
