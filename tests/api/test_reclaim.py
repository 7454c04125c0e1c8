"""A caller that dies takes its calls along, and nothing else: the workers that ran them live on with what they own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import ray
from ray.exceptions import TaskCancelledError, WorkerCrashedError
from tests.wait import wait_until


def _pid_in(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text(), 20, what=str(path)))


def test_a_task_of_a_dead_caller_is_interrupted_and_what_its_worker_made_for_others_lives_on(ray_start, tmp_path):
    @ray.remote
    def make():
        return [ray.put(np.arange(100_000)), os.getpid()]

    @ray.remote
    def forever(path):
        path.write_text(str(os.getpid()))
        time.sleep(1000)

    @ray.remote(max_retries=0)
    def call(caller, runner):
        caller.write_text(str(os.getpid()))
        return ray.get(forever.remote(runner))

    made = ray.get([make.remote() for _ in range(8)])
    calling = call.remote(tmp_path / "caller", tmp_path / "runner")
    caller, runner = _pid_in(tmp_path / "caller"), _pid_in(tmp_path / "runner")
    os.kill(caller, signal.SIGKILL)
    with pytest.raises(WorkerCrashedError):
        ray.get(calling)
    # Its CPU comes back although nobody could return the inner lease, and the worker is none the worse.
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    os.kill(runner, 0)
    for ref, pid in made:
        if pid != caller:
            assert ray.get(ref)[-1] == 99_999


def test_a_worker_whose_task_was_interrupted_runs_no_other(ray_start, tmp_path):
    @ray.remote
    def forever(path):
        path.write_text(str(os.getpid()))
        time.sleep(1000)

    @ray.remote
    def who():
        time.sleep(0.01)
        return os.getpid()

    ref = forever.remote(tmp_path / "pid")
    interrupted = _pid_in(tmp_path / "pid")
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref)
    assert interrupted not in ray.get([who.remote() for _ in range(50)])
