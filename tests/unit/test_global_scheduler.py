"""Placement over nodes: the policies by example, the scheduler by seeded random use."""

from __future__ import annotations

import random

import pytest

from ray._head import global_scheduler as gs
from ray._head.global_scheduler import Assign, Ended, GlobalScheduler, NodeJoined, NodeLeft, Requested
from ray._protocol.resources import shape_of
from ray._scheduling import policies
from ray._scheduling.policies import Default, NodeAffinity, NodeView, Spread
from ray._scheduling.strategy import Strategy, parse_strategy

CPU = 10_000


def node(name: bytes, cpus: int, free: int | None = None, assigned: int = 0) -> NodeView:
    return NodeView(name, {"CPU": cpus * CPU}, {"CPU": (cpus if free is None else free) * CPU}, assigned)


def choose(views: list[NodeView], ask: dict[str, int], strategy: Strategy) -> bytes | None:
    return policies.choose(policies.index_of(views), shape_of(ask), strategy)


def test_the_default_packs_to_half_full_then_spreads() -> None:
    ask = {"CPU": CPU}
    assert choose([node(b"a", 4), node(b"b", 4)], ask, Default()) == b"a"
    assert choose([node(b"a", 4, 3), node(b"b", 4)], ask, Default()) == b"a"  # half full with it
    assert choose([node(b"a", 4, 2), node(b"b", 4)], ask, Default()) == b"b"


def test_what_fits_nowhere_queues_where_the_load_is_least_and_what_can_never_fit_goes_nowhere() -> None:
    assert choose([node(b"a", 4, 0), node(b"b", 8, 1)], {"CPU": 2 * CPU}, Default()) == b"b"
    assert choose([node(b"a", 4), node(b"b", 8)], {"CPU": 9 * CPU}, Default()) is None
    assert choose([node(b"a", 4)], {"GPU": CPU}, Default()) is None
    assert choose([], {}, Default()) is None


def test_spread_counts_what_was_assigned() -> None:
    views = [node(b"a", 4, assigned=2), node(b"b", 4, assigned=1), node(b"c", 4, 0, assigned=0)]
    assert choose(views, {"CPU": CPU}, Spread()) == b"b"


def test_affinity_is_hard_unless_soft() -> None:
    views = [node(b"a", 4), node(b"b", 1)]
    assert choose(views, {"CPU": CPU}, NodeAffinity(b"b")) == b"b"
    assert choose(views, {"CPU": 2 * CPU}, NodeAffinity(b"b")) is None
    assert choose(views, {"CPU": 2 * CPU}, NodeAffinity(b"b", soft=True)) == b"a"
    assert choose(views, {"CPU": CPU}, NodeAffinity(b"gone", soft=True)) == b"a"


def test_strategies_as_cores_send_them() -> None:
    assert parse_strategy(None) == parse_strategy("DEFAULT") == Default()
    assert parse_strategy("SPREAD") == Spread()
    assert parse_strategy(("node", b"n", True)) == NodeAffinity(b"n", True)
    for bad in ("PACK", 17, ("node", "n", True), ("node", b"n")):
        with pytest.raises(ValueError, match="scheduling_strategy"):
            parse_strategy(bad)


def test_what_no_node_can_hold_waits_says_so_once_and_goes_to_the_node_that_can() -> None:
    scheduler = GlobalScheduler()
    scheduler.handle(NodeJoined(b"a", {"CPU": CPU}))
    (told,) = scheduler.handle(Requested(b"r", {"GPU": 2 * CPU}, Default(), "actor C"))
    assert isinstance(told, gs.Infeasible)
    assert told.message.startswith("actor C needs GPU: 2, which no node of the cluster can ever offer")
    assert scheduler.handle(Requested(b"r", {"GPU": 2 * CPU}, Default())) == []
    assert scheduler.handle(NodeJoined(b"b", {"CPU": CPU})) == []
    assert scheduler.handle(NodeJoined(b"c", {"GPU": 4 * CPU})) == [Assign(b"r", b"c")]
    scheduler.check()


def test_what_holds_nothing_goes_where_the_fewest_are() -> None:
    scheduler = GlobalScheduler()
    for name in (b"a", b"b", b"c"):
        scheduler.handle(NodeJoined(name, {"CPU": 4 * CPU}))
    asked = [scheduler.handle(Requested(b"%d" % n, {"CPU": CPU}, Default(), "actor", {})) for n in range(6)]
    assert [action.node_id for (action,) in asked if isinstance(action, Assign)] == [b"a", b"b", b"c"] * 2
    for n in range(6, 8):  # what fills a node is packed as ever
        assert scheduler.handle(Requested(b"%d" % n, {"CPU": CPU}, Default())) == [Assign(b"%d" % n, b"a")]
    scheduler.check()


def test_a_node_that_leaves_loses_its_assignments_once() -> None:
    scheduler = GlobalScheduler()
    scheduler.handle(NodeJoined(b"a", {"CPU": CPU}))
    scheduler.handle(Requested(b"r", {"CPU": CPU}, Default()))
    assert scheduler.handle(NodeLeft(b"a", "silence")) == [gs.Unassign(b"r", "silence")]
    assert scheduler.handle(NodeLeft(b"a", "silence")) == []
    assert scheduler.handle(Ended(b"r")) == []


@pytest.mark.parametrize("seed", range(30))
def test_random_use_gives_back_exactly_what_was_taken(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = GlobalScheduler()
    totals: dict[bytes, dict[str, int]] = {}
    living: dict[bytes, bytes | None] = {}
    for i in range(600):
        choice = rng.random()
        actions: list[gs.Action] = []
        if choice < 0.1:
            name = b"n%d" % i
            totals[name] = {"CPU": rng.randrange(1, 9) * CPU, "GPU": rng.randrange(2) * CPU}
            actions = scheduler.handle(NodeJoined(name, totals[name]))
        elif choice < 0.14 and totals:
            name = rng.choice(sorted(totals))
            del totals[name]
            for lost in scheduler.handle(NodeLeft(name, "x")):
                assert living.pop(lost.request_id) == name
        elif choice < 0.6:
            ask = {"CPU": rng.randrange(0, 4) * CPU, **({"GPU": CPU} if rng.random() < 0.2 else {})}
            living[b"r%d" % i] = None
            actions = scheduler.handle(Requested(b"r%d" % i, ask, rng.choice((Default(), Spread()))))
        elif living:
            scheduler.handle(Ended(living and rng.choice(sorted(living))))
            ended = [r for r in living if scheduler.assigned_to(r) is None and living[r] is not None]
            for request_id in ended:
                del living[request_id]
        for action in actions:
            if isinstance(action, Assign):
                assert living[action.request_id] is None and action.node_id in totals
                living[action.request_id] = action.node_id
        scheduler.check()
    for request_id in list(living):
        scheduler.handle(Ended(request_id))
    scheduler.check()
    assert {n: v.available for n, v in scheduler._nodes.items()} == totals
