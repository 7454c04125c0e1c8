"""The head as its shell sees it: cores ask and tell, the machines decide, actions go out through a `Port` and into
Redis.

Runs in the node process (on a cluster: the head process), on its asyncio loop's thread only. Owns the machines -
actors, jobs, errors, events, nodes, placement - and the tables; opens no socket to a core. What the shell must offer,
and when to call what, is drawn in README.md.

Events are carried out to completion one after another: if carrying out an action makes the shell report something at
once, that waits its turn, so nobody sees an actor ALIVE before it was RESTARTING. A core that dies is reported by the
shell; a core that sends nonsense is answered (as an RPC) or counted and logged (as an event), and nothing of it sticks.
If Redis dies, all of this goes on from memory; writes wait for its return, and only `kv_*` and looking at old task
events do.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray._control.rows import NodeRow
from ray._control.store import Store
from ray._control.tables import Tables
from ray._head import actor_messages as am
from ray._head import events, global_scheduler, jobs, monitor, resumption, row_writer
from ray._head import group_messages as gm
from ray._head.actor_directory import ActorDirectory, Claims
from ray._head.actor_record import DEAD, PENDING_CREATION, Actor
from ray._head.errors import ErrorLog
from ray._head.function_cache import FunctionCache
from ray._head.group_service import GroupService
from ray._head.lasting import Lasting
from ray._head.port import Port
from ray._head.requests import EVENTS, RPCS, Caller, Requests
from ray._scheduling.strategy import InGroup, NodeAffinity, parse_strategy
from ray.exceptions import ActorUnschedulableError

logger = logging.getLogger(__name__)


class HeadService:
    """See the module. `rpc` and `event` are what cores may call; the other methods are the shell's."""

    def __init__(
        self,
        port: Port,
        store: Store | None,
        *,
        clock: Callable[[], float] = time.time,
        errors_kept: int = 1000,
        task_events_kept: int = 10_000,
        node_silence_s: float = 10.0,
    ) -> None:
        self.port = port
        self._store = store
        self.tables = Tables(store, errors_kept) if store is not None else None
        self._clock = clock
        # Silence is measured on a clock that nobody sets; what is shown of a node is close to the time of day.
        self._steady_from_s = clock() - time.monotonic()
        self.actors = ActorDirectory()
        self.jobs = jobs.JobTable()
        self.errors = ErrorLog(errors_kept)
        self.events = events.TaskEventLog(task_events_kept)
        self.monitor = monitor.NodeMonitor(node_silence_s / monitor.MISSES_MAX)
        self.placing = global_scheduler.GlobalScheduler()
        self.groups = GroupService(self)
        self.functions = FunctionCache(self.tables.functions if self.tables is not None else None)
        self._queue: collections.deque[Callable[[], Iterable[Any]]] = collections.deque()
        self._running = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._hidden_timer: asyncio.TimerHandle | None = None
        self._node_waiters: set[asyncio.Future[None]] = set()  # to be told when a node comes or goes
        self.lasts = False  # this head may be restarted, and go on from its tables
        self.lasting = Lasting(self)
        self.bugs = 0  # events that met a bug of ours; 0 for ever
        self._requests = Requests(self)
        if store is not None:
            store.on_gap = lambda shard: row_writer.write_anew(self, shard)
            store.on_problem = self.control_plane_problem

    # -- what the shell tells -----------------------------------------------------------------------------------------

    def node_up(
        self,
        node_id: bytes,
        resources: Mapping[str, int],
        address: str,
        hostname: str,
        extra: Mapping[str, Any] | None = None,
        watched: bool = True,
    ) -> None:
        """extra: "pid", "labels", "name". watched: its silence means nothing; else `heartbeat` is to be called."""
        given = extra or {}
        row = NodeRow(
            node_id,
            address=address,
            hostname=hostname,
            name=str(given.get("name") or address),
            resources=dict(resources),
            labels=dict(given.get("labels") or {}),
            pid=int(given.get("pid") or 0),
        )
        self.run(lambda: self.monitor.handle(monitor.NodeUp(row, watched), self._steady()))
        self.run(lambda: self.placing.handle(global_scheduler.NodeJoined(node_id, row.resources, row.labels)))
        self.groups.handle(gm.NodesChanged())

    def node_down(self, node_id: bytes, cause: str) -> None:
        """Its process said goodbye or died: its actors restart elsewhere."""
        self.run(lambda: self.monitor.handle(monitor.NodeGone(node_id, cause), self._steady()))

    def heartbeat(self, node_id: bytes) -> None:
        self.run(lambda: self.monitor.handle(monitor.Heartbeat(node_id), self._steady()))

    def silence_due_s(self) -> float | None:
        """In how many seconds `look_for_silence` has something to do; None: nobody's silence means anything."""
        at_s = self.monitor.deadline()
        return None if at_s is None else max(0.0, at_s - self._steady())

    def look_for_silence(self) -> None:
        self.run(lambda: self.monitor.tick(self._steady()))

    def resources_reported(self, node_id: bytes, available: Mapping[str, int]) -> None:
        self.run(lambda: self.placing.handle(global_scheduler.ResourcesReported(node_id, available)))
        self.groups.handle(gm.NodesChanged())  # one that waits may have room now

    def cores_of_node_gone(self, number: int, cause: str) -> None:
        """Everything that lived on a node is dead: owners of actors, and who follows them."""
        for tag in self.actors.cores_of_node(number):
            self.core_gone(tag, cause)

    def register_driver(self, tag: bytes, pid: int, info: Mapping[str, Any]) -> bytes:
        """Returns the job's id. Said twice, the same again."""
        self.run(lambda: self.jobs.handle(jobs.DriverRegistered(tag, pid, info), self._clock()))
        job_id = self.jobs.of_driver(tag)
        assert job_id is not None
        return job_id

    def driver_gone(self, tag: bytes, cause: str, intended: bool) -> None:
        """Ends its job and its actors; with the last of these, every key of the job. intended: it called shutdown()."""
        self.run(lambda: self.jobs.handle(jobs.DriverGone(tag, cause, intended), self._clock()))
        self.core_gone(tag, cause)

    def core_gone(self, tag: bytes, cause: str) -> None:
        """Any core process is dead: it hears nothing more, and the actors it owned die."""
        self.actor_event(am.CoreGone(tag, cause))

    def worker_died(self, tag: bytes, cause: str) -> None:
        """A worker is dead and cause says of what: if it was an actor, that is restarted or buried. Includes
        `core_gone`."""
        self.actor_event(am.WorkerDied(tag, cause))
        self.core_gone(tag, cause)

    def actor_placed(self, actor_id: bytes, node_id: bytes, incarnation: int | None = None) -> None:
        """Answer to `place_actor`: its resources are held on that node. incarnation: as was asked there."""
        self.actor_event(am.Placed(actor_id, node_id, incarnation))

    def actor_worker_started(
        self,
        actor_id: bytes,
        worker_tag: bytes,
        worker_pid: int,
        gpu_ids: Iterable[int | str],
        incarnation: int | None = None,
    ) -> None:
        """And this worker is to become it. From here on only `worker_died` says that it is lost."""
        self.actor_event(am.WorkerStarted(actor_id, worker_tag, worker_pid, list(gpu_ids), incarnation))

    def actor_placement_lost(self, actor_id: bytes, cause: str) -> None:
        """Answer to `place_actor`: it came to nothing, or was lost before a worker was there."""
        self.run(lambda: self.placing.handle(global_scheduler.Ended(actor_id)))
        self.actor_event(am.PlacementLost(actor_id, cause))

    def actor_infeasible(self, actor_id: bytes, message: str) -> None:
        """The node can never hold it: it stays where it is, and its job is told."""
        actor = self.actors.get(actor_id)
        if actor is not None and actor.state != DEAD:
            self.report_error(actor.job_id, "actor_infeasible", message, {"actor_id": actor_id.hex()})

    def actor_env_failed(self, actor_id: bytes, cause: str) -> None:
        """Answer to `place_actor`: its runtime environment can't be set up, and so it never will be."""
        self.run(lambda: self.placing.handle(global_scheduler.Ended(actor_id)))
        self.actor_event(am.EnvFailed(actor_id, cause))

    def actor_refused(self, actor_id: bytes, error: Exception) -> None:
        """Answer to `place_actor`: it can never be had there, nor anywhere else."""
        self.run(lambda: self.placing.handle(global_scheduler.Ended(actor_id)))
        self.actor_unplaceable(actor_id, error)

    def actor_unplaceable(self, actor_id: bytes, error: Exception) -> None:
        """Its calls fail with this error."""
        from ray._native.serialization import encode_error  # rare, and nothing else of this process needs it

        blob = encode_error(error).to_bytes()
        self.actor_event(am.Unplaceable(actor_id, blob))

    def bundles_prepared(self, node_id: bytes, group_id: bytes, attempt: int) -> None:
        self.groups.handle(gm.Prepared(group_id, node_id, attempt))

    def bundles_refused(self, node_id: bytes, group_id: bytes, attempt: int, available: Mapping[str, int]) -> None:
        self.groups.handle(gm.Refused(group_id, node_id, attempt, available))

    def report_error(self, job_id: bytes, kind: str, message: str, extra: Mapping[str, Any], pid: int = 0) -> None:
        """Keeps an error and shows it to the job's driver."""
        row, entry_id = self.errors.push(job_id, kind, message, extra, pid, self._clock())
        if entry_id is None:  # a flood: said in one line a second
            if self._hidden_timer is None:
                self._hidden_timer = self.later(1.0, self._tell_hidden)
            return
        if self.tables is not None and self.job_lives(job_id):
            self.tables.errors.add(row, entry_id)
        self.port.error(job_id, row.kind, row.message, row.extra)

    def _tell_hidden(self) -> None:
        self._hidden_timer = None
        for job_id, count in self.errors.take_hidden():
            text = f"{count} further errors of this job are not shown; ray.errors() has the newest"
            self.port.error(job_id, "errors", text, {"not_shown": count})

    def job_lives(self, job_id: bytes) -> bool:
        """Whether anything may still be kept for this job. After its end, a late word of a worker must not bring its
        keys back."""
        row = self.jobs.get(job_id)
        return row is not None and row.state in (jobs.RUNNING, jobs.ENDING)

    def job_goes_on(self, job_id: bytes) -> bool:
        """Whether the job outlives its driver: an actor of it is detached, and alive. Ends with `job_over`."""
        return any(a.job_id == job_id and a.detached and a.state != DEAD for a in self.actors.all())

    async def job_will_go_on(self, job_id: bytes) -> bool:
        """As `job_goes_on`, for a node that may have to ask for it."""
        return self.job_goes_on(job_id)

    def control_plane_problem(self, text: str) -> None:
        """Redis refuses a write, or was given up: everybody should know, once for each reason."""
        logger.error("%s", text)
        for job_id in self.jobs.in_state(jobs.RUNNING):
            row, _ = self.errors.push(job_id, "control_plane", text, {}, 0, self._clock())  # for memory only
            self.port.error(job_id, row.kind, row.message, row.extra)

    # -- what cores ask and tell --------------------------------------------------------------------------------------

    async def rpc(self, caller: Caller, method: str, args: tuple[Any, ...], again: bool = False) -> Any:
        """again: a head that has ended since may have done it already.

        Raises: what the core should see: ValueError, TypeError, StoreUnavailable, LookupError for no such method."""
        return await self._requests.rpc(caller, method, args, again)

    def event(self, caller: Caller, name: str, args: tuple[Any, ...]) -> None:
        """Never raises for what a core sent."""
        self._requests.event(caller, name, args)

    # -- carrying out -------------------------------------------------------------------------------------------------

    def actor_event(self, event: am.Event) -> None:
        self.run(lambda: self.actors.handle(event, self._clock()))

    def run(self, decide: Callable[[], Iterable[Any]]) -> None:
        """One event of one machine, and its actions, after those that came before it."""
        self._queue.append(decide)
        if self._running:
            return
        self._running = True
        try:
            while self._queue:
                decide = self._queue.popleft()
                try:
                    for action in decide():
                        _ACTION_HANDLERS[type(action)](self, action)
                except Exception:  # with its story; the other events must not suffer for it
                    self.bugs += 1
                    logger.exception("the head failed on an event")
        finally:
            self._running = False

    def node_joins(self, node_id: bytes, resources: Mapping[str, int], labels: Mapping[str, str]) -> None:
        """Work may be placed there."""
        self.run(lambda: self.placing.handle(global_scheduler.NodeJoined(node_id, resources, labels)))

    def steady(self) -> float:
        """The time on the clock by which silence is measured."""
        return self._steady()

    def _steady(self) -> float:
        return self._steady_from_s + time.monotonic()

    def now(self) -> float:
        return self._clock()

    def later(self, delay_s: float, what: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Calls what(*args) after delay_s; 0: when what is being done now is over."""
        return asyncio.get_running_loop().call_later(delay_s, what, *args)

    def _write(self, action: Any) -> None:
        if self.tables is not None:
            row_writer.WRITERS[type(action)](self, self.tables, action)

    def _do_group(self, action: Any) -> None:
        self.groups.carry_out(action)

    def place(self, action: am.Place) -> None:
        spec = action.spec
        strategy = parse_strategy(spec.get("strategy"))
        if isinstance(strategy, InGroup):
            self.groups.place_actor(action, strategy)
            return
        if isinstance(strategy, NodeAffinity) and not strategy.soft and not self.placing.has(strategy.node_id):
            self.actor_unplaceable(action.actor_id, _no_such_node(spec, action.actor_id, strategy.node_id))
            return
        hold, to_place = spec.get("resources") or {}, spec.get("placement_resources") or {}
        ask = {name: max(hold.get(name, 0), to_place.get(name, 0)) for name in {**hold, **to_place}}
        request = global_scheduler.Requested(
            action.actor_id,
            ask,
            strategy,
            f"actor {spec.get('class_name', '?')} ({action.actor_id.hex()})",
            hold,
        )
        self.run(lambda: self.placing.handle(request))

    def _do_assign(self, action: global_scheduler.Assign) -> None:
        actor = self.actors.get(action.request_id)
        if actor is None or actor.state == DEAD:  # since it was asked for: nobody else would give this back
            self.placing.handle(global_scheduler.Ended(action.request_id))
        else:
            self.assign_actor(action.request_id, action.node_id)

    def assign_actor(self, actor_id: bytes, node_id: bytes) -> None:
        """That node is to find it a worker."""
        actor = self.actors.get(actor_id)
        if actor is not None and actor.state != DEAD:
            spec = {**actor.spec, "creation": actor.creation, "job_id": actor.job_id, "node_id": node_id}
            self.actor_event(am.Assigned(actor_id, node_id))
            self.port.place_actor(actor.actor_id, spec, actor.incarnation)

    def _do_infeasible(self, action: global_scheduler.Infeasible) -> None:
        actor = self.actors.get(action.request_id)
        if actor is None or actor.state == DEAD:
            self.placing.handle(global_scheduler.Ended(action.request_id))
        self.actor_infeasible(action.request_id, action.message)

    def _do_unassign(self, action: global_scheduler.Unassign) -> None:
        """NodeDead reaches the directory as well; but not about an actor that waited for just that node to grow."""
        self.actor_event(am.PlacementLost(action.request_id, f"its node died: {action.cause}"))

    def _do_cancel_placement(self, action: am.CancelPlacement) -> None:
        self.placing.handle(global_scheduler.Ended(action.actor_id))
        self.groups.drop_actor(action.actor_id)
        self.port.cancel_placement(action.actor_id)
        self._look_at_job(self.actors.get(action.actor_id))

    def _do_become(self, action: am.Become) -> None:
        """When it lasts that this worker is this incarnation: a head that takes over would make it a second time."""
        self.lasting.say(lambda: self._become(action))

    def _become(self, action: am.Become) -> None:
        actor = self.actors.of_worker(action.worker_tag)
        if actor is not None and actor.state == PENDING_CREATION:  # else it has been killed meanwhile
            self.port.become_actor(*action)

    def _do_publish(self, action: am.Publish) -> None:
        if action.state == DEAD:
            self.lasting.say(lambda: self.port.actor_state(*action))
        else:
            self.port.actor_state(*action)

    def _do_kill_worker(self, action: am.KillWorker) -> None:
        self.port.kill_worker(*action)

    def _do_ask_to_exit(self, action: am.AskToExit) -> None:
        self.port.ask_to_exit(*action)

    def _do_expect_exit(self, action: am.ExpectExit) -> None:
        self.port.expect_exit(*action)

    def _do_release(self, action: am.Release) -> None:
        self.placing.handle(global_scheduler.Ended(action.actor_id))
        self.port.release_actor(action.actor_id)
        self._look_at_job(self.actors.get(action.actor_id))

    def _do_end_actors(self, action: jobs.EndActors) -> None:
        self.actor_event(am.JobEnded(action.job_id, action.cause))
        self.groups.handle(gm.JobEnded(action.job_id))
        self.run(lambda: self._emptied(action.job_id))

    def _look_at_job(self, actor: Actor | None) -> None:
        """An actor has left for good: was it the last that held up the end of its job?"""
        if actor is not None and actor.state == DEAD:
            job_id = actor.job_id
            self.run(lambda: self._emptied(job_id))

    def _emptied(self, job_id: bytes) -> Iterable[Any]:
        row = self.jobs.get(job_id)
        if row is None or row.state != jobs.ENDING or self.actors.living_of_job(job_id):
            return []
        return self.jobs.handle(jobs.Emptied(job_id), self._clock())

    def _do_forget_job(self, action: jobs.ForgetJob) -> None:
        self.actors.forget_job(action.job_id)
        self.errors.forget_job(action.job_id)
        self.events.forget_job(action.job_id)
        self.functions.forget_job(action.job_id)
        if self.tables is not None:
            self.tables.forget_job(action.job_id)
        self.port.job_over(action.job_id)

    async def nodes_are(self, node_ids: Iterable[str], timeout_s: float) -> set[str]:
        """Waits until exactly those nodes live, timeout_s at most. Returns: those that do."""
        wanted, until_s = set(node_ids), time.monotonic() + timeout_s
        while True:
            alive = {row.node_id.hex() for row in self.monitor.all() if row.state != monitor.DEAD}
            left_s = until_s - time.monotonic()
            if alive == wanted or left_s <= 0:
                return alive
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._node_waiters.add(changed)
            try:
                await asyncio.wait([changed], timeout=left_s)
            finally:
                self._node_waiters.discard(changed)

    def _do_save_node(self, action: monitor.SaveNode) -> None:
        for waiter in self._node_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._write(action)

    def _do_restart(self, action: monitor.TellRestart) -> None:
        """It has no connection to us any more by which it could be told; a heartbeat is refused by the Port's owner."""

    def _do_node_dead(self, action: monitor.NodeDead) -> None:
        self.run(lambda: self.placing.handle(global_scheduler.NodeLeft(action.node_id, action.cause)))
        self.groups.handle(gm.NodeDied(action.node_id))
        self.actor_event(am.NodeDied(action.node_id, f"its node died: {action.cause}"))
        self.port.node_dead(action.node_id, action.cause)

    def keep_task_events(self, job_id: bytes, batch: list[Any]) -> None:
        if self.events.add(job_id, batch):
            self.flush_events()
        elif self._flush_timer is None and self.events.waiting:
            self._flush_timer = self.later(events.FLUSH_S, self.flush_events)

    def flush_events(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for append in self.events.flush(self._clock()):
            if self.tables is not None:
                self.tables.events.add(*append)

    def need_tables(self) -> Tables:
        if self.tables is None:
            raise RuntimeError("this head runs without a control plane (a test): kv and task events need Redis")
        return self.tables

    # -- starting again, ending ---------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Reads back what an earlier head of this session wrote; `reconcile` then says what is still there.

        Raises: StoreUnavailable."""
        resumption.restore(self, await resumption.read(self))

    def reconcile(
        self, living_workers: Iterable[bytes], living_cores: Iterable[bytes], claims: Claims | None = None
    ) -> None:
        """After `load`: tags of the workers and of all cores (drivers too) that are still connected, and which nodes
        say that they have which actors."""
        cores = set(living_cores)
        for row in [row for row in self.jobs.all() if row.state == jobs.RUNNING and row.driver_tag not in cores]:
            self.driver_gone(row.driver_tag, "it died while the head was away", False)
        self.run(lambda: self.actors.reconcile(living_workers, cores, self._clock(), claims or {}))
        # What followed from the end of a job may not have been written any more.
        for row in self.jobs.all():
            if row.state == jobs.ENDING:
                self._do_end_actors(jobs.EndActors(row.job_id, row.cause or "its driver has left"))
        for job_id in {group.job_id for group in self.groups.groups.all()}:
            if job_id not in self.jobs.in_state(jobs.RUNNING):
                self.groups.handle(gm.JobEnded(job_id))

    async def close(self, drain_s: float = 0.0) -> None:
        """Ends the connection to Redis. On one machine the tables go with the session: nothing is waited for."""
        self.flush_events()
        self.groups.flush()
        if self._hidden_timer is not None:
            self._hidden_timer.cancel()
            self._tell_hidden()
        self.functions.close()
        if self._store is not None:
            await self._store.close(drain_s)

    def check(self) -> None:
        """All machines' invariants. Raises: AssertionError."""
        assert self.bugs == 0, "an event met a bug: see the log"
        self.actors.check()
        self.jobs.check()
        self.monitor.check()
        self.placing.check()
        self.groups.groups.check()

    def stats(self) -> dict[str, Any]:
        """actors by state, jobs, functions, task_events, malformed, bugs, and the store's connections."""
        return {
            "actors": self.actors.stats(),
            "jobs": dict(collections.Counter(row.state for row in self.jobs.all())),
            "placement_groups": self.groups.groups.stats(),
            "functions": self.functions.stats(),
            "task_events": self.events.stats(),
            "malformed": self._requests.malformed,
            "bugs": self.bugs,
            "store": self._store.stats() if self._store is not None else None,
        }

    RPCS = RPCS
    EVENTS = EVENTS


_H = HeadService
_ACTION_HANDLERS: dict[type, Callable[[HeadService, Any], None]] = {
    **dict.fromkeys(row_writer.WRITERS, _H._write),
    am.Place: _H.place,
    am.CancelPlacement: _H._do_cancel_placement,
    am.Become: _H._do_become,
    am.Publish: _H._do_publish,
    am.KillWorker: _H._do_kill_worker,
    am.AskToExit: _H._do_ask_to_exit,
    am.ExpectExit: _H._do_expect_exit,
    am.Release: _H._do_release,
    jobs.EndActors: _H._do_end_actors,
    jobs.ForgetJob: _H._do_forget_job,
    monitor.SaveNode: _H._do_save_node,
    monitor.NodeDead: _H._do_node_dead,
    monitor.TellRestart: _H._do_restart,
    global_scheduler.Assign: _H._do_assign,
    global_scheduler.Infeasible: _H._do_infeasible,
    global_scheduler.Unassign: _H._do_unassign,
    **dict.fromkeys([gm.PrepareBundles, gm.CommitBundles, gm.ReturnBundles, gm.GroupInfeasible], _H._do_group),
    **dict.fromkeys([gm.GroupCreated, gm.GroupLost, gm.GroupRemoved], _H._do_group),
    **dict.fromkeys([gm.SaveGroup, gm.DropGroup, gm.ForgetGroup], _H._do_group),
}


def _no_such_node(spec: Mapping[str, Any], actor_id: bytes, node_id: bytes) -> ActorUnschedulableError:
    name = spec.get("class_name", "?")
    return ActorUnschedulableError(
        f"actor {name} can't be scheduled: it is bound to node {node_id.hex()}, and there is no such node (any more)",
        actor_id=actor_id.hex(),
        class_name=name,
    )
