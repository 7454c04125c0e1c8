"""A cluster on this machine for tests that count its nodes: 0 is the head's, then 1, 2, ... LIBRARY.

    nodes = Nodes(); nodes.start_head(num_cpus=2); other = nodes.add_node({"CPU": 2})

It is `ray.cluster_utils.Cluster`, and this process is a driver on its head's node.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray._launch import node_process
from ray._launch import session as sessions
from ray.cli import node_link
from ray.cluster_utils import Cluster, ClusterNode
from tests.wait import wait_until

from . import odd_node

COMMAND = node_process.python_command


class Nodes:
    def __init__(self) -> None:
        self.cluster = Cluster()
        self.by_number: dict[int, ClusterNode] = {}
        self._ids: dict[int, str] = {}

    def start_head(self, *, driver: dict[str, Any] | None = None, **args: Any) -> None:
        """driver: arguments of ray.init."""
        self._keep(self.cluster.add_node(**args))
        ray.init(address=self.cluster.address, **(driver or {}))

    def add_node(self, resources: dict[str, float], odd: str = "", **args: Any) -> int:
        """Starts a node; returns its number, once every other has a view of it. odd: see odd_node.py."""
        others = {name: amount for name, amount in resources.items() if name != "CPU"}
        args = {
            "num_cpus": int(resources.get("CPU", 0)),
            "resources": others,
            "object_store_memory": 32 * 2**20,
            **args,
        }
        if odd:
            node_process.python_command = lambda module, *more: COMMAND(  # type: ignore[assignment]
                "tests.cluster.odd_node" if module == "ray._node.main" else module, *more
            )
            try:
                with odd_node.being(odd):
                    node = self.cluster.add_node(**args)
            finally:
                node_process.python_command = COMMAND
        else:
            node = self.cluster.add_node(**args)
        self._keep(node)
        wait_until(self._all_seen)
        return node.number

    def node_id(self, number: int) -> str:
        return self._ids[number]

    def folder(self, number: int) -> str:
        return self.by_number[number].session_dir

    def kill(self, number: int) -> None:
        self.cluster.remove_node(self.by_number.pop(number), allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()

    def _keep(self, node: ClusterNode) -> None:
        self.by_number[node.number] = node
        self._ids[node.number] = node.node_id

    def _all_seen(self) -> bool:
        """Whether each node's scheduler knows of every other."""
        return all(
            self.stats(number)["neighbours"] == sorted(set(self.by_number) - {number}) for number in self.by_number
        )

    def stats(self, number: int) -> dict[str, Any]:
        """Of its node process."""
        answer, pidfd = node_link.ask(sessions.open_existing(self.folder(number)), "stats", timeout_s=60.0)
        os.close(pidfd)
        return dict(answer)
