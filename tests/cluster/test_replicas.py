"""ray.put(_replicas=n): a value that is in the stores of several nodes outlives all of them but one."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

import ray
from ray.exceptions import ObjectLostError
from tests.chaos.session import engine, kill
from tests.wait import wait_until

from .nodes import Nodes
from .test_objects import N, nothing_left, objects, on, total, total_of
from .test_owner_deaths import Keeper, sums, told


@ray.remote(num_cpus=0)
class Owner:
    def pid(self) -> int:
        return os.getpid()

    def copying(self) -> int:
        return int(engine().stats()["copies_being_made"])

    def put(self, value: Any, replicas: int) -> list[Any]:
        self.box = [ray.put(value, _replicas=replicas)]
        return self.box

    def put_full(self, value: int, replicas: int) -> None:
        ray.put(np.full(N, value), _replicas=replicas)


def places(nodes: Nodes) -> list[int]:
    """Of the nodes that live: how many objects each has."""
    return [objects(nodes, number) for number in sorted(nodes.by_number)]


def settled(nodes: Nodes, *expected: int) -> Any:
    """So many objects in each store, and none is being copied for this driver: what is counted there is complete."""
    return lambda: engine().stats()["copies_being_made"] == 0 and places(nodes) == list(expected)


def answers(nodes: Nodes, number: int) -> bool:
    try:
        return objects(nodes, number) >= 0
    except OSError:
        return False


def kill_store(nodes: Nodes, number: int) -> None:
    pid = int(nodes.stats(number)["pids"]["plasma_store"])
    kill(pid)
    wait_until(lambda: nodes.stats(number)["pids"]["plasma_store"] not in (0, pid))
    wait_until(lambda: answers(nodes, number))


def test_it_is_in_as_many_stores_as_asked_when_put_returns_and_freed_in_all(nodes: Nodes) -> None:
    for _ in range(3):
        nodes.add_node({"CPU": 1})
    large = ray.put(np.full(N, 3), _replicas=3)
    assert places(nodes) == [1, 1, 1, 0]
    small = ray.put("small", _replicas=2)
    assert places(nodes) == [2, 2, 1, 0]
    assert ray.get(small) == "small" and int(ray.get(large).sum()) == 3 * N
    del large, small
    wait_until(nothing_left(nodes, 0, 1, 2, 3))


def test_the_owner_reads_it_elsewhere_when_its_own_store_has_died(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    refs = [ray.put(np.full(N, 4), _replicas=3), ray.put(np.full(10, 5), _replicas=2)]
    once = ray.put(np.full(N, 6))
    kill_store(nodes, 0)
    assert sums(refs) == [4 * N, 50]
    kill_store(nodes, 1)
    assert sums(refs[:1]) == [4 * N]
    with pytest.raises(ObjectLostError):
        ray.get(once, timeout=20)
    del refs, once
    wait_until(nothing_left(nodes, 0, 1, 2))


def test_tasks_elsewhere_get_it_although_their_caller_s_store_has_died(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    ref = ray.put(np.full(N, 7), _replicas=2)
    kill_store(nodes, 0)
    assert ray.get(total.options(**on(nodes, 1)).remote(ref), timeout=20) == 7 * N
    assert ray.get(total_of.options(**on(nodes, 0)).remote([ref]), timeout=20) == 7 * N
    assert ray.get(total.options(**on(nodes, 0)).remote(ref), timeout=20) == 7 * N
    del ref
    wait_until(nothing_left(nodes, 0, 1))


def test_it_survives_the_owners_node_where_a_borrower_has_it(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    keeper = Keeper.options(**on(nodes, 2)).remote()
    refs = ray.get(owner.put.remote(np.full(N, 8), 2))
    ray.get(keeper.keep.remote(refs))
    told(refs)
    wait_until(lambda: ray.get(keeper.known.remote()))
    wait_until(lambda: places(nodes) == [0, 1, 1])
    nodes.kill(1)
    assert sums(refs) == [8 * N]
    assert ray.get(keeper.sums.remote(), timeout=20) == [8 * N]
    del refs
    ray.get(keeper.drop.remote())
    wait_until(nothing_left(nodes, 0, 2))


def test_a_copy_that_a_node_s_death_has_cost_is_made_anew_and_freed(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    refs = [ray.put(np.full(N, 9 + i), _replicas=2) for i in range(10)]
    assert places(nodes) == [10, 10, 0]
    nodes.kill(1)
    wait_until(settled(nodes, 10, 10))  # 0 and 2
    kill_store(nodes, 0)
    assert sums(refs) == [(9 + i) * N for i in range(10)]
    del refs
    wait_until(nothing_left(nodes, 0, 2))


def test_it_is_lost_when_all_stores_that_had_it_die_at_once(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    ref = ray.put(np.full(N, 9), _replicas=2)
    stores = [int(nodes.stats(number)["pids"]["plasma_store"]) for number in (0, 1)]
    for pid in stores:
        os.kill(pid, signal.SIGSTOP)
    for pid in stores:
        kill(pid)
    with pytest.raises(ObjectLostError, match="put"):
        ray.get(ref, timeout=20)
    del ref
    wait_until(nothing_left(nodes, 0, 2))


@pytest.mark.parametrize("number", [0, 1])
def test_a_store_that_dies_gets_its_copy_again(nodes: Nodes, number: int) -> None:
    nodes.add_node({"CPU": 1})
    ref = ray.put(np.full(N, 9), _replicas=2)
    kill_store(nodes, number)
    wait_until(settled(nodes, 1, 1))
    kill_store(nodes, 1 - number)
    wait_until(settled(nodes, 1, 1))
    kill_store(nodes, number)
    assert sums([ref]) == [9 * N]
    del ref
    wait_until(nothing_left(nodes, 0, 1))


def test_a_node_that_joins_gets_what_there_were_too_few_nodes_for(nodes: Nodes) -> None:
    with pytest.warns(RuntimeWarning, match="the value is on 1 node"):
        ref = ray.put(np.full(N, 9), _replicas=2)
    freed = ray.put(np.full(N, 9))
    del freed
    nodes.add_node({"CPU": 1})
    wait_until(settled(nodes, 1, 1))
    nodes.add_node({"CPU": 1})
    kill_store(nodes, 0)
    assert sums([ref]) == [9 * N]
    del ref
    wait_until(nothing_left(nodes, 0, 1, 2))


def test_borrowers_hear_of_a_copy_that_was_made_anew(nodes: Nodes) -> None:
    for _ in range(3):
        nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    keeper = Keeper.options(**on(nodes, 3)).remote()
    refs = ray.get(owner.put.remote(np.full(N, 9), 2))  # in the stores of 1 and 2
    ray.get(keeper.keep.remote(refs))
    told(refs)
    wait_until(lambda: ray.get(keeper.known.remote()))
    wait_until(lambda: places(nodes) == [0, 1, 1, 0])  # the argument has gone
    nodes.kill(2)
    wait_until(lambda: places(nodes) == [0, 1, 1])  # 0, 1 and 3
    wait_until(lambda: ray.get(owner.copying.remote()) == 0)
    nodes.kill(1)
    assert sums(refs) == [9 * N]
    assert ray.get(keeper.sums.remote(), timeout=20) == [9 * N]
    del refs
    ray.get(keeper.drop.remote())
    wait_until(nothing_left(nodes, 0, 3))


def test_what_is_freed_while_a_copy_is_made_anew_leaves_nothing(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    ref = ray.put(np.full(N, 9), _replicas=2)
    store = int(nodes.stats(2)["pids"]["plasma_store"])
    os.kill(store, signal.SIGSTOP)
    try:
        nodes.kill(1)
        wait_until(lambda: engine().stats()["copies_being_made"] == 1)
        del ref
        wait_until(nothing_left(nodes, 0))
    finally:
        os.kill(store, signal.SIGCONT)
    wait_until(lambda: engine().stats()["copies_being_made"] == 0)
    wait_until(nothing_left(nodes, 0, 2))


def test_a_node_without_room_is_passed_over_when_a_copy_is_made_anew(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    nodes.add_node({"CPU": 1}, object_store_memory=2**20)
    nodes.add_node({"CPU": 1})
    ref = ray.put(np.full(N, 13), _replicas=2)
    nodes.kill(1)
    wait_until(settled(nodes, 1, 0, 1))
    assert sums([ref]) == [13 * N]
    del ref
    wait_until(nothing_left(nodes, 0, 2, 3))


def test_its_copies_go_with_an_owner_whose_ref_nobody_has(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    refs = ray.get(owner.put.remote(np.full(N, 10), 3))
    wait_until(lambda: places(nodes) == [1, 1, 1])  # the argument has gone
    del refs
    kill(ray.get(owner.pid.remote()))
    wait_until(nothing_left(nodes, 0, 1, 2))


def test_its_copies_go_with_the_last_borrower_of_a_dead_owner(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    refs = ray.get(owner.put.remote(np.full(N, 11), 2))
    told(refs)
    kill(ray.get(owner.pid.remote()))
    kill_store(nodes, 0)  # whose copy was one of them
    assert sums(refs) == [11 * N]
    del refs
    wait_until(nothing_left(nodes, 0, 1))


def test_an_owner_that_dies_while_it_puts_leaves_nothing(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    pid = ray.get(owner.pid.remote())
    store = int(nodes.stats(0)["pids"]["plasma_store"])
    os.kill(store, signal.SIGSTOP)
    try:
        owner.put_full.remote(12, 2)
        wait_until(lambda: objects(nodes, 1) == 1)
        kill(pid)
    finally:
        os.kill(store, signal.SIGCONT)
    wait_until(nothing_left(nodes, 0, 1))


def test_a_put_that_is_interrupted_leaves_nothing(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    nodes.add_node({"CPU": 1})
    store = int(nodes.stats(2)["pids"]["plasma_store"])
    os.kill(store, signal.SIGSTOP)
    # Once the copy is on the first of the two, for the second is waited.
    interrupting = threading.Thread(
        target=lambda: (wait_until(lambda: objects(nodes, 1) == 1), os.kill(os.getpid(), signal.SIGINT))
    )
    interrupting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ray.put(np.full(N, 12), _replicas=3)
    finally:
        os.kill(store, signal.SIGCONT)
        interrupting.join()
    wait_until(nothing_left(nodes, 0, 1, 2))


@pytest.mark.parametrize("number", [0, 1])
def test_a_store_that_dies_while_other_copies_are_waited_for_gets_its_copy_again(nodes: Nodes, number: int) -> None:
    nodes.add_node({"CPU": 1})
    nodes.add_node({"CPU": 1})
    store = int(nodes.stats(2)["pids"]["plasma_store"])
    os.kill(store, signal.SIGSTOP)
    refs: list[Any] = []
    putting = threading.Thread(target=lambda: refs.append(ray.put(np.full(N, 15), _replicas=3)))
    putting.start()
    try:
        wait_until(lambda: objects(nodes, 1) == 1)
        kill_store(nodes, number)
    finally:
        os.kill(store, signal.SIGCONT)
        putting.join()
    wait_until(settled(nodes, 1, 1, 1))
    kill_store(nodes, 2)
    kill_store(nodes, 1 - number)
    assert sums(refs) == [15 * N]
    refs.clear()
    wait_until(nothing_left(nodes, 0, 1, 2))


def test_a_node_without_room_is_passed_over(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1}, object_store_memory=2**20)
    nodes.add_node({"CPU": 1})
    ref = ray.put(np.full(N, 13), _replicas=2)
    assert places(nodes) == [1, 0, 1]
    with pytest.warns(RuntimeWarning, match=r"_replicas=3, but the value is on 2 nodes \(node 1: .*can never fit"):
        again = ray.put(np.full(N, 14), _replicas=3)
    assert sums([ref, again]) == [13 * N, 14 * N]


def test_where_there_are_fewer_nodes_it_is_on_all_of_them(nodes: Nodes) -> None:
    with pytest.warns(
        RuntimeWarning, match=r"_replicas=2, but the value is on 1 node \(the cluster has no more nodes\)"
    ):
        ref = ray.put([1], _replicas=2)
    assert ray.get(ref) == [1]


def test_refs_inside_it_live_as_long_as_it_does(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    ref = ray.put([ray.put(np.full(N, 15), _replicas=2)], _replicas=2)
    assert ray.get(total_of.options(**on(nodes, 1)).remote(ray.get(ref))) == 15 * N
    kill_store(nodes, 0)
    assert int(ray.get(ray.get(ref, timeout=20)[0], timeout=20).sum()) == 15 * N
    del ref
    wait_until(nothing_left(nodes, 0, 1, 2))


def test_what_a_borrower_keeps_elsewhere_it_keeps_although_its_own_store_has_died_since(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    refs = ray.get(owner.put.remote(np.full(N, 16), 1))
    told(refs)
    kill_store(nodes, 0)
    assert sums(refs) == [16 * N]  # whoever reads has heard that the store is back
    kill(ray.get(owner.pid.remote()))
    assert places(nodes)[1] == 1 and sums(refs) == [16 * N]
    del refs
    wait_until(nothing_left(nodes, 0, 1))


@pytest.mark.parametrize("replicas", [0, -1])
def test_a_number_that_is_not_positive_is_refused(ray_shared: Any, replicas: int) -> None:
    with pytest.raises(ValueError, match=rf"_replicas={replicas} is not positive"):
        ray.put(1, _replicas=replicas)


@pytest.mark.parametrize("replicas", ["2", 2.0, None])
def test_what_is_no_number_is_refused(ray_shared: Any, replicas: Any) -> None:
    with pytest.raises(TypeError, match=r"_replicas is the number of nodes"):
        ray.put(1, _replicas=replicas)
