"""How the cost of one scheduling decision grows with the number of nodes. PROCESS: one, without a session.

    python -m tests.perf.simulate                      10 to 2,000 nodes
    python -m tests.perf.simulate --nodes 100 400      these
    python -m tests.perf.simulate --played             instead: 2,000 nodes, 40,000 actors and 1,000,000 tasks, played

The real machines, fed as a cluster of that size would feed them; nothing between them is played. A row for each kind of
decision, in microseconds of processor time, the best of three; nodes have 20 CPUs. `ray simulate` plays whole clusters.

At a node that is asked for a lease:

    here          it has room itself
    elsewhere     it is half full: another should have it
    spread, affinity, labels, arguments     by that strategy; the largest of three arguments lies on another node
    full          no node has room
    a view's row  what it costs to take one in

At the head:

    actor         placed by the default strategy, until all nodes are full
    actor spread, actor labels              by that strategy
    actor full    no node has room
    group         of two bundles, SPREAD, made and removed; pack: of four, by PACK
    group labels  SPREAD, each bundle on a node with a label

Ends with the exponent of growth between the smallest and the largest: 1 means as fast as the number of nodes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

from ray._head import global_scheduler as gs
from ray._head import group_messages as gm
from ray._head import placement_groups as pg
from ray._node import lease_messages as lm
from ray._node.local_scheduler import LocalScheduler
from ray._node.spillback import NodeRow
from ray._scheduling.bundle_policies import ANYWHERE, Limits
from ray._scheduling.node_resources import NodeResources
from ray._scheduling.strategy import DEFAULT, NodeAffinity, NodeLabels, Spread, Strategy
from ray._simulation.plan import Plan, play

UNIT = 10_000
TOTAL = {"CPU": 20 * UNIT}
NOTHING = {"CPU": 0}
ONE = {"CPU": UNIT}
TRIES = 300
IN_A = (("zone", "in", ("a",)),)


def node_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def labels_of(number: int) -> dict[str, str]:
    return {"ray.io/node-id": node_id(number).hex(), "zone": "ab"[number % 2]}


def local(nodes: int, used: int, free: bool, **asked: Any) -> float:
    """Seconds a request. used: how many CPUs of this node; free: whether others have room."""
    scheduler = LocalScheduler(NodeResources(TOTAL), node_id=node_id(0), labels=labels_of(0))
    scheduler.handle(lm.CoreJoined(b"core", b"job\0"), 0.0)
    for request in range(used):
        scheduler.handle(lm.LeaseRequested(b"core", 1_000_000 + request, ONE), 0.0)
    rows = [NodeRow(n, node_id(n), TOTAL, TOTAL if free else NOTHING, labels=labels_of(n)) for n in range(1, nodes)]
    scheduler.handle(lm.View(rows), 0.0)
    tries = min(TRIES, nodes * 5)
    began = time.process_time()
    for request in range(tries):
        actions = scheduler.handle(lm.LeaseRequested(b"core", request, ONE, **asked), 0.0)
        if not any(isinstance(action, lm.Spill) for action in actions):
            scheduler.handle(lm.LeaseCancelled(b"core", request), 0.0)
    return (time.process_time() - began) / tries


def view(nodes: int) -> float:
    """Seconds a row."""
    scheduler = LocalScheduler(NodeResources(TOTAL), node_id=node_id(0), labels=labels_of(0))
    rows = [NodeRow(n, node_id(n), TOTAL, TOTAL, labels=labels_of(n)) for n in range(1, nodes)]
    scheduler.handle(lm.View(rows), 0.0)
    scheduler.handle(lm.CoreJoined(b"core", b"job\0"), 0.0)
    scheduler.handle(lm.LeaseRequested(b"core", 0, ONE), 0.0)
    began = time.process_time()
    for row in rows:
        scheduler.handle(lm.View([row]), 0.0)
    return (time.process_time() - began) / len(rows)


def placing(nodes: int, free: bool = True) -> gs.GlobalScheduler:
    scheduler = gs.GlobalScheduler()
    for number in range(nodes):
        scheduler.handle(gs.NodeJoined(node_id(number), TOTAL, labels_of(number)))
        if not free:
            scheduler.handle(gs.ResourcesReported(node_id(number), NOTHING))
    return scheduler


def actor(nodes: int, strategy: Strategy = DEFAULT, free: bool = True) -> float:
    """Seconds an actor; with the default strategy until every node is full."""
    scheduler = placing(nodes, free)
    actors = nodes * 20 if free and strategy == DEFAULT else TRIES
    began = time.process_time()
    for number in range(actors):
        scheduler.handle(gs.Requested(b"a" + node_id(number), ONE, strategy))
    return (time.process_time() - began) / actors


def group(nodes: int, strategy: str = "SPREAD", bundles: int = 2, limits: Limits = ANYWHERE) -> float:
    """Seconds a group."""
    scheduler = placing(nodes)
    groups = pg.PlacementGroups(scheduler)
    began = time.process_time()
    for number in range(TRIES):
        group_id = node_id(number)
        for action in groups.handle(gm.Create(group_id, b"job\0", [ONE] * bundles, strategy, limits=limits), 0.0):
            if isinstance(action, gm.PrepareBundles):
                groups.handle(gm.Prepared(group_id, action.node_id, action.attempt), 0.0)
        groups.handle(gm.Remove(group_id), 0.0)
    return (time.process_time() - began) / TRIES


KINDS: dict[str, Callable[[int], float]] = {
    "here": lambda nodes: local(nodes, 0, True),
    "elsewhere": lambda nodes: local(nodes, 12, True),
    "spread": lambda nodes: local(nodes, 12, True, strategy=Spread()),
    "affinity": lambda nodes: local(nodes, 12, True, strategy=NodeAffinity(node_id(nodes - 1))),
    "labels": lambda nodes: local(nodes, 12, True, strategy=NodeLabels((IN_A,))),
    "arguments": lambda nodes: local(nodes, 12, True, holds={nodes - 1: 900, nodes // 2: 800, 0: 5}),
    "full": lambda nodes: local(nodes, 20, False),
    "a view's row": view,
    "actor": actor,
    "actor spread": lambda nodes: actor(nodes, Spread()),
    "actor labels": lambda nodes: actor(nodes, NodeLabels((IN_A,))),
    "actor full": lambda nodes: actor(nodes, free=False),
    "group": group,
    "group pack": lambda nodes: group(nodes, "PACK", 4),
    "group labels": lambda nodes: group(nodes, limits=Limits([IN_A, IN_A])),
}


def growth(nodes: list[int], costs: list[float]) -> float:
    return math.log(costs[-1] / costs[0]) / math.log(nodes[-1] / nodes[0])


def played(nodes: int = 2000, tasks: int = 1_000_000, actors: int = 40_000) -> str:
    """What `ray simulate` plays of a cluster of that size, and what that takes, in a sentence."""
    began = time.process_time()
    o = play(Plan(nodes=nodes, node=TOTAL, tasks=tasks, task_s=1.0, vary=0.5, drivers=4, actors=actors))
    took_s = time.process_time() - began
    assert o.tasks_left == o.actors_left == 0, o
    return (
        f"{o.nodes:,} nodes of 20 CPUs, {o.actors_up:,} actors and {o.tasks_done:,} tasks of a second from 4 drivers: "
        f"over after {o.makespan_s:.1f} s, {o.used:.0%} of all CPUs used, {o.actors_per_s:,.0f} actors a second, "
        f"{o.lease_us:.0f} us a lease and {o.place_us:.0f} us an actor's place; played in {took_s:.0f} s of processor "
        f"time and {o.peak_mb:,.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000, 2000])
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--played", action="store_true", help="a whole large cluster instead, as ray simulate does")
    options = parser.parse_args()
    if options.played:
        print(played())
        return
    print(f"{'microseconds':14}" + "".join(f"{nodes:>9,}" for nodes in options.nodes) + f"{'growth':>9}")
    for name, cost in KINDS.items():
        if options.only in name:
            costs = [min(cost(nodes) for _ in range(3)) * 1e6 for nodes in options.nodes]  # the rest is others' work
            last = f"{growth(options.nodes, costs):>9.2f}" if len(costs) > 1 else ""
            print(f"{name:14}" + "".join(f"{value:>9.1f}" for value in costs) + last, flush=True)


if __name__ == "__main__":
    main()
