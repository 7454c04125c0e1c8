"""Gives what a node cannot place itself - actors, later spilled tasks - to a node. Pure.

Runs in the head, on its loop's thread: `handle(event) -> actions`, no I/O, no clock. A request is in exactly one of

    WAITING   no node that is there could ever hold it; found in `_waiting`, in the order they came; looked at again
              when a node joins
    ASSIGNED  given to a node, whose local scheduler queues it and holds its resources; found under that node

and is forgotten once it has ended. If a node leaves, its assignments are lost, and what waits for just that node waits
for nothing: whoever asked is told, and asks again.
What is free on a node is what it last reported, less what was assigned since then; what ends later than a report is
free again when the node says so, since only the node knows whether the report held it. With no reports (one machine)
what is free is the total less what is assigned. What placement groups hold is counted here too (`hold`):
`placement_groups.py` decides about those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Union

from ray._protocol.resources import describe, shape_of
from ray._scheduling import labels
from ray._scheduling.nearest import nearest
from ray._scheduling.node_index import NodeIndex
from ray._scheduling.policies import NodeView, choose
from ray._scheduling.strategy import Default, NodeAffinity, NodeLabels, Spread, Strategy


class NodeJoined(NamedTuple):
    node_id: bytes
    total: Mapping[str, int]
    labels: Mapping[str, str] = {}


class NodeLeft(NamedTuple):
    node_id: bytes
    cause: str


class ResourcesReported(NamedTuple):
    node_id: bytes
    available: Mapping[str, int]


class Requested(NamedTuple):
    request_id: bytes
    ask: Mapping[str, int]  # what a node must be able to offer
    strategy: Strategy
    name: str = ""
    hold: Mapping[str, int] | None = None  # what it will hold there once placed; None: what it asks


class Ended(NamedTuple):
    """Cancelled, or its resources have been given back."""

    request_id: bytes


class Assign(NamedTuple):
    request_id: bytes
    node_id: bytes


class Infeasible(NamedTuple):
    """It waits for a node that may never come; said once per request."""

    request_id: bytes
    message: str


class Unassign(NamedTuple):
    """Its node has left: the one that it was given to, or the only one that it would ever have run on."""

    request_id: bytes
    cause: str


Event = Union[NodeJoined, NodeLeft, ResourcesReported, Requested, Ended]
Action = Union[Assign, Infeasible, Unassign]


class _Node:
    __slots__ = ("assigned", "available", "held", "labels", "reports", "taken", "total")

    def __init__(self, total: Mapping[str, int], labels: Mapping[str, str]) -> None:
        self.total = dict(total)
        self.available = dict(total)
        self.labels = dict(labels)
        self.assigned: dict[bytes, Mapping[str, int]] = {}
        self.held: dict[bytes, dict[str, int]] = {}  # by placement group
        self.reports = False  # it has said what is free there
        self.taken: dict[bytes, dict[str, int]] = {}  # since it last did, by request or group

    def take(self, who: bytes, amounts: Mapping[str, int]) -> None:
        taken = self.taken.setdefault(who, {})
        for name, units in amounts.items():
            taken[name] = taken.get(name, 0) + units
            self.available[name] = self.available.get(name, 0) - units

    def give_back(self, who: bytes, amounts: Mapping[str, int]) -> None:
        """What was taken before its last report is its own to say: added here it would be counted twice."""
        taken = self.taken.get(who, {})
        for name, units in amounts.items():
            here = min(units, taken.get(name, 0)) if self.reports else units
            if name in taken:
                taken[name] -= here
            self.available[name] = min(self.available.get(name, 0) + here, self.total.get(name, 0))
        if not any(taken.values()):
            self.taken.pop(who, None)

    def reported(self, available: Mapping[str, int]) -> None:
        self.reports = True
        self.available = dict(available)
        self.taken.clear()


def _bound_to(strategy: Strategy, node_id: bytes) -> bool:
    return isinstance(strategy, NodeAffinity) and not strategy.soft and strategy.node_id == node_id


class GlobalScheduler:
    def __init__(self) -> None:
        self._nodes: dict[bytes, _Node] = {}
        self.index: NodeIndex[bytes] = NodeIndex()
        self._waiting: dict[bytes, Requested] = {}
        self._assigned: dict[bytes, bytes] = {}

    def handle(self, event: Event) -> list[Action]:
        if isinstance(event, Requested):
            if event.request_id in self._waiting or event.request_id in self._assigned:
                return []  # said twice
            return self._place(event, say_infeasible=True)
        if isinstance(event, Ended):
            self._end(event.request_id)
            return []
        if isinstance(event, NodeJoined):
            if event.node_id in self._nodes:
                return []
            self._nodes[event.node_id] = _Node(event.total, event.labels)
            self._changed(event.node_id)
            waiting, self._waiting = self._waiting, {}
            return [action for request in waiting.values() for action in self._place(request, say_infeasible=False)]
        node = self._nodes.get(event.node_id)
        if node is None:
            return []  # a late report
        if isinstance(event, ResourcesReported):
            node.reported(event.available)
            self._changed(event.node_id)
            return []
        del self._nodes[event.node_id]
        self.index.drop(event.node_id)
        lost = list(node.assigned)
        for request_id in lost:
            del self._assigned[request_id]
        for request_id in [r for r, waiting in self._waiting.items() if _bound_to(waiting.strategy, event.node_id)]:
            del self._waiting[request_id]  # no node that joins will ever be this one
            lost.append(request_id)
        return [Unassign(request_id, event.cause) for request_id in lost]

    def assigned_to(self, request_id: bytes) -> bytes | None:
        return self._assigned.get(request_id)

    def views(self) -> list[NodeView]:
        """What is known of each node, in the order they joined."""
        return [NodeView(i, n.total, n.available, len(n.assigned), 0, n.labels) for i, n in self._nodes.items()]

    def waiting(self) -> list[tuple[str, Mapping[str, int], str]]:
        """(name, what it asks for, why no node will do) of each request that waits for a node to join."""
        return [(r.name, r.ask, self._why_infeasible(r)) for r in self._waiting.values()]

    def has(self, node_id: bytes) -> bool:
        return node_id in self._nodes

    def hold(self, group_id: bytes, node_id: bytes, amounts: Mapping[str, int]) -> None:
        """A placement group takes so much of a node, on top of what it holds there."""
        node = self._nodes[node_id]
        held = node.held.setdefault(group_id, {})
        for name, units in amounts.items():
            held[name] = held.get(name, 0) + units
        node.take(group_id, amounts)
        self._changed(node_id)

    def let_go(self, group_id: bytes, node_id: bytes, amounts: Mapping[str, int]) -> None:
        """And gives so much of it back. Of a node that has left: nothing to do."""
        node = self._nodes.get(node_id)
        if node is None:
            return
        held = node.held[group_id]
        for name, units in amounts.items():
            held[name] -= units
            if not held[name]:
                del held[name]
        node.give_back(group_id, amounts)
        self._changed(node_id)
        if not held:
            del node.held[group_id]

    def _changed(self, node_id: bytes) -> None:
        node = self._nodes[node_id]
        self.index.put(node_id, node.total, node.available, node.labels, len(node.assigned))

    def _place(self, request: Requested, say_infeasible: bool) -> list[Action]:
        strategy = request.strategy
        if isinstance(strategy, Default) and request.hold is not None and not any(request.hold.values()):
            strategy = Spread()  # it fills no node, however many there are: packed, all would lie on the first
        node_id = choose(self.index, shape_of(request.ask), strategy)
        if node_id is None:
            self._waiting[request.request_id] = request
            return [Infeasible(request.request_id, self._why_infeasible(request))] if say_infeasible else []
        node = self._nodes[node_id]
        hold = request.ask if request.hold is None else request.hold
        node.assigned[request.request_id] = hold
        node.take(request.request_id, hold)
        self._changed(node_id)
        self._assigned[request.request_id] = node_id
        return [Assign(request.request_id, node_id)]

    def _end(self, request_id: bytes) -> None:
        self._waiting.pop(request_id, None)
        node_id = self._assigned.pop(request_id, None)
        if node_id is not None:
            node = self._nodes[node_id]
            node.give_back(request_id, node.assigned.pop(request_id))
            self._changed(node_id)

    def _why_infeasible(self, request: Requested) -> str:
        what = f"{request.name or 'a request'} needs {describe(dict(request.ask))}"
        if isinstance(request.strategy, NodeAffinity) and request.strategy.node_id not in self._nodes:
            return f"{what} on node {request.strategy.node_id.hex()}, and there is no such node (any more)"
        if isinstance(request.strategy, NodeLabels):
            admitted = any(request.strategy.admits(node.labels) for node in self._nodes.values())
            if not admitted:
                wanted = " or ".join(labels.describe(selector) for selector in request.strategy.alternatives)
                return f"{what} on a node with {wanted}, and no node has these labels. It stays queued until one joins"
        if not self._nodes:
            return f"{what}, and there is no node. It stays queued until one joins"
        return (
            f"{what}, which no node of the cluster can ever offer: {nearest(request.ask, self.views())}. "
            "It stays queued until such a node joins"
        )

    def check(self) -> None:
        """Re-derives the indexes. Raises: AssertionError."""
        assert self._assigned == {r: i for i, node in self._nodes.items() for r in node.assigned}
        assert not set(self._assigned) & set(self._waiting)
        for node in self._nodes.values():
            assert all(units <= node.total.get(name, 0) for name, units in node.available.items()), node.available

    def check_holds(self, expected: Mapping[tuple[bytes, bytes], Mapping[str, int]]) -> None:
        """That exactly this is held, by (group, node). Raises: AssertionError."""
        held = {(group_id, i): amounts for i, node in self._nodes.items() for group_id, amounts in node.held.items()}
        wanted = {key: dict(amounts) for key, amounts in expected.items() if any(amounts.values())}
        wrong = [key for key in {**held, **wanted} if held.get(key) != wanted.get(key)]
        assert not wrong, [(key, held.get(key), wanted.get(key)) for key in wrong[:4]]
