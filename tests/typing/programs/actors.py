"""Right, with the plugin for mypy: actor classes and their methods. Read by type checkers only, never run."""

from __future__ import annotations

from typing_extensions import assert_type

import ray
from ray import ObjectRef
from ray.actor import ActorHandle


@ray.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def inc(self, by: int = 1) -> int:
        self.n += by
        return self.n

    async def later(self) -> str:
        return "x"

    @staticmethod
    def version() -> str:
        return "1"


@ray.remote(num_cpus=2)
class Plain:
    def get(self) -> None: ...


counter = Counter.remote(3)
assert_type(counter, ActorHandle[Counter])
assert_type(counter.inc.remote(), ObjectRef[int])
assert_type(counter.inc.remote(by=2), ObjectRef[int])
assert_type(counter.inc.remote(counter.inc.remote()), ObjectRef[int])
assert_type(ray.get(counter.later.remote()), str)
assert_type(ray.get([counter.inc.remote() for _ in range(3)]), list[int])
assert_type(Counter.options(name="c").remote(1), ActorHandle[Counter])
assert_type(Plain.remote().get.remote(), ObjectRef[None])
assert_type(counter.version.remote(), ObjectRef[str])
counter.inc.options(num_returns=1).remote(1)
counter.__ray_ready__.remote()
ray.kill(counter)
