"""A cluster of which nothing fails: real schedulers and worker pools, and in place of all else the time that it takes.

Nodes know each other by views, as real ones do: what has changed is reported at most every `REPORT_S`, and passed on by
the head. A node takes in what has been reported when it has to decide something that depends on it, not row by row as
it comes: the decisions are the same, and thousands of nodes can be played in one process. While something waits at a
node it looks when something was reported, as real ones do, but at most every `PASS_ON_S`. What it would cost each node
to take in every row as it comes is measured, and not played: `Costs`.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray._head import global_scheduler as gs
from ray._node import lease_messages as lm
from ray._node import worker_messages as wm
from ray._node.cluster_view import REPORT_S
from ray._node.local_scheduler import LocalScheduler
from ray._node.spillback import NodeRow
from ray._node.worker_pool import WorkerPool
from ray._protocol.resources import UNITS, Resources
from ray._scheduling.node_resources import NodeResources
from ray._scheduling.strategy import DEFAULT, Strategy

from .agenda import Agenda

if TYPE_CHECKING:
    from .asking import Driver

JOB = b"job\0"
PASS_ON_S = 0.005  # a tenth of what a report may be late


class Delays:
    """Seconds, one way; measured between two machines of a rack and on one of 2 cores."""

    link_s = 0.0003
    local_s = 0.00005
    worker_start_s = 0.006


class Costs:
    """Of the real machines, in seconds each; medians are the machines' own, whatever else runs here."""

    def __init__(self) -> None:
        self.decided: list[float] = []  # lease requests that a node has answered
        self.placed: list[float] = []  # actors that the head has found a node for
        self.rows: list[float] = []  # of views that nodes have taken in: a row, on the average of each time
        self.reports = 0  # that nodes have made


class Views:
    """What each node reported last, the latest last."""

    def __init__(self) -> None:
        self.last = 0
        self._rows: collections.OrderedDict[int, tuple[int, NodeRow]] = collections.OrderedDict()
        self.waiting: dict[int, Node] = {}  # nodes that look when something is reported

    def add(self, row: NodeRow) -> None:
        self.last += 1
        self._rows[row.number] = self.last, row
        self._rows.move_to_end(row.number)

    def since(self, seen: int) -> list[NodeRow]:
        found = []
        for number, row in reversed(self._rows.values()):
            if number <= seen:
                break
            found.append(row)
        found.reverse()
        return found


class Node:
    def __init__(self, cluster: PlannedCluster, number: int, total: Mapping[str, int]) -> None:
        self.cluster = cluster
        self.number = number
        self.node_id = number.to_bytes(16, "big")
        self.total = dict(total)
        self.scheduler = LocalScheduler(NodeResources(total), node_id=self.node_id)
        self.pool = WorkerPool(idle_kept=max(1, total.get("CPU", 0) // UNITS))
        self.cores: dict[bytes, Driver] = {}
        self._events: collections.deque[tuple[Any, Any]] = collections.deque()
        self._seen = 0  # of the views
        self._tick_at: dict[Any, float] = {}
        self._report_due = False
        self._reported: tuple[Resources, int] = dict(total), 0
        self.feed(self.pool, wm.JobStarted(JOB))

    def join(self, driver: Driver) -> None:
        if driver.tag not in self.cores:
            self.cores[driver.tag] = driver
            self.feed(self.scheduler, lm.CoreJoined(driver.tag, JOB))

    def asked(self, driver: Driver, request: lm.LeaseRequested) -> None:
        self.join(driver)
        if not request.hops or self.scheduler.resources.lacking(tuple(request.resources.items())):
            self._look_around()  # else it stays here, whatever the others do
        began = time.perf_counter()
        self.feed(self.scheduler, request)
        self.cluster.costs.decided.append(time.perf_counter() - began)

    # -- the machines -------------------------------------------------------------------------------------------------

    def feed(self, machine: Any, event: Any) -> None:
        self._events.append((machine, event))
        if len(self._events) > 1:
            return  # in turn
        while self._events:
            machine, event = self._events[0]
            for action in machine.handle(event, self.cluster.agenda.now):
                do = getattr(self, "_do_" + type(action).__name__, None)
                if do is not None:
                    do(action)
            self._events.popleft()
        for machine in (self.scheduler, self.pool):
            due = machine.deadline()
            if due is not None and due < self._tick_at.get(machine, float("inf")):
                self._tick_at[machine] = due
                # Not for this very moment: a difference of times may be rounded to just below what is waited for.
                self.cluster.agenda.at(max(due, self.cluster.agenda.now + 1e-6), self._tick, machine, due)
        if not self._report_due:
            self._report_due = True
            self.cluster.agenda.later(REPORT_S, self._report)
        if self.scheduler.waiting:
            self.cluster.views.waiting[self.number] = self

    def _tick(self, machine: Any, due: float) -> None:
        if self._tick_at.get(machine) == due:
            del self._tick_at[machine]
            self.feed(machine, lm.Tick() if machine is self.scheduler else wm.Tick())

    def _report(self) -> None:
        self._report_due = False
        now = self.report()
        if now != self._reported:
            self._reported = now
            self.cluster.agenda.later(self.cluster.between(self.number, 0), self.cluster.reported, self, *now)

    def report(self) -> tuple[Resources, int]:
        return dict(self.scheduler.resources.available), sum(line.count() for line in self.scheduler.classes)

    def look_again(self) -> None:
        """Something was reported while something waited here."""
        if self.scheduler.waiting:
            self._look_around()
            if self.scheduler.waiting:
                self.cluster.views.waiting[self.number] = self

    def _look_around(self) -> None:
        views = self.cluster.views
        if self._seen == views.last:
            return
        rows = views.since(self._seen)
        self._seen = views.last
        began = time.perf_counter()
        self.feed(self.scheduler, lm.View(rows))
        self.cluster.costs.rows.append((time.perf_counter() - began) / len(rows))

    # -- what they want done ------------------------------------------------------------------------------------------

    def _tell(self, tag: bytes, what: str, *args: Any) -> None:
        driver = self.cores[tag]
        delay_s = self.cluster.between(self.number, driver.home.number)
        self.cluster.agenda.later(delay_s, getattr(driver, what), self, *args)

    def _do_Grant(self, a: lm.Grant) -> None:
        self._tell(a.tag, "granted", a.req_id, a.lease_id)

    def _do_Spill(self, a: lm.Spill) -> None:
        self._tell(a.tag, "spilled", a.req_id, a.number)

    def _do_Infeasible(self, a: lm.Infeasible) -> None:
        self.cluster.impossible = a.message

    def _do_LeaseWanted(self, a: lm.LeaseWanted) -> None:
        self._tell(a.tag, "lease_wanted")

    def _do_AcquireWorker(self, a: lm.AcquireWorker) -> None:
        self._events.append((self.pool, wm.Acquire(a.ticket, a.job_id, a.fresh)))

    def _do_CancelAcquire(self, a: lm.CancelAcquire) -> None:
        self._events.append((self.pool, wm.AcquireCancelled(a.ticket)))

    def _do_ReleaseWorker(self, a: lm.ReleaseWorker) -> None:
        self._events.append((self.pool, wm.Released(a.worker_id, a.reusable)))

    def _do_Assigned(self, a: wm.Assigned) -> None:
        self._events.append((self.scheduler, lm.WorkerAssigned(a.ticket, a.worker_id, a.tag, a.pid)))

    def _do_StartWorker(self, a: wm.StartWorker) -> None:
        self._events.append((self.pool, wm.Forked(a.worker_id, a.worker_id)))
        self.cluster.agenda.later(Delays.worker_start_s, self._up, a.worker_id)

    def _up(self, worker_id: int) -> None:
        self.feed(self.pool, wm.Registered(worker_id, self.number.to_bytes(4, "big") + worker_id.to_bytes(12, "big")))

    def _do_AskToExit(self, a: wm.AskToExit) -> None:
        self.cluster.agenda.later(Delays.local_s, self.feed, self.pool, wm.Exited(a.worker_id, "it was asked to"))

    def _do_Kill(self, a: wm.Kill) -> None:
        self.cluster.agenda.later(Delays.local_s, self.feed, self.pool, wm.Exited(a.worker_id, "killed"))

    def _do_WorkerGone(self, a: wm.WorkerGone) -> None:
        if a.was_assigned:
            self._events.append((self.scheduler, lm.WorkerLost(a.worker_id, a.cause)))

    def _do_ActorWorker(self, a: lm.ActorWorker) -> None:
        self.cluster.agenda.later(self.cluster.actor_start_s, self._actor_started, a.actor_id)

    def _actor_started(self, actor_id: bytes) -> None:
        self.feed(self.scheduler, lm.ActorStarted(actor_id))
        self.cluster.agenda.later(self.cluster.between(self.number, 0), self.cluster.actor_ready, actor_id)


class PlannedCluster:
    """Node 0 is the head's. Args: actor_start_s: how long an actor's __init__ takes."""

    def __init__(self, nodes: int, total: Mapping[str, int], actor_start_s: float = 0.0) -> None:
        self.agenda = Agenda()
        self.costs = Costs()
        self.views = Views()
        self.placing = gs.GlobalScheduler()
        self.actor_start_s = actor_start_s
        self.impossible = ""  # what was said of a request that nobody can meet
        self.actors: dict[bytes, float] = {}  # that were asked for: when
        self.actors_ready: list[float] = []  # seconds that each took
        self.last_actor_s = 0.0  # when the last of them was up
        self._look_due = False
        self.nodes = [Node(self, number, total) for number in range(nodes)]
        for node in self.nodes:
            self.placing.handle(gs.NodeJoined(node.node_id, total))
            self.views.add(NodeRow(node.number, node.node_id, node.total, node.total))

    def between(self, a: int, b: int) -> float:
        """Seconds that a message takes from one node to another, or between two processes of one."""
        return Delays.local_s if a == b else Delays.link_s

    def reported(self, node: Node, available: Resources, queued: int) -> None:
        self.costs.reports += 1
        self.placing.handle(gs.ResourcesReported(node.node_id, available))
        self.views.add(NodeRow(node.number, node.node_id, node.total, available, queued))
        if self.views.waiting and not self._look_due:
            self._look_due = True
            self.agenda.later(PASS_ON_S, self._pass_on)

    def _pass_on(self) -> None:
        self._look_due = False
        waiting, self.views.waiting = self.views.waiting, {}
        for node in waiting.values():
            node.look_again()

    # -- actors -------------------------------------------------------------------------------------------------------

    def create_actor(self, actor_id: bytes, resources: Mapping[str, int], strategy: Strategy = DEFAULT) -> None:
        """As the head does: what it must be able to offer is a CPU, too; what it then holds are its resources."""
        ask = {**resources, "CPU": max(UNITS, resources.get("CPU", 0))}
        self.actors[actor_id] = self.agenda.now
        began = time.perf_counter()
        actions = self.placing.handle(gs.Requested(actor_id, ask, strategy, "an actor", resources))
        self.costs.placed.append(time.perf_counter() - began)
        for action in actions:
            if isinstance(action, gs.Assign):
                node = self.nodes[int.from_bytes(action.node_id, "big")]
                request = lm.ActorRequested(actor_id, JOB, resources, {"CPU": UNITS}, "an actor")
                self.agenda.later(self.between(0, node.number), node.feed, node.scheduler, request)
            elif isinstance(action, gs.Infeasible):
                self.impossible = action.message

    def actor_ready(self, actor_id: bytes) -> None:
        self.actors_ready.append(self.agenda.now - self.actors[actor_id])
        self.last_actor_s = self.agenda.now
