"""Workers that die: the right result where there are tries left, else the right error, within a second."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ray
from ray.exceptions import (
    RayTaskError,
    WorkerCrashedError,
)
from tests.chaos.session import (
    assert_held,
    engine,
    forget_orphans,
    gone,
    held,
    held_at_rest,
    pids,
    stored,
    within,
)
from tests.wait import wait_until

from .dying import BIG, SAID, WAYS, Counter, attempts, count, die, echo

__all__ = ["attempts"]


@pytest.mark.parametrize("how", WAYS)
def test_a_task_without_retries_fails_within_a_second_and_says_what_its_worker_died_of(ray_shared, how):
    @ray.remote(max_retries=0)
    def run():
        die(how)

    with within(), pytest.raises(WorkerCrashedError, match=SAID[how]):
        ray.get(run.remote(), timeout=60)
    assert ray.get(echo.remote(1)) == 1


@pytest.mark.parametrize("how", WAYS)
def test_a_task_is_retried_as_often_as_it_may_be_and_then_fails(ray_shared, how, attempts):
    @ray.remote(max_retries=2)
    def run(path):
        count(path)
        die(how)

    with pytest.raises(WorkerCrashedError):
        ray.get(run.remote(attempts.path), timeout=60)
    assert len(attempts) == 3


@pytest.mark.parametrize("how", WAYS)
def test_a_task_whose_worker_dies_once_gives_its_result(ray_shared, how, attempts):
    @ray.remote(max_retries=1)
    def run(path):
        if count(path) == 1:
            die(how)
        return np.full(BIG, 7, np.uint8)

    value = ray.get(run.remote(attempts.path), timeout=60)
    assert (value == 7).all() and len(attempts) == 2


def test_by_default_a_task_is_tried_four_times(ray_shared, attempts):
    @ray.remote
    def run(path):
        if count(path) < 4:
            die("killed")
        return 1

    assert ray.get(run.remote(attempts.path), timeout=60) == 1


def test_tasks_sent_ahead_to_a_worker_that_dies_are_not_charged_for_it(ray_shared, attempts):
    """Many short tasks share a worker's queue; the one that kills it is to blame, the rest must all come through."""

    @ray.remote
    def quick(i):
        return i

    @ray.remote
    def bad(path):
        if count(path) <= 2:
            die("killed")
        return "survived"

    ray.get([quick.remote(i) for i in range(500)])
    refs = [quick.remote(i) for i in range(500)]
    one = bad.remote(attempts.path)
    refs += [quick.remote(i) for i in range(500, 1000)]
    assert ray.get(refs, timeout=60) == list(range(1000))
    assert ray.get(one, timeout=60) == "survived"


@pytest.mark.parametrize("delay_ms", [0, 1, 3, 10, 30])
def test_a_worker_killed_while_it_writes_a_large_result(ray_start, attempts, delay_ms):
    @ray.remote
    def run(path, delay_s):
        value = np.full(100_000_000, 3, np.uint8)
        if count(path) == 1:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            if delay_s == 0:
                time.sleep(60)
        return value

    ref = run.remote(attempts.path, delay_ms / 1000)
    value = ray.get(ref, timeout=30)
    assert value[0] == 3 and value[-1] == 3 and value.nbytes == 100_000_000
    del value, ref
    ray.put(None)
    wait_until(lambda: not stored(), what="the object, whole or half, to go")


def test_a_worker_killed_while_it_puts_leaves_no_room_taken(ray_start, attempts):
    @ray.remote
    def run(path):
        if count(path) == 1:
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
            keep = []
            while True:
                keep.append(ray.put(np.zeros(3_000_000, np.uint8)))
        return 1

    assert ray.get(run.remote(attempts.path), timeout=30) == 1

    def clean():
        forget_orphans()
        return not stored()

    wait_until(clean, what="what the dead worker had put to be evictable")


def test_the_pins_of_a_killed_worker_go_with_it(ray_start):
    before = held_at_rest()

    @ray.remote(max_retries=0)
    def run(box):
        value = ray.get(box[0])
        assert value.nbytes == BIG
        die("killed")

    ref = ray.put(np.zeros(BIG, np.uint8))
    with pytest.raises(WorkerCrashedError):
        ray.get(run.remote([ref]), timeout=60)
    (row,) = stored().values()
    wait_until(lambda: [set(row["pids"]) for row in stored().values()] == [{os.getpid()}])
    assert ray.get(ref).nbytes == BIG
    del ref, row
    assert_held(before)


def test_a_borrowing_worker_that_dies_gives_its_borrowed_refs_back(ray_start):
    @ray.remote
    class Borrower:
        def keep(self, box):
            self.box = box
            return os.getpid()

    borrower = Borrower.remote()
    ref = ray.put(np.zeros(BIG, np.uint8))
    pid = ray.get(borrower.keep.remote([ref]))
    assert held()["lent"] == 1
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: held()["lent"] == 0)
    del ref
    ray.put(None)
    wait_until(lambda: not stored())


def test_a_worker_killed_while_blocked_in_get_gives_back_what_it_had(ray_start, tmp_path):
    @ray.remote
    def slow(path):
        while not os.path.exists(path):
            time.sleep(0.01)
        return 1

    @ray.remote(max_retries=0)
    def blocked(box, path):
        Path(path).write_text(str(os.getpid()))
        return ray.get(box)

    gate, told = str(tmp_path / "gate"), str(tmp_path / "pid")
    inner = slow.remote(gate)
    outer = blocked.remote([inner], told)
    wait_until(lambda: os.path.exists(told) and Path(told).read_text())
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 1, what="the blocked task's CPU to be lent out")
    os.kill(int(Path(told).read_text()), signal.SIGKILL)
    with within(), pytest.raises(WorkerCrashedError):
        ray.get(outer, timeout=60)
    Path(gate).touch()
    assert ray.get(inner, timeout=60) == 1
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 2, what="all CPUs to be free")


def test_a_nested_task_outlives_nothing_when_its_caller_is_killed(ray_start, tmp_path):
    """The child of a dead caller has nobody to answer to: its resources come back and nothing waits for it."""

    @ray.remote
    def child(path):
        Path(path).touch()
        time.sleep(1)
        return 1

    @ray.remote(max_retries=0)
    def parent(path):
        ref = child.remote(path)
        while not os.path.exists(path):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        return ref

    with pytest.raises(WorkerCrashedError):
        ray.get(parent.remote(str(tmp_path / "started")), timeout=60)
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 2, what="all CPUs to be free")
    assert ray.get([echo.remote(i) for i in range(10)], timeout=60) == list(range(10))


def test_a_worker_that_is_stopped_hard_by_memory_limits_raises_memory_error(ray_shared):
    @ray.remote(max_retries=0)
    def hungry():
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
        try:
            return len(bytearray(1 << 33))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    with pytest.raises(MemoryError):
        ray.get(hungry.remote(), timeout=60)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_task_that_raises_a_base_exception_fails_with_it_and_the_worker_lives(ray_shared, error):
    @ray.remote(max_retries=0)
    def run(error):
        raise error

    with pytest.raises((RayTaskError, WorkerCrashedError, type(error))):
        ray.get(run.remote(error), timeout=60)
    assert ray.get(echo.remote(1), timeout=60) == 1


def test_all_workers_killed_at_once_are_replaced_and_their_tasks_rerun(ray_start):
    @ray.remote(max_retries=-1)
    def work(i):
        time.sleep(0.05)
        return i

    refs = [work.remote(i) for i in range(40)]
    for _ in range(3):
        ray.wait(refs, num_returns=5)
        for pid in pids("workers"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert ray.get(refs, timeout=30) == list(range(40))


def test_the_subprocesses_of_a_killed_worker_die_with_it(ray_start):
    @ray.remote(max_retries=0)
    def run(path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        Path(path).write_text(str(child.pid))
        die("killed")

    path = f"/tmp/w-{os.getpid()}-child"
    try:
        with pytest.raises(WorkerCrashedError):
            ray.get(run.remote(path), timeout=60)
        gone(int(Path(path).read_text()))
    finally:
        os.unlink(path)


def test_a_worker_that_owns_objects_is_not_ended_while_somebody_refers_to_them(engine):
    engine.start(num_cpus=2, _system_config={"idle_worker_timeout_s": 0.2, "idle_workers_kept": 0})

    @ray.remote
    def own():
        return [ray.put([os.getpid()]), ray.put(np.zeros(BIG, np.uint8)), echo.remote(5)]

    refs = ray.get([own.remote() for _ in range(4)])
    owners = {ray.get(a)[0] for a, _, _ in refs}
    spare = set(pids("workers")) - owners
    for pid in spare:
        gone(pid)
    time.sleep(1.0)  # five times as long as idle workers may live: the point is that nothing happens
    for a, b, c in refs:
        assert ray.get(a)[0] in owners and ray.get(b).nbytes == BIG and ray.get(c) == 5
    del refs, a, b, c
    ray.put(None)
    for pid in owners:
        gone(pid)
    engine.stop()


def test_a_worker_retired_by_max_calls_lives_until_its_objects_are_not_needed(ray_start):
    @ray.remote(max_calls=1)
    def own():
        return [ray.put([os.getpid()]), ray.put(np.zeros(BIG, np.uint8))]

    refs = ray.get([own.remote() for _ in range(4)])
    got = [(ray.get(a)[0], ray.get(b).nbytes) for a, b in refs]
    assert len({pid for pid, _ in got}) == 4 and all(n == BIG for _, n in got)
    del refs
    ray.put(None)
    for pid, _ in got:
        gone(pid)


def test_the_end_of_an_actor_does_not_take_the_objects_of_tasks_that_ran_before(ray_start):
    """A worker that had run tasks was once made an actor, and its tasks' refs went with the actor's last handle."""

    @ray.remote
    def own():
        return [ray.put([1]), ray.put(np.zeros(BIG, np.uint8))]

    for _ in range(5):
        small, large = ray.get(own.remote())
        wait_until(lambda: engine().stats()["leases"] == 0, what="the worker to be idle again")
        actor = Counter.remote()
        pid = ray.get(actor.pid.remote())
        del actor
        ray.put(None)
        gone(pid)
        assert ray.get(small, timeout=60) == [1] and ray.get(large, timeout=60).nbytes == BIG
