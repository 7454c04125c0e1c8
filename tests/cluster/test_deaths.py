"""Deaths on a cluster, by whom they meet and in the middle of what: cells of docs/internals/fault-tolerance.md."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray
from ray import exceptions
from tests.chaos.session import gone
from tests.wait import wait_until

from .nodes import Nodes
from .test_objects import make, nothing_left, objects, on, stats

LARGE = 20_000_000  # int64: 160 MB, some tens of milliseconds between two stores
ROOMY = 256 * 2**20
QUICK = {"heartbeat_s": 0.2, "node_silence_s": 1.0}


@ray.remote
def pid() -> int:
    return os.getpid()


def kill(victim: int) -> None:
    os.kill(victim, signal.SIGKILL)
    gone(victim)


def status_of(pid: int) -> str:
    """R, S, T (stopped), ... as the kernel has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def store_of(nodes: Nodes, number: int) -> int:
    return int(nodes.stats(number)["pids"]["plasma_store"])


def test_an_idle_worker_on_another_node_dies_and_the_next_task_finds_another(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    first = ray.get(pid.options(**on(nodes, 1)).remote(), timeout=60)
    kill(first)
    second = ray.get(pid.options(max_retries=0, **on(nodes, 1)).remote(), timeout=60)
    assert second != first


@pytest.mark.parametrize("nodes", [{"object_store_memory": ROOMY}], indirect=True)
@pytest.mark.parametrize("who", ["the source's store", "the own store"])
def test_a_store_dies_in_the_middle_of_a_transfer(nodes: Nodes, who: str) -> None:
    nodes.add_node({"CPU": 1}, object_store_memory=ROOMY)
    ref = make.options(**on(nodes, 1)).remote(7, LARGE)
    ray.wait([ref], fetch_local=False)
    victim = store_of(nodes, 1 if who == "the source's store" else 0)
    values: list[int] = []
    getting = threading.Thread(target=lambda: values.append(int(ray.get(ref, timeout=30).sum())))
    getting.start()
    wait_until(lambda: stats(nodes, 0)["bytes_in"] > 0)
    kill(victim)
    getting.join()
    assert values == [7 * LARGE]


@pytest.mark.parametrize("nodes", [{"object_store_memory": ROOMY}], indirect=True)
def test_a_worker_dies_in_the_middle_of_the_transfer_of_its_argument(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add_node({"CPU": 1}, object_store_memory=ROOMY)
    ref = ray.put(np.full(LARGE, 7))
    written = tmp_path / "pid"

    @ray.remote(max_retries=1)
    def total(box: list[Any]) -> int:
        if not written.exists():
            part = tmp_path / "part"
            part.write_text(str(os.getpid()))
            part.rename(written)
        return int(ray.get(box[0]).sum())

    result = total.options(**on(nodes, 1)).remote([ref])
    wait_until(lambda: stats(nodes, 1)["bytes_in"] > 0)
    kill(int(written.read_text()))
    assert ray.get(result, timeout=30) == 7 * LARGE
    del ref, result
    ray.put(None)
    wait_until(nothing_left(nodes, 0, 1))


@pytest.mark.parametrize("nodes", [{"object_store_memory": ROOMY}], indirect=True)
def test_a_driver_on_another_node_dies_in_the_middle_of_a_transfer_and_leaves_nothing(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1}, object_store_memory=ROOMY)
    program = f"""
import ray, numpy as np
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address={nodes.folder(1)!r}, logging_level="error")
@ray.remote(scheduling_strategy=On({nodes.node_id(0)!r}, soft=False))
def make(): return np.full({LARGE}, 7)
ray.get(make.remote())
import time
time.sleep(600)
"""
    driver = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(lambda: stats(nodes, 1)["bytes_in"] > 0)
    finally:
        driver.kill()
        driver.wait()
    wait_until(nothing_left(nodes, 0, 1))
    wait_until(lambda: ray.available_resources().get("CPU") == 2)


@pytest.mark.parametrize("nodes", [{"object_store_memory": ROOMY}], indirect=True)
def test_a_node_dies_while_its_worker_writes_a_result(nodes: Nodes, tmp_path: Path) -> None:
    number = nodes.add_node({"CPU": 1}, object_store_memory=ROOMY)

    @ray.remote(max_retries=1)
    def write() -> Any:
        value = np.full(LARGE, 7)
        (tmp_path / ray.get_runtime_context().get_node_id()).touch()  # writing begins now
        return value

    ref = write.options(**on(nodes, number, soft=True)).remote()
    wait_until((tmp_path / nodes.node_id(number)).exists)
    nodes.kill(number)
    assert int(ray.get(ref, timeout=30).sum()) == 7 * LARGE


def test_a_node_dies_while_an_actor_is_made_on_it(nodes: Nodes, tmp_path: Path) -> None:
    number = nodes.add_node({"CPU": 1})

    class Slow:
        def __init__(self) -> None:
            here = ray.get_runtime_context().get_node_id()
            (tmp_path / here).touch()
            if here != first:
                time.sleep(600)

        def where(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    first = nodes.node_id(0)
    strategy = {"max_restarts": 1, **on(nodes, number, soft=True)}
    actor = ray.remote(Slow).options(**strategy).remote()  # type: ignore[call-overload]
    called = actor.where.remote()
    wait_until((tmp_path / nodes.node_id(number)).exists)
    nodes.kill(number)
    assert ray.get(called, timeout=60) == first


class Leaver:
    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def leave(self) -> None:
        ray.actor.exit_actor()


class AsyncLeaver:
    async def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    async def leave(self) -> None:
        ray.actor.exit_actor()


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Leaver, {}), (Leaver, {"max_concurrency": 2}), (AsyncLeaver, {})],
    ids=["", "threads", "async"],
)
def test_nobody_hears_that_an_actor_has_left_before_the_head_knows(nodes: Nodes, cls: Any, options: Any) -> None:
    # Cause, once: the worker told its node and its caller at a time; the node was stopped, and the head had the actor
    # start again.
    number = nodes.add_node({"CPU": 1})
    options = {"max_restarts": -1, "num_cpus": 0, **options}
    actor = ray.remote(cls).options(**options, **on(nodes, number, soft=True)).remote()
    assert ray.get(actor.where.remote(), timeout=60) == nodes.node_id(number)
    os.kill(nodes.stats(number)["pids"]["node"], signal.SIGSTOP)
    left = actor.leave.remote()
    assert not ray.wait([left], timeout=0.3)[0]
    nodes.kill(number)
    with pytest.raises(exceptions.RayActorError) as caught:
        ray.get(left, timeout=60)
    assert "exit_actor" not in str(caught.value)

    def where() -> str | None:
        with contextlib.suppress(exceptions.ActorUnavailableError):
            return str(ray.get(actor.where.remote(), timeout=60))
        return None

    wait_until(lambda: where() == nodes.node_id(0))


def test_an_actor_of_which_was_heard_that_it_has_left_stays_dead_when_its_node_dies(nodes: Nodes) -> None:
    number = nodes.add_node({"CPU": 1})
    options = {"max_restarts": -1, "num_cpus": 0, "name": "leaver"}
    actor = ray.remote(Leaver).options(**options, **on(nodes, number, soft=True)).remote()  # type: ignore[call-overload]
    assert ray.get(actor.where.remote(), timeout=60) == nodes.node_id(number)
    with pytest.raises(exceptions.ActorDiedError, match="exit_actor"):
        ray.get(actor.leave.remote(), timeout=60)
    nodes.kill(number)
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(actor.where.remote(), timeout=60)
    with pytest.raises(ValueError, match="leaver"):
        ray.get_actor("leaver")


@pytest.mark.parametrize("nodes", [{"_system_config": QUICK}], indirect=True)
def test_a_node_that_falls_silent_is_given_up_and_ends_itself_when_it_wakes(nodes: Nodes, tmp_path: Path) -> None:
    number = nodes.add_node({"CPU": 1})
    silent = nodes.stats(number)["pids"]

    @ray.remote(max_retries=1)
    def work() -> str:
        here = str(ray.get_runtime_context().get_node_id())
        (tmp_path / here).touch()
        if here != first:
            time.sleep(600)
        return here

    first = nodes.node_id(0)
    ref = work.options(**on(nodes, number, soft=True)).remote()
    wait_until((tmp_path / nodes.node_id(number)).exists)
    os.kill(silent["node"], signal.SIGSTOP)
    try:
        assert ray.get(ref, timeout=60) == first
        assert [row["NodeID"] for row in ray.nodes() if not row["Alive"]] == [nodes.node_id(number)]
    finally:
        os.kill(silent["node"], signal.SIGCONT)
    gone(silent["node"])
    gone(silent["plasma_store"])
    nodes.kill(number)


def test_the_end_of_the_head_is_told_to_a_driver_that_waits_on_another_node(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    program = f"""
import ray, time
ray.init(address={nodes.folder(1)!r}, logging_level="error")
@ray.remote
def busy(): time.sleep(600)
ref = busy.remote()
print("waits", flush=True)
try: ray.get(ref)
except ray.exceptions.RayError as error: print(type(error).__name__, flush=True)
ray.shutdown()
"""
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "waits\n"
    head = nodes.stats(0)["pids"]["node"]
    other = nodes.by_number[1]
    kill(head)
    assert driver.communicate(timeout=60)[0].strip() == exceptions.LocalRayletDiedError.__name__
    wait_until(lambda: not other.is_alive())


def test_a_result_for_another_node_is_held_there_though_the_store_died_before_it_was_written(nodes: Nodes) -> None:
    """The worker's line to the object manager ended with the store that died."""
    nodes.add_node({"CPU": 1})

    @ray.remote(max_retries=0)
    def result(store: int) -> Any:
        if store:
            kill(store)
        return np.full(500_000, os.getpid())

    there = on(nodes, 1)
    first = ray.get(result.options(**there).remote(0), timeout=60)[0]
    ref = result.options(**there).remote(store_of(nodes, 1))
    assert ray.get(ref, timeout=60)[0] == first, "the same worker"
    wait_until(lambda: stats(nodes, 1)["held"] == 1)
    del ref
    wait_until(nothing_left(nodes, 0, 1))


def test_what_was_freed_elsewhere_as_the_own_store_died_is_freed_when_that_is_back(nodes: Nodes) -> None:
    # Cause, once: the store that was to pass it on died with it, and the result stayed where it was for good.
    nodes.add_node({"CPU": 1})
    ref = make.options(**on(nodes, 1)).remote(1, 100_000)
    ray.wait([ref])
    wait_until(lambda: stats(nodes, 1)["held"] == 1)
    own = store_of(nodes, 0)
    os.kill(own, signal.SIGSTOP)
    del ref
    time.sleep(0.1)  # what is freed leaves at once, and lies there unread
    kill(own)
    wait_until(nothing_left(nodes, 1))
    assert ray.get(pid.remote(), timeout=30)


def test_a_driver_on_another_node_dies_while_it_puts_and_leaves_nothing(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    program = f"""
import ray, numpy as np
ray.init(address={nodes.folder(1)!r}, logging_level="error")
print("puts", flush=True)
while True: ray.put(np.ones(500_000))
"""
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "puts\n"
        wait_until(lambda: objects(nodes, 1) > 0)
    finally:
        driver.kill()
        driver.communicate()
    wait_until(nothing_left(nodes, 0, 1))


def test_what_the_death_of_its_node_means_to_an_owner_is_not_what_borrowers_hear(nodes: Nodes) -> None:
    """Once, an owner that outlived its node for a moment answered them with its own LocalRayletDiedError."""
    number = nodes.add_node({"CPU": 1})
    head, node = (int(nodes.stats(n)["pids"]["node"]) for n in (0, number))

    @ray.remote(num_cpus=0)
    def slow() -> None:
        time.sleep(600)

    @ray.remote(num_cpus=0)
    class Owner:
        def begin(self) -> list[Any]:
            return [slow.remote()]

        def end(self) -> None:
            ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG: the kernel doesn't end this process with its node
            os.kill(head, signal.SIGSTOP)  # nobody else tells the driver first
            kill(node)
            time.sleep(1)

    owner = Owner.options(**on(nodes, number)).remote()
    (ref,) = ray.get(owner.begin.remote(), timeout=60)
    assert not ray.wait([ref], timeout=0.1)[0]  # the owner has been asked
    owner.end.remote()
    wait_until(lambda: status_of(head) == "T")
    go_on = threading.Timer(1.5, os.kill, (head, signal.SIGCONT))
    go_on.start()
    with pytest.raises(exceptions.OwnerDiedError):
        ray.get(ref, timeout=60)
    go_on.join()
    nodes.kill(number)


def line_to_the_object_manager() -> socket.socket:
    """This process' connection to its node's object manager (a second descriptor of it)."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if "socket" in os.readlink(f"/proc/self/fd/{fd}"):
                found = socket.socket(fileno=os.dup(fd))
                with contextlib.suppress(OSError):
                    if str(found.getpeername()).endswith("objects.sock"):
                        return found
                found.close()
    raise AssertionError("there is none")


class BreaksTheLine:
    def __reduce__(self) -> Any:
        with line_to_the_object_manager() as line:
            line.shutdown(socket.SHUT_RDWR)
        return str, ("broken",)


def test_a_result_for_another_node_is_held_though_the_line_to_the_object_manager_breaks_as_it_is_written(
    nodes: Nodes,
) -> None:
    """Mostly the receiving thread sees it first; else the hold does, between the result's seal and its answer."""
    nodes.add_node({"CPU": 1})

    @ray.remote(max_retries=0, **on(nodes, 1))
    def make(how: str) -> Any:
        return BreaksTheLine() if how == "break" else "whole", np.arange(20_000)

    for how in ("begin", *["break"] * 10, "end"):
        assert (ray.get(make.remote(how), timeout=60)[1] == np.arange(20_000)).all()
