from itertools import pairwise

import pytest

from bantam.training.status import Line


class Clock:
    """What a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_appears_at_least_every_half_minute() -> None:
    clock, times = Clock(), [0.0]
    line = Line(lambda text: times.append(clock.now), "starting", clock=clock)
    for second in range(1, 200):
        clock.now = second
        if second % 40 == 0:  # an epoch ends, and has a line of its own
            line.was_written()
            times.append(second)
        line.look()
    assert all(later - earlier < 30 for earlier, later in pairwise([*times, 199]))
    assert len(times) == 10


def test_the_line_is_the_latest() -> None:
    clock, written = Clock(), list[str]()
    line = Line(written.append, "starting", clock=clock)
    clock.now = 29
    line.look()
    line.update("epoch 1")
    line.update("epoch 2")
    line.look()
    clock.now = 60
    line.look()
    assert written == ["starting", "epoch 2"]


def test_a_line_in_place_changes_twice_a_second_and_is_empty_at_the_end() -> None:
    clock, shown = Clock(), list[str]()
    with Line(lambda text: None, "starting", shown.append, clock) as line:
        for tenths in range(11):
            clock.now = tenths / 10
            line.update(f"{tenths}")
    assert shown == ["starting", "5", "10", ""]


def test_nobody_who_reads_on_is_no_error() -> None:
    def write(text: str) -> None:
        raise BrokenPipeError

    clock = Clock()
    line = Line(write, "starting", clock=clock)
    clock.now = 30
    line.look()


def test_whoever_ends_it_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), Line(lambda text: None, "starting"):
        raise KeyboardInterrupt
