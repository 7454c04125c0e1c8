"""A driver with one kind of task: asks for leases, follows where it is sent, runs its tasks there one after the other.

What the engine does (ray/_core/lease_pool.pxi), without its speed: up to REQUESTS_MAX requests are out at a time, a
lease takes the next task when one is over, short ones without waiting for the answer, and goes back when it is idle.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray._node import lease_messages as lm
from ray._scheduling.strategy import DEFAULT, Strategy

if TYPE_CHECKING:
    from .planned import Node, PlannedCluster

REQUESTS_MAX = 8
IDLE_S = 0.01
AHEAD_S = 0.001  # tasks that are shorter wait in the worker's own queue: it never runs dry


class _Lease:
    __slots__ = ("busy", "draining", "idle_since", "lease_id", "node")

    def __init__(self, node: Node, lease_id: int) -> None:
        self.node = node
        self.lease_id = lease_id
        self.busy = False
        self.draining = False  # it is wanted back
        self.idle_since = 0.0


class Driver:
    """Args: task_s: how long a task takes. vary: by how much of it more or less, evenly."""

    def __init__(
        self,
        cluster: PlannedCluster,
        home: Node,
        shape: Mapping[str, int],
        task_s: float,
        vary: float = 0.0,
        strategy: Strategy = DEFAULT,
    ) -> None:
        self.cluster = cluster
        self.home = home
        self.tag = b"driver" + home.number.to_bytes(10, "big")
        self.shape = shape
        self.task_s = task_s
        self.vary = vary
        self.strategy = strategy
        self.queue: collections.deque[float] = collections.deque()  # when each was submitted
        self.waited: list[float] = []  # seconds, of each that has begun
        self.done = 0
        self.busy_s = 0.0
        self.requested = self.sent_on = 0
        self.places: collections.Counter[int] = collections.Counter()  # tasks by node
        self.last_s = 0.0  # when the last of them was over
        self._random = random.Random(home.number)
        self._next = 0
        self._requests: dict[int, tuple[Node, int]] = {}  # that are out: who was asked, after how many hops
        self._leases: dict[Node, dict[_Lease, None]] = {}
        self._idle: dict[_Lease, None] = {}
        home.join(self)

    def submit(self, count: int) -> None:
        now = self.cluster.agenda.now
        self.queue.extend([now] * count)
        while self._idle and self.queue:
            self._run(self._idle.popitem()[0])
        self._request()

    def _request(self) -> None:
        for _ in range(min(len(self.queue), REQUESTS_MAX) - len(self._requests)):
            self._ask(self.home, 0)

    def _ask(self, node: Node, hops: int) -> None:
        self._next += 1
        self.requested += 1
        self._requests[self._next] = node, hops
        request = lm.LeaseRequested(self.tag, self._next, self.shape, "a task", strategy=self.strategy, hops=hops)
        self.cluster.agenda.later(self._to(node), node.asked, self, request)

    def _to(self, node: Node) -> float:
        return self.cluster.between(self.home.number, node.number)

    # -- what nodes say -----------------------------------------------------------------------------------------------

    def granted(self, node: Node, req_id: int, lease_id: int) -> None:
        lease = _Lease(node, lease_id)
        self._leases.setdefault(node, {})[lease] = None
        if self._requests.pop(req_id, None) is None:
            self._return(lease)  # it crossed with the cancellation
            return
        self._run(lease)
        self._request()

    def spilled(self, node: Node, req_id: int, to: int) -> None:
        asked = self._requests.pop(req_id, None)
        if asked is not None:
            self.sent_on += 1
            self._ask(self.cluster.nodes[to], asked[1] + 1)

    def lease_wanted(self, node: Node) -> None:
        for lease in list(self._leases.get(node, ())):
            lease.draining = True
            if not lease.busy:
                self._return(lease)

    # -- leases -------------------------------------------------------------------------------------------------------

    def _run(self, lease: _Lease) -> None:
        if not self.queue:
            lease.busy = False
            lease.idle_since = self.cluster.agenda.now
            self._idle[lease] = None
            self._cancel()
            self.cluster.agenda.later(IDLE_S, self._idle_for_long, lease, lease.idle_since)
            return
        lease.busy = True
        now, to_worker_s = self.cluster.agenda.now, self._to(lease.node)
        ahead = self.task_s <= AHEAD_S and bool(self.waited)
        self.waited.append(now + (0.0 if ahead else to_worker_s) - self.queue.popleft())
        took_s = self.task_s * self._random.uniform(1 - self.vary, 1 + self.vary)
        self.busy_s += took_s
        self.places[lease.node.number] += 1
        self.cluster.agenda.later(took_s + (0.0 if ahead else 2 * to_worker_s), self._over, lease)

    def _over(self, lease: _Lease) -> None:
        self.done += 1
        self.last_s = self.cluster.agenda.now
        if lease.draining:
            lease.busy = False
            self._return(lease)
        else:
            self._run(lease)

    def _idle_for_long(self, lease: _Lease, since: float) -> None:
        if not lease.busy and lease.idle_since == since and lease in self._idle:
            self._return(lease)

    def _return(self, lease: _Lease) -> None:
        self._idle.pop(lease, None)
        del self._leases[lease.node][lease]
        event = lm.LeaseReturned(self.tag, lease.lease_id, True)
        self.cluster.agenda.later(self._to(lease.node), lease.node.feed, lease.node.scheduler, event)

    def _cancel(self) -> None:
        """Nothing is left to run: what is still asked for is not wanted any more."""
        requests, self._requests = self._requests, {}
        for req_id, (node, _) in requests.items():
            event = lm.LeaseCancelled(self.tag, req_id)
            self.cluster.agenda.later(self._to(node), node.feed, node.scheduler, event)
