"""Decides when workers start, wait, work and end. Pure: `handle(event, now) -> actions`, no I/O, no clock.

Runs in the node process, on its event loop. A worker belongs to one job and one runtime environment for life: it is of
one *kind*. It is in exactly one of

    STARTING   asked of the fork server, not yet registered; counts towards the tickets of its kind that wait
    IDLE       registered, of no use to anybody; found in its kind's `idle`, the one used last at the end
    ASSIGNED   has a ticket: a lease of the local scheduler
    EXITING    asked to end (idle too long, not reusable); killed if it is still there at its deadline
    (gone)     dead and reaped: forgotten

If a worker dies while ASSIGNED the scheduler is told (wm.WorkerGone), else nobody. Workers that die one after another
before they register have a common cause (a broken sys.path, no memory): starting is tried again ever more slowly and,
after `start_retries_max` in a row, a person is told with the reason - or, if they live in an environment, those who
wait for one of them are (wm.EnvBroken), for it is theirs. If the fork server dies, starts it had not answered fail
and are asked again of the next one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ray._scheduling.machine import InvalidTransition, Story

from . import worker_messages as wm

STARTING, IDLE, ASSIGNED, EXITING, GONE = "STARTING", "IDLE", "ASSIGNED", "EXITING", "GONE"

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 10.0


class Worker:
    __slots__ = (
        "cause",
        "env",
        "idle_since",
        "job_id",
        "pid",
        "reclaim_cause",
        "state",
        "story",
        "tag",
        "ticket",
        "used",
        "worker_id",
    )

    def __init__(self, worker_id: int, job_id: bytes, env: str) -> None:
        self.worker_id = worker_id
        self.job_id = job_id
        self.env = env  # name of its runtime environment; "" is the plain one
        self.state = STARTING
        self.pid = 0  # 0: not forked yet
        self.tag = b""
        self.ticket = 0
        self.used = False  # has had a ticket: it may own objects of the tasks that it ran
        self.idle_since = 0.0
        self.cause: str | None = None  # why we kill it, or asked it to exit: a better answer than "killed by SIGKILL"
        self.reclaim_cause: str | None = None  # set while it is asked to drop a dead owner's task
        self.story = Story()

    def __repr__(self) -> str:
        return f"Worker({self.worker_id}, pid={self.pid}, {self.state}, {self.story})"


class _Kind:
    """The workers of one job in one environment. The plain kind lives as long as the job, others while used."""

    __slots__ = ("env", "failures", "idle", "job_id", "prestart", "retry_at", "starting", "tickets")

    def __init__(self, job_id: bytes, env: str) -> None:
        self.job_id = job_id
        self.env = env
        self.idle: OrderedDict[int, Worker] = OrderedDict()
        self.tickets: OrderedDict[int, bool] = OrderedDict()  # waiting for a worker, in order; True: for a fresh one
        self.starting = 0
        self.prestart = 0  # wanted although no ticket may be waiting; each that comes up takes one off
        self.failures = 0  # starts in a row that came to nothing
        self.retry_at: float | None = None  # no start before this

    def ticket_for(self, worker: Worker) -> int | None:
        """The first ticket that waits and that this worker may have."""
        for ticket, fresh in self.tickets.items():
            if not (fresh and worker.used):
                return ticket
        return None


class WorkerPool:
    """The workers of one node. Call from one thread."""

    def __init__(
        self,
        *,
        idle_kept: int,
        idle_timeout_s: float = 10.0,
        starting_max: int = 8,
        start_timeout_s: float = 30.0,
        env_start_timeout_s: float = 600.0,
        exit_grace_s: float = 5.0,
        start_retries_max: int = 5,
    ) -> None:
        self._idle_kept = idle_kept  # a job
        self._idle_timeout_s = idle_timeout_s
        self._starting_max = starting_max
        self._start_timeout_s = start_timeout_s
        self._env_start_timeout_s = env_start_timeout_s  # a container or a setup hook may take long
        self._exit_grace_s = exit_grace_s
        self._start_retries_max = start_retries_max
        self._jobs: dict[bytes, dict[str, _Kind]] = {}  # by environment
        self._leaving: set[bytes] = set()  # jobs that start nothing any more: JobEnded will follow
        self.workers: dict[int, Worker] = {}
        self._deadlines: dict[int, float] = {}  # of workers that must do something by a time: register, or be gone
        self._ticket_kind: dict[int, _Kind] = {}  # of tickets that wait
        self._starting = 0
        self._next_id = 1
        self._actions: list[Any] = []
        self.ignored = 0
        self.started = 0

    # -- the gate ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now: float) -> list[Any]:
        HANDLERS[type(event)](self, event, now)
        self._start_what_is_needed(now)
        actions, self._actions = self._actions, []
        return actions

    def deadline(self) -> float | None:
        """When to send a wm.Tick, or None. Only what must end or be tried again has one: an idle pool sets no timer."""
        times = list(self._deadlines.values())
        for kinds in self._jobs.values():
            for kind in kinds.values():
                if kind.retry_at is not None and self._wants(kind) > 0 and self._starting_max:
                    times.append(kind.retry_at)
            if sum(len(kind.idle) for kind in kinds.values()) > self._idle_kept:
                times.append(self._longest_idle(kinds).idle_since + self._idle_timeout_s)
        return min(times, default=None)

    def _go(self, worker: Worker, event: str, now: float) -> None:
        step = TRANSITIONS.get((worker.state, event))
        if step is None:
            raise InvalidTransition(f"no row for {event} in {worker.state}: {worker!r}")
        before = worker.state
        after = step(self, worker, now)
        worker.state = after
        worker.story.add(now, before, event, after)

    # -- events -----------------------------------------------------------------------------------------------

    def _job_started(self, event: wm.JobStarted, now: float) -> None:
        self._jobs.setdefault(event.job_id, {"": _Kind(event.job_id, "")})

    def _job_ended(self, event: wm.JobEnded, now: float) -> None:
        kinds = self._jobs.pop(event.job_id, None)
        self._leaving.discard(event.job_id)
        if kinds is None:
            self.ignored += 1
            return
        for kind in kinds.values():
            for ticket in kind.tickets:
                del self._ticket_kind[ticket]
        for worker in [worker for worker in self.workers.values() if worker.job_id == event.job_id]:
            worker.cause = worker.cause or "its job has ended"
            self._go(worker, "JobEnded", now)

    def _job_leaving(self, event: wm.JobLeaving, now: float) -> None:
        kinds = self._jobs.get(event.job_id)
        if kinds is None:
            self.ignored += 1
            return
        self._leaving.add(event.job_id)
        for kind in kinds.values():
            kind.prestart = 0
            for ticket in kind.tickets:
                del self._ticket_kind[ticket]
            kind.tickets.clear()
        for worker in [worker for worker in self.workers.values() if worker.job_id == event.job_id]:
            self._exit_asked(wm.ExitAsked(worker.worker_id, event.why), now)

    def _prestart(self, event: wm.Prestart, now: float) -> None:
        kind = self._kind(event.job_id, event.env)
        if kind is None:
            self.ignored += 1
            return
        kind.prestart = max(kind.prestart, event.workers - len(kind.idle))

    def _acquire(self, event: wm.Acquire, now: float) -> None:
        kind = self._kind(event.job_id, event.env)
        if kind is None:
            self.ignored += 1  # its job has just ended; so do the leases that wait for it
            return
        kind.tickets[event.ticket] = event.fresh
        self._ticket_kind[event.ticket] = kind
        for worker in reversed(kind.idle.values()):  # the one used last first: its caches are warm
            if not (event.fresh and worker.used):
                self._go(worker, "Assign", now)
                return

    def _acquire_cancelled(self, event: wm.AcquireCancelled, now: float) -> None:
        kind = self._ticket_kind.pop(event.ticket, None)
        if kind is None:
            self.ignored += 1
            return
        del kind.tickets[event.ticket]  # the worker that starts for it will be idle and reaped in time

    def _released(self, event: wm.Released, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.state != ASSIGNED:
            self.ignored += 1  # it has died meanwhile
            return
        # one that was asked to exit or killed must not be lent to anybody else
        reusable = event.reusable and worker.cause is None and worker.job_id in self._jobs
        self._go(worker, "Released" if reusable else "Retired", now)

    def _forked(self, event: wm.Forked, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None:
            self.ignored += 1
            return
        worker.pid = event.pid
        if worker.state == EXITING:  # killed before it was made: its job ended meanwhile
            self._actions.append(wm.Kill(worker.worker_id, worker.pid))

    def _fork_failed(self, event: wm.ForkFailed, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.pid:
            self.ignored += 1
            return
        worker.cause = worker.cause or event.cause
        self._go(worker, "Exited", now)

    def _registered(self, event: wm.Registered, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.tag:
            self.ignored += 1
            return
        worker.tag = event.tag
        if worker.state == STARTING:
            self._go(worker, "Registered", now)

    def _exited(self, event: wm.Exited, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None:
            self.ignored += 1
            return
        worker.cause = worker.cause or event.cause
        self._go(worker, "Exited", now)

    def _kill_asked(self, event: wm.KillAsked, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None:
            self.ignored += 1
            return
        worker.cause = event.why
        self._kill(worker)

    def _reclaim_asked(self, event: wm.ReclaimAsked, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.state != ASSIGNED or worker.cause is not None:
            self.ignored += 1  # dead, or on its way out already
            return
        worker.reclaim_cause = worker.cause = event.why
        self._deadlines[worker.worker_id] = now + self._exit_grace_s

    def _reclaimed(self, event: wm.Reclaimed, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.cause is None or worker.cause != worker.reclaim_cause:
            self.ignored += 1
            return
        worker.reclaim_cause = worker.cause = None
        self._deadlines.pop(worker.worker_id, None)

    def _exit_postponed(self, event: wm.ExitPostponed, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.cause is None:
            self.ignored += 1
            return
        if worker.job_id not in self._jobs:  # over: nobody can need anything, and what it waits for itself never comes
            self._kill(worker)
            return
        self._deadlines.pop(worker.worker_id, None)

    def _exit_asked(self, event: wm.ExitAsked, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.state == EXITING:
            self.ignored += 1
            return
        worker.cause = event.why
        if worker.state == ASSIGNED:  # stays assigned until it is dead: its lease holds resources
            self._deadlines[worker.worker_id] = now + self._exit_grace_s
            if event.ask:
                self._actions.append(wm.AskToExit(worker.worker_id))
        else:
            self._go(worker, "Retired", now)

    def _setup_failed(self, event: wm.SetupFailed, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.state != STARTING:
            self.ignored += 1
            return
        worker.cause = event.cause
        self._give_up(worker, event.cause)
        self._go(worker, "Retired", now)

    def _env_forgotten(self, event: wm.EnvForgotten, now: float) -> None:
        for kinds in list(self._jobs.values()):
            for worker in list(kinds[event.env].idle.values()) if event.env in kinds else ():
                worker.cause = "what its runtime environment was built of was removed to make room"
                self._go(worker, "Retired", now)

    def _no_more_starts(self, event: wm.NoMoreStarts, now: float) -> None:
        self._starting_max = 0

    def _tick(self, event: wm.Tick, now: float) -> None:
        for worker_id, at in list(self._deadlines.items()):
            if at <= now:
                worker = self.workers[worker_id]
                if worker.state == STARTING:
                    worker.cause = f"it did not register within {self._patience_s(worker.env):g} s of its start"
                self._kill(worker)
        for kinds in self._jobs.values():
            for kind in kinds.values():
                if kind.retry_at is not None and kind.retry_at <= now:
                    kind.retry_at = None
            while sum(len(kind.idle) for kind in kinds.values()) > self._idle_kept:
                worker = self._longest_idle(kinds)
                if worker.idle_since + self._idle_timeout_s > now:
                    break
                worker.cause = "idle"
                self._go(worker, "Retired", now)

    # -- steps ------------------------------------------------------------------------------------------------

    def _to_idle_or_ticket(self, worker: Worker, now: float) -> str:
        kind = self._kind_of(worker)
        worker.ticket = 0
        if kind.ticket_for(worker) is not None:
            return self._assign(worker, now)
        worker.idle_since = now
        kind.idle[worker.worker_id] = worker
        return IDLE

    def _assign(self, worker: Worker, now: float) -> str:
        kind = self._kind_of(worker)
        kind.idle.pop(worker.worker_id, None)
        ticket = kind.ticket_for(worker)
        assert ticket is not None
        worker.ticket, worker.used = ticket, True
        del kind.tickets[ticket]
        del self._ticket_kind[ticket]
        self._actions.append(wm.Assigned(worker.ticket, worker.worker_id, worker.tag, worker.pid))
        return ASSIGNED

    def _welcome(self, worker: Worker, now: float) -> str:
        self._deadlines.pop(worker.worker_id, None)
        self._starting_over(worker)
        kind = self._kind_of(worker)
        kind.failures = 0
        kind.prestart = max(0, kind.prestart - 1)
        return self._to_idle_or_ticket(worker, now)

    def _start_failed(self, worker: Worker, now: float) -> str:
        self._starting_over(worker)
        self._forget(worker, was_assigned=False)
        kind = self._kind_of(worker)
        kind.failures += 1
        kind.retry_at = now + min(BACKOFF_FIRST_S * 2 ** (kind.failures - 1), BACKOFF_MAX_S)
        kind.prestart = 0
        if kind.failures % self._start_retries_max == 0:
            cause = worker.cause or "unknown"
            if kind.env:
                self._give_up(
                    worker, f"{kind.failures} workers in a row died while starting in it. The last one {cause}"
                )
            else:
                self._actions.append(wm.StartsFailing(worker.job_id, cause, kind.failures))
        return GONE

    def _give_up(self, worker: Worker, cause: str) -> None:
        """Those who wait for a worker of this kind are told; until somebody asks anew, none is started."""
        kind = self._kind_of(worker)
        kind.prestart = kind.failures = 0
        for ticket in kind.tickets:
            del self._ticket_kind[ticket]
        kind.tickets.clear()
        self._actions.append(wm.EnvBroken(kind.job_id, kind.env, cause))

    def _retire(self, worker: Worker, now: float) -> str:
        if worker.state == STARTING:
            self._starting_over(worker)
        if worker.job_id in self._jobs:
            self._kind_of(worker).idle.pop(worker.worker_id, None)
        self._deadlines[worker.worker_id] = now + self._exit_grace_s
        worker.cause = worker.cause or "retired"
        if worker.tag:
            self._actions.append(wm.AskToExit(worker.worker_id))
        else:
            self._kill(worker)  # it has no connection to be asked over
        return EXITING

    def _kill_at_job_end(self, worker: Worker, now: float) -> str:
        if worker.state == STARTING:
            self._starting_over(worker)
        self._kill(worker)
        return worker.state if worker.state == ASSIGNED else EXITING

    def _bury(self, worker: Worker, now: float) -> str:
        if worker.state == IDLE:
            del self._kind_of(worker).idle[worker.worker_id]
        self._forget(worker, was_assigned=worker.state == ASSIGNED)
        if worker.env and worker.job_id in self._jobs:
            kind = self._kind_of(worker)
            if not (kind.idle or kind.tickets or kind.starting or kind.prestart):
                del self._jobs[worker.job_id][worker.env]  # ASSIGNED ones make it again when they come back
        return GONE

    def _forget(self, worker: Worker, was_assigned: bool) -> None:
        del self.workers[worker.worker_id]
        self._deadlines.pop(worker.worker_id, None)
        self._actions.append(wm.WorkerGone(worker.worker_id, worker.tag, worker.cause or "unknown", was_assigned))

    def _kill(self, worker: Worker) -> None:
        self._deadlines.pop(worker.worker_id, None)
        if worker.pid:
            self._actions.append(wm.Kill(worker.worker_id, worker.pid))

    def _starting_over(self, worker: Worker) -> None:
        self._starting -= 1
        if worker.job_id in self._jobs:
            self._kind_of(worker).starting -= 1

    # -- starting ---------------------------------------------------------------------------------------------

    def _kind(self, job_id: bytes, env: str) -> _Kind | None:
        """Of a job that may still start workers; None: it has ended, or is about to."""
        kinds = self._jobs.get(job_id)
        if kinds is None or job_id in self._leaving:
            return None
        return kinds.setdefault(env, _Kind(job_id, env))

    def _kind_of(self, worker: Worker) -> _Kind:
        return self._jobs[worker.job_id].setdefault(worker.env, _Kind(worker.job_id, worker.env))

    def _longest_idle(self, kinds: dict[str, _Kind]) -> Worker:
        return min((next(iter(kind.idle.values())) for kind in kinds.values() if kind.idle), key=lambda w: w.idle_since)

    def _patience_s(self, env: str) -> float:
        return max(self._start_timeout_s, self._env_start_timeout_s) if env else self._start_timeout_s

    def _wants(self, kind: _Kind) -> int:
        return max(len(kind.tickets), kind.prestart) - kind.starting

    def _start_what_is_needed(self, now: float) -> None:
        """Starts workers until each waiting ticket has one on the way, a kind in turn, within starting_max."""
        while self._starting < self._starting_max:
            wanting = [
                kind
                for kinds in self._jobs.values()
                for kind in kinds.values()
                if self._wants(kind) > 0 and (kind.retry_at or 0.0) <= now
            ]
            if not wanting:
                return
            kind = min(wanting, key=lambda kind: kind.starting)
            worker = Worker(self._next_id, kind.job_id, kind.env)
            self._next_id += 1
            self.workers[worker.worker_id] = worker
            self._deadlines[worker.worker_id] = now + self._patience_s(kind.env)
            worker.story.add(now, "-", "Started", STARTING)
            kind.starting += 1
            kind.retry_at = None
            self._starting += 1
            self.started += 1
            self._actions.append(wm.StartWorker(worker.worker_id, kind.job_id, kind.env))
            if kind.failures:
                return  # after a failure one at a time, until one has come up

    # -- for tests and tools ----------------------------------------------------------------------------------

    def has_workers(self, job_id: bytes) -> bool:
        return any(worker.job_id == job_id for worker in self.workers.values())

    def stats(self) -> dict[str, Any]:
        counts = {STARTING: 0, IDLE: 0, ASSIGNED: 0, EXITING: 0}
        for worker in self.workers.values():
            counts[worker.state] += 1
        waiting = len(self._ticket_kind)
        return {"workers": counts, "tickets_waiting": waiting, "started": self.started, "ignored": self.ignored}

    def check(self) -> None:
        """Re-derives every index from the workers. Raises: AssertionError."""
        every = [kind for kinds in self._jobs.values() for kind in kinds.values()]
        for kind in every:
            mine = [w for w in self.workers.values() if (w.job_id, w.env) == (kind.job_id, kind.env)]
            assert set(kind.idle) == {worker.worker_id for worker in mine if worker.state == IDLE}
            assert kind.starting == sum(worker.state == STARTING for worker in mine), kind.job_id
            assert all(self._ticket_kind[ticket] is kind for ticket in kind.tickets)
            for worker in kind.idle.values():
                assert kind.ticket_for(worker) is None, "a ticket waits beside an idle worker that could have it"
        assert self._starting == sum(worker.state == STARTING for worker in self.workers.values())
        assert self._starting <= self._starting_max or self._starting_max == 0
        assert len(self._ticket_kind) == sum(len(kind.tickets) for kind in every)
        tickets = [worker.ticket for worker in self.workers.values() if worker.state == ASSIGNED]
        assert len(tickets) == len(set(tickets)) and not set(tickets) & self._ticket_kind.keys()
        assert self._deadlines.keys() <= self.workers.keys()
        for worker in self.workers.values():
            assert worker.state in (ASSIGNED, EXITING) or worker.job_id in self._jobs, worker

    def __repr__(self) -> str:
        return f"WorkerPool({self.stats()})"


_Step = Callable[[WorkerPool, Worker, float], str]

TRANSITIONS: dict[tuple[str, str], _Step] = {
    (STARTING, "JobEnded"): WorkerPool._kill_at_job_end,
    (IDLE, "JobEnded"): WorkerPool._retire,
    (ASSIGNED, "JobEnded"): WorkerPool._kill_at_job_end,
    (EXITING, "JobEnded"): WorkerPool._kill_at_job_end,
    (STARTING, "Exited"): WorkerPool._start_failed,
    (IDLE, "Exited"): WorkerPool._bury,
    (ASSIGNED, "Exited"): WorkerPool._bury,
    (EXITING, "Exited"): WorkerPool._bury,
    (STARTING, "Retired"): WorkerPool._retire,
    (IDLE, "Retired"): WorkerPool._retire,
    (ASSIGNED, "Retired"): WorkerPool._retire,
    (STARTING, "Registered"): WorkerPool._welcome,
    (IDLE, "Assign"): WorkerPool._assign,
    (ASSIGNED, "Released"): WorkerPool._to_idle_or_ticket,
}

HANDLERS: dict[type, Callable[[WorkerPool, Any, float], None]] = {
    wm.JobStarted: WorkerPool._job_started,
    wm.JobLeaving: WorkerPool._job_leaving,
    wm.JobEnded: WorkerPool._job_ended,
    wm.Prestart: WorkerPool._prestart,
    wm.Acquire: WorkerPool._acquire,
    wm.AcquireCancelled: WorkerPool._acquire_cancelled,
    wm.Released: WorkerPool._released,
    wm.Forked: WorkerPool._forked,
    wm.ForkFailed: WorkerPool._fork_failed,
    wm.Registered: WorkerPool._registered,
    wm.Exited: WorkerPool._exited,
    wm.KillAsked: WorkerPool._kill_asked,
    wm.ExitAsked: WorkerPool._exit_asked,
    wm.ExitPostponed: WorkerPool._exit_postponed,
    wm.ReclaimAsked: WorkerPool._reclaim_asked,
    wm.Reclaimed: WorkerPool._reclaimed,
    wm.SetupFailed: WorkerPool._setup_failed,
    wm.EnvForgotten: WorkerPool._env_forgotten,
    wm.NoMoreStarts: WorkerPool._no_more_starts,
    wm.Tick: WorkerPool._tick,
}
