"""Items of a generator that the store of another node has lost, while the node lives, are made again."""

from __future__ import annotations

from typing import Any

import numpy as np

import ray
from tests.wait import wait_until

from .nodes import Nodes
from .test_objects import N, nothing_left, on
from .test_replicas import kill_store


@ray.remote
def items(n: int) -> Any:
    for i in range(n):
        yield np.full(N, i)


def test_items_lost_with_the_store_of_a_node_that_lives_are_made_again(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    refs = list(items.options(num_returns="streaming", **on(nodes, 1)).remote(3))
    ray.wait(refs, num_returns=3, fetch_local=False)
    kill_store(nodes, 1)
    assert [int(value[0]) for value in ray.get(refs, timeout=40)] == [0, 1, 2]
    del refs
    wait_until(nothing_left(nodes, 0, 1))
