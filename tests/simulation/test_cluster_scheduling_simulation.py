"""Many local schedulers and the global one, in one process, on a virtual clock; views are late, nodes come and go.

`Cluster` plays everything between them: messages arrive in the order they were sent, each link with delays of its own;
reports go to the head and from there to all other nodes; a driver on each node asks, follows where it is sent, runs
what it is granted and gives it back. A node's death is heard of by each other node at a different time. After each
event the schedulers' `check()` must hold; at the end every task that some node could run has run once, unless its
driver died, and nothing is held. A failing seed replays exactly: RAY_SIM_SEED=n pytest <this file>.
"""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from ray._head import global_scheduler as gs
from ray._node import lease_messages as lm
from ray._node.local_scheduler import LocalScheduler
from ray._node.spillback import NodeRow
from ray._scheduling import strategy as st
from ray._scheduling.node_resources import NodeResources

JOB = b"\1\0\0\0"
HOPS_MAX = 4
SHAPES: list[dict[str, int]] = [{"CPU": 10_000}] * 4
SHAPES += [
    {"CPU": 30_000},
    {"GPU": 5_000},
    {"CPU": 10_000, "GPU": 10_000},
    {},
]
EVERYWHERE_TOO_LARGE = {"CPU": 1_000_000}


class Task:
    def __init__(self, number: int, shape: dict[str, int], strategy: st.Strategy) -> None:
        self.number = number
        self.shape = shape
        self.strategy = strategy
        self.state = "asked"  # | running | done | refused
        self.at = -1  # the node that has been asked, or runs it
        self.hops = 0
        self.try_number = 0
        self.runs = 0


class Driver:
    """A core of one node. Its tasks by the number of the request that is out for them."""

    def __init__(self, tag: bytes, home: int) -> None:
        self.tag = tag
        self.home = home
        self.tasks: dict[int, Task] = {}
        self.down: set[int] = set()  # nodes whose death it has heard of


class Node:
    def __init__(self, number: int, total: dict[str, int], zone: str) -> None:
        self.number = number
        self.node_id = number.to_bytes(16, "big")
        self.machine = LocalScheduler(
            NodeResources(total), node_id=self.node_id, labels={"zone": zone}, spill_hops_max=HOPS_MAX
        )
        self.reported: Any = None
        self.tick_at = 0.0
        self.running: dict[int, dict[str, int]] = {}  # lease -> what it holds, as its owner knows
        self.guests: set[bytes] = set()


class Cluster:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.head = gs.GlobalScheduler()
        self.nodes: dict[int, Node] = {}
        self.drivers: dict[bytes, Driver] = {}
        self.rows: dict[int, NodeRow] = {}  # the head's
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.link_at: dict[Any, float] = {}  # when the last message of a link arrives
        self.next = 0
        self.grants = self.spills = self.hops_seen = self.lost_with_nodes = 0
        self.actors: dict[bytes, int] = {}

    # -- time and messages

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        self.next += 1
        heapq.heappush(self.agenda, (self.now + delay_s, self.next, what))

    def send(self, link: Any, what: Callable[[], None], slow: float = 1.0) -> None:
        at = max(self.link_at.get(link, 0.0), self.now + self.random.expovariate(1000) * slow)
        self.link_at[link] = at
        self.next += 1
        heapq.heappush(self.agenda, (at, self.next, what))

    def run(self, until: float, steps_max: int = 400_000) -> None:
        while self.agenda and self.agenda[0][0] <= until:
            steps_max -= 1
            assert steps_max, "requests run in circles"
            self.now, _, what = heapq.heappop(self.agenda)
            what()

    # -- nodes

    def join(self) -> Node:
        number = len(self.rows)
        total = {"CPU": 10_000 * self.random.choice([1, 2, 4, 8])}
        if self.random.random() < 0.4:
            total["GPU"] = 20_000
        node = Node(number, total, self.random.choice("ab"))
        self.nodes[number] = node
        self.rows[number] = NodeRow(number, node.node_id, total, total, labels=node.machine.labels)
        self.obey(self.head.handle(gs.NodeJoined(node.node_id, total, node.machine.labels)))
        driver = Driver(b"d" + number.to_bytes(15, "big"), number)
        self.drivers[driver.tag] = driver
        self.feed(node, lm.CoreJoined(driver.tag, JOB))
        for row in list(self.rows.values()):
            self.show(row, to=number)
        for other in self.nodes:
            self.show(self.rows[number], to=other)
        return node

    def kill(self, number: int) -> None:
        node = self.nodes.pop(number)
        self.lost_with_nodes += len(node.running)
        del self.drivers[b"d" + number.to_bytes(15, "big")]
        self.rows[number] = self.rows[number]._replace(alive=False)
        self.obey(self.head.handle(gs.NodeLeft(node.node_id, "killed")))
        for other in self.nodes:
            self.show(self.rows[number], to=other)
            self.send(("head", other), lambda other=other: self.node_down(other, number))  # type: ignore[misc]

    def show(self, row: NodeRow, to: int) -> None:
        self.send(("head", to), lambda: self.feed(self.nodes.get(to), lm.View([row])), slow=50)

    def node_down(self, at: int, dead: int) -> None:
        """A node hears of a death: its guests from there are gone; its driver asks again for what it had there."""
        node = self.nodes.get(at)
        if node is None:
            return
        tag = b"d" + dead.to_bytes(15, "big")
        if tag in node.guests:
            node.guests.discard(tag)
            for lease in [x.lease_id for x in node.machine.leases() if x.tag == tag]:
                node.running.pop(lease, None)
            self.feed(node, lm.CoreLeft(tag))
            for lease in [x for x in node.machine.leases() if x.tag == tag]:
                self.feed(node, lm.Reclaimed(lease.worker_id))
        driver = self.drivers[b"d" + at.to_bytes(15, "big")]
        driver.down.add(dead)
        for req_id, task in list(driver.tasks.items()):
            if task.at == dead and task.state in ("asked", "running"):
                del driver.tasks[req_id]
                self.ask(driver, task, at, hops=0)

    def feed(self, node: Node | None, event: Any) -> None:
        if node is None or node.number not in self.nodes:
            return
        events = [event]
        while events:
            for action in node.machine.handle(events.pop(0), self.now):
                self.carry_out(node, action)
            node.machine.check()
            free = node.machine.resources.available
            assert all(units >= 0 for units in free.values()), "overcommitted"
            for name in ("CPU", "GPU"):
                used = sum(shape.get(name, 0) for shape in node.running.values())
                assert used <= node.machine.resources.total.get(name, 0), "granted more than there is"
        deadline = node.machine.deadline()
        if deadline is not None and (node.tick_at <= self.now or deadline < node.tick_at):
            node.tick_at = max(deadline, self.now + 1e-6)
            self.later(node.tick_at - self.now, lambda at=node.tick_at: self.tick(node, at))  # type: ignore[misc]
        self.report(node)

    def tick(self, node: Node, at: float) -> None:
        if node.tick_at == at:
            self.feed(node, lm.Tick())

    def report(self, node: Node) -> None:
        state = (dict(node.machine.resources.available), node.machine.stats()["leases"]["QUEUED"])
        if state == node.reported:
            return
        node.reported = state

        def arrives() -> None:
            if node.number in self.nodes:
                row = self.rows[node.number] = self.rows[node.number]._replace(available=state[0], queued=state[1])
                self.head.handle(gs.ResourcesReported(node.node_id, state[0]))
                for other in self.nodes:
                    if other != node.number:
                        self.show(row, to=other)

        self.send(("up", node.number), arrives, slow=50)

    # -- what schedulers want

    def carry_out(self, node: Node, action: Any) -> None:
        if isinstance(action, lm.AcquireWorker):
            worker = node.number * 1_000_000 + action.ticket
            event = lm.WorkerAssigned(action.ticket, worker, worker.to_bytes(16, "big"), worker)
            self.later(self.random.expovariate(200), lambda: self.feed(node, event))
        elif isinstance(action, lm.Grant):
            node.running[action.lease_id] = self.shape_of(action)
            self.tell(node, action.tag, lambda driver: self.granted(driver, node, action))
        elif isinstance(action, lm.Spill):
            self.spills += 1
            assert action.number != node.number
            self.tell(node, action.tag, lambda driver: self.spilled(driver, node, action))
        elif isinstance(action, lm.LeaseRefused):
            self.tell(node, action.tag, lambda driver: self.refused(driver, action))
        elif isinstance(action, lm.ActorWorker):
            self.later(self.random.expovariate(2), lambda: self.end_actor(node, action.actor_id))

    def shape_of(self, grant: lm.Grant) -> dict[str, int]:
        driver = self.drivers.get(grant.tag)
        task = driver.tasks.get(grant.req_id) if driver else None
        return task.shape if task else {}

    def tell(self, node: Node, tag: bytes, what: Callable[[Driver], None]) -> None:
        def arrives() -> None:
            driver = self.drivers.get(tag)
            if driver is not None and node.number not in driver.down:
                what(driver)

        self.send((node.number, tag), arrives)

    def obey(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, gs.Assign):
                number = int.from_bytes(action.node_id, "big")
                ask = {"CPU": 10_000}
                event = lm.ActorRequested(action.request_id, JOB, ask, ask, "actor")
                self.send(("head", number), lambda number=number, event=event: self.feed(self.nodes.get(number), event))  # type: ignore[misc]

    def end_actor(self, node: Node, actor_id: bytes) -> None:
        self.feed(node, lm.ActorReleased(actor_id))
        self.obey(self.head.handle(gs.Ended(actor_id)))

    # -- drivers

    def new_task(self, driver: Driver, shape: dict[str, int], strategy: st.Strategy) -> Task:
        self.next += 1
        task = Task(self.next, shape, strategy)
        self.ask(driver, task, driver.home, 0)
        return task

    def ask(self, driver: Driver, task: Task, at: int, hops: int) -> None:
        self.next += 1
        task.state, task.at, task.hops = "asked", at, hops
        self.hops_seen = max(self.hops_seen, hops)
        driver.tasks[self.next] = task
        holds = {self.random.choice(list(self.rows)): 1_000_000} if self.random.random() < 0.2 else None
        request = lm.LeaseRequested(
            driver.tag, self.next, task.shape, str(task.number), strategy=task.strategy, hops=hops, holds=holds
        )
        self.send((driver.tag, at), lambda: self.asked(at, request))

    def asked(self, at: int, request: lm.LeaseRequested) -> None:
        node = self.nodes.get(at)
        if node is None or request.tag not in self.drivers:
            return  # its driver will hear of it, or is dead itself
        if request.tag not in node.guests and self.drivers[request.tag].home != at:
            node.guests.add(request.tag)
            self.feed(node, lm.CoreJoined(request.tag, JOB))
        self.feed(node, request)

    def spilled(self, driver: Driver, node: Node, spill: lm.Spill) -> None:
        task = driver.tasks.pop(spill.req_id, None)
        if task is not None:
            assert task.state == "asked" and task.at == node.number
            if spill.number in driver.down:
                self.ask(driver, task, driver.home, 0)
            else:
                self.ask(driver, task, spill.number, task.hops + 1)

    def granted(self, driver: Driver, node: Node, grant: lm.Grant) -> None:
        task = driver.tasks[grant.req_id]
        assert task.state == "asked" and task.at == node.number, "granted twice, or by a node that was not asked"
        self.grants += 1
        task.state = "running"

        def over() -> None:
            if driver.tasks.pop(grant.req_id, None) is None:
                return  # its node died
            task.state, task.runs = "done", task.runs + 1
            returned = lm.LeaseReturned(driver.tag, grant.lease_id, True)

            def arrives() -> None:
                node.running.pop(grant.lease_id, None)
                self.feed(node, returned)

            self.send((driver.tag, node.number), arrives)

        self.later(self.random.expovariate(10), over)

    def refused(self, driver: Driver, action: lm.LeaseRefused) -> None:
        task = driver.tasks.pop(action.req_id)
        assert isinstance(task.strategy, st.NodeAffinity) and not task.strategy.soft
        task.state = "refused"

    def a_strategy(self) -> st.Strategy:
        pick = self.random.random()
        if pick < 0.5:
            return st.DEFAULT
        if pick < 0.75:
            return st.Spread()
        if pick < 0.9:
            node_id = self.random.choice(list(self.rows)).to_bytes(16, "big")
            return st.NodeAffinity(node_id, soft=self.random.random() < 0.7)
        zone = (("zone", "in", (self.random.choice("ab"),)),)
        return st.NodeLabels((zone,))

    def possible(self, task: Task) -> bool:
        for node in self.nodes.values():
            fits = all(node.machine.resources.total.get(name, 0) >= units for name, units in task.shape.items())
            bound = isinstance(task.strategy, st.NodeAffinity) and not task.strategy.soft
            if bound and task.strategy.node_id != node.node_id:  # type: ignore[union-attr]
                continue
            if isinstance(task.strategy, st.NodeLabels) and not task.strategy.admits(node.machine.labels):
                continue
            if fits:
                return True
        return False


SEEDS = [int(os.environ["RAY_SIM_SEED"])] if "RAY_SIM_SEED" in os.environ else range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_task_that_some_node_can_run_runs_once_though_views_are_late_and_nodes_come_and_go(seed: int) -> None:
    cluster = Cluster(seed)
    for _ in range(cluster.random.randint(2, 5)):
        cluster.join()
    tasks: list[tuple[Driver, Task]] = []
    for _ in range(400):
        pick = cluster.random.random()
        if pick < 0.01 and len(cluster.nodes) > 2:
            cluster.kill(cluster.random.choice(list(cluster.nodes)))
        elif pick < 0.025 and len(cluster.nodes) < 8:
            cluster.join()
        elif pick < 0.08:
            cluster.next += 1
            actor_id = cluster.next.to_bytes(16, "big")
            cluster.obey(cluster.head.handle(gs.Requested(actor_id, {"CPU": 10_000}, cluster.a_strategy())))
        else:
            driver = cluster.random.choice(list(cluster.drivers.values()))
            shape = EVERYWHERE_TOO_LARGE if pick > 0.99 else cluster.random.choice(SHAPES)
            tasks.append((driver, cluster.new_task(driver, shape, cluster.a_strategy())))
        cluster.run(cluster.now + cluster.random.expovariate(50))
        cluster.head.check()
    cluster.run(cluster.now + 600.0)
    assert cluster.spills > 20 and cluster.grants > 100, "the simulation must do something"
    for driver, task in tasks:
        if driver.tag not in cluster.drivers or task.state == "refused":
            continue
        assert task.runs <= 1
        if cluster.possible(task):
            assert task.state == "done", f"task {task.number} {task.shape} {task.strategy} is {task.state} at {task.at}"
    for node in cluster.nodes.values():
        counts = node.machine.stats()["leases"]
        assert counts["STAFFING"] == counts["HELD"] == counts["ENDING"] == 0, node.machine
        assert node.machine.resources.available == node.machine.resources.total
        assert not node.running
    assert cluster.hops_seen <= HOPS_MAX + 4, "beyond the bound only from nodes that can't ever meet it"


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> tuple[float, int, int]:
        cluster = Cluster(7)
        for _ in range(3):
            cluster.join()
        for _ in range(200):
            driver = cluster.random.choice(list(cluster.drivers.values()))
            cluster.new_task(driver, cluster.random.choice(SHAPES), cluster.a_strategy())
            cluster.run(cluster.now + 0.01)
        cluster.run(cluster.now + 100.0)
        return cluster.now, cluster.grants, cluster.spills

    assert run() == run()
