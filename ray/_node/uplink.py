"""The connection of a joined node to the head: joins, tells, hears and carries out. Node's main thread; no decisions.

In place of the HeadService that a head's own node has beside it. What this node's machines tell the head goes through
`RemoteHead`; what the head wants of this node (its Port, see ray/_head/service.py) comes as events of the same names,
in the head's order. It is in exactly one of *joining* (until the head has told everybody of this node), *joined* and
*ended*. Its end is the node's: the head gives this node's work to others at the same moment, so there is nothing to
come back for, and the node ends itself and all its processes, saying why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray._protocol.frames import ROLE_NODE
from ray._transport import ConnectionClosed, Peer, connect_tcp
from ray._version import __version__

from . import lease_messages as lm
from . import worker_messages as wm
from .cluster_view import ClusterView
from .cores import Job
from .heartbeat import Heartbeat
from .node_table import NodeTable

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")

# Calls of the Port that a node takes as they are; the others are below.
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
        self.peer: Peer | None = None  # None: not dialled yet
        self._table: NodeTable | None = None  # None: joining
        self._early: list[tuple[str, tuple[Any, ...]]] = []
        self._opened: asyncio.Future[None] = node.loop.create_future()
        self._heartbeat: Heartbeat | None = None
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
        host, port = self.head_address
        peer = await connect_tcp(host, port, node.session.token, node.node_id, self._greeted, role=ROLE_NODE)
        answer = await peer.rpc("join", about(node), timeout_s=timeout_s)
        self._table = NodeTable(node, answer["number"], self.head_address, answer["nodes"])
        node.cluster_view.repeat()
        self._heartbeat = Heartbeat(node, self.head_address, answer["heartbeat_s"], answer["silence_s"], self._cut_off)
        early, self._early = self._early, []
        for name, args in early:
            self._on_event(name, args)
        done, _ = await asyncio.wait([self._opened], timeout=timeout_s)
        if not done:
            raise TimeoutError(f"the head has not told every node of this one within {timeout_s:g} s")
        await self._opened

    def _greeted(self, peer: Peer) -> None:
        self.peer = peer
        peer.on_event, peer.on_rpc, peer.on_close = self._on_event, self._on_rpc, self._on_close

    def _open(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def _on_event(self, name: str, args: tuple[Any, ...]) -> None:
        if self._table is None:
            self._early.append((name, args))
            return
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

    def _job(self, job_id: bytes, info: dict[str, Any]) -> None:
        """What a job's workers need; before the first order that concerns it."""
        if job_id not in self._node.cores.jobs:
            self._node.cores.jobs[job_id] = Job(job_id, info)
            self._node.feed(self._node.pool, wm.JobStarted(job_id))

    def _on_close(self, why: str) -> None:
        self._end(f"the connection to the cluster's head at {self.head_address[0]}:{self.head_address[1]} ended: {why}")

    def _cut_off(self, why: str) -> None:
        self._end(why)
        if self.peer is not None:
            self.peer.close(why)

    def _end(self, why: str) -> None:
        if self.ended is not None:
            return
        self.ended = why
        self.close()
        if not self._opened.done():
            self._opened.set_exception(ConnectionError(why))
            self._opened.exception()  # join() may have failed before it came to wait for it
        if self._table is not None:
            self._node.founder_gone(why)

    # -- telling ------------------------------------------------------------------------------------------------------

    def event(self, name: str, *args: Any) -> None:
        """To a head that is gone it is dropped: so is this node, then."""
        if self.peer is None or self.peer.closed:
            return
        try:
            self.peer.event(name, *args)
        except ConnectionClosed:
            return  # noticed just now, while sending; on_close follows

    async def rpc(self, method: str, *args: Any) -> Any:
        """Raises: ConnectionClosed: the head is gone. Whatever it raises."""
        if self.peer is None:
            raise ConnectionClosed("this node has not joined its cluster yet")
        return await self.peer.rpc(method, *args)

    def close(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None
