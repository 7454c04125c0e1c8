"""Joins the machines of a node to the world: carries out their actions, feeds them what happens. No decisions here.

Node process, its main thread, on its asyncio loop. What happens (a message, a death, a timer) becomes an event for a
machine; the actions it answers with are messages, kills, starts (actions.py), or events for another machine. Those are
queued and handled in order before the loop goes on (`feed`), so no machine is ever entered twice and every cause is
finished before the next begins. Who dies, and what follows: a worker, `_worker_ended`; a core's connection,
`_core_lost`; the driver that started the session, `founder_gone`: everything ends; store, Redis, fork server: restarted
by their keepers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from ray._config import Settings
from ray._launch.session import Session
from ray._protocol.frames import OUT_OF_MEMORY
from ray._scheduling.node_resources import NodeResources

from . import children, detect
from . import env_messages as em
from . import lease_messages as lm
from . import local_scheduler as ls
from . import worker_messages as wm
from . import worker_pool as wp
from .actions import Actions
from .cluster_view import ClusterView
from .cores import CAUSE_WAIT_S, STILL_RUNS, Core, Cores
from .driver_lines import DriverLines
from .env_gate import EnvGate
from .gathering import Gathering
from .guests import Guests
from .head_port import HeadPort
from .inspection import Inspection
from .leaving_jobs import LeavingJobs
from .log_tail import LogTail
from .lost_results import LostResults
from .object_transfers import ObjectTransfers
from .orphans import OrphanedObjects
from .requests import Requests
from .store_process import StoreProcess

if TYPE_CHECKING:
    from ray._control.disk_sync import DiskSync

    from .cluster_head import ClusterHead
    from .memory_shell import MemoryShell
    from .supervision import Supervision
    from .uplink import Uplink

logger = logging.getLogger("ray.node")

LOST_JOB = (
    "the cluster's head has no record of this job: the head was started again, and its disk has lost what was written "
    "last, as after a power cut. The job's processes were ended"
)


class Node:
    """One node. Built by main, which starts its parts in the order that gets it ready soonest."""

    def __init__(
        self,
        session: Session,
        config: dict[str, Any],
        settings: Settings,
        resources: NodeResources,
        pool: wp.WorkerPool,
        logs: LogTail,
        store: StoreProcess | None,
        node_id: bytes,
    ) -> None:
        self.session = session
        self.config = config
        self.settings = settings
        self.node_id = node_id
        self.loop = asyncio.get_running_loop()
        self.pool = pool
        self.logs = logs
        self.lines = DriverLines(self)
        logs.attach(self.loop, self.lines.send)
        self.store = store
        cpus = max(1, resources.total.get("CPU", 0) // 10_000)
        self.scheduler = ls.LocalScheduler(
            resources,
            starvation_s=settings.lease_starvation_s,
            actors_starting_max=settings.actors_starting_max or 4 * cpus,
            node_id=node_id,
            labels=detect.node_labels(node_id, resources.total, config.get("labels")),
            spill_hops_max=settings.spill_hops_max,
        )
        self.cores = Cores()
        self.founder: Core | None = None  # the driver that started the session and ends it by its own end
        self.envs = EnvGate(self)
        self.head_port = HeadPort(self)
        self.inspection = Inspection(self)
        self.guests = Guests(self)
        self.number = 0  # in the cluster; the head's is 0
        self.nodes: list[
            dict[str, Any]
        ] = []  # of the cluster: number, node_id, host, port, state; empty: there is none
        self.cluster_view: ClusterView | None = None  # in a cluster
        self.cluster: ClusterHead | None = None  # on the head's node of a cluster
        self.uplink: Uplink | None = None  # on any other
        self.gathering = Gathering(self)
        self._metrics: Any = None  # MetricsExport, once anybody measures or asks
        self.memory: MemoryShell | None = None  # once the node is ready
        self.supervision: Supervision | None = None  # once it is ready, if it has a supervisor
        self.requests = Requests(self)
        self.head: Any = None  # HeadService, once main has imported it; RemoteHead on a node that has joined
        self.fork_link: children.ForkServerLink
        self.server: Any = None
        self.gate: Any = None  # of a cluster's node: the port on which other nodes reach this one
        self.redis: Any = None
        self.disk_sync: DiskSync | None = None  # of a head that can be resumed
        self.started_at = time.time()
        self.reaper = children.Reaper(self.loop, self._look_for_forks, lambda: self.redis.pids if self.redis else ())
        self.ending: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.over = False  # once it ends, nobody is to take over from it
        # On a head that takes over: set when it knows again what it must know before anybody registers.
        self.resumed: asyncio.Future[None] | None = self.loop.create_future() if config.get("resume") else None
        self.lost_results = LostResults(
            self.loop, session.plasma_socket, self.cores.pid_of_dead, lambda key: self.transfers.free(key)
        )
        self.transfers = ObjectTransfers(session.objects_socket)
        self.orphans = OrphanedObjects(self.loop, session.plasma_socket, self.transfers)
        self._queue: deque[tuple[Any, Any]] = deque()
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._waiting_for_exit: list[asyncio.Future[None]] = []
        self.leaving_jobs = LeavingJobs(self)
        self._cause_waiters: dict[bytes, list[asyncio.Future[str]]] = {}
        self.start_keys: dict[int, bytes] = {}  # of workers that another program starts: they have a pid of their own
        self._oom_kills = detect.oom_kills()
        self.bugs = 0
        self._carry_out = Actions(self, cpus).table

    # -- events in, actions out -------------------------------------------------------------------------------

    def feed(self, machine: Any, event: Any) -> None:
        """Gives a machine an event and carries out what follows; from inside an action: right after the present one."""
        self._queue.append((machine, event))
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                machine, event = self._queue.popleft()
                for action in self._ask(machine, event):
                    try:
                        self._carry_out[type(action)](action)
                    except Exception:  # a bug of ours; what else follows from the event must not suffer for it
                        self.bugs += 1
                        logger.exception("carrying out %r failed", action)
        finally:
            self._pumping = False
        self._set_timer()
        if self.memory is not None and self.scheduler.runs_something:
            self.memory.something_runs()
        if self.cluster_view is not None:
            self.cluster_view.changed()

    def _ask(self, machine: Any, event: Any) -> list[Any]:
        try:
            actions: list[Any] = machine.handle(event, time.monotonic())
            return actions
        except Exception:  # a bug of ours, with its story; other events must not suffer for it
            self.bugs += 1
            logger.exception("%s failed on %r", type(machine).__name__, event)
            return []

    def _set_timer(self) -> None:
        """One timer for all machines, set only while one of them waits for a time."""
        machines = (self.scheduler, self.pool, self.envs.machine)
        times = [at for at in (machine.deadline() for machine in machines) if at is not None]
        at = min(times, default=None)
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at is None else self.loop.call_at(at, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = self._timer_at = None
        self.feed(self.pool, wm.Tick())
        self.feed(self.scheduler, lm.Tick())
        self.feed(self.envs.machine, em.Tick())

    # -- workers: forked, registered, ended -------------------------------------------------------------------

    def attach_fork_server(self, link: children.ForkServerLink) -> None:
        self.fork_link = link

    def _look_for_forks(self) -> None:
        self.fork_link.drain()

    def worker_forked(self, worker_id: int, pid: int) -> None:
        self.cores.worker_of_pid[pid] = worker_id
        self.logs.started(worker_id, pid)
        self.reaper.watch(pid, partial(self._worker_ended, worker_id), group=True)
        self.feed(self.pool, wm.Forked(worker_id, pid))

    def worker_not_forked(self, worker_id: int, cause: str) -> None:
        self.logs.drain(worker_id)
        self.feed(self.pool, wm.ForkFailed(worker_id, cause))

    def _worker_ended(self, worker_id: int, result: os.waitid_result) -> None:
        pid = result.si_pid
        self.cores.worker_of_pid.pop(pid, None)
        self.logs.drain(worker_id)  # before anything else: what it printed comes before the news of its death
        cause = children.describe_exit(result)
        if result.si_code != os.CLD_EXITED and result.si_status == signal.SIGKILL:
            kills = detect.oom_kills()
            if kills > self._oom_kills:
                cause = OUT_OF_MEMORY + "killed by the kernel (SIGKILL)"
            self._oom_kills = kills
        worker = self.pool.workers.get(worker_id)
        if worker is not None and not worker.tag:
            words = self.logs.tail(worker_id, pid)
            cause += f"; it wrote:\n{words}" if words else ""
        self.feed(self.pool, wm.Exited(worker_id, cause))

    def worker_gone(self, gone: wm.WorkerGone) -> None:
        """Its last words have been forwarded already. Resources come back first, then everybody hears of it."""
        core = self.cores.by_worker.get(gone.worker_id)
        if core is not None:
            self._core_lost(core, "its process has ended")
        if gone.was_assigned:
            self.feed(self.scheduler, lm.WorkerLost(gone.worker_id, gone.cause))
        if gone.worker_id in self.start_keys:
            del self.start_keys[gone.worker_id]
            remove_file(self.session.worker_start(gone.worker_id))
        if self.memory is not None:
            self.memory.worker_gone(gone.worker_id)
        tag = gone.tag or (core.tag if core is not None else b"")  # none yet if its setup hook failed
        if gone.tag:
            self.cores.remember_cause(gone.tag, gone.cause)
            for waiter in self._cause_waiters.pop(gone.tag, ()):
                if not waiter.done():
                    waiter.set_result(gone.cause)
            self.head.worker_died(gone.tag, gone.cause)
        if tag:
            remove_file(self.session.core_socket(tag))  # unless it ended in order and removed it itself
        if self.envs.machine.envs:
            self.feed(self.envs.machine, em.LessInUse())
        self.leaving_jobs.look()
        if not self.pool.workers:
            for waiting in self._waiting_for_exit:
                if not waiting.done():
                    waiting.set_result(None)

    # -- cores: lost ------------------------------------------------------------------------------------------

    def connection_ended(self, core: Core, why: str) -> None:
        if self.cores.by_tag.get(core.tag) is not core:
            return  # the reaper was faster
        self._core_lost(core, why)
        if core.kind == "worker":
            # Without a connection it is of no use; if it is not just ending, it must not stay.
            worker_id = core.worker_id
            self.loop.call_later(
                self.settings.worker_exit_grace_s,
                lambda: self.feed(self.pool, wm.KillAsked(worker_id, f"it lost its connection to the node: {why}")),
            )

    def _core_lost(self, core: Core, why: str) -> None:
        self.cores.remove(core)
        self.inspection.core_lost(core)
        if self._metrics is not None:
            self._metrics.core_lost(core)
        self.feed(self.scheduler, lm.CoreLeft(core.tag))
        self.envs.core_left(core.tag)
        if self.ending is None and core is not self.founder:
            self.orphans.owner_died(core.tag)
        if core.kind == "worker":
            return  # the head hears of it when the process has ended, with the cause
        try:
            os.unlink(self.session.core_socket(core.tag))
        except FileNotFoundError:
            pass  # it ended in order and removed it itself
        self.head.driver_gone(core.tag, why, core.leaving)
        self.logs.resume(core.job_id)
        if not self.head.job_goes_on(core.job_id):
            self.job_over(core.job_id)  # its other actors' workers are killed too, without waiting for one another
        if core is self.founder:
            self.founder_gone(f"the driver's connection ended: {why}")

    def founder_gone(self, why: str) -> None:
        """The driver that started the session is gone without shutdown(): nobody needs any of this."""
        self.end(why, graceful=False).add_done_callback(lambda _: self.leave())

    def job_over(self, job_id: bytes) -> None:
        """Nothing needs the job any more: its driver is gone, and so is its last actor, detached ones included. Or a
        head that took over has never heard of it: then its driver has to go."""
        job = self.cores.jobs.pop(job_id, None)
        if job is not None:
            for driver in list(job.drivers.values()):
                driver.tell("job_lost", LOST_JOB)
                driver.peer.close(LOST_JOB)
            self.envs.withdraw(("job", job_id))
            self.guests.job_over(job_id)
            self.feed(self.pool, wm.JobEnded(job_id))

    async def leave_after_answer(self, peer: Any) -> None:
        """Everything has ended, and who asked for it is told first."""
        try:
            await peer.drain()
        except ConnectionError:
            pass  # it was not interested in the answer
        self.leave()

    def leave(self) -> None:
        """Lets main go on to its last lines."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def exit_cause(self, tag: bytes, wait_s: float | None = CAUSE_WAIT_S) -> str:
        """Why the worker with that tag ended; waits for its end, for ever if wait_s is None."""
        known = self.cores.cause_of(tag)
        if known is not None:
            return known
        if not any(worker.tag == tag for worker in self.pool.workers.values()):
            return "unknown: this node has had no such worker"
        waiter: asyncio.Future[str] = self.loop.create_future()
        self._cause_waiters.setdefault(tag, []).append(waiter)
        try:
            return await asyncio.wait_for(waiter, wait_s)
        except asyncio.TimeoutError:
            return STILL_RUNS

    # -- store and control plane ------------------------------------------------------------------------------

    def attach_store(self, started: asyncio.Future[None]) -> None:
        """From now on the store's life is watched. started: set when it first answers, or fails to."""

        def ready() -> None:
            self.transfers.store_back()
            self.tell_all("store_back")  # at the first start too: a worker may have been quicker than the store
            self.guests.store_back()
            if not started.done():
                started.set_result(None)

        def died(cause: str) -> None:
            logger.error("%s", cause)
            if started.done():
                self.tell_all("store_died")
            else:
                assert self.store is not None
                self.store.stop()  # what it can't do now it can't do in a second either
                started.set_exception(RuntimeError(f"the object store could not start: {cause}"))

        def given_up(cause: str) -> None:
            logger.error("%s", cause)
            for job_id in list(self.cores.jobs):
                self.head.report_error(job_id, "store_lost", cause, {})

        if self.store is None:
            started.set_result(None)
        else:
            self.store.attach(self.loop, self.reaper.watch, ready, died, given_up)

    @property
    def node_ip(self) -> str:
        """The address of this machine, as shown."""
        given: str = self.config.get("node_ip") or (self.config.get("cluster_port") or ("127.0.0.1",))[0]
        return given

    def start_redis(self) -> None:
        self.redis.start(self.loop)

    def watch_memory(self) -> None:
        """Once the node is ready: nobody waits for this import."""
        from .memory_shell import MemoryShell

        self.memory = MemoryShell(self)
        if self.scheduler.runs_something:
            self.memory.something_runs()

    @property
    def metrics(self) -> Any:
        if self._metrics is None:
            from .metrics_export import MetricsExport

            self._metrics = MetricsExport(self)
        return self._metrics

    @property
    def metrics_port(self) -> int | None:
        return None if self._metrics is None else self._metrics.port

    def tell(self, tag: bytes, name: str, *args: Any) -> None:
        core = self.cores.by_tag.get(tag) or self.cores.guests.get(tag)
        if core is not None:
            core.tell(name, *args)

    def tell_all(self, name: str, *args: Any) -> None:
        for core in list(self.cores.by_tag.values()):
            core.tell(name, *args)

    # -- the end ----------------------------------------------------------------------------------------------

    def end(self, why: str, graceful: bool) -> asyncio.Task[None]:
        """Ends the session, once. Done when workers have ended and their output is with the driver."""
        if self.ending is None:
            logger.info("the session ends: %s", why)
            self.ending = self.loop.create_task(self._end(graceful))
        elif not graceful and self._waiting_for_exit:
            self._kill_all(why)  # in the middle of a graceful end the driver died
        return self.ending

    async def _end(self, graceful: bool) -> None:
        self.feed(self.pool, wm.NoMoreStarts())
        if graceful and self.pool.workers:
            gone: asyncio.Future[None] = self.loop.create_future()
            self._waiting_for_exit.append(gone)
            for worker_id in list(self.pool.workers):
                self.feed(self.pool, wm.ExitAsked(worker_id, "the session ends"))
            await asyncio.wait([gone], timeout=self.settings.shutdown_grace_s if self.pool.workers else 0)
            if self.pool.workers:
                self._kill_all("it did not end within shutdown_grace_s")
                await asyncio.wait([gone], timeout=1.0)
        self.logs.close()

    def _kill_all(self, why: str) -> None:
        for worker_id in list(self.pool.workers):
            self.feed(self.pool, wm.KillAsked(worker_id, why))

    async def finish(self) -> None:
        """After `end`: stops everything else. The caller then kills what is left below us and removes the folder."""
        if self._timer is not None:
            self._timer.cancel()
        if self.memory is not None:
            self.memory.close()
        if self.supervision is not None:
            self.supervision.close()
        self.fork_link.close()
        self.envs.builds.close()
        if self.cluster_view is not None:
            self.cluster_view.close()
        self.orphans.close()
        self.lost_results.close()
        self.transfers.close()
        if self.store is not None:
            self.store.stop()
        if self.cluster is not None:
            if self.over:
                self.cluster.cluster_over("the node of its head has ended")
            self.cluster.close()
        if self.head is not None:
            await self.head.close()
        if self.redis is not None:
            await self.redis.stop(keep_files=not self.over)
        self.reaper.close()
        if self._metrics is not None:
            self._metrics.close()
        if self.gate is not None:
            self.gate.close()
        if self.server is not None:
            self.server.close("the session has ended")

    def stats(self) -> dict[str, Any]:
        """For tests and tools: pids by role, both machines' stats, counters."""
        return {
            "pids": {
                "node": os.getpid(),
                "fork_server": self.fork_link.pid,
                "plasma_store": self.store.pid if self.store else 0,
                "redis": list(self.redis.pids) if self.redis else [],
                "workers": [worker.pid for worker in self.pool.workers.values() if worker.pid],
            },
            "number": self.number,
            "joining": self.cluster.joining() if self.cluster is not None else 0,
            "neighbours": sorted(self.scheduler.neighbours.numbers()),  # of the nodes that its scheduler has a view of
            "scheduler": self.scheduler.stats(),
            "pool": self.pool.stats(),
            "runtime_envs": self.envs.machine.stats(),
            "cores": len(self.cores.by_tag),
            "core_tags": list(self.cores.by_tag),
            "guest_tags": list(self.cores.guests),
            "fork_server_restarts": self.fork_link.restarts,
            "store_restarts": self.store.restarts if self.store else 0,
            "orphaned_objects": self.orphans.lapsed,
            "orphans_reaped": self.reaper.orphans_reaped,
            "lines_forwarded": self.logs.lines_forwarded,
            "control_plane_syncs": self.disk_sync.syncs if self.disk_sync is not None else 0,
            "memory": self.memory.stats() if self.memory is not None else {},
            "bugs": self.bugs,
        }


def remove_file(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
