"""On which nodes the bundles of a placement group should lie: one function a strategy. Pure; used by the head.

    PACK           on as few nodes as will do
    SPREAD         on as many as there are, evenly; several share a node where there aren't enough
    STRICT_PACK    all on one node, or nowhere
    STRICT_SPREAD  each on a node of its own, or nowhere

Bundles that lie already (a group of which some were lost with their node) count as what they are: they draw PACK to
them and drive SPREAD away. Ties go to the node that joined first, so a choice depends on nothing but the arguments.

`Limits` narrows where a group may lie. Labels are asked for as one more resource, of which a node that has them has any
amount and another none, so that no strategy needs to know of them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ray._protocol.resources import Resources
from ray._scheduling import labels
from ray._scheduling.policies import NodeView

PACK, SPREAD, STRICT_PACK, STRICT_SPREAD = "PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"
STRATEGIES = (PACK, SPREAD, STRICT_PACK, STRICT_SPREAD)

Bundles = Mapping[int, Mapping[str, int]]  # those to be placed, by index
Placement = dict[int, bytes]  # index -> node
Rooms = dict[bytes, dict[str, int]]  # what is free on each node; changed as bundles are put there


class Limits(NamedTuple):
    """What a group asks of nodes besides room."""

    selectors: Sequence[labels.Selector] = ()  # of each bundle; none: any node will do for any
    first: bytes = b""  # the node that is preferred, where several would do as well
    cpu_fraction: float = 1.0  # of a node's CPUs, the rest stay free of this group and are not counted as room


ANYWHERE = Limits()
_ANY_AMOUNT = 2**62


def place(
    nodes: Sequence[NodeView],
    bundles: Bundles,
    strategy: str,
    lying: Mapping[int, bytes] | None = None,
    limits: Limits = ANYWHERE,
) -> Placement | None:
    """A node for each bundle by what is free now, or None.

    Args: lying: the group's other bundles, which stay where they are.
    """
    rooms = {node.node_id: dict(node.available) for node in nodes}
    if limits != ANYWHERE:
        rooms, bundles = _narrowed(nodes, rooms, bundles, limits)
    return _POLICIES[strategy](rooms, bundles, dict(lying or {}))


def possible(
    nodes: Sequence[NodeView],
    bundles: Bundles,
    strategy: str,
    lying: Mapping[int, bytes] | None = None,
    limits: Limits = ANYWHERE,
) -> Placement | None:
    """The same if all these nodes were empty: None means that waiting is no use until another node joins."""
    return place([node._replace(available=node.total) for node in nodes], bundles, strategy, lying, limits)


def _narrowed(nodes: Sequence[NodeView], rooms: Rooms, bundles: Bundles, limits: Limits) -> tuple[Rooms, Bundles]:
    asks = {index: dict(ask) for index, ask in bundles.items()}
    for index, selector in enumerate(limits.selectors):
        if not selector or index not in asks:
            continue
        name = f" labels of bundle {index}"  # a space in front: no resource is called so
        asks[index][name] = 1
        for node in nodes:
            if labels.matches(node.labels, selector):
                rooms[node.node_id][name] = _ANY_AMOUNT
    for node in nodes:
        kept_free = round(node.total.get("CPU", 0) * (1 - limits.cpu_fraction))
        rooms[node.node_id]["CPU"] = rooms[node.node_id].get("CPU", 0) - kept_free
    if limits.first in rooms:
        rooms = {limits.first: rooms[limits.first], **rooms}
    return rooms, asks


def total_of(bundles: Mapping[int, Mapping[str, int]]) -> Resources:
    total: Resources = {}
    for bundle in bundles.values():
        for name, units in bundle.items():
            total[name] = total.get(name, 0) + units
    return total


def _fits(room: Mapping[str, int], ask: Mapping[str, int]) -> bool:
    return all(room.get(name, 0) >= units for name, units in ask.items())


def _put(room: dict[str, int], ask: Mapping[str, int]) -> None:
    for name, units in ask.items():
        room[name] = room.get(name, 0) - units


def _pack(rooms: Rooms, bundles: Bundles, lying: Placement) -> Placement | None:
    """First where the group lies already, then on whichever node takes the most of what is left."""
    left = dict(_largest_first(bundles))
    placed: Placement = {}

    def fill(node: bytes) -> None:
        for index, ask in list(left.items()):
            if _fits(rooms[node], ask):
                _put(rooms[node], ask)
                placed[index] = node
                del left[index]

    for node in dict.fromkeys(lying.values()):
        if node in rooms:
            fill(node)
    while left:
        best = max(rooms, key=lambda node: _taken(rooms[node], left), default=None)
        if best is None or not _taken(rooms[best], left):
            return None
        fill(best)
    return placed


def _taken(room: Mapping[str, int], left: Bundles) -> int:
    """How many of these fit there together, the largest first."""
    trial, count = dict(room), 0
    for ask in left.values():
        if _fits(trial, ask):
            _put(trial, ask)
            count += 1
    return count


def _spread(rooms: Rooms, bundles: Bundles, lying: Placement) -> Placement | None:
    lie_on = collections.Counter(lying.values())
    placed: Placement = {}
    for index, ask in _largest_first(bundles):
        node = min((n for n in rooms if _fits(rooms[n], ask)), key=lambda n: lie_on[n], default=None)
        if node is None:
            return None
        _put(rooms[node], ask)
        lie_on[node] += 1
        placed[index] = node
    return placed


def _strict_pack(rooms: Rooms, bundles: Bundles, lying: Placement) -> Placement | None:
    together = total_of(bundles)
    allowed = set(lying.values()) or rooms.keys()
    if lying and len(set(lying.values())) > 1:
        return None
    node = next((n for n in rooms if n in allowed and _fits(rooms[n], together)), None)
    return None if node is None else dict.fromkeys(bundles, node)


def _strict_spread(rooms: Rooms, bundles: Bundles, lying: Placement) -> Placement | None:
    """A matching of bundles to nodes, found by augmenting paths: exact, so a group is never refused for bad luck."""
    taken_by: dict[bytes, int] = {}
    free = [node for node in rooms if node not in lying.values()]

    def seat(index: int, tried: set[bytes]) -> bool:
        fitting = [node for node in free if node not in tried and _fits(rooms[node], bundles[index])]
        empty = next((node for node in fitting if node not in taken_by), None)
        if empty is not None:
            taken_by[empty] = index
            return True
        for node in fitting:
            if node not in tried:
                tried.add(node)
                if seat(taken_by[node], tried):
                    taken_by[node] = index
                    return True
        return False

    if not all(seat(index, set()) for index in bundles):
        return None
    return {index: node for node, index in taken_by.items()}


def _largest_first(bundles: Bundles) -> list[tuple[int, Mapping[str, int]]]:
    """The bundles that are hardest to place first: by how many resources they name, then how much of them."""
    return sorted(bundles.items(), key=lambda item: (-len(item[1]), -sum(item[1].values()), item[0]))


_POLICIES: dict[str, Callable[[Rooms, Bundles, Placement], Placement | None]] = {
    PACK: _pack,
    SPREAD: _spread,
    STRICT_PACK: _strict_pack,
    STRICT_SPREAD: _strict_spread,
}
