"""One simulated node: the real local scheduler, and in place of the shell, the pool and its workers, what they do.

A node is JOINING until the head says `opened`; drivers come only then. Its process may end (its connections close), or
its machine may (they fall silent). If it loses its head it goes on, and looks for it
(`uplinks.py`); if that will not have it, it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray._node import lease_messages as lm
from ray._node.catch_up import CAUGHT_UP_S
from ray._node.cluster_view import REPORT_S, KnownRows, report_of
from ray._node.cores import CAUSE_WAIT_S
from ray._node.local_scheduler import LocalScheduler
from ray._protocol.ids import node_number
from ray._scheduling.node_resources import NodeResources

from .network import LOCAL_S, Line
from .uplinks import Uplink
from .workers import Worker

if TYPE_CHECKING:
    from .cluster import Cluster
    from .drivers import Driver

_NOTHING: dict[str, Any] = {"available": {}, "queued": 0, "bundles": {}}


class Node:
    def __init__(
        self, cluster: Cluster, node_id: bytes, total: dict[str, int], labels: dict[str, str], own: bool = False
    ) -> None:
        """own: the head's own; it is in the head's process."""
        self.cluster = cluster
        self.own = own
        self.node_id = node_id
        self.total = total
        self.scheduler = LocalScheduler(NodeResources(total), node_id=node_id, labels=labels)
        self.number = -1
        self.alive = True
        self.silent = False  # it died without a word
        self.opened = False
        self.stopped = False  # its process, as by SIGSTOP; its workers and drivers go on
        self._to_do: list[Callable[[], None]] = []  # what has come due meanwhile
        self.at_ends: list[tuple[Line, int]] = []  # of lines to other processes, and which end is here
        self.uplink = Uplink(self, own)
        self.table: dict[int, dict[str, Any]] = {}  # rows of the other nodes that it has been told of
        self.down: set[int] = set()
        self.cores: dict[bytes, Driver] = {}  # drivers here, and guests, by tag
        self.lines: dict[bytes, Line] = {}  # of these: end 0 is theirs
        self.waiting_for: dict[tuple[bytes, int], dict[str, int]] = {}  # what was asked here, by tag and request
        self.granted: dict[int, tuple[dict[str, int], bool]] = {}  # lease -> what it asked; whether it was in a group
        self.lent: set[int] = set()  # leases whose CPUs have been lent once: these may be taken back at any time
        self.workers: dict[int, Worker] = {}
        self.idle: dict[bytes, list[Worker]] = {}  # by job
        self.tickets: dict[int, lm.AcquireWorker] = {}
        self.placed: dict[bytes, int] = {}  # actors that have, or wait for, a place here -> their incarnation
        self.became: dict[bytes, bytes] = {}  # of these -> the worker that was told to become it
        self.jobs: set[bytes] = set()  # that it knows from the head
        self.jobs_over: set[bytes] = set()
        self.early: dict[bytes, list[Callable[[], None]]] = {}  # by guest: what it says before its job is known here
        self._local_at = 0.0
        self._events: list[Any] = []
        self._tick_at = 0.0
        self._reported: Any = None
        self._report_due = False
        self._next_worker = 0
        self._known = KnownRows()
        self.uplink.join()

    # -- joining ------------------------------------------------------------------------------------------------------

    def admitted(self, number: int, table: list[dict[str, Any]]) -> None:
        self.number = number
        for row in table:
            self.on_node_up(row)
        self.uplink.admitted()

    # -- a head that comes back ---------------------------------------------------------------------------------------

    def presence(self) -> dict[str, Any]:
        """As ray/_node/presence.py has it."""
        told = list(self.uplink.outbox.told())
        here = self.scheduler.bundles.groups
        return {
            "workers": [w.tag for w in self.workers.values()] + [e.args[0] for e in told if e.name == "worker_died"],
            "cores": [core.tag for core in self.cores.values() if core.home is self]
            + [e.args[0] for e in told if e.name == "driver_gone"],
            "actors": dict(self.placed),
            "bundles": {
                i: {k: b.state for k, b in group.bundles.items()} for i, group in here.items() if group.bundles
            },
            "groups": list(here),
            "jobs": self.jobs - self.jobs_over,
            "followed": {tag: sorted(actors) for tag, actors in self.uplink.followed.items() if actors},
        }

    def replace_table(self, rows: list[dict[str, Any]]) -> None:
        """By that of a head that has come back."""
        given = {row["number"]: row for row in rows}
        gone = [row for number, row in self.table.items() if number not in given and number not in self.down]
        if gone:
            self.on_view([{**row, **_NOTHING, "state": "DEAD"} for row in gone])
        for row in gone:
            self.on_node_down(row["number"], "it did not come back to the head")
        for number, row in given.items():
            if number not in self.table:
                self._learn(row)

    def report_anew(self) -> None:
        self._reported = None
        self._look_at_report()

    # -- stopped ------------------------------------------------------------------------------------------------------

    def stop(self, for_s: float) -> None:
        """SIGSTOP, and SIGCONT after that time."""
        self.cluster.net.note(f"node {self.number} stands still for {for_s:.2f} s")
        self.stopped = True
        for line, end in self._ends():
            line.stopped[end] = True
        if self.own:
            self.cluster.head.stop()
        self.cluster.net.later(for_s, self._go_on)

    def _go_on(self) -> None:
        """As an event loop does: first what sockets have, then timers."""
        self.stopped = False
        if not self.alive:
            return
        if self.own:
            self.cluster.head.go_on()
        for line, end in self._ends():
            line.go_on(end)
        to_do, self._to_do = self._to_do, []
        for what in to_do:
            what()

    def _ends(self) -> list[tuple[Line, int]]:
        return [(line, end) for line, end in self.at_ends if not line.over]

    def in_turn(self, what: Callable[..., None], *args: Any) -> None:
        """What this node's process does when a time has come, or a process of its machine has said something."""
        if self.stopped:
            self._to_do.append(lambda: what(*args) if self.alive else None)
        elif self.alive:
            what(*args)

    # -- what the head says of the cluster ----------------------------------------------------------------------------

    def on_node_up(self, row: dict[str, Any]) -> None:
        self._learn(row)
        self.uplink.tell("known", row["number"], again=True)

    def _learn(self, row: dict[str, Any]) -> None:
        number = row["number"]
        assert number not in self.table, f"node {self.number} is told twice of node {number}"
        assert number not in self.down, f"node {number} is back from the dead"
        self.table[number] = row

    def on_opened(self) -> None:
        self.opened = True
        self._look_at_report()
        self.cluster.new_driver(self)

    def on_catch_up(self, of_round: int) -> None:
        line = self.uplink.line

        def answer() -> None:
            if self.uplink.line is line:
                self.uplink.tell("caught_up", of_round)

        self.cluster.net.later(CAUGHT_UP_S, self.in_turn, answer)

    def on_view(self, rows: list[dict[str, Any]]) -> None:
        self.feed(lm.View(self._known.take(rows)))

    def on_node_down(self, number: int, cause: str) -> None:
        self.down.add(number)
        for tag in [tag for tag in self.cores if node_number(tag) == number]:
            self.lines[tag].end(1, f"its node is down: {cause}")
            self.core_left(tag)
        for core in list(self.cores.values()):
            if core.home is self:
                self.tell(core.tag, "node_down", core.node_down, number)

    # -- the local scheduler ------------------------------------------------------------------------------------------

    def feed(self, event: Any) -> None:
        if not self.alive:
            return
        self._events.append(event)
        if len(self._events) > 1:
            return  # in turn
        while self._events:
            for action in self.scheduler.handle(self._events[0], self.cluster.net.now):
                do = getattr(self, "_do_" + type(action).__name__, None)
                if do is not None:
                    do(action)
            if self._events:
                self._events.pop(0)
        if not self.alive:
            return
        self.cluster.laws.node(self)
        deadline = self.scheduler.deadline()
        if deadline is not None and (self._tick_at <= self.cluster.net.now or deadline < self._tick_at):
            self._tick_at = at = max(deadline, self.cluster.net.now + 1e-6)
            self.cluster.net.at(at, self.in_turn, lambda: self.feed(lm.Tick()) if self._tick_at == at else None)
        self._look_at_report()

    def _look_at_report(self) -> None:
        if not self._report_due and self.opened:
            self._report_due = True
            self.cluster.net.later(REPORT_S, self.in_turn, self._report)

    def _report(self) -> None:
        self._report_due = False
        report = report_of(self)  # type: ignore[arg-type]
        if report != self._reported:
            self._reported = report
            self.uplink.tell("resources", report, again=True)

    def local(self, kind: str, what: Callable[..., None], *args: Any) -> None:
        """What a process of this machine tells the node, in order."""
        net = self.cluster.net
        net.sent[kind] += 1
        if kind != net.drop:
            self._local_at = max(self._local_at, net.now + net.random.expovariate(1 / LOCAL_S))
            net.at(self._local_at, self.in_turn, what, *args)

    def tell(self, tag: bytes, kind: str, what: Callable[..., None], *args: Any) -> None:
        if tag in self.lines:
            self.lines[tag].say(1, kind, what, *args)

    def _do_Grant(self, a: lm.Grant) -> None:
        shape = self.waiting_for.pop((a.tag, a.req_id))
        lease = self.scheduler.lease_of_worker(a.worker_id)
        assert lease is not None
        self.granted[a.lease_id] = shape, lease.place is not None
        self.cluster.laws.granted(self, lease)
        core = self.cores[a.tag]
        self.tell(a.tag, "lease_grant", core.granted, self.number, a.req_id, a.lease_id, self.workers[a.worker_id])

    def _do_Spill(self, a: lm.Spill) -> None:
        assert a.number != self.number
        del self.waiting_for[a.tag, a.req_id]
        self.tell(a.tag, "lease_spilled", self.cores[a.tag].spilled, self.number, a.req_id, a.number)

    def _do_LeaseRefused(self, a: lm.LeaseRefused) -> None:
        del self.waiting_for[a.tag, a.req_id]
        self.tell(a.tag, "lease_refused", self.cores[a.tag].refused, self.number, a.req_id, a.kind)

    def _do_Infeasible(self, a: lm.Infeasible) -> None:
        self.tell(a.tag, "lease_infeasible", self.cores[a.tag].infeasible, self.number, a.req_id)

    def _do_LeaseWanted(self, a: lm.LeaseWanted) -> None:
        self.tell(a.tag, "lease_wanted", self.cores[a.tag].lease_wanted, self.number)

    def _do_LeaseEvicted(self, a: lm.LeaseEvicted) -> None:
        self.tell(a.tag, "lease_evicted", self.cores[a.tag].lease_evicted, self.number, a.lease_id)

    def _do_LeaseLost(self, a: lm.LeaseLost) -> None:
        self.granted.pop(a.lease_id, None)
        self.tell(a.tag, "lease_lost", self.cores[a.tag].lease_lost, self.number, a.lease_id)

    def _do_ActorPlaced(self, a: lm.ActorPlaced) -> None:
        self.uplink.tell("actor_placed", a.actor_id, self.placed.get(a.actor_id))

    def _do_ActorWorker(self, a: lm.ActorWorker) -> None:
        self.uplink.tell("actor_worker_started", a.actor_id, a.worker_tag, self.placed.get(a.actor_id))

    def _do_ActorRefused(self, a: lm.ActorRefused) -> None:
        self.uplink.tell("actor_refused", a.actor_id)

    def _do_BundlesPrepared(self, a: lm.BundlesPrepared) -> None:
        self.uplink.tell("bundles_prepared", a.group_id, a.attempt, again=True)

    def _do_BundlesRefused(self, a: lm.BundlesRefused) -> None:
        self.uplink.tell("bundles_refused", a.group_id, a.attempt, a.available, again=True)

    # -- cores --------------------------------------------------------------------------------------------------------

    def guest_joined(self, core: Driver, line: Line) -> None:
        """What it says is kept until its job is known; the head's answer comes after the table of nodes."""
        if core.tag in self.early or core.tag in self.cores:
            line.end(1, "registered here already")
        elif core.job_id in self.jobs:
            self.core_joined(core, line)
        else:
            self.early[core.tag] = [lambda: self.core_joined(core, line)]
            line.on_end[1] = lambda why: self.early.pop(core.tag, None)
            tag, job_id = core.tag, core.job_id
            self.uplink.ask("job_info", (job_id,), lambda lives: self.job_known(tag, job_id, lives))

    def job_known(self, tag: bytes, job_id: bytes, lives: bool) -> None:
        early = self.early.pop(tag, [])
        if lives:
            self.jobs.add(job_id)
            for what in early:
                what()

    def core_joined(self, core: Driver, line: Line) -> None:
        """A driver of this node, or a guest."""
        number = node_number(core.tag)
        if number in self.down or core.tag in self.cores:
            line.end(1, "registered here already, or its node is down")
            return
        assert number == self.number or number in self.table, f"a guest from node {number}, unknown to {self.number}"
        self.jobs.add(core.job_id)
        self.cores[core.tag], self.lines[core.tag] = core, line
        line.on_end[1] = lambda why: self.core_left(core.tag) if self.lines.get(core.tag) is line else None
        self.feed(lm.CoreJoined(core.tag, core.job_id))

    def core_left(self, tag: bytes) -> None:
        core = self.cores.pop(tag, None)
        if core is None:
            return
        del self.lines[tag]
        for key in [key for key in self.waiting_for if key[0] == tag]:
            del self.waiting_for[key]
        for lease in [x for x in self.scheduler.leases() if x.tag == tag and x.state == "HELD"]:
            self.granted.pop(lease.lease_id, None)
        self.feed(lm.CoreLeft(tag))
        if core.home is self:
            self.uplink.tell("driver_gone", tag, again=True)

    def asked(self, core: Driver, request: lm.LeaseRequested) -> None:
        if core.tag in self.early:
            self.early[core.tag].append(lambda: self.asked(core, request))
        elif core.tag in self.cores:
            self.waiting_for[core.tag, request.req_id] = dict(request.resources)
            self.feed(request)

    def cancelled(self, core: Driver, req_id: int) -> None:
        if core.tag in self.early:
            self.early[core.tag].append(lambda: self.cancelled(core, req_id))
            return
        self.waiting_for.pop((core.tag, req_id), None) if self._still_waits(core.tag, req_id) else None
        self.feed(lm.LeaseCancelled(core.tag, req_id))

    def _still_waits(self, tag: bytes, req_id: int) -> bool:
        return any(x.tag == tag and x.req_id == req_id and x.state in ("QUEUED", "STAFFING")
                   for x in self.scheduler.leases())  # fmt: skip

    def returned(self, core: Driver, lease_id: int, reusable: bool) -> None:
        lease = next((x for x in self.scheduler.leases() if x.lease_id == lease_id), None)
        if lease is not None and lease.state in ("HELD", "EVICTED"):
            worker = self.workers[lease.worker_id]
            assert worker.task is None or not worker.alive, f"{lease} is returned while its worker runs {worker.task}"
            self.granted.pop(lease_id, None)
        self.feed(lm.LeaseReturned(core.tag, lease_id, reusable))

    def exit_cause_wanted(self, core: Driver, worker: Worker) -> None:
        def still_runs() -> None:
            if worker.alive:
                self.feed(lm.HolderCutOff(core.tag, worker.worker_id))

        self.cluster.net.later(CAUSE_WAIT_S, self.in_turn, still_runs)

    def busy(self, core: Driver, lease_id: int) -> None:
        self.feed(lm.LeaseBusy(core.tag, lease_id))

    def forward(self, core: Driver, name: str, args: tuple[Any, ...], again: bool) -> None:
        """A core's event that is the head's affair."""
        self.uplink.tell("core_event", core, name, args, again=again)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _do_AcquireWorker(self, a: lm.AcquireWorker) -> None:
        self.tickets[a.ticket] = a
        self.cluster.net.later(self.cluster.net.random.expovariate(200), self.in_turn, self._assign, a.ticket)

    def _assign(self, ticket: int) -> None:
        a = self.tickets.pop(ticket, None)
        if a is None:
            return
        idle = self.idle.get(a.job_id)
        if idle and not a.fresh:
            worker = idle.pop()
        else:
            self._next_worker += 1
            worker = Worker(self, self._next_worker, a.job_id)
            self.workers[worker.worker_id] = worker
        worker.assigned = True
        self.feed(lm.WorkerAssigned(ticket, worker.worker_id, worker.tag, worker.worker_id))

    def _do_CancelAcquire(self, a: lm.CancelAcquire) -> None:
        if self.cluster.net.random.random() < 0.5:  # else the pool's answer is on its way already
            self.tickets.pop(a.ticket, None)

    def _do_ReleaseWorker(self, a: lm.ReleaseWorker) -> None:
        worker = self.workers.get(a.worker_id)
        if worker is None:
            return
        worker.assigned = False
        if a.reusable and worker.job_id not in self.jobs_over:
            self.idle.setdefault(worker.job_id, []).append(worker)
        else:
            self.worker_ends(worker, "it was asked to exit")

    def _do_KillWorker(self, a: lm.KillWorker) -> None:
        self.kill_worker(a.worker_id, a.why)

    def kill_worker(self, worker_id: int, why: str) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None:
            self.cluster.net.later(0.002, lambda: self.worker_ends(worker, why))

    def _do_ReclaimWorker(self, a: lm.ReclaimWorker) -> None:
        worker = self.workers.get(a.worker_id)
        if worker is None:
            return
        self.local("reclaim", worker.reclaim, a.tag)

    def worker_ends(self, worker: Worker, cause: str) -> None:
        """However it came to it. The scheduler first, then everybody."""
        if not worker.alive or not self.alive:
            return
        worker.alive = False
        for line in worker.lines:
            line.end(1, cause)
        self.in_turn(self._worker_ended, worker, cause)

    def _worker_ended(self, worker: Worker, cause: str) -> None:
        del self.workers[worker.worker_id]
        if worker in self.idle.get(worker.job_id, ()):
            self.idle[worker.job_id].remove(worker)
        if worker.assigned:
            self.feed(lm.WorkerLost(worker.worker_id, cause))
        self.uplink.tell("worker_died", worker.tag, again=True)

    def from_worker(self, worker: Worker, name: str, args: tuple[Any, ...]) -> None:
        if worker.worker_id in self.workers:  # as far as this node knows: what it said before it died is heard first
            if name == "actor_exiting":
                self.uplink.ask(name, (worker, *args), lambda: self._exit_taken_note_of(worker))
                return
            self.feed(lm.ActorStarted(args[0]))
            self.uplink.tell("core_event", worker, name, args)

    # -- the head's wishes --------------------------------------------------------------------------------------------

    def on_place_actor(self, actor_id: bytes, spec: dict[str, Any], incarnation: int) -> None:
        self.placed[actor_id] = incarnation
        place = spec["place"]
        ask, to_place = spec["resources"], spec["placement_resources"]
        self.feed(lm.ActorRequested(actor_id, spec["job_id"], ask, to_place, "actor", place=place))
        self.cluster.laws.legal_actor(actor_id, self)

    def on_release_actor(self, actor_id: bytes) -> None:
        if self.placed.pop(actor_id, None) is not None:
            self.became.pop(actor_id, None)
            self.feed(lm.ActorReleased(actor_id))

    def on_become_actor(self, worker_tag: bytes, actor_id: bytes, incarnation: int) -> None:
        for worker in self._with_tag(worker_tag):
            if self.became.get(actor_id) != worker_tag:  # else said twice, by a head that was restarted
                self.became[actor_id] = worker_tag
                worker.become(actor_id, incarnation)

    def _exit_taken_note_of(self, worker: Worker) -> None:
        if worker.worker_id in self.workers:
            self.local("exit_taken_note_of", worker.exit_taken_note_of)

    def on_kill_worker(self, worker_tag: bytes, why: str) -> None:
        for worker in self._with_tag(worker_tag):
            self.kill_worker(worker.worker_id, why)

    def _with_tag(self, tag: bytes) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.tag == tag]

    def on_job_over(self, job_id: bytes) -> None:
        self.jobs_over.add(job_id)
        for worker in [w for w in self.workers.values() if w.job_id == job_id]:
            self.kill_worker(worker.worker_id, "its job is over")

    def on_kept(self, number: int) -> None:
        self.uplink.outbox.kept(number)

    def on_bundles(self, event: Any) -> None:
        """Prepare, commit, return, removed."""
        self.feed(event)

    def on_state(self, tag: bytes, kind: str, args: tuple[Any, ...]) -> None:
        """Of an actor or a group, for a core."""
        if kind == "actor_state" and args[1] == "DEAD":
            self.uplink.unfollow(tag, args[0])
        core = self.cores.get(tag)
        if core is not None:
            self.tell(tag, kind, getattr(core, kind), *args)

    # -- its end ------------------------------------------------------------------------------------------------------

    def dies(self, why: str, silently: bool) -> None:
        """With all its processes. silently: the machine, so that nobody is told."""
        if not self.alive:
            return
        self.cluster.net.note(f"node {self.number} dies: {why}{', silently' if silently else ''}")
        self.cluster.laws.died.add(self.node_id)
        for worker in list(self.workers.values()):
            worker.alive = False
            for line in worker.lines:
                line.lost(1) if silently else line.end(1, why)
        for core in list(self.cores.values()):
            line = self.lines[core.tag]
            if core.home is self:
                core.dies(why, silently)
            elif silently:
                line.lost(1)
            else:
                line.end(1, why)
        for driver in [x for x in self.cluster.starting if x.home is self]:
            driver.dies(why, silently)
        self.uplink.close(why, silently)
        self.alive, self.silent = False, silently

    def place_of(self, group_id: bytes) -> set[int]:
        """Bundles of it that are committed here."""
        group = self.scheduler.bundles.groups.get(group_id)
        return {i for i, b in group.bundles.items() if b.state == "COMMITTED"} if group else set()

    def __repr__(self) -> str:
        stats = self.scheduler.stats()
        return f"<Node {self.number}{'' if self.alive else ' dead'} {stats['leases']} of {self.total}>"
