"""Virtual time: what happens when. Pure; one thread."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any


class Agenda:
    """Things happen in the order of their times; what is for one time, in the order in which it was put down."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.events = 0  # that have happened
        self._agenda: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._order = 0

    def later(self, delay_s: float, what: Callable[..., Any], *args: Any) -> None:
        self.at(self.now + delay_s, what, *args)

    def at(self, time_s: float, what: Callable[..., Any], *args: Any) -> None:
        """time_s: not before now."""
        self._order += 1
        heapq.heappush(self._agenda, (time_s, self._order, what, args))

    def step(self) -> None:
        """The next thing happens. Raises: IndexError: there is nothing; whatever it raises."""
        self.now, _, what, args = heapq.heappop(self._agenda)
        self.events += 1
        what(*args)

    def next_at(self) -> float:
        """When that is; infinity: nothing will happen any more."""
        return self._agenda[0][0] if self._agenda else math.inf
