"""priority= of tasks."""

from __future__ import annotations

import time

import pytest

import ray
from tests.chaos.session import engine
from tests.wait import wait_until


@ray.remote
def hold(started, gate):
    started.touch()
    while not gate.exists():
        time.sleep(0.005)


@ray.remote
def note(path, what):
    with open(path, "a") as out:
        out.write(what + "\n")


def noted(path):
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("ray_start", [{"num_cpus": 1}], indirect=True)
def test_higher_priorities_come_first_and_equals_in_the_order_of_submission(ray_start, tmp_path):
    gate, log = tmp_path / "gate", tmp_path / "log"
    blocker = hold.remote(tmp_path / "started", gate)
    wait_until((tmp_path / "started").exists)
    refs = []
    for i in range(6):
        refs.append(note.remote(log, f"usual{i}"))
        refs.append(note.options(priority=-1).remote(log, f"low{i}"))
        refs.append(note.options(priority=5).remote(log, f"high{i}"))
        refs.append(note.options(priority=9).remote(log, f"highest{i}"))
    gate.touch()
    ray.get([blocker, *refs], timeout=60)
    assert noted(log) == [f"{name}{i}" for name in ("highest", "high", "usual", "low") for i in range(6)]


@pytest.mark.parametrize("ray_start", [{"num_cpus": 1}], indirect=True)
def test_an_urgent_task_overtakes_a_long_queue_of_short_ones(ray_start):
    @ray.remote
    def short():
        time.sleep(0.002)
        return time.monotonic()

    @ray.remote(priority=1)
    def urgent():
        return time.monotonic()

    queue = [short.remote() for _ in range(1000)]
    overtaking = urgent.remote()
    then = ray.get(overtaking, timeout=60)
    assert sum(ended > then for ended in ray.get(queue, timeout=60)) > 300


@pytest.mark.parametrize("ray_start", [{"num_cpus": 1}], indirect=True)
def test_another_process_s_urgent_task_comes_first_too(ray_start, tmp_path):
    gate, log = tmp_path / "gate", tmp_path / "log"

    @ray.remote(num_cpus=0)
    def submit(priority):
        return ray.get(note.options(priority=priority).remote(log, f"inner{priority}"))

    blocker = hold.remote(tmp_path / "started", gate)
    wait_until((tmp_path / "started").exists)
    mine = [note.remote(log, f"mine{i}") for i in range(3)]
    theirs = submit.remote(7)
    # Until its request has reached the node: that of another priority waits in a line of its own.
    wait_until(lambda: len(engine().rpc("stats")["scheduler"]["waiting"]) == 2)
    gate.touch()
    ray.get([blocker, *mine, theirs], timeout=60)
    assert noted(log)[0] == "inner7"


@pytest.mark.parametrize("given", [1.5, "1", True, 2**31])
def test_bad_priorities_are_refused(given):
    with pytest.raises((ValueError, TypeError), match="priority"):
        note.options(priority=given)
