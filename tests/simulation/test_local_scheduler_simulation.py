"""A local scheduler and its worker pool under thousands of random events, in one process, on a virtual clock.

The world around the two machines is played by `World`: drivers and workers come, ask, block, return and die; the fork
server is slow, fails, or starts workers that die. After each event both machines' `check()` must hold, and at the end,
when everybody has left, nothing may be held. A failing seed replays exactly: RAY_SIM_SEED=n pytest <this file>.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from ray._node import lease_messages as lm
from ray._node import local_scheduler as ls
from ray._node import worker_messages as wm
from ray._node import worker_pool as wp
from ray._scheduling.node_resources import NodeResources

JOBS = [bytes([n, 0, 0, 0]) for n in (1, 2)]
SHAPES: list[dict[str, int]] = [
    {"CPU": 10_000},
    {"CPU": 10_000},
    {"CPU": 5_000},
    {"CPU": 40_000},
    {"CPU": 20_000, "GPU": 10_000},
    {"GPU": 2_500},
    {"GPU": 20_000},
    {"custom": 1},
    {},
    {"CPU": 90_000},  # infeasible
    {"TPU": 10_000},  # infeasible
]


class World:
    """Everything that is not one of the two machines."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        total = {"CPU": 40_000, "GPU": 30_000, "custom": 3}
        self.scheduler = ls.LocalScheduler(NodeResources(total), starvation_s=2.0, actors_starting_max=3)
        self.pool = wp.WorkerPool(idle_kept=self.random.randint(0, 2), starting_max=4, start_retries_max=3)
        self.queue: list[tuple[Any, Any]] = []
        self.jobs: set[bytes] = set()
        self.cores: dict[bytes, bytes] = {}  # tag -> job
        self.requests: set[tuple[bytes, int]] = set()  # queued, as far as their owners know
        self.leases: dict[int, tuple[bytes, int]] = {}  # lease -> owner, worker
        self.forking: dict[int, bytes] = {}
        self.unregistered: dict[int, int] = {}  # worker -> pid
        self.alive: dict[int, int] = {}  # every process: worker -> pid
        self.doomed: set[int] = set()  # processes that have got SIGKILL, or were asked to exit
        self.tags: dict[int, bytes] = {}
        self.job_of: dict[int, bytes] = {}
        self.actors: dict[bytes, int] = {}  # actor -> worker, 0 while it waits
        self.granted: list[tuple[bytes, int]] = []
        self.next = 1

    # -- carrying out

    def feed(self, machine: Any, event: Any) -> None:
        self.queue.append((machine, event))
        while self.queue:
            machine, event = self.queue.pop(0)
            for action in machine.handle(event, self.now):
                getattr(self, "do_" + type(action).__name__)(action)
            self.scheduler.check()
            self.pool.check()

    def do_Grant(self, a: lm.Grant) -> None:
        assert (a.tag, a.req_id) in self.requests, "granted what was not asked, or was cancelled"
        assert self.tags[a.worker_id] == a.worker_tag
        assert self.job_of[a.worker_id] == self.cores[a.tag], "a worker of another job"
        assert a.worker_id not in {worker for _, worker in self.leases.values()}, "one worker, two leases"
        self.requests.discard((a.tag, a.req_id))
        self.leases[a.lease_id] = (a.tag, a.worker_id)
        self.granted.append((a.tag, a.req_id))

    def do_Infeasible(self, a: lm.Infeasible) -> None:
        assert (a.tag, a.req_id) in self.requests
        assert "TPU" in a.message or "CPU: 9" in a.message

    def do_Stuck(self, a: lm.Stuck) -> None:
        assert a.job_id in JOBS and "nothing that runs will free" in a.message

    def do_LeaseWanted(self, a: lm.LeaseWanted) -> None:
        assert a.tag in self.cores

    def do_LeaseLost(self, a: lm.LeaseLost) -> None:
        owner, worker_id = self.leases.pop(a.lease_id)
        assert owner == a.tag and worker_id not in self.alive

    def do_AcquireWorker(self, a: lm.AcquireWorker) -> None:
        self.queue.append((self.pool, wm.Acquire(a.ticket, a.job_id)))

    def do_CancelAcquire(self, a: lm.CancelAcquire) -> None:
        self.queue.append((self.pool, wm.AcquireCancelled(a.ticket)))

    def do_ReleaseWorker(self, a: lm.ReleaseWorker) -> None:
        self.queue.append((self.pool, wm.Released(a.worker_id, a.reusable)))

    def do_KillWorker(self, a: lm.KillWorker) -> None:
        self.queue.append((self.pool, wm.KillAsked(a.worker_id, a.why)))

    def do_ReclaimWorker(self, a: lm.ReclaimWorker) -> None:
        if a.worker_id not in self.alive:
            return
        self.queue.append((self.pool, wm.ReclaimAsked(a.worker_id, a.why)))
        if self.random.random() < 0.7:  # else it doesn't stop, and is killed when its time is up
            self.queue.append((self.pool, wm.Reclaimed(a.worker_id)))
            self.queue.append((self.scheduler, lm.Reclaimed(a.worker_id)))

    def do_ActorPlaced(self, a: lm.ActorPlaced) -> None:
        assert self.actors[a.actor_id] == 0

    def do_ActorWorker(self, a: lm.ActorWorker) -> None:
        assert self.actors[a.actor_id] == 0
        self.actors[a.actor_id] = a.worker_id

    def do_ActorInfeasible(self, a: lm.ActorInfeasible) -> None:
        assert a.actor_id in self.actors

    def do_ActorLost(self, a: lm.ActorLost) -> None:
        assert self.actors.pop(a.actor_id) not in self.alive

    def do_StartWorker(self, a: wm.StartWorker) -> None:
        assert a.worker_id not in self.forking
        self.forking[a.worker_id] = a.job_id
        self.job_of[a.worker_id] = a.job_id

    def do_Assigned(self, a: wm.Assigned) -> None:
        assert a.worker_id in self.alive or a.worker_id in self.doomed
        self.queue.append((self.scheduler, lm.WorkerAssigned(a.ticket, a.worker_id, a.tag, a.pid)))

    def do_AskToExit(self, a: wm.AskToExit) -> None:
        self.doomed.add(a.worker_id)

    def do_Kill(self, a: wm.Kill) -> None:
        assert self.alive[a.worker_id] == a.pid
        self.doomed.add(a.worker_id)

    def do_WorkerGone(self, a: wm.WorkerGone) -> None:
        assert a.worker_id not in self.alive
        if a.tag in self.cores:
            self.lose_core(a.tag, queued=True)
        if a.was_assigned:
            self.queue.append((self.scheduler, lm.WorkerLost(a.worker_id, a.cause)))

    def do_StartsFailing(self, a: wm.StartsFailing) -> None:
        assert a.tries >= 3

    # -- what happens

    def lose_core(self, tag: bytes, queued: bool = False) -> None:
        del self.cores[tag]
        self.requests = {request for request in self.requests if request[0] != tag}
        self.leases = {lease: held for lease, held in self.leases.items() if held[0] != tag}
        event = (self.scheduler, lm.CoreLeft(tag))
        self.queue.append(event) if queued else self.feed(*event)

    def new_tag(self) -> bytes:
        self.next += 1
        return self.next.to_bytes(16, "little")

    def join_driver(self, job: bytes) -> None:
        if job not in self.jobs:
            self.jobs.add(job)
            self.feed(self.pool, wm.JobStarted(job))
            self.feed(self.pool, wm.Prestart(job, self.random.randint(0, 3)))
            tag = self.new_tag()
            self.cores[tag] = job
            self.feed(self.scheduler, lm.CoreJoined(tag, job))

    def end_job(self, job: bytes) -> None:
        """The driver dies; its workers' cores go as the workers are killed."""
        self.jobs.discard(job)
        workers = set(self.tags.values())
        for tag in [tag for tag, of in self.cores.items() if of == job and tag not in workers]:
            self.lose_core(tag)
        for actor in [a for a, w in self.actors.items() if w == 0 or self.job_of.get(w) == job]:
            self.drop_actor(actor)
        self.feed(self.pool, wm.JobEnded(job))

    def drop_actor(self, actor: bytes) -> None:
        worker = self.actors.pop(actor)
        self.feed(self.scheduler, lm.ActorReleased(actor))
        assert worker == 0 or self.scheduler.lease_of_worker(worker) is None

    def fork_answers(self, worker_id: int) -> None:
        del self.forking[worker_id]
        if self.random.random() < 0.1:
            self.feed(self.pool, wm.ForkFailed(worker_id, "fork: Resource temporarily unavailable"))
            return
        self.next += 1
        self.alive[worker_id] = self.unregistered[worker_id] = self.next
        self.feed(self.pool, wm.Forked(worker_id, self.next))

    def register(self, worker_id: int) -> None:
        del self.unregistered[worker_id]
        job = self.job_of[worker_id]
        if job in self.jobs:
            tag = self.tags[worker_id] = self.new_tag()
            self.cores[tag] = job
            self.feed(self.scheduler, lm.CoreJoined(tag, job))
            self.feed(self.pool, wm.Registered(worker_id, tag))

    def die(self, worker_id: int) -> None:
        del self.alive[worker_id]
        self.unregistered.pop(worker_id, None)
        self.doomed.discard(worker_id)
        self.feed(self.pool, wm.Exited(worker_id, "killed by SIGKILL"))

    def request(self) -> None:
        tag = self.random.choice(list(self.cores))
        self.next += 1
        self.requests.add((tag, self.next))
        shape = self.random.choice(SHAPES)
        self.feed(self.scheduler, lm.LeaseRequested(tag, self.next, shape, "f", self.random.random() < 0.1))

    def actor(self) -> None:
        actor, job = self.new_tag(), self.random.choice(list(self.jobs))
        self.actors[actor] = 0
        runs_on = self.random.choice([{}, {}, {"CPU": 10_000}, {"GPU": 5_000}])
        self.feed(self.scheduler, lm.ActorRequested(actor, job, runs_on, {"CPU": 10_000}, "actor A"))

    def step(self) -> None:
        pick = self.random.random()
        choose = lambda things: self.random.choice(sorted(things)) if things else None  # noqa: E731
        self.now += self.random.expovariate(10)
        deadlines = [at for at in (self.scheduler.deadline(), self.pool.deadline()) if at is not None]
        if deadlines and min(deadlines) <= self.now:
            self.feed(self.pool, wm.Tick())
            self.feed(self.scheduler, lm.Tick())
        elif pick < 0.02:
            self.join_driver(self.random.choice(JOBS))
        elif pick < 0.023 and self.jobs:
            self.end_job(self.random.choice(sorted(self.jobs)))
        elif pick < 0.25 and self.cores:
            self.request()
        elif pick < 0.28 and self.jobs:
            self.actor()
        elif pick < 0.33 and (request := choose(self.requests)):
            self.requests.discard(request)
            self.feed(self.scheduler, lm.LeaseCancelled(*request))
        elif pick < 0.50 and (lease := choose(self.leases)):
            owner, _ = self.leases.pop(lease)
            self.feed(self.scheduler, lm.LeaseReturned(owner, lease, self.random.random() < 0.9))
        elif pick < 0.60 and (worker := choose(self.tags)):
            event = lm.Blocked if self.random.random() < 0.5 else lm.Unblocked
            self.feed(self.scheduler, event(worker))
        elif pick < 0.75 and (worker := choose(self.forking)):
            self.fork_answers(worker)
        elif pick < 0.90 and (worker := choose(self.unregistered)):
            self.register(worker)
        elif pick < 0.95 and (worker := choose(self.doomed)):
            self.die(worker)
        elif pick < 0.96 and (worker := choose(self.alive)):
            self.die(worker)
        elif pick < 0.97 and (actor := choose(self.actors)):
            self.feed(self.scheduler, lm.ActorStarted(actor))
        elif pick < 0.98 and (actor := choose(self.actors)):
            self.drop_actor(actor)
        elif (
            pick < 0.985
            and (lost := choose({t for w, t in self.tags.items() if w in self.alive}))
            and lost in self.cores
        ):
            self.lose_core(lost)  # its connection ended, its process has not yet
        elif pick < 0.987 and (worker := choose(self.job_of)):
            self.feed(self.pool, wm.ExitAsked(worker, "asked by a test"))
        elif pick < 0.989 and (worker := choose(self.job_of)):
            self.feed(self.pool, wm.KillAsked(worker, "killed by a test"))
        elif pick < 0.99:  # late, repeated and forged messages
            self.feed(self.scheduler, lm.LeaseReturned(b"x" * 16, 5, True))
            self.feed(self.scheduler, lm.LeaseCancelled(b"x" * 16, 5))
            self.feed(self.scheduler, lm.LeaseRequested(b"x" * 16, 5, {}))
            self.feed(self.pool, wm.Exited(10**9, ""))

    def finish(self) -> None:
        for job in sorted(self.jobs):
            self.end_job(job)
        while self.forking or self.alive:
            for worker_id in sorted(self.forking):
                self.fork_answers(worker_id)
            for worker_id in sorted(self.alive):
                self.die(worker_id)


SEEDS = [int(os.environ["RAY_SIM_SEED"])] if "RAY_SIM_SEED" in os.environ else range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_index_holds_after_each_of_many_random_events_and_nothing_is_left_at_the_end(seed: int) -> None:
    world = World(seed)
    for job in JOBS:
        world.join_driver(job)
    for _ in range(3000):
        world.step()
    assert len(world.granted) > 100, "the simulation must do something"
    world.finish()
    assert not world.pool.workers
    assert world.scheduler.resources.available == world.scheduler.resources.total
    assert not any(world.scheduler.stats()["leases"].values())
    assert world.pool.deadline() is None and world.scheduler.deadline() is None


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        world = World(99)
        world.join_driver(JOBS[0])
        for _ in range(500):
            world.step()
        runs.append((world.granted, world.now, repr(world.scheduler)))
    assert runs[0] == runs[1]
