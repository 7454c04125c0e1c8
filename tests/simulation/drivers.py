"""A simulated driver: asks for leases, follows where it is sent, runs its tasks there, repeats what was lost.

It does what the engine does (ray/_core/submit.pxi, leases.pxi, nodes.pxi), without its speed: tasks of one shape and
strategy wait together, a granted lease runs one after the other, is kept a moment when none is left, and given back;
some drivers keep theirs until they hear `lease_wanted`. What was lost with a worker, a node or a link is run again, as
often as the task allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray._node import lease_messages as lm
from ray._scheduling.strategy import Strategy

from .network import Line

if TYPE_CHECKING:
    from .nodes import Node
    from .workers import Worker

REQUESTS_MAX = 3  # of one queue at a time
IDLE_S = 0.01


class Task:
    def __init__(self, number: int, owner: Driver, shape: dict[str, int], strategy: Strategy, retries: int) -> None:
        self.number = number
        self.owner = owner
        self.shape = shape
        self.strategy = strategy
        self.retries = retries
        self.takes_s = 0.02
        self.child: Task | None = None
        self.state = "waiting"  # | running | done | failed | refused
        self.attempt = 0  # lost so far
        self.started: set[int] = set()  # attempts that a worker has begun
        self.waiting_parents: list[tuple[Worker, Line, Task, int]] = []
        self.told_infeasible = False

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "refused")

    def __repr__(self) -> str:
        return f"<Task {self.number} of {self.owner.tag.hex()[:8]} {self.shape} {self.strategy} {self.state}>"


class Queue:
    """Tasks that need the same, and what was asked for them."""

    def __init__(self, shape: dict[str, int], strategy: Strategy) -> None:
        self.shape = shape
        self.strategy = strategy
        self.tasks: list[Task] = []
        self.requests: dict[int, tuple[int, int]] = {}  # request -> (the node that was asked, hops)
        self.infeasible: set[int] = set()  # requests of which it was told that no node can meet them


class Lease:
    def __init__(self, queue: Queue, number: int, lease_id: int, worker: Worker, line: Line) -> None:
        self.queue = queue
        self.number = number
        self.lease_id = lease_id
        self.worker = worker
        self.line = line
        self.task: Task | None = None
        self.idle_since = 0.0
        self.dead = False  # its worker is gone: the node has yet to say so


class Driver:
    kind, namespace, pid = "driver", "", 1

    def __init__(self, home: Node, tag: bytes, keeps: bool) -> None:
        self.home = home
        self.cluster = home.cluster
        self.tag = tag
        self.keeps = keeps  # idle leases, until they are wanted
        self.alive = True
        self.leaving = False
        self.job_id = b""
        self.queues: dict[Any, Queue] = {}
        self.queue_of: dict[int, Queue] = {}  # of each request that is out
        self.leases: dict[tuple[int, int], Lease] = {}
        self.lines: dict[int, Line] = {}
        self.wanted: set[int] = set()  # nodes that want idle leases back
        self.down: set[int] = set()
        self.tasks: list[Task] = []
        self.actors: dict[bytes, tuple[str, int]] = {}  # as it was told
        self.groups: dict[bytes, str] = {}
        self._next = 0
        self.line_home = Line(self.cluster.net, f"driver {tag.hex()[:8]}", remote=False)
        self.line_home.on_end[0] = lambda why: self.dies(why, False)
        self.lines[home.number] = self.line_home
        home.at_ends.append((self.line_home, 1))
        self.line_home.stopped[1] = home.stopped
        self.cluster.starting.append(self)
        self.line_home.say(0, "register_driver", self._register)

    # -- registration and the head ------------------------------------------------------------------------------------

    def _register(self) -> None:
        self.home.uplink.ask("register_driver", (self,), self.registered)

    def registered(self, job_id: bytes) -> None:
        """The head's answer, on its way through the node."""
        if not self.alive:
            return
        self.job_id = job_id
        self.home.core_joined(self, self.line_home)
        self.line_home.say(1, "registered", self._ready)

    def _ready(self) -> None:
        self.cluster.starting.remove(self)
        self.cluster.drivers.append(self)

    def to_head(self, name: str, *args: Any, again: bool = False) -> None:
        self.line_home.say(0, name, self.home.forward, self, name, args, again)

    def actor_state(self, actor_id: bytes, state: str, incarnation: int) -> None:
        assert self.actors[actor_id][0] != "DEAD" or state == "DEAD", f"actor {actor_id.hex()} was DEAD and is {state}"
        self.actors[actor_id] = state, incarnation

    def group_state(self, group_id: bytes, created: bool) -> None:
        if self.groups[group_id] != "REMOVED":  # else it crossed with our own word
            self.groups[group_id] = "CREATED" if created else "LOST"

    # -- tasks --------------------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        self.tasks.append(task)
        if task.child is not None:
            self.submit(task.child)
        self._enqueue(task)

    def _enqueue(self, task: Task) -> None:
        key = (tuple(sorted(task.shape.items())), task.strategy)
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = Queue(task.shape, task.strategy)
        queue.tasks.append(task)
        self._pump(queue)

    def _pump(self, queue: Queue) -> None:
        for lease in list(self.leases.values()):
            if lease.queue is queue and lease.task is None and not lease.dead and queue.tasks:
                self._run_next(lease)
        for _ in range(min(len(queue.tasks), REQUESTS_MAX) - len(queue.requests)):
            self._ask(queue, self.home.number, 0)

    def _ask(self, queue: Queue, number: int, hops: int) -> None:
        self._next += 1
        queue.requests[self._next] = number, hops
        self.queue_of[self._next] = queue
        random = self.cluster.net.random
        holds = {random.choice(list(self.home.table) or [0]): 1_000_000} if random.random() < 0.2 else None
        name = f"task of {self.tag.hex()[:8]}"
        request = lm.LeaseRequested(
            self.tag, self._next, queue.shape, name, strategy=queue.strategy, hops=hops, holds=holds
        )
        self._say(number, "lease_request", "asked", request)
        for lease in [x for x in self.leases.values() if x.task is None and self._waits_elsewhere(x)]:
            self._give_back(lease)

    def _waits_elsewhere(self, lease: Lease) -> bool:
        """Whether it waits itself for just such a lease, only by another strategy: no node would ask for it back."""
        others = [q for q in self.queues.values() if q is not lease.queue and q.shape == lease.queue.shape]
        return any(queue.requests for queue in others)

    def _say(self, number: int, kind: str, method: str, *args: Any) -> None:
        line = self.lines.get(number)
        node = self.cluster.nodes[number]
        if line is None:
            line = self.lines[number] = self.cluster.dial(
                self.home, node, f"guest {self.tag.hex()[:8]} at {number}", to_node=True
            )
            line.on_end[0] = lambda why: self._lost_line(number, line)
            line.say(0, "register_guest", node.guest_joined, self, line)
        line.say(0, kind, getattr(node, method), self, *args)

    def _take(self, req_id: int) -> tuple[Queue, int, int] | None:
        """A request that was answered; None: it has been given up meanwhile."""
        queue = self.queue_of.pop(req_id, None)
        if queue is None:
            return None
        queue.infeasible.discard(req_id)
        return (queue, *queue.requests.pop(req_id))

    def granted(self, number: int, req_id: int, lease_id: int, worker: Worker) -> None:
        self.wanted.discard(number)
        taken = self._take(req_id)
        if taken is None:
            self._say(number, "lease_return", "returned", lease_id, True)
            return
        queue, asked_at, _ = taken
        assert asked_at == number, f"granted by {number}, which was not asked: {asked_at} was"
        line = self.cluster.dial(
            self.home, worker.node, f"driver {self.tag.hex()[:8]} - worker {worker.tag.hex()[-4:]}"
        )
        lease = self.leases[number, lease_id] = Lease(queue, number, lease_id, worker, line)
        line.on_end[0] = lambda why: self._worker_gone(lease)
        if worker.alive:
            worker.lines = [x for x in worker.lines if not x.ended[1]]
            worker.lines.append(line)
        else:
            line.end(1, "it is dead already")
        self._run_next(lease)
        self._pump(queue)  # what is left wants leases of its own: this one's task may wait long

    def _run_next(self, lease: Lease) -> None:
        if lease.queue.tasks:
            task = lease.task = lease.queue.tasks.pop(0)
            task.state = "running"
            lease.line.say(0, "push", lease.worker.push, lease.line, task, task.attempt)
            return
        for req_id, (number, _) in list(lease.queue.requests.items()):  # nothing is left to run
            self._take(req_id)
            self._say(number, "lease_cancel", "cancelled", req_id)
        lease.idle_since = self.cluster.net.now
        if lease.number in self.wanted or self.leaving or self._waits_elsewhere(lease):
            self._give_back(lease)
        elif not self.keeps:
            self.cluster.net.later(IDLE_S, lambda since=lease.idle_since: self._idle_for_long(lease, since))  # type: ignore[misc]

    def _idle_for_long(self, lease: Lease, since: float) -> None:
        if lease.task is None and lease.idle_since == since and self.alive:
            self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        if not lease.dead and self.leases.pop((lease.number, lease.lease_id), None) is lease:
            lease.line.end(0, "given back")
            self._say(lease.number, "lease_return", "returned", lease.lease_id, True)

    def lease_wanted(self, number: int) -> None:
        self.wanted.add(number)
        for lease in [x for x in self.leases.values() if x.number == number and x.task is None]:
            self._give_back(lease)

    def spilled(self, number: int, req_id: int, to: int) -> None:
        taken = self._take(req_id)
        if taken is not None:
            queue, asked_at, hops = taken
            assert asked_at == number
            assert to == self.home.number or to in self.home.table, (
                f"sent to node {to}, of which its own node does not know"
            )
            self._ask(queue, self.home.number if to in self.down else to, hops + 1)

    def refused(self, number: int, req_id: int, kind: str) -> None:
        taken = self._take(req_id)
        if taken is None:
            return
        queue = taken[0]
        self.cluster.laws.legal_refusal(queue.strategy, queue.shape, kind)
        tasks, queue.tasks = queue.tasks, []
        for other, (at, _) in list(queue.requests.items()):
            self._take(other)
            self._say(at, "lease_cancel", "cancelled", other)
        for task in tasks:
            task.state = "refused"
            self._is_over(task)

    def infeasible(self, number: int, req_id: int) -> None:
        queue = self.queue_of.get(req_id)
        if queue is not None:
            queue.infeasible.add(req_id)

    def result(self, line: Line, task: Task, attempt: int) -> None:
        lease = next((x for x in self.leases.values() if x.line is line), None)
        if lease is None or lease.task is not task or attempt != task.attempt:
            return
        assert task.state == "running"
        task.state, lease.task = "done", None
        self._is_over(task)
        self._run_next(lease)

    # -- a task that waits for another --------------------------------------------------------------------------------

    def wake_when_over(self, child: Task, worker: Worker, line: Line, task: Task, attempt: int) -> None:
        if child.over:
            line.say(0, "child_over", worker.child_over, line, task, attempt)
        else:
            child.waiting_parents.append((worker, line, task, attempt))

    def _is_over(self, task: Task) -> None:
        for worker, line, parent, attempt in task.waiting_parents:
            line.say(0, "child_over", worker.child_over, line, parent, attempt)
        task.waiting_parents = []

    # -- losses -------------------------------------------------------------------------------------------------------

    def _lost(self, lease: Lease) -> None:
        """Whatever it ran is run again, if it may be."""
        task, lease.task = lease.task, None
        lease.dead = True
        if task is None:
            self._pump(lease.queue)
            return
        task.attempt += 1
        if 0 <= task.retries < task.attempt:
            task.state = "failed"
            self.cluster.laws.legal_failure(task)
            self._is_over(task)
            self._pump(lease.queue)
        else:
            task.state = "waiting"
            self._enqueue(task)

    def _worker_gone(self, lease: Lease) -> None:
        if self.leases.get((lease.number, lease.lease_id)) is lease:
            if lease.number in self.lines:
                self._say(lease.number, "worker_exit_cause", "exit_cause_wanted", lease.worker)
            self._lost(lease)

    def lease_evicted(self, number: int, lease_id: int) -> None:
        lease = self.leases.get((number, lease_id))
        if lease is None:
            return
        if lease.task is None:
            self._give_back(lease)
        else:
            self._say(number, "lease_busy", "busy", lease_id)

    def lease_lost(self, number: int, lease_id: int) -> None:
        lease = self.leases.pop((number, lease_id), None)
        if lease is not None:
            lease.line.end(0, "its lease is lost")
            self._lost(lease)

    def _lost_line(self, number: int, line: Line) -> None:
        """What was leased there is lost; what waited there is asked of the own node, with one hop more."""
        if self.lines.get(number) is not line or not self.alive:
            return
        del self.lines[number]
        self.wanted.discard(number)
        for key in [key for key in self.leases if key[0] == number]:
            lease = self.leases.pop(key, None)
            if lease is None:
                continue  # given back while another's loss was seen to
            lease.line.end(0, "the node is gone, or the way to it")
            self._lost(lease)
        for req_id, queue in list(self.queue_of.items()):
            at, hops = queue.requests[req_id]
            if at == number:
                self._take(req_id)
                self._ask(queue, self.home.number, hops + 1)

    def node_down(self, number: int) -> None:
        self.down.add(number)
        line = self.lines.get(number)
        if line is not None:
            line.end(0, "its node is down")
            self._lost_line(number, line)

    def leave(self) -> None:
        """Gives everything back, then ends."""
        self.leaving = True
        for lease in [x for x in self.leases.values() if x.task is None]:
            self._give_back(lease)

    def dies(self, why: str, silently: bool) -> None:
        if not self.alive:
            return
        self.alive = False
        for drivers in (self.cluster.drivers, self.cluster.starting):
            if self in drivers:
                drivers.remove(self)
        for line in [*self.lines.values(), *[lease.line for lease in self.leases.values()]]:
            line.lost(0) if silently else line.end(0, why)
        self.leases.clear()
