"""Of what no node can ever offer: which node comes nearest, and what it lacks."""

from __future__ import annotations

from ray._head.global_scheduler import GlobalScheduler, Infeasible, NodeJoined, Requested
from ray._protocol.resources import parse
from ray._scheduling.nearest import nearest
from ray._scheduling.policies import NodeView
from ray._scheduling.strategy import DEFAULT


def view(name: str, cpus: float, gpus: float | None = None) -> NodeView:
    return NodeView(name.encode(), parse(num_cpus=cpus, num_gpus=gpus), {})


def test_the_nearest_lacks_the_fewest_resources_and_of_those_the_smallest_part() -> None:
    views = [view("a", 64), view("b", 2, 3), view("c", 8, 2), view("d", 1)]
    text = nearest(parse(num_cpus=8, num_gpus=4), views)
    assert text.startswith(
        f"node {b'c'.hex()}, with CPU: 8, GPU: 2, comes nearest: GPU: 4 is asked for, and it has GPU"
    )
    assert nearest(parse(num_cpus=65), views).startswith(f"node {b'a'.hex()}")
    assert "has no 'GPU'" in nearest(parse(num_cpus=8, num_gpus=4), views[:1])


def test_an_actor_that_no_node_can_hold_hears_which_comes_nearest() -> None:
    scheduler = GlobalScheduler()
    request = Requested(b"1", parse(num_gpus=4), DEFAULT, "actor A")
    (told,) = scheduler.handle(request)
    assert isinstance(told, Infeasible) and "there is no node" in told.message
    scheduler = GlobalScheduler()
    scheduler.handle(NodeJoined(b"small", parse(num_cpus=8)))
    scheduler.handle(NodeJoined(b"large", parse(num_cpus=1, num_gpus=2)))
    (told,) = scheduler.handle(request)
    assert isinstance(told, Infeasible)
    assert f"node {b'large'.hex()}" in told.message and "it has GPU: 2" in told.message
