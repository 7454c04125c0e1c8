"""ray.util.dask: dask graphs and collections on ray, against dask's own synchronous scheduler."""

from __future__ import annotations

import operator
import os

import dask
import numpy as np
import pytest

import ray
from ray.util.dask import (
    RayDaskCallback,
    disable_dask_on_ray,
    enable_dask_on_ray,
    ray_dask_get,
    ray_dask_get_sync,
)

GETS = [ray_dask_get, ray_dask_get_sync]


def add(x, y):
    return x + y


def pid():
    return os.getpid()


def fail():
    raise ValueError("three")


@pytest.mark.parametrize("get", GETS)
def test_a_graph_written_by_hand(ray_shared, get):
    graph = {
        "one": 1,
        "two": (add, "one", 1),
        "alias": "two",
        ("tuple", 0): (add, "alias", (add, 10, "one")),
        "list": (sum, ["one", "two", ("tuple", 0)]),
        "data": [1, 2, 3],
    }
    assert get(graph, "two") == 2
    assert get(graph, ["one", [("tuple", 0), "list"], "data", "alias"]) == [1, [13, 16], [1, 2, 3], 2]
    with pytest.raises(KeyError, match="nothing"):
        get(graph, "nothing")


@pytest.mark.parametrize("get", GETS)
def test_delayed(ray_shared, get):
    numbers = [dask.delayed(operator.mul)(i, 2) for i in range(20)]
    total = dask.delayed(sum)(numbers)
    assert total.compute(scheduler=get) == 380
    assert dask.compute(*numbers, total, scheduler=get) == (*range(0, 40, 2), 380)


def test_tasks_run_in_workers(ray_shared):
    assert dask.delayed(pid)().compute(scheduler=ray_dask_get) != os.getpid()


def test_arrays_pass_from_task_to_task_through_the_store(ray_shared):
    parts = [dask.delayed(np.full)(100_000, float(i)) for i in range(5)]
    total = dask.delayed(lambda arrays: float(sum(a.sum() for a in arrays)))(parts)
    assert total.compute(scheduler=ray_dask_get) == 1_000_000.0


def test_bags_and_text(ray_shared):
    bag = pytest.importorskip("dask.bag")  # its own dependencies are none of ours
    words = bag.from_sequence(["a b", "b c", "c b"], npartitions=3).map(str.split).flatten()
    expected = words.frequencies().compute(scheduler="sync")
    assert sorted(words.frequencies().compute(scheduler=ray_dask_get)) == sorted(expected)


def test_enable_and_disable(ray_shared):
    with enable_dask_on_ray():
        assert dask.config.get("scheduler") is ray_dask_get
        assert dask.delayed(pid)().compute() != os.getpid()
    enable_dask_on_ray()
    assert dask.delayed(pid)().compute() != os.getpid()
    disable_dask_on_ray()
    assert dask.delayed(pid)().compute(scheduler="sync") == os.getpid()
    assert dask.config.get("scheduler") is None


@pytest.mark.parametrize("get", GETS)
def test_an_error_is_the_one_that_was_raised(ray_shared, get):
    with pytest.raises(ValueError, match="three") as caught:
        dask.delayed(add)(dask.delayed(fail)(), 1).compute(scheduler=get)
    assert type(caught.value) is ValueError
    assert "in fail" in str(caught.value.__cause__)


def test_persist_keeps_the_results_in_the_store(ray_shared):
    (kept,) = dask.persist(dask.delayed(np.arange)(50_000), scheduler=ray_dask_get, ray_persist=True)
    (ref,) = kept.dask.values()
    assert isinstance(getattr(ref, "value", ref), ray.ObjectRef)
    total = dask.delayed(np.sum)(kept)
    assert total.compute(scheduler=ray_dask_get) == 50_000 * 49_999 // 2
    assert kept.compute(scheduler=ray_dask_get).shape == (50_000,)


def held():
    return ray.get_runtime_context().get_assigned_resources()["CPU"]


def test_options_for_all_tasks_and_for_some(ray_shared):
    assert dask.delayed(held)().compute(scheduler=ray_dask_get, ray_remote_args={"num_cpus": 0.5}) == 0.5
    with dask.annotate(ray_remote_args={"num_cpus": 2}):
        some = dask.delayed(held)()
    other = dask.delayed(held)()
    found = dask.delayed(list)([some, other]).compute(scheduler=ray_dask_get, optimize_graph=False)
    assert found == [2, 1]


def test_callbacks_see_each_step(ray_shared, tmp_path):
    class Log(RayDaskCallback):
        def __init__(self):
            self.seen = []

        def _ray_presubmit(self, task, key, deps):
            self.seen.append(("presubmit", key))
            return 100 if key == "given" else None

        def _ray_postsubmit(self, task, key, deps, object_ref):
            self.seen.append(("postsubmit", key, ray.get(object_ref)))

        def _ray_pretask(self, key, object_refs):
            return f"before {key} of {object_refs}"

        def _ray_posttask(self, key, result, pre_state):
            (tmp_path / key).write_text(f"{pre_state}: {result}")

        def _ray_postsubmit_all(self, object_refs, dsk):
            self.seen.append(("all", len(object_refs)))

        def _ray_finish(self, result):
            self.seen.append(("finish", result))

    log, graph = Log(), {"given": (add, 1, 1), "sum": (add, "given", 1)}
    with log:
        assert ray_dask_get(graph, "sum") == 101
    submitted = [("presubmit", "given"), ("presubmit", "sum"), ("postsubmit", "sum", 101)]
    assert log.seen == [*submitted, ("all", 1), ("finish", 101)]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"sum": "before sum of (100,): 101"}
    assert ray_dask_get(graph, "sum") == 3  # no longer active
    finished = []
    assert ray_dask_get(graph, "sum", ray_callbacks=[RayDaskCallback(ray_finish=finished.append)]) == 3
    assert finished == [3]
    with pytest.raises(TypeError, match="unknown argument 'posttask'"):
        RayDaskCallback(posttask=print)
    with pytest.raises(TypeError, match="expected instances"):
        ray_dask_get(graph, "sum", ray_callbacks=[print])
