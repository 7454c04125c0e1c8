"""What a command of a person (`ray status`, `ray list`, `ray stop`) may ask the node. Node's main thread.

Such a process says in its hello that it is a tool, proves the token like everybody, and never registers: it has no job,
and its end is nobody's business. It gets answers made of plain values, so that its Python and ours may differ.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from ray._protocol.resources import to_numbers
from ray._version import __version__

from .leases import INFEASIBLE

if TYPE_CHECKING:
    from .shell import Node

# Of what drivers may ask, what only looks and is nobody's in particular: `ray list`, `ray timeline`, ...
LOOKS = frozenset(
    (
        *("actors", "available_resources", "cluster_resources", "errors", "groups", "head_stats", "inspect", "jobs"),
        *(
            "metrics",
            "node_addresses",
            "node_table",
            "nodes",
            "runtime_envs",
            "stats",
            "stores",
            "task_history",
            "why_pending",
            "workers",
        ),
    )
)
OF_THE_CLUSTER = frozenset(("status",))  # the head knows it, and says it to tools of any node


class ToolRequests:
    def __init__(self, node: Node) -> None:
        self._node = node

    def rpc(self, peer: Any, method: str, args: tuple[Any, ...]) -> Any:
        if method in LOOKS:
            return self._node.requests.rpc(None, method, args)
        if self._node.uplink is not None and method in OF_THE_CLUSTER:
            return self._node.uplink.rpc("tool_rpc", method, args)
        handler = getattr(self, "rpc_" + method, None)
        if handler is None:
            raise AttributeError(f"the node answers no {method!r} of a tool; one that runs programs registers first")
        return handler(peer, *args)

    def rpc_cluster_info(self, peer: Any) -> dict[str, Any]:
        """For whoever wants to join: see admission.py. Raises: LookupError: this is no head of a cluster."""
        node = self._node
        if node.cluster is None:
            raise LookupError("this node is not the head of a cluster: join the head")
        return {
            "version": __version__,
            "python_version": tuple(sys.version_info[:3]),
            "settings": node.settings.overrides(),
            "time_s": time.time(),
        }

    def rpc_session(self, peer: Any) -> dict[str, Any]:
        """Where it is: what a driver is told when it registers, as far as it concerns a tool."""
        node = self._node
        return {
            "session_dir": node.session.folder,
            "plasma_socket": node.session.plasma_socket,
            "node_id": node.node_id,
            "node_ip": node.node_ip,
            "tls": bool(node.settings.tls),
        }

    async def rpc_status(self, peer: Any) -> dict[str, Any]:
        """See `ray status` for what is shown of it."""
        node = self._node
        ask = node.gathering.ask
        available = to_numbers(await ask("available_resources"))
        return {
            "session_dir": node.session.folder,
            "pid": os.getpid(),
            "started_s": node.started_at,
            "ray_version": __version__,
            "python_version": ".".join(map(str, sys.version_info[:3])),
            "resources": to_numbers(await ask("cluster_resources")),
            "available": available,
            "nodes": await node.head.rpc(None, "nodes", ()),
            "jobs": await node.head.rpc(None, "jobs", ()),
            "actors": node.head.stats()["actors"],
            "stores": await ask("stores"),
            **await ask("status_here"),
        }

    def status_here(self) -> dict[str, Any]:
        """This node's part of `status`."""
        return {"pool": self._node.pool.stats(), "demands": self._demands()}

    def _demands(self) -> list[dict[str, Any]]:
        """What waits: {"resources", "count", "feasible": whether this node could ever hold it}."""
        scheduler = self._node.scheduler
        waiting = [(w["resources"], w["count"], True) for w in scheduler.stats()["waiting"]]
        never: dict[Any, int] = {}
        for lease in scheduler.leases():
            if lease.waits == INFEASIBLE:
                never[lease.shape] = never.get(lease.shape, 0) + 1
        waiting += [(dict(shape), count, False) for shape, count in never.items()]
        return [{"resources": to_numbers(r), "count": count, "feasible": feasible} for r, count, feasible in waiting]

    async def rpc_stop(self, peer: Any) -> None:
        """Everything ends, whoever uses it; the answer comes when workers have ended, and this process then follows."""
        node = self._node
        node.over = True
        await node.end(f"`ray stop` by pid {peer.pid}", graceful=True)
        node.loop.create_task(node.leave_after_answer(peer))
