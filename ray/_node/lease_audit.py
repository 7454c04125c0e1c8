"""Whether the local scheduler's indexes say what its leases say: re-derived from the leases, for tests. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bundles import Reservation
from .leases import ENDING, EVICTED, HELD, QUEUED, STAFFING, Lease

if TYPE_CHECKING:
    from .local_scheduler import LocalScheduler


def audit(of: LocalScheduler) -> None:
    """Raises: AssertionError."""
    drawn = [lease.allocation for lease in of._leases.values() if lease.allocation and lease.bundle is None]
    of.resources.check([*drawn, *of.bundles.allocations()])
    of.bundles.check()
    states: dict[str, set[int]] = {state: set() for state in (QUEUED, STAFFING, HELD, EVICTED, ENDING)}
    for lease in of._leases.values():
        states[lease.state].add(lease.lease_id)
        assert (lease.allocation is None) == (lease.state == QUEUED), lease
        assert lease.is_actor or lease.state == ENDING or lease.tag in of._cores, lease
    in_lines = [waiter for c in of._lines.classes.values() for line in c.lines() for waiter in line]
    queued = {waiter.lease_id for waiter in in_lines if isinstance(waiter, Lease)}
    reservations = {id(waiter) for waiter in in_lines if isinstance(waiter, Reservation)}
    here = of.bundles.groups.values()
    assert reservations == {id(group.reservation) for group in here if group.reservation is not None}
    of._lines.check()
    assert not queued & of._infeasible.keys() and not queued & of._for_group.keys()
    assert states[QUEUED] == queued | of._infeasible.keys() | of._for_group.keys()
    named = {lease.lease_id for lease in of._leases.values() if lease.place is not None}
    assert named == {lease_id for group in here for lease_id in group.leases}
    assert states[STAFFING] == of._staffing.keys()
    with_worker = {lease.lease_id for lease in of._by_worker.values()}
    assert states[HELD] | states[EVICTED] | states[ENDING] == with_worker
    assert all(lease.worker_id == worker_id for worker_id, lease in of._by_worker.items())
    for core in of._cores.values():
        mine = [lease for lease in of._leases.values() if lease.tag == core.tag and not lease.is_actor]
        assert set(core.held) == {lease.lease_id for lease in mine if lease.state in (HELD, EVICTED)}
        assert set(core.requests) == {lease.req_id for lease in mine if lease.state in (QUEUED, STAFFING)}
    assert set(of._actors) == {lease.tag for lease in of._leases.values() if lease.is_actor}
    assert of._actors_starting == sum(lease.actor_starting for lease in of._leases.values())
