"""What the schedulers decide, decided by looking at every node: what their indexes are compared with.

Slow, and as short as the rules themselves. Nothing but tests uses it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence

from ray._node.leases import Lease
from ray._node.spillback import Neighbours, fits_in
from ray._protocol.resources import Shape
from ray._scheduling import labels
from ray._scheduling.bundle_policies import ANYWHERE, Bundles, Limits, Placement, total_of
from ray._scheduling.policies import PACK_UNTIL, NodeView, feasible, fits, load
from ray._scheduling.strategy import DEFAULT, Default, NodeAffinity, NodeLabels, Spread, Strategy

Rooms = dict[bytes, dict[str, int]]
_ANY_AMOUNT = 2**62


def choose(nodes: Iterable[NodeView], ask: Mapping[str, int], strategy: Strategy) -> bytes | None:
    """The node for a request, or None if no node could ever hold it."""
    candidates = [node for node in nodes if feasible(node, ask)]
    if isinstance(strategy, NodeAffinity):
        if any(node.node_id == strategy.node_id for node in candidates):
            return strategy.node_id
        if not strategy.soft:
            return None
        strategy = Default()
    if isinstance(strategy, NodeLabels):
        candidates = _by_labels(candidates, strategy)
    if not candidates:
        return None
    roomy = [node for node in candidates if fits(node, ask)]
    if isinstance(strategy, Spread):
        return min(roomy or candidates, key=lambda node: (node.assigned, load(node, ask))).node_id
    if not roomy:
        return min(candidates, key=lambda node: (load(node, ask), node.assigned)).node_id
    return min(roomy, key=lambda node: (-node.holds, max(load(node, ask), PACK_UNTIL))).node_id


def _by_labels(candidates: list[NodeView], strategy: NodeLabels) -> list[NodeView]:
    """Those that the first selector with any admits; only the preferred among them, if there are such."""
    for selector in strategy.alternatives:
        admitted = [node for node in candidates if labels.matches(node.labels, selector)]
        if admitted:
            return [node for node in admitted if labels.matches(node.labels, strategy.preferred)] or admitted
    return []


class PlainNeighbours(Neighbours):
    """Takes views as the real ones do, and looks at each node."""

    def elsewhere(self, lease: Lease, here: NodeView, patient: bool = False) -> int | None:
        """The number of the node that should be asked for this lease instead of this one; None: none.

        Args: here: this node; with nothing available if others wait here for the same.
            patient: it has waited here so long that no number of hops can mean messages in circles."""
        ask = dict(lease.shape)
        strategy = lease.strategy
        if lease.holds:
            here = here._replace(holds=lease.holds.get(self._number, 0))
        if isinstance(strategy, NodeAffinity):
            named = [n.row.number for n in self._by_number.values() if n.row.node_id == strategy.node_id]
            if strategy.node_id == self._node_id and feasible(here, ask):
                return None
            if named and feasible(self._view(named[0], lease), ask):
                return named[0]
            if not strategy.soft:
                return None
            strategy = DEFAULT
        possible = feasible(here, ask) and (not isinstance(strategy, NodeLabels) or strategy.admits(dict(here.labels)))
        room = possible and fits(here, ask)
        if possible and ((lease.hops >= self.hops_max and not patient) or (lease.hops and room)):
            return None
        if isinstance(strategy, Spread) and not lease.hops:
            return self._turn(lease, ask, possible, room)
        if room and isinstance(strategy, Default) and (not lease.holds or here.holds == max(lease.holds.values())):
            if load(here, dict.fromkeys(ask, 0)) < PACK_UNTIL:
                return None  # without looking at all the others: on a large cluster most requests end here
        others = {n.row.node_id: n for n in self._by_number.values()}
        views = [here, *(self._view(n.row.number, lease) for n in others.values())]
        chosen = choose(views, ask, DEFAULT if isinstance(strategy, Spread) else strategy)
        if chosen is None or chosen == self._node_id:
            return None
        node = others[chosen]
        if possible and not fits(self._view(node.row.number, lease), ask):
            return None  # it would only wait there instead of here
        return node.row.number

    def has_able(self, strategy: Strategy, shape: Shape) -> bool:
        """Whether some node that the strategy allows could ever hold so much."""
        return any(
            fits_in(node.row.total, shape)
            and (
                node.row.node_id == strategy.node_id
                if isinstance(strategy, NodeAffinity)
                else not isinstance(strategy, NodeLabels) or strategy.admits(dict(node.row.labels))
            )
            for node in self._by_number.values()
        )

    def with_bundle(self, lease: Lease, usable: bool, room: bool) -> int | None:
        """The same for a lease that is to run in a placement group.

        Args: usable: this node has a bundle that could hold it.  room: and it is free."""
        if room or (usable and lease.hops >= self.hops_max):
            return None
        place = lease.place
        assert place is not None
        roomy = anywhere = None
        for number, node in self._by_number.items():
            for part in node.parts:
                named = part.group_id == place.group_id and place.bundle in (-1, part.index)
                if not named or not fits_in(part.total, lease.shape):
                    continue
                if roomy is None and fits_in(part.available, lease.shape):
                    roomy = number
                anywhere = number if anywhere is None else anywhere
        return roomy if usable or roomy is not None else anywhere

    def any_room(self, shape: Shape) -> bool:
        """Whether it is worth looking for a better place at all for one of those that wait for so much."""
        return any(fits_in(node.row.available, shape) or node.parts for node in self._by_number.values())

    def _view(self, number: int, lease: Lease) -> NodeView:
        row = self._by_number[number].row
        return NodeView(
            row.node_id,
            row.total,
            row.available,
            row.queued,
            lease.holds.get(number, 0) if lease.holds else 0,
            row.labels,
        )

    def _turn(self, lease: Lease, ask: Mapping[str, int], possible: bool, room: bool) -> int | None:
        """SPREAD: of those with room, this node among them, the one that was chosen longest ago."""
        roomy = [n for n in self._by_number.values() if fits(self._view(n.row.number, lease), ask)]
        if not roomy:
            able = [n for n in self._by_number.values() if feasible(self._view(n.row.number, lease), ask)]
            return None if possible or not able else min(able, key=lambda n: n.row.queued).row.number
        self._choices += 1
        oldest = min(roomy, key=lambda n: n.chosen_at)
        if room and self._chose_here <= oldest.chosen_at:
            self._chose_here = self._choices
            return None
        oldest.chosen_at = self._choices
        return oldest.row.number


def place_plainly(
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
    return POLICIES[strategy](rooms, bundles, dict(lying or {}))


def possible_plainly(
    nodes: Sequence[NodeView],
    bundles: Bundles,
    strategy: str,
    lying: Mapping[int, bytes] | None = None,
    limits: Limits = ANYWHERE,
) -> Placement | None:
    """The same if all these nodes were empty: None means that waiting is no use until another node joins."""
    return place_plainly([node._replace(available=node.total) for node in nodes], bundles, strategy, lying, limits)


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


POLICIES: dict[str, Callable[[Rooms, Bundles, Placement], Placement | None]] = {
    "PACK": _pack,
    "SPREAD": _spread,
    "STRICT_PACK": _strict_pack,
    "STRICT_SPREAD": _strict_spread,
}
