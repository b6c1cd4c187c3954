"""What is held out is what scikit-learn holds out, so that a split of an earlier version stays what it was."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from bantam.images.split import stratified


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(2, 60), min_size=2, max_size=27),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
)
def test_the_split_is_that_of_scikit_learn(sizes: list[int], seed: int, share: float) -> None:
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)
    np.random.default_rng(seed).shuffle(labels)
    held_out = len(sizes) + int(share * (len(labels) - 2 * len(sizes)))
    train, hold = stratified(labels, held_out, seed)
    expected = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=seed)
    assert [train.tolist(), hold.tolist()] == [sorted(part.tolist()) for part in expected]
