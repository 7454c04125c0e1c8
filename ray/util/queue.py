"""Queue: a first-in, first-out queue that any number of drivers, tasks and actors share, like `queue.Queue`.

A library on the public API. The items live in one async actor, so that a `put` or `get` that waits is a suspended
coroutine there and a waiting `ray.get` here; nothing polls. A Queue may be passed on like a handle; the actor, and what
is still in it, goes when the last copy of it is gone, or on `shutdown`. If the actor dies, every call, waiting ones
included, raises RayActorError.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable
from typing import Any

import ray

__all__ = ["Empty", "Full", "Queue"]

# Calls that wait occupy a place each; were there few, a thousand waiting gets would keep out the put they wait for.
_CONCURRENT_CALLS_MAX = 1_000_000


class Empty(queue.Empty):
    """There is no item, or none came in time."""


class Full(queue.Full):
    """There is no room, or none came to be in time."""


class Queue:
    """A queue shared between processes.

    Args:
        maxsize: how many items it holds before `put` waits; 0 or less means no limit.
        actor_options: options of the actor that holds the items, such as {"num_cpus": 1, "name": "work"}.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"Queue: maxsize={maxsize!r}: expected a whole number; 0 means no limit")
        options = {"max_concurrency": _CONCURRENT_CALLS_MAX, **(actor_options or {})}
        self.maxsize = maxsize
        self.actor: Any = ray.remote(_QueueActor).options(**options).remote(maxsize)

    def __len__(self) -> int:
        return self.qsize()

    def size(self) -> int:
        """How many items there are."""
        return self.qsize()

    def qsize(self) -> int:
        """How many items there are."""
        return int(ray.get(self._reach().qsize.remote()))

    def empty(self) -> bool:
        """Whether there are none; another process may change that before the answer is read."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether a `put` would have to wait; another process may change that before the answer is read."""
        return 0 < self.maxsize <= self.qsize()

    # --- one item ------------------------------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds an item. An ObjectRef is, like every argument of a call, replaced by its value.

        Args: block: wait for room.  timeout: seconds; None waits for ever.
        Raises: Full: there is no room, or none came in time.
        """
        _put_done(ray.get(self._reach().put.remote(item, _patience(block, timeout))), self)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes the oldest item.

        Args: block: wait for one.  timeout: seconds; None waits for ever.
        Raises: Empty: there is none, or none came in time.
        """
        return _got(ray.get(self._reach().get.remote(_patience(block, timeout))))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As `put`, for coroutines."""
        _put_done(await self._reach().put.remote(item, _patience(block, timeout)), self)

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """As `get`, for coroutines."""
        return _got(await self._reach().get.remote(_patience(block, timeout)))

    def put_nowait(self, item: Any) -> None:
        """`put(item, block=False)`."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """`get(block=False)`."""
        return self.get(block=False)

    # --- several at once -----------------------------------------------------------------------------------------

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Adds all of the items, or none.

        Raises: Full: there isn't room for all of them.
        """
        if not isinstance(items, Iterable):
            raise TypeError(f"Queue.put_nowait_batch: items={items!r}: expected a list or another iterable")
        batch = list(items)
        size = ray.get(self._reach().put_batch.remote(batch))
        if size is not None:
            raise Full(f"{len(batch)} more items do not fit into a queue of maxsize={self.maxsize} that holds {size}")

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Takes the num_items oldest items, or none.

        Raises: Empty: there are fewer.
        """
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"Queue.get_nowait_batch: num_items={num_items!r}: expected a whole number")
        if num_items < 0:
            raise ValueError(f"Queue.get_nowait_batch: num_items={num_items}: expected a whole number >= 0")
        items, size = ray.get(self._reach().get_batch.remote(num_items))
        if items is None:
            raise Empty(f"{num_items} items were asked for, and the queue holds {size}")
        return list(items)

    # --- the end -------------------------------------------------------------------------------------------------

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """Ends the actor, and with it what is in the queue.

        Args:
            force: at once; calls that wait fail with RayActorError. Otherwise they are given time to end first.
            grace_period_s: how much.
        """
        actor, self.actor = self._reach(), None
        if not force:
            ray.wait([actor.quiet.remote()], timeout=grace_period_s)
        ray.kill(actor)

    def _reach(self) -> Any:
        if self.actor is None:
            raise RuntimeError("this Queue was shut down: make another")
        return self.actor

    def __repr__(self) -> str:
        return f"<ray.util.queue.Queue maxsize={self.maxsize} {'shut down' if self.actor is None else self.actor!r}>"


def _patience(block: bool, timeout: float | None) -> float | None:
    """For how long the actor is to wait: None for ever, 0 not at all."""
    if not block:
        return 0.0
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"Queue: timeout={timeout!r}: expected a number of seconds, or None")
    if not timeout >= 0:
        raise ValueError(f"Queue: timeout={timeout!r}: expected a number of seconds >= 0, or None to wait for ever")
    return float(timeout)


def _put_done(done: bool, into: Queue) -> None:
    if not done:
        raise Full(f"no room in a queue of maxsize={into.maxsize}")


def _got(found: tuple[Any, ...]) -> Any:
    if not found:
        raise Empty("no item in the queue")
    return found[0]


class _QueueActor:
    """Holds the items. Answers say whether it worked: an exception that crosses processes costs a traceback."""

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._items: asyncio.Queue[Any] = asyncio.Queue(maxsize)
        self._waiting = 0  # puts and gets
        self._is_quiet: asyncio.Event | None = None

    async def qsize(self) -> int:
        return self._items.qsize()

    async def put(self, item: Any, patience_s: float | None) -> bool:
        try:
            self._items.put_nowait(item)
            return True
        except asyncio.QueueFull:
            if patience_s == 0:
                return False
        try:
            await self._wait_for(self._items.put(item), patience_s)
            return True
        except asyncio.TimeoutError:
            return False

    async def get(self, patience_s: float | None) -> tuple[Any, ...]:
        try:
            return (self._items.get_nowait(),)
        except asyncio.QueueEmpty:
            if patience_s == 0:
                return ()
        try:
            return (await self._wait_for(self._items.get(), patience_s),)
        except asyncio.TimeoutError:
            return ()

    async def put_batch(self, items: list[Any]) -> int | None:
        """None if they were all added, else how many items there are."""
        size = self._items.qsize()
        if 0 < self._maxsize < size + len(items):
            return size
        for item in items:
            self._items.put_nowait(item)
        return None

    async def get_batch(self, num_items: int) -> tuple[list[Any] | None, int]:
        size = self._items.qsize()
        if num_items > size:
            return None, size
        return [self._items.get_nowait() for _ in range(num_items)], size

    async def quiet(self) -> None:
        """Returns when no put and no get waits."""
        while self._waiting:
            if self._is_quiet is None or self._is_quiet.is_set():
                self._is_quiet = asyncio.Event()
            await self._is_quiet.wait()

    async def _wait_for(self, step: Any, patience_s: float | None) -> Any:
        self._waiting += 1
        try:
            return await asyncio.wait_for(step, patience_s)
        finally:
            self._waiting -= 1
            if not self._waiting and self._is_quiet is not None:
                self._is_quiet.set()
