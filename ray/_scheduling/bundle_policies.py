"""On which nodes the bundles of a placement group should lie: one function a strategy. Pure; used by the head.

    PACK           on as few nodes as will do
    SPREAD         on as many as there are, evenly; several share a node where there aren't enough
    STRICT_PACK    all on one node, or nowhere
    STRICT_SPREAD  each on a node of its own, or nowhere

Bundles that lie already (a group of which some were lost with their node) count as what they are: they draw PACK to
them and drive SPREAD away. Ties go to the node that joined first, so a choice depends on nothing but the arguments.

A strategy looks at kinds of nodes that are alike (`alike.py`) and takes the first node of the kind that it likes best:
`Rooms` sets a node apart from its kind as soon as something is put there, or lies there already.

`Limits` narrows where a group may lie. Labels are asked for as one more resource, of which a node that has them has any
amount and another none, so that no strategy needs to know of them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ray._protocol.resources import Resources
from ray._scheduling import labels
from ray._scheduling.alike import Alike, Kind
from ray._scheduling.node_index import NodeIndex

PACK, SPREAD, STRICT_PACK, STRICT_SPREAD = "PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"
STRATEGIES = (PACK, SPREAD, STRICT_PACK, STRICT_SPREAD)

Bundles = Mapping[int, Mapping[str, int]]  # those to be placed, by index
Placement = dict[int, bytes]  # index -> node


class Limits(NamedTuple):
    """What a group asks of nodes besides room."""

    selectors: Sequence[labels.Selector] = ()  # of each bundle; none: any node will do for any
    first: bytes = b""  # the node that is preferred, where several would do as well
    cpu_fraction: float = 1.0  # of a node's CPUs, the rest stay free of this group and are not counted as room


ANYWHERE = Limits()
SORTED_MAX = 8  # ways in which nodes are told apart; the one asked for longest ago goes first
_ANY_AMOUNT = 2**62
_FIRST = 0  # before the order of any node


class Nodes:
    """The nodes of an index, sorted by what groups ask of them as they ask."""

    def __init__(self, index: NodeIndex[bytes]) -> None:
        self._index = index
        self._sorted: dict[tuple[tuple[labels.Selector, ...], bool], Alike[bytes]] = {}

    def alike(self, selectors: tuple[labels.Selector, ...], empty: bool) -> Alike[bytes]:
        which = selectors, empty
        found = self._sorted.pop(which, None) or Alike(self._index, selectors, empty)
        if len(self._sorted) >= SORTED_MAX:
            del self._sorted[next(iter(self._sorted))]
        self._sorted[which] = found  # the last to go
        return found


def place(
    nodes: Nodes,
    bundles: Bundles,
    strategy: str,
    lying: Mapping[int, bytes] | None = None,
    limits: Limits = ANYWHERE,
) -> Placement | None:
    """A node for each bundle by what is free now, or None.

    Args: lying: the group's other bundles, which stay where they are.
    """
    return _place(nodes, bundles, strategy, lying or {}, limits, empty=False)


def possible(
    nodes: Nodes,
    bundles: Bundles,
    strategy: str,
    lying: Mapping[int, bytes] | None = None,
    limits: Limits = ANYWHERE,
) -> Placement | None:
    """The same if all these nodes were empty: None means that waiting is no use until another node joins."""
    return _place(nodes, bundles, strategy, lying or {}, limits, empty=True)


def _place(
    nodes: Nodes, bundles: Bundles, strategy: str, lying: Mapping[int, bytes], limits: Limits, empty: bool
) -> Placement | None:
    selectors = tuple(dict.fromkeys(tuple(selector) for selector in limits.selectors if selector))
    alike = nodes.alike(selectors, empty)
    asks: dict[int, Mapping[str, int]] = {index: bundles[index] for index in bundles}
    labelled: dict[str, int] = {}  # resources that stand for labels: by name, which of the selectors
    for index, selector in enumerate(limits.selectors):
        if selector and index in asks:
            name = f" labels of bundle {index}"  # a space in front: no resource is called so
            asks[index] = {**asks[index], name: 1}
            labelled[name] = selectors.index(tuple(selector))

    def room_of(kind: Kind[bytes]) -> dict[str, int]:
        room = dict(kind.available)
        if labelled:
            room.update({name: _ANY_AMOUNT for name, at in labelled.items() if kind.admits[at]})
        if limits.cpu_fraction < 1:
            room["CPU"] = room.get("CPU", 0) - round(kind.total.get("CPU", 0) * (1 - limits.cpu_fraction))
        return room

    return _POLICIES[strategy](Rooms(alike, room_of, lying.values(), limits.first), asks, dict(lying))


class _Alike:
    """Nodes of one kind on which nothing lies of this group, yet."""

    __slots__ = ("at", "keys", "orders", "room")

    def __init__(self, room: dict[str, int], orders: Sequence[int], keys: Sequence[bytes]) -> None:
        self.room = room
        self.orders = orders
        self.keys = keys
        self.at = 0  # those before have been set apart


class Apart:
    """A node on which something lies of this group, or is being put."""

    __slots__ = ("order", "room")

    def __init__(self, order: int, room: dict[str, int]) -> None:
        self.order = order
        self.room = room


class Rooms:
    """What is free on each node while bundles are being put on them.

    Args: lying: nodes that hold some of the group.  first: the node that comes before all others; b"": none."""

    def __init__(
        self,
        alike: Alike[bytes],
        room_of: Callable[[Kind[bytes]], dict[str, int]],
        lying: Iterable[bytes],
        first: bytes,
    ) -> None:
        kinds = alike.kinds()
        self.apart: dict[bytes, Apart] = {}
        self._alike = [_Alike(room_of(kind), kind.orders, kind.keys) for kind in kinds]
        for node in dict.fromkeys(lying):
            found = alike.kind_of(node)
            if found is not None:
                self.apart[node] = Apart(found[0] if node != first else _FIRST, room_of(found[1]))
        self._passed = set(self.apart)  # nodes that are not to be found among their kind
        found = alike.kind_of(first)
        if found is not None and first not in self.apart:
            self._passed.add(first)
            self._alike.append(_Alike(room_of(found[1]), [_FIRST], [first]))
            self._preferred: _Alike | None = self._alike[-1]
        else:
            self._preferred = None

    def best(self, score: Callable[[Mapping[str, int]], int]) -> bytes | None:
        """Sets apart the node, of those that are not, for whose room the score is highest, and above 0; of
        equals the one that joined first."""
        highest, earliest, found = 0, 0, None
        for kind in self._alike:
            value = score(kind.room)
            if value > 0 and value >= highest:
                order = self._next(kind)
                if order is not None and (found is None or value > highest or order < earliest):
                    highest, earliest, found = value, order, kind
        if found is None:
            return None
        node = found.keys[found.at]
        found.at += 1
        self.apart[node] = Apart(earliest, dict(found.room))
        return node

    def _next(self, kind: _Alike) -> int | None:
        if kind is not self._preferred:
            while kind.at < len(kind.keys) and kind.keys[kind.at] in self._passed:
                kind.at += 1
        return kind.orders[kind.at] if kind.at < len(kind.keys) else None


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
    """First where the group lies already, then on whichever node takes the most of what is left. A node that has been
    filled takes nothing more, so only those that are not apart need be looked at."""
    left = dict(_largest_first(bundles))
    placed: Placement = {}

    def fill(node: bytes) -> None:
        for index, ask in list(left.items()):
            if _fits(rooms.apart[node].room, ask):
                _put(rooms.apart[node].room, ask)
                placed[index] = node
                del left[index]

    for node in list(rooms.apart):
        fill(node)
    while left:
        best = rooms.best(lambda room: _taken(room, left))
        if best is None:
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
        node = rooms.best(lambda room, ask=ask: _fits(room, ask))  # type: ignore[misc]
        if node is None:  # on each that has room something lies
            fitting = [n for n, apart in rooms.apart.items() if _fits(apart.room, ask)]
            node = min(fitting, key=lambda n: (lie_on[n], rooms.apart[n].order), default=None)
            if node is None:
                return None
        _put(rooms.apart[node].room, ask)
        lie_on[node] += 1
        placed[index] = node
    return placed


def _strict_pack(rooms: Rooms, bundles: Bundles, lying: Placement) -> Placement | None:
    together = total_of(bundles)
    if lying:
        held = set(lying.values())
        node = held.pop() if len(held) == 1 else None
        if node is None or node not in rooms.apart or not _fits(rooms.apart[node].room, together):
            return None
    else:
        node = rooms.best(lambda room: _fits(room, together))
    return None if node is None else dict.fromkeys(bundles, node)


def _strict_spread(rooms: Rooms, bundles: Bundles, lying: Placement) -> Placement | None:
    """A matching of bundles to nodes, found by augmenting paths: exact, so a group is never refused for bad luck."""
    taken_by: dict[bytes, int] = {}

    def seat(index: int, tried: set[bytes]) -> bool:
        ask = bundles[index]
        empty = rooms.best(lambda room: _fits(room, ask))
        if empty is not None:
            taken_by[empty] = index
            return True
        for node in sorted(taken_by, key=lambda node: rooms.apart[node].order):
            if node not in tried and _fits(rooms.apart[node].room, ask):
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
