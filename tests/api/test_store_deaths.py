"""The store, the fork server and Redis die under a session, which goes on."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from pathlib import Path

import numpy as np
import pytest

import ray
from ray._native.plasma import PlasmaClient
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
)
from tests.chaos.session import (
    assert_held,
    engine,
    held_at_rest,
    kill,
    pids,
    wait_for_store,
    within,
)
from tests.wait import wait_until

from .dying import BIG, Counter, attempts, count, echo

__all__ = ["attempts"]


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


@ray.remote(num_cpus=0)
class StoreKiller:
    def when_there(self, key, store_pid, killed):
        """Kills the store as soon as the object is in it, and then writes to the FIFO `killed`."""
        client = PlasmaClient(engine().info["plasma_socket"])
        wait_until(lambda: client.contains(key))
        kill(store_pid)
        with open(killed, "wb") as fifo:
            fifo.write(b"!")


@ray.remote(num_cpus=0)
class Reader:
    def total(self, *values):
        return int(sum(value.sum(dtype=int) for value in values))


@pytest.mark.parametrize("returns", [1, 2])
@pytest.mark.parametrize("retries", [1, 0])
def test_a_result_that_was_lost_before_its_caller_read_of_it(ray_start, attempts, tmp_path, returns, retries):
    """Whoever waits for it finds the loss while the answer of its task is being read: it is made again nevertheless."""
    begun, go, killed = (str(tmp_path / name) for name in ("begun", "go", "killed"))
    for path in (begun, go, killed):
        os.mkfifo(path)

    @ray.remote(num_returns=returns, max_retries=retries)
    def make():
        if count(attempts.path) == 1:
            Path(begun).write_bytes(b"!")
            Path(go).read_bytes()
        results = [np.full(BIG, i + 1, np.uint8) for i in range(returns)]
        return results if returns > 1 else results[0]

    reader, killer = Reader.remote(), StoreKiller.remote()
    ray.get([reader.total.remote(np.ones(1)), killer.__ray_ready__.remote()])
    made = make.remote()
    refs = made if returns > 1 else [made]
    total = reader.total.remote(*refs)
    Path(begun).read_bytes()
    done = killer.when_there.remote(refs[-1].binary(), pids("plasma_store")[0], killed)
    holding_the_lock = ctypes.PyDLL(None)  # so this process reads no answer until the store is dead
    fd = os.open(killed, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    Path(go).write_bytes(b"!")
    ready = (ctypes.c_int * 2)(fd, select.POLLIN)
    assert holding_the_lock.poll(ready, 1, 60_000) == 1
    os.close(fd)
    expected = sum((i + 1) * BIG for i in range(returns))
    if retries:
        assert ray.get(total, timeout=30) == expected
        assert sum(int(value.sum(dtype=int)) for value in ray.get(refs, timeout=30)) == expected
        assert len(attempts) == 2
    else:
        with pytest.raises(ObjectLostError):
            ray.get(total, timeout=30)
        with pytest.raises(ObjectLostError):
            ray.get(refs, timeout=30)
    ray.get(done)


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
