"""Waiting for what has no event to wait for: a condition on another process, a file, a counter. And how long something
took, on a machine that others use too. LIBRARY of tests."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Callable


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0, *, what: str = "") -> Any:
    """Asks condition() until it returns something true, and returns that.

    The limit is for what never comes: what does come is not made slower by a generous one, and a machine may be busy.

    Raises: AssertionError: not within timeout_s; says what was waited for and what condition() returned last. What
            condition() raises passes through at once.
    Blocks: yes, asking a hundred times a second.
    """
    deadline = time.monotonic() + timeout_s
    while not (last := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {what or condition!r}; the last answer was {last!r}")
        time.sleep(0.01)
    return last


class Stopwatch:
    """Seconds since it was made, without those in which this machine kept somebody waiting.

    For promises like "within a second": they are about a machine that has a free CPU. What the kernel has counted as
    pressure (some process could run and had no CPU, or waited for a disk or for memory) is not ours, nor is what a
    hypervisor took. On a quiet machine it is an ordinary watch; where the kernel counts no pressure it is one always.
    """

    def __init__(self) -> None:
        self._began, self._hindered = time.monotonic(), _hindered_s()

    def read(self) -> float:
        return max(0.0, time.monotonic() - self._began - (_hindered_s() - self._hindered))


def _hindered_s() -> float:
    """Seconds since the machine started in which it was busy with others, or with more than it has CPUs for."""
    total = 0.0
    for what in ("cpu", "io", "memory"):
        with contextlib.suppress(OSError), open(f"/proc/pressure/{what}") as file:
            # some avg10=0.00 avg60=0.00 avg300=0.00 total=<microseconds>
            total += int(file.readline().rpartition("total=")[2]) / 1e6
    with open("/proc/stat") as file:
        taken = int(file.readline().split()[8])  # by the hypervisor, from all CPUs together
    return total + taken / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises AssertionError if the block takes longer; see Stopwatch."""
    watch = Stopwatch()
    yield
    took = watch.read()
    assert took <= seconds, f"took {took:.2f} s, more than {seconds} s"
