"""How the cost of one scheduling decision grows with the number of nodes. PROCESS: one, without a session.

    python -m tests.perf.simulate                      10 to 2,000 nodes
    python -m tests.perf.simulate --nodes 100 400      these

The real machines, fed as a cluster of that size would feed them; nothing between them is played. Of each size:

    local     microseconds a request, where a node has room for it itself
    spill     and where it is half full, so that all other nodes are compared
    report    and of a row of a view, as each node takes it in
    actor     microseconds an actor that the head places, on nodes that have 20 places each, until all are taken
    group     and a placement group of two bundles, made and removed

Each is the best of three. Ends with the exponent of growth between the smallest and the largest: 1 means as fast as the
number of nodes.
"""

from __future__ import annotations

import argparse
import math
import time

from ray._head import global_scheduler as gs
from ray._head import group_messages as gm
from ray._head import placement_groups as pg
from ray._node import lease_messages as lm
from ray._node.local_scheduler import LocalScheduler
from ray._node.spillback import NodeRow
from ray._scheduling.node_resources import NodeResources
from ray._scheduling.strategy import DEFAULT

UNIT = 10_000
TOTAL = {"CPU": 20 * UNIT}
ONE = {"CPU": UNIT}
TRIES = 300


def node_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def local(nodes: int, busy: bool) -> tuple[float, float]:
    """(microseconds a request, microseconds a row of a view)."""
    scheduler = LocalScheduler(NodeResources(TOTAL), node_id=node_id(0))
    scheduler.handle(lm.CoreJoined(b"core", b"job\0"), 0.0)
    rows = [NodeRow(n, node_id(n), TOTAL, TOTAL) for n in range(1, nodes)]
    began = time.perf_counter()
    for row in rows:
        scheduler.handle(lm.View([row]), 0.0)
    a_row = (time.perf_counter() - began) / len(rows)
    if busy:
        for request in range(12):
            scheduler.handle(lm.LeaseRequested(b"core", 1_000_000 + request, ONE), 0.0)
    tries = min(TRIES, nodes * 5)
    began = time.perf_counter()
    for request in range(tries):
        actions = scheduler.handle(lm.LeaseRequested(b"core", request, ONE), 0.0)
        sent = any(isinstance(action, lm.Spill) for action in actions)
        assert sent == busy
        if not sent:
            scheduler.handle(lm.LeaseCancelled(b"core", request), 0.0)
    return (time.perf_counter() - began) / tries * 1e6, a_row * 1e6


def head(nodes: int) -> tuple[float, float]:
    """(microseconds an actor, microseconds a group)."""
    placing = gs.GlobalScheduler()
    for number in range(nodes):
        placing.handle(gs.NodeJoined(node_id(number), TOTAL))
    groups = pg.PlacementGroups(placing)
    began = time.perf_counter()
    for number in range(TRIES):
        group_id = node_id(number)
        for action in groups.handle(gm.Create(group_id, b"job\0", [ONE, ONE], "SPREAD"), 0.0):
            if isinstance(action, gm.PrepareBundles):
                groups.handle(gm.Prepared(group_id, action.node_id, action.attempt), 0.0)
        groups.handle(gm.Remove(group_id), 0.0)
    a_group = (time.perf_counter() - began) / TRIES
    actors = nodes * 20
    began = time.perf_counter()
    for number in range(actors):
        placing.handle(gs.Requested(b"a" + node_id(number), ONE, DEFAULT))
    return (time.perf_counter() - began) / actors * 1e6, a_group * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 50, 200, 1000, 2000])
    options = parser.parse_args()
    names = ("local", "spill", "report", "actor", "group")
    print(f"{'nodes':>6} " + " ".join(f"{name + ' us':>10}" for name in names))
    seen = []
    for nodes in options.nodes:
        runs = [(*local(nodes, busy=False), *local(nodes, busy=True), *head(nodes)) for _ in range(3)]
        here, a_row, spill, _, actor, group = (min(values) for values in zip(*runs))  # the rest is others' work
        seen.append((here, spill, a_row, actor, group))
        print(f"{nodes:>6} " + " ".join(f"{value:>10.1f}" for value in seen[-1]), flush=True)
    if len(seen) > 1:
        growth = math.log(options.nodes[-1] / options.nodes[0])
        exponents = [math.log(last / first) / growth for first, last in zip(seen[0], seen[-1])]
        print(f"{'growth':>6} " + " ".join(f"{exponent:>10.2f}" for exponent in exponents))


if __name__ == "__main__":
    main()
