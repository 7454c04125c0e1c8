"""What this node tells the cluster of itself, and what it hears of the others. Node's main thread; no decisions.

The two ends of the scheduling view: `report` is sent as `resources` whenever what is free, waits or may be used has
changed, at most every `REPORT_S`; `take` turns the rows of `view` into the event of the local scheduler. What lies
between, the uplink and the head, sees only plain dictionaries. The head sends a node's row whole at first: number,
node_id, total, labels and state, with its report; after that the number and what has changed, of all nodes together and
also at most every `REPORT_S` (ray/_head/membership.py).

Composed into a node that is part of a cluster only. If the uplink ends, reports go nowhere; the first after it is back
is whole, like every one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import lease_messages as lm
from .spillback import NodeRow

if TYPE_CHECKING:
    import asyncio

    from .shell import Node

REPORT_S = 0.05  # a human notices nothing; ten nodes that flicker cost the head 200 small messages each way a second


class ClusterView:
    """node.cluster_view, while the node is in a cluster."""

    def __init__(self, node: Node, send: Callable[[dict[str, Any]], None]) -> None:
        """Args: send(report): passes it to the head; never blocks, drops it if the head can't be reached just now."""
        self._node = node
        self._send = send
        self._sent: dict[str, Any] | None = None
        self._next_at = 0.0
        self._known = KnownRows()
        self._timer: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Something may have: called after each event. Costs a comparison until the next report is due."""
        if self._timer is None:
            self._timer = self._node.loop.call_at(max(self._next_at, self._node.loop.time()), self._report)

    def repeat(self) -> None:
        """The head has forgotten, or never had, the last report: the uplink is new."""
        self._sent = None
        self.changed()

    def _report(self) -> None:
        self._timer = None
        report = report_of(self._node)
        if report != self._sent:
            self._sent = report
            self._next_at = self._node.loop.time() + REPORT_S
            self._send(report)

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The event `view`. Rows of nodes that have not changed may be left out."""
        self._node.feed(self._node.scheduler, lm.View(self._known.take(rows)))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def report_of(node: Node) -> dict[str, Any]:
    """{"available": units by name, "queued": requests that wait, "bundles": {group: [(index, total, available)]}}."""
    scheduler = node.scheduler
    bundles = {}
    for group_id, here in scheduler.bundles.groups.items():
        usable = [
            (bundle.index, dict(bundle.ledger.total), dict(bundle.ledger.available))
            for bundle in scheduler.bundles.usable(group_id, -1)
            if bundle.ledger is not None
        ]
        if here.bundles and usable:
            bundles[group_id] = usable
    return {
        "available": dict(scheduler.resources.available),
        "queued": sum(waiting.count() for waiting in scheduler.classes),
        "bundles": bundles,
    }


class KnownRows:
    """The rows of all nodes, whole. Pure."""

    def __init__(self) -> None:
        self._rows: dict[int, Mapping[str, Any]] = {}

    def take(self, rows: Iterable[Mapping[str, Any]]) -> list[NodeRow]:
        """Rows as they are now, of the nodes that these are about. What has changed of a node that has gone, or that
        never was here, is nothing."""
        out = []
        for row in rows:
            number = row["number"]
            if "node_id" not in row:
                before = self._rows.get(number)
                if before is None:
                    continue
                row = {**before, **row}
            if row.get("state") == "DEAD":
                self._rows.pop(number, None)
            else:
                self._rows[number] = row
            out.append(row_of(row))
        return out


def row_of(row: Mapping[str, Any]) -> NodeRow:
    """Of a report with number, node_id, total, labels and state ("ALIVE" or "DEAD").

    A node that has not reported yet is taken to be empty."""
    return NodeRow(
        row["number"],
        row["node_id"],
        row["total"],
        row.get("available", row["total"]),
        row.get("queued", 0),
        row.get("labels") or {},
        row.get("state", "ALIVE") == "ALIVE",
        row.get("bundles") or {},
    )
