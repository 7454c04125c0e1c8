"""Right for a checker that knows no plugin: methods of actors are not checked, and nothing is refused. Never run."""

from __future__ import annotations

import ray


@ray.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def inc(self, by: int = 1) -> int:
        self.n += by
        return self.n


counter = Counter.remote(3)
total: int = ray.get(counter.inc.remote(2))
named = Counter.options(name="c").remote()
ray.kill(named)
