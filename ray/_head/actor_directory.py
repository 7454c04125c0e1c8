"""Which actors there are, where each runs, and what becomes of it when something dies. Pure.

Runs in the head (on one machine: in the node process), on its loop's thread: `handle(event, now) -> actions`, no I/O,
no clock. An actor is in exactly one of

    PENDING_PLACEMENT  waits for resources; nothing runs
    PENDING_CREATION   has resources; once it has a worker, that worker is told to become the actor and runs __init__
    ALIVE              __init__ is over, calls are taken; its worker is found in `_by_worker`
    RESTARTING         its worker died and it may come back; waits for resources as in PENDING_PLACEMENT
    DEAD               for ever, with its cause; in `_dead`, oldest forgotten first. A worker that has still to die
                       stays in `_by_worker` until it has, and only then are the resources released

What a core sees of this is coarser: PENDING, ALIVE, RESTARTING, DEAD. If its worker dies, an actor is started again up
to `max_restarts` times (-1: always) as a new *incarnation*; if its owner dies, it dies too, unless it is detached; an
exception in __init__, `exit_actor`, `ray.kill` and the last handle's end are final. A name is its actor's, within its
namespace, until the actor is DEAD. Events from an earlier incarnation's worker are late, not wrong: they are counted
and dropped.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union

from ray._control.rows import ActorRow
from ray._head.actor_messages import (
    Action,
    AskToExit,
    Assigned,
    Become,
    CancelPlacement,
    CoreGone,
    Created,
    DropName,
    DropRow,
    EnvFailed,
    Event,
    Exiting,
    ExpectExit,
    InitFailed,
    JobEnded,
    Kill,
    KillWorker,
    NodeDied,
    OutOfScope,
    OwnerDied,
    Place,
    Placed,
    PlacementLost,
    Publish,
    Ready,
    Release,
    SaveCreation,
    SaveName,
    SaveRow,
    Subscribe,
    Unplaceable,
    Unsubscribe,
    WorkerDied,
    WorkerStarted,
)
from ray._head.actor_record import (
    ALIVE,
    DEAD,
    PENDING_CREATION,
    PENDING_PLACEMENT,
    RESTARTING,
    STATES,
    Actor,
)
from ray._protocol.frames import RUNTIME_ENV_FAILED
from ray._protocol.ids import node_number
from ray._scheduling.machine import InvalidTransition

DEAD_KEPT = 2048  # dead actors that are remembered with their cause; a later question hears that it is long dead
EARLY_KEPT = 1000  # kills of actors that are not known; the oldest is dropped first
PLACEMENTS_LOST_MAX = 10  # in a row, before an actor is given up: its workers die before they could be told anything

LONG_DEAD = "the actor is not known (any more): it died long ago, or its job has ended"


Result = list[Action]
Claims = Mapping[bytes, Mapping[bytes, int]]  # actor -> nodes that have, or look for, a place for it -> incarnation
Step = Union[tuple[str, Result], None]  # the next state and what to do; None: nothing changes, nothing to do


class ActorDirectory:
    """All actors of a cluster. `handle` is the only way in; what it returns is to be carried out in order."""

    def __init__(self) -> None:
        self.late = 0  # events about actors or workers that are no more
        self._actors: dict[bytes, Actor] = {}
        self._by_worker: dict[bytes, bytes] = {}
        self._by_name: dict[tuple[str, str], bytes] = {}
        self._by_owner: dict[bytes, set[bytes]] = {}  # of actors that are not DEAD and not detached
        self._by_subscriber: dict[bytes, set[bytes]] = {}
        self._dead: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        # Kills that have overtaken the creation, which another process sent over a connection of its own.
        self._early: collections.OrderedDict[bytes, Kill] = collections.OrderedDict()

    # -- questions ----------------------------------------------------------------------------------------------------

    def get(self, actor_id: bytes) -> Actor | None:
        return self._actors.get(actor_id)

    def named(self, name: str, namespace: str) -> Actor | None:
        """The living actor of that name."""
        actor_id = self._by_name.get((namespace, name))
        return None if actor_id is None else self._actors[actor_id]

    def names(self) -> list[tuple[str, str]]:
        """(namespace, name) of the living actors that have one, oldest first."""
        return list(self._by_name)

    def of_worker(self, worker_tag: bytes) -> Actor | None:
        actor_id = self._by_worker.get(worker_tag)
        return None if actor_id is None else self._actors[actor_id]

    def cores_of_node(self, number: int) -> list[bytes]:
        """Tags, in order, of processes of that node that own actors or follow what becomes of some."""
        return sorted(tag for tag in {*self._by_owner, *self._by_subscriber} if node_number(tag) == number)

    def all(self) -> list[Actor]:
        return list(self._actors.values())

    def name_refusal(self, spec: Mapping[str, Any]) -> str | None:
        """Why this spec's name cannot be had, or None."""
        holder = self.named(spec.get("name") or "", spec.get("namespace") or "")
        if holder is None:
            return None
        return (
            f"the name {holder.name!r} is taken in namespace {holder.namespace!r} by actor {holder.actor_id.hex()} of "
            f"class {holder.spec.get('class_name', '?')}, which is {holder.public_state()[0]}. "
            f"ray.get_actor({holder.name!r}) gives a handle to it; "
            "ray.kill ends it; or choose another name or namespace"
        )

    # -- events in ----------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Raises: InvalidTransition: a bug of the head's own, never something that a peer did."""
        if isinstance(event, Created):
            return self._created(event, now)
        if isinstance(event, CoreGone):
            return self._core_gone(event, now)
        if isinstance(event, NodeDied):
            return self._node_died(event, now)
        if isinstance(event, JobEnded):
            return self._job_ended(event, now)
        if isinstance(event, WorkerDied):
            actor = self.of_worker(event.worker_tag)
            return self._step(actor, event, now) if actor is not None else []  # most workers are no actors
        actor = self._actors.get(event.actor_id)
        if actor is None:
            self.late += 1
            if isinstance(event, Subscribe):
                return [Publish(event.core_tag, event.actor_id, "DEAD", b"", 0, LONG_DEAD)]
            if isinstance(event, WorkerStarted):
                return [KillWorker(event.worker_tag, LONG_DEAD)]
            if isinstance(event, Kill) and event.no_restart:
                self._early[event.actor_id] = event
                if len(self._early) > EARLY_KEPT:
                    self._early.popitem(last=False)
            return []
        if isinstance(event, (Placed, WorkerStarted)) and event.incarnation not in (None, actor.incarnation):
            self.late += 1  # told again by a node to a head that knows more
            late = "it was started for the actor before that was restarted"
            return [KillWorker(event.worker_tag, late)] if isinstance(event, WorkerStarted) else []
        if isinstance(event, (Ready, InitFailed, Exiting)) and event.worker_tag != actor.worker_tag:
            self.late += 1  # from an earlier incarnation, or from a process that has no say in this actor
            return []
        return self._step(actor, event, now)

    def _step(self, actor: Actor, event: Any, now: float) -> list[Action]:
        """The one gate: looks the row up, lets it act, changes the state, keeps story and indexes, tells
        subscribers."""
        before = actor.state
        row = TRANSITIONS.get((before, type(event)))
        if row is None:
            raise InvalidTransition(f"no row for {event!r} in {before}: {actor!r}; its story: {actor.story}")
        step = row(self, actor, event, now)
        if step is None:
            return []
        after, actions = step
        actor.state = after
        actor.story.add(now, before, type(event).__name__, after)
        if after == DEAD and before != DEAD:
            actions = self._buried(actor, now) + actions
        public = actor.public_state()
        if public != actor.published:
            actor.published = public
            state, worker_tag, incarnation = public
            news = [
                Publish(tag, actor.actor_id, state, worker_tag, incarnation, actor.cause) for tag in actor.subscribers
            ]
            actions = [*actions, *news]
        if after == DEAD:
            self._unsubscribe_all(actor)  # nothing more will be said of it
        if isinstance(event, Subscribe):
            return actions
        return [SaveRow(actor.row()), *actions]

    # -- events about more than one actor -----------------------------------------------------------------------------

    def _created(self, event: Created, now: float) -> list[Action]:
        if event.actor_id in self._actors:
            self.late += 1  # a repetition
            return []
        actor = Actor(event, now)
        refusal = self.name_refusal(event.spec)
        self._actors[actor.actor_id] = actor
        if event.owner_tag:
            self._subscribe(actor, event.owner_tag)
        early = self._early.pop(actor.actor_id, None)
        if refusal is not None or early is not None:
            actor.spec["name"] = ""  # it never had it
            return self._step(actor, early or Kill(actor.actor_id, True, refusal or ""), now)
        if not actor.detached:
            self._by_owner.setdefault(event.owner_tag, set()).add(actor.actor_id)
        actions: list[Action] = [SaveRow(actor.row()), SaveCreation(actor.row(), actor.creation)]
        if actor.name:
            self._by_name[actor.namespace, actor.name] = actor.actor_id
            actions.append(SaveName(actor.namespace, actor.name, actor.actor_id))
        actor.story.add(now, "-", "Created", actor.state)
        return [*actions, self._place(actor)]

    def _core_gone(self, event: CoreGone, now: float) -> list[Action]:
        for actor_id in self._by_subscriber.pop(event.core_tag, ()):
            self._actors[actor_id].subscribers.pop(event.core_tag, None)
        owned = sorted(self._by_owner.get(event.core_tag, ()))
        return [
            action
            for actor_id in owned
            for action in self._step(self._actors[actor_id], OwnerDied(actor_id, event.cause), now)
        ]

    def _node_died(self, event: NodeDied, now: float) -> list[Action]:
        actions: list[Action] = []
        for actor in [a for a in self._actors.values() if event.node_id in (a.node_id, a.asked_node_id)]:
            if actor.worker_tag:
                actions += self._step(actor, WorkerDied(actor.worker_tag, event.cause), now)
            elif actor.state != DEAD:
                actions += self._step(actor, PlacementLost(actor.actor_id, event.cause), now)
        return actions

    def _job_ended(self, event: JobEnded, now: float) -> list[Action]:
        actions: list[Action] = []
        for actor in [a for a in self._actors.values() if a.job_id == event.job_id and not a.detached]:
            if actor.state != DEAD:
                actions += self._step(actor, OwnerDied(actor.actor_id, event.cause), now)
        return actions

    def forget_job(self, job_id: bytes) -> list[tuple[str, str]]:
        """Forgets the dead actors of a job that has ended and whose workers are gone. Its rows go with the job's
        keys."""
        for actor in [a for a in self._actors.values() if a.job_id == job_id and a.state == DEAD and not a.worker_tag]:
            self._forget(actor)
        return [key for key, actor_id in self._by_name.items() if self._actors[actor_id].job_id == job_id]

    def living_of_job(self, job_id: bytes) -> int:
        """Actors of a job that are not DEAD, or whose worker is still to die."""
        return sum(1 for a in self._actors.values() if a.job_id == job_id and (a.state != DEAD or a.worker_tag))

    # -- rows of TRANSITIONS: (actor, event, now) -> (next state, actions), or None -----------------------------------

    def _ask(self, actor: Actor, event: Assigned, now: float) -> Step:
        actor.asked_node_id = event.node_id
        return None

    def _to_creation(self, actor: Actor, event: Placed, now: float) -> Step:
        actor.node_id, actor.asked_node_id = event.node_id, b""
        return PENDING_CREATION, []

    def _become(self, actor: Actor, event: WorkerStarted, now: float) -> Step:
        if actor.worker_tag:  # it has one: the shell handed out two
            self.late += 1
            return PENDING_CREATION, [KillWorker(event.worker_tag, "the actor already has a worker")]
        actor.worker_tag, actor.worker_pid, actor.gpu_ids = event.worker_tag, event.worker_pid, list(event.gpu_ids)
        actor.placements_lost = 0
        self._by_worker[event.worker_tag] = actor.actor_id
        become = Become(event.worker_tag, actor.actor_id, actor.creation, actor.incarnation, actor.gpu_ids)
        return PENDING_CREATION, [become]

    def _refuse_second(self, actor: Actor, event: WorkerStarted, now: float) -> Step:
        self.late += 1
        return ALIVE, [KillWorker(event.worker_tag, "the actor already has a worker")]

    def _place_again(self, actor: Actor, event: PlacementLost, now: float) -> Step:
        if actor.worker_tag:
            return None  # it has a worker: that worker's death is what counts
        actor.node_id = actor.asked_node_id = b""
        actor.placements_lost += 1
        if actor.placements_lost > PLACEMENTS_LOST_MAX:
            return self._dies(actor, f"no worker could be started for it, {PLACEMENTS_LOST_MAX} times: {event.cause}")
        return (RESTARTING if actor.restarts else PENDING_PLACEMENT), [self._place(actor)]

    def _to_alive(self, actor: Actor, event: Ready, now: float) -> Step:
        actor.cause = ""  # of an earlier incarnation's end
        return ALIVE, []

    def _init_failed(self, actor: Actor, event: InitFailed, now: float) -> Step:
        actor.cause = event.error  # final: the same __init__ would raise again
        return DEAD, [AskToExit(actor.worker_tag, "its actor's __init__ raised")]

    def _env_failed(self, actor: Actor, event: EnvFailed, now: float) -> Step:
        if actor.worker_tag:
            return None  # it has a worker that came up: late news of an earlier try
        return self._dies(actor, RUNTIME_ENV_FAILED + event.cause)  # final: it would fail again

    def _unplaceable(self, actor: Actor, event: Unplaceable, now: float) -> Step:
        if actor.worker_tag:
            self.late += 1  # it has its place
            return None
        actor.cause = event.error
        return DEAD, [CancelPlacement(actor.actor_id)]

    def _exits(self, actor: Actor, event: Exiting, now: float) -> Step:
        actor.cause = event.why or "it exited by itself"
        return DEAD, [ExpectExit(actor.worker_tag, "its actor exits")]  # its death releases the resources

    def _worker_died(self, actor: Actor, event: WorkerDied, now: float) -> Step:
        """Release before the restart asks for resources: they may be the very ones it needs."""
        where = " while its __init__ ran" if actor.state == PENDING_CREATION else ""
        death = actor.kill_why or f"its worker process (pid {actor.worker_pid}) died{where}: {event.cause}"
        released = self._released(actor)
        limit = actor.max_restarts
        if limit >= 0 and actor.restarts >= limit:
            history = f". It had been restarted {actor.restarts} of {limit} times" if limit else ""
            actor.cause = death + history
            return DEAD, released
        actor.restarts += 1
        actor.incarnation += 1
        actor.cause = death  # of the last incarnation, for those whose calls were lost with it
        return RESTARTING, [*released, self._place(actor)]

    def _kill(self, actor: Actor, event: Kill, now: float) -> Step:
        why = event.why or "it was killed by ray.kill"
        if event.no_restart:
            return self._dies(actor, why)
        if not actor.worker_tag:
            return None  # nothing runs: what waits for its place is already the restart
        actor.kill_why = why
        return actor.state, [KillWorker(actor.worker_tag, why)]  # its death then decides on the restart, as any other

    def _out_of_scope(self, actor: Actor, event: OutOfScope, now: float) -> Step:
        actor.cause = "no handle to it was left"
        if actor.worker_tag:
            return DEAD, [AskToExit(actor.worker_tag, actor.cause)]
        return DEAD, [CancelPlacement(actor.actor_id)]

    def _owner_died(self, actor: Actor, event: OwnerDied, now: float) -> Step:
        return self._dies(actor, f"the process that created it is gone: {event.cause}")

    def _bury(self, actor: Actor, event: WorkerDied, now: float) -> Step:
        return DEAD, self._released(actor)

    def _refuse_place(self, actor: Actor, event: Placed, now: float) -> Step:
        return DEAD, [CancelPlacement(actor.actor_id)]

    def _refuse_worker(self, actor: Actor, event: WorkerStarted, now: float) -> Step:
        if actor.worker_tag:
            return DEAD, [KillWorker(event.worker_tag, "the actor is dead")]
        actor.worker_tag, actor.worker_pid = event.worker_tag, event.worker_pid
        self._by_worker[event.worker_tag] = actor.actor_id  # so that its death releases the resources
        return DEAD, [KillWorker(event.worker_tag, "the actor is dead")]

    def _join(self, actor: Actor, event: Subscribe, now: float) -> Step:
        self._subscribe(actor, event.core_tag)
        return actor.state, [self._news_to(actor, event.core_tag)]

    def _tell(self, actor: Actor, event: Subscribe, now: float) -> Step:
        return DEAD, [self._news_to(actor, event.core_tag)]

    def _leave(self, actor: Actor, event: Unsubscribe, now: float) -> Step:
        self._unsubscribe(actor, event.core_tag)
        return None

    def _ignore(self, actor: Actor, event: object, now: float) -> Step:
        self.late += 1
        return None

    # -- steps shared by the rows -------------------------------------------------------------------------------------

    def _place(self, actor: Actor) -> Place:
        return Place(actor.actor_id, {**actor.spec, "creation": actor.creation}, actor.incarnation)

    def _dies(self, actor: Actor, cause: str) -> tuple[str, list[Action]]:
        """Final, and at once: what runs is killed, what waits is cancelled."""
        actor.cause = cause
        if actor.worker_tag:
            return DEAD, [KillWorker(actor.worker_tag, cause)]
        return DEAD, [CancelPlacement(actor.actor_id)]

    def _released(self, actor: Actor) -> list[Action]:
        self._by_worker.pop(actor.worker_tag, None)
        actor.worker_tag, actor.worker_pid, actor.node_id, actor.gpu_ids, actor.kill_why = b"", 0, b"", [], ""
        return [Release(actor.actor_id)]

    def _news_to(self, actor: Actor, core_tag: bytes) -> Publish:
        return Publish(core_tag, actor.actor_id, *actor.public_state(), actor.cause)

    def _subscribe(self, actor: Actor, core_tag: bytes) -> None:
        actor.subscribers[core_tag] = None
        self._by_subscriber.setdefault(core_tag, set()).add(actor.actor_id)

    def _unsubscribe_all(self, actor: Actor) -> None:
        for tag in list(actor.subscribers):
            self._unsubscribe(actor, tag)

    def _unsubscribe(self, actor: Actor, core_tag: bytes) -> None:
        if core_tag in actor.subscribers:
            del actor.subscribers[core_tag]
            followed = self._by_subscriber[core_tag]
            followed.discard(actor.actor_id)
            if not followed:
                del self._by_subscriber[core_tag]

    def _buried(self, actor: Actor, now: float) -> list[Action]:
        """Frees the name and all that only a living actor needs; forgets the oldest dead beyond DEAD_KEPT."""
        actor.died_s = now
        actions: list[Action] = []
        if actor.name and self._by_name.get((actor.namespace, actor.name)) == actor.actor_id:
            del self._by_name[actor.namespace, actor.name]
            actions.append(DropName(actor.namespace, actor.name))
        owned = self._by_owner.get(actor.owner_tag)
        if owned is not None:
            owned.discard(actor.actor_id)
            if not owned:
                del self._by_owner[actor.owner_tag]
        actor.creation = b""
        self._dead[actor.actor_id] = None
        while len(self._dead) > DEAD_KEPT:
            oldest = self._actors[next(iter(self._dead))]
            if oldest.worker_tag:  # its worker has still to die; it is forgotten another time
                break
            self._forget(oldest)
            actions.append(DropRow(oldest.row()))
        return actions

    def _forget(self, actor: Actor) -> None:
        self._unsubscribe_all(actor)
        del self._actors[actor.actor_id]
        self._dead.pop(actor.actor_id, None)

    # -- a head that restarts -----------------------------------------------------------------------------------------

    def restore(self, saved: Iterable[tuple[ActorRow, bytes]]) -> None:
        """Takes the rows that an earlier head wrote. Only on an empty directory; `reconcile` must follow."""
        assert not self._actors
        for row, creation in saved:
            actor = Actor.from_row(row, creation)
            self._actors[actor.actor_id] = actor
            if actor.worker_tag:
                self._by_worker[actor.worker_tag] = actor.actor_id
            if actor.state == DEAD:
                self._dead[actor.actor_id] = None
                continue
            if not actor.detached:
                self._by_owner.setdefault(actor.owner_tag, set()).add(actor.actor_id)
            if actor.name:
                self._by_name[actor.namespace, actor.name] = actor.actor_id

    def reconcile(
        self, living_workers: Iterable[bytes], living_cores: Iterable[bytes], now: float, claims: Claims | None = None
    ) -> list[Action]:
        """After `restore`: what died while no head was there is treated as dying now; what waited is placed again,
        unless a node says that it has a place for it, or looks for one; what the lost head may not have said is said
        again."""
        workers, cores = set(living_workers), set(living_cores)
        actions: list[Action] = []
        for actor in list(self._actors.values()):
            if actor.worker_tag and actor.worker_tag not in workers:
                died = WorkerDied(actor.worker_tag, "it died while the head was away")
                actions += [a for a in self._step(actor, died, now) if not isinstance(a, Place)]
            elif actor.state == DEAD and actor.worker_tag:
                actions.append(KillWorker(actor.worker_tag, "the actor is dead"))
            elif actor.state == PENDING_CREATION and actor.worker_tag:
                actions.append(
                    Become(actor.worker_tag, actor.actor_id, actor.creation, actor.incarnation, actor.gpu_ids)
                )
            elif actor.state == PENDING_CREATION and not self.holds(actor.actor_id, actor.node_id, claims or {}):
                lost = PlacementLost(actor.actor_id, "the head was away")
                actions += [a for a in self._step(actor, lost, now) if not isinstance(a, Place)]
            if actor.state in (PENDING_PLACEMENT, RESTARTING):
                claimed = (claims or {}).get(actor.actor_id, {})
                by = next((node for node, incarnation in claimed.items() if incarnation == actor.incarnation), None)
                if by is None:
                    actions.append(self._place(actor))
                else:
                    actor.asked_node_id = by  # what it has found, or finds, it tells
        for owner_tag in sorted(set(self._by_owner) - cores):
            actions += self._core_gone(CoreGone(owner_tag, "it died while the head was away"), now)
        return actions

    def holds(self, actor_id: bytes, node_id: bytes, claims: Claims) -> bool:
        """Whether what that node claims to hold for the actor is the actor's place, after `reconcile`."""
        actor = self._actors.get(actor_id)
        if actor is None or claims.get(actor_id, {}).get(node_id) != actor.incarnation:
            return False
        return node_id in (actor.node_id, actor.asked_node_id)

    # -- proofs -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Re-derives every index from the actors. Raises: AssertionError."""
        actors = self._actors.values()
        assert self._by_worker == {a.worker_tag: a.actor_id for a in actors if a.worker_tag}
        living = [a for a in actors if a.state != DEAD]
        assert self._by_name == {(a.namespace, a.name): a.actor_id for a in living if a.name}
        owners: dict[bytes, set[bytes]] = {}
        for actor in living:
            if not actor.detached:
                owners.setdefault(actor.owner_tag, set()).add(actor.actor_id)
        assert self._by_owner == owners
        assert set(self._dead) == {a.actor_id for a in actors if a.state == DEAD}
        followers: dict[bytes, set[bytes]] = {}
        for actor in actors:
            for tag in actor.subscribers:
                followers.setdefault(tag, set()).add(actor.actor_id)
        assert self._by_subscriber == followers
        for actor in actors:
            assert actor.state in STATES, actor
            if actor.state in (PENDING_PLACEMENT, RESTARTING):
                assert not actor.worker_tag and not actor.node_id, actor
            if actor.state == ALIVE:
                assert actor.worker_tag, actor
            if actor.state == DEAD:
                assert actor.cause and not actor.subscribers and not actor.creation, actor
            if actor.max_restarts >= 0:
                assert actor.restarts <= actor.max_restarts, actor

    def stats(self) -> dict[str, int]:
        """Actors by state, and `late`: events about actors or workers that are no more."""
        counts = collections.Counter(actor.state for actor in self._actors.values())
        return {**{state: counts[state] for state in STATES}, "late": self.late}


Row = Callable[[ActorDirectory, Actor, Any, float], Step]
_D = ActorDirectory

TRANSITIONS: dict[tuple[str, type], Row] = {
    # Waiting for a place, for the first time and again.
    (PENDING_PLACEMENT, OwnerDied): _D._owner_died,
    (PENDING_PLACEMENT, Kill): _D._kill,
    (PENDING_PLACEMENT, OutOfScope): _D._out_of_scope,
    (PENDING_PLACEMENT, EnvFailed): _D._env_failed,
    (PENDING_PLACEMENT, Unplaceable): _D._unplaceable,
    (PENDING_PLACEMENT, PlacementLost): _D._place_again,
    (PENDING_PLACEMENT, Assigned): _D._ask,
    (PENDING_PLACEMENT, Placed): _D._to_creation,
    (PENDING_PLACEMENT, Subscribe): _D._join,
    (PENDING_PLACEMENT, Unsubscribe): _D._leave,
    (RESTARTING, OwnerDied): _D._owner_died,
    (RESTARTING, Kill): _D._kill,
    (RESTARTING, OutOfScope): _D._out_of_scope,
    (RESTARTING, EnvFailed): _D._env_failed,
    (RESTARTING, Unplaceable): _D._unplaceable,
    (RESTARTING, PlacementLost): _D._place_again,
    (RESTARTING, Assigned): _D._ask,
    (RESTARTING, Placed): _D._to_creation,
    (RESTARTING, Subscribe): _D._join,
    (RESTARTING, Unsubscribe): _D._leave,
    # Resources are held; with a worker, __init__ runs.
    (PENDING_CREATION, OwnerDied): _D._owner_died,
    (PENDING_CREATION, Kill): _D._kill,
    (PENDING_CREATION, OutOfScope): _D._out_of_scope,
    (PENDING_CREATION, Unplaceable): _D._unplaceable,  # while no worker had been found, its group was removed
    (PENDING_CREATION, WorkerDied): _D._worker_died,
    (PENDING_CREATION, EnvFailed): _D._env_failed,
    (PENDING_CREATION, Assigned): _D._ignore,  # it has its place
    # Told again: the head was restarted before it had noted that it had heard so.
    (PENDING_CREATION, Placed): _D._ignore,
    (PENDING_CREATION, PlacementLost): _D._place_again,  # only while it has no worker
    (PENDING_CREATION, Exiting): _D._exits,  # exit_actor() in __init__
    (PENDING_CREATION, InitFailed): _D._init_failed,
    (PENDING_CREATION, WorkerStarted): _D._become,
    (PENDING_CREATION, Ready): _D._to_alive,
    (PENDING_CREATION, Subscribe): _D._join,
    (PENDING_CREATION, Unsubscribe): _D._leave,
    # Takes calls.
    (ALIVE, OwnerDied): _D._owner_died,
    (ALIVE, Kill): _D._kill,
    (ALIVE, OutOfScope): _D._out_of_scope,
    (ALIVE, Unplaceable): _D._ignore,
    (ALIVE, WorkerDied): _D._worker_died,
    (ALIVE, Assigned): _D._ignore,
    (ALIVE, Placed): _D._ignore,  # as above
    (ALIVE, PlacementLost): _D._ignore,  # the worker's death says it too
    (ALIVE, Exiting): _D._exits,
    (ALIVE, Ready): _D._ignore,  # said twice
    (ALIVE, EnvFailed): _D._ignore,
    (ALIVE, InitFailed): _D._ignore,  # a worker that contradicts itself
    (ALIVE, WorkerStarted): _D._refuse_second,  # the shell handed out two
    (ALIVE, Subscribe): _D._join,
    (ALIVE, Unsubscribe): _D._leave,
    # Final. Only its worker's death still changes anything.
    (DEAD, WorkerDied): _D._bury,
    (DEAD, OwnerDied): _D._ignore,
    (DEAD, Kill): _D._ignore,
    (DEAD, OutOfScope): _D._ignore,
    (DEAD, Unplaceable): _D._ignore,
    (DEAD, Assigned): _D._ignore,
    (DEAD, PlacementLost): _D._ignore,
    (DEAD, Placed): _D._refuse_place,  # crossed our CancelPlacement
    (DEAD, WorkerStarted): _D._refuse_worker,
    (DEAD, Ready): _D._ignore,
    (DEAD, EnvFailed): _D._ignore,
    (DEAD, InitFailed): _D._ignore,
    (DEAD, Exiting): _D._ignore,
    (DEAD, Subscribe): _D._tell,
    (DEAD, Unsubscribe): _D._leave,
}
