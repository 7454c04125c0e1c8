"""Which nodes are there and which are to be believed dead. Pure: `handle(event, now) -> actions`, `deadline()`.

Runs in the head, on its loop's thread. A node is in exactly one of

    ALIVE    heard of within `period_s`, or watched directly (the head's own machine: its process says when it ends)
    SUSPECT  silent for longer than that: gets no new work, keeps what it has
    DEAD     silent for `period_s * MISSES_MAX`, or its connection ended, or it said goodbye; final: a node that was
             merely cut off and comes back is told to start afresh, since its work has been given to others

Whoever hears NodeDead acts on it: actors restart elsewhere, the scheduler places nothing there.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Union

from ray._control.rows import NodeRow
from ray._scheduling.machine import InvalidTransition, Story

ALIVE, SUSPECT, DEAD = "ALIVE", "SUSPECT", "DEAD"
STATES = (ALIVE, SUSPECT, DEAD)

MISSES_MAX = 5  # periods of silence until a node is dead
DEAD_KEPT = 100


class NodeUp(NamedTuple):
    row: NodeRow
    watched: bool  # its end is an event, so its silence means nothing


class Heartbeat(NamedTuple):
    node_id: bytes


class NodeGone(NamedTuple):
    node_id: bytes
    cause: str


class Silent(NamedTuple):
    """Made by `tick`: a deadline of this node has passed."""

    node_id: bytes
    silent_s: float


class SaveNode(NamedTuple):
    row: NodeRow


class DropNode(NamedTuple):
    node_id: bytes


class NodeDead(NamedTuple):
    node_id: bytes
    cause: str


class TellRestart(NamedTuple):
    """It is alive, but was declared dead: it must end its workers and register under a new id."""

    node_id: bytes


Event = Union[NodeUp, Heartbeat, NodeGone, Silent]
Action = Union[SaveNode, DropNode, NodeDead, TellRestart]


class Node:
    __slots__ = ("heard_s", "row", "state", "story", "watched")

    def __init__(self, row: NodeRow, watched: bool, now: float) -> None:
        self.row = row
        self.state = ALIVE
        self.watched = watched
        self.heard_s = now
        self.story = Story()

    def __repr__(self) -> str:
        return f"<Node {self.row.node_id.hex()} {self.row.address} {self.state}>"


class NodeMonitor:
    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._nodes: dict[bytes, Node] = {}
        self._dead: collections.deque[bytes] = collections.deque()

    def all(self) -> list[NodeRow]:
        return [node.row for node in self._nodes.values()]

    def get(self, node_id: bytes) -> NodeRow | None:
        node = self._nodes.get(node_id)
        return None if node is None else node.row

    def schedulable(self, node_id: bytes) -> bool:
        node = self._nodes.get(node_id)
        return node is not None and node.state == ALIVE

    def handle(self, event: Event, now: float) -> list[Action]:
        """Raises: InvalidTransition: a bug of the head's own."""
        if isinstance(event, NodeUp):
            return self._up(event, now)
        node = self._nodes.get(event.node_id)
        if node is None:
            return [TellRestart(event.node_id)] if isinstance(event, Heartbeat) else []
        row = TRANSITIONS.get((node.state, type(event)))
        if row is None:
            raise InvalidTransition(f"no row for {event!r} in {node.state}: {node!r}; its story: {node.story}")
        before = node.state
        after, actions = row(self, node, event, now)
        if after != before:
            node.state = after
            node.row = node.row._replace(state=after)
            node.story.add(now, before, type(event).__name__, after)
            actions = [SaveNode(node.row), *actions]
        return actions

    def deadline(self) -> float | None:
        """When to call `tick` next; None: no node's silence means anything."""
        return min((self._due(node) for node in self._nodes.values() if self._watched_by_time(node)), default=None)

    def tick(self, now: float) -> list[Action]:
        """To be called at `deadline()`. Called much later, the head itself stood still, and often so did its nodes, on
        the same machine or on the same host under it: that time does not count as their silence, and each has a period
        more to be heard in."""
        deadline = self.deadline()
        if deadline is not None and (late_s := now - deadline) > self._period_s:
            for node in self._nodes.values():
                if self._watched_by_time(node):
                    node.heard_s = min(now, node.heard_s + late_s + self._period_s)
        due = [n for n in self._nodes.values() if self._watched_by_time(n) and self._due(n) <= now]
        return [a for n in due for a in self.handle(Silent(n.row.node_id, now - n.heard_s), now)]

    def _watched_by_time(self, node: Node) -> bool:
        return node.state != DEAD and not node.watched

    def _due(self, node: Node) -> float:
        return node.heard_s + self._period_s * (1 if node.state == ALIVE else MISSES_MAX)

    def _up(self, event: NodeUp, now: float) -> list[Action]:
        if event.row.node_id in self._nodes:
            return self.handle(Heartbeat(event.row.node_id), now)  # said twice
        node = Node(event.row._replace(state=ALIVE, started_s=now), event.watched, now)
        node.story.add(now, "-", "NodeUp", ALIVE)
        self._nodes[event.row.node_id] = node
        return [SaveNode(node.row)]

    # -- rows of TRANSITIONS ------------------------------------------------------------------------------------------

    def _hear(self, node: Node, event: Heartbeat, now: float) -> tuple[str, list[Action]]:
        node.heard_s = now
        return ALIVE, []

    def _suspect(self, node: Node, event: Silent, now: float) -> tuple[str, list[Action]]:
        return SUSPECT, []

    def _give_up(self, node: Node, event: Silent, now: float) -> tuple[str, list[Action]]:
        return self._dies(node, f"it was silent for {event.silent_s:.1f} s", now)

    def _gone(self, node: Node, event: NodeGone, now: float) -> tuple[str, list[Action]]:
        return self._dies(node, event.cause, now)

    def _reject(self, node: Node, event: Heartbeat, now: float) -> tuple[str, list[Action]]:
        return DEAD, [TellRestart(node.row.node_id)]

    def _already(self, node: Node, event: NodeGone, now: float) -> tuple[str, list[Action]]:
        return DEAD, []

    def _dies(self, node: Node, cause: str, now: float) -> tuple[str, list[Action]]:
        node.row = node.row._replace(died_s=now, cause=cause)
        actions: list[Action] = [NodeDead(node.row.node_id, cause)]
        self._dead.append(node.row.node_id)
        if len(self._dead) > DEAD_KEPT:
            oldest = self._dead.popleft()
            del self._nodes[oldest]
            actions.append(DropNode(oldest))
        return DEAD, actions

    # -- saved and proved ---------------------------------------------------------------------------------------------

    def restore(self, rows: Iterable[NodeRow], watched: Mapping[bytes, bool], now: float) -> None:
        """Takes what an earlier head wrote, onto an empty monitor; each node has a full period to be heard of."""
        assert not self._nodes
        for row in rows:
            node = Node(row, watched.get(row.node_id, False), now)
            node.state = row.state
            self._nodes[row.node_id] = node
            if row.state == DEAD:
                self._dead.append(row.node_id)

    def check(self) -> None:
        assert set(self._dead) == {i for i, n in self._nodes.items() if n.state == DEAD}
        assert all(n.state == n.row.state and n.state in STATES for n in self._nodes.values())


Row = Callable[[NodeMonitor, Node, Any, float], tuple[str, list[Action]]]
TRANSITIONS: dict[tuple[str, type], Row] = {
    (ALIVE, NodeGone): NodeMonitor._gone,
    (ALIVE, Silent): NodeMonitor._suspect,
    (ALIVE, Heartbeat): NodeMonitor._hear,
    (SUSPECT, NodeGone): NodeMonitor._gone,
    (SUSPECT, Silent): NodeMonitor._give_up,
    (SUSPECT, Heartbeat): NodeMonitor._hear,
    (DEAD, NodeGone): NodeMonitor._already,
    (DEAD, Heartbeat): NodeMonitor._reject,
}
