"""Several nodes of one cluster on this machine, for tests: `ray.cluster_utils.Cluster`.

Each node is a node process of its own, with its own session folder, store, workers and TCP port on 127.0.0.1; between
them everything goes as between machines. They end with `shutdown`, and at the latest with this process.

Source of the interface: the class of this name in Ray 2.x.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ray
from ray._core.engine import current
from ray._init_options import parse
from ray._launch import node_process
from ray._launch import session as sessions
from ray._node import admission

_HOST = "127.0.0.1"


class ClusterNode:
    """A node that `Cluster` has started."""

    def __init__(self, process: node_process.NodeProcess, address: tuple[str, int]) -> None:
        self._process = process
        self._address = address
        ready = process.wait_ready()
        self.node_id: str = ready["node_id"].hex()
        self.number: int = ready["number"]

    @property
    def unique_id(self) -> str:
        """The node's id, in hexadecimal."""
        return self.node_id

    @property
    def address(self) -> str:
        """HOST:PORT on which other nodes reach it."""
        return f"{self._address[0]}:{self._address[1]}"

    @property
    def pid(self) -> int:
        """Of its node process."""
        return self._process.pid

    @property
    def session_dir(self) -> str:
        """Its folder: logs, sockets."""
        return self._process.session.folder

    def is_alive(self) -> bool:
        """Whether its node process runs."""
        return self._process.wait_exit(0) is None

    def __repr__(self) -> str:
        return f"ClusterNode(number={self.number}, node_id={self.node_id}, pid={self.pid})"


class Cluster:
    """Nodes of one cluster on this machine.

    Args:
        initialize_head: whether to start the head's node at once.
        connect: whether to make this process a driver of it, too (`ray.init`).
        head_node_args: for the head's node: as for `add_node`.
        shutdown_at_exit: accepted for compatibility; the nodes end with this process in any case.
        head_restarts: the other nodes wait for the head if its node dies, and `restart_head` brings it back.

    Raises:
        ValueError, TypeError: an argument makes no sense.
        RuntimeError: a node could not start.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        shutdown_at_exit: bool = True,
        head_restarts: bool = False,
    ) -> None:
        if connect and not initialize_head:
            raise ValueError("Cluster: connect=True needs initialize_head=True: there is nothing to connect to")
        if head_node_args and not initialize_head:
            raise ValueError("Cluster: head_node_args belong to initialize_head=True")
        self.head_node: ClusterNode | None = None
        self._head_restarts = head_restarts
        self._head_config: dict[str, Any] = {}
        self.worker_nodes: list[ClusterNode] = []
        self.connected: bool = False
        self._token = os.urandom(32)
        if initialize_head:
            self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()

    @property
    def address(self) -> str:
        """HOST:PORT of the head, for `ray.init(address=)`. Raises: RuntimeError: there is no node yet."""
        return self._head().address

    @property
    def gcs_address(self) -> str:
        """The same, by Ray's name."""
        return self.address

    def connect(self, namespace: str | None = None) -> None:
        """Makes this process a driver, on the head's node."""
        ray.init(address=self.address, namespace=namespace)
        self.connected = True

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Starts a node; the first is the head's.

        Args:
            wait: accepted for compatibility: it has joined when this returns.
            node_args: as for `ray.init`, what a node is made of: num_cpus (default 1), num_gpus, resources, labels,
                object_store_memory, plasma_directory, huge_pages; of the head also _system_config, num_redis_shards.

        Returns: the node, for `remove_node`.
        Raises: ValueError, TypeError: an argument makes no sense. RuntimeError: it could not start, and why.
        """
        given = {"address": "local", "num_cpus": 1, "object_store_memory": 64 * 2**20, **node_args}
        config = parse(given, lambda name: f"Cluster.add_node: {name}").node_config()
        del config["job"]
        config.update(cluster_port=(_HOST, 0), founder=False, lasts=self._head_restarts)
        if self.head_node is not None:
            host, port = self.head_node._address
            config["join"] = (host, port)
            info = admission.ask_head(host, port, self._token)
            config["settings"] = admission.settings_of(host, port, info, config["settings"])
        session = sessions.create(given.get("_temp_dir"), self._token)
        if self.head_node is None:
            self._head_config = config
        process = node_process.start_node(session, config)
        ready = process.wait_ready()
        node = ClusterNode(process, (_HOST, ready["cluster_port"]))
        if self.head_node is None:
            self.head_node = node
        else:
            self.worker_nodes.append(node)
        return node

    def restart_head(self) -> ClusterNode:
        """Starts the head's node again after it has been killed: it goes on where that ended. Its node id and number
        are new; what lived on it is gone.

        Returns: the head's new node, once all others are back or have been given up.
        Raises: RuntimeError: the cluster is not made for it (`head_restarts`), or its head still runs, or can't start.
        """
        before = self._head()
        if not self._head_restarts:
            raise RuntimeError("Cluster.restart_head: the cluster must be made with head_restarts=True")
        if before.is_alive():
            raise RuntimeError("Cluster.restart_head: the head's node still runs")
        before._process.close()
        session = sessions.take_over(before.session_dir)
        config = {**self._head_config, "cluster_port": before._address, "resume": True}
        process = node_process.start_node(session, config)
        process.wait_ready()
        self.head_node = ClusterNode(process, before._address)
        return self.head_node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """Ends a node, and with it what runs there.

        Args: allow_graceful: False: it is killed, as by the loss of its machine.
        Raises: ValueError: no node of this cluster, or the head's while others are there.
        Blocks: until its processes have ended.
        """
        if node is not self.head_node and node not in self.worker_nodes:
            raise ValueError(f"Cluster.remove_node: {node!r} is no node of this cluster (any more)")
        if node is self.head_node and self.worker_nodes:
            raise ValueError("Cluster.remove_node: the head goes last: `shutdown` ends all")
        if allow_graceful:
            _end(node)
        node._process.kill()
        if node is self.head_node:
            self.head_node = None
        else:
            self.worker_nodes.remove(node)

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Returns when the driver sees exactly the nodes of this cluster alive. Needs `ray.init`.

        Raises: TimeoutError: it doesn't, after `timeout` seconds. RuntimeError: this process is no driver.
        """
        driver = current()
        if driver is None:
            raise RuntimeError("Cluster.wait_for_nodes: this process is no driver: call ray.init(address=) first")
        expected = {node.node_id for node in self.list_all_nodes()}
        alive = set(driver.rpc("nodes_are", list(expected), timeout, timeout=timeout + 10.0))
        if alive != expected:
            raise TimeoutError(
                f"Cluster.wait_for_nodes: after {timeout:g} s {len(alive & expected)} of {len(expected)} nodes are "
                f"alive, and {len(alive - expected)} that were removed"
            )

    def list_all_nodes(self) -> list[ClusterNode]:
        """The nodes that have not been removed, the head's first."""
        return ([self.head_node] if self.head_node is not None else []) + self.worker_nodes

    def shutdown(self) -> None:
        """Ends every node, the head's last. Idempotent. The driver's `ray.shutdown()` comes first, and is done here."""
        if self.connected:
            ray.shutdown()
            self.connected = False
        for node in [*self.worker_nodes, *([self.head_node] if self.head_node is not None else [])]:
            self.remove_node(node, allow_graceful=False)

    def _head(self) -> ClusterNode:
        if self.head_node is None:
            raise RuntimeError("Cluster: it has no node yet: add_node() starts the head's")
        return self.head_node


def _end(node: ClusterNode) -> None:
    """SIGTERM, which a node process takes as the end of its session."""
    import signal

    process = node._process
    if process.wait_exit(0) is None:
        signal.pidfd_send_signal(process.ended_fd, signal.SIGTERM)
        process.wait_exit(5.0)
