"""RayExecutor: `concurrent.futures.Executor` whose calls are tasks.

A library on the public API, in the process that made it; any thread may use it. Each call waits in `_backlog`, is a
task that ray has, or has ended. Ray is given at most `max_workers` at a time, so that what waits can still be
cancelled; the thread that receives a result hands over the next call. A worker's death is retried, as for every task;
what ray gives up fails the future with ray's error.
"""

from __future__ import annotations

import functools
import itertools
import threading
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, Callable, TypeVar

import ray
from ray.util._original_error import original_error

T = TypeVar("T")

# By how much ray's queue runs ahead of its workers when nothing else was said: enough that no worker waits for us.
TASKS_MAX = 1000


class RayExecutor(Executor):
    """Runs calls as tasks, on all the CPUs that ray has.

    Args:
        max_workers: how many calls run at once, at most; None leaves that to the resources there are.
        ray_remote_args: options of the tasks, such as {"num_cpus": 2}.
        ray_address: for ray.init, if ray is not running yet.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        ray_remote_args: dict[str, Any] | None = None,
        ray_address: str | None = None,
    ) -> None:
        if max_workers is not None:
            if isinstance(max_workers, bool) or not isinstance(max_workers, int):
                raise TypeError(f"RayExecutor: max_workers={max_workers!r}: expected a whole number, or None")
            if max_workers < 1:
                raise ValueError(f"RayExecutor: max_workers={max_workers}: expected at least 1, or None")
        if not ray.is_initialized():
            ray.init(address=ray_address) if ray_address is not None else ray.init()
        self._options = dict(ray_remote_args or {})
        self._call = self._task(_call)  # also says at once if an option is wrong
        self._tasks: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._running_max = TASKS_MAX if max_workers is None else max_workers
        self._lock = threading.Lock()
        self._backlog: deque[tuple[Future[Any], Callable[[], ray.ObjectRef[Any]]]] = deque()
        self._running = 0
        self._shut_down = False
        self._idle = threading.Condition(self._lock)  # nothing runs, nothing waits

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Runs fn(*args, **kwargs) as a task. An ObjectRef among the arguments is replaced by its value there.

        A future can be cancelled as long as its call waits for one of max_workers.
        """
        if not callable(fn):
            raise TypeError(f"RayExecutor.submit: fn={fn!r}: expected a function")
        future: Future[T] = Future()
        start = functools.partial(self._remote(fn), *args, **kwargs)
        with self._lock:
            if self._shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._running >= self._running_max:
                self._backlog.append((future, start))
                return future
            self._running += 1
        self._start(future, start)
        return future

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """As the built-in map, but all calls are made at once; chunksize of them are one task.

        Raises: TimeoutError (of concurrent.futures): a result took longer than timeout seconds, counted from this call.
        """
        if isinstance(chunksize, bool) or not isinstance(chunksize, int):
            raise TypeError(f"RayExecutor.map: chunksize={chunksize!r}: expected a whole number")
        if chunksize < 1:
            raise ValueError(f"RayExecutor.map: chunksize={chunksize}: expected at least 1")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        chunks = _chunks(zip(*iterables), chunksize)
        results = super().map(functools.partial(_call_each, fn), chunks, timeout=timeout)
        return itertools.chain.from_iterable(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls.

        Args: wait: until all calls have ended.  cancel_futures: those that have not been handed to ray yet.
        """
        with self._lock:
            self._shut_down = True
            cancelled = list(self._backlog) if cancel_futures else []
            if cancel_futures:
                self._backlog.clear()
        for future, _start in cancelled:
            future.cancel()
            future.set_running_or_notify_cancel()  # wakes concurrent.futures.wait and as_completed
        if wait:
            with self._idle:
                self._idle.wait_for(lambda: not self._running and not self._backlog)

    # --- inside --------------------------------------------------------------------------------------------------

    def _remote(self, fn: Callable[..., Any]) -> Callable[..., ray.ObjectRef[Any]]:
        if not isinstance(fn, types.FunctionType):  # bound methods, partial functions, objects with __call__
            return functools.partial(self._call.remote, fn)
        task = self._tasks.get(fn)
        if task is None:
            task = self._tasks[fn] = self._task(fn)
        return task.remote  # type: ignore[no-any-return]

    def _task(self, fn: Callable[..., Any]) -> Any:
        task = ray.remote(fn)
        return task.options(**self._options) if self._options else task

    def _start(self, future: Future[Any], start: Callable[[], ray.ObjectRef[Any]]) -> None:
        """Hands calls to ray, beginning with this one, until one of them is under way."""
        while True:
            if future.set_running_or_notify_cancel():
                try:
                    ended = start().future()
                except Exception as error:  # an argument can't be pickled, or the session is over: nothing was sent
                    future.set_exception(error)
                else:
                    ended.add_done_callback(functools.partial(self._finish, future))
                    return
            following = self._next()
            if following is None:
                return
            future, start = following

    def _finish(self, future: Future[Any], ended: Future[Any]) -> None:
        following = self._next()
        if following is not None:
            self._start(*following)
        error = ended.exception()
        if error is None:
            future.set_result(ended.result())
        else:
            future.set_exception(original_error(error))

    def _next(self) -> tuple[Future[Any], Callable[[], ray.ObjectRef[Any]]] | None:
        """A task has ended: the call that takes its place, if any."""
        with self._idle:
            if self._backlog:
                return self._backlog.popleft()
            self._running -= 1
            if not self._running:
                self._idle.notify_all()
            return None


def _call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


def _call_each(fn: Callable[..., T], arguments: list[tuple[Any, ...]]) -> list[T]:
    return [fn(*each) for each in arguments]


def _chunks(values: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    values = iter(values)
    while chunk := list(itertools.islice(values, size)):
        yield chunk
