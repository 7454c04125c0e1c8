"""The inside of parallel iterators: the actors that produce a shard's items, and the passes that fetch them.

`ParallelIteratorWorker` is the shard's actor: one call at a time, in the order of the requests. `Gathering` and
`InTurn` live in the process that takes the items, which is the consumer's or that of a repartitioned shard. A pass has
one key per shard; an actor keeps what it has of a pass until all its takers have said that they are through.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Callable

import ray

Transform = Callable[[Iterator[Any]], Iterator[Any]]


class ParallelIteratorWorker:
    """What a shard's actor is. Subclasses may have other methods too: `from_actors` makes an iterator of such actors.

    Args: item_generator: an iterable, or a function that returns one.  repeat: start it again whenever it ends.
    """

    def __init__(self, item_generator: Any, repeat: bool) -> None:
        self._item_generator = item_generator
        self._repeat = repeat
        self._passes: dict[str, _Pass] = {}

    def par_iter_next(
        self, key: str, transforms: tuple[Transform, ...], step: int, start: int, batch_ms: float
    ) -> tuple[list[Any], bool]:
        """(items, whether there are more) of those whose number is start modulo step: one item, or those that come
        within batch_ms."""
        running = self._passes.get(key)
        if running is None:
            made: Iterator[Any] = self._items(key)
            for transform in transforms:
                made = iter(transform(made))
            running = self._passes[key] = _Pass(made, step)
        items: list[Any] = []
        ends, more = time.monotonic() + batch_ms / 1000, True
        while more and (not items or (running.failed is None and time.monotonic() < ends)):
            more = running.take(start, items)
        return items, more

    def par_iter_end(self, key: str, start: int) -> None:
        """This taker will ask for no more of this pass."""
        running = self._passes.get(key)
        if running is not None and running.leave(start):
            del self._passes[key]

    def _items(self, _key: str) -> Iterator[Any]:
        generator = self._item_generator
        while True:
            empty = True
            for item in generator() if callable(generator) else generator:
                empty = False
                yield item
            if not self._repeat:
                return
            if empty:
                raise ValueError("repeat=True: this shard has no items to repeat")


class _Pass:
    """The items of one pass through one shard, dealt out to `step` takers; usually there is one."""

    def __init__(self, items: Iterator[Any], step: int) -> None:
        self._items = items
        self._number = 0
        self._dealt: list[deque[Any] | None] = [deque() for _ in range(step)]  # None: that taker has left
        self.failed: Exception | None = None

    def take(self, start: int, into: list[Any]) -> bool:
        """Adds the taker's next item to `into`; False if there is none. An error of the user's comes when the items
        before it have been taken."""
        mine = self._dealt[start]
        while mine is not None and not mine:
            if self.failed is not None:
                error, self.failed = self.failed, None
                raise error
            try:
                item = next(self._items)
            except StopIteration:
                return False
            except Exception as error:
                if not into:
                    raise
                self.failed = error
                return True
            box = self._dealt[self._number % len(self._dealt)]
            self._number += 1
            if box is not None:
                box.append(item)
        if mine is None:
            return False
        into.append(mine.popleft())
        return True

    def leave(self, start: int) -> bool:
        """Whether that was the last taker."""
        self._dealt[start] = None
        return not any(box is not None for box in self._dealt)


class RepartitionWorker(ParallelIteratorWorker):
    """A shard whose items are every `step`-th of those of other shards."""

    def __init__(self, group: str, shards: list[Shard], step: int, start: int, batch_ms: float) -> None:
        """group: a name that all shards of this repartition have, and no others."""
        super().__init__(None, False)
        self._group = group
        self._source = (shards, step, start, batch_ms)

    def _items(self, key: str) -> Iterator[Any]:
        # All shards of this repartition are at the same pass, and must name it alike to the shards that they take from.
        shards, step, start, batch_ms = self._source
        return Gathering(shards, batch_ms, 1, step, start).run(f"{key.rpartition('.')[0]}/{self._group}")


class Shard:
    """An actor, and what is done to its items there."""

    def __init__(self, actor: Any, transforms: tuple[Transform, ...]) -> None:
        self.actor = actor
        self.transforms = transforms

    def with_transform(self, transform: Transform) -> Shard:
        return Shard(self.actor, (*self.transforms, transform))


class Gathering:
    """Items of shards in the order in which they come. A factory: each `run` is a pass."""

    def __init__(self, shards: list[Shard], batch_ms: float, num_async: int, step: int = 1, start: int = 0) -> None:
        self._shards = shards
        self._batch_ms = batch_ms
        self._num_async = num_async
        self._part = (step, start)
        self.last_actor: Any = None  # from which the item given last came

    def run(self, pass_id: str) -> Iterator[Any]:
        asked: dict[ray.ObjectRef[Any], int] = {}
        try:
            for _ in range(self._num_async):
                for i in range(len(self._shards)):
                    asked[self._ask(i, pass_id)] = i
            ended: set[int] = set()
            while asked:
                (ref,), _ = ray.wait(list(asked), num_returns=1)
                i = asked.pop(ref)
                items, more = ray.get(ref)
                if not more:
                    ended.add(i)
                elif i not in ended:
                    asked[self._ask(i, pass_id)] = i
                for item in items:
                    self.last_actor = self._shards[i].actor
                    yield item
        finally:
            _end(self._shards, pass_id, self._part[1])

    def _ask(self, i: int, pass_id: str) -> ray.ObjectRef[Any]:
        shard = self._shards[i]
        found: ray.ObjectRef[Any] = shard.actor.par_iter_next.remote(
            f"{pass_id}.{i}", shard.transforms, *self._part, self._batch_ms
        )
        return found

    def __reduce__(self) -> Any:
        return Gathering, (self._shards, self._batch_ms, self._num_async, *self._part)


class InTurn:
    """One item of each shard in turn, asked of all at once; `flat` or as lists."""

    def __init__(self, shards: list[Shard], flat: bool) -> None:
        self._shards = shards
        self._flat = flat
        self.last_actor: Any = None

    def run(self, pass_id: str) -> Iterator[Any]:
        left = list(enumerate(self._shards))
        try:
            while left:
                refs = [
                    shard.actor.par_iter_next.remote(f"{pass_id}.{i}", shard.transforms, 1, 0, 0) for i, shard in left
                ]
                found, still = [], []
                for (i, shard), ref in zip(left, refs):
                    items, more = ray.get(ref)
                    if more:
                        still.append((i, shard))
                    if self._flat:
                        for item in items:
                            self.last_actor = shard.actor
                            yield item
                    else:
                        found += items
                left = still
                if found:
                    yield found
        finally:
            _end(self._shards, pass_id, 0)

    def __reduce__(self) -> Any:
        return InTurn, (self._shards, self._flat)


class Given:
    """Items of iterators of this process."""

    last_actor: Any = None

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def run(self, _pass_id: str) -> Iterator[Any]:
        return self._items

    def __reduce__(self) -> Any:
        raise TypeError("this LocalIterator takes from others of this process, and can't be sent to another")


def _end(shards: list[Shard], pass_id: str, start: int) -> None:
    if ray.is_initialized():
        for i, shard in enumerate(shards):
            shard.actor.par_iter_end.remote(f"{pass_id}.{i}", start)
