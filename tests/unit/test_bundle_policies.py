"""On which nodes bundles are put: the four strategies over many nodes."""

from __future__ import annotations

import collections
from typing import Any

import pytest

from ray._scheduling import bundle_policies, labels
from ray._scheduling.bundle_policies import STRATEGIES, Limits
from ray._scheduling.policies import NodeView, index_of


def nodes(*cpus: int, free: tuple[int, ...] = ()) -> list[NodeView]:
    return [
        NodeView(bytes([i]), {"CPU": total}, {"CPU": available})
        for i, (total, available) in enumerate(zip(cpus, free or cpus))
    ]


def place(views: list[NodeView], *args: Any, **more: Any) -> dict[int, bytes] | None:
    return bundle_policies.place(bundle_policies.Nodes(index_of(views)), *args, **more)


def possible(views: list[NodeView], *args: Any, **more: Any) -> dict[int, bytes] | None:
    return bundle_policies.possible(bundle_policies.Nodes(index_of(views)), *args, **more)


def bundles(*cpus: int) -> dict[int, dict[str, int]]:
    return {i: {"CPU": units} for i, units in enumerate(cpus)}


def counts(placement: dict[int, bytes] | None) -> list[int]:
    assert placement is not None
    return sorted(collections.Counter(placement.values()).values(), reverse=True)


def test_pack_uses_one_node_if_one_can_hold_all() -> None:
    assert set(place(nodes(2, 8, 4), bundles(2, 2, 2), "PACK").values()) == {b"\1"}  # type: ignore[union-attr]


def test_pack_uses_as_few_nodes_as_will_do() -> None:
    assert counts(place(nodes(2, 2, 4), bundles(2, 2, 2), "PACK")) == [2, 1]


def test_pack_goes_first_where_the_group_lies_already() -> None:
    assert place(nodes(8, 8, 4), {1: {"CPU": 1}}, "PACK", {0: b"\2"}) == {1: b"\2"}


def test_spread_uses_as_many_nodes_as_there_are_and_doubles_up_evenly() -> None:
    assert counts(place(nodes(4, 4, 4), bundles(1, 1, 1, 1, 1), "SPREAD")) == [2, 2, 1]


def test_spread_keeps_away_from_where_the_group_lies_already() -> None:
    placement = place(nodes(4, 4), {1: {"CPU": 1}}, "SPREAD", {0: b"\0"})
    assert placement == {1: b"\1"}


def test_strict_pack_is_one_node_or_nothing() -> None:
    assert set(place(nodes(2, 4), bundles(2, 2), "STRICT_PACK").values()) == {b"\1"}  # type: ignore[union-attr]
    assert place(nodes(2, 3), bundles(2, 2), "STRICT_PACK") is None


def in_zones(*zones: str, cpus: int = 4) -> list[NodeView]:
    return [node._replace(labels={"zone": zone}) for node, zone in zip(nodes(*[cpus] * len(zones)), zones)]


def zones(*wanted: str) -> Limits:
    return Limits([labels.parse_selector({"zone": zone}) if zone else () for zone in wanted])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bundle_lies_only_on_nodes_with_its_labels(strategy: str) -> None:
    found = place(in_zones("a", "b", "b"), bundles(1, 1), strategy, limits=zones("b", "b"))
    assert found is not None and set(found.values()) <= {b"\1", b"\2"}
    assert possible(in_zones("a", "b"), bundles(1, 1), strategy, limits=zones("b", "c")) is None


def test_bundles_that_ask_for_different_labels_lie_apart() -> None:
    assert place(in_zones("a", "b"), bundles(1, 1, 1), "PACK", limits=zones("b", "a", "")) in (
        {0: b"\1", 1: b"\0", 2: b"\0"},
        {0: b"\1", 1: b"\0", 2: b"\1"},
    )
    assert place(in_zones("a", "b"), bundles(1, 1), "STRICT_PACK", limits=zones("a", "b")) is None


def test_the_preferred_node_is_taken_if_it_has_room() -> None:
    preferred = Limits(first=b"\2")
    assert place(nodes(4, 4, 4), bundles(1, 1), "STRICT_PACK", limits=preferred) == {0: b"\2", 1: b"\2"}
    assert place(nodes(4, 4, 1), bundles(1, 1), "STRICT_PACK", limits=preferred) == {0: b"\0", 1: b"\0"}
    assert place(nodes(4, 4), bundles(1, 1), "STRICT_PACK", limits=preferred) == {0: b"\0", 1: b"\0"}


def test_a_share_of_each_nodes_cpus_is_not_counted_as_room() -> None:
    assert place(nodes(4, free=(3,)), bundles(1), "PACK", limits=Limits(cpu_fraction=0.5)) == {0: b"\0"}
    assert place(nodes(4, free=(2,)), bundles(1), "PACK", limits=Limits(cpu_fraction=0.5)) is None
    assert possible(nodes(4), bundles(3), "PACK", limits=Limits(cpu_fraction=0.5)) is None


def test_strict_spread_is_a_node_each_or_nothing() -> None:
    assert counts(place(nodes(4, 4, 4), bundles(1, 1, 1), "STRICT_SPREAD")) == [1, 1, 1]
    assert place(nodes(8), bundles(1, 1), "STRICT_SPREAD") is None
    assert place(nodes(8, 8), {1: {"CPU": 1}}, "STRICT_SPREAD", {0: b"\0"}) == {1: b"\1"}


def test_strict_spread_finds_the_only_matching_there_is() -> None:
    """Greedily the first, small bundle would take the large node, and the last would have none."""
    placement = place(nodes(4, 3, 2, 1), bundles(1, 2, 3, 4), "STRICT_SPREAD")
    assert placement == {0: b"\3", 1: b"\2", 2: b"\1", 3: b"\0"}


def test_strict_spread_over_many_nodes_needs_no_deep_recursion() -> None:
    """Each bundle fits on the nodes of its size and above, so a matching may have to shift many others."""
    views = [NodeView(i.to_bytes(2, "big"), {"CPU": i + 1}, {"CPU": i + 1}) for i in range(600)]
    placement = place(views, bundles(*range(1, 601)), "STRICT_SPREAD")
    assert placement == {i: i.to_bytes(2, "big") for i in range(600)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_does_not_fit_now_may_be_possible_when_nodes_are_empty(strategy: str) -> None:
    busy = nodes(4, 4, free=(1, 1))
    assert place(busy, bundles(2, 2), strategy) is None
    assert possible(busy, bundles(2, 2), strategy) is not None
    assert possible(busy, bundles(2, 5), strategy) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_nodes_hold_nothing(strategy: str) -> None:
    assert place([], bundles(1), strategy) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_placement_never_overcommits_a_node(strategy: str) -> None:
    have = nodes(3, 5, 2, 7)
    for sizes in [(1, 2, 3), (3, 3, 3), (5, 2), (1,) * 7, (7, 5, 3, 2)]:
        placement = place(have, bundles(*sizes), strategy)
        if placement is None:
            continue
        assert set(placement) == set(range(len(sizes)))
        used: dict[bytes, int] = collections.Counter()
        for index, node in placement.items():
            used[node] += sizes[index]
        assert all(used[node.node_id] <= node.total["CPU"] for node in have)
