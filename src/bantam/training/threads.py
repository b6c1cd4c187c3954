"""How many threads a run takes: the cores that are free when it begins, and whether fewer would be faster."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from joblib import cpu_count, effective_n_jobs

MOMENT = 0.3
"""Seconds over which the load is measured, at least: systems count it in hundredths of a second."""

LOOKS = 2
"""Epochs after which a run looks again."""

ROUNDS = 3
"""How often each number of threads is timed; the fastest counts, since other work disturbs."""

SLOWER = 1.25
"""From how many times as slow on it is said that fewer threads would be faster."""


@dataclass(frozen=True)
class Counters:
    """What a system has counted so far, in seconds."""

    time: float
    busy: float
    """Of all cores that this process may use together."""
    own: float
    """Of this process."""
    cores: int


def counters() -> Counters | None:
    """Read what the system counts; None where it does not say."""
    try:
        mine = os.sched_getaffinity(0)
        with open("/proc/stat", encoding="ascii") as stream:
            lines = [line.split() for line in stream if line.startswith("cpu")]
    except (AttributeError, OSError):  # no Linux
        return None
    # user, nice, system, idle, iowait, irq, softirq and steal; what follows is part of user.
    ticks = [list(map(int, line[1:9])) for line in lines if line[0][3:].isdigit() and int(line[0][3:]) in mine]
    if not any(map(any, ticks)):  # a sandbox that counts nothing
        return None
    busy = sum(sum(each) - sum(each[3:5]) for each in ticks) / os.sysconf("SC_CLK_TCK")
    return Counters(time.monotonic(), busy, time.process_time(), len(ticks))


def average() -> float | None:
    """How many processes were at work in the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


class Load:
    """What other processes take, from the moment on in which it is made."""

    def __init__(
        self,
        read: Callable[[], Counters | None] = counters,
        average: Callable[[], float | None] = average,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """`average` stands in where `read` gives None."""
        self._read, self._average, self._wait = read, average, wait
        self._began = read()

    def others(self) -> float | None:
        """How many cores other processes have taken since then; waits where that is but a moment ago."""
        if self._began is None:
            return self._average()
        now = self._read()
        if now and now.time - self._began.time < MOMENT:
            self._wait(MOMENT - (now.time - self._began.time))
            now = self._read()
        if now is None:
            return self._average()
        busy, own = now.busy - self._began.busy, now.own - self._began.own
        return max(0.0, busy - own) / (now.time - self._began.time)

    @property
    def cores(self) -> int:
        """How many cores there are."""
        return self._began.cores if self._began else cpu_count()

    def free(self) -> tuple[int, float]:
        """How many cores are free, to the nearest, at least one; and how many others have taken."""
        others = self.others() or 0.0
        return max(1, min(cpu_count(), int(self.cores - others + 0.5))), others


def choose(asked: int | None, side_by_side: int, load: Load) -> tuple[int, str]:
    """The number of threads of a run, and why they are fewer than the cores; empty where that needs no reason.

    `side_by_side` is as in `RunInfo`: runs side by side divide the cores, whatever else is going on.
    """
    cores, runs = cpu_count(), effective_n_jobs(side_by_side)
    if asked or runs > 1 or cores == 1:
        return asked or max(1, cores // runs), ""
    free, others = load.free()
    return free, f"other work takes {others:.1f} of {load.cores} cores" if free < cores else ""


def advice(
    number: int, load: Load, once: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> str:
    """A sentence where fewer threads than `number` would be faster, beside what others have taken; else nothing.

    `once` computes something that changes nothing; it is timed with both numbers only where others are at work.
    """
    free, others = load.free()
    if free >= number:
        return ""
    took = dict.fromkeys((number, free), float("inf"))
    try:
        for _ in range(ROUNDS):
            for threads in took:
                torch.set_num_threads(threads)
                began = clock()
                once()
                took[threads] = min(took[threads], clock() - began)
    finally:
        torch.set_num_threads(number)
    times = took[number] / took[free] if took[free] else 1.0
    if times < SLOWER:
        return ""
    return (
        f"other work takes {others:.1f} of {load.cores} cores, and threads={free} would be {times:.1f} times as "
        f"fast as the {number} threads of this run: let it go on, or stop it and begin anew with threads={free}"
    )
