"""A graph that is as wide as its input says, for dataflow.py."""

from hamilton.htypes import Collect, Parallelizable


def item(count: int) -> Parallelizable[int]:
    yield from range(count)


def square(item: int) -> int:
    return item * item


def total(square: Collect[int]) -> int:
    return sum(square)
