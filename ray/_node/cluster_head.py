"""The head's end of all uplinks: who joins, what nodes say, what they are told. Head's node, main thread; no decisions.

Carries out what `ray/_head/membership.py` decides about the table of nodes, and passes on to HeadService what nodes
say of their actors, workers and drivers. A node is known here from its `join` until it is dead; it is dead when its
uplink ends or when nothing has been heard from it for `node_silence_s`, whichever comes first, and both take the same
way: the monitor says NodeDead, once, and everything else follows from that. What a dead node still says goes unheard:
its connections are closed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ray._control.resp import ReplyError
from ray._control.store import StoreUnavailable
from ray._head.membership import JOINING, Acknowledged, Admit, Joined, Left, Membership, Reported, Spread, Tell, View
from ray._head.requests import EVENTS, RPCS
from ray._protocol.frames import FRAME_EVENT, TAG_BYTES
from ray._protocol.ids import node_number
from ray._scheduling.machine import InvalidTransition
from ray._transport import messages
from ray._version import __version__

from . import worker_messages as wm
from .catch_up import CatchUp
from .cluster_view import REPORT_S, ClusterView
from .cores import Job
from .gathering import GATHERED, OF_NODES
from .node_table import NodeTable
from .remote_head import TOLD, RemoteCaller
from .uplink import about as about_node

if TYPE_CHECKING:
    from ray._transport import Peer

    from .shell import Node

logger = logging.getLogger("ray.node")

# Requests of cores that make something which a head that takes over must know of before the asker is told.
LASTING = frozenset(("create_actor", "create_group"))  # and actor_exiting, from wherever it comes: the head sees to it
CLOCK_SKEW_S_MAX = 300.0  # between two machines: times in tables, logs and tokens would lie


class ClusterHead:
    """node.cluster, on the head's node."""

    def __init__(self, node: Node, next_number: int = 0, earlier: Mapping[int, bytes] | None = None) -> None:
        """In a node whose gate is open. next_number, earlier: of a head that takes over, as for Membership: its own
        node joins once the others have come back (head_return.py)."""
        self._node = node
        self.members = Membership(next_number, earlier)
        self.own = next_number  # the head's own node
        self.opened: asyncio.Future[None] = node.loop.create_future()  # it may have processes
        self.gathered: asyncio.Future[None] = node.loop.create_future()
        self.on_return: Callable[[Peer, dict[str, Any]], Any] | None = None  # while nodes may come back
        self._heard: dict[int, int] = {}  # by node: the last event of it that has been dealt with
        self._unkept: set[int] = set()  # of these: those whose number Redis has not got yet
        self.uplinks: dict[int, Peer] = {}  # of the other nodes that live
        self._ids: dict[int, bytes] = {}
        self._numbers: dict[bytes, int] = {}  # the same, the other way round: asked with every heartbeat
        self.catching_up = CatchUp(lambda number, of_round: self.tell(number, "catch_up", of_round))
        self._told_jobs: dict[int, set[bytes]] = {}  # by node: jobs that it has heard of from here
        self._keeping: asyncio.Task[None] | None = None  # while Redis is told `_heard`
        self._timer: asyncio.TimerHandle | None = None
        self._spread_timer: asyncio.TimerHandle | None = None  # while there is news of nodes' room
        self._spread_at = 0.0  # the next time when such may be told
        if not self.members.gathering:
            self.join_own()

    def join_own(self) -> None:
        """The head's own node becomes one of the cluster's."""
        node, own = self._node, about_node(self._node)
        self.gathered.set_result(None)
        node_id = own.pop("node_id")
        admit, *rest = self.members.handle(Joined(node_id, own), time.monotonic())
        assert isinstance(admit, Admit) and admit.number == self.own
        self._ids[self.own], self._numbers[node_id] = node_id, self.own
        node.cluster_view = ClusterView(node, lambda report: self._reported(self.own, report))
        address = (own["host"], own["port"])
        self._table = NodeTable(node, self.own, address, admit.table, lambda: self.members.next_number)
        self._carry_out(rest)
        node.cluster_view.repeat()

    # -- questions

    def number_of(self, node_id: bytes) -> int | None:
        """Of a node that lives."""
        return self._numbers.get(node_id)

    def heard(self, number: int) -> int:
        """The last event of that node that has been dealt with, by this head or an earlier one."""
        return self._heard[number]

    def joining(self) -> int:
        """Nodes that not everybody has heard of yet."""
        return sum(self.members.state(number) == JOINING for number in self.uplinks)

    def number_of_driver(self, job_id: bytes) -> int | None:
        row = self._node.head.jobs.get(job_id)
        return None if row is None else node_number(row.driver_tag)

    # -- what nodes say

    def on_rpc(self, peer: Peer, method: str, args: tuple[Any, ...]) -> Any:
        """A connection of a node that hasn't joined. Raises: ValueError: it can't, and why."""
        if method not in ("join", "rejoin") or len(args) != 1 or not isinstance(args[0], dict):
            raise PermissionError(f"{method}: join(about) comes first")
        if method == "rejoin":
            return self._rejoin(peer, dict(args[0]))
        if not self.gathered.done():
            return self._join_later(peer, dict(args[0]))
        return self._join(peer, dict(args[0]))

    async def _join_later(self, peer: Peer, said: dict[str, Any]) -> dict[str, Any]:
        await asyncio.shield(self.gathered)
        return self._join(peer, said)

    def _rejoin(self, peer: Peer, said: dict[str, Any]) -> Any:
        """Of a node that was cut off, or whose head has been restarted. Raises: ValueError: it must end."""
        number = said.get("number")
        if not isinstance(number, int) or said.get("cluster_id") != self.cluster_id:
            raise ValueError("the head that answers there is another cluster's")
        if number in self.uplinks and self._ids[number] == peer.tag:  # of another it would end that one's life
            self._on_node_gone(number, "it began a new connection")
        self._refuse_if_wrong(peer, said)
        refusal = self.members.refusal_to_return(number, peer.tag)
        if refusal is not None or self.on_return is None:
            raise ValueError(refusal)
        return self.on_return(peer, said)

    @property
    def cluster_id(self) -> str:
        return os.path.basename(self._node.session.folder)

    def on_event(self, peer: Peer, name: str, args: tuple[Any, ...]) -> None:
        """Of the connection that a node keeps for its heartbeats, besides its uplink; its tag is the node's id."""
        if name != "heartbeat":
            raise PermissionError(f"{name}: join(about) comes first")
        if self.number_of(peer.tag) is None:
            peer.close("this node is not part of the cluster (any more)")
            return
        self._node.head.heartbeat(peer.tag)
        peer.event("heard")

    def _join(self, peer: Peer, said: dict[str, Any]) -> dict[str, Any]:
        node = self._node
        self._refuse_if_wrong(peer, said)
        node_id: bytes = said.pop("node_id")
        admit, *rest = self.members.handle(Joined(node_id, said), time.monotonic())
        assert isinstance(admit, Admit)
        number = admit.number
        self.listen_to(number, node_id, peer, ())
        logger.info("node %d joins: %s:%d", number, said["host"], said["port"])
        node.loop.call_soon(self._carry_out, rest)  # behind the answer
        return self.answer(admit)

    def listen_to(self, number: int, node_id: bytes, peer: Peer, told_jobs: Iterable[bytes], heard: int = 0) -> None:
        """The uplink of a node that has joined or come back. heard: the last event of it that has been dealt with."""
        self.uplinks[number] = peer
        self._ids[number] = node_id
        self._numbers[node_id] = number
        self._told_jobs[number] = set(told_jobs)
        self._heard[number] = heard
        peer.on_rpc = partial(self._on_node_rpc, number)
        peer.on_event = partial(self._on_node_event, number)
        peer.on_close = partial(self._on_node_gone, number)

    def answer(self, admit: Admit) -> dict[str, Any]:
        """To `join`, and with more in it to `rejoin`."""
        settings = self._node.settings
        return {
            "number": admit.number,
            "nodes": admit.table,
            "heartbeat_s": settings.heartbeat_s,
            "silence_s": settings.node_silence_s,
            "lasts": self._node.head.lasts,
            "cluster_id": self.cluster_id,
        }

    def _refuse_if_wrong(self, peer: Peer, said: dict[str, Any]) -> None:
        if self._node.ending is not None:
            raise ValueError("the cluster is ending")
        node_id = said.get("node_id")
        if not isinstance(node_id, bytes) or len(node_id) != TAG_BYTES or node_id != peer.tag:
            raise ValueError(f"join: node_id must be {TAG_BYTES} bytes, and the tag of the hello, not {node_id!r}")
        if self.number_of(node_id) is not None:
            raise ValueError("join: a node of this id is in the cluster already")
        refuse_other_version(said.get("version"), said.get("python_version"))
        kinds = {"host": str, "port": int, "total": dict, "labels": dict, "hostname": str, "time_s": float, "pid": int}
        for name, kind in kinds.items():
            if not isinstance(said.get(name), kind):
                raise ValueError(f"join: {name} must be {kind.__name__}, not {said.get(name)!r}")
        if not all(isinstance(n, str) and isinstance(u, int) and u >= 0 for n, u in said["total"].items()):
            raise ValueError(f"join: total must be units >= 0 by name, not {said['total']!r}")
        skew_s = said["time_s"] - time.time()
        if abs(skew_s) > CLOCK_SKEW_S_MAX:
            raise ValueError(
                f"its clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the head's, and at most "
                f"{CLOCK_SKEW_S_MAX:.0f} s are allowed: set the clocks, by NTP for example"
            )

    def _on_node_rpc(self, number: int, method: str, args: tuple[Any, ...]) -> Any:
        head = self._node.head
        if method in ("core_rpc", "core_rpc_again"):
            caller, asked, asked_args = args
            answer = self.core_rpc(caller, asked, asked_args, again=method == "core_rpc_again")
            return self._when_it_lasts(answer) if asked in LASTING and head.lasts else answer
        if method == "register_driver":
            tag, pid, info = args
            if node_number(tag) != number:
                raise ValueError(f"register_driver: its tag is of node {node_number(tag)}, not of {number}")
            job_id: bytes = head.register_driver(tag, pid, info)
            keep_job(self._node, job_id, info)
            self._told_jobs[number].add(job_id)
            return self._when_it_lasts(job_id) if head.lasts else job_id
        if method == "job_info":
            return self._job_info(*args)
        if method == "job_goes_on":
            return head.job_goes_on(*args)
        if method == "set_job_env":
            return self._set_job_env(*args)
        if method == "tool_rpc":
            return self._node.requests.of_tools.rpc(None, *args)
        if method == "package_read":
            return self._node.envs.packages.read(*args)
        raise LookupError(f"the head has no method {method!r} for nodes")

    async def _when_it_lasts(self, answer: Any) -> Any:
        """An answer that a head which takes over must know of: given when it is in Redis' file."""
        if inspect.isawaitable(answer):
            answer = await answer
        await self._node.head.lasting.wait()
        return answer

    def core_rpc(self, caller: Any, method: str, args: tuple[Any, ...], again: bool = False) -> Any:
        """Of a core of another node, or of a tool there (caller None)."""
        if method in GATHERED and (caller is None or method not in OF_NODES):
            return self._node.gathering.ask(method, args)
        if method in RPCS:
            return self._node.head.rpc(caller, method, args, again)
        raise LookupError(f"the head has no method {method!r}")

    def _on_node_event(self, number: int, name: str, args: tuple[Any, ...]) -> None:
        head = self._node.head
        if name == "told":
            heard, told, told_args = args
            if heard > self._heard[number]:
                self._heard[number] = heard
                self._keep(number)
                self._on_node_event(number, told, told_args)
        elif name == "core_event":
            caller, told, told_args = args
            if told not in EVENTS or not isinstance(caller, RemoteCaller):
                raise LookupError(f"the head understands no event {told!r}")
            head.event(caller, told, told_args)
        elif name == "resources":
            self._reported(number, *args)
        elif name == "known":
            self._handle(Acknowledged(number, int(args[0])))
        elif name == "caught_up":
            self.catching_up.answered(number, int(args[0]))
        elif name == "log_lines":
            self.pass_lines(*args)
        elif name == "log_taken":
            self._lines_taken(*args)
        elif name in TOLD:
            getattr(head, name)(*args)
        else:
            raise LookupError(f"the head understands no event {name!r} of a node")

    def _keep(self, number: int) -> None:
        """What followed from its events so far is to last, and then the node is told so."""
        self._unkept.add(number)
        if self._keeping is None:
            self._keeping = self._node.loop.create_task(self._write_heard())

    async def _write_heard(self) -> None:
        try:
            while self._unkept:
                heard = {number: self._heard[number] for number in self._unkept if number in self._heard}
                self._unkept.clear()
                self._node.head.groups.flush()  # else it would be written a turn later than these numbers
                if heard:
                    await self._node.head.tables.uplinks.put(heard)
                for number, event in heard.items():
                    self.tell(number, "kept", event)
        except (StoreUnavailable, ReplyError) as error:
            logger.warning("what nodes have told is not written down: %s", error)
        finally:
            self._keeping = None

    def _reported(self, number: int, report: dict[str, Any]) -> None:
        self._handle(Reported(number, report))
        self._node.head.resources_reported(self._ids[number], report["available"])

    # -- who lives

    def _on_node_gone(self, number: int, why: str) -> None:
        if number not in self.uplinks:
            return
        cause = f"its process has ended, or lost its connection: {why}"
        if self.members.state(number) == JOINING:
            self.node_dead(self._ids[number], cause)  # the monitor has not heard of it yet
        else:
            self._node.head.node_down(self._ids[number], cause)

    def node_dead(self, node_id: bytes, cause: str) -> None:
        """The monitor has declared it dead, for whatever reason. Everybody hears of it; nobody hears it again."""
        number = self.number_of(node_id)
        if number is None or number == self.own:
            return
        logger.warning("node %d is dead: %s", number, cause)
        peer = self.uplinks.pop(number)
        del self._ids[number], self._numbers[node_id]
        del self._told_jobs[number], self._heard[number]
        if self._node.head.lasts and self._node.head.tables is not None:
            self._node.head.tables.uplinks.remove(number)
        self.catching_up.gone(number)
        self._handle(Left(number, cause))
        for row in self._node.head.jobs.all():
            if node_number(row.driver_tag) == number and row.state == "RUNNING":
                self._node.head.driver_gone(row.driver_tag, f"its node died: {cause}", False)
        self._node.head.cores_of_node_gone(number, f"its node died: {cause}")
        peer.close(cause)

    def watch(self) -> None:
        """Sets the timer for nodes that say nothing any more. Called when one has joined, and by that timer.

        When a stall of this process is over, heartbeats that came meanwhile are read before the timer is served: in one
        turn asyncio calls what is readable before what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delay_s = self._node.head.silence_due_s()
        if delay_s is not None:
            self._timer = self._node.loop.call_later(delay_s, self._look_for_silence)

    def _look_for_silence(self) -> None:
        self._timer = None
        self._node.head.look_for_silence()
        self.watch()

    # -- membership, carried out

    def _handle(self, event: Any) -> None:
        try:
            actions = self.members.handle(event, time.monotonic())
        except InvalidTransition as error:
            logger.warning("membership: %s", error)  # a node that says nonsense; a bug of ours is found by the tests
            return
        self._carry_out(actions)
        if self.members.news and self._spread_timer is None:
            loop = self._node.loop
            self._spread_timer = loop.call_at(max(self._spread_at, loop.time()), self._spread)

    def _spread(self) -> None:
        self._spread_timer = None
        self._spread_at = self._node.loop.time() + REPORT_S
        self._handle(Spread())

    def _show(self, view: View) -> None:
        """Encoded once, however many they are."""
        frame = messages.encode_event("view", (view.rows,))
        for number in view.to:
            if number == self.own:
                assert self._node.cluster_view is not None
                self._node.cluster_view.take(view.rows)
            else:
                self._send(number, frame)

    def _carry_out(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, View):
                self._show(action)
            if not isinstance(action, Tell):
                continue  # Admit, of the head's own node
            if action.name == "opened" and action.to == self.own:
                if not self.opened.done():
                    self.opened.set_result(None)
            elif action.name == "opened":
                self._opened(action.to)
            if action.to != self.own:
                self.tell(action.to, action.name, *action.args)
            elif action.name == "node_up":
                self._table.up(*action.args)
                self._handle(Acknowledged(self.own, action.args[0]["number"]))
            elif action.name == "node_down":
                self._table.down(*action.args)
            elif action.name == "view":
                assert self._node.cluster_view is not None
                self._node.cluster_view.take(*action.args)

    def _opened(self, number: int) -> None:
        """Everybody knows it: now actors and groups may be placed there."""
        row = self._table.get(number)
        if row is not None:
            extra = {name: row.get(name) for name in ("pid", "labels", "name", "port")}
            removed = self._node.head.groups.groups.removed()
            self._node.head.lasting.say(partial(self.tell_removed, number, removed))
            self._node.head.node_up(row["node_id"], row["total"], row["host"], row["hostname"], extra, watched=False)
            self.watch()

    def tell_removed(self, number: int, groups: list[tuple[bytes, str]]) -> None:
        """To a node that was not there when the others heard of it: of (id, why)."""
        for group_id, why in groups:
            self.tell(number, "group_removed", group_id, why)

    # -- telling

    def tell(self, number: int, name: str, *args: Any) -> None:
        if number in self.uplinks:
            self._send(number, messages.encode_event(name, args))

    def _send(self, number: int, event: bytes) -> None:
        peer = self.uplinks.get(number)
        if peer is None or peer.closed:
            return
        try:
            peer.send(FRAME_EVENT, event)
        except ConnectionError:
            return  # noticed just now, while sending; its end follows

    async def ask_all(self, method: str, *args: Any, timeout_s: float) -> dict[int, Any]:
        """Each other node's answer. One that is gone, or silent for so long, is left out."""

        async def ask(peer: Peer) -> Any:
            return await peer.rpc(method, *args, timeout_s=timeout_s)

        numbers = list(self.uplinks)
        answers = await asyncio.gather(*(ask(self.uplinks[n]) for n in numbers), return_exceptions=True)
        found = {}
        for number, answer in zip(numbers, answers):
            if isinstance(answer, BaseException):
                logger.info("node %d did not answer %s: %s", number, method, answer)
            else:
                found[number] = answer
        return found

    def pass_lines(self, job_id: bytes, lines: list[Any], origin: int, nbytes: int) -> None:
        """Output of the job's workers on node `origin` to the node of its driver (driver_lines.py)."""
        number = self.number_of_driver(job_id)
        if number == self.own:
            self._node.lines.show(job_id, lines, origin, nbytes)
        elif number in self.uplinks:
            self.tell(number, "log_lines", job_id, lines, origin, nbytes)
        else:  # nobody is there to read it: the driver's node is dead, or its job goes on without it
            self._lines_taken(origin, job_id, nbytes)

    def _lines_taken(self, origin: int, job_id: bytes, nbytes: int) -> None:
        if origin == self.own:
            self._node.lines.taken(job_id, nbytes)
        else:
            self.tell(origin, "log_taken", job_id, nbytes)

    # -- jobs

    def tell_job(self, number: int, job_id: bytes) -> None:
        """Sees to it that a node knows a job before it is told anything that concerns it."""
        if number == self.own or number not in self._told_jobs or job_id in self._told_jobs[number]:
            return
        info = self._job_info(job_id)
        if info is not None:
            self._told_jobs[number].add(job_id)
            self.tell(number, "job", job_id, info)

    def _job_info(self, job_id: bytes) -> dict[str, Any] | None:
        """A node that has asked has not heard yet: the answer ends a wait there, and events behind it overtake that."""
        job = self._node.cores.jobs.get(job_id)
        return None if job is None else job.surroundings()

    def _set_job_env(self, job_id: bytes, text: str) -> None:
        job = self._node.cores.jobs.get(job_id)
        if job is not None:
            job.runtime_env = text

    def job_over(self, job_id: bytes) -> None:
        for told in self._told_jobs.values():
            told.discard(job_id)

    def cluster_over(self, why: str) -> None:
        """The session ends for good: its nodes need not look for another head."""
        for number in self.uplinks:
            self.tell(number, "cluster_over", why)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._spread_timer is not None:
            self._spread_timer.cancel()
        if self._keeping is not None:
            self._keeping.cancel()


def keep_job(node: Node, job_id: bytes, info: dict[str, Any]) -> None:
    """The head's node knows every job, also those of drivers elsewhere."""
    if job_id not in node.cores.jobs:
        node.cores.jobs[job_id] = Job(job_id, info)
        node.feed(node.pool, wm.JobStarted(job_id))


def refuse_other_version(version: object, python_version: object) -> None:
    """Raises: ValueError: of another ray, or of a Python whose pickled code ours can't read."""
    if version != __version__:
        raise ValueError(f"one of the two has ray {version}, the other ray {__version__}: install the same on both")
    ours = tuple(sys.version_info[:2])
    theirs = tuple(python_version)[:2] if isinstance(python_version, (tuple, list)) else python_version
    if theirs != ours:
        named = ".".join(map(str, theirs)) if isinstance(theirs, tuple) else theirs
        raise ValueError(f"one of the two runs Python {named}, the other Python {ours[0]}.{ours[1]}: use the same")
