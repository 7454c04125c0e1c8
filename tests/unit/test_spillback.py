"""To which node a lease request is sent on, and when. No process, virtual clock."""

from __future__ import annotations

from typing import Any

import pytest

from ray._node import lease_messages as lm
from ray._node.local_scheduler import LocalScheduler
from ray._node.spillback import SENT_S, NodeRow
from ray._scheduling.node_resources import NodeResources
from ray._scheduling.strategy import InGroup, NodeAffinity, NodeLabels, Spread

JOB = b"\1\0\0\0"
ME = b"me" * 8
ASKER = b"a" * 16
CPU1, CPU2 = {"CPU": 10_000}, {"CPU": 20_000}


def node(number: int, free: int = 4, total: int = 4, **more: Any) -> NodeRow:
    node_id = bytes([number]) * 16
    return NodeRow(number, node_id, {"CPU": total * 10_000}, {"CPU": free * 10_000}, **more)


class Bench:
    """A scheduler with four CPUs and a core that asks."""

    def __init__(self, *others: NodeRow, cpus: int = 4, **options: Any) -> None:
        self.machine = LocalScheduler(NodeResources({"CPU": cpus * 10_000}), node_id=ME, **options)
        self.now = 0.0
        self.next = 0
        self.do(lm.CoreJoined(ASKER, JOB))
        if others:
            self.do(lm.View(others))

    def do(self, event: Any) -> list[Any]:
        done: list[Any] = []
        events = [event]
        while events:
            for action in self.machine.handle(events.pop(0), self.now):
                done.append(action)
                if isinstance(action, lm.AcquireWorker):
                    events.append(lm.WorkerAssigned(action.ticket, action.ticket, bytes([action.ticket]) * 16, 7))
            self.machine.check()
        return done

    def ask(self, resources: dict[str, int] = CPU1, **more: Any) -> Any:
        """What became of a request at once: "granted", the number of a node, "refused", or None: it waits."""
        self.next += 1
        return became(self.do(lm.LeaseRequested(ASKER, self.next, resources, "f", **more)), self.next)


def became(actions: list[Any], req_id: int) -> Any:
    for action in actions:
        if isinstance(action, lm.Grant) and action.req_id == req_id:
            return "granted"
        if isinstance(action, lm.Spill) and action.req_id == req_id:
            return action.number
        if isinstance(action, lm.LeaseRefused) and action.req_id == req_id:
            return "refused"
    return None


def spilled(actions: list[Any]) -> list[tuple[int, int]]:
    return [(a.req_id, a.number) for a in actions if isinstance(a, lm.Spill)]


def test_a_node_is_filled_to_half_and_then_the_emptiest_is_asked() -> None:
    bench = Bench(node(1, free=2), node(2, free=4))
    assert [bench.ask(), bench.ask()] == ["granted", "granted"]
    assert bench.ask() == 2
    assert bench.ask() in (1, 2)


def test_without_room_elsewhere_what_fits_here_runs_here_and_the_rest_waits_here() -> None:
    bench = Bench(node(1, free=0), node(2, free=0))
    assert [bench.ask() for _ in range(5)] == ["granted"] * 4 + [None]


def test_the_node_that_holds_most_of_the_arguments_is_preferred_while_it_has_room() -> None:
    bench = Bench(node(1), node(2))
    assert bench.ask(holds={2: 10_000_000, 1: 5_000_000}) == 2
    bench.do(lm.View([node(2, free=0)]))
    assert bench.ask(holds={2: 10_000_000, 1: 5_000_000}) == 1


def test_arguments_that_lie_here_keep_a_request_here() -> None:
    bench = Bench(NodeRow(9, ME, {}, {}), node(1))
    assert bench.ask(CPU2) == "granted"
    assert bench.ask(holds={9: 1_000_000}) == "granted"
    assert bench.ask() == 1


def test_spread_takes_turns_among_the_nodes_with_room_this_one_among_them() -> None:
    bench = Bench(node(1), node(2))
    asked = [bench.ask(strategy=Spread()) for _ in range(6)]
    assert sorted(map(str, asked[:3])) == sorted(map(str, asked[3:])) == ["1", "2", "granted"]


def test_a_request_goes_to_the_node_it_is_bound_to_even_if_that_is_full() -> None:
    bench = Bench(node(1, free=0), node(2))
    assert bench.ask(strategy=NodeAffinity(bytes([1]) * 16)) == 1
    assert bench.ask(strategy=NodeAffinity(ME)) == "granted"


def test_a_request_bound_to_a_node_that_is_gone_is_refused_or_if_soft_runs_elsewhere() -> None:
    bench = Bench(node(1), node(2))
    bench.do(lm.View([node(1, alive=False)]))
    assert bench.ask(strategy=NodeAffinity(bytes([1]) * 16)) == "refused"
    assert bench.ask(strategy=NodeAffinity(bytes([1]) * 16, soft=True)) == "granted"


def test_labels_choose_among_all_nodes_and_the_first_alternative_that_any_has_wins() -> None:
    zone = lambda name: (("zone", "in", (name,)),)  # noqa: E731
    bench = Bench(node(1, labels={"zone": "b"}), node(2, labels={"zone": "c"}), labels={"zone": "a"})
    assert bench.ask(strategy=NodeLabels((zone("c"),))) == 2
    assert bench.ask(strategy=NodeLabels((zone("x"), zone("b"), zone("a")))) == 1
    assert bench.ask(strategy=NodeLabels((zone("a"),))) == "granted"


def test_labels_that_no_node_has_wait_until_one_with_them_joins() -> None:
    bench = Bench(node(1))
    assert bench.ask(strategy=NodeLabels(((("zone", "in", ("b",)),),))) is None
    assert spilled(bench.do(lm.View([node(2, labels={"zone": "b"})]))) == [(1, 2)]


def test_what_is_too_large_for_this_node_goes_where_it_can_ever_be_met_even_if_it_has_to_wait_there() -> None:
    bench = Bench(node(1, free=0, total=8), node(2))
    assert bench.ask({"CPU": 60_000}) == 1


def test_what_is_too_large_for_all_nodes_waits_and_its_owner_hears_which_comes_nearest() -> None:
    bench = Bench(node(1, total=8))
    actions = bench.do(lm.LeaseRequested(ASKER, 1, {"CPU": 160_000}, "f"))
    (told,) = [a for a in actions if isinstance(a, lm.Infeasible)]
    assert "none of the 2 nodes" in told.message and "CPU: 16" in told.message
    assert spilled(bench.do(lm.View([node(2, total=16)]))) == [(1, 2)]


def test_requests_that_wait_go_when_a_view_shows_room_and_no_more_of_them_than_there_is_room_for() -> None:
    bench = Bench(node(1, free=0), cpus=1)
    assert [bench.ask() for _ in range(4)] == ["granted", None, None, None]
    assert spilled(bench.do(lm.View([node(1, free=2)]))) == [(2, 1), (3, 1)]


def test_what_was_sent_is_deducted_also_from_a_report_that_crossed_with_it_and_counts_no_more_after_a_while() -> None:
    bench = Bench(node(1, free=1), cpus=1)
    assert [bench.ask(), bench.ask(), bench.ask()] == ["granted", 1, None]
    bench.now = SENT_S / 2
    assert spilled(bench.do(lm.View([node(1, free=1)]))) == []
    deadline = bench.machine.deadline()
    assert deadline is not None and deadline <= SENT_S
    bench.now = SENT_S
    assert spilled(bench.do(lm.Tick())) == [(3, 1)]


def test_a_request_that_was_sent_here_stays_if_it_fits_though_others_are_emptier() -> None:
    bench = Bench(node(1), node(2))
    for _ in range(3):
        assert bench.ask(hops=1) == "granted"
    assert bench.ask(CPU2, hops=1) in (1, 2)


def test_hops_are_bounded_where_a_request_can_wait() -> None:
    bench = Bench(node(1), cpus=1, spill_hops_max=3)
    assert bench.ask() == "granted"
    assert bench.ask(hops=2) == 1
    assert bench.ask(hops=3) is None


def test_a_node_that_can_never_meet_a_request_sends_it_on_beyond_the_bound_but_not_at_once() -> None:
    bench = Bench(node(1, total=8), spill_hops_max=3)
    assert bench.ask({"CPU": 60_000}, hops=4) is None
    bench.now = bench.machine.deadline() or 0.0
    assert spilled(bench.do(lm.Tick())) == [(1, 1)]


@pytest.mark.parametrize("others", [[], [node(2, labels={"zone": "b"})]], ids=["alone", "another is left"])
def test_what_was_to_be_sent_on_is_said_to_be_impossible_when_the_last_node_that_could_meet_it_leaves(
    others: list[NodeRow],
) -> None:
    """It is kept back here after many hops, when nothing is said since a node could run it; then that node died, and
    its owner never heard that the task waits for nothing. Simulation, seeds 1000352 and 2000263."""
    bench = Bench(node(1, labels={"zone": "a"}), *others, spill_hops_max=2)
    in_a = NodeLabels(((("zone", "in", ("a",)),),))
    assert bench.ask(strategy=in_a, hops=3) is None
    actions = bench.do(lm.View([node(1, alive=False)]))
    assert [a.req_id for a in actions if isinstance(a, lm.Infeasible)] == [1]
    assert not [a for a in bench.do(lm.View([node(2)])) if isinstance(a, lm.Infeasible)]  # once
    assert spilled(bench.do(lm.View([node(3, labels={"zone": "a"})]))) == [(1, 3)]


def test_a_request_for_a_placement_group_goes_to_a_node_with_a_bundle_of_it() -> None:
    group = b"g" * 16
    bench = Bench(node(1), node(2, bundles={group: [(1, CPU2, CPU2)]}))
    assert bench.ask(strategy=InGroup(group)) == 2
    assert bench.ask(strategy=InGroup(group, 1)) == 2
    assert bench.ask(strategy=InGroup(group, 0)) is None
    assert spilled(bench.do(lm.View([node(1, bundles={group: [(0, CPU1, {"CPU": 0})]})]))) == [(3, 1)]


def test_any_bundle_of_a_group_means_a_free_one_here_before_a_free_one_elsewhere() -> None:
    group = b"g" * 16
    bench = Bench(node(2, bundles={group: [(1, CPU1, CPU1)]}))
    bench.do(lm.PrepareBundles(group, 1, {0: CPU1}, JOB))
    bench.do(lm.CommitBundles(group))
    assert [bench.ask(strategy=InGroup(group)) for _ in range(3)] == ["granted", 2, None]


def test_on_a_single_machine_nothing_is_sent_anywhere() -> None:
    bench = Bench()
    assert [bench.ask(strategy=strategy) for strategy in (Spread(), Spread())] == ["granted", "granted"]
    assert bench.ask({"CPU": 50_000}) is None
    assert bench.machine.deadline() is None


@pytest.mark.parametrize("strategy", [None, Spread()])
def test_when_the_last_other_node_goes_what_waits_stays(strategy: Any) -> None:
    bench = Bench(node(1, free=0), cpus=1)
    more = {"strategy": strategy} if strategy else {}
    assert [bench.ask(**more), bench.ask(**more)] == ["granted", None]
    assert spilled(bench.do(lm.View([node(1, alive=False)]))) == []
    assert not bench.machine.neighbours
