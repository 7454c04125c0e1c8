"""timeout_s of tasks and of actors' methods."""

from __future__ import annotations

import asyncio
import collections
import itertools
import time

import pytest

import ray
from ray.exceptions import ActorDiedError, TaskTimeoutError
from tests.wait import wait_until, within


@ray.remote
def sleep(seconds):
    time.sleep(seconds)
    return "slept"


def test_a_task_that_runs_longer_fails_with_task_timeout_error(ray_shared):
    with within(10), pytest.raises(TaskTimeoutError, match=r"sleep\(\) ran longer than its timeout_s=0.3"):
        ray.get(sleep.options(timeout_s=0.3).remote(60))
    assert issubclass(TaskTimeoutError, TimeoutError)


def test_a_task_that_is_quick_enough_is_not_disturbed(ray_shared):
    limited = sleep.options(timeout_s=20)
    assert ray.get([limited.remote(0.01) for _ in range(20)], timeout=60) == ["slept"] * 20
    assert ray.get(sleep.remote(0.05), timeout=30) == "slept"


def test_a_task_may_clean_up_but_not_return_a_value_after_its_time(ray_shared, tmp_path):
    @ray.remote(timeout_s=0.3)
    def careful():
        try:
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            return "late"
        finally:
            (tmp_path / "cleaned").touch()

    with pytest.raises(TaskTimeoutError):
        ray.get(careful.remote(), timeout=30)
    assert (tmp_path / "cleaned").exists()


def test_waiting_for_other_tasks_is_interrupted_and_they_are_cancelled(ray_start, tmp_path):
    @ray.remote
    def child():
        (tmp_path / "child").touch()
        try:
            while True:
                time.sleep(0.01)
        finally:
            (tmp_path / "cancelled").touch()

    @ray.remote(timeout_s=1.0)
    def parent():
        return ray.get(child.remote())

    with pytest.raises(TaskTimeoutError):
        ray.get(parent.remote(), timeout=30)
    if (tmp_path / "child").exists():
        wait_until((tmp_path / "cancelled").exists)


def test_waiting_in_a_queue_does_not_count(ray_start):
    limited = sleep.options(timeout_s=3, num_cpus=2)
    refs = [limited.remote(0.5) for _ in range(8)]  # 4 s one after another
    assert ray.get(refs, timeout=60) == ["slept"] * 8


@pytest.mark.parametrize("ray_start", [{"_system_config": {"timeout_grace_s": 0.3}}], indirect=True)
def test_a_task_that_does_not_react_is_ended_by_force(ray_start):
    @ray.remote(timeout_s=0.3)
    def deaf():
        while True:
            try:
                time.sleep(0.01)
            except KeyboardInterrupt:
                pass

    @ray.remote(timeout_s=0.3)
    def holds_the_gil():
        collections.deque(itertools.repeat(None), maxlen=0)  # never ends, and never lets another thread run

    for function in (deaf, holds_the_gil):
        with pytest.raises(TaskTimeoutError, match="did not react"):
            ray.get(function.remote(), timeout=30)
    assert ray.get(sleep.remote(0), timeout=30) == "slept"


def test_a_timeout_is_retried_only_where_retry_exceptions_says_so(ray_shared, tmp_path):
    @ray.remote(timeout_s=0.3, max_retries=2)
    def slow(name):
        with open(tmp_path / name, "a") as out:
            out.write("x")
        time.sleep(60)

    with pytest.raises(TaskTimeoutError):
        ray.get(slow.remote("once"), timeout=30)
    with pytest.raises(TaskTimeoutError):
        ray.get(slow.options(retry_exceptions=[TaskTimeoutError]).remote("thrice"), timeout=30)
    assert (tmp_path / "once").read_text() == "x"
    assert (tmp_path / "thrice").read_text() == "xxx"


def test_a_worker_that_dies_of_something_else_is_no_timeout(ray_shared):
    import os

    @ray.remote(timeout_s=30, max_retries=0)
    def die():
        os._exit(3)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(die.remote(), timeout=30)


# --- actors --------------------------------------------------------------------------------------------------------


@ray.remote
class Plain:
    def sleep(self, seconds):
        time.sleep(seconds)
        return "slept"

    @ray.method(timeout_s=0.3)
    def limited(self, seconds):
        return self.sleep(seconds)

    def deaf(self):
        while True:
            try:
                time.sleep(0.01)
            except KeyboardInterrupt:
                pass


def test_a_method_is_interrupted_and_the_actor_lives_on(ray_shared):
    actor = Plain.remote()
    with pytest.raises(TaskTimeoutError):
        ray.get(actor.limited.remote(60), timeout=30)
    assert ray.get(actor.limited.remote(0), timeout=30) == "slept"
    with pytest.raises(TaskTimeoutError):
        ray.get(actor.sleep.options(timeout_s=0.2).remote(60), timeout=30)
    # Behind it the queue goes on, unharmed.
    refs = [actor.limited.remote(60), actor.sleep.remote(0), actor.limited.remote(0)]
    with pytest.raises(TaskTimeoutError):
        ray.get(refs[0], timeout=30)
    assert ray.get(refs[1:], timeout=30) == ["slept", "slept"]


@pytest.mark.parametrize("ray_start", [{"_system_config": {"timeout_grace_s": 0.3}}], indirect=True)
@pytest.mark.parametrize("restarts", [0, 1])
def test_an_actor_that_does_not_react_is_ended_by_force(ray_start, restarts):
    actor = Plain.options(max_restarts=restarts).remote()
    with pytest.raises(TaskTimeoutError, match="did not react"):
        ray.get(actor.deaf.options(timeout_s=0.2).remote(), timeout=30)
    if restarts:
        assert ray.get(actor.sleep.options(max_task_retries=3).remote(0), timeout=30) == "slept"
    else:
        with pytest.raises(ActorDiedError):
            ray.get(actor.sleep.remote(0), timeout=30)


def test_a_method_in_a_thread_fails_in_time_and_runs_on(ray_shared, tmp_path):
    @ray.remote(max_concurrency=2)
    class Threads:
        def __init__(self):
            self.ended = 0

        def wait_for(self, path):
            wait_until(path.exists)
            self.ended += 1

        def count(self):
            return self.ended

    actor = Threads.remote()
    with pytest.raises(TaskTimeoutError):
        ray.get(actor.wait_for.options(timeout_s=0.2).remote(tmp_path / "go"), timeout=30)
    assert ray.get(actor.wait_for.options(timeout_s=10).remote(tmp_path), timeout=30) is None
    assert ray.get(actor.count.remote(), timeout=30) == 1
    (tmp_path / "go").touch()
    wait_until(lambda: ray.get(actor.count.remote(), timeout=30) == 2)


@ray.remote
class Coroutines:
    def __init__(self):
        self.cancelled = 0

    async def sleep(self, seconds):
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "slept"

    async def deaf(self):
        for _ in range(100):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

    async def count(self):
        return self.cancelled


def test_a_coroutine_gets_cancelled_error_and_the_others_run_on(ray_shared):
    actor = Coroutines.remote()
    beside = actor.sleep.remote(1.0)
    limited = [actor.sleep.options(timeout_s=0.2).remote(60) for _ in range(10)]
    quick = actor.sleep.options(timeout_s=30).remote(0)
    for ref in limited:
        with pytest.raises(TaskTimeoutError):
            ray.get(ref, timeout=30)
    assert ray.get([beside, quick], timeout=30) == ["slept", "slept"]
    assert ray.get(actor.count.remote(), timeout=30) == 10


@pytest.mark.parametrize("ray_start", [{"_system_config": {"timeout_grace_s": 0.2}}], indirect=True)
def test_a_coroutine_that_ignores_it_fails_after_the_grace_time(ray_start):
    actor = Coroutines.remote()
    with pytest.raises(TaskTimeoutError):
        ray.get(actor.deaf.options(timeout_s=0.2).remote(), timeout=30)
    assert ray.get(actor.sleep.remote(0), timeout=30) == "slept"


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), "1", True])
def test_bad_timeouts_are_refused(given):
    with pytest.raises((ValueError, TypeError), match="timeout_s"):
        sleep.options(timeout_s=given)
    with pytest.raises((ValueError, TypeError), match="timeout_s"):
        ray.method(timeout_s=given)(lambda self: None)
