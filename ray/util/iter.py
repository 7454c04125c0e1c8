"""Parallel iterators: streams of items in several shards, each produced and transformed in an actor of its own.

    it = from_range(1000, num_shards=4).for_each(lambda x: x * 2).filter(lambda x: x % 3 == 0).batch(10)
    for batch in it.gather_async(): ...

A library on the public API. A ParallelIterator is only a description: actors, and functions that each turn one iterator
into another. Nothing runs before it is gathered into a LocalIterator and that is asked for an item. Each gathering is a
*pass* with an id of its own: the actors build the iterator of a pass when they first hear of it, and forget it when it
ends or its consumer has gone; so passes don't disturb one another. An error of the user's functions, or an actor's
death, is raised where the item would have come.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Generic, TypeVar

import ray
from ray.util._iter_shards import Gathering, Given, InTurn, ParallelIteratorWorker, RepartitionWorker, Shard, Transform

T = TypeVar("T")
U = TypeVar("U")

__all__ = [
    "LocalIterator",
    "ParallelIterator",
    "ParallelIteratorWorker",
    "from_actors",
    "from_items",
    "from_iterators",
    "from_range",
]


# --- making them -----------------------------------------------------------------------------------------------------


def from_items(items: Iterable[T], num_shards: int = 2, repeat: bool = False) -> ParallelIterator[T]:
    """The items, dealt out to num_shards shards in turn; again and again if repeat."""
    dealt = list(items)
    _positive("from_items", "num_shards", num_shards)
    return from_iterators([dealt[i::num_shards] for i in range(num_shards)], repeat)


def from_range(n: int, num_shards: int = 2, repeat: bool = False) -> ParallelIterator[int]:
    """0 to n - 1, each shard a contiguous part; again and again if repeat."""
    _positive("from_range", "num_shards", num_shards)
    _positive("from_range", "n", n, least=0)
    bounds = [n * i // num_shards for i in range(num_shards + 1)]
    return from_iterators([range(low, high) for low, high in zip(bounds, bounds[1:])], repeat)


def from_iterators(
    generators: Iterable[Iterable[T] | Callable[[], Iterable[T]]], repeat: bool = False, name: str | None = None
) -> ParallelIterator[T]:
    """One shard for each of generators, each an iterable that can be pickled, or a function that returns an iterable.
    Again and again if repeat."""
    made = [ray.remote(ParallelIteratorWorker).remote(generator, repeat) for generator in generators]
    return from_actors(made, name or f"from_iterators[{len(made)}{', repeat' if repeat else ''}]")


def from_actors(actors: Iterable[Any], name: str | None = None) -> ParallelIterator[Any]:
    """One shard for each of the actors, whose class must be a subclass of ParallelIteratorWorker."""
    shards = [Shard(actor, ()) for actor in actors]
    if not shards:
        raise ValueError("a parallel iterator needs at least one shard, and none was given")
    return ParallelIterator(shards, name or f"from_actors[{len(shards)}]")


# --- in shards -------------------------------------------------------------------------------------------------------


class _Transforms(Generic[T]):
    """What both kinds of iterators can do to their items; subclasses say what `transform` and `_named` make."""

    name: str

    def _with(self, transform: Transform, name: str) -> Any:
        raise AssertionError("a subclass defines it")

    def transform(self, fn: Callable[[Iterator[T]], Iterator[U]]) -> Any:
        """fn turns the iterator over the items (of a shard) into another."""
        return self._with(fn, "transform()")

    def filter(self, fn: Callable[[T], bool]) -> Any:
        """Keeps the items for which fn is true."""
        return self._with(lambda items: (item for item in items if fn(item)), "filter()")

    def batch(self, n: int) -> Any:
        """Lists of n items; the last one may be shorter."""
        _positive("batch", "n", n)

        def batches(items: Iterator[Any]) -> Iterator[list[Any]]:
            while found := list(itertools.islice(items, n)):
                yield found

        return self._with(batches, f"batch({n})")

    def flatten(self) -> Any:
        """The items of the items."""
        return self._with(lambda items: (inner for item in items for inner in item), "flatten()")

    def combine(self, fn: Callable[[T], Iterable[U]]) -> Any:
        """The items of fn(item)."""
        return self._with(lambda items: (inner for item in items for inner in fn(item)), "combine()")

    def for_each(self, fn: Callable[[T], U], max_concurrency: int = 1, resources: dict[str, Any] | None = None) -> Any:
        """fn(item) for each item.

        Args:
            max_concurrency: above 1, the calls are tasks of their own, so many at once (for each shard); 0 means no
                limit. The order stays.
            resources: options of those tasks, such as {"num_cpus": 2}.
        """
        _positive("for_each", "max_concurrency", max_concurrency, least=0)
        if max_concurrency == 1 and not resources:
            return self._with(lambda items: map(fn, items), "for_each()")

        def in_tasks(items: Iterator[Any]) -> Iterator[Any]:
            task = ray.remote(fn)
            task = task.options(**resources) if resources else task
            running: deque[ray.ObjectRef[Any]] = deque()
            for item in items:
                running.append(task.remote(item))
                if max_concurrency and len(running) >= max_concurrency:
                    yield ray.get(running.popleft())
            while running:
                yield ray.get(running.popleft())

        return self._with(in_tasks, f"for_each(max_concurrency={max_concurrency})")

    def _shuffled(self, buffer_size: int, seed: int | None, name: str) -> Any:
        _positive(name, "shuffle_buffer_size", buffer_size)

        def shuffled(items: Iterator[Any]) -> Iterator[Any]:
            rng, buffer = random.Random(seed), []
            for item in items:
                buffer.append(item)
                if len(buffer) >= buffer_size:
                    at = rng.randrange(len(buffer))
                    buffer[at], buffer[-1] = buffer[-1], buffer[at]
                    yield buffer.pop()
            rng.shuffle(buffer)
            yield from buffer

        return self._with(shuffled, f"{name}({buffer_size})")

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{self.name}]"


class ParallelIterator(_Transforms[T]):
    """Items in shards. Make one with from_items, from_range, from_iterators or from_actors."""

    def __init__(self, shards: list[Shard], name: str) -> None:
        self._shards = shards
        self.name = name

    def __iter__(self) -> Iterator[T]:
        raise TypeError(
            "a ParallelIterator has no order of its own: iterate over .gather_sync(), .gather_async() or one of "
            ".shards()"
        )

    def _with(self, transform: Transform, name: str) -> ParallelIterator[Any]:
        return ParallelIterator([shard.with_transform(transform) for shard in self._shards], f"{self.name}.{name}")

    def local_shuffle(self, shuffle_buffer_size: int, seed: int | None = None) -> ParallelIterator[T]:
        """Each shard's items in random order, as far as a buffer of that size makes it so."""
        found: ParallelIterator[T] = self._shuffled(shuffle_buffer_size, seed, "local_shuffle")
        return found

    def repartition(self, num_partitions: int, batch_ms: float = 0) -> ParallelIterator[T]:
        """The same items in another number of shards; each new one takes its share of every old one.

        Args: batch_ms: how long old shards collect items before they pass them on; 0 passes on one at a time.
        """
        _positive("repartition", "num_partitions", num_partitions)
        _positive("repartition", "batch_ms", batch_ms, least=0, kind=(int, float))
        worker = ray.remote(RepartitionWorker)
        group = os.urandom(4).hex()
        made = [worker.remote(group, self._shards, num_partitions, i, batch_ms) for i in range(num_partitions)]
        return from_actors(made, f"{self.name}.repartition({num_partitions})")

    def union(self, other: ParallelIterator[T]) -> ParallelIterator[T]:
        """The shards of both."""
        if not isinstance(other, ParallelIterator):
            raise TypeError(f"union: other={other!r}: expected a ParallelIterator")
        return ParallelIterator([*self._shards, *other._shards], f"union[{self.name}, {other.name}]")

    def select_shards(self, shards_to_keep: Iterable[int]) -> ParallelIterator[T]:
        """Some of the shards, by their numbers."""
        kept = list(shards_to_keep)
        for i in kept:
            self._check_index("select_shards", i)
        if not kept:
            raise ValueError("select_shards: shards_to_keep is empty: expected at least one number")
        return ParallelIterator([self._shards[i] for i in kept], f"{self.name}.select_shards({len(kept)})")

    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def shards(self) -> list[LocalIterator[T]]:
        """One LocalIterator for each shard; each may be passed to a task or actor, and be iterated there."""
        return [self.get_shard(i) for i in range(self.num_shards())]

    def get_shard(self, shard_index: int, batch_ms: float = 0, num_async: int = 1) -> LocalIterator[T]:
        """The items of one shard. batch_ms and num_async as in gather_async."""
        self._check_index("get_shard", shard_index)
        source = Gathering([self._shards[shard_index]], *_prefetch("get_shard", batch_ms, num_async))
        return LocalIterator(source, f"{self.name}.shard[{shard_index}]")

    def gather_sync(self) -> LocalIterator[T]:
        """One item of each shard in turn: the order depends on nothing but the items."""
        return LocalIterator(InTurn(self._shards, flat=True), f"{self.name}.gather_sync()")

    def batch_across_shards(self) -> LocalIterator[list[T]]:
        """Lists of one item of each shard; of those that still have any."""
        return LocalIterator(InTurn(self._shards, flat=False), f"{self.name}.batch_across_shards()")

    def gather_async(self, batch_ms: float = 0, num_async: int = 1) -> LocalIterator[T]:
        """The items of all shards in the order in which they come.

        Args:
            batch_ms: how long a shard collects items before it sends them; 0 sends one at a time.
            num_async: how many requests each shard is sent ahead.
        """
        source = Gathering(self._shards, *_prefetch("gather_async", batch_ms, num_async))
        return LocalIterator(source, f"{self.name}.gather_async()")

    def take(self, n: int) -> list[T]:
        """The first n items of gather_sync()."""
        return self.gather_sync().take(n)

    def show(self, n: int = 20) -> None:
        """Prints the first n items of gather_sync()."""
        self.gather_sync().show(n)

    def _check_index(self, method: str, index: Any) -> None:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"{method}: {index!r}: expected the number of a shard")
        if not 0 <= index < len(self._shards):
            raise ValueError(f"{method}: {index}: expected 0 to {len(self._shards) - 1}, for there are so many shards")


# --- in this process -------------------------------------------------------------------------------------------------


class LocalIterator(_Transforms[T]):
    """Items that come to the process that iterates. An iterator: what was taken is gone. Until the first item is taken
    it may be passed to a task or actor."""

    def __init__(self, source: Any, name: str, transforms: tuple[Transform, ...] = ()) -> None:
        self._source = source  # has run(pass_id) and last_actor
        self._transforms = transforms
        self._items: Iterator[T] | None = None
        self.name = name

    def __iter__(self) -> LocalIterator[T]:
        return self

    def __next__(self) -> T:
        if self._items is None:
            items: Iterator[Any] = self._source.run(os.urandom(8).hex())
            for transform in self._transforms:
                items = iter(transform(items))
            self._items = items
        return next(self._items)

    def __reduce__(self) -> Any:
        if self._items is not None:
            raise TypeError(f"{self!r} has been started, and can't be sent to another process any more")
        return LocalIterator, (self._source, self.name, self._transforms)

    def _with(self, transform: Transform, name: str) -> LocalIterator[Any]:
        return LocalIterator(self._source, f"{self.name}.{name}", (*self._transforms, transform))

    def shuffle(self, shuffle_buffer_size: int, seed: int | None = None) -> LocalIterator[T]:
        """The items in random order, as far as a buffer of that size makes it so."""
        found: LocalIterator[T] = self._shuffled(shuffle_buffer_size, seed, "shuffle")
        return found

    def zip_with_source_actor(self) -> LocalIterator[tuple[Any, T]]:
        """(actor, item) pairs, which say from which shard's actor each item came."""
        source = self._source
        return self._with(lambda items: ((source.last_actor, item) for item in items), "zip_with_source_actor()")

    def take(self, n: int) -> list[T]:
        """The next n items, or those there are."""
        _positive("take", "n", n, least=0)
        return list(itertools.islice(self, n))

    def show(self, n: int = 20) -> None:
        """Prints the next n items."""
        for item in self.take(n):
            print(item)

    def duplicate(self, n: int) -> list[LocalIterator[T]]:
        """n iterators that each give all items; what one is ahead of another is kept in memory."""
        _positive("duplicate", "n", n, least=2)
        return [
            LocalIterator(Given(items), f"{self.name}.duplicate[{i}]") for i, items in enumerate(itertools.tee(self, n))
        ]

    def union(
        self, *others: LocalIterator[T], deterministic: bool = False, round_robin_weights: list[Any] | None = None
    ) -> LocalIterator[T]:
        """The items of this and others in turn.

        Args:
            deterministic: accepted; the order is so in any case.
            round_robin_weights: how many items each gives in its turn, by default 1; "*" gives all that it has.
        """
        for other in others:
            if not isinstance(other, LocalIterator):
                raise TypeError(f"union: {other!r}: expected LocalIterators")
        parts = [self, *others]
        weights = [1] * len(parts) if round_robin_weights is None else list(round_robin_weights)
        if len(weights) != len(parts):
            raise ValueError(f"union: round_robin_weights={weights!r}: expected {len(parts)} of them")
        for weight in weights:
            if weight != "*":
                _positive("union", "round_robin_weights", weight)

        def in_turn() -> Iterator[T]:
            left = list(zip(parts, weights))
            while left:
                still = []
                for part, weight in left:
                    taken = 0
                    for item in itertools.islice(part, None if weight == "*" else weight):
                        taken += 1
                        yield item
                    if weight != "*" and taken == weight:
                        still.append((part, weight))
                left = still

        return LocalIterator(Given(in_turn()), f"union[{', '.join(part.name for part in parts)}]")


def _prefetch(method: str, batch_ms: float, num_async: int) -> tuple[float, int]:
    _positive(method, "batch_ms", batch_ms, least=0, kind=(int, float))
    _positive(method, "num_async", num_async)
    return batch_ms, num_async


def _positive(method: str, name: str, value: Any, least: int = 1, kind: Any = int) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{method}: {name}={value!r}: expected a {'whole ' if kind is int else ''}number")
    if not value >= least:
        raise ValueError(f"{method}: {name}={value!r}: expected at least {least}")
