"""Large objects of a driver on another node than its workers: fetched, held for it, freed by it, made again.

The other node is tests/api/other_node.py, with a store and an object manager of its own; transfers are real, only the
calls take the session's sockets.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ray._native.plasma import PlasmaClient
from ray._native.transfer import TransferLine
from tests.plasma.transfer_node import Gate
from tests.wait import wait_until

PRELUDE = """
import numpy, asyncio, os, time
@ray.remote
def make(n, port=0):
    return numpy.full(n, 3, dtype=numpy.int64)
@ray.remote
def total(array, port):
    return int(array.sum())
@ray.remote
def total_of(box, port):
    from ray._core import engine
    engine.current().on_node_up(7, bytes(16), *port)
    return int(ray.get(box[0]).sum())
@ray.remote
def meet(port):
    from ray._core import engine
    engine.current().on_node_up(7, bytes(16), *port)
    return os.getpid()
"""


class Other:
    """The driver on node 7."""

    def __init__(self, folder: str, gate: Gate) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.api.other_node", folder, str(gate.address[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._timer = threading.Timer(110, self._process.kill)  # a hang ends as a failure
        self._timer.start()
        where, port = self._process.stdout.readline().split()
        self.run(PRELUDE)
        self.run(f"PORT = ('unix:{where}', {port})")

    def run(self, code: str) -> str:
        """Runs code there; the repr of what it gave `out`, or the error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(code.encode("unicode_escape").decode() + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait() == 0
        self._process.stdout.close()
        self._timer.cancel()


class TwoNodes:
    def __init__(self, folder: str) -> None:
        self.objects_socket = folder + "/objects.sock"
        self.plasma_socket = folder + "/plasma.sock"
        self.gate = Gate(self.objects_socket)
        self.other = Other(folder, self.gate)

    def stats(self) -> dict[str, int]:
        """Of the object manager of the session's store."""
        line = TransferLine(self.objects_socket)
        try:
            counts: dict[str, int] = line.wait(line.ask_stats())[2]
            return counts
        finally:
            line.close()

    def objects(self) -> int:
        client = PlasmaClient(self.plasma_socket)
        try:
            return len(client.list())
        finally:
            client.disconnect()

    def close(self) -> None:
        self.other.close()
        self.gate.close()


@pytest.fixture
def nodes(ray_start: Any) -> Iterator[TwoNodes]:

    both = TwoNodes(_session_folder())
    yield both
    both.close()


def _session_folder() -> str:
    from ray._core import engine

    current = engine.current()
    assert current is not None
    return str(current.session_dir)


pytestmark = pytest.mark.parametrize(
    "ray_start", [{"num_cpus": 1, "_system_config": {"object_manager": True}}], indirect=True
)


def test_a_result_is_fetched_once_held_for_its_owner_and_freed_by_it(nodes: TwoNodes) -> None:
    assert nodes.other.run("ref = make.remote(1_000_000)\nout = int(ray.get(ref).sum())") == "3000000"
    assert nodes.other.run("out = [int(ray.get(ref)[i]) for i in range(3)]") == "[3, 3, 3]"
    assert nodes.stats()["served"] == 1
    wait_until(lambda: nodes.stats()["held"] == 1)
    client = PlasmaClient(nodes.plasma_socket)
    client.evict(1 << 40)
    client.disconnect()
    assert nodes.objects() == 1
    nodes.other.run("del ref")
    wait_until(lambda: nodes.objects() == 0 and nodes.stats()["held"] == 0)
    wait_until(lambda: nodes.other.run("out = len(node.client.list())") == "0")


def test_a_result_that_nobody_waits_for_is_not_kept(nodes: TwoNodes) -> None:
    nodes.other.run("make.remote(1_000_000)\nray.get(meet.remote(PORT))")
    wait_until(lambda: nodes.objects() == 0 and nodes.stats()["held"] == 0)


def test_what_is_put_is_fetched_once_for_all_tasks_that_take_it_and_freed_everywhere(nodes: TwoNodes) -> None:
    nodes.other.run("ray.get(meet.remote(PORT))\nref = ray.put(numpy.ones(1_000_000))")
    assert nodes.other.run("out = ray.get([total.remote(ref, PORT) for _ in range(20)])") == repr([1000000] * 20)
    assert nodes.stats()["pulls_done"] == 1
    assert nodes.stats()["bytes_in"] < 9_000_000
    nodes.other.run("del ref")
    wait_until(lambda: nodes.objects() == 0)
    wait_until(lambda: nodes.other.run("out = len(node.client.list())") == "0")


def test_refs_inside_arguments_and_large_arguments_themselves_are_fetched(nodes: TwoNodes) -> None:
    nodes.other.run("ray.get(meet.remote(PORT))")
    assert nodes.other.run("out = ray.get(total.remote(numpy.ones(1_000_000), PORT))") == "1000000"
    assert nodes.other.run("out = ray.get(total_of.remote([ray.put(numpy.ones(500_000))], PORT))") == "500000"
    assert nodes.other.run("out = ray.get(total.remote(make.remote(1_000_000), PORT))") == "3000000"


def test_await_and_futures_do_not_block_their_thread(nodes: TwoNodes) -> None:
    code = """
async def both():
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)
    ticking = asyncio.create_task(tick())
    arrays = await asyncio.gather(make.remote(4_000_000), make.remote(4_000_000))
    ticking.cancel()
    return [int(a.sum()) for a in arrays], ticks > 10
out = asyncio.run(both()), int(make.remote(1_000_000).future().result(60).sum())
"""
    assert nodes.other.run(code) == "(([12000000, 12000000], True), 3000000)"


def test_get_gives_up_at_its_timeout_and_succeeds_later(nodes: TwoNodes) -> None:
    nodes.other.run("ref = make.remote(1_000_000)\nray.wait([ref], fetch_local=False)")
    store = PlasmaClient(nodes.plasma_socket)
    pid = store_pid(nodes)
    os.kill(pid, signal.SIGSTOP)
    try:
        said = nodes.other.run("out = ray.get(ref, timeout=0.3)")
    finally:
        os.kill(pid, signal.SIGCONT)
        store.disconnect()
    assert said.startswith("GetTimeoutError")
    assert nodes.other.run("out = int(ray.get(ref).sum())") == "3000000"


def test_a_result_whose_store_died_is_made_again(nodes: TwoNodes) -> None:
    nodes.other.run("ref = make.remote(1_000_000)\nray.wait([ref], fetch_local=False)")
    pid = store_pid(nodes)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: os.path.exists(nodes.objects_socket) and store_pid(nodes) not in (0, pid))
    assert nodes.other.run("out = int(ray.get(ref).sum())") == "3000000"


def store_pid(nodes: TwoNodes) -> int:
    """Of the session's store that serves now; 0: none does."""
    try:
        client = PlasmaClient(nodes.plasma_socket)
    except OSError:
        return 0
    try:
        return int(client.store_pid)
    finally:
        client.disconnect()
