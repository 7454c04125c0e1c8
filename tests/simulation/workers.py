"""One simulated worker: it runs tasks that owners of its lease send, one at a time, or becomes an actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray._node import lease_messages as lm

from .network import Line

if TYPE_CHECKING:
    from .drivers import Task
    from .nodes import Node


class Worker:
    """A process that runs tasks, or is an actor."""

    def __init__(self, node: Node, worker_id: int, job_id: bytes) -> None:
        self.node = node
        self.worker_id = worker_id
        self.tag = node.number.to_bytes(4, "big") + b"w" + worker_id.to_bytes(11, "big")
        self.job_id = job_id
        self.alive = True
        self.assigned = False  # to a lease
        self.actor_id = b""
        self.leaving = False  # exit_actor() was called, and the head has not said that it knows
        self.blocked = False  # its task waits for another: the truth, of which the scheduler is told
        self.task: Task | None = None
        self.turn = 0  # how manieth it runs: timers of an earlier one mean nothing
        self.lines: list[Line] = []

    def push(self, line: Line, task: Task, attempt: int) -> None:
        """The owner of its lease sends a task."""
        cluster = self.node.cluster
        if not self.alive:
            return
        assert self.task is None, f"{task} is sent to a worker that runs {self.task}"
        assert attempt not in task.started, f"{task} is run twice in its attempt {attempt}"
        task.started.add(attempt)
        self.task, self.turn = task, self.turn + 1
        cluster.laws.legal_place(task, self.node)
        self._after(task.takes_s, lambda: self._half_way(line, task, attempt))

    def _half_way(self, line: Line, task: Task, attempt: int) -> None:
        if task.child is None or task.child.over:
            self._finish(line, task, attempt)
            return
        self.blocked = True
        self._tell_node("blocked", lm.Blocked(self.worker_id))
        turn = self.turn
        self.node.cluster.net.later(0.05, lambda: self._known_as_blocked() if self.turn == turn else None)
        line.say(1, "needs_child", task.owner.wake_when_over, task.child, self, line, task, attempt)

    def _known_as_blocked(self) -> None:
        lease = self.node.scheduler.lease_of_worker(self.worker_id)
        if (
            self.alive
            and self.blocked
            and self.node.alive
            and not self.node.stopped
            and lease is not None
            and lease.state == "HELD"
        ):
            assert lease.blocked, f"{lease} is blocked, and its node doesn't know"

    def child_over(self, line: Line, task: Task, attempt: int) -> None:
        if self.alive and self.task is task and self.blocked:
            self.blocked = False
            self._tell_node("unblocked", lm.Unblocked(self.worker_id))
            self._after(task.takes_s, lambda: self._finish(line, task, attempt))

    def _finish(self, line: Line, task: Task, attempt: int) -> None:
        self.task = None
        line.say(1, "result", task.owner.result, line, task, attempt)

    def become(self, actor_id: bytes, incarnation: int) -> None:
        cluster = self.node.cluster
        self.actor_id = actor_id
        cluster.laws.becomes(self, actor_id, incarnation)
        fate = cluster.net.random.random()
        if fate < 0.05:
            self._after(0.01, lambda: self._core_event("actor_failed", actor_id, b"it raised"))
        else:
            self._after(0.01, lambda: self._core_event("actor_ready", actor_id))
            if fate < 0.1:
                self._after(1.0, lambda: self._exit_actor(actor_id))

    def _exit_actor(self, actor_id: bytes) -> None:
        self.leaving = True
        self._core_event("actor_exiting", actor_id, "exit_actor()")

    def exit_taken_note_of(self) -> None:
        """The head knows it: only now is its caller told."""
        self.leaving = False
        self.node.cluster.laws.exited.add(self.actor_id)
        self._after(0.05, lambda: self.node.worker_ends(self, "it exited"))

    def reclaim(self, owner_tag: bytes) -> None:
        self.task, self.blocked, self.turn = None, False, self.turn + 1
        self._tell_node("reclaimed", lm.Reclaimed(self.worker_id, self.node.cluster.net.random.random() < 0.7))

    def _core_event(self, name: str, *args: Any) -> None:
        self.node.local(name, self.node.from_worker, self, name, args)

    def _tell_node(self, kind: str, event: Any) -> None:
        self.node.local(kind, self._arrives, event)

    def _arrives(self, event: Any) -> None:
        if self.alive:
            self.node.feed(event)

    def _after(self, mean_s: float, what: Callable[[], None]) -> None:
        net = self.node.cluster.net
        turn = self.turn
        net.later(net.random.expovariate(1 / mean_s), lambda: what() if self.alive and self.turn == turn else None)
