"""The bundles of placement groups that lie on this node: what each reserves, and which leases draw from it. Pure.

Owned by the local scheduler, which decides when a reservation fits and what becomes of the leases inside; the head
decides which bundles lie here. No I/O. A bundle is in exactly one of

    WAITING    its reservation stands in the local scheduler's line, and holds nothing
    PREPARED   holds resources of the node, all bundles of one reservation at once; nothing may use them yet
    COMMITTED  usable: leases draw from its own ledger, and the node's does not change
    ENDING     given back by the head, but leases inside have still to end; holds its resources until the last has
    GONE       holds nothing; no index knows it any more

The head's death changes nothing: what it reserved stays until it, or its successor, gives it back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ray._protocol.resources import Shape, describe, shape_of
from ray._scheduling.bundle_policies import total_of
from ray._scheduling.machine import InvalidTransition, Story
from ray._scheduling.node_resources import Allocation, NodeResources
from ray._scheduling.strategy import InGroup

from .leases import BUNDLES, ClassKey

if TYPE_CHECKING:
    from .leases import Lease

WAITING, PREPARED, COMMITTED, ENDING, GONE = "WAITING", "PREPARED", "COMMITTED", "ENDING", "GONE"

REMOVED_KEPT = 20_000  # ids of groups that are no more: a lease that names one of these is refused, not kept waiting


class Bundle:
    """Written by Bundles only."""

    __slots__ = ("allocation", "group_id", "index", "leases", "ledger", "shape", "state", "story")

    def __init__(self, group_id: bytes, index: int, shape: Shape) -> None:
        self.group_id = group_id
        self.index = index
        self.shape = shape
        self.state = WAITING
        self.allocation: Allocation | None = None  # of the node
        self.ledger: NodeResources | None = None  # the same, for those inside
        self.leases: dict[int, Lease] = {}  # by lease_id: those that hold something of it
        self.story = Story()

    def __repr__(self) -> str:
        return f"Bundle({self.group_id.hex()[:8]}/{self.index}, {self.state}, {dict(self.shape)}, {self.story})"


class Reservation:
    """Bundles of one group that are to be taken together; stands in the scheduler's line beside leases."""

    __slots__ = ("asked_at", "attempt", "bundles", "group_id", "job_id", "key", "name")

    def __init__(
        self, group_id: bytes, attempt: int, job_id: bytes, name: str, bundles: list[Bundle], now: float
    ) -> None:
        self.group_id = group_id
        self.attempt = attempt
        self.job_id = job_id
        self.name = name
        self.asked_at = now
        self.bundles = bundles
        parts = tuple(bundle.shape for bundle in bundles)
        self.key = ClassKey(shape_of(total_of(dict(enumerate(map(dict, parts))))), BUNDLES, parts=parts)

    @property
    def line(self) -> bytes:
        return self.job_id


class GroupHere:
    """What this node knows of one group."""

    __slots__ = ("bundles", "leases", "reservation")

    def __init__(self) -> None:
        self.bundles: dict[int, Bundle] = {}
        self.leases: dict[int, Lease] = {}  # by lease_id: all that name the group, whatever their state
        self.reservation: Reservation | None = None  # while it waits


class Bundles:
    def __init__(self, resources: NodeResources) -> None:
        self._resources = resources
        self.groups: dict[bytes, GroupHere] = {}
        self._removed: OrderedDict[bytes, str] = OrderedDict()  # group -> why

    # -- questions --------------------------------------------------------------------------------------------

    def usable(self, group_id: bytes, index: int) -> list[Bundle]:
        """The bundles from which a lease that names this place may draw; -1: any of the group's."""
        here = self.groups.get(group_id)
        if here is None:
            return []
        wanted = here.bundles.values() if index < 0 else [here.bundles[index]] if index in here.bundles else []
        return [bundle for bundle in wanted if bundle.state == COMMITTED]

    def still_ending(self, group_id: bytes, indexes: Iterable[int]) -> bool:
        """Whether one of these was given back, and leases inside have still to end."""
        here = self.groups.get(group_id)
        return here is not None and any(i in here.bundles and here.bundles[i].state == ENDING for i in indexes)

    def why_removed(self, group_id: bytes) -> str | None:
        return self._removed.get(group_id)

    def explain(self, name: str, place: InGroup, shape: Shape) -> str:
        """Why no bundle of the group could ever hold it."""
        bundles = self.usable(place.group_id, place.bundle)
        has = "; ".join(f"bundle {bundle.index} has {describe(dict(bundle.shape))}" for bundle in bundles[:8])
        return (
            f"{name or 'a task'} can't be scheduled in placement group {place.group_id.hex()}: it asks for "
            f"{describe(dict(shape))}, and {has}. It stays queued until it is cancelled or the group is removed; ask "
            "for less, or make a group with larger bundles."
        )

    # -- leases that name a group -----------------------------------------------------------------------------

    def enter(self, lease: Lease) -> None:
        assert lease.place is not None
        self._group(lease.place.group_id).leases[lease.lease_id] = lease

    def leave(self, lease: Lease, now: float) -> None:
        """It is over: what it drew comes back to its bundle, and with the last of them an ending bundle to the node."""
        assert lease.place is not None
        here = self.groups[lease.place.group_id]
        del here.leases[lease.lease_id]
        bundle, lease.bundle = lease.bundle, None
        if bundle is not None:
            assert bundle.ledger is not None and lease.allocation is not None
            bundle.ledger.give_back(lease.allocation)
            del bundle.leases[lease.lease_id]
            if bundle.state == ENDING and not bundle.leases:
                self._go(bundle, "Emptied", now)
        self._tidy(lease.place.group_id)

    def draw(self, lease: Lease, shape: Shape) -> Allocation | None:
        """What it asks, from the first bundle that has it free."""
        assert lease.place is not None
        for bundle in self.usable(lease.place.group_id, lease.place.bundle):
            assert bundle.ledger is not None
            allocation = bundle.ledger.take(shape)
            if allocation is not None:
                lease.bundle = bundle
                bundle.leases[lease.lease_id] = lease
                return allocation
        return None

    # -- what the head decides --------------------------------------------------------------------------------

    def reserve(
        self,
        group_id: bytes,
        attempt: int,
        asked: Mapping[int, Mapping[str, int]],
        job_id: bytes,
        name: str,
        now: float,
    ) -> Reservation | None:
        """Bundles that wait for room. None: said twice, or too late."""
        if group_id in self._removed:
            return None
        here = self._group(group_id)
        if here.reservation is not None or any(index in here.bundles for index in asked):
            self._tidy(group_id)
            return None
        bundles = [Bundle(group_id, index, shape_of(asked[index])) for index in sorted(asked)]
        here.bundles.update((bundle.index, bundle) for bundle in bundles)
        here.reservation = Reservation(group_id, attempt, job_id, name, bundles, now)
        return here.reservation

    def prepare(self, reservation: Reservation, allocations: Iterable[Allocation], now: float) -> None:
        self.groups[reservation.group_id].reservation = None
        for bundle, allocation in zip(reservation.bundles, allocations):
            bundle.allocation = allocation
            self._go(bundle, "Fits", now)

    def commit(self, group_id: bytes, now: float) -> list[Bundle]:
        """Those that have become usable."""
        here = self.groups.get(group_id)
        ready = [bundle for bundle in here.bundles.values() if bundle.state == PREPARED] if here else []
        for bundle in ready:
            self._go(bundle, "Committed", now)
        return ready

    def give_back(self, group_id: bytes, indexes: Iterable[int], now: float) -> tuple[Reservation | None, list[Lease]]:
        """Returns: the reservation that is to leave its line, and the leases that hold something of these bundles:
        whoever owns them ends them."""
        here = self.groups.get(group_id)
        if here is None:
            return None, []
        bundles = [here.bundles[index] for index in indexes if index in here.bundles]
        withdrawn = None
        if here.reservation is not None and any(bundle.state == WAITING for bundle in bundles):
            withdrawn, here.reservation = here.reservation, None
        for bundle in bundles:
            if bundle.state != ENDING:
                self._go(bundle, "Returned", now)
        inside = [lease for bundle in bundles for lease in bundle.leases.values()]
        self._tidy(group_id)
        return withdrawn, inside

    def forget_group(self, group_id: bytes, why: str) -> list[Lease]:
        """The group is no more. Returns: the leases that still name it."""
        self._removed[group_id] = why
        if len(self._removed) > REMOVED_KEPT:
            self._removed.popitem(last=False)
        here = self.groups.get(group_id)
        return list(here.leases.values()) if here is not None else []

    # -- steps ------------------------------------------------------------------------------------------------

    def _go(self, bundle: Bundle, event: str, now: float) -> None:
        """The one gate through which a bundle changes state."""
        step = TRANSITIONS.get((bundle.state, event))
        if step is None:
            raise InvalidTransition(f"no row for {event} in {bundle.state}: {bundle!r}")
        before = bundle.state
        bundle.state = step(self, bundle)
        bundle.story.add(now, before, event, bundle.state)

    def _hold(self, bundle: Bundle) -> str:
        assert bundle.allocation is not None
        bundle.ledger = self._resources.ledger_of(bundle.allocation)
        return PREPARED

    def _open(self, bundle: Bundle) -> str:
        return COMMITTED

    def _close(self, bundle: Bundle) -> str:
        """What runs inside still uses it; the resources of what blocks in there are lent inside, so they stay here."""
        return ENDING if bundle.leases else self._release(bundle)

    def _release(self, bundle: Bundle) -> str:
        if bundle.allocation is not None:
            self._resources.give_back(bundle.allocation)
            bundle.allocation = bundle.ledger = None
        del self.groups[bundle.group_id].bundles[bundle.index]
        return GONE

    def _group(self, group_id: bytes) -> GroupHere:
        here = self.groups.get(group_id)
        if here is None:
            here = self.groups[group_id] = GroupHere()
        return here

    def _tidy(self, group_id: bytes) -> None:
        here = self.groups.get(group_id)
        if here is not None and not here.bundles and not here.leases:
            del self.groups[group_id]

    # -- for tests --------------------------------------------------------------------------------------------

    def allocations(self) -> Iterable[Allocation]:
        """Of the node, by all bundles."""
        return [
            b.allocation for here in self.groups.values() for b in here.bundles.values() if b.allocation is not None
        ]

    def check(self) -> None:
        """Raises: AssertionError."""
        for group_id, here in self.groups.items():
            assert here.bundles or here.leases, group_id
            for lease in here.leases.values():
                assert lease.place is not None and lease.place.group_id == group_id, lease
                assert (lease.bundle is None) == (lease.allocation is None), lease
                assert lease.bundle is None or lease.bundle.leases[lease.lease_id] is lease, lease
            waiting = [bundle for bundle in here.bundles.values() if bundle.state == WAITING]
            assert waiting == (here.reservation.bundles if here.reservation is not None else []), here.bundles
            for index, bundle in here.bundles.items():
                assert bundle.index == index and bundle.group_id == group_id, bundle
                assert (bundle.ledger is None) == (bundle.state == WAITING) == (bundle.allocation is None), bundle
                assert bundle.state in (COMMITTED, ENDING) or not bundle.leases, bundle
                assert bundle.state != ENDING or bundle.leases, bundle
                assert bundle.leases.keys() <= here.leases.keys(), bundle
                if bundle.ledger is not None:
                    bundle.ledger.check(x.allocation for x in bundle.leases.values() if x.allocation is not None)


TRANSITIONS: dict[tuple[str, str], Callable[[Bundles, Bundle], str]] = {
    # The head gives it back: at any time.
    (WAITING, "Returned"): Bundles._release,
    (PREPARED, "Returned"): Bundles._release,
    (COMMITTED, "Returned"): Bundles._close,
    (ENDING, "Emptied"): Bundles._release,
    # Into use.
    (WAITING, "Fits"): Bundles._hold,
    (PREPARED, "Committed"): Bundles._open,
}
