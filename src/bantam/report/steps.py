"""What changed from one step to the next: settings and layers."""

import difflib
import math
from collections.abc import Sequence

from bantam import budget
from bantam.report.groups import NOT_TRAINED
from bantam.report.numbers import shown
from bantam.report.runs import Run


def changes(before: Run, after: Run) -> list[tuple[str, str, str]]:
    """What differs in the composed configurations, machine and seed aside: key, before and now."""
    found, old, new = [], before.settings, after.settings
    differing = [key for key in {**old, **new} if key not in NOT_TRAINED and old.get(key) != new.get(key)]
    for part in dict.fromkeys(key.partition(".")[0] for key in {**old, **new}):
        keys = [key for key in differing if key.partition(".")[0] == part]
        if f"{part}._target_" in keys:
            found.append((part, component(before, part), component(after, part)))
        elif len(keys) > 1:
            found.append((part, component(before, part, keys), component(after, part, keys)))
        else:
            found += [(key, shown(old.get(key)), shown(new.get(key))) for key in keys]
    return found


def component(r: Run, part: str, only: Sequence[str] = ()) -> str:
    """A group's class and its arguments, as in `StepLR: step_size 6, gamma 0.1`; or only some arguments."""
    own = {k: v for k, v in r.settings.items() if k.partition(".")[0] == part and (not only or k in only)}
    target = str(own.pop(f"{part}._target_", "")).rpartition(".")[2]
    name = str(own.get(f"{part}._class_", target))  # of a network of one's own
    named = {k.partition(".")[2]: v for k, v in own.items() if k not in NOT_TRAINED}
    arguments = ", ".join(f"{k} {shown(v)}" for k, v in named.items() if not k.startswith("_"))
    return ": ".join(filter(None, [name, arguments]))


def layer_changes(before: Sequence[budget.Layer], after: Sequence[budget.Layer]) -> list[str]:
    """Layers that went ("−") or came ("+"), a line each; the same operation with another shape is both."""
    # The same convolution to 10×1×1 is the last one in one network and not in another: 10 there.
    old, new = ([(row.name, math.prod(row.shape), row.parameters) for row in rows] for rows in (before, after))
    matches = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if before and after and not any(block.size for block in matches.get_matching_blocks()):
        return [f"Another network: none of its {len(after)} layers is one of the other's."]
    found: list[str] = []
    for kind, a, b, c, d in matches.get_opcodes():
        signed_rows = [("\N{MINUS SIGN}", row) for row in before[a:b]] + [("+", row) for row in after[c:d]]
        for sign, row in signed_rows if kind != "equal" else ():
            size = f", {row.parameters:,} parameters" if row.parameters else ""
            found.append(f"{sign} {row.name}, {'×'.join(map(str, row.shape))}{size}")
    return found
