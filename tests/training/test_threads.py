from collections.abc import Callable, Iterator

import pytest
import torch

from bantam.training import threads
from bantam.training.threads import Counters, Load, advice, choose, counters

CORES = 4


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "cpu_count", lambda: CORES)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(others: float, own: float = 0.0, cores: int = CORES) -> Load:
    """Other processes take so many cores, and this one takes some too."""
    readings = iter([Counters(0, 100, 7, cores), Counters(2, 100 + 2 * (others + own), 7 + 2 * own, cores)])
    return Load(lambda: next(readings))


@pytest.mark.parametrize(
    ("others", "number"), [(0, 4), (0.4, 4), (0.6, 3), (1, 3), (2.2, 2), (3.9, 1), (4.0, 1), (9.0, 1)]
)
def test_a_run_takes_the_cores_that_others_leave(others: float, number: int) -> None:
    assert choose(None, 1, load(others, own=0.9))[0] == number


def test_what_a_run_took_and_why_is_said_where_it_is_not_all() -> None:
    assert choose(None, 1, load(1.25)) == (3, "other work takes 1.2 of 4 cores")
    assert choose(None, 1, load(0.1)) == (4, "")


def unread() -> Counters:
    raise AssertionError("the load was measured")


@pytest.mark.parametrize(("asked", "side_by_side", "number"), [(2, 1, 2), (7, 1, 7), (None, 2, 2), (None, 8, 1)])
def test_what_is_asked_for_and_what_is_side_by_side_does_not_depend_on_the_load(
    asked: int | None, side_by_side: int, number: int
) -> None:
    beside = Load(lambda: None, average=unread)  # type: ignore[arg-type, return-value]
    assert choose(asked, side_by_side, beside) == (number, "")


def test_of_many_cores_only_so_many_may_be_used() -> None:
    """A container of four cores on a machine of 64, of which others take 20."""
    assert choose(None, 1, load(20, cores=64)) == (4, "")
    assert choose(None, 1, load(62, cores=64)) == (2, "other work takes 62.0 of 64 cores")


def test_a_moment_is_waited_for_where_the_load_would_be_too_short_to_measure() -> None:
    readings = iter([Counters(0, 0, 0, 4), Counters(0.1, 0, 0, 4), Counters(0.3, 0.6, 0, 4)])
    waited: list[float] = []
    assert Load(lambda: next(readings), wait=waited.append).others() == pytest.approx(2)
    assert waited == [pytest.approx(0.2)]


def test_the_average_stands_in_where_a_system_counts_nothing() -> None:
    assert choose(None, 1, Load(lambda: None, average=lambda: 1.9))[0] == 2
    assert choose(None, 1, Load(lambda: None, average=lambda: None)) == (4, "")


def test_what_the_system_counts_goes_on() -> None:
    before = counters()
    if before is None:
        pytest.skip("this system does not count what its cores do")
    sum(range(10**6))
    now = counters()
    assert now is not None
    assert now.time > before.time
    assert now.busy >= before.busy
    assert now.own > before.own
    assert now.cores == before.cores >= 1


def timed(seconds: dict[int, float]) -> tuple[Callable[[], None], Callable[[], float]]:
    """Something that takes so long with each number of threads, and the clock that shows it."""
    now = 0.0

    def once() -> None:
        nonlocal now
        now += seconds[torch.get_num_threads()]

    return once, lambda: now


def test_that_fewer_threads_would_be_faster_is_said_with_the_key() -> None:
    torch.set_num_threads(4)
    assert advice(4, load(2, own=2), *timed({4: 0.7, 2: 0.1})) == (
        "other work takes 2.0 of 4 cores, and threads=2 would be 7.0 times as fast as the 4 threads of this run: "
        "let it go on, or stop it and begin anew with threads=2"
    )
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("seconds", [{4: 0.1, 2: 0.1}, {4: 0.1, 2: 0.2}, {4: 0.12, 2: 0.1}, {4: 0, 2: 0}])
def test_nothing_is_said_where_fewer_threads_are_no_faster(seconds: dict[int, float]) -> None:
    torch.set_num_threads(4)
    assert advice(4, load(2), *timed(seconds)) == ""
    assert torch.get_num_threads() == 4


def test_nothing_is_timed_where_nobody_else_is_at_work() -> None:
    assert advice(4, load(0.3, own=3.5), unread) == ""
    assert advice(2, load(1.8, own=2), unread) == ""


def test_the_number_of_threads_stays_where_the_timing_is_interrupted() -> None:
    def once() -> None:
        raise KeyboardInterrupt

    torch.set_num_threads(4)
    with pytest.raises(KeyboardInterrupt):
        advice(4, load(3), once)
    assert torch.get_num_threads() == 4
