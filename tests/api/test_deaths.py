"""What dies, and what its callers see: the right result where there are tries left, else the right error, within a
second.

One kind of process at a time: workers, actors, then what serves the session (fork server, store, Redis, node), then the
driver itself, whose end must leave nothing. Deaths at random and under load are in tests/chaos.
"""

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
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    ObjectLostError,
    RayTaskError,
    WorkerCrashedError,
)
from tests.chaos.session import (
    DETECTION_S,
    assert_held,
    engine,
    forget_orphans,
    gone,
    held,
    held_at_rest,
    kill,
    pids,
    stored,
    wait_for_store,
    within,
)
from tests.leaks import Snapshot
from tests.wait import Stopwatch, wait_until

ROOT = str(Path(__file__).resolve().parents[2])
BIG = 300_000


def die(how: str) -> None:
    """Ends this process, in one of the ways in which workers end."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        import ctypes

        ctypes.string_at(0)
    elif how == "os._exit":
        os._exit(3)
    elif how == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)  # some signals arrive a moment later


WAYS = ["killed", "segfault", "os._exit"]
SAID = {"killed": "SIGKILL", "segfault": "SIGSEGV", "os._exit": "code 3"}


@pytest.fixture
def attempts(tmp_path):
    """A counter that outlives workers: attempts.path is given to tasks, which call `count`."""

    class Attempts:
        path = str(tmp_path / "attempts")

        def __len__(self):
            return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    return Attempts()


def count(path: str) -> int:
    """Notes one more attempt; how many there have been with this one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, b".")
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


@ray.remote
def echo(x):
    return x


# -- workers ----------------------------------------------------------------------------------------------------------


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


# -- actors -----------------------------------------------------------------------------------------------------------


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.value = start

    def pid(self):
        return os.getpid()

    def add(self, n=1):
        self.value += n
        return self.value

    def die(self, how="killed"):
        die(how)

    def hang(self):
        time.sleep(60)

    def die_first(self, path):
        if count(path) == 1:
            die("killed")
        return len(Path(path).read_text())


@pytest.mark.parametrize("how", WAYS)
def test_calls_on_an_actor_that_dies_fail_within_a_second_and_say_why(ray_shared, how):
    actor = Counter.remote()
    assert ray.get(actor.add.remote()) == 1
    hung, later = actor.die.remote(how), actor.add.remote()
    with within(), pytest.raises(ActorDiedError, match=SAID[how]):
        ray.get(hung, timeout=60)
    with within(), pytest.raises(ActorDiedError):
        ray.get(later, timeout=60)
    with within(), pytest.raises(ActorDiedError, match=SAID[how]):
        ray.get(actor.add.remote(), timeout=60)


def test_an_actor_is_restarted_as_often_as_it_may_be_with_the_arguments_it_had(ray_shared):
    actor = Counter.options(max_restarts=2).remote(ray.put(10))
    for _ in range(2):
        assert ray.get(actor.add.remote(), timeout=60) == 11
        with pytest.raises(ActorUnavailableError):
            ray.get(actor.die.remote(), timeout=60)
    assert ray.get(actor.add.remote(), timeout=60) == 11
    with pytest.raises(ActorDiedError):
        ray.get(actor.die.remote(), timeout=60)
    with pytest.raises(ActorDiedError):
        ray.get(actor.add.remote(), timeout=60)


def test_a_call_with_tries_left_runs_again_on_the_restarted_actor(ray_shared, attempts):
    actor = Counter.options(max_restarts=-1, max_task_retries=1).remote()
    assert ray.get(actor.die_first.remote(attempts.path), timeout=60) == 2
    with pytest.raises(ActorUnavailableError):
        ray.get(actor.die.remote(), timeout=60)  # twice
    assert ray.get(actor.add.remote(), timeout=60) == 1


def test_calls_made_while_an_actor_restarts_wait_for_it_in_order(ray_shared):
    actor = Counter.options(max_restarts=1).remote()
    pid = ray.get(actor.pid.remote())
    hung = actor.hang.remote()
    os.kill(pid, signal.SIGKILL)
    refs = [actor.add.remote() for _ in range(100)]
    with pytest.raises(ActorUnavailableError):
        ray.get(hung, timeout=60)
    got = []
    for ref in refs:  # those sent before the death was seen may be lost: they were in flight
        with contextlib.suppress(ActorUnavailableError):
            got.append(ray.get(ref, timeout=60))
    assert got == list(range(1, len(got) + 1))
    assert ray.get(actor.add.remote(), timeout=60) == len(got) + 1


def test_with_retries_no_call_is_lost_and_order_is_kept_over_restarts(ray_shared):
    actor = Counter.options(max_restarts=-1, max_task_retries=-1).remote()

    @ray.remote
    class Recorder:
        def __init__(self):
            self.seen = []

        def note(self, i):
            if not self.seen or self.seen[-1] < i:
                self.seen.append(i)

        def all(self):
            return self.seen

    refs = []
    for i in range(300):
        refs.append(actor.add.remote(0))
        if i % 100 == 50:
            os.kill(ray.get(actor.pid.remote(), timeout=60), signal.SIGKILL)
    assert ray.get(refs, timeout=60) == [0] * 300


def test_every_holder_of_a_handle_hears_of_the_actors_death(ray_shared):
    @ray.remote
    def call(actor):
        try:
            ray.get(actor.hang.remote(), timeout=60)
        except ActorDiedError:
            return "died"

    actor = Counter.remote()
    pid = ray.get(actor.pid.remote())
    refs = [call.remote(actor) for _ in range(2)]
    assert ray.wait(refs, num_returns=2, timeout=0.3)[0] == []
    os.kill(pid, signal.SIGKILL)
    with within():
        assert ray.get(refs, timeout=60) == ["died", "died"]


def test_an_actor_whose_constructor_dies_fails_its_calls(ray_shared):
    @ray.remote
    class Stillborn:
        def __init__(self):
            die("killed")

        def f(self):
            return 1

    actor = Stillborn.remote()
    with within(3), pytest.raises(ActorDiedError):
        ray.get(actor.f.remote(), timeout=60)


def test_an_actor_whose_constructor_raises_fails_its_calls_with_that(ray_shared):
    @ray.remote
    class Stillborn:
        def __init__(self):
            raise KeyError("not today")

        def f(self):
            return 1

    with within(3), pytest.raises((ActorDiedError, KeyError), match="not today"):
        ray.get(Stillborn.remote().f.remote(), timeout=60)


def test_an_actor_made_by_a_worker_that_dies_goes_with_it(ray_start):
    @ray.remote
    class Maker:
        def make(self):
            self.actor = Counter.remote()
            return os.getpid(), self.actor, ray.get(self.actor.pid.remote())

    maker = Maker.remote()
    me, actor, child = ray.get(maker.make.remote())
    os.kill(me, signal.SIGKILL)
    gone(child)
    with within(), pytest.raises(ActorDiedError):
        ray.get(actor.pid.remote(), timeout=60)


# -- fork server, Redis -----------------------------------------------------------------------------------------------


def test_without_its_fork_server_the_session_goes_on_and_another_is_started(ray_start):
    pid = kill("fork_server")
    assert ray.get([echo.remote(i) for i in range(10)], timeout=60) == list(range(10))
    wait_until(lambda: pids("fork_server") and pids("fork_server") != [pid])
    actors = [Counter.remote() for _ in range(3)]  # new processes, from the new one
    assert ray.get([a.add.remote() for a in actors], timeout=60) == [1, 1, 1]


def test_workers_that_a_dead_fork_server_was_making_are_made_by_the_next(ray_start):
    actors = [Counter.remote() for _ in range(6)]
    kill("fork_server")
    actors += [Counter.remote() for _ in range(6)]
    assert ray.get([a.add.remote() for a in actors], timeout=30) == [1] * 12


def test_work_goes_on_while_redis_is_dead_and_its_tables_come_back(ray_start):
    engine().rpc("kv_put", b"before", b"1", True, b"ns")
    actor = Counter.remote()
    ray.get(actor.add.remote())
    wait_until(lambda: pids("redis"))
    pid = kill("redis")
    assert ray.get([echo.remote(i) for i in range(100)], timeout=60) == list(range(100))
    assert ray.get(actor.add.remote(), timeout=60) == 2
    wait_until(lambda: pids("redis") and pids("redis") != [pid])
    assert engine().rpc("kv_get", b"before", b"ns") == b"1"
    assert ray.get(actor.add.remote(), timeout=60) == 3
    engine().rpc("kv_put", b"after", b"2", True, b"ns")
    assert engine().rpc("kv_get", b"after", b"ns") == b"2"


# -- the store --------------------------------------------------------------------------------------------------------


def test_after_the_stores_death_puts_work_again(ray_start):
    kill("plasma_store")
    value = np.arange(100_000)
    assert (ray.get(ray.put(value)) == value).all()
    assert (ray.get(echo.remote(value), timeout=60) == value).all()


def test_task_results_lost_with_the_store_are_made_again(ray_start, attempts):
    @ray.remote
    def make(path, number):
        count(path)
        return np.full(BIG, number, np.uint8)

    refs = [make.remote(attempts.path, i) for i in range(5)]
    ray.wait(refs, num_returns=5)
    assert len(attempts) == 5
    kill("plasma_store")
    for i, ref in enumerate(refs):
        assert (ray.get(ref, timeout=60) == i).all()
    assert len(attempts) == 10


def test_a_timeout_of_get_holds_while_a_lost_result_is_made_again(ray_start, attempts):
    @ray.remote
    def make(path):
        if count(path) > 1:
            signal.pause()
        return np.full(BIG, 1, np.uint8)

    ref = make.remote(attempts.path)
    ray.wait([ref])
    kill("plasma_store")
    with pytest.raises(GetTimeoutError, match=r"was lost, and was not made again within the timeout"):
        ray.get(ref, timeout=1)
    ray.cancel(ref, force=True)


@pytest.mark.parametrize("ray_start", [{"_enable_object_reconstruction": False}], indirect=True)
def test_lost_results_stay_lost_if_they_are_not_to_be_made_again(ray_start, attempts):
    @ray.remote
    def make(path):
        count(path)
        return np.full(BIG, 1, np.uint8)

    @ray.remote
    def first(array):
        return int(array[0])

    ref = make.remote(attempts.path)
    ray.wait([ref])
    kill("plasma_store")
    with pytest.raises(ray.exceptions.ObjectLostError, match="_enable_object_reconstruction=False"):
        ray.get(ref, timeout=60)
    with pytest.raises(ray.exceptions.ObjectLostError, match="_enable_object_reconstruction=False"):
        ray.get(first.remote(ref), timeout=60)
    assert len(attempts) == 1
    assert ray.get(first.remote(make.remote(attempts.path)), timeout=60) == 1, "what comes after is as ever"


def test_a_lost_result_is_made_again_for_a_task_that_needs_it_and_for_a_borrower(ray_start, attempts):
    @ray.remote
    def make(path, number):
        count(path)
        return np.full(BIG, number, np.uint8)

    @ray.remote
    def first(array):
        return int(array[0])

    @ray.remote
    def first_inside(box):
        return int(ray.get(box[0])[0])

    a, b = make.remote(attempts.path, 3), make.remote(attempts.path, 4)
    ray.wait([a, b], num_returns=2)
    kill("plasma_store")
    assert ray.get([first.remote(a), first_inside.remote([b])], timeout=60) == [3, 4]


def test_what_a_lost_result_was_made_from_is_made_again_too(ray_start, attempts):
    @ray.remote
    def make(path, number):
        count(path)
        return np.full(BIG, number, np.uint8)

    @ray.remote
    def add(path, a, b):
        count(path)
        return a + b

    p = attempts.path
    ref = add.remote(p, add.remote(p, make.remote(p, 1), make.remote(p, 2)), make.remote(p, 4))
    ray.wait([ref])
    assert len(attempts) == 5
    kill("plasma_store")
    assert (ray.get(ref, timeout=60) == 7).all()
    assert len(attempts) == 10


def test_a_lost_put_gives_object_lost_and_says_why(ray_start):
    ref = ray.put(np.zeros(BIG, np.uint8))
    kill("plasma_store")
    with within(3), pytest.raises(ObjectLostError, match=r"ray\.put"):
        ray.get(ref, timeout=60)
    with within(3), pytest.raises(ObjectLostError):
        ray.get(echo.remote(ref), timeout=60)


def test_a_value_read_before_the_stores_death_stays_readable(ray_start):
    ref = ray.put(np.arange(100_000))
    value = ray.get(ref)
    kill("plasma_store")
    assert int(value.sum()) == 99_999 * 50_000
    wait_for_store()
    assert int(value.sum()) == 99_999 * 50_000


def test_a_lost_result_of_an_actor_gives_object_lost(ray_start):
    @ray.remote
    class Maker:
        def make(self):
            return np.zeros(BIG, np.uint8)

    maker = Maker.remote()
    ref = maker.make.remote()
    ray.wait([ref])
    kill("plasma_store")
    with within(3), pytest.raises(ObjectLostError):
        ray.get(ref, timeout=60)
    assert ray.get(maker.make.remote(), timeout=60).nbytes == BIG


def test_the_store_may_die_while_tasks_write_to_it(ray_start):
    before = held_at_rest()

    @ray.remote
    def make(number):
        return np.full(3_000_000, number % 251, np.uint8)

    refs = [make.remote(i) for i in range(30)]
    ray.wait(refs, num_returns=3)
    kill("plasma_store")
    for i, ref in enumerate(refs):
        assert (ray.get(ref, timeout=30) == i % 251).all()
    del refs, ref
    assert_held(before)


def test_the_store_may_die_again_and_again(ray_start):
    for i in range(4):
        kill("plasma_store")
        wait_for_store()
        assert ray.get(echo.remote(np.full(BIG, i, np.uint8)), timeout=60)[0] == i


# -- the node ---------------------------------------------------------------------------------------------------------


def test_the_nodes_death_fails_what_waits_within_a_second_and_leaves_nothing(engine):
    engine.start(num_cpus=2)
    before = engine._before
    folder = ray._driver._started.node.session.folder

    @ray.remote
    def hang():
        time.sleep(60)

    actor = Counter.remote()
    ray.get(actor.add.remote())
    refs = [hang.remote(), actor.hang.remote(), hang.remote(), hang.remote()]
    ray.wait(refs, timeout=0.2)
    node = pids("node")[0]
    killer = threading.Timer(0.1, os.kill, (node, signal.SIGKILL))
    killer.start()
    with within(), pytest.raises(LocalRayletDiedError):
        ray.get(refs[0], timeout=60)
    killer.join()
    for ref in refs:
        with within(), pytest.raises((LocalRayletDiedError, ActorDiedError)):
            ray.get(ref, timeout=60)
    with pytest.raises(LocalRayletDiedError):
        ray.get(hang.remote(), timeout=60)
    ray.shutdown()
    assert left_of(before, folder) == []
    del refs, ref, actor
    engine.stop()


def test_after_the_nodes_death_shutdown_ends_what_workers_had_started(engine):
    engine.start(num_cpus=1)

    @ray.remote
    def spawn():
        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

    pid = ray.get(spawn.remote())
    kill("node")
    ray.shutdown()
    gone(pid)
    engine.stop()


def test_after_the_nodes_death_a_new_session_can_be_started(engine):
    engine.start(num_cpus=1)
    kill(pids("node")[0])
    engine.start(num_cpus=1)
    assert ray.get(echo.remote(1), timeout=60) == 1
    engine.stop()


# -- the driver -------------------------------------------------------------------------------------------------------

DRIVER = """
import os, signal, sys, threading, time
import numpy as np
import ray
ray.init(num_cpus=2, logging_level="error")

@ray.remote
def big(n): return np.full(3_000_000, n, np.uint8)
@ray.remote
def hang(): time.sleep(1000)
@ray.remote
def nested(): return ray.get([hang.remote(), big.remote(1)])
@ray.remote
class Actor:
    def pid(self): return os.getpid()
    def hang(self): time.sleep(1000)
    def spawn(self):
        import subprocess
        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

refs = [big.remote(i) for i in range(5)] + [ray.put(np.zeros(5_000_000, np.uint8))]
actor, detached = Actor.remote(), Actor.options(name="d", lifetime="detached").remote()
ray.get([actor.pid.remote(), detached.pid.remote(), actor.spawn.remote()])
more = [nested.remote(), hang.remote(), actor.hang.remote()]
views = ray.get(refs)
print(ray._driver._started.node.session.folder, flush=True)
{end}
"""

ENDS = {
    "kill -9": ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    "kill -9 while it waits": ("threading.Timer(0.1, os.kill, (os.getpid(), 9)).start(); ray.get(more)", -9),
    "kill -9 while it puts": (
        "threading.Timer(0.05, os.kill, (os.getpid(), 9)).start()\nwhile True: ray.put(np.zeros(3_000_000, np.uint8))",
        -9,
    ),
    "segfault": ("import ctypes; ctypes.string_at(0)", -11),
    "os._exit": ("os._exit(5)", 5),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", 128 + 15),
    "SIGTERM while it waits": (
        "threading.Timer(0.1, os.kill, (os.getpid(), 15)).start(); ray.get(more)",
        128 + 15,
    ),
    "SIGINT": ("threading.Timer(0.1, os.kill, (os.getpid(), 2)).start(); ray.get(more)", None),
    "SIGHUP": ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(60)", -1),
    "sys.exit": ("sys.exit(4)", 4),
    "exception": ("raise RuntimeError('unhandled')", 1),
    "end of file": ("", 0),
    "shutdown": ("ray.shutdown()", 0),
    "shutdown and init": ("ray.shutdown(); ray.init(num_cpus=1, logging_level='error'); ray.get(big.remote(1))", 0),
}


@pytest.fixture
def outside():
    """No session in this process, and what there is before the driver starts."""
    ray.shutdown()
    return Snapshot.take()


def run_driver(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_of(before: Snapshot, folder: str, timeout_s: float = 2.0) -> list[str]:
    """What a driver that has ended leaves: processes, and files and sockets of its session or in shared memory.

    What else appears meanwhile belongs to other people's sessions.
    """
    watch, deadline = Stopwatch(), time.monotonic() + 60
    while True:
        lines = [
            line
            for line in before.leftovers(inside=False)
            if line.startswith("process") or folder in line or "/dev/shm" in line
        ]
        if not lines or watch.read() > timeout_s or time.monotonic() > deadline:
            return lines
        time.sleep(0.02)


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_two_seconds_after_the_drivers_end(outside, end):
    code, status = ENDS[end]
    driver = run_driver(DRIVER.format(end=code))
    assert driver.stdout is not None and driver.stderr is not None
    try:
        folder = driver.stdout.readline().strip()
        if not folder:
            pytest.fail("the driver did not start: " + driver.stderr.read())
        driver.wait(60)
        left = left_of(outside, folder)
        assert left == [], "left behind:\n  " + "\n  ".join(left)
        said = driver.stderr.read()
        if status is not None:
            assert driver.returncode == status, said
    finally:
        driver.kill()
        driver.communicate()


def test_a_driver_killed_while_its_session_starts_leaves_nothing(outside):
    for delay_s in (0.02, 0.05, 0.08, 0.12, 0.2, 0.3):
        driver = run_driver("import ray; ray.init(num_cpus=2, logging_level='error'); import time; time.sleep(60)")
        with pytest.raises(subprocess.TimeoutExpired):
            driver.wait(delay_s)
        driver.kill()
        driver.communicate()
        left = left_of(outside, "/tmp/ray-", 2.5)
        if left and all(line.startswith("file /tmp/ray-") for line in left):
            # Struck between the folder's making and the node process's start, when nobody else knew of it: the next
            # session clears it away.
            ray.init(num_cpus=1)
            ray.shutdown()
            left = left_of(outside, "/tmp/ray-", 2.5)
        assert left == [], f"killed after {delay_s} s, left behind:\n  " + "\n  ".join(left)


def test_a_session_whose_node_and_driver_were_killed_together_is_cleared_away_by_the_next(outside):
    """Then the kernel kills all that is ours. What a worker had started in a session of its own (DRIVER's `sleep`) and
    the folder are left for whoever comes next: nobody else knows of them."""
    program = DRIVER.format(
        end="from tests.chaos.session import pids; os.kill(pids('node')[0], 9); os.kill(os.getpid(), 9)"
    )
    driver = run_driver(program)
    folder = driver.communicate(timeout=60)[0].strip()
    wait_until(
        lambda: not [x for x in outside.leftovers(inside=False) if x.startswith("process") and "sleep 1000" not in x]
    )
    ray.init(num_cpus=1)
    ray.shutdown()
    assert left_of(outside, folder) == []


def test_shutdown_with_tasks_running_is_quick_and_leaves_nothing(engine):
    engine.start(num_cpus=2)

    @ray.remote
    def hang():
        time.sleep(60)

    @ray.remote
    def stubborn():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)

    refs = [hang.remote(), stubborn.remote(), hang.remote(), echo.remote(hang.remote())]
    ray.wait(refs, timeout=0.3)
    with within(2 + 2 + DETECTION_S):  # shutdown_grace_s, twice, for the stubborn one
        ray.shutdown()
    del refs
    engine.stop()


def test_a_thread_that_waits_is_woken_by_shutdown(engine):
    engine.start(num_cpus=1)

    @ray.remote
    def hang():
        time.sleep(60)

    seen = []

    def wait():
        try:
            ray.get(hang.remote())
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    ray.get(echo.options(num_cpus=0).remote(1))
    ray.shutdown()
    thread.join(60)
    assert not thread.is_alive() and isinstance(seen[0], ray.exceptions.RayError)
    seen.clear()
    engine.stop()


def leave_a_child_behind():
    """Forks a child that outlives its parent's process group, with the parent's sockets. Returns its pid."""
    away, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.write(says, b"x")
        threading.Event().wait(60)
        os._exit(0)
    os.read(away, 1)
    return child


@ray.remote(max_retries=0)
def leave_and_die(path):
    Path(path).write_text(str(leave_a_child_behind()))
    os.kill(os.getpid(), 9)


@ray.remote
class Leaver:
    def leave(self):
        return leave_a_child_behind()

    def hang(self):
        threading.Event().wait(60)


def test_a_task_fails_at_once_though_its_workers_child_still_holds_the_connection(ray_shared, tmp_path):
    with within(10), pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(leave_and_die.remote(str(tmp_path / "child")))
    os.kill(int((tmp_path / "child").read_text()), 9)


def test_calls_to_an_actor_that_was_killed_fail_though_its_child_still_holds_the_connection(ray_shared):
    actor = Leaver.remote()
    child = ray.get(actor.leave.remote())
    running = actor.hang.remote()
    ray.kill(actor)
    with within(10), pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(running)
    os.kill(child, 9)
