"""A whole cluster in one process: what is asked of it and what goes wrong, both drawn from one seed.

    cluster = Cluster(seed, nodes=6)
    cluster.run(events=5000)       random work and random faults; the laws are looked at after each event
    cluster.settle()               no more of either: everything must come to its end, and nothing may be left

Raises `Broken` with the law that does not hold and the command that replays it.
"""

from __future__ import annotations

import random
from typing import Any

from ray._head.group_record import RESERVING
from ray._scheduling.strategy import DEFAULT, InGroup, NodeAffinity, NodeLabels, Spread, Strategy

from .disk import Disk
from .drivers import Driver, Task
from .heads import Head
from .laws import Laws
from .network import REMOTE_S, Line, Network
from .nodes import Node

UNIT = 10_000
SHAPES: list[dict[str, int]] = [{"CPU": UNIT}] * 5
SHAPES += [{"CPU": 3 * UNIT}, {"GPU": UNIT // 2}, {"CPU": UNIT, "GPU": UNIT}, {}, {"TPU": UNIT}]
BUNDLES: list[dict[str, int]] = [{"CPU": UNIT}] * 3 + [
    {"CPU": 2 * UNIT},
    {"GPU": UNIT},
    {"CPU": UNIT, "GPU": UNIT // 2},
]
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
OF_HEAD = 0.07
AWAY_S = (0.1, 0.1, 0.5, 3.0, 20.0)  # a head that was killed
ORDERS = ("place_actor", "become_actor", "release_actor", "kill_worker", "prepare_bundles", "commit_bundles",
          "return_bundles", "group_removed", "job_over", "opened", "node_up")  # fmt: skip
RUNS_S = 600.0  # virtual, at most: where nothing arrives there are no events
SETTLES_S = 150.0  # virtual: node deaths take 10 s, what waits long gets windows of ever longer time


class Broken(AssertionError):
    """A law does not hold. The text says which, and how to see it again."""


class Cluster:
    def __init__(
        self, seed: int, nodes: int = 6, drop: str = "", faults: bool = True, of_head: float = OF_HEAD
    ) -> None:
        """of_head: the share of faults that are its."""
        self.seed = seed
        self.of_head = of_head
        self.nodes_max = nodes
        self.faults = faults
        self.net = Network(seed, drop)
        self.random: random.Random = self.net.random
        self.laws = Laws(self)
        self.disk = Disk(self.net)
        self.head = Head(self)
        self.all: list[Node] = []
        self.nodes: dict[int, Node] = {}  # by number, the dead too
        self.drivers: list[Driver] = []  # registered and alive
        self.starting: list[Driver] = []
        self.lines: dict[tuple[int, int], list[Line]] = {}  # between two nodes
        self.cuts: dict[tuple[int, int], float] = {}  # when each began
        self.killed: dict[bytes, Driver] = {}  # actors that were to die for good, and who said so
        self.removed: set[bytes] = set()
        self.groups: list[tuple[bytes, list[dict[str, int]]]] = []
        self.over = False  # nothing new begins
        self.trap = ""  # when the head gives this order next, something happens before it is heard
        self._next = 0
        self._settles_s = SETTLES_S
        self._run_events = 0
        self.join_own()

    def living(self) -> list[Node]:
        return [node for node in self.all if node.alive]

    def number(self) -> int:
        self._next += 1
        return self._next

    # -- nodes and links ----------------------------------------------------------------------------------------------

    def join(self, own: bool = False) -> Node:
        total = {"CPU": UNIT * self.random.choice((1, 2, 4, 8))}
        if self.random.random() < 0.4:
            total["GPU"] = 2 * UNIT
        node_id = self.number().to_bytes(16, "little")
        node = Node(self, node_id, total, {"zone": self.random.choice("ab")}, own)
        self.all.append(node)
        return node

    def join_own(self) -> None:
        self.head.join(self.join(own=True))

    def by_number(self, node: Node, number: int) -> None:
        self.nodes[number] = node
        if not node.own and node.uplink.line is not None:
            node.number = number  # the node itself will hear it
            self.link(node.uplink.line, node)
            node.number = -1

    def link(self, line: Line, node: Node) -> None:
        """It is one between that node and the head's machine."""
        pair = 0, node.number
        lines = self._between(*pair)
        lines[:] = [x for x in lines if not all(x.ended)]
        lines.append(line)
        line.cut = pair in self.cuts

    def machine(self, node: Node) -> int:
        """Its number; of the head's own node 0, whichever it has."""
        return 0 if node.own else node.number

    def _between(self, a: int, b: int) -> list[Line]:
        return self.lines.setdefault((min(a, b), max(a, b)), [])

    def dial(self, home: Node, node: Node, name: str, to_node: bool = False) -> Line:
        """From a process of one node to a process of another, or of the same.

        to_node: to that node's own."""
        line = Line(self.net, name, remote=home is not node)
        if home is not node:
            a, b = self.machine(home), self.machine(node)
            lines = self._between(a, b)
            lines[:] = [x for x in lines if not all(x.ended)]
            lines.append(line)
            line.cut = (min(a, b), max(a, b)) in self.cuts
        if to_node:
            node.at_ends = [(x, end) for x, end in node.at_ends if not x.over]
            node.at_ends.append((line, 1))
            line.stopped[1] = node.stopped
        if not node.alive:
            if not node.silent or node.node_id in self.laws.dead:
                line.ended[1] = True
                self.net.later(REMOTE_S, lambda: line._hears(0, "connection refused"))
            else:
                line.ended[1] = True
        return line

    def new_driver(self, node: Node) -> None:
        """One comes up with its node, and another when that has died."""
        if not self.over and node.alive:
            self._driver(node)

    def _driver(self, node: Node) -> None:
        tag = node.number.to_bytes(4, "big") + self.number().to_bytes(12, "big")
        Driver(node, tag, keeps=self.random.random() < 0.3)

    def cut(self, a: int, b: int, for_s: float, breaks: bool) -> None:
        pair = (min(a, b), max(a, b))
        if pair in self.cuts:
            return
        self.net.note(f"the link between {a} and {b} is cut for {for_s:.2f} s")
        self.laws.faults += 1
        self.cuts[pair] = self.net.now
        for line in self._between(a, b):
            line.cut = True
        far = self.nodes[b]
        if a == 0 and (for_s > 9.0 or breaks):
            self.laws.died.add(far.node_id)  # it may be declared dead
        self.net.later(for_s, lambda: self.heal(pair, breaks))

    def heal(self, pair: tuple[int, int], breaks: bool) -> None:
        if self.cuts.pop(pair, None) is None:
            return
        for line in self._between(*pair):
            if breaks:
                line.break_off("the link was cut")
            else:
                line.heal()

    # -- what is asked of it, and what goes wrong -----

    def run(self, events: int) -> None:
        """Until so many events have happened."""
        self._run_events = events
        next_act = 0.0
        while self.net.events < events and self.net.now < RUNS_S:
            if next_act <= self.net.next_at():
                self.net.now = max(self.net.now, next_act)
                self._act()
                next_act = self.net.now + self.random.expovariate(30)
            else:
                self._step()

    def _act(self) -> None:
        pick = self.random.random()
        if self.head.alive and len(self.living()) < self.nodes_max and self.random.random() < 0.05:
            self.join()
        if not self.drivers:
            return
        driver = self.random.choice(self.drivers)
        if pick < 0.6:
            for _ in range(self.random.choice((1, 1, 2, 10))):
                driver.submit(self._task(driver))
        elif pick < 0.72:
            self._create_actor(driver)
        elif pick < 0.78 and driver.actors:
            self._kill_actor(driver)
        elif pick < 0.84:
            self._create_group(driver)
        elif pick < 0.88 and driver.groups:
            self._remove_group(driver)
        elif self.faults:
            self._fault(driver)

    def _task(self, driver: Driver, depth: int = 0) -> Task:
        strategy = self._strategy(driver)
        shape = self.random.choice(SHAPES)
        task = Task(self.number(), driver, shape, strategy, self.random.choice((0, 3, -1, -1)))
        task.takes_s = self.random.choice((0.002, 0.02, 0.2))
        if depth < 2 and self.random.random() < 0.2 and shape != {"TPU": UNIT}:
            task.child = Task(self.number(), driver, {"CPU": UNIT}, DEFAULT, -1)
        return task

    def _strategy(self, driver: Driver) -> Strategy:
        pick = self.random.random()
        seen = [row.reported.node_id for row in driver.home.scheduler.neighbours._by_number.values()]
        if pick < 0.5:
            return DEFAULT
        if pick < 0.65:
            return Spread()
        if pick < 0.75:
            return NodeAffinity(self.random.choice([*seen, driver.home.node_id]), soft=self.random.random() < 0.6)
        if pick < 0.85:
            return NodeLabels(((("zone", "in", (self.random.choice("ab"),)),),))
        if not self.groups:
            return DEFAULT
        group_id, bundles = self.random.choice(self.groups[-8:])
        return InGroup(group_id, self.random.choice((-1, *range(len(bundles)))))

    def _create_actor(self, driver: Driver) -> None:
        actor_id = self.number().to_bytes(16, "little")
        strategy = self._strategy(driver)
        wire: Any = None
        if isinstance(strategy, InGroup):
            wire = ("group", *strategy)
        elif isinstance(strategy, NodeAffinity):
            wire = ("node", *strategy)
        elif isinstance(strategy, Spread):
            wire = "SPREAD"
        spec = {
            "creation": b"x", "class_name": "A",
            "resources": self.random.choice(({}, {}, {"CPU": UNIT}, {"GPU": UNIT})),
            "placement_resources": {"CPU": UNIT}, "max_restarts": self.random.choice((0, 2, -1)), "strategy": wire,
            "detached": self.random.random() < 0.1,
        }  # fmt: skip
        driver.actors[actor_id] = "PENDING", 0
        driver.to_head("create_actor", actor_id, spec, again=True)

    def _kill_actor(self, driver: Driver) -> None:
        actor_id = self.random.choice(list(driver.actors))
        for_good = self.random.random() < 0.6
        if for_good:
            self.killed[actor_id] = driver
        driver.to_head("kill_actor", actor_id, for_good)

    def _create_group(self, driver: Driver) -> None:
        group_id = self.number().to_bytes(16, "little")
        bundles = [dict(self.random.choice(BUNDLES)) for _ in range(self.random.randint(1, 3))]
        self.groups.append((group_id, bundles))
        driver.groups[group_id] = "PENDING"
        driver.to_head("create_group", group_id, {"bundles": bundles, "strategy": self.random.choice(STRATEGIES)})

    def _remove_group(self, driver: Driver) -> None:
        group_id = self.random.choice(list(driver.groups))
        self.removed.add(group_id)
        driver.groups[group_id] = "REMOVED"
        driver.to_head("remove_group", group_id, again=True)

    def _fault(self, driver: Driver) -> None:
        if self.random.random() < self.of_head:
            self._fault_of_head()
            return
        pick = self.random.random()
        living = [n for n in self.living() if not n.own and n.opened]
        if pick < 0.4:
            workers = [w for n in self.living() for w in n.workers.values()]
            if workers:
                worker = self.random.choice(workers)
                self.laws.faults += 1
                worker.node.worker_ends(worker, "killed")
        elif pick < 0.5 and len(self.drivers) > 1:
            self.laws.faults += 1
            home = driver.home
            driver.dies("killed", False)
            self.net.later(0.1, lambda: self.new_driver(home))
        elif pick < 0.6 and len(living) > 1:
            self.laws.faults += 1
            self.random.choice(living).dies("killed", self.random.random() < 0.3)
        elif pick < 0.65 and living:
            self._stop(self.random.choice(living), self.random.choice((0.01, 0.2, 2.0, 20.0)))
        elif pick < 0.7:
            self._kill_in_reservation()
        elif pick < 0.9 and living:
            a, b = sorted((self.random.choice([0, *[n.number for n in living]]), self.random.choice(living).number))
            if a != b:
                self.cut(a, b, self.random.choice((0.01, 0.2, 2.0, 20.0)), self.random.random() < 0.3)

    def _fault_of_head(self) -> None:
        pick = self.random.random()
        if pick < 0.3:
            self.kill_head(self.random.choice(AWAY_S))
        elif pick < 0.6:
            self.trap = self.random.choice(ORDERS)
        elif pick < 0.9:
            self.laws.faults += 1
            self.disk.stand_still(self.random.choice((0.05, 0.5, 5.0)))
        else:
            for node in self.living():
                if node.own:
                    self._stop(node, self.random.choice((0.01, 0.2, 2.0)))  # nodes look for it if it is longer

    def springs(self, node: Node) -> None:
        """The head has just given a node the order for which there is a trap: that node stands still before it hears
        it, or the head dies, perhaps with it, or both are cut off."""
        self.trap = ""
        if self.over or node.own or node.number < 0:
            return
        pick = self.random.random()
        if pick < 0.5:
            self._stop(node, self.random.choice((0.2, 20.0)))
        if 0.4 < pick < 0.9:
            self.net.later(0.0, self.kill_head, self.random.choice(AWAY_S))
        if pick > 0.8:
            self.cut(0, node.number, self.random.choice((0.2, 20.0)), self.random.random() < 0.5)

    def kill_head(self, away_s: float) -> None:
        """Its process, with its own node and Redis; after away_s another takes over."""
        if not self.head.alive:
            return
        self.net.note(f"the head is killed, for {away_s:.2f} s")
        self.laws.faults += 1
        for node in self.living():
            if node.own or not node.opened:
                self.laws.died.add(node.node_id)
            if node.own:
                node.dies("the head was killed", False)
        self.head.dies()
        self.net.later(away_s, self._next_head)

    def _next_head(self) -> None:
        self.net.note("another head takes over")
        self.head = Head(self, resumed=True)

    def _stop(self, node: Node, for_s: float) -> None:
        if node.stopped:
            return
        self.laws.faults += 1
        if for_s > 9.0:
            self.laws.died.add(node.node_id)  # it may be declared dead
        node.stop(for_s)

    def _kill_in_reservation(self) -> None:
        """One of several nodes that have been asked to prepare a group's bundles, before or after it has."""
        asked = [
            self.by_id(node_id)
            for group in self.head.service.groups.groups.all()
            if group.state == RESERVING
            for node_id in group.asked
        ]
        nodes = [node for node in asked if node.alive and not node.own and node.opened]
        if nodes:
            self.laws.faults += 1
            self.random.choice(nodes).dies("killed in a reservation", self.random.random() < 0.5)

    def by_id(self, node_id: bytes) -> Node:
        return self.nodes[self.head.numbers[node_id]]

    # -- the end ------------------------------------------------------------------------------------------------------

    def settle(self, within_s: float = SETTLES_S) -> None:
        """Raises: Broken: something doesn't come to its end, or something is left."""
        self.over, self._settles_s = True, within_s
        for pair in list(self.cuts):
            self.heal(pair, False)
        self._until(lambda: self.laws.unsettled(keepers=True))
        for driver in self.drivers:
            driver.keeps = False
            driver.leave()
            driver.leaving = False
        self._until(lambda: self.laws.unsettled(keepers=False))
        if not self.drivers:  # the last died with its node
            self._driver(next(node for node in self.living() if node.own))
            self._run_for(1.0)
        for driver in self.drivers[:1]:
            for actor in self.head.service.actors.all():
                if actor.detached and actor.state != "DEAD":
                    driver.to_head("kill_actor", actor.actor_id, True)
            for group in self.head.service.groups.groups.all():
                driver.to_head("remove_group", group.group_id)
        self._run_for(1.0)
        for driver in list(self.drivers):
            driver.dies("it is done", False)
        self._until(self.laws.leftovers)

    def _until(self, complaints: Any) -> None:
        until = self.net.now + self._settles_s
        while self.net.now < until:
            self._run_for(0.5 if self.net.now < until - self._settles_s * 0.9 else 5.0)
            found = complaints()
            if not found:
                return
        self._broken("\n  ".join([*found[:5], f"... {len(found) - 5} more"] if len(found) > 5 else found))

    def _run_for(self, virtual_s: float) -> None:
        until = self.net.now + virtual_s
        events = self.net.events + 2_000_000
        while self.net.next_at() <= until:
            if self.net.events > events:
                self._broken("messages go round in circles")
            self._step()
        self.net.now = until

    def _step(self) -> None:
        try:
            self.net.step()
        except Broken:
            raise
        except Exception as error:
            self._broken(f"{type(error).__name__}: {error}", error)

    def _broken(self, text: str, cause: Exception | None = None) -> None:
        drop = f" --drop {self.net.drop}" if self.net.drop else ""
        command = (
            f"python -m tests.simulation --seed {self.seed} --nodes {self.nodes_max} --events {self._run_events}{drop}"
        )
        if self.of_head != OF_HEAD:
            command += f" --of-head {self.of_head}"
        raise Broken(f"seed {self.seed}, at {self.net.now:.4f} s: {text}\nreplay: {command}") from cause
