"""Jobs whose drivers leave a session that stays: their workers end in order, on every node, and what they still print
reaches the driver before it has its answer. Node's main thread.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from . import worker_messages as wm

if TYPE_CHECKING:
    from .cores import Core
    from .shell import Node

logger = logging.getLogger("ray.node")

KILLED_WITHIN_S = 1.0  # what was killed is gone by then, but for a process that the kernel can't end
OTHERS_EXTRA_S = 2.0  # beside the time that each node takes at most: for what they print, on its way


class LeavingJobs:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._gone: dict[bytes, asyncio.Future[None]] = {}  # job -> none of its workers is left here

    async def end(self, core: Core) -> None:
        """The driver `core` leaves. With a detached actor its job, and its workers, go on."""
        node, job_id = self._node, core.job_id
        if node.ending is not None or await node.head.job_will_go_on(job_id):
            return
        if node.cluster is None and node.uplink is None:
            await self.end_here(job_id)
            return
        # The lines of other nodes come by way of the head, before its answer. A head that is away is not waited for.
        everywhere = asyncio.wait_for(node.gathering.ask("end_job_here", (job_id,)), self._longest_s() + OTHERS_EXTRA_S)
        answers = await asyncio.gather(self.end_here(job_id), everywhere, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                logger.warning("job %s leaves without the last lines of other nodes: %r", job_id.hex(), answer)

    async def end_here(self, job_id: bytes) -> None:
        """This node's workers of the job. What is still there after shutdown_grace_s is killed."""
        node = self._node
        gone = self._gone.get(job_id)
        if gone is not None:
            await asyncio.wait([gone], timeout=self._longest_s())
            return
        gone = self._gone[job_id] = node.loop.create_future()
        node.feed(node.pool, wm.JobLeaving(job_id, "the session ends"))
        self.look()
        await asyncio.wait([gone], timeout=node.settings.shutdown_grace_s)
        if not gone.done():
            node.feed(node.pool, wm.JobEnded(job_id))
            await asyncio.wait([gone], timeout=KILLED_WITHIN_S)
        del self._gone[job_id]

    def look(self) -> None:
        """A worker has gone, or a job has begun to leave."""
        for job_id, gone in self._gone.items():
            if not gone.done() and not self._node.pool.has_workers(job_id):
                gone.set_result(None)

    def _longest_s(self) -> float:
        return self._node.settings.shutdown_grace_s + KILLED_WITHIN_S
