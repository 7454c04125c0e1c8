"""The indexes decide what looking at every node decides, for every kind of decision, whatever has changed meanwhile."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ray._head import global_scheduler as gs
from ray._node.leases import Lease
from ray._node.spillback import Neighbours, NodeRow
from ray._protocol.resources import Shape, shape_of
from ray._scheduling import bundle_policies, policies
from ray._scheduling.bundle_policies import STRATEGIES, Limits
from ray._scheduling.node_index import QUESTIONS_MAX, NodeIndex
from ray._scheduling.policies import NodeView
from ray._scheduling.strategy import DEFAULT, InGroup, NodeAffinity, NodeLabels, Spread, Strategy
from tests.unit.plain_scan import PlainNeighbours, choose, place_plainly, possible_plainly

SHAPES: list[dict[str, int]] = [{"CPU": 1}, {"CPU": 2}, {"CPU": 3, "GPU": 1}, {"GPU": 1}, {}, {"CPU": 19}, {"TPU": 1}]
ZONES = [
    (),
    (("zone", "in", ("a",)),),
    (("zone", "in", ("b", "c")),),
    (("ssd", "exists", ()),),
    (("no", "exists", ()),),
]


def some_strategy(rng: random.Random, ids: list[bytes]) -> Strategy:
    kinds = (
        DEFAULT,
        Spread(),
        NodeAffinity(rng.choice([*ids, b"gone"]), rng.random() < 0.5),
        NodeLabels(tuple(rng.sample(ZONES[1:], rng.choice((1, 2)))), rng.choice(ZONES)),
    )
    return rng.choice(kinds)


def a_total(rng: random.Random) -> dict[str, int]:
    return {"CPU": rng.choice((2, 4, 20)), "GPU": rng.randrange(3)}


def some_of(rng: random.Random, total: dict[str, int]) -> dict[str, int]:
    lowest = -1 if rng.random() < 0.1 else 0
    return {name: rng.randrange(lowest, units + 1) for name, units in total.items()}


def some_labels(rng: random.Random) -> dict[str, str]:
    return {**rng.choice(({}, {"zone": rng.choice("abc")})), **rng.choice(({}, {"ssd": ""}))}


@pytest.mark.parametrize("seed", range(20))
def test_the_head_chooses_what_it_would_by_looking_at_every_node(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = gs.GlobalScheduler()
    ids: list[bytes] = []
    requests: list[bytes] = []
    for step in range(500):
        pick = rng.random()
        if pick < 0.1 or not ids:
            ids.append(b"n%d" % step)
            scheduler.handle(gs.NodeJoined(ids[-1], a_total(rng), some_labels(rng)))
        elif pick < 0.13:
            scheduler.handle(gs.NodeLeft(ids.pop(rng.randrange(len(ids))), "killed"))
        elif pick < 0.4:
            node_id = rng.choice(ids)
            total = scheduler.index.get(node_id).total  # type: ignore[union-attr]
            scheduler.handle(gs.ResourcesReported(node_id, some_of(rng, dict(total))))
        elif pick < 0.5 and requests:
            scheduler.handle(gs.Ended(requests.pop(rng.randrange(len(requests)))))
        else:
            ask, strategy = rng.choice(SHAPES), some_strategy(rng, ids)
            expected = choose(scheduler.views(), ask, strategy)
            requests.append(b"r%d" % step)
            scheduler.handle(gs.Requested(requests[-1], ask, strategy))
            assert scheduler.assigned_to(requests[-1]) == expected, (ask, strategy)


@pytest.mark.parametrize("seed", range(20))
def test_a_node_sends_on_to_where_it_would_by_looking_at_every_other(seed: int) -> None:
    rng = random.Random(seed)
    here_id = b"here"
    both = Neighbours(here_id, 4), PlainNeighbours(here_id, 4)
    rows: dict[int, NodeRow] = {}
    now = 0.0
    for step in range(700):
        now += rng.expovariate(20)
        if rng.random() < 0.5 or not rows:
            number = rng.randrange(1, 12)
            row = rows.get(number)
            if row is None:
                row = NodeRow(number, b"n%d-%d" % (number, step), a_total(rng), {}, labels=some_labels(rng))
            row = row._replace(
                available=some_of(rng, dict(row.total)),
                queued=rng.randrange(4),
                bundles=some_bundles(rng),
                alive=rng.random() < 0.9,
            )
            rows[number] = row
            if not row.alive:
                del rows[number]
            event = [row, NodeRow(0, here_id, {}, {})] if rng.random() < 0.1 else [row]
            for side in both:
                side.update(event, now)
            continue
        assert both[0].looking(now) == both[1].looking(now) and both[0].look_at == both[1].look_at
        lease = a_lease(rng, step, [row.node_id for row in rows.values()] + [here_id], now)
        total = {"CPU": 4, "GPU": 1}
        here = NodeView(here_id, total, rng.choice(({}, total, some_of(rng, total))), labels=some_labels(rng))
        if lease.place is not None:
            usable, room, patient = rng.random() < 0.5, rng.random() < 0.3, False
            answers = [side.with_bundle(lease, usable, room) for side in both]
        else:
            patient = rng.random() < 0.3
            answers = [side.elsewhere(lease, here, patient) for side in both]
            assert len({side.has_able(lease.strategy, lease.shape) for side in both}) == 1
            assert len({side.any_room(lease.shape) for side in both}) == 1
        assert answers[0] == answers[1], (lease, lease.strategy, lease.hops, lease.holds, here)
        if answers[0] is not None:
            for side in both:
                side.sent(answers[0], lease, now)


def some_bundles(rng: random.Random) -> dict[bytes, list[Any]]:
    groups = rng.sample((b"g1", b"g2"), rng.choice((0, 0, 1, 2)))
    return {group: [(i, {"CPU": 2}, {"CPU": rng.randrange(3)}) for i in range(rng.choice((1, 2)))] for group in groups}


def a_lease(rng: random.Random, number: int, ids: list[bytes], now: float) -> Lease:
    shape: Shape = shape_of(rng.choice(SHAPES))
    lease = Lease(number, b"core", number, b"job", shape, "f", now)
    lease.hops = rng.choice((0, 0, 1, 4))
    if rng.random() < 0.3:
        lease.holds = {rng.randrange(12): rng.randrange(3) for _ in range(rng.choice((1, 3)))}
    if rng.random() < 0.2:
        lease.place = InGroup(rng.choice((b"g1", b"g2", b"g3")), rng.choice((-1, 0, 1)))
    else:
        lease.strategy = some_strategy(rng, ids)
    return lease


@pytest.mark.parametrize("seed", range(20))
def test_a_group_lies_where_it_would_by_looking_at_every_node(seed: int) -> None:
    rng = random.Random(seed)
    index: NodeIndex[bytes] = NodeIndex()
    nodes = bundle_policies.Nodes(index)
    views: dict[bytes, NodeView] = {}
    for _ in range(400):
        name = bytes([rng.randrange(14)])
        if rng.random() < 0.1:
            views.pop(name, None)
            index.drop(name)
        elif rng.random() < 0.6:
            known = views.get(name)
            total = dict(known.total) if known else a_total(rng)
            labels = known.labels if known else some_labels(rng)
            available = total if rng.random() < 0.5 else some_of(rng, total)
            views[name] = NodeView(name, total, available, labels=labels)
            index.put(name, total, available, labels)
        bundles = {i: rng.choice(SHAPES[:5]) for i in range(rng.choice((1, 2, 3, 6)))}
        lying = {100 + i: bytes([rng.randrange(14)]) for i in range(rng.choice((0, 0, 1, 2)))}
        limits = Limits(
            [rng.choice(ZONES) for _ in bundles] if rng.random() < 0.3 else (),
            bytes([rng.randrange(14)]) if rng.random() < 0.3 else b"",
            rng.choice((1.0, 1.0, 0.5)),
        )
        args = bundles, rng.choice(STRATEGIES), lying, limits
        seen = list(views.values())
        assert bundle_policies.place(nodes, *args) == place_plainly(seen, *args), args
        assert bundle_policies.possible(nodes, *args) == possible_plainly(seen, *args), args


def test_a_question_that_was_not_asked_for_long_is_answered_rightly_all_the_same() -> None:
    """Its heap has been given up, or the log no longer goes back as far."""
    index: NodeIndex[int] = NodeIndex()
    for number in range(4):
        index.put(number, {"CPU": 100}, {"CPU": 100 - number})
    assert index.first(policies.room, (("CPU", 60),)) == (0.6, 0)
    for cpus in range(QUESTIONS_MAX + 1):
        index.first(policies.room, (("CPU", cpus),))
    for free in range(200):
        index.put(0, {"CPU": 100}, {"CPU": free // 4})
    assert index.first(policies.room, (("CPU", 60),)) == (0.61, 1)
    index.drop(1)
    assert index.first(policies.room, (("CPU", 60),)) == (0.62, 2)


def test_the_index_does_not_grow_with_the_number_of_changes() -> None:
    index: NodeIndex[int] = NodeIndex()
    for change in range(20_000):
        index.put(change % 10, {"CPU": 8}, {"CPU": change % 9})
        if change % 7 == 0:
            index.first(policies.room, (("CPU", 1),))
    assert len(index._log) < 200 and sum(len(heap.entries) for heap in index._heaps.values()) < 200
