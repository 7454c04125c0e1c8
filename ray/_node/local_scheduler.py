"""Decides who may use the node's resources: leases by resource shape. Pure: `handle(event, now) -> actions`, no I/O.

Runs in the node process, on its event loop; tests run it under a virtual clock. A *lease* gives one core process (a
driver or worker; or the head, for an actor) one worker and some resources until it is returned. It is in exactly one
of

    QUEUED     waiting for resources; found in its scheduling class, in its owner's line
    STAFFING   holds resources, waits for a worker; found in `_staffing` under its ticket
    HELD       its owner has resources and worker; found in `_by_worker` and under its owner
    EVICTED    its placement group is gone, and its owner asked whether anything runs there: then it is killed
    ENDING     its owner is gone, its worker is asked to stop; holds the resources until it has, or is really dead

If an owner dies, all its leases end; if a worker dies, its lease is lost and the owner is told. Requests of one
scheduling class (the same shape, environment and priority) wait together; the highest priority comes first, classes of
the same take turns, inside a class the jobs, and inside a job the owners (`lines.py`), so one process with a million
tasks does not shut out another with one, nor a job of a hundred processes one that has a single driver. A request that
can never be met stays queued and its owner is told why. Somebody waiting makes every other holder be asked to give back
leases it has no work for.

A lease may name a placement group: then it draws from one of the group's bundles here (`bundles.py`), waits until there
is one, and ends with the group. A reservation of bundles stands in line like a lease, but takes what it needs only when
it can take all of it.

On a cluster a request may also be sent on to another node (`sending_on.py`): when it comes, if another should run it,
and whenever a view of the others shows that one of them can. Its owner is told which, and asks there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray._protocol.resources import Shape, shape_of
from ray._scheduling.machine import InvalidTransition
from ray._scheduling.node_resources import NodeResources
from ray._scheduling.strategy import InGroup

from . import actor_leases, group_leases, pending, sending_on
from . import lease_messages as lm
from .bundles import Bundles, Reservation
from .leases import (
    ACTOR,
    BUNDLES,
    ENDING,
    EVICTED,
    FOR_GROUP,
    GONE,
    HELD,
    IN_LINE,
    INFEASIBLE,
    QUEUED,
    STAFFING,
    TASK,
    ClassKey,
    Holder,
    Lease,
    SchedulingClass,
)
from .lines import Lines
from .spillback import Neighbours


class LocalScheduler:
    """The leases of one node. Call from one thread."""

    def __init__(
        self,
        resources: NodeResources,
        *,
        starvation_s: float = 2.0,
        stuck_after_s: float = 10.0,
        actors_starting_max: int = 8,
        node_id: bytes = b"",
        labels: Mapping[str, str] | None = None,
        spill_hops_max: int = 4,
    ) -> None:
        self.resources = resources
        self.bundles = Bundles(resources)
        self.node_id = node_id
        self.labels = dict(labels or {})
        self.neighbours = Neighbours(node_id, spill_hops_max)
        self._actors_starting_max = actors_starting_max
        self._cores: dict[bytes, Holder] = {}
        self._stuck_after_s = stuck_after_s
        self._look_at: float | None = None  # for those that wait for what nobody will give up; None: nobody waits
        self._told_stuck: set[ClassKey] = set()
        self._lines = Lines(resources, self.bundles, starvation_s)
        self._infeasible: dict[int, Lease] = {}
        self._for_group: dict[int, Lease] = {}  # wait for a bundle of theirs to be placed
        self._leases: dict[int, Lease] = {}
        self._staffing: dict[int, Lease] = {}
        self._by_worker: dict[int, Lease] = {}  # HELD, EVICTED and ENDING
        self._actors: dict[bytes, Lease] = {}
        self._actors_starting = 0
        self._wanted_told: set[bytes] = set()  # asked to give back idle leases since their last grant
        self._short_of_memory = False
        self._next_id = 1
        self._actions: list[Any] = []
        self.ignored = 0  # events about leases that are not, or not the sender's: late, repeated or forged

    # -- the gate ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now: float) -> list[Any]:
        """One event in, the actions it causes out, in order."""
        HANDLERS[type(event)](self, event, now)
        self._dispatch(now)
        if self.neighbours.looking(now):
            sending_on.look_elsewhere(self, now)
        self._look_for_stuck(now)
        actions, self._actions = self._actions, []
        return actions

    def deadline(self) -> float | None:
        """When to send a lm.Tick, or None: nothing depends on time alone."""
        times = (self._lines.hold_until, self._look_at, self.neighbours.look_at)
        return min((at for at in times if at is not None), default=None)

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
        lease.exclusive, lease.env, lease.priority = event.exclusive, event.env, event.priority
        lease.strategy, lease.hops, lease.holds = event.strategy, event.hops, event.holds
        lease.retriable = event.retriable
        core.requests[event.req_id] = lease
        if isinstance(event.strategy, InGroup):
            group_leases.enter_group(self, lease, event.strategy, now)
            return
        if self.neighbours and sending_on.sent_on(self, lease, now):
            return
        refusal = sending_on.not_this_node(self, event.strategy, lease.name)
        if refusal and self.neighbours.has_able(event.strategy, lease.shape):
            self._wait_aside(lease, refusal[1])  # it has been sent about too often to be sent on at once
        elif refusal and refusal[0]:
            self._actions.append(lm.LeaseRefused(event.tag, event.req_id, lm.UNSCHEDULABLE, refusal[1]))
            self._go(lease, "Refused", now)
        elif refusal:
            self._set_aside(lease, refusal[1])
        else:
            self._enqueue_or_set_aside(lease, lease.shape)

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
        lease.worker_id, lease.pid = event.worker_id, event.worker_pid
        self._go(lease, "WorkerAssigned", now)
        gpu_ids = self._ledger(lease).gpu_ids_of(lease.allocation) if lease.allocation else []
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

    def _holder_cut_off(self, event: lm.HolderCutOff, now: float) -> None:
        lease = self._by_worker.get(event.worker_id)
        if lease is None or lease.tag != event.tag or lease.state not in (HELD, EVICTED):
            self.ignored += 1  # it has been given back
            return
        del self._cores[lease.tag].held[lease.lease_id]
        self._actions.append(lm.LeaseLost(lease.tag, lease.lease_id, "its holder lost the connection to the worker"))
        self._go(lease, "CutOff", now)

    def _worker_lost(self, event: lm.WorkerLost, now: float) -> None:
        lease = self._by_worker.get(event.worker_id)
        if lease is None:
            self.ignored += 1
            return
        held = lease.state in (HELD, EVICTED)
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
        lease.blocked = True
        self._ledger(lease).lend_cpu(lease.allocation)
        if lease.actor_starting:  # an __init__ that waits for others must not keep those from starting
            actor_leases.start_over(self, lease)

    def _unblocked(self, event: lm.Unblocked, now: float) -> None:
        lease = self._by_worker.get(event.worker_id)
        if lease is None or lease.allocation is None:
            self.ignored += 1
            return
        lease.blocked = False
        self._ledger(lease).reclaim_cpu(lease.allocation)

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

    # -- memory and time --------------------------------------------------------------------------------------

    def _short(self, event: lm.ShortOfMemory, now: float) -> None:
        self._short_of_memory = event.short

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
        lease.granted_at = now
        if not lease.is_actor:
            core = self._cores[lease.tag]
            del core.requests[lease.req_id]
            core.held[lease.lease_id] = lease
        return HELD

    def _dequeue(self, lease: Lease, now: float) -> str:
        if lease.waits == IN_LINE:
            self._lines.remove(lease)
        elif lease.waits == INFEASIBLE:
            del self._infeasible[lease.lease_id]
        elif lease.waits == FOR_GROUP:
            del self._for_group[lease.lease_id]
        return self._forget(lease, now)

    def _unstaff(self, lease: Lease, now: float) -> str:
        del self._staffing[lease.lease_id]
        self._actions.append(lm.CancelAcquire(lease.lease_id))
        return self._forget(lease, now)

    def _give_back(self, lease: Lease, now: float) -> str:
        del self._by_worker[lease.worker_id]
        self._actions.append(lm.ReleaseWorker(lease.worker_id, not lease.exclusive))
        return self._forget(lease, now)

    def _lose(self, lease: Lease, now: float) -> str:
        del self._by_worker[lease.worker_id]
        return self._forget(lease, now)

    def _end(self, lease: Lease, now: float) -> str:
        """Its owner is gone: whatever the worker does for it has no reader. But objects that the worker made for others
        may have: it is asked to stop, and killed only if it doesn't."""
        why = "its owner, the process that submitted the task, has ended"
        if lease.is_actor:
            self._actions.append(lm.KillWorker(lease.worker_id, why))
        else:
            self._actions.append(lm.ReclaimWorker(lease.worker_id, lease.tag, why))
        return ENDING

    def _forget(self, lease: Lease, now: float) -> str:
        """The resources come back before anybody asks for them again, then no index knows the lease any more."""
        if lease.place is not None:
            self.bundles.leave(lease, now)
            lease.allocation = None
        elif lease.allocation is not None:
            self.resources.give_back(lease.allocation)
            lease.allocation = None
        if lease.actor_starting:
            actor_leases.start_over(self, lease)
        if lease.is_actor:
            del self._actors[lease.tag]
        elif lease.tag in self._cores:
            self._cores[lease.tag].requests.pop(lease.req_id, None)
            self._cores[lease.tag].held.pop(lease.lease_id, None)
        del self._leases[lease.lease_id]
        return GONE

    # -- dispatch ---------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        """Gives what is free to who waits; then asks holders for the rest."""
        self._lines.serve(now, self._may_start, self._serve)
        self._ask_holders()

    def _may_start(self, key: ClassKey) -> bool:
        if self._short_of_memory and key.kind == TASK and self._some_task_goes_on():
            return False
        return key.kind != ACTOR or self._actors_starting < self._actors_starting_max

    def _some_task_goes_on(self) -> bool:
        """Something will end by itself and free memory. Without any, one is started however little there is: what
        waits must not depend on what others on this machine do, nor the blocked on what is not started."""
        return bool(self._staffing) or any(not (one.is_actor or one.blocked) for one in self._by_worker.values())

    def _serve(self, waiting: SchedulingClass, now: float) -> bool:
        """Gives the first of a class what it waits for; False: there is no room."""
        if waiting.key.kind == BUNDLES:
            allocations = self.resources.take_all(waiting.key.parts)
            if allocations is None:
                return False
            reservation = waiting.pop()
            assert isinstance(reservation, Reservation)
            group_leases.prepared(self, reservation, allocations, now)
            return True
        lease = waiting.first()
        assert isinstance(lease, Lease)
        allocation = self.resources.take(lease.shape) if lease.place is None else self.bundles.draw(lease, lease.shape)
        if allocation is None:
            return False
        waiting.pop()
        lease.allocation = allocation
        self._go(lease, "Fits", now)
        return True

    def _look_for_stuck(self, now: float) -> None:
        """Says once of each class that it waits for what no running task will free. Looked at now and then, while
        anybody waits, and not at each event: it means to go through all leases."""
        classes = self._lines.classes
        if not classes:
            self._look_at = None
            self._told_stuck.clear()
        elif self._look_at is None:
            self._look_at = now + self._stuck_after_s
        elif now >= self._look_at:
            self._look_at = now + self._stuck_after_s
            self._told_stuck &= classes.keys()
            for key, waiting in classes.items():
                if key not in self._told_stuck and now - waiting.oldest() >= self._stuck_after_s:
                    text = pending.stuck(self, waiting, now)
                    if text:
                        self._told_stuck.add(key)
                        self._actions.append(lm.Stuck(waiting.first().job_id, text))

    def _ask_holders(self) -> None:
        """LeaseWanted to every core holding what another class or another core waits for; once until its next grant."""
        if not self._lines.classes:
            self._wanted_told.clear()
            return
        for tag, core in self._cores.items():
            if not core.held or tag in self._wanted_told:
                continue
            if any(self._lines.want(lease) for lease in core.held.values()):
                self._wanted_told.add(tag)
                self._actions.append(lm.LeaseWanted(tag))

    def _new(self, tag: bytes, req_id: int, job_id: bytes, shape: Shape, name: str, now: float) -> Lease:
        lease = Lease(self._next_id, tag, req_id, job_id, shape, name, now)
        self._next_id += 1
        self._leases[lease.lease_id] = lease
        return lease

    def _enqueue_or_set_aside(self, lease: Lease, needed: Shape) -> None:
        missing = self.resources.missing(needed)
        if missing and self.neighbours and not lease.is_actor:
            self._set_aside(
                lease, self.neighbours.why_nowhere(lease.name, needed, sending_on.as_seen(self, taken=False))
            )
        elif missing:
            self._set_aside(lease, pending.infeasible(lease.name, needed, missing, self.resources.total))
        else:
            self._lines.add(lease)

    def _set_aside(self, lease: Lease, why: str) -> None:
        """It can never be met as things are: it stays queued, in nobody's way, and its owner is told."""
        self._wait_aside(lease, why)
        self._say_infeasible(lease)

    def _say_infeasible(self, lease: Lease) -> None:
        lease.told_infeasible = True
        if lease.is_actor:
            self._actions.append(lm.ActorInfeasible(lease.tag, lease.why))
        else:
            self._actions.append(lm.Infeasible(lease.tag, lease.req_id, lease.why))

    def _wait_aside(self, lease: Lease, why: str) -> None:
        lease.waits, lease.why = INFEASIBLE, why
        self._infeasible[lease.lease_id] = lease

    def _ledger(self, lease: Lease) -> NodeResources:
        """From which its allocation is."""
        if lease.bundle is None:
            return self.resources
        assert lease.bundle.ledger is not None
        return lease.bundle.ledger

    # -- for tests, tools and error messages ------------------------------------------------------------------

    @property
    def runs_something(self) -> bool:
        """Whether any worker is lent."""
        return bool(self._by_worker)

    def lease_of_worker(self, worker_id: int) -> Lease | None:
        return self._by_worker.get(worker_id)

    def why_pending(self, now: float) -> list[dict[str, Any]]:
        """What waits here, and why: see `pending.waiting`."""
        return pending.waiting(self, now)

    @property
    def classes(self) -> Iterable[SchedulingClass]:
        return self._lines.classes.values()

    @property
    def waiting(self) -> bool:
        """Whether anything is queued here, in a line or aside."""
        return bool(self._lines.classes or self._infeasible or self._for_group)

    def leases(self) -> Iterable[Lease]:
        return self._leases.values()

    def stats(self) -> dict[str, Any]:
        """Counts by state, what is queued by class, totals and free amounts (units)."""
        counts: dict[str, int] = {QUEUED: 0, STAFFING: 0, HELD: 0, EVICTED: 0, ENDING: 0}
        for lease in self._leases.values():
            counts[lease.state] += 1
        return {
            "leases": counts,
            "waiting": [
                {"resources": dict(waiting.shape), "count": waiting.count(), "kind": waiting.key.kind}
                for waiting in self._lines.classes.values()
            ],
            "infeasible": len(self._infeasible),
            "short_of_memory": self._short_of_memory,
            "waiting_for_group": len(self._for_group),
            "bundles": sum(len(here.bundles) for here in self.bundles.groups.values()),
            "total": dict(self.resources.total),
            "available": dict(self.resources.available),
            "ignored": self.ignored,
        }

    def check(self) -> None:
        """Re-derives every index from the leases. Raises: AssertionError."""
        from .lease_audit import audit

        audit(self)

    def __repr__(self) -> str:
        return f"LocalScheduler({self.stats()})"


_Step = Callable[[LocalScheduler, Lease, float], str]

TRANSITIONS: dict[tuple[str, str], _Step] = {
    (QUEUED, "OwnerLeft"): LocalScheduler._dequeue,
    (QUEUED, "Cancelled"): LocalScheduler._dequeue,
    (QUEUED, "Refused"): LocalScheduler._dequeue,
    (QUEUED, "Spilled"): LocalScheduler._dequeue,  # its owner asks elsewhere
    (STAFFING, "OwnerLeft"): LocalScheduler._unstaff,
    (STAFFING, "Cancelled"): LocalScheduler._unstaff,
    (STAFFING, "EnvBroken"): LocalScheduler._unstaff,
    (STAFFING, "Refused"): LocalScheduler._unstaff,
    (HELD, "WorkerLost"): LocalScheduler._lose,
    (HELD, "OwnerLeft"): LocalScheduler._end,
    (HELD, "CutOff"): LocalScheduler._end,  # to its owner the worker is dead: it asks for another
    (HELD, "Evicted"): group_leases.evicted,
    (EVICTED, "Returned"): group_leases.given_back,
    (EVICTED, "Busy"): group_leases.ended_with_its_worker,
    (EVICTED, "WorkerLost"): LocalScheduler._lose,
    (EVICTED, "OwnerLeft"): LocalScheduler._end,
    (EVICTED, "CutOff"): LocalScheduler._end,
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
    lm.LeaseBusy: group_leases.lease_busy,
    lm.WorkerAssigned: LocalScheduler._worker_assigned,
    lm.WorkerLost: LocalScheduler._worker_lost,
    lm.EnvBroken: LocalScheduler._env_broken,
    lm.Reclaimed: LocalScheduler._reclaimed,
    lm.HolderCutOff: LocalScheduler._holder_cut_off,
    lm.Blocked: LocalScheduler._blocked,
    lm.Unblocked: LocalScheduler._unblocked,
    lm.ActorRequested: actor_leases.requested,
    lm.ActorStarted: actor_leases.started,
    lm.ActorReleased: actor_leases.released,
    lm.PrepareBundles: group_leases.prepare_bundles,
    lm.CommitBundles: group_leases.commit_bundles,
    lm.ReturnBundles: group_leases.return_bundles,
    lm.GroupRemoved: group_leases.group_removed,
    lm.View: sending_on.viewed,
    lm.ShortOfMemory: LocalScheduler._short,
    lm.Tick: LocalScheduler._tick,
}
