"""The simulated head: the real `HeadService` with its machines, the real membership, and what lies between them.

In place of the uplinks' shell: what the machines say to a node goes over that node's line; what comes from a node that
has been declared dead is not listened to. Node 0 is the head's own; its line is never cut, and its silence means
nothing.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from ray._control.rows import NodeRow
from ray._head import actor_messages as am
from ray._head import global_scheduler as gs
from ray._head import group_messages as gm
from ray._head import monitor
from ray._head.membership import GONE, Acknowledged, Admit, Joined, Left, Membership, Reported, Spread, Tell, View
from ray._head.service import HeadService
from ray._node import lease_messages as lm
from ray._node.cluster_view import REPORT_S
from ray._protocol.ids import node_number
from ray._scheduling.strategy import InGroup, parse_strategy

from .network import Line

if TYPE_CHECKING:
    from .cluster import Cluster
    from .drivers import Driver
    from .nodes import Node


class _Service(HeadService):
    """Without Redis. What it would tell people is counted."""

    told: collections.Counter[str]

    def _steady(self) -> float:
        return self._clock()

    def report_error(self, job_id: bytes, kind: str, message: str, extra: Any, pid: int = 0) -> None:
        self.told[kind] += 1


class Head:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.net = cluster.net
        self.service = _Service(Port(self), None, clock=lambda: self.net.now)
        self.service.told = collections.Counter()
        self.members = Membership()
        self.uplinks: dict[int, Line] = {}
        self.numbers: dict[bytes, int] = {}
        self.at: dict[int, Node] = {}
        self._tick_at = 0.0
        self._spread_due = False
        self._spread_at = 0.0
        self.stopped = False  # its process, which is that of node 0
        self.lines: list[Line] = []  # to nodes, and to those that want to join

    def stop(self) -> None:
        self.stopped = True
        for line in self.lines:
            line.stopped[1] = True

    def go_on(self) -> None:
        """First what sockets have, then timers."""
        self.stopped = False
        for line in list(self.lines):
            line.go_on(1)
        self._tick()
        if self._spread_due:
            self._spread()

    def dialled(self, line: Line) -> None:
        """By a node that wants to join."""
        self.lines = [line, *(x for x in self.lines if not x.over)]
        line.stopped[1] = self.stopped

    # -- nodes --------------------------------------------------------------------------------------------------------

    def join(self, node: Node) -> None:
        about = {"host": "h", "port": 1, "total": node.total, "labels": node.scheduler.labels}
        actions = self.members.handle(Joined(node.node_id, about), self.net.now)
        admit = actions[0]
        assert isinstance(admit, Admit)
        number = admit.number
        assert number not in self.uplinks, "a number is given twice"
        line = self.uplinks[number] = node.uplink
        self.numbers[node.node_id] = number
        self.at[number] = node
        self.cluster.by_number(node, number)
        line.on_end[1] = lambda why: self._gone(node.node_id, why)
        row = NodeRow(node.node_id, resources=dict(node.total), labels=dict(node.scheduler.labels))
        up = monitor.NodeUp(row, watched=number == 0)  # from here on, so that nobody waits for one that dies now
        self.service.run(lambda: self.service.monitor.handle(up, self.net.now))
        self._watch()
        line.say(1, "admitted", node.admitted, number, admit.table)
        self._carry_out(actions[1:])

    def _carry_out(self, actions: list[Any]) -> None:
        tells: list[Tell] = []
        for action in actions:
            tells += [Tell(to, "view", (action.rows,)) for to in action.to] if isinstance(action, View) else [action]
        for tell in tells:
            if tell.name == "opened":
                row = self.members._nodes[tell.to].row
                joined = gs.NodeJoined(row["node_id"], row["total"], row["labels"])
                self.service.run(lambda joined=joined: self.service.placing.handle(joined))  # type: ignore[misc]
                self.service.groups.handle(gm.NodesChanged())
                for gone in self.service.groups.groups.removed():
                    self.tell(tell.to, "group_removed", lm.GroupRemoved(*gone), method="on_bundles")
            self.tell(tell.to, tell.name, *tell.args)
        self.members.check()
        if self.members.news and not self._spread_due:
            self._spread_due = True
            self.net.at(max(self._spread_at, self.net.now), self._spread)

    def _spread(self) -> None:
        if not self.stopped:  # else when it goes on
            self._spread_due, self._spread_at = False, self.net.now + REPORT_S
            self._carry_out(self.members.handle(Spread(), self.net.now))

    def tell(self, number: int | None, kind: str, *args: Any, method: str = "") -> None:
        if number is not None and self.members.state(number) not in (None, GONE):
            self.uplinks[number].say(1, kind, getattr(self.at[number], method or "on_" + kind), *args)

    def node_dead(self, node_id: bytes, cause: str) -> None:
        """The monitor has said so."""
        number = self.numbers[node_id]
        self.cluster.laws.declared_dead(node_id, cause)
        self._carry_out(self.members.handle(Left(number, cause), self.net.now))
        self.uplinks[number].end(1, f"declared dead: {cause}")
        for job in self.service.jobs.all():
            if node_number(job.driver_tag) == number and job.state == "RUNNING":
                self.service.driver_gone(job.driver_tag, "its node is down", False)
        self.service.cores_of_node_gone(number, "its node is down")

    def _watch(self) -> None:
        due_s = self.service.silence_due_s()
        if due_s is not None and (self._tick_at <= self.net.now or self.net.now + due_s < self._tick_at):
            self._tick_at = self.net.now + due_s
            self.net.at(self._tick_at, self._tick)
        self.cluster.laws.head(self)

    def _tick(self) -> None:
        if self._tick_at <= self.net.now and not self.stopped:
            self.service.look_for_silence()
            self._watch()

    def _gone(self, node_id: bytes, why: str) -> None:
        self.service.node_down(node_id, why)
        self._watch()

    def _node_id(self, number: int) -> bytes:
        node_id: bytes = self.members._nodes[number].row["node_id"]
        return node_id

    # -- what nodes say; of one that was declared dead nothing arrives, since its line has ended --

    def heartbeat(self, number: int) -> None:
        self.service.heartbeat(self._node_id(number))
        self._watch()

    def known(self, number: int, of: int) -> None:
        self._carry_out(self.members.handle(Acknowledged(number, of), self.net.now))

    def reported(self, number: int, report: dict[str, Any]) -> None:
        self._carry_out(self.members.handle(Reported(number, report), self.net.now))
        self.service.resources_reported(self._node_id(number), report["available"])
        self.cluster.laws.head(self)

    def register_driver(self, number: int, driver: Driver) -> None:
        job_id = self.service.register_driver(driver.tag, driver.pid, {})
        self.uplinks[number].say(1, "registered", driver.registered, job_id)

    def job_info(self, node_id: bytes, tag: bytes, job_id: bytes) -> None:
        number = self.numbers[node_id]  # which the node may not have heard yet
        self.uplinks[number].say(1, "job_known", self.at[number].job_known, tag, job_id, self.service.job_lives(job_id))

    def driver_gone(self, number: int, tag: bytes) -> None:
        self.service.driver_gone(tag, "its connection ended", False)
        self.cluster.laws.head(self)

    def worker_died(self, number: int, tag: bytes) -> None:
        self.service.worker_died(tag, "killed")
        self.cluster.laws.head(self)

    def actor_placed(self, number: int, actor_id: bytes) -> None:
        self.service.actor_placed(actor_id, self._node_id(number))
        self.cluster.laws.head(self)

    def actor_worker_started(self, number: int, actor_id: bytes, worker_tag: bytes) -> None:
        self.service.actor_worker_started(actor_id, worker_tag, 1, [])
        self.cluster.laws.head(self)

    def actor_refused(self, number: int, actor_id: bytes) -> None:
        self.service.run(lambda: self.service.placing.handle(gs.Ended(actor_id)))
        self.service.actor_event(am.Unplaceable(actor_id, b"its group is gone"))
        self.cluster.laws.head(self)

    def bundles_prepared(self, number: int, group_id: bytes, attempt: int) -> None:
        self.service.bundles_prepared(self._node_id(number), group_id, attempt)
        self.cluster.laws.head(self)

    def bundles_refused(self, number: int, group_id: bytes, attempt: int, available: dict[str, int]) -> None:
        self.service.bundles_refused(self._node_id(number), group_id, attempt, available)
        self.cluster.laws.head(self)

    def core_event(self, number: int, caller: Any, name: str, args: tuple[Any, ...]) -> None:
        if name == "actor_exiting":  # a request; this head can't come back, and so it is answered at once
            self.service.actor_event(am.Exiting(args[0], caller.tag, args[1]))
            self.tell(number, "exit_taken_note_of", caller.tag)
        else:
            self.service.event(caller, name, args)
        self.cluster.laws.head(self)


class Port:
    """What the head wants of nodes, each by the line to it."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self.placed_at: dict[bytes, int] = {}  # actors: the node that was asked last

    def place_actor(self, actor_id: bytes, spec: dict[str, Any], incarnation: int) -> None:
        number = self.placed_at[actor_id] = self._head.numbers[spec["node_id"]]
        strategy = parse_strategy(spec.get("strategy"))
        place = strategy if isinstance(strategy, InGroup) else None
        self._head.tell(number, "place_actor", actor_id, {**spec, "place": place})

    def cancel_placement(self, actor_id: bytes) -> None:
        self._head.tell(self.placed_at.pop(actor_id, None), "cancel_placement", actor_id, method="on_release_actor")

    def release_actor(self, actor_id: bytes) -> None:
        self._head.tell(self.placed_at.pop(actor_id, None), "release_actor", actor_id)

    def become_actor(
        self, worker_tag: bytes, actor_id: bytes, creation: bytes, incarnation: int, gpu_ids: list[int | str]
    ) -> None:
        self._head.tell(node_number(worker_tag), "become_actor", worker_tag, actor_id, incarnation)

    def actor_state(
        self, core_tag: bytes, actor_id: bytes, state: str, worker_tag: bytes, incarnation: int, cause: str | bytes
    ) -> None:
        args = core_tag, "actor_state", (actor_id, state, incarnation)
        self._head.tell(node_number(core_tag), "actor_state", *args, method="on_state")

    def kill_worker(self, worker_tag: bytes, why: str) -> None:
        self._head.tell(node_number(worker_tag), "kill_worker", worker_tag, why)

    def ask_to_exit(self, worker_tag: bytes, why: str) -> None:
        self._head.tell(node_number(worker_tag), "ask_to_exit", worker_tag, why, method="on_kill_worker")

    def expect_exit(self, worker_tag: bytes, why: str) -> None:
        pass  # the simulated worker always keeps its word

    def job_over(self, job_id: bytes) -> None:
        for number in self._head.members.living():
            self._head.tell(number, "job_over", job_id)

    def prepare_bundles(self, order: gm.PrepareBundles) -> None:
        event = lm.PrepareBundles(
            order.group_id, order.attempt, order.bundles, order.job_id, order.name, order.may_wait
        )  # fmt: skip
        self._bundles(order.node_id, "prepare_bundles", event)

    def commit_bundles(self, node_id: bytes, group_id: bytes) -> None:
        self._bundles(node_id, "commit_bundles", lm.CommitBundles(group_id))

    def return_bundles(self, node_id: bytes, group_id: bytes, indexes: list[int], why: str) -> None:
        self._bundles(node_id, "return_bundles", lm.ReturnBundles(group_id, indexes, why))

    def group_removed(self, group_id: bytes, why: str) -> None:
        for number in self._head.members.living():
            self._head.tell(number, "group_removed", lm.GroupRemoved(group_id, why), method="on_bundles")

    def _bundles(self, node_id: bytes, kind: str, event: Any) -> None:
        self._head.tell(self._head.numbers[node_id], kind, event, method="on_bundles")

    def node_dead(self, node_id: bytes, cause: str) -> None:
        self._head.node_dead(node_id, cause)

    def group_state(self, core_tag: bytes, group_id: bytes, created: bool) -> None:
        args = core_tag, "group_state", (group_id, created)
        self._head.tell(node_number(core_tag), "group_state", *args, method="on_state")

    def error(self, job_id: bytes, kind: str, message: str, extra: dict[str, Any]) -> None:
        pass  # counted by _Service
