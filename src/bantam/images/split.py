"""Which images of a data set to hold out, every class in proportion."""

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray


def stratified(labels: NDArray[np.int64], held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw positions to train on and `held_out` positions to hold out, both sorted.

    Number for number what scikit-learn's `train_test_split(…, stratify=labels, random_state=seed)` draws, whose
    import takes as long as a short trial. Every class needs two images, and each side one of every class.
    """
    random = RandomState(seed)
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    positions = np.split(np.argsort(class_of, kind="stable"), np.cumsum(sizes)[:-1])
    kept = _in_proportion(sizes, len(labels) - held_out, random)
    held = _in_proportion(sizes - kept, held_out, random)
    train, hold = [], []
    for of_class, size, keep, hold_out in zip(positions, sizes, kept, held, strict=True):
        drawn = of_class[random.permutation(size)]
        train.append(drawn[:keep])
        hold.append(drawn[keep : keep + hold_out])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(hold))


def _in_proportion(sizes: NDArray[np.int64], total: int, random: RandomState) -> NDArray[np.int64]:
    """How many of each class make `total`: shares rounded down, what is missing to the largest remainders."""
    shares = sizes / sizes.sum() * total
    counts: NDArray[np.int64] = np.floor(shares).astype(np.int64)
    remainders = shares - counts
    missing = total - int(counts.sum())
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        (tied,) = np.where(remainders == remainder)
        added = random.choice(tied, size=min(len(tied), missing), replace=False)
        counts[added] += 1
        missing -= len(added)
    return counts
