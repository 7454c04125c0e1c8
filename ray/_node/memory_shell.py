"""Joins the memory watch to the world: timer, the kernel's word of pressure, numbers, kills. No decisions here.

Node process, its main thread, on its asyncio loop; `memory_watch.py` decides. What an idle node pays: nothing, for
without leases there is no timer, and pressure is not listened to. While something runs: a look of 0.1 ms at least every
10 s, more often the less is free, and one more whenever the kernel says that programs wait for memory (PSI, where it
offers that).
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from ray._protocol.resources import MEMORY

from . import lease_messages as lm
from . import memory_usage as usage
from . import memory_watch as mw
from . import worker_messages as wm

if TYPE_CHECKING:
    from .leases import Lease
    from .shell import Node

logger = logging.getLogger("ray.node")

FRESH_BYTES_S = 2**30  # that one processor can touch in a second; measured in a VM: 1.0 GB/s into fresh pages
# "Some program waited for memory for 150 ms of 2 s"; windows that are multiples of 2 s need no privilege.
PRESSURE_TRIGGER = b"some 150000 2000000\0"


class MemoryShell:
    def __init__(self, node: Node) -> None:
        self._node = node
        settings = node.settings
        processors = os.cpu_count() or 1
        self.machine = mw.MemoryWatch(
            settings.memory_usage_threshold, settings.memory_monitor_refresh_ms / 1000, processors * FRESH_BYTES_S
        )
        self._on = settings.memory_monitor_refresh_ms > 0
        self._workers_limit = settings.worker_memory_bytes_max
        self._groups: list[usage.Group] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pressure: PressureTrigger | None = None
        self._carry_out: dict[type, Any] = {
            mw.LookAgain: self._look_again,
            mw.Rest: lambda _: self.close(),
            mw.EndWorker: self._end_worker,
            mw.ShortOfMemory: lambda a: node.feed(node.scheduler, lm.ShortOfMemory(a.short)),
        }

    def something_runs(self) -> None:
        """Called after each event of the node while there are leases: must cost nothing."""
        if self._timer is None and self._on:
            if self._pressure is None:
                self._pressure = PressureTrigger.open(self._node.loop, self._pressed)
            self._feed(mw.Began())

    def worker_gone(self, worker_id: int) -> None:
        self._feed(mw.Ended(worker_id))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pressure is not None:
            self._pressure.close()
            self._pressure = None

    def stats(self) -> dict[str, Any]:
        """state, looks so far, workers ended, seconds until the next look as last decided (None: none)."""
        watch = self.machine
        return {
            "state": watch.state,
            "looks": watch.looks,
            "ended": watch.ended,
            "next_after_s": watch.next_after_s,
            "listens_to_pressure": self._pressure is not None,
        }

    # -- events in, actions out -------------------------------------------------------------------------------

    def _feed(self, event: Any) -> None:
        for action in self.machine.handle(event, time.monotonic()):
            self._carry_out[type(action)](action)

    def _pressed(self) -> None:
        self._feed(mw.Pressure())

    def _look_again(self, action: mw.LookAgain) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._node.loop.call_later(action.after_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._groups is None:
            self._groups = usage.control_groups()
        leases = [lease for lease in self._node.scheduler.leases() if lease.worker_id >= 0]
        machine = usage.of_machine()
        readings = [machine]
        readings += [found for group in self._groups if (found := usage.of_group(group, machine.limit_bytes))]
        if self._workers_limit:
            pids = [worker.pid for worker in self._node.pool.workers.values() if worker.pid]
            readings.append(usage.sum_of(pids, self._workers_limit))
        self._feed(mw.Looked(readings, [self._running(lease) for lease in leases]))

    def _running(self, lease: Lease) -> mw.Running:
        memory_bytes = dict(lease.shape).get(MEMORY, 0) // 10_000
        return mw.Running(
            lease.worker_id,
            lease.pid,
            lease.name,
            lease.tag,
            lease.granted_at,
            lease.is_actor,
            lease.retriable,
            memory_bytes,
            usage.own_bytes(lease.pid) if memory_bytes else 0,
        )

    def _end_worker(self, action: mw.EndWorker) -> None:
        names = {lease.pid: f"ray worker, {lease.name}" for lease in self._node.scheduler.leases() if lease.pid}
        why = (
            f"{action.why} Node {self._node.node_id.hex()} on {socket.gethostname()}; its largest processes: "
            f"{usage.largest(names=names)}."
        )
        logger.warning("%s", why)
        self._node.feed(self._node.pool, wm.KillAsked(action.victim.worker_id, why))


class PressureTrigger:
    """Calls back when programs wait for memory: the kernel's pressure stall information. A file with a trigger becomes
    ready with POLLPRI, which asyncio doesn't ask for: so it is watched through an epoll of its own, itself a file that
    becomes readable."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, callback: Any) -> None:
        self._loop = loop
        self._fd = fd
        self._callback = callback
        self._epoll = select.epoll()
        self._epoll.register(fd, select.EPOLLPRI)
        loop.add_reader(self._epoll.fileno(), self._ready)

    @classmethod
    def open(cls, loop: asyncio.AbstractEventLoop, callback: Any) -> PressureTrigger | None:
        """None: the kernel has no such thing, or not for us. Then the timer alone has to do."""
        for path in ("/sys/fs/cgroup/memory.pressure", "/proc/pressure/memory"):
            try:
                fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                os.write(fd, PRESSURE_TRIGGER)
                return cls(loop, fd, callback)
            except OSError:
                os.close(fd)
        return None

    def _ready(self) -> None:
        events = self._epoll.poll(0)
        if any(mask & select.EPOLLERR for _, mask in events):
            self.close()  # its control group is gone
        elif events:
            self._callback()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fd)
            self._fd = -1
