"""Tasks on several nodes: where they run, and what happens to them when something dies. Small objects only."""

from __future__ import annotations

import collections
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import ray
from ray import exceptions
from ray.util.scheduling_strategies import In, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy
from tests.wait import wait_until

from .nodes import Nodes


@ray.remote
def where(busy_s: float = 0.0) -> str:
    time.sleep(busy_s)
    return str(ray.get_runtime_context().get_node_id())


def counts(refs: list[Any]) -> dict[str, int]:
    return dict(collections.Counter(ray.get(refs, timeout=60)))


@ray.remote
def meet(folder: Path, i: int, count: int) -> str:
    """Where the i-th of `count` is that run all at the same time."""
    (folder / str(i)).touch()
    wait_until(lambda: all((folder / str(k)).exists() for k in range(count)))
    return str(ray.get_runtime_context().get_node_id())


def test_tasks_run_on_all_nodes_when_there_are_more_than_one_can_run(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add_node({"CPU": 2})
    found = counts([meet.remote(tmp_path, i, 3) for i in range(3)])
    assert found == {nodes.node_id(0): 1, nodes.node_id(1): 2}


@pytest.mark.parametrize("nodes", [{"num_cpus": 8}], indirect=True)
def test_spread_uses_every_node_while_the_first_has_room(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add_node({"CPU": 8})
    spread = meet.options(scheduling_strategy="SPREAD")
    assert set(counts([spread.remote(tmp_path, i, 8) for i in range(8)])) == {nodes.node_id(0), nodes.node_id(1)}


def test_a_task_runs_on_the_node_it_is_bound_to(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    for number in (1, 0, 1):
        strategy = NodeAffinitySchedulingStrategy(nodes.node_id(number), soft=False)
        bound = where.options(scheduling_strategy=strategy)
        assert counts([bound.remote() for _ in range(3)]) == {nodes.node_id(number): 3}


def test_labels_and_resources_that_only_one_node_has_are_found_there(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1, "special": 1}, labels={"zone": "far"})
    assert counts([where.options(resources={"special": 1}).remote()]) == {nodes.node_id(1): 1}
    far = NodeLabelSchedulingStrategy(hard={"zone": In("far")})
    assert counts([where.options(scheduling_strategy=far).remote()]) == {nodes.node_id(1): 1}


def test_what_no_node_can_run_waits_for_one_that_joins(nodes: Nodes) -> None:
    ref = where.options(num_cpus=3).remote()
    assert ray.wait([ref], timeout=0.2) == ([], [ref])
    nodes.add_node({"CPU": 4})
    assert counts([ref]) == {nodes.node_id(1): 1}


def on(nodes: Nodes, number: int) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(nodes.node_id(number), soft=False)}


def test_refs_and_nested_tasks_cross_nodes_both_ways(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 2})

    @ray.remote
    def double(x: int) -> int:
        return 2 * x

    @ray.remote
    def outer(refs: list[Any], there: dict[str, Any]) -> Any:
        inner = double.options(**there).remote(refs[0])  # its argument is borrowed: the driver owns it
        return ray.get(inner), [ray.put("made there")], ray.get_runtime_context().get_node_id()

    value, (kept,), node_id = ray.get(outer.options(**on(nodes, 1)).remote([ray.put(21)], on(nodes, 0)), timeout=60)
    assert (value, node_id) == (42, nodes.node_id(1))
    assert ray.get(kept, timeout=60) == "made there", "a ref whose owner is a worker of the other node"


def test_a_task_that_waits_lends_its_cpu_on_the_other_node_too(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})

    @ray.remote
    def parent(there: dict[str, Any]) -> str:
        return str(ray.get(where.options(**there).remote()))

    assert ray.get(parent.options(**on(nodes, 1)).remote(on(nodes, 1)), timeout=60) == nodes.node_id(1)


def test_generators_cross_nodes(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})

    @ray.remote(num_returns="streaming")
    def count(n: int) -> Any:
        yield ray.get_runtime_context().get_node_id()
        yield from range(n)

    items = [ray.get(ref, timeout=60) for ref in count.options(**on(nodes, 1)).remote(5)]
    assert items == [nodes.node_id(1), 0, 1, 2, 3, 4]


@pytest.mark.parametrize("force", [False, True])
def test_a_task_on_another_node_can_be_cancelled(nodes: Nodes, tmp_path: Path, force: bool) -> None:
    nodes.add_node({"CPU": 1})
    started = tmp_path / "started"

    @ray.remote(max_retries=0)
    def long() -> None:
        started.touch()
        time.sleep(60)

    ref = long.options(**on(nodes, 1)).remote()
    wait_until(started.exists)
    ray.cancel(ref, force=force)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=60)
    assert counts([where.options(**on(nodes, 1)).remote()]) == {nodes.node_id(1): 1}, "its CPU is free again"


def test_a_worker_that_dies_on_another_node_is_retried_and_its_cause_is_told(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add_node({"CPU": 1})
    tried = tmp_path / "tried"

    @ray.remote
    def dies_once() -> str:
        if not tried.exists():
            tried.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return str(ray.get_runtime_context().get_node_id())

    there = on(nodes, 1)
    assert ray.get(dies_once.options(max_retries=1, **there).remote(), timeout=60) == nodes.node_id(1)
    tried.unlink()
    with pytest.raises(exceptions.WorkerCrashedError, match="SIGKILL"):
        ray.get(dies_once.options(max_retries=0, **there).remote(), timeout=60)


def test_tasks_of_a_node_that_dies_run_on_the_rest(nodes: Nodes, tmp_path: Path) -> None:
    number = nodes.add_node({"CPU": 4})
    dead = nodes.node_id(number)

    @ray.remote(max_retries=1)
    def work(i: int) -> tuple[int, str]:
        (tmp_path / f"{i}-{ray.get_runtime_context().get_node_id()}").touch()
        wait_until((tmp_path / "go").exists)
        return i, str(ray.get_runtime_context().get_node_id())

    refs = [work.remote(i) for i in range(12)]
    wait_until(lambda: any(tmp_path.glob(f"*-{dead}")))
    nodes.kill(number)
    (tmp_path / "go").touch()
    results = ray.get(refs, timeout=60)
    assert [i for i, _ in results] == list(range(12))
    assert counts([where.remote() for _ in range(3)]) == {nodes.node_id(0): 3}
    with pytest.raises(exceptions.TaskUnschedulableError):
        ray.get(
            where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(dead, soft=False)).remote(), timeout=20
        )


@pytest.mark.parametrize("address", ["unix:/nowhere", "127.0.0.2"])
def test_tasks_that_a_node_can_not_be_asked_for_run_on_the_rest(nodes: Nodes, address: str) -> None:
    nodes.add_node({"CPU": 4, "special": 1}, odd=f"host={address}")  # nobody listens there
    assert counts([where.remote(0.01) for _ in range(20)]) == {nodes.node_id(0): 20}
    only_there = where.options(resources={"special": 1}).remote()
    assert ray.wait([only_there], timeout=0.5) == ([], [only_there]), (
        "it waits for the node to be reachable, or to be dead"
    )
    ray.cancel(only_there)


def test_a_node_that_turns_this_process_away_is_named_once_and_leaves_the_tasks_to_the_rest(
    nodes: Nodes, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes.add_node({"CPU": 4}, odd="all jobs are over")
    assert counts([where.remote(0.01) for _ in range(20)]) == {nodes.node_id(0): 20}
    said = [""]

    def told() -> int:
        said[0] += capfd.readouterr().err
        return said[0].count("node 1 refused this process: job 01000000 is over")

    wait_until(told)  # perhaps only after the other node has done all of it
    assert told() == 1


@pytest.mark.parametrize("nodes", [{"num_cpus": 4}], indirect=True)
def test_a_task_goes_to_the_node_that_has_its_large_argument(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 4})

    @ray.remote
    def make() -> bytes:
        return bytes(2_000_000)

    @ray.remote
    def look(data: bytes) -> tuple[str, int]:
        return str(ray.get_runtime_context().get_node_id()), len(data)

    data = make.options(**on(nodes, 1)).remote()
    ray.wait([data], timeout=60, fetch_local=False)
    assert ray.get(look.remote(data), timeout=60) == (nodes.node_id(1), 2_000_000)
    assert ray.get(look.options(**on(nodes, 0)).remote(data), timeout=60) == (nodes.node_id(0), 2_000_000)
    assert len(ray.get(data, timeout=60)) == 2_000_000


def test_objects_owned_on_a_node_that_dies_are_lost_by_name(nodes: Nodes) -> None:
    number = nodes.add_node({"CPU": 1})

    @ray.remote
    def pause() -> None:
        signal.pause()

    @ray.remote
    def make() -> list[Any]:
        return [pause.remote()]

    (ref,) = ray.get(make.options(**on(nodes, number)).remote(), timeout=60)
    nodes.kill(number)
    with pytest.raises(exceptions.OwnerDiedError):
        ray.get(ref, timeout=60)
