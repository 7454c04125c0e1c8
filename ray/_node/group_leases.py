"""What the local scheduler does about placement groups: reserves, uses and gives back bundles.

Pure, a part of `local_scheduler.py`, whose table names these functions: the first argument of each is the scheduler,
and nobody else calls them. The bundles themselves are kept by `bundles.py`. If a group goes, what has a worker in one
of its bundles loses it, and what waits for one is refused. A worker that does nothing there at that moment lives on: it
may own what tasks outside have made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray._scheduling.node_resources import Allocation
from ray._scheduling.strategy import InGroup

from . import lease_messages as lm
from . import pending, sending_on
from .bundles import Reservation
from .leases import ENDING, EVICTED, FOR_GROUP, HELD, QUEUED, STAFFING, Lease

if TYPE_CHECKING:
    from .local_scheduler import LocalScheduler


def prepare_bundles(of: LocalScheduler, event: lm.PrepareBundles, now: float) -> None:
    if of.bundles.still_ending(event.group_id, event.bundles):  # given back by a head that has ended since
        of._actions.append(lm.BundlesRefused(event.group_id, event.attempt, dict(of.resources.available)))
        return
    reservation = of.bundles.reserve(
        event.group_id, event.attempt, event.bundles, event.job_id, event.name, now
    )  # fmt: skip
    if reservation is None:
        of.ignored += 1
    elif event.may_wait and not of.resources.missing(reservation.key.shape):
        of._lines.add(reservation)
    else:
        allocations = of.resources.take_all(reservation.key.parts)
        if allocations is None:
            of.bundles.give_back(event.group_id, event.bundles, now)
            free = dict(of.resources.available)
            of._actions.append(lm.BundlesRefused(event.group_id, event.attempt, free))
        else:
            prepared(of, reservation, allocations, now)


def prepared(of: LocalScheduler, reservation: Reservation, allocations: list[Allocation], now: float) -> None:
    of.bundles.prepare(reservation, allocations, now)
    of._actions.append(lm.BundlesPrepared(reservation.group_id, reservation.attempt))


def commit_bundles(of: LocalScheduler, event: lm.CommitBundles, now: float) -> None:
    if not of.bundles.commit(event.group_id, now):
        of.ignored += 1  # it crossed with the group's end
        return
    for lease in list(of.bundles.groups[event.group_id].leases.values()):
        if lease.lease_id in of._for_group:
            del of._for_group[lease.lease_id]
            _seek_bundle(of, lease)


def return_bundles(of: LocalScheduler, event: lm.ReturnBundles, now: float) -> None:
    withdrawn, inside = of.bundles.give_back(event.group_id, event.indexes, now)
    if withdrawn is not None:
        of._lines.remove(withdrawn)
    for lease in inside:
        _evict(of, lease, event.why, now)


def group_removed(of: LocalScheduler, event: lm.GroupRemoved, now: float) -> None:
    for lease in of.bundles.forget_group(event.group_id, event.why):
        if lease.state in (QUEUED, STAFFING):
            _refuse_removed(of, lease, event.why, now)


def enter_group(of: LocalScheduler, lease: Lease, place: InGroup, now: float) -> None:
    lease.place = place
    of.bundles.enter(lease)
    why = of.bundles.why_removed(place.group_id)
    if why is not None:
        _refuse_removed(of, lease, why, now)
    elif not (of.neighbours and not lease.is_actor and sending_on.sent_on(of, lease, now)):
        _seek_bundle(of, lease)


def _seek_bundle(of: LocalScheduler, lease: Lease) -> None:
    """Into the line for its bundle; or aside, until there is one, or since none could hold it."""
    assert lease.place is not None
    usable = of.bundles.usable(lease.place.group_id, lease.place.bundle)
    if not usable:
        lease.waits = FOR_GROUP
        of._for_group[lease.lease_id] = lease
    elif all(bundle.ledger is not None and bundle.ledger.missing(lease.shape) for bundle in usable):
        of._set_aside(lease, of.bundles.explain(lease.name, lease.place, lease.shape))
    else:
        of._lines.add(lease)


def _refuse_removed(of: LocalScheduler, lease: Lease, why: str, now: float) -> None:
    text = pending.group_removed(lease, why)
    if lease.is_actor:
        of._actions.append(lm.ActorRefused(lease.tag, lm.GROUP_REMOVED, text))
    else:
        of._actions.append(lm.LeaseRefused(lease.tag, lease.req_id, lm.GROUP_REMOVED, text))
    of._go(lease, "Refused", now)


def _evict(of: LocalScheduler, lease: Lease, why: str, now: float) -> None:
    """Its bundle is given back: what has a worker loses it, what has none yet is refused."""
    if lease.state == STAFFING:
        _refuse_removed(of, lease, why, now)
    elif lease.state == HELD:
        lease.why = f"the placement group that it ran in is gone: {why}"
        of._go(lease, "Evicted", now)


# -- a lease whose bundle is gone: steps of the scheduler's table


def evicted(of: LocalScheduler, lease: Lease, now: float) -> str:
    """Only its owner knows whether anything runs there, or is on its way."""
    if lease.is_actor:
        of._actions.append(lm.KillWorker(lease.worker_id, lease.why))
        return ENDING
    of._actions.append(lm.LeaseEvicted(lease.tag, lease.lease_id, lease.worker_id, lease.why))
    return EVICTED


def given_back(of: LocalScheduler, lease: Lease, now: float) -> str:
    of._actions.append(lm.EvictionOver(lease.worker_id))
    return of._give_back(lease, now)


def lease_busy(of: LocalScheduler, event: lm.LeaseBusy, now: float) -> None:
    core = of._cores.get(event.tag)
    lease = core.held.get(event.lease_id) if core else None
    if lease is None or lease.state != EVICTED:
        of.ignored += 1
    else:
        of._go(lease, "Busy", now)


def ended_with_its_worker(of: LocalScheduler, lease: Lease, now: float) -> str:
    del of._cores[lease.tag].held[lease.lease_id]
    of._actions.append(lm.LeaseLost(lease.tag, lease.lease_id, lease.why))
    of._actions.append(lm.KillWorker(lease.worker_id, lease.why))
    return ENDING
