"""The node process or the driver dies: what waits fails within a second, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import ray
from ray.exceptions import (
    ActorDiedError,
    LocalRayletDiedError,
    RaySystemError,
)
from tests.chaos.session import (
    DETECTION_S,
    gone,
    kill,
    pids,
    within,
)
from tests.leaks import Snapshot
from tests.wait import Stopwatch, wait_until

from .dying import ROOT, Counter, echo

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


def test_calls_made_after_the_nodes_death_fail_however_many_and_however_waited_for(engine):
    """The first eight raised, and stayed in line; the others were in line for ever: a future or an await hung."""
    ray.init(num_cpus=1, logging_level="error")
    ray.get(echo.remote(1))
    kill("node")
    for _ in range(10):
        with pytest.raises(LocalRayletDiedError):
            ray.get(echo.remote(1), timeout=60)
    futures = [echo.remote(1).future() for _ in range(3)]
    for future in futures:
        with pytest.raises(LocalRayletDiedError):
            future.result(timeout=60)

    async def wait():
        await asyncio.wait_for(echo.remote(1), 60)

    with pytest.raises(LocalRayletDiedError):
        asyncio.run(wait())
    waits = echo.remote(echo.remote(1)).future()
    ray.shutdown()
    with pytest.raises((LocalRayletDiedError, RaySystemError)):
        waits.result(timeout=60)
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
