"""The other nodes as this one last heard of them, and which of them should run what was asked here. Pure; a part of the
local scheduler.

Runs in the node process, on its event loop. `update` takes the rows of a view: what the head passes on of each node's
own reports, so they may be some tenths of a second old. What was sent to a node is deducted for `SENT_S`; after that
its own report speaks for it, and `look_at` asks for another look at what waits here: what was sent may never have
arrived. A node that is reported DEAD is forgotten: what had been sent there is the affair of the asker, who knows of
the death itself and asks again.

`elsewhere` answers with the number of another node, or None: it stays here. The rules, in order:

1. what a strategy names: that node, those labels, the node that has the bundle;
2. a request that was sent here stays if it fits, and from its `hops_max`-th hop on if it ever can, for `PATIENCE_S`;
3. where it fits now: the node that holds most of its arguments; else here if less than half of this node is used; else
   the emptiest. SPREAD: whichever was chosen longest ago;
4. what fits nowhere now waits here if it ever can, else where it ever can.

Only a node that can never meet a request passes it on beyond `hops_max`, and then not at once but when it looks again:
views of nodes that have just changed may contradict each other, and the request must neither be lost nor run in circles
meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ray._protocol.resources import Resources, Shape
from ray._scheduling import labels, policies
from ray._scheduling.labels import Term
from ray._scheduling.nearest import nearest
from ray._scheduling.node_index import NodeIndex
from ray._scheduling.policies import PACK_UNTIL, NodeView, feasible, fits, load
from ray._scheduling.strategy import DEFAULT, Default, NodeAffinity, NodeLabels, Spread, Strategy

if TYPE_CHECKING:
    from .leases import Lease

HERE = -1  # in place of this node's number, which it may not have heard yet
PATIENCE_S = 1.0  # several times as long as a view may be late
SENT_S = 0.25  # a report takes 50 ms at each of two hops, and the request itself has to arrive
GROUP_PART = tuple[int, Mapping[str, int], Mapping[str, int]]  # bundle index, what it holds in all, what of it is free


class NodeRow(NamedTuple):
    """One node in a view."""

    number: int
    node_id: bytes
    total: Mapping[str, int]
    available: Mapping[str, int]
    queued: int = 0  # requests that wait there
    labels: Mapping[str, str] = {}
    alive: bool = True
    bundles: Mapping[bytes, Iterable[GROUP_PART]] = {}  # of placement groups, by group: those that may be used


class _Neighbour:
    __slots__ = ("chosen_at", "parts", "reported", "row", "sent")

    def __init__(self, row: NodeRow) -> None:
        self.reported = row
        self.row = row  # the same, less what was sent
        self.parts: Sequence[_Part] = ()
        self.sent: list[tuple[float, Shape]] = []  # few
        self.chosen_at = 0  # by SPREAD: how manieth choice

    def settle(self, now: float) -> None:
        """What was sent longer ago than SENT_S counts no more."""
        while self.sent and self.sent[0][0] + SENT_S <= now:
            del self.sent[0]
        self.row, self.parts = self.reported, ()
        if self.sent:
            available = dict(self.reported.available)
            for _, shape in self.sent:
                _deduct(available, shape)
            self.row = self.reported._replace(available=available)
        if self.reported.bundles:
            self.parts = [_Part(group_id, *part) for group_id, parts in self.reported.bundles.items() for part in parts]


class _Part:
    """A bundle over there."""

    __slots__ = ("available", "group_id", "index", "total")

    def __init__(self, group_id: bytes, index: int, total: Mapping[str, int], available: Mapping[str, int]) -> None:
        self.group_id = group_id
        self.index = index
        self.total = total
        self.available: Resources = dict(available)


class Neighbours:
    """All nodes but this one. Empty, and false, on a single machine."""

    def __init__(self, node_id: bytes, hops_max: int) -> None:
        self.hops_max = hops_max
        self.look_at: float | None = None  # when to look again at what waits; None: a view will come
        self._node_id = node_id
        self._number = -1  # of this node, once a view has said it
        self._by_number: dict[int, _Neighbour] = {}
        self._numbers: dict[bytes, int] = {}
        self._index: NodeIndex[int] = NodeIndex()
        self._with_bundles: dict[bytes, dict[int, None]] = {}  # by group, the nodes that have some of it
        self._deducted: deque[tuple[float, int]] = deque()  # since when something is, of which node's room
        self._choices = 0
        self._chose_here = 0

    def __bool__(self) -> bool:
        return bool(self._by_number)

    def numbers(self) -> list[int]:
        return list(self._by_number)

    def update(self, rows: Iterable[NodeRow], now: float) -> None:
        """Of nodes that no row is about, nothing has changed."""
        for row in rows:
            if row.node_id == self._node_id:
                self._number = row.number
            elif not row.alive:
                gone = self._by_number.pop(row.number, None)
                if gone is not None:
                    self._list_bundles(gone, {})
                    self._numbers.pop(gone.row.node_id, None)
                    self._index.drop(row.number)
            else:
                node = self._by_number.get(row.number)
                if node is None:
                    node = self._by_number[row.number] = _Neighbour(row._replace(bundles={}))
                    self._numbers[row.node_id] = row.number
                if row.bundles or node.reported.bundles:
                    self._list_bundles(node, row.bundles)
                node.reported = row
                self._settle(node, now)

    def _list_bundles(self, node: _Neighbour, now: Iterable[bytes]) -> None:
        """now: the groups of which that node has something; so far it had something of those it last reported."""
        number = node.row.number
        for group_id in node.reported.bundles:
            having = self._with_bundles[group_id]
            del having[number]
            if not having:
                del self._with_bundles[group_id]
        for group_id in now:
            self._with_bundles.setdefault(group_id, {})[number] = None

    def sent(self, number: int, lease: Lease, now: float) -> None:
        """A request is on its way there: what it asks is not free any more."""
        node = self._by_number[number]
        self._deducted.append((now, number))
        if self.look_at is None:
            self.look_soon(now)
        if lease.place is None:
            node.sent.append((now, lease.shape))
            self._settle(node, now)
        else:
            for part in node.parts:
                if _is_of(part, lease) and fits_in(part.available, lease.shape):
                    _deduct(part.available, lease.shape)
                    break

    def _settle(self, node: _Neighbour, now: float) -> None:
        node.settle(now)
        row = node.row
        self._index.put(row.number, row.total, row.available, row.labels, row.queued, node.chosen_at)

    def look_soon(self, now: float) -> None:
        if self.look_at is None:
            self.look_at = now + SENT_S

    def looking(self, now: float) -> bool:
        """Whether it is time to look again; then all that is known is brought up to date."""
        if self.look_at is None or now < self.look_at:
            return False
        while self._deducted and self._deducted[0][0] + SENT_S <= now:
            node = self._by_number.get(self._deducted.popleft()[1])
            if node is not None:
                self._settle(node, now)  # with it what was sent into its bundles
        self.look_at = self._deducted[0][0] + SENT_S if self._deducted else None
        return True

    def elsewhere(self, lease: Lease, here: NodeView, patient: bool = False) -> int | None:
        """The number of the node that should be asked for this lease instead of this one; None: none.

        Args: here: this node; with nothing available if others wait here for the same.
            patient: it has waited here so long that no number of hops can mean messages in circles."""
        ask = dict(lease.shape)
        strategy = lease.strategy
        if lease.holds:
            here = here._replace(holds=lease.holds.get(self._number, 0))
        if isinstance(strategy, NodeAffinity):
            if strategy.node_id == self._node_id and feasible(here, ask):
                return None
            named = self._numbers.get(strategy.node_id)
            if named is not None and fits_in(self._by_number[named].row.total, lease.shape):
                return named
            if not strategy.soft:
                return None
            strategy = DEFAULT
        possible = feasible(here, ask) and (not isinstance(strategy, NodeLabels) or strategy.admits(dict(here.labels)))
        room = possible and fits(here, ask)
        if possible and ((lease.hops >= self.hops_max and not patient) or (lease.hops and room)):
            return None
        if isinstance(strategy, Spread) and not lease.hops:
            return self._in_turn(lease.shape, possible, room)
        if room and isinstance(strategy, Default) and (not lease.holds or here.holds == max(lease.holds.values())):
            if load(here, dict.fromkeys(ask, 0)) < PACK_UNTIL:
                return None  # without asking for the others: on a large cluster most requests end here
        for terms in policies.searches(strategy):
            admitted = possible and (not terms or labels.matches(here.labels, terms))
            best = self._roomiest(lease, ask, here if admitted and room else None, terms)
            if best is not None:
                return None if best == HERE else best
            if admitted:
                return None  # none has room: it would only wait there instead of here
            able = self._index.first(policies.least_loaded, lease.shape, terms)
            if able is not None:
                return None if possible else able[1]
        return None

    def _roomiest(
        self, lease: Lease, ask: Mapping[str, int], here: NodeView | None, terms: tuple[Term, ...]
    ) -> int | None:
        """Where it fits: the node that holds most of its arguments, of equals the emptiest, of these the first.

        Args: here: this node, if it fits here.
        Returns: a number, or HERE; None: it fits nowhere."""
        full_here = 0.0 if here is None else max(load(here, ask), PACK_UNTIL)
        if lease.holds:
            held_by: list[tuple[int, float, int, int]] = []  # bytes below zero, how full, order, number
            if here is not None and here.holds:
                held_by.append((-here.holds, full_here, 0, HERE))
            for number, size in lease.holds.items():
                node = self._index.get(number) if size > 0 else None
                full = None if node is None else policies.room(node, lease.shape)
                if node is not None and full is not None and labels.matches(node.labels, terms):
                    held_by.append((-size, full, node.order, number))
            if held_by:
                return min(held_by)[3]
        best = self._index.first(policies.room, lease.shape, terms)
        if here is not None and (best is None or full_here <= best[0]):
            return HERE
        return None if best is None else best[1]

    def has_able(self, strategy: Strategy, shape: Shape) -> bool:
        """Whether some node that the strategy allows could ever hold so much."""
        if isinstance(strategy, NodeAffinity):
            number = self._numbers.get(strategy.node_id)
            return number is not None and fits_in(self._by_number[number].row.total, shape)
        searched = strategy.alternatives if isinstance(strategy, NodeLabels) else policies.ANY
        return any(self._index.first(policies.least_loaded, shape, terms) is not None for terms in searched)

    def with_bundle(self, lease: Lease, usable: bool, room: bool) -> int | None:
        """The same for a lease that is to run in a placement group.

        Args: usable: this node has a bundle that could hold it.  room: and it is free."""
        if room or (usable and lease.hops >= self.hops_max):
            return None
        assert lease.place is not None
        having = self._with_bundles.get(lease.place.group_id, ())
        roomy = anywhere = None
        for number in sorted(having, key=self._index.order):
            for part in self._by_number[number].parts:
                if not _is_of(part, lease) or not fits_in(part.total, lease.shape):
                    continue
                if roomy is None and fits_in(part.available, lease.shape):
                    roomy = number
                anywhere = number if anywhere is None else anywhere
        return roomy if usable or roomy is not None else anywhere

    def why_nowhere(self, name: str, shape: Shape, here: NodeView) -> str:
        """That no node can ever hold it, and which one comes nearest."""
        views = [here, *(NodeView(n.row.node_id, n.row.total, {}) for n in self._by_number.values())]
        text = nearest(dict(shape), views)
        return (
            f"{name or 'a task'} can't be scheduled: none of the {len(views)} nodes can ever hold it. {text[0].upper()}"
            f"{text[1:]}. It stays queued until a node with enough of it joins; cancel it, or ask for less."
        )

    def any_room(self, shape: Shape) -> bool:
        """Whether it is worth looking for a better place at all for one of those that wait for so much."""
        return bool(self._with_bundles) or self._index.first(policies.room, shape) is not None

    def _in_turn(self, shape: Shape, possible: bool, room: bool) -> int | None:
        """SPREAD: of those with room, this node among them, the one that was chosen longest ago."""
        oldest = self._index.first(policies.longest_ago, shape)
        if oldest is None:
            able = None if possible else self._index.first(policies.fewest_wait, shape)
            return None if able is None else able[1]
        self._choices += 1
        if room and self._chose_here <= oldest[0]:
            self._chose_here = self._choices
            return None
        node = self._by_number[oldest[1]]
        node.chosen_at = self._choices
        return node.row.number  # being sent what it is chosen for, it is put into the index anew


def fits_in(available: Mapping[str, int], shape: Shape) -> bool:
    return all(available.get(name, 0) >= units for name, units in shape)


def _is_of(part: _Part, lease: Lease) -> bool:
    assert lease.place is not None
    return part.group_id == lease.place.group_id and lease.place.bundle in (-1, part.index)


def _deduct(available: Resources, shape: Shape) -> None:
    for name, units in shape:
        available[name] = available.get(name, 0) - units
