"""An object outlives its owner where a borrower needs it: between nodes. The owning worker, or its whole node, is
killed while a borrower elsewhere has the ref; afterwards no store keeps anything.

`tests/api/test_owner_deaths.py` does it on one machine; docs/internals/references.md, "Heirs", says how.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from typing import Any

import numpy as np
import pytest

import ray
from ray.exceptions import OwnerDiedError
from tests.chaos.session import engine, gone, kill
from tests.wait import wait_until

from .nodes import Nodes
from .test_objects import N, make, nothing_left, on, total_of


@ray.remote
def pause() -> None:
    signal.pause()


def peer_of(link: socket.socket) -> int:
    return int.from_bytes(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)


@ray.remote(num_cpus=0)
class Owner:
    def pid(self) -> int:
        return os.getpid()

    def put(self, value: int) -> list[Any]:
        return [ray.put(np.full(N, value)), ray.put([value])]

    def call(self, value: int, options: dict[str, Any]) -> list[Any]:
        refs = [make.options(**options).remote(value), make.options(**options).remote(value, 10)]
        ray.wait(refs, num_returns=2)
        return refs

    def hang(self) -> list[Any]:
        return [pause.remote()]

    def lose_node(self, pid: int) -> None:
        """Cuts the connections to that process, as its end would; all others stay for as long as this one lives."""
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as link:
                if link.family == socket.AF_UNIX and peer_of(link) == pid:
                    link.shutdown(socket.SHUT_RDWR)


@ray.remote(num_cpus=0)
class Keeper:
    def keep(self, box: list[Any]) -> int:
        self.box = box
        return os.getpid()

    def known(self) -> bool:
        return "PENDING" not in engine().states(self.box)

    def sums(self) -> list[int]:
        return [int(np.sum(value)) for value in ray.get(self.box, timeout=20)]

    def give(self) -> list[Any]:
        return self.box

    def drop(self) -> None:
        self.box = []
        gc.collect()


def told(refs: list[Any]) -> None:
    """Waits until this process knows what each of these is; without asking for it."""
    wait_until(lambda: "PENDING" not in engine().states(refs))


def sums(refs: list[Any]) -> list[int]:
    return [int(np.sum(value)) for value in ray.get(refs, timeout=20)]


def test_what_a_worker_of_another_node_owned_stays_with_its_borrower_here(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    refs = ray.get(owner.put.remote(3))
    told(refs)
    kill(ray.get(owner.pid.remote()))
    assert sums(refs) == [3 * N, 3]
    assert sums([total_of.remote(refs[:1])]) == [3 * N]  # handed on to a process that nobody can count any more
    del refs
    wait_until(nothing_left(nodes, 0, 1))


def test_the_result_on_a_third_node_stays_though_owner_and_its_node_are_gone(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    for end in ("worker", "node"):
        owner = Owner.options(**on(nodes, 1)).remote()
        refs = ray.get(owner.call.remote(5, on(nodes, 2)))
        told(refs)
        if end == "worker":
            kill(ray.get(owner.pid.remote()))
        else:
            nodes.kill(1)
        assert sums(refs) == [5 * N, 50]
        del refs
        wait_until(nothing_left(nodes, 0, 2))


def test_of_what_lay_on_the_node_that_died_with_its_owner_small_values_and_copies_stay(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    read, small = ray.get(owner.put.remote(2))
    unread, _ = ray.get(owner.put.remote(4))
    told([read, small, unread])
    assert sums([read]) == [2 * N]
    nodes.kill(1)
    assert sums([read, small]) == [2 * N, 2]
    with pytest.raises(OwnerDiedError, match="lost from the store since then"):
        ray.get(unread, timeout=20)
    del read, small, unread, _
    wait_until(nothing_left(nodes, 0))


def test_a_worker_that_ends_because_its_node_seems_to_have_ended_takes_nothing_from_its_borrowers(nodes: Nodes) -> None:
    """As in a node's last milliseconds, when its workers have noticed and its store still does what they say."""
    nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    refs = ray.get(owner.put.remote(2))
    told(refs)
    pid = ray.get(owner.pid.remote())
    owner.lose_node.remote(nodes.stats(1)["pids"]["node"])
    gone(pid)
    assert sums(refs) == [2 * N, 2]
    del refs
    wait_until(nothing_left(nodes, 0, 1))


def test_borrowers_on_two_nodes_hand_it_on_and_the_last_one_frees_it(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    keeper, later = (Keeper.options(**on(nodes, 2)).remote() for _ in range(2))
    refs = ray.get(owner.put.remote(7))
    ray.get(keeper.keep.remote(refs))
    wait_until(lambda: ray.get(keeper.known.remote()))
    told(refs)
    kill(ray.get(owner.pid.remote()))
    del refs
    assert ray.get(keeper.sums.remote()) == [7 * N, 7]
    refs = ray.get(keeper.give.remote(), timeout=20)
    pid = ray.get(later.keep.remote(refs), timeout=20)
    assert ray.get(later.sums.remote()) == [7 * N, 7]
    del refs
    ray.get(keeper.drop.remote())
    assert ray.get(later.sums.remote()) == [7 * N, 7]
    kill(pid)
    wait_until(nothing_left(nodes, 0, 1, 2))


def test_a_node_that_dies_with_an_heir_frees_what_that_kept_elsewhere(nodes: Nodes) -> None:
    for _ in range(2):
        nodes.add_node({"CPU": 1})
    owner = Owner.options(**on(nodes, 1)).remote()
    keeper = Keeper.options(**on(nodes, 2)).remote()
    refs = ray.get(owner.put.remote(7))
    ray.get(keeper.keep.remote(refs))
    del refs
    wait_until(lambda: ray.get(keeper.known.remote()))
    kill(ray.get(owner.pid.remote()))
    assert ray.get(keeper.sums.remote()) == [7 * N, 7]
    nodes.kill(2)
    wait_until(nothing_left(nodes, 0, 1))


def test_a_call_that_had_not_ended_ends_with_its_caller_on_another_node(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 2})
    owner = Owner.options(**on(nodes, 1)).remote()
    refs = ray.get(owner.hang.remote())
    kill(ray.get(owner.pid.remote()))
    with pytest.raises(OwnerDiedError, match="it had no value yet"):
        ray.get(refs, timeout=20)
