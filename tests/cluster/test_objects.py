"""Large objects on several nodes: fetched once a node, freed everywhere, made again when lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ray
from ray._native.plasma import PlasmaClient
from ray._native.transfer import TransferLine
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.wait import wait_until

from .nodes import Nodes

N = 500_000  # int64: 4 MB


@ray.remote
def make(value: int, size: int = N) -> Any:
    return np.full(size, value)


@ray.remote
def total(*arrays: Any) -> int:
    return int(sum(int(a.sum()) for a in arrays))


@ray.remote
def total_of(box: list[Any]) -> int:
    return int(sum(int(a.sum()) for a in ray.get(box)))


@ray.remote
def boxed(value: int) -> list[Any]:
    return [ray.put(np.full(N, value)), make.remote(value)]


def on(nodes: Nodes, number: int, soft: bool = False) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(nodes.node_id(number), soft=soft)}


def stats(nodes: Nodes, number: int) -> dict[str, int]:
    line = TransferLine(nodes.folder(number) + "/objects.sock")
    try:
        counts: dict[str, int] = line.wait(line.ask_stats())[2]
        return counts
    finally:
        line.close()


def objects(nodes: Nodes, number: int) -> int:
    client = PlasmaClient(nodes.folder(number) + "/plasma.sock")
    try:
        return len(client.list())
    finally:
        client.disconnect()


@ray.remote(num_returns="streaming")
def items(n: int) -> Any:
    for i in range(n):
        yield np.full(N, i)


def nothing_left(nodes: Nodes, *numbers: int) -> Callable[[], bool]:
    return lambda: all(objects(nodes, n) == 0 and stats(nodes, n)["held"] == 0 for n in numbers)


def test_results_arguments_and_puts_go_from_node_to_node_and_are_freed_everywhere(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    nodes.add_node({"CPU": 1})
    there = make.options(**on(nodes, 1)).remote(3)
    assert int(ray.get(there).sum()) == 3 * N
    put = ray.put(np.ones(N))
    assert ray.get(total.options(**on(nodes, 1)).remote(put, there)) == 4 * N
    assert ray.get(total.options(**on(nodes, 2)).remote(put, there)) == 4 * N
    assert ray.get(total.options(**on(nodes, 2)).remote(np.full(N, 2))) == 2 * N
    wait_until(lambda: stats(nodes, 1)["served"] == 2)  # it is counted behind the last byte
    del there, put
    wait_until(nothing_left(nodes, 0, 1, 2))


def test_refs_inside_values_cross_nodes_both_ways(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 2})
    box = [ray.put(np.ones(N)), make.options(**on(nodes, 1)).remote(2)]
    assert ray.get(total_of.options(**on(nodes, 1)).remote(box)) == 3 * N
    back = ray.get(boxed.options(**on(nodes, 1)).remote(5))
    assert sum(int(ray.get(ref).sum()) for ref in back) == 10 * N
    assert ray.get(total_of.options(**on(nodes, 0)).remote(back)) == 10 * N
    del box, back
    wait_until(nothing_left(nodes, 0, 1))


def test_an_object_is_transferred_once_for_all_tasks_of_a_node(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 2})
    ref = ray.put(np.ones(N))
    assert ray.get([total.options(**on(nodes, 1)).remote(ref) for _ in range(30)]) == [N] * 30
    wait_until(lambda: stats(nodes, 0)["served"] and stats(nodes, 1)["pulls_done"])
    assert stats(nodes, 0)["served"] == 1
    assert stats(nodes, 1)["pulls_done"] == 1


def test_wait_has_what_is_ready_elsewhere_fetched_as_a_copy_that_may_go_again(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    refs = [make.options(**on(nodes, 1)).remote(i) for i in range(4)]
    assert ray.wait(refs, num_returns=4, timeout=20, fetch_local=False) == (refs, [])
    assert objects(nodes, 0) == 0
    assert ray.wait(refs, num_returns=1, timeout=20)[0] == refs[:1]
    client = PlasmaClient(nodes.folder(0) + "/plasma.sock")
    try:
        wait_until(lambda: [row["state"] for row in client.list().values()] == ["sealed"] * 4)
        wait_until(lambda: all(row["pins"] == 0 for row in client.list().values()))
        assert [int(value[0]) for value in ray.get(refs)] == [0, 1, 2, 3]
        assert stats(nodes, 1)["served"] == 4
        # Fetched and thrown away again: what wait fetches is no promise, and a get fetches it once more.
        assert client.evict(64 << 20) > 0
        ray.wait(refs, num_returns=1, timeout=20)
        assert [int(value[-1]) for value in ray.get(refs)] == [0, 1, 2, 3]
    finally:
        client.disconnect()
    del refs
    wait_until(nothing_left(nodes, 0, 1))


def test_generators_on_another_node_yield_large_items(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    assert [int(ray.get(ref).sum()) for ref in items.options(**on(nodes, 1)).remote(4)] == [i * N for i in range(4)]
    wait_until(nothing_left(nodes, 0, 1))


def test_generators_that_are_dropped_early_leave_nothing_anywhere(nodes: Nodes) -> None:
    # An item may be freed here before the other node's store has read that it should hold it for us.
    nodes.add_node({"CPU": 1})
    for taken in range(12):
        generators = [items.options(num_cpus=0, **on(nodes, 1)).remote(6) for _ in range(8)]
        for generator in generators:
            for _ in range(taken % 5):
                next(generator)
            del generator
        del generators
        wait_until(nothing_left(nodes, 0, 1))


@pytest.mark.parametrize("nodes", [{"object_store_memory": 256 * 2**20}], indirect=True)
def test_a_get_in_the_middle_of_a_transfer_survives_the_death_of_the_node_that_sends(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1}, object_store_memory=256 * 2**20)
    ref = make.options(**on(nodes, 1, soft=True)).remote(7, 20_000_000)
    ray.wait([ref], fetch_local=False)
    values: list[int] = []
    getting = threading.Thread(target=lambda: values.append(int(ray.get(ref, timeout=30).sum())))
    getting.start()
    wait_until(lambda: stats(nodes, 0)["bytes_in"] > 0)
    nodes.kill(1)
    getting.join()
    assert values == [7 * 20_000_000]


def test_a_result_whose_node_died_is_made_again_when_it_is_needed(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    ref = make.options(**on(nodes, 1, soft=True)).remote(7)
    ray.wait([ref], fetch_local=False)
    after = total.remote(ref)
    assert ray.get(after) == 7 * N
    nodes.kill(1)
    client = PlasmaClient(nodes.folder(0) + "/plasma.sock")
    client.delete(ref.binary())  # the copy that the task above has left here
    client.disconnect()
    assert int(ray.get(ref, timeout=60).sum()) == 7 * N
    assert os.path.exists(nodes.folder(0))


def test_a_result_whose_owner_on_another_node_dies_is_freed(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})

    @ray.remote(max_retries=0)
    def die(options: dict[str, Any]) -> None:
        ref = make.options(**options).remote(1)
        ray.wait([ref], fetch_local=False)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(die.options(**on(nodes, 1)).remote(on(nodes, 0)))
    wait_until(nothing_left(nodes, 0, 1))


def test_what_was_put_on_a_node_that_died_is_lost_by_name(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    (inner, _) = ray.get(boxed.options(**on(nodes, 1)).remote(1))
    nodes.kill(1)
    with pytest.raises((ray.exceptions.OwnerDiedError, ray.exceptions.ObjectLostError)):
        ray.get(inner, timeout=60)


@pytest.mark.parametrize("nodes", [{"object_store_memory": 64 << 20}], indirect=True)
def test_an_object_on_the_disk_of_one_node_goes_to_another_as_it_was(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    refs = [ray.put(np.full(N, i)) for i in range(40)]  # 160 MB in a store of 64
    client = PlasmaClient(nodes.folder(0) + "/plasma.sock")
    try:
        assert client.stats()["spilled_objects"] >= 20
        sums = ray.get([total.options(**on(nodes, 1)).remote(ref) for ref in refs], timeout=60)
        assert sums == [i * N for i in range(40)]
        assert client.stats()["restored_objects"] >= 20
    finally:
        client.disconnect()
    del refs
    wait_until(nothing_left(nodes, 0, 1))
