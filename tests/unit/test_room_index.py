"""The index chooses what looking at every node chooses, whatever has changed meanwhile."""

from __future__ import annotations

import random

import pytest

from ray._scheduling.policies import NodeView, choose, fits
from ray._scheduling.room_index import SHAPES_MAX, RoomIndex
from ray._scheduling.strategy import DEFAULT


@pytest.mark.parametrize("seed", range(20))
def test_the_index_chooses_the_node_that_looking_at_all_of_them_chooses(seed: int) -> None:
    rng = random.Random(seed)
    index: RoomIndex[bytes] = RoomIndex()
    nodes: dict[bytes, NodeView] = {}
    shapes = [(("CPU", n),) for n in range(1, SHAPES_MAX)] + [(), (("CPU", 2), ("GPU", 1)), (("GPU", 1),)]
    for _ in range(600):
        name = bytes([rng.randrange(12)])
        if rng.random() < 0.1:
            nodes.pop(name, None)
            index.drop(name)
        elif rng.random() < 0.6:
            total = nodes[name].total if name in nodes else {"CPU": rng.randrange(1, 20), "GPU": rng.randrange(3)}
            nodes[name] = NodeView(name, total, {n: rng.randrange(-1, units + 1) for n, units in total.items()})
            index.put(name, total, nodes[name].available)
        shape = rng.choice(shapes)
        found = index.best(shape)
        if any(fits(node, dict(shape)) for node in nodes.values()):
            assert found is not None and found[1] == choose(nodes.values(), dict(shape), DEFAULT)
        else:
            assert found is None
