"""Drivers that do what real programs do: many threads at once, asyncio, forks, subprocesses, signals, finalizers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import ray
from ray.exceptions import GetTimeoutError
from tests.chaos.session import assert_held, engine, held_at_rest, pids, within
from tests.wait import wait_until


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def hang(seconds):
    time.sleep(seconds)
    return seconds


@ray.remote
class Counter:
    def __init__(self):
        self.value = 0

    def add(self, n=1):
        self.value += n
        return self.value


def in_threads(count, function):
    """Runs function(i) in so many threads at once; the first exception of any is raised here."""
    start = threading.Barrier(count)

    def run(i):
        start.wait()
        return function(i)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [f.result() for f in [pool.submit(run, i) for i in range(count)]]


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_eight_threads_call_get_wait_and_put_at_once(ray_shared, seed):
    before = held_at_rest()
    actor = Counter.remote()
    ray.get(actor.add.remote(0))

    def work(i):
        r = random.Random(seed * 100 + i)
        for _ in range(60):
            what = r.randrange(6)
            n = r.randrange(1000)
            if what == 0:
                assert ray.get(add.remote(n, i)) == n + i
            elif what == 1:
                value = np.full(r.choice([10, 40_000]), n)
                assert (ray.get(ray.put(value)) == value).all()
            elif what == 2:
                refs = [add.remote(k, n) for k in range(r.randrange(1, 30))]
                wanted = r.randint(1, len(refs))
                ready, rest = ray.wait(refs, num_returns=wanted, timeout=30)
                assert len(ready) == wanted and len(rest) == len(refs) - wanted
                assert ray.get(refs) == [k + n for k in range(len(refs))]
            elif what == 3:
                assert ray.get(actor.add.remote(0)) >= 0  # noqa: F821 (deleted below, once all threads have ended)
            elif what == 4:
                assert (ray.get(add.remote(np.full(40_000, n), ray.put(i))) == n + i).all()
            else:
                with pytest.raises(GetTimeoutError):
                    ray.get(hang.options(num_cpus=0).remote(0.05), timeout=0.001)

    in_threads(8, work)
    del actor
    gc.collect()
    assert_held(before)


def test_calls_of_many_threads_on_one_actor_all_arrive_once(ray_shared):
    actor = Counter.remote()

    def work(i):
        refs = [actor.add.remote() for _ in range(300)]
        got = ray.get(refs)
        assert got == sorted(got), "each caller's calls run in its own order"
        return got

    seen = sorted(n for part in in_threads(8, work) for n in part)
    assert seen == list(range(1, 2401))


def test_many_threads_wait_for_one_ref(ray_shared):
    ref = hang.remote(0.2)
    with within(3):
        assert in_threads(16, lambda i: ray.get(ref)) == [0.2] * 16


def test_a_short_timeout_in_one_thread_does_not_wait_for_another_threads_get(ray_shared, tmp_path):
    @ray.remote
    def wait_for(path):
        wait_until(path.exists)

    slow = wait_for.remote(tmp_path / "go")
    waiter = threading.Thread(target=ray.get, args=(slow,))
    waiter.start()
    for _ in range(5):
        with within(0.6), pytest.raises(GetTimeoutError):
            ray.get(slow, timeout=0.05)
    with within(0.9):
        assert ray.get(add.remote(1, 2)) == 3
    (tmp_path / "go").touch()
    waiter.join()


def test_results_arrive_while_no_thread_waits(ray_shared):
    futures = [add.remote(i, i).future() for i in range(100)]
    assert [f.result(timeout=60) for f in futures] == [2 * i for i in range(100)]


def test_threads_inside_a_task_and_inside_an_actor_call_tasks(ray_shared):
    def many(n):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return sum(pool.map(lambda i: ray.get(add.remote(i, 1)), range(n)))

    @ray.remote
    def task():
        return many(20)

    @ray.remote
    class Actor:
        def call(self):
            return many(20)

    assert ray.get([task.remote(), Actor.remote().call.remote()], timeout=60) == [210, 210]


def test_threads_that_start_and_end_leave_the_engine_as_it_was(ray_shared):
    for _ in range(30):
        thread = threading.Thread(target=lambda: ray.get(add.remote(1, 1)))
        thread.start()
        thread.join()
    assert ray.get(add.remote(1, 1)) == 2


def in_a_process_of_its_own(program: str) -> None:
    """Runs a driver that must print "alive" and end with status 0: for what may crash."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-3000:]


def test_shutdown_while_threads_call_ends_their_calls():
    in_a_process_of_its_own("""
    import threading, time
    import ray
    ray.init(num_cpus=2, logging_level="error")
    @ray.remote
    def add(a, b): return a + b
    def work():
        try:
            while True:
                refs = [add.remote(i, 1) for i in range(300)]
                del refs[::3]
                ray.get(refs)
        except (ray.exceptions.RayError, RuntimeError) as error:
            ended.append(error)
    for round in range(4):
        ended = []
        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads: t.start()
        ray.get([add.remote(i, 1) for i in range(2000)])
        ray.shutdown()
        for t in threads: t.join(60)
        assert len(ended) == 4, [t.is_alive() for t in threads]
        ray.init(num_cpus=2, logging_level="error")
    print("alive")
    """)


def test_shutdown_while_a_thread_drops_the_refs_of_queued_tasks():
    """The engine once stopped to hear of dropped refs before it failed the tasks that were to fill them: it then wrote
    to refs that were gone."""
    in_a_process_of_its_own("""
    import threading
    import ray
    ray.init(num_cpus=1, logging_level="error")
    @ray.remote(resources={"never there": 1})
    def queued(): pass
    refs = [queued.remote() for _ in range(200_000)]
    dropping = threading.Event()
    def drop():
        while refs:
            refs.pop()
            dropping.set()
            for _ in range(100): pass
    thread = threading.Thread(target=drop)
    thread.start()
    dropping.wait()
    ray.shutdown()
    thread.join()
    print("alive")
    """)


# -- asyncio ----------------------------------------------------------------------------------------------------------


def test_an_asyncio_driver_awaits_thousands_of_refs(ray_shared):
    actor = Counter.remote()

    async def one(i):
        return await add.remote(i, await add.remote(i, 1)) + 0 * await actor.add.remote()

    async def main():
        return await asyncio.gather(*[one(i) for i in range(500)])

    assert asyncio.run(main()) == [2 * i + 1 for i in range(500)]


def test_awaiting_is_cancelled_and_times_out_without_harm(ray_shared):
    async def main():
        ref = hang.remote(0.5)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wrap(ref), 0.05)
        task = asyncio.ensure_future(wrap(ref))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await ref

    async def wrap(ref):
        return await ref

    assert asyncio.run(main()) == 0.5


def test_several_loops_in_several_threads_await_the_same_ref(ray_shared):
    ref = hang.remote(0.2)

    async def main():
        return await ref

    assert in_threads(4, lambda i: asyncio.run(main())) == [0.2] * 4


def test_a_loop_that_ends_before_its_refs_are_ready_harms_nobody(ray_shared):
    refs = [hang.remote(0.1) for _ in range(4)]

    async def main():
        started = [asyncio.ensure_future(asyncio.shield(wrap(ref))) for ref in refs]
        await asyncio.sleep(0)
        assert not any(future.done() for future in started)

    async def wrap(ref):
        return await ref

    asyncio.run(main())
    assert ray.get(refs, timeout=60) == [0.1] * 4


# -- forks ------------------------------------------------------------------------------------------------------------


def square(x):
    return x * x


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_multiprocessing_in_the_driver_leaves_the_session_alone(ray_shared):
    actor = Counter.remote()
    ref = ray.put(np.arange(50_000))
    ray.get(actor.add.remote())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, range(20)) == [x * x for x in range(20)]
        assert ray.get(add.remote(1, 2)) == 3
    assert ray.get(actor.add.remote()) == 2
    assert int(ray.get(ref)[-1]) == 49_999
    assert len(pids("node")) == 1


def test_a_forked_child_dies_of_sigterm_at_once_whatever_it_is_about_to_do():
    """It has the handler that it would have had without a session: one written in Python doesn't run while a child
    waits for a lock that it turned to just after the signal came, and `Pool.terminate` would wait for it for ever."""
    script = textwrap.dedent(
        """
        import os, signal, threading
        import ray

        def blocked():
            return signal.pthread_sigmask(signal.SIG_BLOCK, ())

        def child(handler):
            pid = os.fork()
            if pid == 0:
                os._exit(signal.getsignal(signal.SIGTERM) == handler and not blocked())
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        ray.init(num_cpus=1)
        ours = signal.getsignal(signal.SIGTERM)
        print(child(signal.SIG_DFL))
        others = threading.Thread(target=lambda: print(child(signal.SIG_DFL)))
        others.start()
        others.join()
        print(signal.getsignal(signal.SIGTERM) is ours and not blocked())
        signal.signal(signal.SIGTERM, mine := lambda *_: None)
        print(child(mine))
        """
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == ["1", "1", "True", "1"], ended.stdout + ended.stderr


def test_multiprocessing_and_subprocess_in_tasks_and_actors(ray_shared):
    @ray.remote
    def task():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(square, range(10))

    @ray.remote
    class Actor:
        def run(self):
            return subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout

        def fork(self):
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    actor = Actor.remote()
    for _ in range(3):
        assert ray.get(task.remote(), timeout=60) == [x * x for x in range(10)]
        assert ray.get([actor.run.remote(), actor.fork.remote()], timeout=60) == ["42\n", 7]


@pytest.mark.parametrize(
    "ending", ["os._exit(0)", "sys.exit(0)", "gc.collect(); os._exit(0)", "os.kill(os.getpid(), 9)"]
)
def test_a_forked_child_of_the_driver_ends_without_touching_the_session(ray_shared, ending):
    refs = [ray.put(np.full(40_000, i)) for i in range(3)] + [add.remote(1, 1)]
    actor = Counter.remote()
    ray.get(actor.add.remote())
    pid = os.fork()
    if pid == 0:
        try:
            refs.clear()
            del actor
            gc.collect()
            exec(ending, {"os": os, "sys": sys, "gc": gc})
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    assert [int(ray.get(r)[0]) for r in refs[:3]] == [0, 1, 2]
    assert ray.get(actor.add.remote(), timeout=60) == 2
    assert ray.get(add.remote(1, 2), timeout=60) == 3


def test_a_forked_child_that_uses_ray_is_told_what_to_do(ray_shared):
    add.remote(1, 1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ray.get(add.remote(1, 1), timeout=30)
            os.write(write, b"worked")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert "ray.init" in said, said
    assert ray.get(add.remote(1, 1)) == 2


def test_a_fork_while_other_threads_are_inside_the_engine(ray_shared):
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            assert ray.get(add.remote(1, 1)) == 2

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for t in threads:
        t.start()
    try:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
    finally:
        stop.set()
        for t in threads:
            t.join()


# -- signals and finalizers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["get", "wait", "get of a borrowed ref", "put into a full store"])
def test_ctrl_c_ends_the_call_at_once_and_leaves_a_usable_session(ray_start, call):
    @ray.remote
    class Owner:
        def make(self):
            return [hang.options(num_cpus=0).remote(30)]

    owner = Owner.remote()
    slow = hang.options(num_cpus=0).remote(30)
    (borrowed,) = ray.get(owner.make.remote())
    assert ray.wait([slow], timeout=0)[0] == []
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with within(1.5), pytest.raises(KeyboardInterrupt):
        timer.start()
        if call == "get":
            ray.get(slow)
        elif call == "wait":
            ray.wait([slow])
        elif call == "get of a borrowed ref":
            ray.get(borrowed)
        else:
            kept = []
            while True:
                kept.append(ray.put(np.zeros(engine().info["plasma_capacity"] // 20, np.uint8)))
    timer.join()
    kept = []
    assert ray.get([add.remote(i, 1) for i in range(20)], timeout=60) == list(range(1, 21))
    assert ray.get(ray.put(np.zeros(100_000)), timeout=60).size == 100_000


def test_a_signal_handler_that_returns_does_not_end_a_get(ray_shared):
    seen = []
    previous = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        assert ray.get(hang.remote(0.3), timeout=60) == 0.3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(seen) > 3


def test_get_in_a_signal_handler_works_or_is_refused_but_never_hangs(ray_shared):
    outcome = []

    def handler(*_):
        try:
            outcome.append(ray.get(add.remote(1, 1), timeout=30))
        except Exception as error:
            outcome.append(error)

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with within(8):
            assert ray.get(hang.remote(0.4), timeout=60) == 0.4
        wait_until(lambda: outcome)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert outcome[0] == 2 or "signal" in str(outcome[0]), outcome


def test_get_in_a_finalizer_works_or_is_refused_but_never_hangs(ray_shared):
    outcome = []

    class Last:
        def __init__(self, ref):
            self.ref = ref
            self.me = self  # the collector runs it, in the middle of anything

        def __del__(self):
            try:
                outcome.append(ray.get(self.ref, timeout=60))
            except Exception as error:
                outcome.append(error)

    for i in range(50):
        Last(add.remote(i, i))
        assert ray.get([add.remote(k, 1) for k in range(20)]) == list(range(1, 21))
    gc.collect()
    wait_until(lambda: len(outcome) == 50)  # some may run in another thread
    assert all(isinstance(x, (int, RuntimeError)) for x in outcome), outcome


def test_refs_dropped_by_finalizers_in_many_threads_are_given_back(ray_shared):
    before = held_at_rest()

    def work(i):
        for k in range(100):
            cycle = [ray.put(np.full(20_000, k)), add.remote(k, k)]
            cycle.append(cycle)
            del cycle
            if k % 20 == 0:
                gc.collect(1)  # what is young: all of a large process would take long

    in_threads(4, work)
    gc.collect()
    wait_until(lambda: engine().stats()["calls_in_flight"] == 0)
    assert_held(before)


# -- volume -----------------------------------------------------------------------------------------------------------


def test_fifty_thousand_queued_tasks_all_finish(ray_shared):
    refs = [add.remote(i, 1) for i in range(50_000)]
    assert ray.get(refs) == list(range(1, 50_001))


def test_a_task_with_ten_thousand_ref_arguments(ray_shared):
    @ray.remote
    def total(*values):
        return sum(values)

    assert ray.get(total.remote(*[ray.put(i) for i in range(10_000)]), timeout=60) == sum(range(10_000))


def test_three_thousand_returns(ray_shared):
    @ray.remote(num_returns=3000)
    def many():
        return list(range(3000))

    assert ray.get(many.remote(), timeout=60) == list(range(3000))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_queued_tasks_all_finish(ray_shared):
    refs = [add.remote(i, 1) for i in range(1_000_000)]
    assert ray.get(refs) == list(range(1, 1_000_001))
