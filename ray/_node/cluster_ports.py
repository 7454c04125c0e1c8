"""Opens the gate of a node and says whose each connection becomes. Node's main thread; called by main."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray._native.channel import Connection
from ray._protocol.frames import ROLE_NODE

from .gate import Gate, hand_to_core

if TYPE_CHECKING:
    from .shell import Node


def open_gate(node: Node, host: str, port: int) -> Gate:
    """Listens on `host` (numeric) and `port` (0: any free one) for other nodes.

    Raises: FileExistsError: the port is in use. ValueError: host is no numeric address. OSError.
    """
    token, node_id, tls = node.session.token, node.node_id, bool(node.settings.tls)

    def to_node(fd: int) -> None:
        node.server.adopt(Connection.adopt(fd, token, node_id, ROLE_NODE, tls=tls))

    def to_store(fd: int) -> bool:
        transfers = getattr(node, "transfers", None)  # None: built without an object manager
        return transfers is not None and bool(transfers.adopt(fd))

    gate = Gate(host, port, to_node, hand_to_core(node.session.cores, token, node_id), to_store)
    transfers = getattr(node, "transfers", None)
    if transfers is not None:
        transfers.reached_at(host, gate.port)
        if node.store is not None:
            node.store.reached_at = (host, gate.port)
    return gate
