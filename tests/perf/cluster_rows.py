"""The rows of cluster.py: what is measured and what it is compared with, in one process. PROCESS: a driver, or a tool.

    python -m tests.perf.cluster_rows ROW [--json FILE]

Each row returns [value], or [value, what it is compared with]. Those between hosts run in network namespaces
(tests/cluster/netns.py); the others use `ray.cluster_utils.Cluster`. A second is a second of the wall's clock.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from tests.cluster.hosts import Hosts
from tests.cluster.netns import Network
from tests.perf.transfer import MIB, broadcast, raw_copy
from tests.plasma.transfer_node import TOKEN, TransferNode

GIB = 1 << 30
STORE_BYTES = 64 * MIB
TRIES = 5
TASKS = 300_000
SILENCE_S = 2.0  # of a node, until it is taken for dead


def transfer() -> list[float]:
    """GB/s from store to store between two hosts, and of a plain copy there: the best of some, in turns, pages warm."""
    ours, plain = [], []
    with Network(2) as network, ExitStack() as stack:
        nodes = []
        for host in range(2):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-transfer-"))
            nodes.append(network.inside(host, partial(TransferNode, folder, GIB + 64 * MIB, TOKEN)))
            stack.callback(nodes[-1].close)
        first, second = nodes
        key = b"t" * 28
        first.client.put(key, bytes(GIB), timeout_s=60.0)
        for _ in range(1 + TRIES):
            began = time.perf_counter()
            outcome, text, request = second.fetch(key, [first.address], 120.0)
            ours.append(time.perf_counter() - began)
            assert outcome == "here", text
            second.line.let_go(request)
            second.stats()
            second.client.delete(key)
            plain.append(raw_copy(GIB, True, network))
    # The first had to make its pages; the plain copy's are made before it begins.
    return [GIB / min(ours[1:]) / 1e9, GIB / min(plain[1:]) / 1e9]


def spread(mbit: int) -> list[float]:
    """Seconds to 8 stores that ask at once, and to one."""
    return [broadcast(256 * MIB, 8, mbit)[0], broadcast(256 * MIB, 1, mbit)[0]]


def task_rate(own_cpus: int, others: int) -> float:
    """Tasks a second, submitted at once by a driver whose node has own_cpus; so many others have one processor each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": own_cpus, "object_store_memory": STORE_BYTES})
    try:
        for _ in range(others):
            cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)

        @ray.remote
        def nothing() -> None:
            pass

        @ray.remote
        def where() -> str:
            time.sleep(0.2)
            return ray.get_runtime_context().get_node_id()

        # All workers have started, and every node has had some.
        found = set(ray.get([where.remote() for _ in range(4 * max(own_cpus, others))]))
        assert len(found) == max(others, 1), f"ran on {len(found)} nodes"
        rates = []
        for _ in range(TRIES):
            began = time.perf_counter()
            ray.get([nothing.remote() for _ in range(TASKS)])
            rates.append(TASKS / (time.perf_counter() - began))
        return statistics.median(rates)
    finally:
        ray.shutdown()
        cluster.shutdown()


def tasks() -> list[float]:
    """All of them on four nodes other than the driver's; and all on the driver's, with as many workers."""
    return [task_rate(0, 4), task_rate(4, 0)]


def on_four_nodes(what: Callable[[], float]) -> list[float]:
    """The median of some tries, in a cluster of four nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1, resources={"custom": 100}, object_store_memory=STORE_BYTES)
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        what()
        return [statistics.median(what() for _ in range(TRIES))]
    finally:
        ray.shutdown()
        cluster.shutdown()


def groups() -> float:
    """Placement groups of one bundle a second, made, waited for and removed, 50 at a time."""
    from ray.util import placement_group, remove_placement_group

    began = time.perf_counter()
    for _ in range(20):
        made = [placement_group([{"custom": 0.001}]) for _ in range(50)]
        for group in made:
            assert group.wait(30)
        for group in made:
            remove_placement_group(group)
    return 20 * 50 / (time.perf_counter() - began)


class Answers:
    def answer(self) -> None:
        pass


def actors() -> float:
    """Actors a second, until each has answered and has been killed, 20 at a time."""
    made = ray.remote(num_cpus=0)(Answers).options(scheduling_strategy="SPREAD")
    began = time.perf_counter()
    for _ in range(5):
        some = [made.remote() for _ in range(20)]
        ray.get([actor.answer.remote() for actor in some])
        for actor in some:
            ray.kill(actor)
    return 5 * 20 / (time.perf_counter() - began)


@ray.remote(num_cpus=0, max_retries=-1)
def first_stays(mark: str) -> int:
    """The first time it says which process it is and stays; after that it returns at once."""
    if not os.path.exists(mark):
        Path(mark + ".new").write_text(str(os.getpid()))
        os.rename(mark + ".new", mark)
        time.sleep(600)
    return os.getpid()


def after(what: Callable[[Hosts, int], None], leaves_folder: bool = False) -> float:
    """Seconds from what happens to host 1, or to the process there that runs a task, until the task's result.

    leaves_folder: of the session there, which the next node on that host removes.
    """
    with Hosts(2, {"node_silence_s": SILENCE_S}) as hosts, tempfile.TemporaryDirectory(prefix="ray-mark-") as folder:
        hosts.join(1)
        mark = Path(folder) / "mark"
        ref = first_stays.options(**hosts.on(1, soft=True)).remote(str(mark))
        while not mark.exists():
            time.sleep(0.005)
        pid = int(mark.read_text())
        began = time.perf_counter()
        what(hosts, pid)
        ray.get(ref, timeout=60)
        took = time.perf_counter() - began
        if leaves_folder:
            hosts.join(1)
        return took


def kill_worker(hosts: Hosts, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_node(hosts: Hosts, pid: int) -> None:
    os.kill(hosts.pid(1), signal.SIGKILL)  # whose pid is asked for first: a few ms, counted


ROWS: dict[str, Callable[[], list[float]]] = {
    "transfer": transfer,
    "broadcast": lambda: spread(800),
    "broadcast here": lambda: spread(0),
    "tasks": tasks,
    "groups": lambda: on_four_nodes(groups),
    "actors": lambda: on_four_nodes(actors),
    "killed worker": lambda: [1000 * after(kill_worker)],
    "killed node": lambda: [1000 * after(kill_node, leaves_folder=True)],
    "unplugged node": lambda: [1000 * (after(lambda hosts, pid: hosts.network.unplug(1)) - SILENCE_S)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("row", choices=[*ROWS])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    values = ROWS[options.row]()
    print(options.row, *(f"{value:.4g}" for value in values))
    if options.json:
        Path(options.json).write_text(json.dumps(values))


if __name__ == "__main__":
    main()
