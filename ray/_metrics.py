"""What this process has measured since it last told the node: behind `ray.util.metrics`. Any thread of a core.

Values gather in a table under a lock; the engine asks for them at most once a second, and when somebody looks
(`Engine.add_reporter`), and the node adds them up with those of other processes. Counters and histograms are handed
over as what came on top, gauges as their last value. Before ray runs they wait here. A process that is killed takes
with it what it measured in its last second.
"""

from __future__ import annotations

import bisect
import threading
import time
from typing import Any

from ray._core.engine import Engine, current

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
SERIES_MAX = 10_000  # combinations of a name and tags that wait to be handed over; what is beyond is dropped

Tags = tuple[tuple[str, str], ...]


class Registry:
    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant, for a signal handler that measures something
        self._series: dict[tuple[str, Tags], Any] = {}
        self._kinds: dict[str, tuple[str, str, tuple[float, ...]]] = {}  # name -> (kind, description, boundaries)
        self._told: Engine | None = None
        self.dropped = 0

    def declare(self, name: str, kind: str, description: str, boundaries: tuple[float, ...] = ()) -> None:
        """Raises: ValueError: the name stands for something else in this process."""
        known = self._kinds.get(name)
        if known is not None and (known[0], known[2]) != (kind, boundaries):
            raise ValueError(
                f"metric {name!r} is a {known[0]} of this process already"
                + (f", with boundaries {list(known[2])}" if known[2] and kind == HISTOGRAM else "")
                + "; give the other one another name"
            )
        self._kinds[name] = (kind, description, boundaries)

    def add(self, name: str, tags: Tags, amount: float) -> None:
        with self._lock:
            if self._has_room(name, tags):
                self._series[name, tags] = self._series.get((name, tags), 0.0) + amount
        self._report_soon()

    def set(self, name: str, tags: Tags, value: float) -> None:
        with self._lock:
            if self._has_room(name, tags):
                self._series[name, tags] = (value, time.time())
        self._report_soon()

    def observe(self, name: str, tags: Tags, value: float) -> None:
        boundaries = self._kinds[name][2]
        with self._lock:
            if self._has_room(name, tags):
                counts, total = self._series.get((name, tags)) or ([0] * (len(boundaries) + 1), 0.0)
                counts[bisect.bisect_left(boundaries, value)] += 1  # a bucket holds its upper boundary
                self._series[name, tags] = (counts, total + value)
        self._report_soon()

    def _has_room(self, name: str, tags: Tags) -> bool:
        if len(self._series) < SERIES_MAX or (name, tags) in self._series:
            return True
        self.dropped += 1
        return False

    def _report_soon(self) -> None:
        engine = current()
        if engine is None:
            return
        if engine is not self._told:
            with self._lock:
                if engine is not self._told:
                    self._told = engine
                    engine.add_reporter(self.hand_over)
        engine.report_soon()

    def hand_over(self) -> None:
        """The engine's reporter. In its receiving thread: blocks for no longer than a thread adds a number."""
        engine = current()
        if engine is None:
            return
        with self._lock:
            series, self._series = self._series, {}
        if series:
            kinds = {name: self._kinds[name] for name, _ in series}
            engine.event("metrics", kinds, [(name, tags, value) for (name, tags), value in series.items()])


registry = Registry()
