"""Which process of a Pool does what: calls wait here until one is free, as in `multiprocessing`.

A library on the public API, in the process that made the Pool. Its threads meet here, under `_lock`: any thread of the
program submits; results arrive in whichever thread receives for the engine, which at once starts the next call on the
process that is free now, so no thread of ours stands between. Callbacks of the user, who may block in them, run in a
thread of their own. No user code and no call into ray happens under the lock.

Each call waits in `_backlog`, is part of the `load` of one worker, or has ended; all and only workers without load are
in `_idle`. A worker has one call at a time, so that none waits behind a long one while another worker is idle, with one
exception: of a map whose tasks are several values each, and take so little time that fetching the next one would be
felt, some are sent ahead. A worker is replaced after maxtasksperchild calls, or when it is dead, which costs the
calls that it had.
"""

from __future__ import annotations

import functools
import queue
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from typing import Any, Callable

import ray
from ray.exceptions import ActorDiedError, RayTaskError

# A worker whose last task took less is sent tasks ahead, as many as take about this long together. Decoding a result
# and encoding the next task take the driver up to a millisecond, and on a busy machine it must get a processor first.
SEND_AHEAD_BELOW_S = 0.02


class Call:
    """One call of a method of PoolWorker, and who wants to know how it ended.

    Args: many: its values are independent of other calls' and quick perhaps: it may be sent ahead.
    """

    __slots__ = ("args", "index", "many", "method", "target")

    def __init__(self, method: str, args: tuple[Any, ...], target: Any, index: int, many: bool = False) -> None:
        self.method: str = method
        self.args: tuple[Any, ...] = args
        self.target: Any = target  # has started(index, ref) and ended(index, value, error)
        self.index: int = index
        self.many: bool = many


class _Worker:
    __slots__ = ("actor", "busy_since", "calls", "load")

    def __init__(self, actor: Any) -> None:
        self.actor = actor  # None if its next call must wait for a new one
        self.calls = 0  # that the actor has been given
        self.load = 0  # calls that it has now
        self.busy_since = 0.0  # when it began the call it is at, on the clock of this process


class Dispatcher:
    """Shares calls out among `count` actors.

    Args:
        make: makes an actor of class PoolWorker.
        calls_max: a worker is replaced after that many; None means never.
    """

    def __init__(self, make: Callable[[], Any], count: int, calls_max: int | None) -> None:
        self._make = make
        self._calls_max = calls_max
        self._lock = threading.Lock()
        self._backlog: deque[Call] = deque()
        self._workers = [_Worker(make()) for _ in range(count)]
        self._idle = list(self._workers)
        self._open = 0  # calls whose target has not been told yet how they ended
        self._closed = False
        self._terminated = False
        self._all_ended = threading.Event()  # closed, and none is open
        self._callbacks: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._callback_thread: threading.Thread | None = None

    # --- any thread of the program -------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Starts the call, or keeps it until a worker is free. Its target learns how it ended, whatever way that is."""
        worker = None
        with self._lock:
            self._open += 1
            terminated = self._terminated
            if not terminated:
                if self._idle:
                    worker = self._idle.pop()
                    worker.load = 1
                    worker.busy_since = time.monotonic()
                else:
                    self._backlog.append(call)
        if terminated:
            self._tell(call, None, _terminated())
        elif worker is not None:
            self._start(worker, [call])

    def call_later(self, callback: Callable[[], None]) -> None:
        """Runs a callback of the user's in the thread for those."""
        with self._lock:
            if self._callbacks is None:
                self._callbacks = queue.SimpleQueue()
                self._callback_thread = threading.Thread(
                    target=_run_callbacks, args=(self._callbacks,), name="ray-pool-callbacks", daemon=True
                )
                self._callback_thread.start()
                weakref.finalize(self, self._callbacks.put, None)  # a pool that nobody closed
        self._callbacks.put(callback)

    @property
    def terminated(self) -> bool:
        return self._terminated

    def close(self) -> None:
        """Nothing more will be submitted: the workers end when all is done."""
        with self._lock:
            self._closed = True
        self._end_if_done()

    def terminate(self) -> None:
        """Ends the workers now; calls that have not ended fail."""
        with self._lock:
            self._closed = self._terminated = True
            waiting, self._backlog = self._backlog, deque()
            actors = [worker.actor for worker in self._workers if worker.actor is not None]
            self._idle.clear()
            self._workers.clear()
        for actor in actors:
            ray.kill(actor)
        for call in waiting:
            self._tell(call, None, _terminated())
        self._end_if_done()

    def join(self) -> None:
        """Until all calls have ended and all callbacks have run."""
        self._all_ended.wait()
        thread = self._callback_thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # --- the thread that submits, or the one that receives -------------------------------------------------------

    def _start(self, worker: _Worker, calls: list[Call]) -> None:
        """Starts calls on the worker, whose load they are; if that fails, whatever waits next."""
        while calls:
            call = calls.pop(0)
            try:
                actor = worker.actor
                if actor is None:
                    actor, worker.calls = self._make(), 0
                    worker.actor = actor
                ref = getattr(actor, call.method).remote(*call.args)
                future: Future[Any] = ref.future()
            except Exception as error:  # an argument can't be pickled, or the session is over: nothing was sent
                self._tell(call, None, error)
                calls += self._next(worker)
            else:
                worker.calls += 1
                call.target.started(call.index, ref)
                future.add_done_callback(functools.partial(self._on_result, worker, actor, call))

    def _on_result(self, worker: _Worker, actor: Any, call: Call, done: Future[Any]) -> None:
        error = done.exception()
        # A function that met another actor's death raises a RayTaskError that is an ActorDiedError too.
        died = isinstance(error, ActorDiedError) and not isinstance(error, RayTaskError)
        if worker.actor is actor and (died or worker.calls == self._calls_max):
            worker.actor = None  # the last handle: the actor exits
        self._start(worker, self._next(worker))  # first of all: it need not idle while the result is looked at
        self._tell(call, None if error else done.result(), error)

    def _next(self, worker: _Worker) -> list[Call]:
        """A call of the worker's has ended: what it is to be sent now. If that is nothing, and it has nothing, it is
        idle."""
        now = time.monotonic()
        with self._lock:
            load_max = self._load_max(now - worker.busy_since)
            worker.busy_since = now
            worker.load -= 1
            calls = []
            while self._backlog and worker.load < (load_max if self._backlog[0].many else 1):
                calls.append(self._backlog.popleft())
                worker.load += 1
            if not worker.load and not self._terminated:
                self._idle.append(worker)
            return calls

    def _load_max(self, took_s: float) -> int:
        """How many calls that are `many` a worker may have whose last one took so long. Under the lock.

        As many as it will do in SEND_AHEAD_BELOW_S, but no more than half of its share of what is left, so that all
        workers end at about the same time.
        """
        if took_s >= SEND_AHEAD_BELOW_S or self._calls_max is not None:
            return 1
        share = len(self._backlog) // (2 * max(1, len(self._workers)))
        return 1 + max(1, min(int(SEND_AHEAD_BELOW_S / max(took_s, 1e-4)), share))

    def _tell(self, call: Call, value: Any, error: BaseException | None) -> None:
        call.target.ended(call.index, value, error)
        with self._lock:
            self._open -= 1
        if self._closed:
            self._end_if_done()

    def _end_if_done(self) -> None:
        with self._lock:
            if not self._closed or self._open:
                return
            self._idle.clear()  # the last handles: the actors exit
            self._workers.clear()
            callbacks = self._callbacks
        if callbacks is not None:
            callbacks.put(None)
        self._all_ended.set()


def _terminated() -> RuntimeError:
    return RuntimeError("the Pool was terminated before this call was made")


def _run_callbacks(callbacks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """Main of the thread for callbacks; None ends it. One that raises is reported as an uncaught exception is."""
    while (callback := callbacks.get()) is not None:
        try:
            callback()
        except Exception:
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        del callback  # it holds the Pool's calls, and so would keep alive, while this waits, a Pool that is garbage
