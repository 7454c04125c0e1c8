"""Right: remote functions, refs, get, put, wait. Read by type checkers only, never run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typing_extensions import assert_type

import ray
from ray import ObjectRef


@ray.remote
def double(x: int, by: int = 2) -> int:
    return x * by


@ray.remote(num_cpus=2, max_retries=0)
def name(x: int) -> str:
    return str(x)


@ray.remote
def nothing() -> None: ...


ref = double.remote(1)
assert_type(ref, ObjectRef[int])
assert_type(double.remote(1, by=3), ObjectRef[int])
assert_type(double.remote(ref), ObjectRef[int])
assert_type(double.remote(1, ref), ObjectRef[int])
assert_type(name.remote(1), ObjectRef[str])
assert_type(ray.get(ref), int)
assert_type(ray.get([double.remote(i) for i in range(3)]), list[int])
assert_type(ray.get(nothing.remote()), None)
assert_type(ray.put("a"), ObjectRef[str])
assert_type(ray.get(ray.put("a"), timeout=1.0), str)
ready, rest = ray.wait([ref], num_returns=1)
assert_type(ready, list[ObjectRef[int]])
assert_type(double.options(num_cpus=1).remote(1), ObjectRef[int])
double.options(num_returns=2).remote(1)


async def wait() -> int:
    return await double.remote(1)


assert_type(ref.future().result(), int)


@ray.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


for item in count.remote(3):
    assert_type(item, ObjectRef[int])
assert_type(double.options(num_returns=2).remote(1), Any)
mixed = ray.get([double.remote(1), name.remote(2)])
first, second = mixed
some: list[Any] = [double.remote(1)]
assert_type(ray.get(some), list[Any])
anything: Any = double.remote(1)
ray.get(anything)
