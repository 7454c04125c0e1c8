"""ray.util.multiprocessing.Pool. What it must do is what the standard library's Pool does, but for what dies."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import ray
from ray.exceptions import ActorDiedError
from ray.util.multiprocessing import Pool
from tests.wait import wait_until

ROOT = Path(__file__).parents[2]


def square(x):
    return x * x


def add(x, y=0, *, z=0):
    return x + y + z


def fail_at_3(x):
    if x == 3:
        raise ValueError("three")
    return x


def pid(_x=None):
    return os.getpid()


def die(x):
    if x == 0:
        os._exit(1)
    return x


def wait_for_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


@pytest.fixture
def pool(ray_shared):
    with Pool(2) as made:
        yield made
    made.join()


# --- values ----------------------------------------------------------------------------------------------------------


def test_apply_and_apply_async(pool):
    assert pool.apply(add, (1, 2), {"z": 3}) == 6
    assert pool.apply_async(add, (1,), {"y": 4}).get() == 5
    assert pool.apply(add, (1,), kwargs={"y": 4}) == 5


@pytest.mark.parametrize("chunksize", [None, 1, 3, 1000])
def test_map_is_map_whatever_the_chunks(pool, chunksize):
    for values in ([], [7], list(range(50)), range(17), tuple(range(5))):
        assert pool.map(square, values, chunksize) == [x * x for x in values]
        assert pool.map_async(square, iter(values), chunksize).get() == [x * x for x in values]
        assert pool.starmap(add, [(x, 1) for x in values], chunksize) == [x + 1 for x in values]
        assert pool.starmap_async(add, ((x, 1) for x in values), chunksize).get() == [x + 1 for x in values]
        assert list(pool.imap(square, values, chunksize or 1)) == [x * x for x in values]
        assert sorted(pool.imap_unordered(square, iter(values), chunksize or 1)) == sorted(x * x for x in values)


def test_the_default_chunks_are_four_for_each_process(pool, monkeypatch):
    given = []
    submit = pool._dispatcher.submit
    monkeypatch.setattr(pool._dispatcher, "submit", lambda call: (given.append(len(call.args[1])), submit(call)))
    pool.map(square, range(100))
    assert given == [13, 13, 13, 13, 13, 13, 13, 9]  # as many as multiprocessing makes: 100 / (4 * 2), rounded up


def test_processes_are_of_their_own_and_as_many_as_asked(ray_shared):
    with Pool(3) as pool:  # more than there are CPUs, which multiprocessing does not mind either
        pids = set(pool.map(pid, range(300), chunksize=1))
        assert os.getpid() not in pids
        assert len(pids) <= 3
        pool.close()
        pool.join()


def test_the_number_of_processes_is_that_of_the_cpus(ray_shared):
    with Pool() as pool:
        assert repr(pool) == "<ray.util.multiprocessing.Pool of 2>"


# --- taking results one by one ---------------------------------------------------------------------------------------


def test_imap_gives_results_while_others_are_computed(pool, tmp_path):
    late = tmp_path / "late"
    results = pool.imap(wait_for_file, [ROOT, late])
    assert next(results) == ROOT
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0.01)
    late.touch()
    assert results.next(timeout=30) == late
    with pytest.raises(StopIteration):
        next(results)


def test_imap_unordered_gives_what_ends_first_first(pool, tmp_path):
    late = tmp_path / "late"
    results = pool.imap_unordered(wait_for_file, [late, ROOT])
    assert next(results) == ROOT
    late.touch()
    assert list(results) == [late]


def test_imap_reads_an_endless_iterable_only_as_far_as_needed(pool):
    results = pool.imap(square, itertools.count(), chunksize=3)
    assert list(itertools.islice(results, 500)) == [x * x for x in range(500)]


def test_an_error_of_the_iterable_comes_in_its_place(pool):
    def values():
        yield 2
        raise KeyError("no more")

    results = pool.imap(square, values())
    assert next(results) == 4
    with pytest.raises(KeyError, match="no more"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    with pytest.raises(KeyError, match="no more"):
        pool.map(square, values())


@pytest.mark.parametrize("chunksize", [1, 2, 10])
def test_imap_goes_on_behind_an_error(pool, chunksize):
    seen = []
    results = pool.imap(fail_at_3, range(6), chunksize)
    for _ in range(6):
        try:
            seen.append(next(results))
        except ValueError as error:
            seen.append(str(error))
    assert seen == [0, 1, 2, "three", 4, 5]


# --- AsyncResult, callbacks, errors ----------------------------------------------------------------------------------


def test_an_async_result_can_be_asked_and_waited_for(pool, tmp_path):
    gate = tmp_path / "gate"
    result = pool.apply_async(wait_for_file, (gate,))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    result.wait(0.01)
    gate.touch()
    result.wait()
    assert result.ready()
    assert result.successful()
    assert result.get() == result.get(timeout=0) == gate


def test_an_error_is_the_one_that_was_raised_with_the_traceback_of_the_process(pool):
    for call in (lambda: pool.apply(fail_at_3, (3,)), lambda: pool.map(fail_at_3, range(20), 2)):
        with pytest.raises(ValueError, match="three") as caught:
            call()
        assert type(caught.value) is ValueError
        assert "fail_at_3" in str(caught.value.__cause__)
    failed = pool.map_async(fail_at_3, [3])
    failed.wait()
    assert not failed.successful()


def test_callbacks_are_called_before_the_result_is_ready(pool):
    values, errors = [], []
    pool.apply_async(square, (3,), callback=values.append, error_callback=errors.append).get()
    pool.map_async(square, [1, 2], callback=values.append).get()
    pool.map_async(square, [], callback=values.append).get()
    pool.starmap_async(add, [(1, 2)], callback=values.append).get()
    assert (values, errors) == ([9, [1, 4], [], [3]], [])
    failed = pool.apply_async(fail_at_3, (3,), callback=values.append, error_callback=errors.append)
    failed.wait()
    assert [str(error) for error in errors] == ["three"]
    assert len(values) == 4


def test_a_callback_that_raises_is_reported_and_harms_nobody(pool, monkeypatch):
    reported = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    assert pool.apply_async(square, (3,), callback=lambda value: 1 / 0).get() == 9
    assert reported == [ZeroDivisionError]
    assert pool.apply_async(square, (4,), callback=lambda value: None).get() == 16


def test_an_argument_that_cannot_be_pickled_fails_its_own_call(pool):
    bad = pool.apply_async(square, (threading.Lock(),))
    assert pool.apply(square, (2,)) == 4
    with pytest.raises(TypeError, match="pickle"):
        bad.get()


# --- processes: what starts, is replaced, dies -----------------------------------------------------------------------


def test_the_initializer_runs_first_in_each_process_and_sets_globals_that_calls_see():
    """In a program's main file, where functions are sent by value: the usual way in which an initializer is written."""
    program = """
import ray
from ray.util.multiprocessing import Pool

base = count = 0

def initialize(value):
    global base
    base = value

def work(x):
    global count
    count += 1
    return base + x

def look():
    return base, count

ray.init(num_cpus=2, logging_level="error")
with Pool(1, initialize, (100,)) as pool:
    print(pool.map(work, [1, 2, 3]), pool.apply(look))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["[101, 102, 103] (100, 3)"], done.stdout + done.stderr


def test_an_initializer_that_fails_fails_the_calls(ray_shared):
    with Pool(1, initializer=fail_at_3, initargs=(3,)) as pool, pytest.raises(ActorDiedError, match="three"):
        pool.apply(square, (1,))


def test_a_process_is_replaced_after_maxtasksperchild_tasks(ray_shared):
    with Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(pid) for _ in range(6)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
    assert len(set(pids)) == 3


def test_a_process_that_dies_costs_its_call_and_is_replaced(pool):
    results = pool.imap(die, range(20))
    with pytest.raises(ActorDiedError):
        next(results)
    assert list(results) == list(range(1, 20))
    with pytest.raises(ActorDiedError):
        pool.map(die, [0])
    assert pool.map(die, range(1, 50)) == list(range(1, 50))


def test_a_call_does_not_wait_behind_a_long_one_while_a_process_is_idle(pool, tmp_path):
    gate = tmp_path / "gate"
    long = pool.map_async(wait_for_file, [gate])
    assert pool.map(square, range(100), chunksize=2) == [x * x for x in range(100)]
    gate.touch()
    assert long.get() == [gate]


# --- the end ---------------------------------------------------------------------------------------------------------


def test_after_close_what_was_asked_for_is_still_done(ray_shared):
    pool = Pool(2)
    values, called = pool.map_async(square, range(100)), []
    lazy = pool.imap_unordered(square, iter(range(200)))
    pool.apply_async(square, (3,), callback=called.append)
    pool.close()
    for refused in (lambda: pool.apply(square, (1,)), lambda: pool.map(square, []), lambda: pool.imap(square, [])):
        with pytest.raises(ValueError, match="not running"):
            refused()
    with pytest.raises(ValueError, match="not running"), pool:
        pass
    pool.join()
    assert values.ready()
    assert called == [9]
    assert sorted(lazy) == [x * x for x in range(200)]
    pool.close()
    pool.join()


def test_join_before_close_is_refused(pool):
    with pytest.raises(ValueError, match="still running"):
        pool.join()


def test_terminate_ends_the_processes_and_fails_what_has_not_ended(ray_shared, tmp_path):
    pool = Pool(1)
    pid_of_worker = pool.apply(pid)
    running = pool.apply_async(wait_for_file, (tmp_path / "never",))
    waiting = pool.apply_async(square, (1,))
    lazy = pool.imap(square, itertools.count())
    pool.terminate()
    pool.join()
    with pytest.raises(ActorDiedError):
        running.get()
    with pytest.raises(RuntimeError, match="terminated"):
        waiting.get()
    with pytest.raises(RuntimeError, match="terminated"):
        next(lazy)
    wait_until(lambda: not os.path.exists(f"/proc/{pid_of_worker}"))


def test_the_processes_of_a_pool_that_is_garbage_end(ray_shared):
    pool = Pool(1)
    pid_of_worker = pool.apply(pid)
    assert pool.apply_async(square, (3,), callback=lambda value: None).get() == 9
    del pool
    wait_until(lambda: not os.path.exists(f"/proc/{pid_of_worker}"))
    wait_until(lambda: not any(thread.name == "ray-pool-callbacks" for thread in threading.enumerate()))


def test_a_pool_starts_ray_if_need_be(engine):
    engine.stop()
    with Pool(1) as pool:
        assert pool.apply(square, (3,)) == 9
    engine.stop()


def test_ray_remote_args_are_those_of_the_workers(ray_shared):
    with Pool(1, ray_remote_args={"num_cpus": 1.5}) as pool:
        pool.apply(pid)
        wait_until(lambda: ray.available_resources()["CPU"] == 0.5)
    wait_until(lambda: ray.available_resources()["CPU"] == 2)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"processes": 0}, ValueError, "processes=0"),
        ({"processes": "2"}, TypeError, "processes='2'"),
        ({"initializer": 3}, TypeError, "initializer=3"),
        ({"maxtasksperchild": 0}, ValueError, "maxtasksperchild=0"),
        ({"processes": 3, "ray_remote_args": {"num_cpus": 1}}, ValueError, "3 CPUs"),
        ({"ray_remote_args": {"nonsense": 1}}, ValueError, "nonsense"),
    ],
    ids=str,
)
def test_wrong_arguments_of_the_pool_are_named(ray_shared, options, error, says):
    with pytest.raises(error, match=says):
        Pool(**options)


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda pool: pool.map(3, []), TypeError, "func=3"),
        (lambda pool: pool.map(square, [], 0), ValueError, "chunksize=0"),
        (lambda pool: pool.imap(square, [], chunksize=1.5), TypeError, r"chunksize=1\.5"),
        (lambda pool: pool.apply_async(square, (1,), callback=3), TypeError, "callback=3"),
        (lambda pool: pool.apply(square, (1,), {"a": 1}, kwargs={"b": 2}), TypeError, "give one"),
        (lambda pool: ray.put(pool), TypeError, "can't be passed"),
    ],
    ids=["func", "chunksize", "imap chunksize", "callback", "kwargs", "pickle"],
)
def test_wrong_arguments_of_calls_are_named(pool, use, error, says):
    with pytest.raises(error, match=says):
        use(pool)


def test_a_task_may_have_a_pool_of_its_own(ray_shared):
    @ray.remote
    def total(n):
        with Pool(2) as inner:
            return sum(inner.map(square, range(n)))

    assert ray.get(total.remote(10)) == sum(x * x for x in range(10))
