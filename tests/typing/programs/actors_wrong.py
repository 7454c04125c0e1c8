"""Each line marked as wrong is refused by a type checker, and no other. Never run."""

import ray


@ray.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def inc(self, by: int = 1) -> int:
        self.n += by
        return self.n


Counter.remote("a")  # wrong
Counter.remote(stop=1)  # wrong
counter = Counter.remote()
counter.inc.remote("a")  # wrong
counter.inc.remote(1, 2)  # wrong
counter.dec.remote()  # wrong
x: str = ray.get(counter.inc.remote())  # wrong
