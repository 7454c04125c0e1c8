"""Who directs this node: a head of its own, which other nodes may join, or the head of a cluster that it joins itself.

Node's main thread, called by main while the node starts. Imported late, like all it imports: nothing waits for it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")


def start(node: Node) -> None:
    """Sets node.head."""
    if node.config.get("join"):
        _start_uplink(node)
    else:
        _start_head(node)


def open_cluster(node: Node, next_number: int = 0, earlier: Mapping[int, bytes] | None = None) -> None:
    """The gate is open: other nodes may join this one, the head's. next_number, earlier: of a head that takes over, as
    for Membership."""
    from .cluster_head import ClusterHead
    from .cluster_port import ClusterPort

    node.cluster = ClusterHead(node, next_number, earlier)
    node.head.port = ClusterPort(node.head_port, node.cluster)


def _start_uplink(node: Node) -> None:
    """The head is on the node that listens at config["join"]; it is dialled later, by `uplink.join`."""
    from .remote_head import RemoteHead
    from .uplink import Uplink

    node.uplink = Uplink(node, *node.config["join"])
    node.head = RemoteHead(node.uplink)
    node.requests.use_head(RemoteHead.RPCS, RemoteHead.EVENTS)


def _start_head(node: Node) -> None:
    """What ray/_head decides, in this process. Its tables reach Redis when that is up; nothing waits for it."""
    from ray._control.disk_sync import DiskSync
    from ray._control.redis_server import RedisServers
    from ray._control.store import Store
    from ray._head.service import HeadService

    node.redis = RedisServers(
        node.session.folder,
        node.config.get("num_redis_shards") or 0,
        node.config.get("redis_password"),
        node.config.get("redis_max_memory"),
    )
    store = Store.of_servers(node.redis, node.loop)
    node.head = HeadService(
        node.head_port,
        store,
        errors_kept=node.settings.errors_kept,
        task_events_kept=node.settings.task_events_kept,
        node_silence_s=node.settings.node_silence_s,
    )
    node.requests.use_head(HeadService.RPCS, HeadService.EVENTS)
    node.redis.on_exit = lambda name, cause: logger.error("%s %s; it was started again", name, cause)
    node.head.lasts = bool(node.config.get("lasts"))
    if node.head.lasts:
        node.disk_sync = DiskSync(node.redis.folder, node.loop, node.head.control_plane_problem)
        store.on_answered = node.disk_sync.soon
    if not node.config.get("resume"):
        announce(node)


def announce(node: Node) -> None:
    """To the head that it has this node, its own."""
    about = {"pid": os.getpid(), "labels": node.scheduler.labels, "name": node.config.get("node_name")}
    node.head.node_up(node.node_id, dict(node.scheduler.resources.total), node.node_ip, socket.gethostname(), about)
