"""What the local scheduler does about actors: the head asks for a worker of each, once, and gives it back.

Pure, a part of `local_scheduler.py`, as `group_leases.py` is: the first argument of each is the scheduler. An actor
waits like a task, but few begin at a time: each costs a process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray._protocol.resources import Resources, shape_of

from . import group_leases
from . import lease_messages as lm
from .leases import ENDING, HELD, Lease

if TYPE_CHECKING:
    from .local_scheduler import LocalScheduler


def requested(of: LocalScheduler, event: lm.ActorRequested, now: float) -> None:
    if event.actor_id in of._actors:
        of.ignored += 1
        return
    lease = of._new(event.actor_id, 0, event.job_id, shape_of(event.resources), event.name, now)
    lease.is_actor = lease.exclusive = True
    lease.env, lease.retriable = event.env, event.retriable
    of._actors[event.actor_id] = lease
    if event.place is not None:
        group_leases.enter_group(of, lease, event.place, now)
        return
    # What is needed to be placed must exist on the node, what is needed to run must be free: an actor that runs on
    # no CPU must not wait behind tasks that run for hours. Starts are throttled by actors_starting_max instead.
    placement = shape_of({**event.resources, **_at_least(event.placement_resources, event.resources)})
    of._enqueue_or_set_aside(lease, placement)


def started(of: LocalScheduler, event: lm.ActorStarted, now: float) -> None:
    lease = of._actors.get(event.actor_id)
    if lease is not None and lease.actor_starting:
        start_over(of, lease)


def released(of: LocalScheduler, event: lm.ActorReleased, now: float) -> None:
    lease = of._actors.get(event.actor_id)
    if lease is None:
        of.ignored += 1
    elif lease.state == HELD:
        of._go(lease, "Returned", now)
    elif lease.state != ENDING:
        of._go(lease, "Cancelled", now)


def start_over(of: LocalScheduler, lease: Lease) -> None:
    lease.actor_starting = False
    of._actors_starting -= 1


def _at_least(wanted: Mapping[str, int], floor: Mapping[str, int]) -> Resources:
    return {name: max(units, floor.get(name, 0)) for name, units in wanted.items()}
