"""What workers print, on its way to the driver that wants to see it, on this node or another. Node's main thread.

A driver that doesn't read must not fill our memory, nor lose a line: then its workers' files are not read on (`LogTail`
pauses the job), until it has taken what it was sent. To a driver of this node that is seen in its connection. Lines
for another node's driver travel by way of the head, and say how many bytes they are and from which node; whoever hands
them to the driver answers `log_taken` when that has room again. A driver that is gone takes everything.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cores import Core
    from .log_tail import Line
    from .shell import Node

logger = logging.getLogger("ray.node")


class DriverLines:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._draining: set[bytes] = set()  # tags of drivers whose backlog is waited for
        self._on_their_way: dict[bytes, int] = {}  # job -> bytes that its driver's node has not taken yet

    # -- from here

    def send(self, job_id: bytes, lines: list[Line]) -> bool:
        """To the drivers that want them. False: too much is unread; `logs.resume` will follow."""
        node = self._node
        drivers = node.cores.drivers_of(job_id)
        if not drivers and (node.cluster is not None or node.uplink is not None):
            return self._send_away(job_id, lines)
        ready = True
        for core in self._shown(drivers, lines):
            ready = False
            if core.tag not in self._draining:
                self._draining.add(core.tag)
                node.loop.create_task(self._resume_when_read(core))
        return ready

    def _shown(self, drivers: list[Core], lines: list[Any]) -> list[Core]:
        """Sends the lines. Returns: those that have too much unread now."""
        full = []
        for core in drivers:
            if core.log_to_driver and not core.peer.closed:
                core.tell("log_lines", lines)
                if core.peer.unsent_bytes > self._node.settings.log_backlog_bytes_max:
                    full.append(core)
        return full

    async def _resume_when_read(self, core: Core) -> None:
        await self._read_by(core)
        self._draining.discard(core.tag)
        self._node.logs.resume(core.job_id)

    async def _read_by(self, core: Core) -> None:
        try:
            await core.peer.drain(self._node.settings.log_backlog_bytes_max // 2)
        except ConnectionError:
            logger.info("driver %r ended with output unread", core)

    # -- to and from other nodes

    def _send_away(self, job_id: bytes, lines: list[Line]) -> bool:
        node = self._node
        away = [(*line, node.node_ip) for line in lines]
        nbytes = sum(len(line[3]) for line in lines)
        total = self._on_their_way[job_id] = self._on_their_way.get(job_id, 0) + nbytes
        if node.cluster is not None:
            node.cluster.pass_lines(job_id, away, node.number, nbytes)
        elif node.uplink is not None:
            node.uplink.event("log_lines", job_id, away, node.number, nbytes)
        return total <= node.settings.log_backlog_bytes_max

    def taken(self, job_id: bytes, nbytes: int) -> None:
        """The driver's node has room for so much more."""
        left = self._on_their_way.get(job_id, 0) - nbytes
        if left > 0:
            self._on_their_way[job_id] = left
        else:
            self._on_their_way.pop(job_id, None)
        if left <= self._node.settings.log_backlog_bytes_max // 2:
            self._node.logs.resume(job_id)

    def show(self, job_id: bytes, lines: list[Any], origin: int, nbytes: int) -> None:
        """Lines of node `origin`, for drivers here."""
        full = self._shown(self._node.cores.drivers_of(job_id), lines)
        if full:
            self._node.loop.create_task(self._answer_when_read(full, job_id, origin, nbytes))
        else:
            self._answer(job_id, origin, nbytes)

    async def _answer_when_read(self, full: list[Core], job_id: bytes, origin: int, nbytes: int) -> None:
        for core in full:
            await self._read_by(core)
        self._answer(job_id, origin, nbytes)

    def _answer(self, job_id: bytes, origin: int, nbytes: int) -> None:
        node = self._node
        if origin == node.number:
            self.taken(job_id, nbytes)
        elif node.cluster is not None:
            node.cluster.tell(origin, "log_taken", job_id, nbytes)
        elif node.uplink is not None:
            node.uplink.event("log_taken", origin, job_id, nbytes)
