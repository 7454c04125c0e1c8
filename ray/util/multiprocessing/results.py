"""What a Pool's asynchronous calls return: AsyncResult for one value or one list, IMapIterator for one after another.

Made in the thread that submits, finished by `ended`, which Dispatcher calls in whichever thread receives the result,
once for each call. A thread that waits for a result waits, as long as there is one, for the ref of a call under way:
then it is itself the one that receives, and the result need not be handed to it by another thread. Calls that still
wait for a process have no ref; for those there is an event, or condition, that `ended` sets.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from multiprocessing import TimeoutError
from typing import Any, Callable

import ray
from ray.util._original_error import original_error
from ray.util.multiprocessing.dispatch import Call, Dispatcher


class AsyncResult:
    """The result of `apply_async`, and of `map_async` and `starmap_async`, for which it is put together from chunks."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        chunks: int | None,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        """chunks: how many calls make up the list; None for the value of a single call."""
        for name, given in (("callback", callback), ("error_callback", error_callback)):
            if given is not None and not callable(given):
                raise TypeError(f"Pool: {name}={given!r}: expected a function, or None")
        self._dispatcher = dispatcher
        self._single = chunks is None
        self._left = 1 if chunks is None else chunks
        self._chunks: list[Any] = [None] * self._left
        self._lock = threading.Lock()
        self._refs: dict[int, ray.ObjectRef[Any]] = {}  # of the calls under way that no thread waits for
        self._callback = callback
        self._error_callback = error_callback
        self._is_ready = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        if not self._left:
            self._finish()

    def ready(self) -> bool:
        """Whether all of it has ended."""
        return self._is_ready.is_set()

    def successful(self) -> bool:
        """Whether it has ended without an error.

        Raises: ValueError: it has not ended yet.
        """
        if not self.ready():
            raise ValueError(f"{self!r} is not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended, or timeout seconds have passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._is_ready.is_set():
            try:
                index, ref = self._refs.popitem()
            except KeyError:
                self._is_ready.wait(_left(deadline))
                return
            if not ray.wait([ref], timeout=_left(deadline), fetch_local=False)[0]:
                self._refs[index] = ref  # for the next one who waits
                return

    def get(self, timeout: float | None = None) -> Any:
        """The value, or the list of values.

        Raises: TimeoutError (of multiprocessing): not within timeout seconds.  The first error, if there was one.
        """
        self.wait(timeout)
        if not self._is_ready.is_set():
            raise TimeoutError(f"no result within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._value

    def started(self, index: int, ref: ray.ObjectRef[Any]) -> None:
        """One of the calls is under way. Any thread; always before ended."""
        self._refs[index] = ref

    def ended(self, index: int, value: Any, error: BaseException | None) -> None:
        """One of the calls has ended. Any thread."""
        self._refs.pop(index, None)
        with self._lock:
            self._chunks[index] = value
            if error is not None and self._error is None:
                self._error = original_error(error)
            self._left -= 1
            if self._left:
                return
        self._finish()

    def _finish(self) -> None:
        chunks, self._chunks = self._chunks, []
        if self._error is None:
            self._value = chunks[0] if self._single else list(itertools.chain.from_iterable(chunks))
        callback, given = (self._callback, self._value) if self._error is None else (self._error_callback, self._error)
        if callback is None:
            self._is_ready.set()
        else:
            self._dispatcher.call_later(lambda: self._run_callback(callback, given))

    def _run_callback(self, callback: Callable[[Any], object], given: Any) -> None:
        try:
            callback(given)
        finally:
            self._is_ready.set()  # only now, as in multiprocessing: whoever has waited finds the callback done

    def __repr__(self) -> str:
        state = "waiting" if not self.ready() else "failed" if self._error is not None else "ready"
        return f"<AsyncResult {state}>"


class IMapIterator:
    """The results of `imap` or `imap_unordered`, one after another.

    An iterable that has no length is read as results are taken, so that it may be endless: `ahead_max` chunks at most
    are on their way or wait to be taken. An error is raised in the place of the value that it belongs to, and the
    iteration can go on behind it.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        func: Any,
        iterable: Iterable[Any],
        chunksize: int,
        ahead_max: int,
        ordered: bool,
    ) -> None:
        """func: the function, or a ref to it."""
        self._dispatcher = dispatcher
        self._func = func
        self._values = iter(iterable)
        self._chunksize = chunksize
        self._ahead_max = ahead_max
        self._ordered = ordered
        self._reading = threading.RLock()  # reads _values
        self._changed = threading.Condition()  # guards all below
        self._submitted = 0
        self._taken = 0
        self._exhausted = False
        self._ended: dict[int, list[tuple[bool, Any]]] = {}  # chunks not taken yet, in the order in which they came
        self._outcomes: deque[tuple[bool, Any]] = deque()  # of the chunk taken last
        self._refs: dict[int, ray.ObjectRef[Any]] = {}  # of the chunks under way that no thread waits for
        self.read(everything=isinstance(iterable, Sized))

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises: StopIteration.  TimeoutError (of multiprocessing): not within timeout seconds.  The error of the call.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._changed:
                if self._outcomes:
                    worked, value = self._outcomes.popleft()
                    break
                index = self._taken if self._ordered else next(iter(self._ended), -1)
                taken, refs = index in self._ended, []
                if taken:
                    self._outcomes.extend(self._ended.pop(index))
                    self._taken += 1
                elif self._exhausted and self._taken == self._submitted:
                    raise StopIteration
                else:
                    refs = [ref for i, ref in self._refs.items() if not self._ordered or i == index]
                    if not refs and not self._changed.wait(_left(deadline)):
                        raise TimeoutError(f"no result within {timeout} s")
            if taken:
                self.read()
            elif refs:
                self._receive(refs, timeout, deadline)
        if worked:
            return value
        raise original_error(value)

    def _receive(self, refs: list[ray.ObjectRef[Any]], timeout: float | None, deadline: float | None) -> None:
        ready, _rest = ray.wait(refs, timeout=_left(deadline), fetch_local=False)
        if not ready:
            raise TimeoutError(f"no result within {timeout} s")
        with self._changed:  # it is there; should another thread be about to call `ended`, that is what to wait for
            self._refs = {i: ref for i, ref in self._refs.items() if ref not in ready}

    def read(self, everything: bool = False) -> None:
        """Submits what the iterable gives: all of it, or as far ahead as is allowed."""
        with self._reading:
            while not self._exhausted and (everything or self._submitted - self._taken < self._ahead_max):
                error = None
                try:
                    chunk = list(itertools.islice(self._values, self._chunksize))
                except Exception as raised:  # by the iterable: it is what comes instead of its next value
                    chunk, error = [], raised
                with self._changed:
                    index = self._submitted
                    self._exhausted = len(chunk) < self._chunksize or self._dispatcher.terminated
                    if error is not None:
                        self._ended[index] = [(False, error)]
                    self._submitted += bool(chunk) or error is not None
                    self._changed.notify_all()
                if chunk:
                    many = self._chunksize > 1
                    self._dispatcher.submit(Call("each", (self._func, chunk), self, index, many))

    def started(self, index: int, ref: ray.ObjectRef[Any]) -> None:
        """A chunk is under way. Any thread; always before ended."""
        with self._changed:
            self._refs[index] = ref

    def ended(self, index: int, value: Any, error: BaseException | None) -> None:
        """A chunk has ended. Any thread."""
        with self._changed:
            self._refs.pop(index, None)
            self._ended[index] = value if error is None else [(False, error)]
            self._changed.notify_all()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def chunks_of(values: Sequence[Any], chunksize: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), chunksize):
        yield values[start : start + chunksize]
