"""The key that is spelled most like one that does not exist."""

import difflib
from collections.abc import Sequence

LEAST = 0.6
"""How alike two names must be, from 0 to 1, for one to be meant by the other."""

ELSEWHERE = 0.8
"""The same, where there are other keys in the group that was typed."""

SYNONYMS = {"learning_rate": "lr", "wd": "weight_decay", "bs": "batch_size"}
"""What other programs call a key."""


def nearest(key: str, there: Sequence[str]) -> str | None:
    """The key that is meant: of the same name, perhaps in another group, or of the one that is spelled most alike.

    None where there is none that is at all alike.
    """
    group, dot, last = key.rpartition(".")
    last = SYNONYMS.get(last, last)
    names = {other: other.rpartition(".")[2] for other in there}
    beside = [name for other, name in names.items() if dot and other.rpartition(".")[0] == group]
    alike = [name for name in names.values() if name == last]
    alike = alike or [name for name in names.values() if name in last.split("_")]  # as in train_epochs
    alike = alike or difflib.get_close_matches(last, beside, n=1, cutoff=LEAST)
    alike = alike or difflib.get_close_matches(last, names.values(), n=1, cutoff=ELSEWHERE if beside else LEAST)
    if not alike and len(last) > 2:  # as target.acc
        alike = [name for other, name in names.items() if name.startswith(last) and other.startswith(key)][:1]
    return max(
        (other for other in there if names[other] in alike),
        key=lambda other: difflib.SequenceMatcher(None, key, other).ratio(),
        default=None,
    )
