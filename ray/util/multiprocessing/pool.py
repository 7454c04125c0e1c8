"""Pool: `multiprocessing.Pool` with actors for processes. Checks arguments, cuts iterables into chunks; the calls are
shared out by `dispatch.py`, come back through `results.py`, and run in `worker.py`.

A library on the public API, in the process that made the Pool; any thread may use it. When a worker process dies, the
calls it was at fail with ActorDiedError (the standard library's Pool hangs then), and a new process takes its place,
for which the initializer runs again. A Pool that is garbage ends its processes when their calls are done.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

import ray
from ray.util.multiprocessing.dispatch import Call, Dispatcher
from ray.util.multiprocessing.results import AsyncResult, IMapIterator, chunks_of
from ray.util.multiprocessing.worker import PoolWorker

# How far an imap over an iterable of unknown length reads ahead, in chunks for each process.
_AHEAD_PER_PROCESS = 16
# Chunks for each process in a map: the standard library's own number.
_CHUNKS_PER_PROCESS = 4
# But chunks of small values are no longer than fits into a message. 100,000 short strings, measured: 9 ms of the driver
# in such chunks, 16 to 20 ms in longer ones, which are pickled and go by way of the store.
_MESSAGE_BYTES = 60_000
# Of larger values a chunk goes by way of the store in any case.
_SMALL_BYTES = 64
_SAMPLED = 16


class Pool:
    """Worker processes that share out calls. Everything of `multiprocessing.Pool` is here and means the same.

    Args:
        processes: how many; None means one for each CPU of the cluster.
        initializer: called in each process first, with initargs.
        maxtasksperchild: a process is replaced after this many tasks (calls, or chunks of a map); None means never.
        context: ignored: these processes are neither forked nor spawned by multiprocessing.
        ray_address: for ray.init, if ray is not running yet.
        ray_remote_args: options of the worker actors, such as {"num_cpus": 1, "max_restarts": 2}.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
    ) -> None:
        if processes is not None and _whole("processes", processes) < 1:
            raise ValueError(f"Pool: processes={processes}: expected at least 1")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"Pool: initializer={initializer!r}: expected a function, or None")
        if maxtasksperchild is not None and _whole("maxtasksperchild", maxtasksperchild) < 1:
            raise ValueError(f"Pool: maxtasksperchild={maxtasksperchild}: expected at least 1, or None for no limit")
        if not ray.is_initialized():
            ray.init(address=ray_address) if ray_address is not None else ray.init()
        cpus = int(ray.cluster_resources().get("CPU", 0))
        self._processes = max(1, cpus) if processes is None else processes
        options = dict(ray_remote_args or {})
        wanted = (options.get("num_cpus") or 0) * self._processes
        if wanted > cpus:
            raise ValueError(
                f"Pool: processes={self._processes} with num_cpus={options['num_cpus']} each need {wanted} CPUs, and "
                f"the cluster has {cpus}: ask for fewer, or leave num_cpus out, and they share what there is"
            )
        actor_class = ray.remote(PoolWorker)
        if options:
            actor_class = actor_class.options(**options)
        start = (initializer, tuple(initargs or ()))
        self._dispatcher = Dispatcher(lambda: actor_class.remote(*start), self._processes, maxtasksperchild)
        self._imaps: weakref.WeakSet[IMapIterator] = weakref.WeakSet()
        self._closed = False

    # --- one call ------------------------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = (),
        kwds: Mapping[str, Any] | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """func(*args, **kwds) in a worker process. Blocks until it has returned, and raises what it raised.

        kwargs is another name for kwds.
        """
        return self.apply_async(func, args, kwds, kwargs=kwargs).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncResult:
        """As `apply`, but returns at once. One of the callbacks is called, in a thread of this process, before the
        result is ready."""
        self._check(func)
        result = AsyncResult(self._dispatcher, None, callback, error_callback)
        if kwds and kwargs:
            raise TypeError("Pool: kwargs is another name for kwds, and both were given; give one")
        named = dict(kwds or kwargs or {})
        self._dispatcher.submit(Call("apply", (func, tuple(args or ()), named), result, 0))
        return result

    # --- a list of calls -----------------------------------------------------------------------------------------

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """[func(value) for value in iterable], computed in the worker processes.

        Args: chunksize: how many values make one task; by default so many that each process gets four tasks, or more
            if these were long.
        Raises: the first error that func raised, once all tasks have ended.
        """
        found: list[Any] = self.map_async(func, iterable, chunksize).get()
        return found

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As `map`, but returns at once."""
        return self._map_async("map", func, iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """[func(*values) for values in iterable], computed in the worker processes."""
        found: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return found

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As `starmap`, but returns at once."""
        return self._map_async("starmap", func, iterable, chunksize, callback, error_callback)

    def _map_async(
        self,
        method: str,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[Any]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> AsyncResult:
        self._check(func)
        values = iterable if isinstance(iterable, (list, tuple, range)) else list(iterable)
        if chunksize is None:
            share = -(-len(values) // (self._processes * _CHUNKS_PER_PROCESS))
            chunksize = min(max(share, 1), _in_a_message(values, share))
        _check_chunksize(chunksize)
        count = -(-len(values) // chunksize)
        result = AsyncResult(self._dispatcher, count, callback, error_callback)
        function = ray.put(func)  # pickled once for all chunks
        for index, chunk in enumerate(chunks_of(values, chunksize)):
            self._dispatcher.submit(Call(method, (function, chunk), result, index, many=chunksize > 1))
        return result

    # --- one result after another --------------------------------------------------------------------------------

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """An iterator over what `map` would return, which gives the first results while others are computed."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """As `imap`, but gives the results in the order in which they come."""
        return self._imap(func, iterable, chunksize, ordered=False)

    def _imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, ordered: bool) -> IMapIterator:
        self._check(func)
        _check_chunksize(chunksize)
        ahead_max = self._processes * _AHEAD_PER_PROCESS
        made = IMapIterator(self._dispatcher, ray.put(func), iterable, chunksize, ahead_max, ordered)
        self._imaps.add(made)
        return made

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Takes no more calls; the processes end when those there are have ended."""
        self._closed = True
        for imap in list(self._imaps):
            imap.read(everything=True)  # what it has not read yet was asked for before the close
        self._dispatcher.close()

    def terminate(self) -> None:
        """Ends the processes at once; calls that have not ended fail."""
        self._closed = True
        self._dispatcher.terminate()

    def join(self) -> None:
        """Waits until all calls have ended, and their callbacks.

        Raises: ValueError: neither close() nor terminate() was called before.
        """
        if not self._closed:
            raise ValueError("Pool is still running: close() or terminate() it before join()")
        self._dispatcher.join()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_error: object) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise TypeError("a Pool can't be passed between processes or pickled; make one there")

    def __repr__(self) -> str:
        return f"<ray.util.multiprocessing.Pool of {self._processes}{', closed' if self._closed else ''}>"

    def _check(self, func: Any) -> None:
        self._check_running()
        if not callable(func):
            raise TypeError(f"Pool: func={func!r}: expected a function")

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running: it was closed or terminated")


def _in_a_message(values: Sequence[Any], otherwise: int) -> int:
    """How many of the values one message holds, judging by some of them; `otherwise` if they aren't small."""
    sample = [values[i] for i in range(0, len(values), -(-len(values) // _SAMPLED) or 1)]
    try:
        each = len(pickle.dumps(sample, 5)) / max(1, len(sample))
    except Exception:  # they are none of the simple values that this is about
        return max(1, otherwise)
    return int(_MESSAGE_BYTES / each) if each <= _SMALL_BYTES else max(1, otherwise)


def _check_chunksize(chunksize: Any) -> None:
    if _whole("chunksize", chunksize) < 1:
        raise ValueError(f"Pool: chunksize={chunksize}: expected at least 1")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Pool: {name}={value!r}: expected a whole number")
    return value
