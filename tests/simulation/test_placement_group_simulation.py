"""A head and the local schedulers of several nodes, with placement groups, under thousands of random events.

The world between them is played by `Cluster`: messages are late, but in order on each way; nodes die with whatever they
held and others join; leases name groups that are placed, pending or gone; workers are found, or die. After each event
every machine's `check()` must hold, and no strategy may be broken; at the end, when every group is removed, no node may
hold anything. A failing seed replays exactly: RAY_SIM_SEED=n pytest <this file>.
"""

from __future__ import annotations

import collections
import os
import random
from typing import Any

import pytest

from ray._head import global_scheduler as gs
from ray._head import group_messages as gm
from ray._head import group_record as gr
from ray._head import placement_groups as pg
from ray._node import lease_messages as lm
from ray._node.local_scheduler import LocalScheduler
from ray._scheduling.bundle_policies import STRATEGIES
from ray._scheduling.node_resources import NodeResources
from ray._scheduling.strategy import InGroup

JOBS = [bytes([n, 0, 0, 0]) for n in (1, 2)]
UNIT = 10_000


class SimulatedNode:
    """One local scheduler, its workers, and the two ways between it and the head."""

    def __init__(self, node_id: bytes, total: dict[str, int]) -> None:
        self.node_id = node_id
        self.total = total
        self.scheduler = LocalScheduler(NodeResources(total), starvation_s=2.0, node_id=node_id)
        self.to_node: collections.deque[Any] = collections.deque()
        self.to_head: collections.deque[Any] = collections.deque()
        self.acquiring: list[int] = []  # tickets
        self.workers: set[int] = set()  # that hold a lease, or are dying of one
        self.requests: dict[int, InGroup | None] = {}  # of the one core there is
        self.held: dict[int, int] = {}  # lease -> worker
        self.evicted: set[int] = set()  # of these, and of others: leases that were asked back


class Cluster:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.placing = gs.GlobalScheduler()
        self.groups = pg.PlacementGroups(self.placing)
        self.nodes: dict[bytes, SimulatedNode] = {}
        self.next = 1
        self.known: list[bytes] = []  # groups ever asked for
        self.seen: collections.Counter[str] = collections.Counter()
        for _ in range(4):
            self.join_node()

    def number(self) -> int:
        self.next += 1
        return self.next

    # -- the head

    def head(self, event: gm.Event) -> None:
        for action in self.groups.handle(event, self.now):
            self.seen[type(action).__name__] += 1
            if isinstance(action, (gm.PrepareBundles, gm.CommitBundles, gm.ReturnBundles)):
                node = self.nodes.get(action.node_id)
                if node is not None:
                    node.to_node.append(action)
            elif isinstance(action, gm.GroupRemoved):
                for node in self.nodes.values():
                    node.to_node.append(action)
        self.groups.check()
        self.placing.check()

    def join_node(self) -> None:
        node_id = self.number().to_bytes(16, "little")
        total = {"CPU": self.random.choice((2, 4, 8)) * UNIT}
        if self.random.random() < 0.5:
            total["GPU"] = 2 * UNIT
        node = self.nodes[node_id] = SimulatedNode(node_id, total)
        node.scheduler.handle(lm.CoreJoined(b"core", JOBS[0]), self.now)
        self.placing.handle(gs.NodeJoined(node_id, total))
        self.head(gm.NodesChanged())

    def kill_node(self) -> None:
        node_id = self.random.choice(sorted(self.nodes))
        del self.nodes[node_id]
        self.placing.handle(gs.NodeLeft(node_id, "killed"))
        self.head(gm.NodeDied(node_id))

    def create(self) -> None:
        group_id = self.number().to_bytes(16, "little")
        shapes = ({"CPU": UNIT}, {"CPU": 2 * UNIT}, {"CPU": UNIT // 2, "GPU": UNIT // 2}, {"GPU": UNIT}, {"TPU": 1})
        weights = (8, 4, 2, 2, 0.3)
        bundles = [dict(self.random.choices(shapes, weights)[0]) for _ in range(self.random.randint(1, 4))]
        self.known.append(group_id)
        job = self.random.choice(JOBS)
        self.head(
            gm.Create(group_id, job, bundles, self.random.choice(STRATEGIES), detached=self.random.random() < 0.2)
        )

    def remove(self) -> None:
        self.head(gm.Remove(self.random.choice(self.known)))

    # -- nodes

    def feed(self, node: SimulatedNode, event: Any) -> None:
        for action in node.scheduler.handle(event, self.now):
            self.seen[type(action).__name__] += 1
            getattr(self, "do_" + type(action).__name__, lambda *_: None)(node, action)
        node.scheduler.check()

    def do_BundlesPrepared(self, node: SimulatedNode, a: lm.BundlesPrepared) -> None:
        node.to_head.append(gm.Prepared(a.group_id, node.node_id, a.attempt))

    def do_BundlesRefused(self, node: SimulatedNode, a: lm.BundlesRefused) -> None:
        node.to_head.append(gm.Refused(a.group_id, node.node_id, a.attempt, a.available))

    def do_AcquireWorker(self, node: SimulatedNode, a: lm.AcquireWorker) -> None:
        node.acquiring.append(a.ticket)

    def do_CancelAcquire(self, node: SimulatedNode, a: lm.CancelAcquire) -> None:
        if a.ticket in node.acquiring and self.random.random() < 0.5:  # else the pool had answered already
            node.acquiring.remove(a.ticket)

    def do_Grant(self, node: SimulatedNode, a: lm.Grant) -> None:
        place = node.requests.pop(a.req_id)
        if place is not None:
            group = self.groups.get(place.group_id)
            assert group is not None
        node.held[a.lease_id] = a.worker_id

    def do_LeaseRefused(self, node: SimulatedNode, a: lm.LeaseRefused) -> None:
        place = node.requests.pop(a.req_id)
        assert place is not None and a.kind == lm.GROUP_REMOVED

    def do_LeaseEvicted(self, node: SimulatedNode, a: lm.LeaseEvicted) -> None:
        assert node.held[a.lease_id] == a.worker_id
        node.evicted.add(a.lease_id)

    def do_EvictionOver(self, node: SimulatedNode, a: lm.EvictionOver) -> None:
        assert a.worker_id in node.workers

    def do_LeaseLost(self, node: SimulatedNode, a: lm.LeaseLost) -> None:
        del node.held[a.lease_id]

    def do_ReleaseWorker(self, node: SimulatedNode, a: lm.ReleaseWorker) -> None:
        node.workers.discard(a.worker_id)

    def node_hears(self, node: SimulatedNode) -> None:
        action = node.to_node.popleft()
        if isinstance(action, gm.PrepareBundles):
            event: Any = lm.PrepareBundles(
                action.group_id, action.attempt, action.bundles, action.job_id, action.name, action.may_wait
            )
        elif isinstance(action, gm.CommitBundles):
            event = lm.CommitBundles(action.group_id)
        elif isinstance(action, gm.ReturnBundles):
            event = lm.ReturnBundles(action.group_id, action.indexes, action.why)
        else:
            event = lm.GroupRemoved(action.group_id, action.why)
        self.feed(node, event)

    def report(self, node: SimulatedNode) -> None:
        """What is free, as far as the head may believe it: what it has assigned since is not in there yet."""
        if not node.to_node and not node.to_head:
            self.placing.handle(gs.ResourcesReported(node.node_id, dict(node.scheduler.resources.available)))
            self.head(gm.NodesChanged())

    def request(self, node: SimulatedNode) -> None:
        req_id = self.number()
        place = None
        if self.known and self.random.random() < 0.7:
            here = sorted(node.scheduler.bundles.groups)
            group_id = self.random.choice(here if here and self.random.random() < 0.7 else self.known[-12:])
            place = InGroup(group_id, self.random.choice((-1, -1, 0, 1)))
        node.requests[req_id] = place
        shape = self.random.choice(({"CPU": UNIT}, {"CPU": UNIT // 2}, {"GPU": UNIT // 2}, {}))
        strategy = {"strategy": place} if place is not None else {}
        self.feed(node, lm.LeaseRequested(b"core", req_id, shape, "f", **strategy))

    def worker_found(self, node: SimulatedNode) -> None:
        worker_id = self.number()
        node.workers.add(worker_id)
        ticket = node.acquiring.pop(0)
        self.feed(node, lm.WorkerAssigned(ticket, worker_id, worker_id.to_bytes(16, "little"), worker_id))

    def worker_dies(self, node: SimulatedNode) -> None:
        worker_id = self.random.choice(sorted(node.workers))
        node.workers.discard(worker_id)
        self.feed(node, lm.WorkerLost(worker_id, "killed"))

    # -- the run

    def step(self) -> None:
        pick = self.random.random()
        self.now += self.random.expovariate(10)
        node = self.nodes[self.random.choice(sorted(self.nodes))]
        if pick < 0.08:
            self.create()
        elif pick < 0.14 and self.known:
            self.remove()
        elif pick < 0.16 and len(self.nodes) > 3:
            for _ in range(self.random.choice((1, 1, 2))):
                self.kill_node()
        elif pick < 0.19 and len(self.nodes) < 8:
            self.join_node()
        elif pick < 0.193:
            self.head(gm.JobEnded(self.random.choice(JOBS)))
        elif pick < 0.45 and node.to_node:
            self.node_hears(node)
        elif pick < 0.60 and node.to_head:
            self.head(node.to_head.popleft())
        elif pick < 0.66:
            self.report(node)
        elif pick < 0.78:
            self.request(node)
        elif pick < 0.88 and node.acquiring:
            self.worker_found(node)
        elif pick < 0.91 and node.workers:
            self.worker_dies(node)
        elif pick < 0.95 and node.held:
            lease_id = self.random.choice(sorted(node.held))
            if lease_id in node.evicted and self.random.random() < 0.5:
                self.feed(node, lm.LeaseBusy(b"core", lease_id))
                return
            del node.held[lease_id]
            self.feed(node, lm.LeaseReturned(b"core", lease_id, True))
        elif pick < 0.97 and node.requests:
            req_id = self.random.choice(sorted(node.requests))
            del node.requests[req_id]
            self.feed(node, lm.LeaseCancelled(b"core", req_id))
        elif pick < 0.985 and node.workers:
            event = lm.Blocked if self.random.random() < 0.5 else lm.Unblocked
            self.feed(node, event(self.random.choice(sorted(node.workers))))

    def deliver_all(self) -> None:
        while any(node.to_node or node.to_head for node in self.nodes.values()):
            for node in list(self.nodes.values()):
                while node.to_node:
                    self.node_hears(node)
                while node.to_head:
                    self.head(node.to_head.popleft())

    def agree(self) -> None:
        """With nothing on its way, head and nodes must mean the same: no bundle is lost, none is leaked."""
        self.deliver_all()
        for node in self.nodes.values():
            here = node.scheduler.bundles.groups
            committed = {
                (group_id, index)
                for group_id, group in here.items()
                for index, bundle in group.bundles.items()
                if bundle.state == "COMMITTED"
            }
            lying = {(g.group_id, i) for g in self.groups.all() for i, at in g.nodes.items() if at == node.node_id}
            assert committed == lying, node.node_id

    def finish(self) -> None:
        for group in self.groups.all():
            self.head(gm.Remove(group.group_id))
        self.deliver_all()
        for node in self.nodes.values():
            self.feed(node, lm.CoreLeft(b"core"))
            while node.acquiring:
                self.worker_found(node)
            while node.workers:
                self.worker_dies(node)


SEEDS = [int(os.environ["RAY_SIM_SEED"])] if "RAY_SIM_SEED" in os.environ else range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_overcommitted_and_no_bundle_is_leaked_whatever_happens(seed: int) -> None:
    cluster = Cluster(seed)
    for i in range(1200):
        cluster.step()
        if i % 200 == 199:
            cluster.agree()
    assert cluster.seen["GroupCreated"] > 10 and cluster.seen["Grant"] > 5, "the simulation must do something"
    cluster.finish()
    for node in cluster.nodes.values():
        assert node.scheduler.resources.available == node.total
        assert not node.scheduler.bundles.groups
        assert not any(node.scheduler.stats()["leases"].values())
    assert cluster.groups.stats()["CREATED"] == cluster.groups.stats()["PENDING"] == 0


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        cluster = Cluster(7)
        for _ in range(600):
            cluster.step()
        runs.append((sorted(cluster.seen.items()), cluster.now, cluster.groups.stats()))
    assert runs[0] == runs[1]


def test_every_transition_of_groups_and_bundles_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._node import bundles

    met: set[Any] = set()

    def noting(key: Any, step: Any) -> Any:
        def wrapper(*args: Any) -> Any:
            met.add(key)
            return step(*args)

        return wrapper

    tables: list[dict[Any, Any]] = [pg.TRANSITIONS, bundles.TRANSITIONS]
    for table in tables:
        for key, step in list(table.items()):
            monkeypatch.setitem(table, key, noting(key, step))
    seen: collections.Counter[str] = collections.Counter()
    for seed in range(100, 108):
        cluster = Cluster(seed)
        for _ in range(1000):
            cluster.step()
        seen += cluster.seen
    assert all(seen[name] for name in ("LeaseRefused", "LeaseLost", "GroupLost", "GroupInfeasible", "BundlesRefused"))
    by_hand = {(gr.RESCHEDULING, gm.NodeDied)}  # tests/unit/test_placement_groups.py
    assert {key for table in tables for key in table} - met <= by_hand
