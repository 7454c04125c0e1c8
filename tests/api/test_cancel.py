"""ray.cancel."""

from __future__ import annotations

import collections
import ctypes
import os
import signal
import time

import pytest

import ray
from ray.exceptions import TaskCancelledError, WorkerCrashedError
from tests.wait import wait_until


@ray.remote
def spin(started=None):
    if started is not None:
        started.touch()
    while True:
        time.sleep(0.01)


@ray.remote
def spin_in_c(started):
    started.touch()
    time.sleep(1000)


def test_a_queued_task_never_runs(ray_start, tmp_path):
    blockers = [spin.remote(tmp_path / f"blocker{i}") for i in range(2)]
    wait_until(lambda: all((tmp_path / f"blocker{i}").exists() for i in range(2)))
    queued = spin.remote(tmp_path / "queued")
    ray.cancel(queued)
    with pytest.raises(TaskCancelledError):
        ray.get(queued, timeout=60)
    for ref in blockers:
        ray.cancel(ref)
        with pytest.raises(TaskCancelledError):
            ray.get(ref, timeout=30)
    assert not (tmp_path / "queued").exists()


def test_a_running_task_is_interrupted(ray_shared, tmp_path):
    ref = spin.remote(tmp_path / "started")
    wait_until((tmp_path / "started").exists)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=30)


def test_a_task_may_clean_up_when_it_is_interrupted(ray_shared, tmp_path):
    @ray.remote
    def careful():
        try:
            (tmp_path / "started").touch()
            while True:
                time.sleep(0.01)
        finally:
            (tmp_path / "cleaned").touch()

    ref = careful.remote()
    wait_until((tmp_path / "started").exists)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=30)
    assert (tmp_path / "cleaned").exists()


def test_what_an_interrupted_task_makes_of_it_is_told_and_is_no_failure(ray_shared, tmp_path):
    # As numpy's C parts do, which raise ImportError when they are interrupted while they are imported.
    @ray.remote
    def imports():
        try:
            (tmp_path / "started").touch()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            raise ImportError("half of it is missing") from None

    ref = imports.remote()
    wait_until((tmp_path / "started").exists)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError, match="was cancelled, and raised ImportError: half of it is missing"):
        ray.get(ref, timeout=30)


def test_an_interruption_that_strikes_where_nothing_can_be_raised_comes_again(ray_shared, tmp_path):
    @ray.remote
    def task(path):
        class Closing:
            def __del__(self):  # what is raised here is printed, and forgotten
                path.touch()
                time.sleep(60)

        Closing()
        time.sleep(600)

    ref = task.remote(tmp_path / "closes")
    wait_until((tmp_path / "closes").exists)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_an_interruption_that_strikes_just_before_a_system_call_comes_again(ray_shared, tmp_path):
    @ray.remote
    def task(path):
        path.touch()
        # Between two calls of C in a row Python looks for no signal: the second begins after the first was interrupted.
        sleep = ctypes.CDLL(None).sleep
        collections.deque(map(sleep, [600, 600]))

    ref = task.remote(tmp_path / "sleeps")
    wait_until((tmp_path / "sleeps").exists)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_a_handler_of_the_users_is_called_once(ray_shared, tmp_path):
    @ray.remote(max_retries=0)
    def task(path):
        seen = []
        before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
        path.touch()
        while not seen:
            time.sleep(0.01)
        time.sleep(0.3)  # others would come within this time
        signal.signal(signal.SIGINT, before)  # the worker has other tasks to run, which may be cancelled
        return len(seen)

    ref = task.remote(tmp_path / "handles")
    wait_until((tmp_path / "handles").exists)
    ray.cancel(ref)
    assert ray.get(ref, timeout=20) == 1


def test_a_handler_that_a_task_has_left_behind_keeps_no_other_from_being_cancelled(ray_start, tmp_path):
    @ray.remote
    def leaves_its_own():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return os.getpid()

    @ray.remote
    def sleeps():
        (tmp_path / str(os.getpid())).touch()
        time.sleep(600)

    pid = ray.get(leaves_its_own.remote(), timeout=20)
    ref = sleeps.remote()
    wait_until((tmp_path / str(pid)).exists)  # the same worker
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


def test_force_ends_a_task_that_does_not_listen(ray_shared, tmp_path):
    ref = spin_in_c.remote(tmp_path / "started")
    wait_until((tmp_path / "started").exists)
    ray.cancel(ref, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        ray.get(ref, timeout=30)


def test_recursive_cancels_the_tasks_it_has_submitted(ray_start, tmp_path):
    @ray.remote
    def parent():
        ray.get(spin.remote(tmp_path / "child"))

    @ray.remote(num_cpus=2)
    def whole_machine():
        return "free"

    ref = parent.remote()
    wait_until((tmp_path / "child").exists)
    ray.cancel(ref, recursive=True)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=30)
    assert ray.get(whole_machine.remote(), timeout=30) == "free"  # the child has let go of its CPU


def test_what_it_submits_while_the_cancel_is_on_its_way_is_cancelled_too(ray_start, tmp_path):
    @ray.remote
    def child():
        time.sleep(1000)

    @ray.remote(num_cpus=0)
    def parent(path):
        path.touch()
        refs = []
        while True:
            refs.append(child.remote())

    for i in range(3):
        ref = parent.remote(tmp_path / str(i))
        wait_until((tmp_path / str(i)).exists)
        ray.cancel(ref)
        with pytest.raises(TaskCancelledError):
            ray.get(ref)
        wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def test_a_task_that_waits_for_its_argument_is_cancelled(ray_shared, tmp_path):
    blocker = spin.remote(tmp_path / "started")
    waiting = spin.remote(blocker)
    ray.cancel(waiting)
    with pytest.raises(TaskCancelledError):
        ray.get(waiting, timeout=60)
    ray.cancel(blocker)
    with pytest.raises(TaskCancelledError):
        ray.get(blocker, timeout=30)


def test_a_finished_task_keeps_its_result(ray_shared):
    @ray.remote
    def f():
        return 1

    ref = f.remote()
    assert ray.get(ref) == 1
    ray.cancel(ref)
    assert ray.get(ref) == 1


@pytest.mark.parametrize("thing", [1, None, "ref", [1]], ids=repr)
def test_cancel_of_something_else_is_an_error(ray_shared, thing):
    with pytest.raises(TypeError, match="expected an ObjectRef"):
        ray.cancel(thing)


def test_cancel_of_an_actor_points_to_kill(ray_shared):
    @ray.remote
    class Actor: ...

    with pytest.raises(TypeError, match=r"ray\.kill"):
        ray.cancel(Actor.remote())


@pytest.mark.parametrize("option", ["force", "recursive"])
def test_options_must_be_bools(ray_shared, option):
    with pytest.raises(TypeError, match=option):
        ray.cancel(ray.put(1), **{option: "yes"})
