"""Processes of other nodes that lease workers here, and the jobs they bring. Node's main thread.

A *guest* is a driver or worker that was sent here by its own node (`lease_spilled`). It dials this node's port, says
`register_guest`, and from then on may do what concerns leases, nothing else. It is found in `Cores.guests` by its tag,
until its connection ends or its node is down; then its leases end as those of any dead owner do, and what this node's
store holds for it is freed.

A job that this node has not met yet is asked for at the head (`job_info`); what the guest says meanwhile is kept in
order. If the head doesn't know the job either, it is over: the registration fails, and what was said is dropped.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ray._protocol.frames import ROLE_DRIVER, ROLE_WORKER, TAG_BYTES
from ray._protocol.ids import NODE_NUMBER_BYTES, node_number

from . import lease_messages as lm
from . import worker_messages as wm
from .cores import Core, Job

if TYPE_CHECKING:
    from .shell import Node

RPCS = frozenset({"worker_exit_cause", "worker_gone", "replicate"})
EVENTS = frozenset({"lease_request", "lease_cancel", "lease_return", "lease_busy", "kill_worker", "results_lost"})
EARLY_MAX = 10_000  # events of one guest that wait for its job


class Guests:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._asked: dict[bytes, asyncio.Task[Job]] = {}  # jobs that the head is asked for

    async def register(self, peer: Any, info: dict[str, Any]) -> Core:
        """Raises: ValueError: nonsense.  RuntimeError: the session is ending, or the job is over."""
        kind, tag, job_id = info.get("kind"), info.get("tag"), info.get("job_id")
        if self._node.ending is not None:
            raise RuntimeError("the session is ending")
        if {"driver": ROLE_DRIVER, "worker": ROLE_WORKER}.get(str(kind)) != peer.role:
            raise ValueError(f"register_guest: kind must be 'driver' or 'worker' as said in the hello, not {kind!r}")
        if not isinstance(tag, bytes) or len(tag) != TAG_BYTES or tag != peer.tag:
            raise ValueError("register_guest: tag must be the 16 bytes of the hello")
        if not isinstance(job_id, bytes) or len(job_id) != 4:
            raise ValueError(f"register_guest: job_id must be 4 bytes, not {job_id!r}")
        if tag in self._node.cores.guests or tag in self._node.cores.by_tag:
            raise ValueError("register_guest: this process is registered here already")
        core = Core(peer, "guest", tag, job_id, str(info.get("namespace") or ""))
        core.pid = int(info.get("pid") or 0)  # on its own node: the kernel knows nothing of it here
        await self.job(job_id)
        if peer.closed:
            raise RuntimeError("it has gone")
        self._node.cores.guests[tag] = core
        self._node.feed(self._node.scheduler, lm.CoreJoined(tag, job_id))
        return core

    async def job(self, job_id: bytes) -> Job:
        """A job that may be new to this node. Blocks until the head has answered.

        Raises: RuntimeError: it is over."""
        known = self._node.cores.jobs.get(job_id)
        if known is not None:
            return known
        asking = self._asked.get(job_id)
        if asking is None:
            asking = self._asked[job_id] = self._node.loop.create_task(self._ask(job_id))
            asking.add_done_callback(lambda _: self._asked.pop(job_id, None))
        return await asyncio.shield(asking)  # several may wait for one answer; if one of them goes, the others wait on

    async def _ask(self, job_id: bytes) -> Job:
        info = await self._node.head.job_info(job_id)
        if info is None:
            raise RuntimeError(f"job {job_id.hex()} is over: nothing of it can run here any more")
        job = self._node.cores.jobs.get(job_id)
        if job is None:
            job = self._node.cores.jobs[job_id] = Job(job_id, info)
            self._node.feed(self._node.pool, wm.JobStarted(job_id))
        return job

    def left(self, core: Core) -> None:
        """Its connection has ended: it has died, or is cut off from us, which comes to the same here."""
        if self._node.cores.guests.get(core.tag) is core:
            del self._node.cores.guests[core.tag]
            self._node.feed(self._node.scheduler, lm.CoreLeft(core.tag))
            self._node.envs.core_left(core.tag)
            if self._node.ending is None:
                self._node.orphans.owner_died(core.tag)  # large results that our store holds for it

    def store_back(self) -> None:
        """What our store kept for them has gone with the store before it."""
        for core in self._node.cores.guests.values():
            core.tell("store_anew")

    def job_over(self, job_id: bytes) -> None:
        """Its processes end, but news of that may get lost: what they had asked for here is given up at once."""
        for core in list(self._node.cores.guests.values()):
            if core.job_id == job_id:
                self.left(core)
                core.peer.close("its job is over")

    def node_down(self, number: int, cause: str) -> None:
        """Nobody of that node lives any more, whatever their connections look like."""
        for core in list(self._node.cores.guests.values()):
            if node_number(core.tag) == number:
                self.left(core)
                core.peer.close(f"its node is down: {cause}")
        if self._node.ending is None:
            self._node.orphans.owner_died(number.to_bytes(NODE_NUMBER_BYTES, "big"))  # guests or not
