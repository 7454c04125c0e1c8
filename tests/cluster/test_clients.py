"""`ray://` clients of a cluster: what runs and lies on nodes other than the one that lets them in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from ray._native.plasma import PlasmaClient
from ray._native.transfer import TransferLine
from tests.wait import wait_until

from .nodes import Nodes

TOKEN = "a token for tests, long enough"


@pytest.fixture
def door(nodes: Nodes) -> Iterator[str]:
    """A second node with the resource "far", and the address for clients of the first."""
    nodes.add_node({"CPU": 2, "far": 2})
    environment = {**os.environ, "RAY_AUTH_TOKEN": TOKEN}
    command = [sys.executable, "-m", "ray.client.server", "--session", nodes.folder(0), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert server.stdout is not None
    with server.stdout:
        port = json.loads(server.stdout.readline())["port"]
    yield f"ray://127.0.0.1:{port}"
    server.terminate()
    assert server.wait(60) == 0


def client(door: str, program: str, code: int = 0, **environment: str) -> str:
    text = f"import ray, numpy as np\nray.init({door!r}, logging_level='error')\n" + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        env={**os.environ, "RAY_AUTH_TOKEN": TOKEN, **environment},
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def left(nodes: Nodes, number: int) -> tuple[int, int]:
    """(objects in a node's store, those held for owners elsewhere)."""
    store = PlasmaClient(nodes.folder(number) + "/plasma.sock")
    line = TransferLine(nodes.folder(number) + "/objects.sock")
    try:
        counts: Any = line.wait(line.ask_stats())[2]
        return len(store.list()), counts["held"]
    finally:
        store.disconnect()
        line.close()


@pytest.mark.parametrize("nodes", [{}, {"_system_config": {"tls": True}}], ids=["plain", "tls"], indirect=True)
def test_tasks_actors_and_objects_of_another_node(nodes: Nodes, door: str) -> None:
    out = client(
        door,
        """
        N = 1_000_000
        far = {"resources": {"far": 0.1}, "num_cpus": 0}

        @ray.remote(**far)
        def ones(n): return np.ones(n)
        @ray.remote(**far)
        def total(x): return float(x.sum())
        @ray.remote(**far)
        def total_of(box): return float(ray.get(box[0]).sum()) + ray.get(box[1])
        @ray.remote(num_cpus=0)
        def near(x): return float(x.sum())
        @ray.remote(**far)
        def count(n): yield from range(n)
        @ray.remote(**far)
        class Keeper:
            def __init__(self): self.kept = ray.put(np.ones(N))
            def give(self): return [self.kept, ray.put("small")]
            def add(self, x): return x + 1

        big = ones.remote(N)
        assert ray.get(big, timeout=60).sum() == N
        assert ray.get([total.remote(ones.remote(10)), near.remote(big), total.remote(big)], timeout=60) == [10, N, N]
        assert ray.get(total_of.remote([ray.put(np.ones(N)), ray.put(1)]), timeout=60) == N + 1
        assert [ray.get(ref, timeout=60) for ref in count.options(num_returns="streaming").remote(5)] == [0, 1, 2, 3, 4]
        keeper = Keeper.remote()
        big, small = ray.get(keeper.give.remote(), timeout=60)
        assert ray.get(small, timeout=60) == "small" and ray.get(big, timeout=60).sum() == N
        assert ray.get([keeper.add.remote(i) for i in range(1000)], timeout=60) == list(range(1, 1001))
        print("all of it", ray.cluster_resources()["CPU"])
        """,
    )
    assert out == "all of it 3.0\n"
    for number in (0, 1):
        wait_until(lambda number=number: left(nodes, number) == (0, 0))  # type: ignore[misc]


def test_what_a_client_puts_is_in_as_many_stores_as_it_asks_for(nodes: Nodes, door: str) -> None:
    client(
        door,
        """
        import warnings
        warnings.simplefilter("error")

        @ray.remote(num_cpus=0)
        def total(x): return float(x.sum())
        ref = ray.put(np.ones(1_000_000), _replicas=2)
        assert ray.get(total.options(resources={"far": 1}).remote(ref), timeout=60) == 1_000_000
        assert ray.get(total.remote(ref), timeout=60) == ray.get(ref).sum() == 1_000_000
        """,
    )
    for number in (0, 1):
        wait_until(lambda number=number: left(nodes, number) == (0, 0))  # type: ignore[misc]


def test_a_client_that_is_killed_leaves_nothing_on_any_node(nodes: Nodes, door: str) -> None:
    client(
        door,
        """
        import os, signal
        @ray.remote(resources={"far": 1})
        class Held:
            def make(self): return np.ones(1_000_000)
        held = Held.remote()
        ref = held.make.remote()
        ray.wait([ref])
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        code=-signal.SIGKILL,
    )
    import ray

    for number in (0, 1):
        wait_until(lambda number=number: left(nodes, number) == (0, 0))  # type: ignore[misc]
    wait_until(lambda: ray.available_resources().get("far") == 2)


def test_a_client_survives_the_death_of_the_node_that_works_for_it(nodes: Nodes, door: str) -> None:
    pid = nodes.by_number[1].pid
    out = client(
        door,
        f"""
        import os, signal, time
        @ray.remote(num_cpus=1, max_retries=3)
        def work(i):
            time.sleep(0.05)
            return i
        refs = [work.remote(i) for i in range(30)]
        ray.wait(refs, num_returns=4)
        os.kill({pid}, signal.SIGKILL)
        assert ray.get(refs, timeout=30) == list(range(30))
        print("done")
        """,
    )
    assert out == "done\n"
    nodes.kill(1)
