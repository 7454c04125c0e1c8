"""scheduling_strategy=, label_selector=, accelerator_type=: where tasks and actors run, on one node."""

from __future__ import annotations

import pytest

import ray
from ray.exceptions import ActorUnschedulableError, TaskUnschedulableError
from ray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)
from tests.wait import wait_until

NOWHERE = "ab" * 16


@ray.remote
def node():
    return ray.get_runtime_context().get_node_id()


@ray.remote
class Actor:
    def node(self):
        return ray.get_runtime_context().get_node_id()


def here():
    return ray.get_runtime_context().get_node_id()


@pytest.mark.parametrize("strategy", [None, "DEFAULT", "SPREAD"])
def test_the_plain_strategies_run(ray_shared, strategy):
    assert ray.get(node.options(scheduling_strategy=strategy).remote()) == here()
    assert ray.get(Actor.options(scheduling_strategy=strategy).remote().node.remote()) == here()


def test_affinity_to_this_node_runs_here(ray_shared):
    for soft in (False, True):
        strategy = NodeAffinitySchedulingStrategy(here(), soft)
        assert ray.get(node.options(scheduling_strategy=strategy).remote()) == here()
        assert ray.get(Actor.options(scheduling_strategy=strategy).remote().node.remote()) == here()


def test_hard_affinity_to_a_node_that_is_not_there_fails(ray_shared):
    strategy = NodeAffinitySchedulingStrategy(NOWHERE, soft=False)
    with pytest.raises(TaskUnschedulableError, match=f"node can't be scheduled: it is bound to node {NOWHERE}"):
        ray.get(node.options(scheduling_strategy=strategy).remote(), timeout=60)
    with pytest.raises(TaskUnschedulableError):  # and again: a lease that was refused leaves nothing behind
        ray.get([node.options(scheduling_strategy=strategy).remote() for _ in range(20)], timeout=60)
    with pytest.raises(ActorUnschedulableError, match=f"Actor can't be scheduled: it is bound to node {NOWHERE}"):
        ray.get(Actor.options(scheduling_strategy=strategy).remote().node.remote(), timeout=60)


def test_soft_affinity_to_a_node_that_is_not_there_runs_elsewhere(ray_shared):
    strategy = NodeAffinitySchedulingStrategy(NOWHERE, soft=True)
    assert ray.get(node.options(scheduling_strategy=strategy).remote(), timeout=60) == here()
    assert ray.get(Actor.options(scheduling_strategy=strategy).remote().node.remote(), timeout=60) == here()


@pytest.mark.parametrize(
    "options",
    [
        {"label_selector": {"no/such": "!x"}},
        {"label_selector": {"no/such": "!in(x, y)"}},
        {"label_selector": {"no/such": "x"}, "fallback_strategy": [{"label_selector": {"no/such": "!x"}}]},
        {"label_selector": {}},
        {"scheduling_strategy": NodeLabelSchedulingStrategy({"no/such": DoesNotExist(), "zone": NotIn("x", "y")})},
        {"scheduling_strategy": NodeLabelSchedulingStrategy(None, soft={"no/such": Exists()})},
    ],
)
def test_labels_that_this_node_meets_run_here(ray_shared, options):
    assert ray.get(node.options(**options).remote(), timeout=60) == here()
    assert ray.get(Actor.options(**options).remote().node.remote(), timeout=60) == here()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"label_selector": {"no/such": "x"}}, "no/such = x"),
        ({"label_selector": {"no/such": "in(x, y)"}}, r"no/such in \(x, y\)"),
        (
            {"label_selector": {"a": "x"}, "fallback_strategy": [{"label_selector": {"b": "y"}}]},
            "a = x or b = y",
        ),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"no/such": Exists()})}, "no/such exists"),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"no/other": In("x")})}, "no/other = x"),
    ],
)
def test_labels_that_no_node_meets_are_waited_for_and_named(ray_shared, capfd, options, wanted):
    import re

    task = node.options(**options).remote()
    actor = Actor.options(**options).remote()
    assert ray.wait([task, actor.node.remote()], timeout=0.1)[0] == []
    printed = ""

    def both_named():
        nonlocal printed
        printed += capfd.readouterr().err
        return len(re.findall(rf"a node with {wanted}", printed)) >= 2

    wait_until(both_named)
    ray.cancel(task)
    ray.kill(actor)


LABELLED = {"num_cpus": 1, "labels": {"zone": "a"}, "resources": {"accelerator_type:T4": 1}}


@pytest.mark.parametrize("ray_start", [LABELLED], indirect=True)
def test_a_node_has_the_labels_given_to_init_and_those_of_ray_s_own(ray_start):
    labels = {"zone": "a", "ray.io/node-id": here(), "ray.io/accelerator-type": "T4"}
    assert ray.nodes()[0]["Labels"] == labels
    selector = {"zone": "in(a, b)", "ray.io/node-id": here(), "ray.io/accelerator-type": "!A100"}
    assert ray.get(node.options(label_selector=selector).remote(), timeout=60) == here()
    strategy = NodeLabelSchedulingStrategy({"ray.io/accelerator-type": In("T4"), "zone": Exists()})
    assert ray.get(Actor.options(scheduling_strategy=strategy).remote().node.remote(), timeout=60) == here()
    elsewhere = node.options(label_selector={"zone": "b"}).remote()
    assert ray.wait([elsewhere], timeout=0.1)[0] == []
    ray.cancel(elsewhere)


@pytest.mark.parametrize("ray_start", [{"num_cpus": 1, "resources": {"accelerator_type:T4": 1}}], indirect=True)
def test_accelerator_type_runs_where_there_is_one(ray_start, capfd):
    assert ray.get(node.options(accelerator_type="T4").remote(), timeout=60) == here()
    other = node.options(accelerator_type="A100").remote()
    assert ray.wait([other], timeout=0.1)[0] == []
    wait_until(lambda: "accelerator_type:A100" in capfd.readouterr().err)
    ray.cancel(other)


def test_equal_strategies_are_one_variant_of_a_function(ray_shared):
    first = node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(NOWHERE, soft=True))
    second = node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(NOWHERE, soft=True))
    assert first is second
    assert NodeLabelSchedulingStrategy({"a": In("b")}) == NodeLabelSchedulingStrategy({"a": In("b")})
    assert NodeLabelSchedulingStrategy({"a": In("b")}) != NodeLabelSchedulingStrategy({"a": In("c")})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scheduling_strategy": "PACK"}, ValueError, "scheduling_strategy='PACK': expected 'DEFAULT' or 'SPREAD'"),
        ({"scheduling_strategy": object()}, TypeError, "one of ray.util.scheduling_strategies"),
        ({"label_selector": "zone"}, TypeError, "label_selector='zone': expected a dict"),
        ({"label_selector": {"zone": 3}}, TypeError, "label_selector: the selector of label 'zone'"),
        ({"label_selector": {"-zone": "a"}}, ValueError, "label_selector: '-zone' can't be the name of a label"),
        ({"label_selector": {"zone": "a b"}}, ValueError, "'a b' can't be the value of label 'zone'"),
        ({"label_selector": {"zone": "in(a,)"}}, ValueError, "empty value in its list"),
        ({"fallback_strategy": [{"label_selector": {"a": "b"}}]}, ValueError, "fallback_strategy: no label_selector"),
        ({"label_selector": {"a": "b"}, "fallback_strategy": [{"zone": "b"}]}, ValueError, "fallback_strategy="),
        ({"label_selector": {"a": "b"}, "fallback_strategy": {}}, TypeError, "fallback_strategy="),
        ({"label_selector": {"a": "b"}, "scheduling_strategy": "SPREAD"}, ValueError, "exclude each other"),
    ],
)
def test_a_wrong_option_is_named(options, error, message):
    for thing in (node, Actor):
        with pytest.raises(error, match=message):
            thing.options(**options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: NodeAffinitySchedulingStrategy("xyz", False),
            ValueError,
            "node_id='xyz': expected an id in hexadecimal",
        ),
        (lambda: NodeAffinitySchedulingStrategy(7, False), TypeError, "node_id=7"),  # type: ignore[arg-type]
        (lambda: NodeAffinitySchedulingStrategy(NOWHERE, "no"), TypeError, "soft='no'"),  # type: ignore[arg-type]
        (lambda: NodeLabelSchedulingStrategy({}), ValueError, "hard and soft are both empty"),
        (lambda: NodeLabelSchedulingStrategy({"a": "b"}), TypeError, r"hard\['a'\]='b'"),  # type: ignore[dict-item]
        (lambda: In(), ValueError, "one value at least"),
        (lambda: NotIn("a b"), ValueError, "'a b' can't be the value"),
    ],
)
def test_a_wrong_strategy_is_refused_where_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()
