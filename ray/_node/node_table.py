"""The other nodes of the cluster, as this node has been told of them. Node's main thread; no decisions.

On every node of a cluster, the head's too. What the head says comes in its order: `up` before anything of that node,
`down` when it is gone for good. A node is in the table exactly while it lives. The table is written to the session's
folder (`cluster_file`) before anybody is told that it is known here: a core that meets a number of which it has not
heard yet looks there. If the disk is full the table goes on from memory, and that one core may take a process for dead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ray._launch import cluster_file

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")


class NodeTable:
    def __init__(
        self,
        node: Node,
        number: int,
        head: tuple[str, int],
        rows: Iterable[Mapping[str, Any]] = (),
        next_number: Callable[[], int] = lambda: 0,
    ) -> None:
        """head: where the head's gate listens. rows: of the nodes that were there before. next_number: on the head's
        own node: what the next newcomer gets."""
        self._node = node
        self._head = head
        self._next_number = next_number
        self._rows = {row["number"]: dict(row) for row in rows}
        node.number = number
        self._changed()

    def up(self, row: Mapping[str, Any]) -> None:
        self._rows[row["number"]] = dict(row)
        self._changed()
        self._node.tell_all("node_up", row["number"], row["node_id"], row["host"], row["port"])

    def down(self, number: int, cause: str) -> None:
        row = self._rows.pop(number, None)
        if row is None:
            return
        self._changed()
        self._node.transfers.peer_down(row["host"], row["port"])
        self._node.guests.node_down(number, cause)
        self._node.tell_all("node_down", number, cause)

    def replace(self, rows: Iterable[Mapping[str, Any]], cause: str) -> None:
        """By the table of a head that has come back. cause: of the death of those who are not in it."""
        given = {row["number"]: row for row in rows}
        gone = [row for number, row in self._rows.items() if number not in given]
        if gone and self._node.cluster_view is not None:
            self._node.cluster_view.take([{**row, "state": "DEAD"} for row in gone])
        for row in gone:
            self.down(row["number"], cause)
        for number, newcomer in given.items():
            if number not in self._rows:
                self.up(newcomer)

    def get(self, number: int) -> dict[str, Any] | None:
        return self._rows.get(number)

    def _changed(self) -> None:
        self._node.nodes = list(self._rows.values())
        try:
            node = self._node
            next_number = self._next_number()
            cluster_file.write(
                node.session.folder,
                node.number,
                self._head,
                node.nodes,
                next_number,
                tls=bool(node.settings.tls),
                durable=bool(next_number and node.config.get("lasts")),  # of a head that can come back
            )
        except OSError as error:
            logger.error("the table of nodes could not be written: %s", error)
