"""The simulated head: the real `HeadService` with its machines, the real membership, and what lies between them.

In place of the uplinks' shell (`ray/_node/cluster_head.py`): what the machines say to a node goes over that node's
line; what comes from a node that has been declared dead is not listened to. The head's own node is in its process: its
line is never cut, and its silence means nothing. The head may be killed, with that node and Redis; another process then
takes over from the disk (`returning.py`).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray._control.rows import NodeRow
from ray._head import actor_messages as am
from ray._head import global_scheduler as gs
from ray._head import group_messages as gm
from ray._head import monitor
from ray._head.lasting import Lasting
from ray._head.membership import Acknowledged, Admit, Joined, Left, Membership, Reported, Spread, Tell, View
from ray._head.service import HeadService
from ray._node import lease_messages as lm
from ray._node.catch_up import CatchUp
from ray._node.cluster_view import REPORT_S
from ray._node.outbox import Asked
from ray._protocol.ids import node_number
from ray._scheduling.strategy import InGroup, parse_strategy

from .network import Line, Network
from .returning import Returning

if TYPE_CHECKING:
    from .cluster import Cluster
    from .drivers import Driver
    from .nodes import Node
    from .uplinks import Uplink


class _Service(HeadService):
    """On a simulated disk. What it would tell people is counted."""

    told: collections.Counter[str]
    net: Network

    def _steady(self) -> float:
        return self._clock()

    def later(self, delay_s: float, what: Callable[..., object], *args: Any) -> Any:
        head = self.port._head  # type: ignore[attr-defined]
        self.net.later(delay_s, lambda: head.in_turn(what, *args))

    def report_error(self, job_id: bytes, kind: str, message: str, extra: Any, pid: int = 0) -> None:
        self.told[kind] += 1


class _Lasting(Lasting):
    """In virtual time."""

    def __init__(self, head: Head) -> None:
        self._of = head

    def say(self, what: Callable[[], None]) -> None:
        self._of.service.groups.flush()
        self._of.disk.when_it_lasts(lambda: self._of.in_turn(what))


class Head:
    """One process; a head that takes over is another."""

    def __init__(self, cluster: Cluster, resumed: bool = False) -> None:
        self.cluster = cluster
        self.net = cluster.net
        self.disk = cluster.disk
        self.service = _Service(Port(self), self.disk, clock=lambda: self.net.now)  # type: ignore[arg-type]
        self.service.net, self.service.told = self.net, collections.Counter()
        self.service.lasts = True
        self.service.lasting = _Lasting(self)
        self.own = self.disk.next_number if resumed else 0  # the number of its own node
        self.members = Membership(self.own, dict(self.disk.nodes) if resumed else None)
        self.alive = True
        self.stopped = False  # its process, which is that of its own node
        self.uplinks: dict[int, Line] = {}
        self.numbers: dict[bytes, int] = {}
        self.at: dict[int, Node] = {}
        self.heard: dict[int, int] = {}  # by node: the last event of it that has been dealt with
        self.lines: list[Line] = []  # to nodes, and to those that want to join
        self.returning = Returning(self) if resumed else None  # while it gathers its nodes
        self._to_do: list[Callable[[], None]] = []  # what has come due while it stood still
        self._tick_at = 0.0
        self._spread_due = False
        self._spread_at = 0.0
        self.catching_up = CatchUp(lambda number, of_round: self.tell(number, "catch_up", of_round))
        self._unkept: set[int] = set()
        self._keeping = False

    # -- its process --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self.stopped = True
        for line in self.lines:
            line.stopped[1] = True

    def go_on(self) -> None:
        """First what sockets have, then timers."""
        self.stopped = False
        for line in list(self.lines):
            line.go_on(1)
        to_do, self._to_do = self._to_do, []
        for what in to_do:
            self.in_turn(what)
        self._tick()

    def in_turn(self, what: Callable[..., object], *args: Any) -> None:
        """What it does when a time has come, or Redis has answered."""
        if self.stopped:
            self._to_do.append(lambda: what(*args))
        elif self.alive:
            what(*args)

    def dies(self) -> None:
        """Killed, with Redis; what it had said is under way."""
        self.alive = False
        for line in self.lines:
            line.end(1, "the head was killed")
        self.disk.lose_what_waits()

    def dialled(self, line: Line) -> None:
        """By a node."""
        self.lines = [line, *(x for x in self.lines if not x.over)]
        line.stopped[1] = self.stopped
        if not self.alive:
            line.end(1, "connection refused")

    # -- nodes --------------------------------------------------------------------------------------------------------

    def join(self, node: Node) -> None:
        if self.returning is not None:
            self.returning.newcomers.append(node)
            return
        assert node.uplink.line is not None
        if node.uplink.line.ended[1]:
            return
        about = {"host": "h", "port": 1, "total": node.total, "labels": node.scheduler.labels}
        actions = self.members.handle(Joined(node.node_id, about), self.net.now)
        admit = actions[0]
        assert isinstance(admit, Admit)
        number = admit.number
        assert number not in self.cluster.nodes, "a number is given twice"
        line = self.listen_to(number, node, node.uplink.line, 0)
        self.cluster.by_number(node, number)
        self._write_table()
        row = NodeRow(node.node_id, resources=dict(node.total), labels=dict(node.scheduler.labels))
        up = monitor.NodeUp(row, watched=number == self.own)  # now, so that nobody waits for one that dies now
        self.service.run(lambda: self.service.monitor.handle(up, self.net.now))
        self.watch()
        line.say(1, "admitted", node.admitted, number, admit.table)
        self.carry_out(actions[1:])

    def listen_to(self, number: int, node: Node, line: Line, heard: int) -> Line:
        self.uplinks[number] = line
        self.numbers[node.node_id] = number
        self.at[number] = node
        self.heard[number] = heard
        line.on_end[1] = lambda why: self._gone(number, line, why)
        return line

    def hello(self, line: Line, uplink: Uplink) -> None:
        line.say(1, "greeting", uplink.greeted, line)

    def rejoin(self, node: Node, line: Line, said: Mapping[str, Any]) -> None:
        number = node.number
        if number in self.uplinks:
            self._gone(number, self.uplinks[number], "it began a new connection")
        refusal = self.members.refusal_to_return(number, node.node_id)
        if refusal is not None or self.returning is None:
            line.say(1, "refused", node.uplink.refused, line, refusal)
        else:
            self.returning.on_return(node, line, said)

    def carry_out(self, actions: list[Any]) -> None:
        tells: list[Tell] = []
        for action in actions:
            tells += [Tell(to, "view", (action.rows,)) for to in action.to] if isinstance(action, View) else [action]
        for tell in tells:
            if tell.name == "opened":
                row = self.members._nodes[tell.to].row
                joined = gs.NodeJoined(row["node_id"], row["total"], row["labels"])
                self.service.run(lambda joined=joined: self.service.placing.handle(joined))  # type: ignore[misc]
                self.service.groups.handle(gm.NodesChanged())
                gone = self.service.groups.groups.removed()
                self.service.lasting.say(lambda to=tell.to, gone=gone: self.tell_removed(to, gone))  # type: ignore[misc]
            self.tell(tell.to, tell.name, *tell.args)
        self.members.check()
        if self.members.news and not self._spread_due:
            self._spread_due = True
            self.net.at(max(self._spread_at, self.net.now), lambda: self.in_turn(self._spread))

    def tell_removed(self, number: int, groups: list[tuple[bytes, str]]) -> None:
        for gone in groups:
            self.cluster.laws.removed.add(gone[0])
            self.tell(number, "group_removed", lm.GroupRemoved(*gone), method="on_bundles")

    def _spread(self) -> None:
        self._spread_due, self._spread_at = False, self.net.now + REPORT_S
        self.carry_out(self.members.handle(Spread(), self.net.now))

    def tell(self, number: int | None, kind: str, *args: Any, method: str = "") -> None:
        if number in self.uplinks:
            line, uplink = self.uplinks[number], self.at[number].uplink
            line.say(1, kind, uplink.hear, line, method or "on_" + kind, args)
            if kind == self.cluster.trap:
                self.cluster.springs(self.at[number])

    def node_dead(self, node_id: bytes, cause: str) -> None:
        """The monitor has said so."""
        self.cluster.laws.declared_dead(node_id, cause)
        number = self.numbers.get(node_id)
        if number is None:
            return  # it has not come back
        line = self.uplinks.pop(number)
        del self.heard[number]
        self.service.tables.uplinks.remove(number)
        self.catching_up.gone(number)
        self.carry_out(self.members.handle(Left(number, cause), self.net.now))
        self._write_table()
        for job in self.service.jobs.all():
            if node_number(job.driver_tag) == number and job.state == "RUNNING":
                self.service.driver_gone(job.driver_tag, "its node is down", False)
        self.service.cores_of_node_gone(number, "its node is down")
        line.end(1, f"declared dead: {cause}")

    def _write_table(self) -> None:
        """The file `nodes`: who is to come back to a head that takes over, and the number that nobody has had."""
        rows = [(number, self.at[number].node_id) for number in self.members.living() if number != self.own]
        self.disk.nodes, self.disk.next_number = rows, self.members.next_number

    def watch(self) -> None:
        due_s = self.service.silence_due_s()
        if due_s is not None and (self._tick_at <= self.net.now or self.net.now + due_s < self._tick_at):
            self._tick_at = self.net.now + due_s
            self.net.at(self._tick_at, self._tick)
        self.cluster.laws.head(self)

    def _tick(self) -> None:
        if self._tick_at <= self.net.now and not self.stopped and self.alive:
            self.service.look_for_silence()
            self.watch()

    def _gone(self, number: int, line: Line, why: str) -> None:
        if self.uplinks.get(number) is line and self.alive:
            self.service.node_down(self.at[number].node_id, why)
            self.watch()

    # -- what nodes say; of one that was declared dead nothing arrives, since its line has ended --

    def told(self, number: int, event: int, name: str, args: tuple[Any, ...]) -> None:
        """An event that the node keeps until what followed from it lasts."""
        if number in self.heard and event > self.heard[number]:
            self.heard[number] = event
            self._unkept.add(number)
            if not self._keeping:
                self._keeping = True
                self.net.later(0.0, self.in_turn, self._keep)
            getattr(self, name)(number, *args)

    def _keep(self) -> None:
        heard = {number: self.heard[number] for number in self._unkept if number in self.heard}
        self._unkept.clear()
        self.service.groups.flush()  # else it would be written behind these numbers
        for number, event in heard.items():
            self.disk.write(0, "HSET", "ray:uplinks", str(number), str(event))
        self.disk.when_it_lasts(lambda: self.in_turn(self._kept, heard))

    def _kept(self, heard: dict[int, int]) -> None:
        for number, event in heard.items():
            self.tell(number, "kept", event)
        self._keeping = bool(self._unkept)
        if self._keeping:
            self._keep()

    def asked(self, node: Node, line: Line, entry: Asked) -> None:
        getattr(self, entry.method)(node, line, entry, *entry.args)

    def heartbeat(self, node: Node, line: Line) -> None:
        if self.numbers.get(node.node_id) not in self.uplinks:
            line.end(1, "this node is not part of the cluster (any more)")
            return
        self.service.heartbeat(node.node_id)
        line.say(1, "heard", node.uplink.beat_heard, line)
        self.watch()

    def known(self, number: int, of: int) -> None:
        self.carry_out(self.members.handle(Acknowledged(number, of), self.net.now))

    def caught_up(self, number: int, of_round: int) -> None:
        self.catching_up.answered(number, of_round)

    def resources(self, number: int, report: dict[str, Any]) -> None:
        self.carry_out(self.members.handle(Reported(number, report), self.net.now))
        self.service.resources_reported(self.at[number].node_id, report["available"])
        self.cluster.laws.head(self)

    def register_driver(self, node: Node, line: Line, entry: Asked, driver: Driver) -> None:
        job_id = self.service.register_driver(driver.tag, driver.pid, {})
        answer = node.uplink.answered, entry, (job_id,)
        self.service.lasting.say(lambda: line.say(1, "registered", *answer))

    def job_info(self, node: Node, line: Line, entry: Asked, job_id: bytes) -> None:
        line.say(1, "job_known", node.uplink.answered, entry, (self.service.job_lives(job_id),))

    def actor_exiting(self, node: Node, line: Line, entry: Asked, worker: Any, actor_id: bytes, why: str) -> None:
        self.service.actor_event(am.Exiting(actor_id, worker.tag, why))
        answer = node.uplink.answered, entry, ()
        self.service.lasting.say(lambda: line.say(1, "exit_taken_note_of", *answer))
        self.cluster.laws.head(self)

    def driver_gone(self, number: int, tag: bytes) -> None:
        self.service.driver_gone(tag, "its connection ended", False)
        self.cluster.laws.head(self)

    def worker_died(self, number: int, tag: bytes) -> None:
        self.service.worker_died(tag, "killed")
        self.cluster.laws.head(self)

    def actor_placed(self, number: int, actor_id: bytes, incarnation: int) -> None:
        self.service.actor_placed(actor_id, self.at[number].node_id, incarnation)
        self.cluster.laws.head(self)

    def actor_worker_started(self, number: int, actor_id: bytes, worker_tag: bytes, incarnation: int) -> None:
        self.service.actor_worker_started(actor_id, worker_tag, 1, [], incarnation)
        self.cluster.laws.head(self)

    def actor_refused(self, number: int, actor_id: bytes) -> None:
        self.service.run(lambda: self.service.placing.handle(gs.Ended(actor_id)))
        self.service.actor_event(am.Unplaceable(actor_id, b"its group is gone"))
        self.cluster.laws.head(self)

    def bundles_prepared(self, number: int, group_id: bytes, attempt: int) -> None:
        self.service.bundles_prepared(self.at[number].node_id, group_id, attempt)
        self.cluster.laws.head(self)

    def bundles_refused(self, number: int, group_id: bytes, attempt: int, available: dict[str, int]) -> None:
        self.service.bundles_refused(self.at[number].node_id, group_id, attempt, available)
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
        number = self._head.numbers.get(spec["node_id"])
        if number not in self._head.uplinks:
            return  # it has died: the directory has heard so, or hears it next
        self.placed_at[actor_id] = number
        strategy = parse_strategy(spec.get("strategy"))
        place = strategy if isinstance(strategy, InGroup) else None
        self._head.tell(number, "place_actor", actor_id, {**spec, "place": place}, incarnation)

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
        for number in list(self._head.uplinks):
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
        self._head.cluster.laws.removed.add(group_id)
        for number in list(self._head.uplinks):
            self._head.tell(number, "group_removed", lm.GroupRemoved(group_id, why), method="on_bundles")

    def _bundles(self, node_id: bytes, kind: str, event: Any) -> None:
        self._head.tell(self._head.numbers.get(node_id), kind, event, method="on_bundles")

    def catch_up(self, then: Callable[[], None]) -> None:
        self._head.catching_up.begin(self._head.uplinks, then)

    def node_dead(self, node_id: bytes, cause: str) -> None:
        self._head.node_dead(node_id, cause)

    def group_state(self, core_tag: bytes, group_id: bytes, created: bool) -> None:
        args = core_tag, "group_state", (group_id, created)
        self._head.tell(node_number(core_tag), "group_state", *args, method="on_state")

    def error(self, job_id: bytes, kind: str, message: str, extra: dict[str, Any]) -> None:
        pass  # counted by _Service
