"""The connection of a joined node to the head: joins, tells, hears and carries out. Node's main thread; no decisions.

In place of the HeadService that a head's own node has beside it. What this node's machines tell the head goes through
`RemoteHead`; what the head wants of this node (its Port, see ray/_head/port.py) comes as events of the same names,
in the head's order. It is in exactly one of

    joining  until the head has told everybody of this node
    joined   what the node says goes out at once
    away     the head is gone and may come back (`lasts`): its address is dialled again and again. Workers, actors and
             leases go on; what is to be told the head is kept (outbox.py), and who asks it something waits
    ended    by the head's word that the cluster is over or that this node was given up; or nobody has come back within
             `head_restart_wait_s`; or the head is one that can't come back. The node ends itself and all its
             processes, saying why: its work has been given to others, or there is nobody left to give it any
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ray._protocol.frames import FRAME_EVENT, ROLE_NODE
from ray._transport import ConnectionClosed, Peer, connect_tcp, messages
from ray._version import __version__

from . import lease_messages as lm
from . import worker_messages as wm
from .catch_up import CAUGHT_UP_S
from .cluster_view import ClusterView
from .cores import Job
from .heartbeat import Heartbeat
from .node_table import NodeTable
from .outbox import Asked, Outbox
from .presence import obsolete, presence

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")

# Calls of the Port that a node takes as they are; the others are below.
DIAL_FIRST_S, DIAL_LAST_S = 0.05, 1.0  # pauses between attempts to reach a head that is away; each up to half longer
REJOIN_EXTRA_S = 30.0  # beside the time in which a head gathers its nodes: it reads Redis back first

# Not kept for a head that is away: said anew when it is back, or of no use then.
FLEETING = frozenset(("resources", "known", "log_lines", "log_taken", "caught_up"))

ORDERS = frozenset(
    (
        *("place_actor", "cancel_placement", "release_actor", "become_actor", "actor_state", "kill_worker"),
        *("ask_to_exit", "expect_exit", "job_over", "commit_bundles", "return_bundles", "group_removed"),
        *("group_state", "error"),
    )
)


def about(node: Node) -> dict[str, Any]:
    """What a node says of itself when it joins, and the head's own node of itself."""
    assert node.gate is not None
    return {
        "node_id": node.node_id,
        "host": node.gate.host,
        "port": node.gate.port,
        "total": dict(node.scheduler.resources.total),
        "labels": dict(node.scheduler.labels),
        "hostname": socket.gethostname(),
        "name": node.config.get("node_name"),
        "pid": os.getpid(),
        "version": __version__,
        "python_version": tuple(sys.version_info[:3]),
        "time_s": time.time(),
    }


class Uplink:
    def __init__(self, node: Node, host: str, port: int) -> None:
        """host: the numeric address of the head's gate."""
        self._node = node
        self.head_address = (host, port)
        self.peer: Peer | None = None  # None: not dialled yet, or the head is away
        self.lasts = False  # the head may come back
        self.outbox = Outbox(lambda number, name, args: messages.encode_event("told", (number, name, args)))
        self._cluster_id = ""
        self._silence_s = 0.0
        self._returning: asyncio.Task[None] | None = None  # while the head is away
        self._table: NodeTable | None = None  # None: joining
        self._early: list[tuple[str, tuple[Any, ...]]] = []
        self._opened: asyncio.Future[None] = node.loop.create_future()
        self._heartbeat: Heartbeat | None = None
        self._said_s = 0.0  # when `join` or `rejoin` was said: from then on the head may count our silence
        # What has come while this node may have been given up, in order. Bounded: it is soon let in again, or cut off.
        self._held: list[tuple[str, tuple[Any, ...]]] = []
        self.ended: str | None = None  # why
        self._handlers: dict[str, Callable[..., None]] = {
            "node_up": self._node_up,
            "node_down": lambda number, cause: self._nodes.down(number, cause),
            "view": lambda rows: node.cluster_view.take(rows),  # type: ignore[union-attr]
            "opened": self._open,
            "job": self._job,
            "prepare_bundles": lambda *fields: node.feed(node.scheduler, lm.PrepareBundles(*fields)),
            "log_lines": node.lines.show,
            "log_taken": node.lines.taken,
            "kept": self.outbox.kept,
            "catch_up": self._catch_up,
            "cluster_over": lambda why: self._end(f"the cluster has ended: {why}"),
            **{name: getattr(node.head_port, name) for name in ORDERS},
        }

    @property
    def _nodes(self) -> NodeTable:
        assert self._table is not None
        return self._table

    # -- joining ------------------------------------------------------------------------------------------------------

    async def join(self, timeout_s: float) -> None:
        """Returns when every node knows this one: from then on it may have processes.

        Raises: ConnectionError, TimeoutError, ValueError: the head can't be reached, or won't have us, and why.
        """
        node = self._node
        # Before the first message can come: the view may arrive with the answer to `join`.
        node.cluster_view = ClusterView(node, lambda report: self.event("resources", report))
        peer = await self._dial()
        self.peer = peer
        self._said_s = time.monotonic()
        answer = await peer.rpc("join", about(node), timeout_s=timeout_s)
        self._cluster_id = answer["cluster_id"]
        self.lasts = answer["lasts"] and node.settings.head_restart_wait_s > 0
        self._table = NodeTable(node, answer["number"], self.head_address, answer["nodes"])
        self._begin(answer)
        done, _ = await asyncio.wait([self._opened], timeout=timeout_s)
        if not done:
            raise TimeoutError(f"the head has not told every node of this one within {timeout_s:g} s")
        await self._opened

    def _greeted(self, peer: Peer) -> None:
        peer.on_rpc = self._on_rpc
        peer.on_event = partial(self._on_event, peer)
        peer.on_close = partial(self._on_close, peer)

    def _begin(self, answer: dict[str, Any]) -> None:
        """The head has answered: it is listened to from now on."""
        node = self._node
        assert node.cluster_view is not None and self.peer is not None
        self._silence_s = answer["silence_s"]
        self._heartbeat = Heartbeat(
            node, self.head_address, self.peer.tag, answer["heartbeat_s"], answer["silence_s"], self._cut_off,
            self._confirmed, self._said_s,
        )  # fmt: skip
        node.cluster_view.repeat()
        early, self._early = self._early, []
        for name, args in early:
            self._take(name, args)

    # -- a head that is away ------------------------------------------------------------------------------------------

    def _away(self, why: str) -> None:
        """The head can't be reached any more."""
        if self.ended is not None or self._returning is not None:
            return
        if not self.lasts or not self._opened.done() or self._node.ending is not None:
            self._end(why)
            return
        logger.warning("%s; it is looked for during %g s", why, self._node.settings.head_restart_wait_s)
        self._stop_heartbeat()
        self._held.clear()  # said by one that is away, and nobody knows whether it has given this node up
        self.peer = None
        self._returning = self._node.loop.create_task(self._look_for_head(why))
        self._returning.add_done_callback(_say_bug)

    async def _dial(self) -> Peer:
        node = self._node
        tls = bool(node.settings.tls)
        return await connect_tcp(
            *self.head_address, node.session.token, node.node_id, self._greeted, role=ROLE_NODE, tls=tls
        )

    async def _look_for_head(self, why: str) -> None:
        wait_s = self._node.settings.head_restart_wait_s
        until_s = time.monotonic() + wait_s
        pause_s = DIAL_FIRST_S
        while True:
            try:
                peer = await asyncio.wait_for(self._dial(), max(0.1, until_s - time.monotonic()))
                try:
                    self._early = []
                    said = presence(self._node, self._cluster_id)
                    self._said_s = time.monotonic()
                    answer = await peer.rpc("rejoin", said, timeout_s=self._silence_s + REJOIN_EXTRA_S)
                except BaseException:
                    peer.close()
                    raise
                self._come_back(peer, said, answer)
                return
            except ValueError as refusal:
                self._end(f"{why}. Then it came back, and would not have this node: {refusal}")
                return
            except (OSError, PermissionError, TimeoutError, asyncio.TimeoutError) as error:
                logger.debug("the head is away: %s", error)  # PermissionError: it has only just started
            if time.monotonic() >= until_s:
                self._end(f"{why}. It did not come back within {wait_s:g} s (head_restart_wait_s)")
                return
            await asyncio.sleep(min(pause_s * random.uniform(1.0, 1.5), max(0.0, until_s - time.monotonic())))
            pause_s = min(2 * pause_s, DIAL_LAST_S)

    def _come_back(self, peer: Peer, said: dict[str, Any], answer: dict[str, Any]) -> None:
        """Everything is taken up again, in this order: who lives; what this node holds for nobody; what was said.

        What follows here from the first two is told like all that has happened meanwhile: behind what is older. Said
        sooner, its number would make the head take all of that for heard."""
        if peer.closed:
            raise ConnectionClosed(peer.why_closed or "closed")
        node = self._node
        logger.warning("the cluster's head is back")
        self._returning = None
        self._nodes.replace(answer["nodes"], "it did not come back to the cluster's head after that had been restarted")
        for actor_id in answer["release"]:
            node.head_port.release_actor(actor_id)  # and its worker, if it has one, ends
        held = said["actors"].keys() - set(answer["release"])
        self.outbox.drop(lambda entry: obsolete(entry, held))
        self.outbox.kept(answer["kept"])
        self.peer = peer
        try:
            for entry in self.outbox.again():
                if isinstance(entry, Asked):
                    entry.again = True
                    self._send_request(entry)
                else:
                    peer.send(FRAME_EVENT, entry.frame)
        except ConnectionClosed:
            return  # it is gone again, noticed just now: on_close follows
        for row in answer["nodes"]:
            self.event("known", row["number"])
        self._begin(answer)

    def _open(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def _on_event(self, peer: Peer, name: str, args: tuple[Any, ...]) -> None:
        if self._heartbeat is None:  # the head's answer to `join` or `rejoin` is behind it
            self._early.append((name, args))
        elif peer is self.peer:
            self._take(name, args)

    def _take(self, name: str, args: tuple[Any, ...]) -> None:
        """Does what the head wants, unless this node may have been given up meanwhile: its process, or the machine, may
        have stood still. Then its actors and bundles have been given to others, and what it was told before would have
        an actor run twice. So all of it waits until the head has answered a heartbeat that was sent since, or says that
        this node is dead."""
        if self._held or self._may_be_dead():
            self._held.append((name, args))
        else:
            self._heard(name, args)

    def _may_be_dead(self) -> bool:
        beats = self._heartbeat
        if beats is None:
            return False
        beats.wanted = True  # before the look: so its next answer is not missed
        dead = time.monotonic() - beats.confirmed_s >= self._silence_s
        beats.wanted = dead
        return dead

    def _confirmed(self) -> None:
        """A heartbeat was answered, and something waits for that."""
        if not self._may_be_dead():
            held, self._held = self._held, []
            for name, args in held:
                self._take(name, args)

    def _heard(self, name: str, args: tuple[Any, ...]) -> None:
        handler = self._handlers.get(name)
        if handler is None:
            raise LookupError(f"the head said {name!r}, which means nothing here")
        handler(*args)

    def _on_rpc(self, method: str, args: tuple[Any, ...]) -> Any:
        if method == "local":  # this node's part of an answer about the whole cluster
            return self._node.gathering.local(*args)
        if method == "package_read":
            return self._node.envs.packages.read(*args)
        raise LookupError(f"the head asked for {method!r}, which no node has")

    def _node_up(self, row: dict[str, Any]) -> None:
        self._nodes.up(row)
        self.event("known", row["number"])

    def _catch_up(self, of_round: int) -> None:
        """The head wants to know when it has heard all that processes here had sent before."""
        asked_by = self.peer

        def answer() -> None:
            if self.peer is asked_by:  # a head that took over has not asked
                self.event("caught_up", of_round)

        self._node.loop.call_later(CAUGHT_UP_S, answer)

    def _job(self, job_id: bytes, info: dict[str, Any]) -> None:
        """What a job's workers need; before the first order that concerns it."""
        if job_id not in self._node.cores.jobs:
            self._node.cores.jobs[job_id] = Job(job_id, info)
            self._node.feed(self._node.pool, wm.JobStarted(job_id))

    def _on_close(self, peer: Peer, why: str) -> None:
        if peer is not self.peer:
            return  # an attempt that came to nothing
        self._away(
            f"the connection to the cluster's head at {self.head_address[0]}:{self.head_address[1]} ended: {why}"
        )

    def _cut_off(self, why: str) -> None:
        peer = self.peer
        self._away(why)
        if peer is not None:
            peer.close(why)

    # -- telling ------------------------------------------------------------------------------------------------------

    def event(self, name: str, *args: Any) -> None:
        """In order. While the head is away it is kept; for one that can't come back it is dropped."""
        lasting = self.lasts and name not in FLEETING
        frame = self.outbox.tell(name, args).frame if lasting else messages.encode_event(name, args)
        if self.peer is None or self.peer.closed:
            if self.outbox.full and self.ended is None:
                self._end("the cluster's head is away, and more is to be told it than can be kept")
            return
        self.outbox.forget_beyond_bound()
        try:
            self.peer.send(FRAME_EVENT, frame)
        except ConnectionClosed:
            return  # noticed just now, while sending; on_close follows

    async def rpc(self, method: str, *args: Any) -> Any:
        """While the head is away this waits, and what it had not answered is asked again when it is back.

        Raises: ConnectionClosed: the head is gone for good. Whatever it raises."""
        if self.ended is not None or (self.peer is None and self._table is None):
            raise ConnectionClosed(self.ended or "this node has not joined its cluster yet")
        if not self.lasts:
            assert self.peer is not None
            return await self.peer.rpc(method, *args)
        entry = self.outbox.ask(method, args, self._node.loop.create_future())
        try:
            if self.peer is not None and not self.peer.closed:
                self._send_request(entry)
            return await entry.answer
        finally:
            self.outbox.answered(entry)

    def _send_request(self, entry: Asked) -> None:
        peer = self.peer
        assert peer is not None
        method, args = entry.method, entry.args
        if entry.again and method == "core_rpc":
            method = "core_rpc_again"
        try:
            asked = peer.ask(method, *args)
        except ConnectionClosed:
            return  # its end was noticed just now: it is asked again
        except BufferError as error:
            entry.answer.set_exception(error)
            return
        asked.add_done_callback(partial(self._answered, entry, peer))

    def _answered(self, entry: Asked, peer: Peer, asked: asyncio.Future[Any]) -> None:
        if asked.cancelled() or entry.answer.done():
            return
        error = asked.exception()
        if error is None:
            entry.answer.set_result(asked.result())
        elif not (isinstance(error, ConnectionClosed) and peer.closed and self.ended is None):
            entry.answer.set_exception(error)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _end(self, why: str) -> None:
        if self.ended is not None:
            return
        self.ended = why
        self.close()
        for entry in self.outbox.asked():
            if not entry.answer.done():
                entry.answer.set_exception(ConnectionClosed(why))
        if not self._opened.done():
            self._opened.set_exception(ConnectionError(why))
            self._opened.exception()  # join() may have failed before it came to wait for it
        if self._table is not None:
            self._node.founder_gone(why)

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None

    def close(self) -> None:
        self._stop_heartbeat()
        returning, self._returning = self._returning, None
        if returning is not None and returning is not asyncio.current_task():
            returning.cancel()


def _say_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("looking for the head failed", exc_info=task.exception())
