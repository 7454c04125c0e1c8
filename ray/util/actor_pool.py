"""ActorPool: work shared out among a fixed set of actors, each of which does one thing at a time.

A library on the public API, in the process and thread that uses it (one thread at a time; nothing runs in the
background). Each submitted call is in exactly one of three places: `_waiting` for an actor, `_running` on one, `_done`
with its outcome, and leaves when a `get_next` hands the outcome over or it is forgotten. An actor is idle or has one
call. While a `get_next` waits for its own call, actors that finish others are given what waits.

An error in a call costs that call alone. An actor that is dead for good leaves the pool, or it would go on to fail all
that waits, faster than the living ones work; when the last one is dead, what waits fails with its error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Callable, TypeVar

import ray
from ray.exceptions import ActorDiedError, RayTaskError

V = TypeVar("V")
Call = Callable[[Any, Any], Any]  # (actor, value) -> ObjectRef
Outcome = tuple[Any, "Exception | None"]


class ActorPool:
    """Shares calls out among actors.

        pool = ActorPool([Actor.remote(), Actor.remote()])
        print(list(pool.map(lambda actor, value: actor.double.remote(value), [1, 2, 3, 4])))

    Args: actors: handles; nobody else should call these actors meanwhile.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: list[Any] = [_actor(actor) for actor in actors]
        self._waiting: deque[tuple[int, Call, Any]] = deque()
        self._running: dict[ray.ObjectRef[Any], tuple[int, Any]] = {}
        self._done: dict[int, Outcome] = {}  # in the order in which they ended
        self._outstanding: dict[int, None] = {}  # all of the three above, in the order submitted
        self._submitted = 0
        self._death: ActorDiedError | None = None  # of the actor that died last

    # --- many values at once -------------------------------------------------------------------------------------

    def map(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """Submits fn(actor, value) for all values now; the iterator gives the results in the order of the values.

        What earlier submits have not handed over is forgotten. An error of a call is raised in its turn, after which
        the iterator can go on.
        """
        self._submit_all(fn, values)
        return _Results(self, self.get_next)

    def map_unordered(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """As `map`, but gives the results in the order in which they come."""
        self._submit_all(fn, values)
        return _Results(self, self.get_next_unordered)

    def _submit_all(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> None:
        self._waiting.clear()
        self._done.clear()
        self._outstanding.clear()
        for _index, actor in self._running.values():
            self._free(actor)
        self._running.clear()
        for value in values:
            self.submit(fn, value)

    # --- one by one ----------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[[Any, V], Any], value: V) -> None:
        """Calls fn(actor, value), which must return the ObjectRef of a call to that actor, once an actor is free.

        Raises: TypeError: fn can't be called, or returned something else.  What fn raises, if an actor was free.
        """
        if not callable(fn):
            raise TypeError(f"ActorPool.submit: fn={fn!r}: expected a function of an actor and a value")
        index = self._submitted
        if self._idle:
            actor = self._idle.pop()
            try:
                ref = _call(fn, actor, value)
            except BaseException:
                self._idle.append(actor)
                raise
            self._running[ref] = (index, actor)
        else:
            self._waiting.append((index, fn, value))
        self._submitted += 1
        self._outstanding[index] = None

    def has_next(self) -> bool:
        """Whether there are results that no get_next has handed over yet."""
        return bool(self._outstanding)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result of the oldest call whose result was not handed over yet.

        Args:
            timeout: seconds; None waits for ever.
            ignore_if_timedout: forget the call if it times out, and free its actor.
        Raises: StopIteration: there is nothing to wait for.  TimeoutError.  The error of the call.
        Blocks: yes.
        """
        if not self._outstanding:
            raise StopIteration("ActorPool.get_next: no more results to get")
        index = next(iter(self._outstanding))
        self._wait(lambda: index if index in self._done else None, timeout, index if ignore_if_timedout else None)
        return self._hand_over(index)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result of whichever call ends first. Arguments and errors are those of `get_next`; the call forgotten on
        a timeout is the oldest."""
        if not self._outstanding:
            raise StopIteration("ActorPool.get_next_unordered: no more results to get")
        oldest = next(iter(self._outstanding))
        self._wait(lambda: next(iter(self._done), None), timeout, oldest if ignore_if_timedout else None)
        return self._hand_over(next(iter(self._done)))

    # --- the actors ----------------------------------------------------------------------------------------------

    def has_free(self) -> bool:
        """Whether there is an idle actor, and nothing waits for one."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any | None:
        """Takes an idle actor out of the pool; None if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Adds an actor to the pool.

        Raises: ValueError: it is in the pool already.
        """
        if actor in self._idle or any(actor == busy for _index, busy in self._running.values()):
            raise ValueError(f"ActorPool.push: {actor!r} is in this pool already")
        self._free(_actor(actor))

    def __repr__(self) -> str:
        return (
            f"<ActorPool of {len(self._idle) + len(self._running)} actors: {len(self._waiting)} calls waiting, "
            f"{len(self._running)} running, {len(self._done)} done>"
        )

    # --- inside --------------------------------------------------------------------------------------------------

    def _wait(self, found: Callable[[], int | None], timeout: float | None, forget: int | None) -> None:
        """Until found() is not None; on a timeout forgets that call, if any, and raises."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while found() is None:
            if not self._running:
                self._fail_what_waits()
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ended, _ = ray.wait(list(self._running), num_returns=1, timeout=left)
            if not ended:
                said = f"ActorPool: no result within {timeout} s"
                if forget is not None:
                    self._forget(forget)
                    said += "; the call is forgotten, as ignore_if_timedout=True asks"
                raise TimeoutError(said)
            for ref in ended:
                self._end(ref)

    def _end(self, ref: ray.ObjectRef[Any]) -> None:
        """The call of this ref has ended: keeps its outcome and frees its actor."""
        index, actor = self._running[ref]
        try:
            outcome: Outcome = ray.get(ref), None
        except Exception as error:
            outcome = None, error
        del self._running[ref]  # only now: an interrupt during the get must not lose the actor
        self._done[index] = outcome
        # A method that met another actor's death raises a RayTaskError that is an ActorDiedError too.
        if isinstance(outcome[1], ActorDiedError) and not isinstance(outcome[1], RayTaskError):
            self._death = outcome[1]
            return
        self._free(actor)

    def _free(self, actor: Any) -> None:
        """Gives the actor what waits longest, or lets it idle."""
        while self._waiting:
            index, fn, value = self._waiting.popleft()
            try:
                self._running[_call(fn, actor, value)] = (index, actor)
                return
            except Exception as error:  # of the user's fn: it is the outcome of this call, and the actor is still free
                self._done[index] = (None, error)
        self._idle.append(actor)

    def _fail_what_waits(self) -> None:
        """Calls wait, and no actor is left that could ever be free."""
        if self._death is None:
            raise ValueError(f"{self!r} has no actor to do what waits: push one")
        while self._waiting:
            self._done[self._waiting.popleft()[0]] = (None, self._death)

    def _hand_over(self, index: int) -> Any:
        del self._outstanding[index]
        value, error = self._done.pop(index)
        if error is not None:
            raise error
        return value

    def _forget(self, index: int) -> None:
        del self._outstanding[index]
        if self._done.pop(index, None) is not None:
            return
        for ref, (running, actor) in list(self._running.items()):
            if running == index:
                del self._running[ref]
                self._free(actor)  # though it may still work: what it is given next waits there
                return
        self._waiting = deque(call for call in self._waiting if call[0] != index)


class _Results:
    """What a map returns. Not a generator: that would end at the first error."""

    def __init__(self, pool: ActorPool, get_next: Callable[[], Any]) -> None:
        self._pool = pool
        self._get_next = get_next

    def __iter__(self) -> _Results:
        return self

    def __next__(self) -> Any:
        return self._get_next()  # raises StopIteration when there is nothing left


def _actor(actor: Any) -> Any:
    if not isinstance(actor, ray.ActorHandle):
        raise TypeError(f"ActorPool: expected handles of actors, got {type(actor).__name__} {actor!r}")
    return actor


def _call(fn: Call, actor: Any, value: Any) -> ray.ObjectRef[Any]:
    ref = fn(actor, value)
    if not isinstance(ref, ray.ObjectRef):
        raise TypeError(
            f"ActorPool: fn={fn!r} returned {type(ref).__name__}; expected the ObjectRef of a call to the actor, such "
            "as lambda actor, value: actor.method.remote(value)"
        )
    return ref
