"""Decides who may use the node's resources: leases by resource shape. Pure: `handle(event, now) -> actions`, no I/O.

Runs in the node process, on its event loop; tests run it under a virtual clock. A *lease* gives one core process (a
driver or worker; or the head, for an actor) one worker and some resources until it is returned. It is in exactly one
of

    QUEUED     waiting for resources; found in its scheduling class, in its owner's line
    STAFFING   holds resources, waits for a worker; found in `_staffing` under its ticket
    HELD       its owner has resources and worker; found in `_by_worker` and under its owner
    ENDING     its owner is gone, its worker is asked to stop; holds the resources until it has, or is really dead

If an owner dies, all its leases end; if a worker dies, its lease is lost and the owner is told. Requests of one
scheduling class (the same shape and environment) wait together; classes take turns, and inside a class the owners
take turns, so one process with a million tasks does not shut out another with one. A request that can never be met
stays queued and its owner is told why. Somebody waiting makes every other holder be asked to give back leases it has
no work for.

A large request could wait forever behind a stream of small ones: one that has waited long gets windows of time
(`_holding_back`) in which nobody else may take what it lacks. Windows, not a reservation: what it waits for may
itself need a small task to finish first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray._protocol.resources import Resources, Shape, describe, describe_one, shape_of
from ray._scheduling.machine import InvalidTransition
from ray._scheduling.node_resources import NodeResources

from . import lease_messages as lm
from .leases import ENDING, GONE, HELD, QUEUED, STAFFING, Holder, Lease, SchedulingClass


class LocalScheduler:
    """The leases of one node. Call from one thread."""

    def __init__(self, resources: NodeResources, *, starvation_s: float = 2.0, actors_starting_max: int = 8) -> None:
        self.resources = resources
        self._starvation_s = starvation_s
        self._actors_starting_max = actors_starting_max
        self._cores: dict[bytes, Holder] = {}
        self._classes: OrderedDict[ClassKey, SchedulingClass] = OrderedDict()  # feasible ones, longest unserved first
        self._infeasible: dict[int, Lease] = {}
        self._leases: dict[int, Lease] = {}
        self._staffing: dict[int, Lease] = {}
        self._by_worker: dict[int, Lease] = {}  # HELD and ENDING
        self._actors: dict[bytes, Lease] = {}
        self._actors_starting = 0
        self._wanted_told: set[bytes] = set()  # asked to give back idle leases since their last grant
        self._next_id = 1
        self._hold_until: float | None = None
        self._actions: list[Any] = []
        self.ignored = 0  # events about leases that are not, or not the sender's: late, repeated or forged

    # -- the gate ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now: float) -> list[Any]:
        """One event in, the actions it causes out, in order."""
        HANDLERS[type(event)](self, event, now)
        self._dispatch(now)
        actions, self._actions = self._actions, []
        return actions

    def deadline(self) -> float | None:
        """When to send a lm.Tick, or None: nothing depends on time alone."""
        return self._hold_until

    def _go(self, lease: Lease, event: str, now: float) -> None:
        """The one gate through which a lease changes state."""
        step = TRANSITIONS.get((lease.state, event))
        if step is None:
            raise InvalidTransition(f"no row for {event} in {lease.state}: {lease!r}")
        before = lease.state
        after = step(self, lease, now)
        lease.state = after
        lease.story.add(now, before, event, after)

    # -- events of cores --------------------------------------------------------------------------------------

    def _core_joined(self, event: lm.CoreJoined, now: float) -> None:
        assert event.tag not in self._cores, "a core joins once"
        self._cores[event.tag] = Holder(event.tag, event.job_id)

    def _core_left(self, event: lm.CoreLeft, now: float) -> None:
        core = self._cores.get(event.tag)
        if core is None:
            self.ignored += 1
            return
        for lease in [*core.requests.values(), *core.held.values()]:
            self._go(lease, "OwnerLeft", now)
        del self._cores[event.tag]
        self._wanted_told.discard(event.tag)

    def _lease_requested(self, event: lm.LeaseRequested, now: float) -> None:
        core = self._cores.get(event.tag)
        if core is None or event.req_id in core.requests:
            self.ignored += 1
            return
        lease = self._new(event.tag, event.req_id, core.job_id, shape_of(event.resources), event.name, now)
        lease.exclusive, lease.env = event.exclusive, event.env
        core.requests[event.req_id] = lease
        missing = self.resources.missing(lease.shape)
        if missing:
            lease.feasible = False
            self._infeasible[lease.lease_id] = lease
            self._actions.append(
                lm.Infeasible(event.tag, event.req_id, self._explain(lease.name, lease.shape, missing))
            )
        else:
            self._enqueue(lease)

    def _lease_cancelled(self, event: lm.LeaseCancelled, now: float) -> None:
        core = self._cores.get(event.tag)
        lease = core.requests.get(event.req_id) if core else None
        if lease is None:
            self.ignored += 1  # it crossed with the grant: the core returns that lease
            return
        self._go(lease, "Cancelled", now)

    def _lease_returned(self, event: lm.LeaseReturned, now: float) -> None:
        core = self._cores.get(event.tag)
        lease = core.held.get(event.lease_id) if core else None
        if lease is None:
            self.ignored += 1  # it crossed with lease_lost
            return
        if not event.reusable:
            lease.exclusive = True
        self._go(lease, "Returned", now)

    # -- events of the worker pool ----------------------------------------------------------------------------

    def _worker_assigned(self, event: lm.WorkerAssigned, now: float) -> None:
        lease = self._staffing.get(event.ticket)
        if lease is None:  # given up while the pool's answer was on its way
            self._actions.append(lm.ReleaseWorker(event.worker_id, True))
            return
        lease.worker_id = event.worker_id
        self._go(lease, "WorkerAssigned", now)
        gpu_ids = self.resources.gpu_ids_of(lease.allocation) if lease.allocation else []
        if lease.is_actor:
            self._actions.append(
                lm.ActorWorker(lease.tag, event.worker_id, event.worker_tag, event.worker_pid, gpu_ids)
            )
        else:
            self._wanted_told.discard(lease.tag)
            self._actions.append(
                lm.Grant(
                    lease.tag,
                    lease.req_id,
                    lease.lease_id,
                    event.worker_id,
                    event.worker_tag,
                    event.worker_pid,
                    gpu_ids,
                )
            )

    def _reclaimed(self, event: lm.Reclaimed, now: float) -> None:
        lease = self._by_worker.get(event.worker_id)
        if lease is None or lease.state != ENDING or lease.is_actor:
            self.ignored += 1
            return
        lease.exclusive = lease.exclusive or not event.reusable
        self._go(lease, "Reclaimed", now)

    def _worker_lost(self, event: lm.WorkerLost, now: float) -> None:
        lease = self._by_worker.get(event.worker_id)
        if lease is None:
            self.ignored += 1
            return
        held = lease.state == HELD
        self._go(lease, "WorkerLost", now)
        if held and lease.is_actor:
            self._actions.append(lm.ActorLost(lease.tag, event.cause))
        elif held:
            self._actions.append(lm.LeaseLost(lease.tag, lease.lease_id, event.cause))

    def _blocked(self, event: lm.Blocked, now: float) -> None:
        lease = self._by_worker.get(event.worker_id)
        if lease is None or lease.allocation is None:
            self.ignored += 1
            return
        self.resources.lend_cpu(lease.allocation)
        if lease.actor_starting:  # an __init__ that waits for others must not keep those from starting
            self._actor_start_over(lease)

    def _unblocked(self, event: lm.Unblocked, now: float) -> None:
        lease = self._by_worker.get(event.worker_id)
        if lease is None or lease.allocation is None:
            self.ignored += 1
            return
        self.resources.reclaim_cpu(lease.allocation)

    def _env_broken(self, event: lm.EnvBroken, now: float) -> None:
        """Only those that wait for a worker now: resources come back, their owners hear why."""
        for lease in list(self._staffing.values()):
            if (lease.job_id, lease.env) != (event.job_id, event.env):
                continue
            if lease.is_actor:
                self._actions.append(lm.ActorEnvBroken(lease.tag, event.cause))
            else:
                self._actions.append(lm.LeaseFailed(lease.tag, lease.req_id, event.cause))
            self._go(lease, "EnvBroken", now)

    # -- events of actors -------------------------------------------------------------------------------------

    def _actor_requested(self, event: lm.ActorRequested, now: float) -> None:
        if event.actor_id in self._actors:
            self.ignored += 1
            return
        lease = self._new(event.actor_id, 0, event.job_id, shape_of(event.resources), event.name, now)
        lease.is_actor = lease.exclusive = True
        lease.env = event.env
        self._actors[event.actor_id] = lease
        # What is needed to be placed must exist on the node, what is needed to run must be free: an actor that runs on
        # no CPU must not wait behind tasks that run for hours. Starts are throttled by actors_starting_max instead.
        placement = shape_of({**event.resources, **_at_least(event.placement_resources, event.resources)})
        missing = self.resources.missing(placement)
        if missing:
            lease.feasible = False
            self._infeasible[lease.lease_id] = lease
            self._actions.append(lm.ActorInfeasible(event.actor_id, self._explain(lease.name, placement, missing)))
        else:
            self._enqueue(lease)

    def _actor_started(self, event: lm.ActorStarted, now: float) -> None:
        lease = self._actors.get(event.actor_id)
        if lease is not None and lease.actor_starting:
            self._actor_start_over(lease)

    def _actor_released(self, event: lm.ActorReleased, now: float) -> None:
        lease = self._actors.get(event.actor_id)
        if lease is None:
            self.ignored += 1
        elif lease.state == HELD:
            self._go(lease, "Returned", now)
        elif lease.state != ENDING:
            self._go(lease, "Cancelled", now)

    def _tick(self, event: lm.Tick, now: float) -> None:
        return  # the dispatch after every event does the rest

    # -- steps: what a row of the table does ------------------------------------------------------------------

    def _staff(self, lease: Lease, now: float) -> str:
        self._staffing[lease.lease_id] = lease
        self._actions.append(lm.AcquireWorker(lease.lease_id, lease.job_id, lease.is_actor, lease.env))
        if lease.is_actor:
            lease.actor_starting = True
            self._actors_starting += 1
            self._actions.append(lm.ActorPlaced(lease.tag))
        return STAFFING

    def _hold(self, lease: Lease, now: float) -> str:
        del self._staffing[lease.lease_id]
        self._by_worker[lease.worker_id] = lease
        if not lease.is_actor:
            core = self._cores[lease.tag]
            del core.requests[lease.req_id]
            core.held[lease.lease_id] = lease
        return HELD

    def _dequeue(self, lease: Lease, now: float) -> str:
        if lease.feasible:
            key = _class_of(lease)
            self._classes[key].remove(lease)
            if not self._classes[key].lines:
                del self._classes[key]
        else:
            del self._infeasible[lease.lease_id]
        return self._forget(lease)

    def _unstaff(self, lease: Lease, now: float) -> str:
        del self._staffing[lease.lease_id]
        self._actions.append(lm.CancelAcquire(lease.lease_id))
        return self._forget(lease)

    def _give_back(self, lease: Lease, now: float) -> str:
        del self._by_worker[lease.worker_id]
        self._actions.append(lm.ReleaseWorker(lease.worker_id, not lease.exclusive))
        return self._forget(lease)

    def _lose(self, lease: Lease, now: float) -> str:
        del self._by_worker[lease.worker_id]
        return self._forget(lease)

    def _end(self, lease: Lease, now: float) -> str:
        """Its owner is gone: whatever the worker does for it has no reader. But objects that the worker made for others
        may have: it is asked to stop, and killed only if it doesn't."""
        why = "its owner, the process that submitted the task, has ended"
        if lease.is_actor:
            self._actions.append(lm.KillWorker(lease.worker_id, why))
        else:
            self._actions.append(lm.ReclaimWorker(lease.worker_id, lease.tag, why))
        return ENDING

    def _forget(self, lease: Lease) -> str:
        """The resources come back before anybody asks for them again, then no index knows the lease any more."""
        if lease.allocation is not None:
            self.resources.give_back(lease.allocation)
            lease.allocation = None
        if lease.actor_starting:
            self._actor_start_over(lease)
        if lease.is_actor:
            del self._actors[lease.tag]
        elif lease.tag in self._cores:
            self._cores[lease.tag].requests.pop(lease.req_id, None)
            self._cores[lease.tag].held.pop(lease.lease_id, None)
        del self._leases[lease.lease_id]
        return GONE

    def _actor_start_over(self, lease: Lease) -> None:
        lease.actor_starting = False
        self._actors_starting -= 1

    # -- dispatch ---------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        """Gives what is free to who waits, one lease a class in each round; then asks holders for the rest."""
        self._hold_until = None
        if not self._classes:
            self._wanted_told.clear()
            return
        starving, hold_until = self._holding_back(now)
        served = True
        while served:
            served = False
            for key in list(self._classes):
                waiting = self._classes[key]
                if waiting.actor_starts and self._actors_starting >= self._actors_starting_max:
                    continue
                if starving and key != starving[0] and any(name in starving[1] for name, _ in waiting.shape):
                    if not self.resources.lacking(waiting.shape):
                        self._hold_until = hold_until  # it would fit: look again when the window is over
                    continue
                allocation = self.resources.take(waiting.shape)
                if allocation is None:
                    continue
                lease = waiting.pop()
                lease.allocation = allocation
                self._go(lease, "Fits", now)
                served = True
                if waiting.lines:
                    self._classes.move_to_end(key)
                else:
                    del self._classes[key]
                if starving and key == starving[0]:
                    starving, hold_until = self._holding_back(now)
        self._ask_holders()

    def _holding_back(self, now: float) -> tuple[tuple[ClassKey, list[str]] | None, float]:
        """The class that may gather resources now, with what it lacks; and until when.

        A class that has waited for age a does so while a is in [s, 1.5 s), [2 s, 3 s), [4 s, 6 s), ... for
        s = starvation_s: half of the time, in ever longer stretches.
        """
        oldest, chosen = now - self._starvation_s, None
        for key, waiting in self._classes.items():
            asked_at = waiting.oldest()
            if asked_at <= oldest:
                lacking = self.resources.lacking(waiting.shape)
                if lacking:
                    oldest, chosen = asked_at, (key, lacking)
        if chosen is None:
            return None, 0.0
        start = self._starvation_s
        while start * 2 <= now - oldest:
            start *= 2
        end = oldest + start * 1.5
        return (chosen, end) if now < end else (None, 0.0)

    def _ask_holders(self) -> None:
        """LeaseWanted to every core holding what another class or another core waits for; once until its next grant."""
        if not self._classes:
            self._wanted_told.clear()
            return
        for tag, core in self._cores.items():
            if not core.held or tag in self._wanted_told:
                continue
            if any(
                self._is_wanted(lease, waiting) for lease in core.held.values() for waiting in self._classes.values()
            ):
                self._wanted_told.add(tag)
                self._actions.append(lm.LeaseWanted(tag))

    def _is_wanted(self, lease: Lease, waiting: SchedulingClass) -> bool:
        if (waiting.shape, waiting.env) == (lease.shape, lease.env) and list(waiting.lines) == [lease.tag]:
            return False  # only the holder itself waits, for more of the same: it has no idle lease, or soon uses it
        held = lease.allocation.units if lease.allocation else {}
        return any(name in held for name, _ in waiting.shape)

    def _new(self, tag: bytes, req_id: int, job_id: bytes, shape: Shape, name: str, now: float) -> Lease:
        lease = Lease(self._next_id, tag, req_id, job_id, shape, name, now)
        self._next_id += 1
        self._leases[lease.lease_id] = lease
        return lease

    def _enqueue(self, lease: Lease) -> None:
        key = _class_of(lease)
        if key not in self._classes:
            self._classes[key] = SchedulingClass(lease.shape, lease.is_actor, lease.env)
        self._classes[key].add(lease)

    def _explain(self, name: str, shape: Shape, missing: list[str]) -> str:
        ask, total = dict(shape), self.resources.total
        parts = []
        for resource in missing:
            if total.get(resource):
                parts.append(f"it asks for {describe_one(resource, ask[resource])}, "
                             f"and this node has {describe_one(resource, total[resource])} in all")  # fmt: skip
            else:
                parts.append(f"it asks for {describe_one(resource, ask[resource])}, and this node has no {resource!r}")
        return (
            f"{name or 'a task'} can't be scheduled: {'; '.join(parts)}. The node has {describe(total)}. It stays "
            "queued until a node with enough of it joins; cancel it, or ask for less."
        )

    # -- for tests, tools and error messages ------------------------------------------------------------------

    def lease_of_worker(self, worker_id: int) -> Lease | None:
        return self._by_worker.get(worker_id)

    def leases(self) -> Iterable[Lease]:
        return self._leases.values()

    def stats(self) -> dict[str, Any]:
        """Counts by state, what is queued by class, totals and free amounts (units)."""
        counts: dict[str, int] = {QUEUED: 0, STAFFING: 0, HELD: 0, ENDING: 0}
        for lease in self._leases.values():
            counts[lease.state] += 1
        return {
            "leases": counts,
            "waiting": [
                {"resources": dict(waiting.shape), "count": sum(map(len, waiting.lines.values()))}
                for waiting in self._classes.values()
            ],
            "infeasible": len(self._infeasible),
            "total": dict(self.resources.total),
            "available": dict(self.resources.available),
            "ignored": self.ignored,
        }

    def check(self) -> None:
        """Re-derives every index from the leases. Raises: AssertionError."""
        self.resources.check(lease.allocation for lease in self._leases.values() if lease.allocation)
        states: dict[str, set[int]] = {QUEUED: set(), STAFFING: set(), HELD: set(), ENDING: set()}
        for lease in self._leases.values():
            states[lease.state].add(lease.lease_id)
            assert (lease.allocation is None) == (lease.state == QUEUED), lease
            assert lease.is_actor or lease.state == ENDING or lease.tag in self._cores, lease
        queued = {lease.lease_id for c in self._classes.values() for line in c.lines.values() for lease in line}
        assert all(line for c in self._classes.values() for line in c.lines.values())
        assert all(c.lines for c in self._classes.values())
        assert not queued & self._infeasible.keys()
        assert states[QUEUED] == queued | self._infeasible.keys()
        assert states[STAFFING] == self._staffing.keys()
        assert states[HELD] | states[ENDING] == {lease.lease_id for lease in self._by_worker.values()}
        assert all(lease.worker_id == worker_id for worker_id, lease in self._by_worker.items())
        for core in self._cores.values():
            mine = [lease for lease in self._leases.values() if lease.tag == core.tag and not lease.is_actor]
            assert set(core.held) == {lease.lease_id for lease in mine if lease.state == HELD}
            assert set(core.requests) == {lease.req_id for lease in mine if lease.state in (QUEUED, STAFFING)}
        assert set(self._actors) == {lease.tag for lease in self._leases.values() if lease.is_actor}
        assert self._actors_starting == sum(lease.actor_starting for lease in self._leases.values())

    def __repr__(self) -> str:
        return f"LocalScheduler({self.stats()})"


ClassKey = tuple[Shape, bool, str]


def _class_of(lease: Lease) -> ClassKey:
    return lease.shape, lease.is_actor, lease.env


def _at_least(wanted: Mapping[str, int], floor: Mapping[str, int]) -> Resources:
    return {name: max(units, floor.get(name, 0)) for name, units in wanted.items()}


_Step = Callable[[LocalScheduler, Lease, float], str]

TRANSITIONS: dict[tuple[str, str], _Step] = {
    (QUEUED, "OwnerLeft"): LocalScheduler._dequeue,
    (QUEUED, "Cancelled"): LocalScheduler._dequeue,
    (STAFFING, "OwnerLeft"): LocalScheduler._unstaff,
    (STAFFING, "Cancelled"): LocalScheduler._unstaff,
    (STAFFING, "EnvBroken"): LocalScheduler._unstaff,
    (HELD, "WorkerLost"): LocalScheduler._lose,
    (HELD, "OwnerLeft"): LocalScheduler._end,
    (ENDING, "WorkerLost"): LocalScheduler._lose,
    (ENDING, "Reclaimed"): LocalScheduler._give_back,
    (QUEUED, "Fits"): LocalScheduler._staff,
    (STAFFING, "WorkerAssigned"): LocalScheduler._hold,
    (HELD, "Returned"): LocalScheduler._give_back,
}

HANDLERS: dict[type, Callable[[LocalScheduler, Any, float], None]] = {
    lm.CoreJoined: LocalScheduler._core_joined,
    lm.CoreLeft: LocalScheduler._core_left,
    lm.LeaseRequested: LocalScheduler._lease_requested,
    lm.LeaseCancelled: LocalScheduler._lease_cancelled,
    lm.LeaseReturned: LocalScheduler._lease_returned,
    lm.WorkerAssigned: LocalScheduler._worker_assigned,
    lm.WorkerLost: LocalScheduler._worker_lost,
    lm.EnvBroken: LocalScheduler._env_broken,
    lm.Reclaimed: LocalScheduler._reclaimed,
    lm.Blocked: LocalScheduler._blocked,
    lm.Unblocked: LocalScheduler._unblocked,
    lm.ActorRequested: LocalScheduler._actor_requested,
    lm.ActorStarted: LocalScheduler._actor_started,
    lm.ActorReleased: LocalScheduler._actor_released,
    lm.Tick: LocalScheduler._tick,
}
