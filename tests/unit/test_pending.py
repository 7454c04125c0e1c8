"""Why something is not running yet: what is said of it, to whom it is laid, and when a person hears of it unasked."""

from __future__ import annotations

from typing import Any

from ray._node import lease_messages as lm
from ray._node.local_scheduler import LocalScheduler
from ray._protocol.resources import UNITS
from ray._scheduling.node_resources import NodeResources
from ray._scheduling.strategy import DEFAULT, InGroup

JOB = b"\1\0\0\0"
G = b"g" * 16


class Node:
    def __init__(self, **total: int) -> None:
        units = {name: amount * UNITS for name, amount in total.items()}
        self.scheduler = LocalScheduler(NodeResources(units), stuck_after_s=10.0)
        self.now = 0.0
        self.worker = 0
        self(lm.CoreJoined(b"core", JOB))

    def __call__(self, event: Any) -> list[Any]:
        actions = self.scheduler.handle(event, self.now)
        self.scheduler.check()
        for acquire in [a for a in actions if isinstance(a, lm.AcquireWorker)]:
            self.worker += 1
            tag = b"w%015d" % self.worker
            actions += self(lm.WorkerAssigned(acquire.ticket, self.worker, tag, 1000 + self.worker))
        return actions

    def task(self, req_id: int, name: str, place: Any = DEFAULT, **amounts: int) -> None:
        units = {resource: amount * UNITS for resource, amount in amounts.items()}
        self(lm.LeaseRequested(b"core", req_id, units, name, strategy=place))

    def actor(self, name: str, **amounts: int) -> None:
        units = {resource: amount * UNITS for resource, amount in amounts.items()}
        self(lm.ActorRequested(name.encode().ljust(16), JOB, units, units, f"actor {name}"))

    def tick(self, at: float) -> list[str]:
        self.now = at
        return [action.message for action in self(lm.Tick()) if isinstance(action, lm.Stuck)]

    def why(self) -> str:
        (row,) = self.scheduler.why_pending(self.now)
        return str(row["why"])


def test_what_waits_names_what_it_lacks_and_who_holds_it() -> None:
    node = Node(CPU=4, GPU=2)
    node.task(1, "train", GPU=2)
    node.task(2, "infer", CPU=1, GPU=1)
    node.now = 3.0
    (row,) = node.scheduler.why_pending(3.0)
    assert (row["kind"], row["name"], row["count"]) == ("task", "infer", 1)
    assert row["resources"] == {"CPU": 1, "GPU": 1} and row["waited_s"] == 3.0 and row["feasible"]
    assert row["why"] == "it needs GPU: 1; of GPU: 2 in all, 0 is free; train (pid 1001) holds GPU: 2"


def test_those_that_hold_the_most_come_first_and_the_rest_is_counted() -> None:
    node = Node(CPU=10)
    node.task(0, "large", CPU=3)
    for i in range(1, 8):
        node.task(i, f"small{i}", CPU=1)
    node.task(9, "waits", CPU=2)
    assert node.why().startswith("it needs CPU: 2; of CPU: 10 in all, 0 is free; large (pid 1001) holds CPU: 3; small")
    assert node.why().endswith(", and 3 more")


def test_what_can_never_be_met_says_what_was_said_then() -> None:
    node = Node(CPU=2)
    node.task(1, "huge", CPU=4)
    (row,) = node.scheduler.why_pending(1.0)
    assert not row["feasible"] and "asks for CPU: 4, and this node has CPU: 2 in all" in row["why"]


def test_what_waits_for_its_group_says_so() -> None:
    node = Node(CPU=2)
    node.task(1, "early", InGroup(G), CPU=1)
    assert node.why() == f"its placement group {G.hex()} has no place yet"
    node(lm.PrepareBundles(G, 1, {0: {"CPU": UNITS}}, JOB, "group"))
    node(lm.CommitBundles(G))
    node.task(2, "late", InGroup(G), CPU=1)
    assert node.why() == "it needs CPU: 1; of CPU: 1 in all, 0 is free; early (pid 1001) holds CPU: 1"


def test_tasks_that_wait_for_tasks_that_will_end_are_nothing_to_tell() -> None:
    node = Node(CPU=1)
    node.task(1, "long", CPU=1)
    node.task(2, "next", CPU=1)
    assert node.scheduler.deadline() is not None
    assert node.tick(30.0) == node.tick(60.0) == []


def test_what_waits_for_actors_is_told_after_a_while_and_once() -> None:
    node = Node(CPU=2)
    node.actor("A", CPU=1)
    node.actor("B", CPU=1)
    node.task(1, "f", CPU=1)
    assert node.tick(9.0) == []
    (text,) = node.tick(10.0)
    assert text.startswith("f has waited 10 s for CPU: 1, and nothing that runs will free it by coming to its end: ")
    assert "actor A (pid 1001) holds CPU: 1; actor B (pid 1002) holds CPU: 1" in text
    assert node.tick(20.0) == node.tick(30.0) == []


def test_what_waits_for_a_placement_group_is_told_which() -> None:
    node = Node(CPU=2)
    node(lm.PrepareBundles(G, 1, {0: {"CPU": 2 * UNITS}}, JOB, "group"))
    node.task(1, "f", CPU=1)
    (text,) = node.tick(10.0)
    assert f"placement group {G.hex()} holds CPU: 2 in its bundle 0" in text


def test_tasks_that_all_wait_for_each_other_are_told_as_a_cycle() -> None:
    """Each holds a GPU and waits for a child that needs one: the CPUs are lent, the GPUs are not."""
    node = Node(CPU=2, GPU=2)
    node.task(1, "parent", CPU=1, GPU=1)
    node.task(2, "parent", CPU=1, GPU=1)
    node.task(3, "child", CPU=1, GPU=1)
    assert node.tick(10.0) == []  # they may still end
    node(lm.Blocked(1))
    node(lm.Blocked(2))
    (text,) = node.tick(20.0)
    assert "parent (pid 1001) holds GPU: 1 and is blocked in ray.get or ray.wait" in text
    assert text.endswith(
        "No task on this node runs that is not blocked: if they wait for each other, they wait for ever."
    )


def test_a_blocked_task_that_goes_on_is_no_cycle() -> None:
    node = Node(CPU=2, GPU=1)
    node.task(1, "parent", CPU=1, GPU=1)
    node.task(2, "child", GPU=1)
    node(lm.Blocked(1))
    node(lm.Unblocked(1))
    assert node.tick(10.0) == []


def test_nobody_waits_so_nothing_is_looked_at() -> None:
    node = Node(CPU=1)
    node.task(1, "f", CPU=1)
    assert node.scheduler.deadline() is None
    node.task(2, "g", CPU=1)
    assert node.scheduler.deadline() == 10.0
    node(lm.LeaseCancelled(b"core", 2))
    assert node.scheduler.deadline() is None
