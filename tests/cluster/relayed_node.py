"""PROCESS node, as part of a cluster whose head is played by a test (`relay.py`). Started instead of ray/_node/main.py.

Everything is the real node, with its gate, but the uplink: what a node says to the head, and the head to nodes, goes
over a Unix socket to the test's process, which decides nothing and only passes on. For what isn't leases each node
keeps its own head.
"""

from __future__ import annotations

import os
from typing import Any

from ray._node import shell

RELAY = "RAY_TEST_RELAY"  # path of the socket


class RelayedNode(shell.Node):
    def start_head(self) -> None:
        super().start_head()
        self.head.job_info = self._job_info
        self._joined = self.loop.create_task(self._join())

    async def _join(self) -> None:
        from ray._node.cluster_view import ClusterView
        from ray._transport import connect_unix

        # Before the first message can come: what follows the answer to `join` is handled before we go on after it.
        self.view = self.cluster_view = ClusterView(self, lambda report: self._uplink.event("resources", report))
        self._uplink = await connect_unix(os.environ[RELAY], self.session.token, self.node_id, self._answer_to)
        about = {
            "node_id": self.node_id,
            "total": dict(self.scheduler.resources.total),
            "labels": self.scheduler.labels,
            "host": self.gate.host,  # main has opened it before the loop comes here
            "port": self.gate.port,
        }
        answer = await self._uplink.rpc("join", about)
        self.number, self.nodes = answer["number"], answer["nodes"]
        self.view.repeat()

    def _answer_to(self, peer: Any) -> None:
        peer.on_rpc, peer.on_event = self._on_rpc, self._on_event

    def _on_rpc(self, method: str, args: tuple[Any, ...]) -> Any:
        if method == "view_of":  # what this node's scheduler knows, for tests that wait for it
            return [n.row.number for n in self.scheduler.neighbours._by_number.values()]
        assert method == "job_info"
        job = self.cores.jobs.get(args[0])
        if job is None:
            return None
        return {name: getattr(job, name) for name in ("sys_path", "cwd", "env", "namespace", "runtime_env")}

    def _on_event(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "view":
            self.view.take(args[0])
        elif name == "node_up":
            row = args[0]
            self.nodes.append(row)
            self.tell_all("node_up", row["number"], row["node_id"], row["host"], row["port"])
            self._uplink.event("known", row["number"])
        elif name == "node_down":
            self.nodes = [row for row in self.nodes if row["number"] != args[0]]
            self.guests.node_down(*args)
            self.tell_all("node_down", *args)

    async def _job_info(self, job_id: bytes) -> Any:
        return await self._uplink.rpc("job_info", job_id)


def main() -> None:
    from ray._node.main import main as real_main

    shell.Node = RelayedNode  # type: ignore[misc]
    real_main()
