"""ray.util.RayExecutor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import operator
import os
import time

import pytest

import ray
from ray.util import RayExecutor


def square(x):
    return x * x


def add(x, y=0):
    return x + y


def fail(x):
    raise ValueError(x)


def wait_for_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


@pytest.fixture
def executor(ray_shared):
    with RayExecutor() as made:
        yield made


def test_submit_runs_functions_and_whatever_else_can_be_called(executor):
    assert executor.submit(square, 3).result() == 9
    assert executor.submit(add, 1, y=2).result() == 3
    assert executor.submit(functools.partial(add, 1), 2).result() == 3
    assert executor.submit("a-b".split, "-").result() == ["a", "b"]
    assert executor.submit(operator.itemgetter(1), [1, 2]).result() == 2
    assert executor.submit(lambda: os.getpid()).result() != os.getpid()


def test_map(executor):
    assert list(executor.map(square, range(20))) == [x * x for x in range(20)]
    assert list(executor.map(add, range(5), range(5))) == [0, 2, 4, 6, 8]
    assert list(executor.map(add, range(50), range(50), chunksize=7)) == [2 * x for x in range(50)]


def test_an_error_is_the_one_that_was_raised(executor):
    future = executor.submit(fail, 3)
    with pytest.raises(ValueError, match="3"):
        future.result()
    assert type(future.exception()) is ValueError
    assert "in fail" in str(future.exception().__cause__)


def test_a_map_may_time_out(executor, tmp_path):
    gate = tmp_path / "gate"
    results = executor.map(wait_for_file, [gate], timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    gate.touch()


def test_wait_as_completed_and_asyncio_work_with_its_futures(executor):
    futures = [executor.submit(square, x) for x in range(10)]
    assert concurrent.futures.wait(futures, timeout=60).not_done == set()
    assert sorted(f.result() for f in concurrent.futures.as_completed(futures)) == [x * x for x in range(10)]

    async def main():
        return await asyncio.get_running_loop().run_in_executor(executor, square, 5)

    assert asyncio.run(main()) == 25


def test_no_more_than_max_workers_run_and_what_waits_can_be_cancelled(ray_shared, tmp_path):
    gate = tmp_path / "gate"
    with RayExecutor(max_workers=1) as executor:
        running = executor.submit(wait_for_file, gate)
        waiting = [executor.submit(square, x) for x in range(3)]
        assert running.running()
        assert not running.cancel()
        assert waiting[1].cancel()
        gate.touch()
        assert running.result() == gate
        assert (waiting[0].result(), waiting[2].result()) == (0, 4)
        with pytest.raises(concurrent.futures.CancelledError):
            waiting[1].result()


def test_shutdown_waits_for_all_and_refuses_more(ray_shared):
    executor = RayExecutor(max_workers=2)
    futures = [executor.submit(square, x) for x in range(20)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_shutdown_may_cancel_what_waits(ray_shared, tmp_path):
    gate = tmp_path / "gate"
    executor = RayExecutor(max_workers=1)
    running, waiting = executor.submit(wait_for_file, gate), executor.submit(square, 3)
    executor.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    assert concurrent.futures.wait([waiting], timeout=60).done == {waiting}
    gate.touch()
    assert running.result() == gate
    executor.shutdown()


def test_an_argument_that_cannot_be_pickled_fails_its_own_future(executor):
    bad = executor.submit(square, (x for x in ()))
    with pytest.raises(TypeError, match="pickle"):
        bad.result()
    assert executor.submit(square, 2).result() == 4


def test_options_are_those_of_the_tasks(ray_shared):
    with RayExecutor(ray_remote_args={"num_cpus": 1.5}) as executor:
        held = executor.submit(lambda: ray.get_runtime_context().get_assigned_resources()).result()
    assert held["CPU"] == 1.5


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda: RayExecutor(0), ValueError, "max_workers=0"),
        (lambda: RayExecutor("2"), TypeError, "max_workers='2'"),
        (lambda: RayExecutor(ray_remote_args={"nonsense": 1}), ValueError, "nonsense"),
        (lambda: RayExecutor().submit(3), TypeError, "fn=3"),
        (lambda: RayExecutor().map(square, [], chunksize=0), ValueError, "chunksize=0"),
    ],
    ids=["zero", "text", "option", "fn", "chunksize"],
)
def test_wrong_arguments_are_named(ray_shared, use, error, says):
    with pytest.raises(error, match=says):
        use()
