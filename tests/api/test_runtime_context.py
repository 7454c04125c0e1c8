"""ray.get_runtime_context, ray.get_gpu_ids, and what there is of resources: nodes, cluster and available resources."""

from __future__ import annotations

import os

import pytest

import ray
from tests.wait import wait_until


def test_a_driver_has_a_job_and_no_task(ray_shared):
    context = ray.get_runtime_context()
    assert context.get_task_id() is None and context.get_actor_id() is None and context.get_task_name() is None
    assert context.get_job_id() == context.job_id.hex() and not context.job_id.is_nil()
    assert len(context.get_node_id()) == 32
    assert set(context.get()) == {"job_id", "node_id", "worker_id", "task_id", "actor_id", "namespace"}


def test_a_task_knows_what_it_is(ray_shared):
    @ray.remote(num_cpus=0.5)
    def about():
        c = ray.get_runtime_context()
        return c.get_job_id(), c.get_node_id(), c.get_task_id(), c.get_actor_id(), c.get_task_name(), c.get_worker_id()

    ref = about.remote()
    job, node, task, actor, name, worker = ray.get(ref)
    here = ray.get_runtime_context()
    assert (job, node) == (here.get_job_id(), here.get_node_id())
    assert task == ref.task_id().hex()
    assert actor is None and name == "about"
    assert worker != here.get_worker_id()


def test_a_task_knows_its_resources(ray_shared):
    @ray.remote(num_cpus=0.5)
    def held():
        return ray.get_runtime_context().get_assigned_resources()

    assert ray.get(held.remote()) == {"CPU": 0.5}
    assert ray.get(held.options(num_cpus=2).remote()) == {"CPU": 2}


def test_an_actor_knows_its_id(ray_shared):
    @ray.remote
    class Actor:
        def about(self):
            c = ray.get_runtime_context()
            return c.get_actor_id(), c.was_current_actor_reconstructed

    actor = Actor.remote()
    assert ray.get(actor.about.remote()) == (actor._actor_id.hex(), False)


def test_an_actor_knows_its_name(ray_shared):
    @ray.remote
    class Actor:
        def name(self):
            return ray.get_runtime_context().get_actor_name()

    assert ray.get(Actor.remote().name.remote()) == ""
    named = Actor.options(name="known").remote()
    assert ray.get(named.name.remote()) == "known"
    assert ray.get_runtime_context().get_actor_name() is None


def test_was_current_actor_reconstructed_is_for_actors(ray_shared):
    with pytest.raises(RuntimeError, match="not an actor"):
        _ = ray.get_runtime_context().was_current_actor_reconstructed


@pytest.mark.parametrize("ray_start", [{"namespace": "mine"}], indirect=True)
def test_the_namespace_is_the_driver_s(ray_start):
    @ray.remote
    def namespace():
        return ray.get_runtime_context().namespace

    assert ray.get_runtime_context().namespace == "mine"
    assert ray.get(namespace.remote()) == "mine"


# --- GPUs ------------------------------------------------------------------------------------------------------------


@ray.remote(num_gpus=1, num_cpus=0)
def gpus():
    return ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("ray_start", [{"num_gpus": 4}], indirect=True)
class TestGpus:
    def test_a_task_gets_ids_and_sees_only_those_devices(self, ray_start):
        for n in (1, 2, 4):
            ids, visible = ray.get(gpus.options(num_gpus=n).remote())
            assert len(ids) == n and set(ids) <= set(range(4))
            assert visible == ",".join(map(str, ids))

    def test_tasks_at_the_same_time_get_different_ids(self, ray_start, tmp_path):
        @ray.remote(num_gpus=1, num_cpus=0)
        def hold(i):
            (tmp_path / str(i)).touch()
            wait_until(lambda: len(list(tmp_path.iterdir())) == 4)
            return ray.get_gpu_ids()

        assert sorted(ray.get([hold.remote(i) for i in range(4)], timeout=60)) == [[0], [1], [2], [3]]

    def test_fractions_of_one_gpu_share_it(self, ray_start, tmp_path):
        @ray.remote(num_gpus=0.5, num_cpus=0)
        def hold(i):
            (tmp_path / str(i)).touch()
            wait_until(lambda: len(list(tmp_path.iterdir())) == 8)
            return ray.get_gpu_ids()[0]

        assert sorted(ray.get([hold.remote(i) for i in range(8)], timeout=60)) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_an_actor_keeps_its_gpus(self, ray_start):
        @ray.remote(num_gpus=2)
        class Actor:
            def __init__(self):
                self.at_start = ray.get_gpu_ids()

            def ids(self):
                return self.at_start, ray.get_gpu_ids()

        a, b = Actor.remote(), Actor.remote()
        (a0, a1), (b0, b1) = ray.get([a.ids.remote(), b.ids.remote()])
        assert a0 == a1 and b0 == b1 and sorted(a0 + b0) == [0, 1, 2, 3]

    def test_a_task_without_gpus_sees_none(self, ray_start):
        ids, visible = ray.get(gpus.options(num_gpus=0).remote())
        assert ids == [] and visible in (None, "")

    def test_a_driver_has_none(self, ray_start):
        assert ray.get_gpu_ids() == []


# --- the cluster -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ray_start", [{"num_cpus": 3, "num_gpus": 1, "resources": {"tape": 2.5}}], indirect=True)
def test_cluster_resources_are_what_init_was_told(ray_start):
    resources = ray.cluster_resources()
    assert (resources["CPU"], resources["GPU"], resources["tape"]) == (3, 1, 2.5)
    assert resources["memory"] > 0 and resources["object_store_memory"] > 0
    assert ray.available_resources() == resources


def test_available_resources_are_less_while_a_task_runs(ray_shared, tmp_path):
    @ray.remote(num_cpus=0.5)
    def hold():
        wait_until((tmp_path / "go").exists)

    ref = hold.remote()
    wait_until(lambda: ray.available_resources().get("CPU") == 1.5)
    (tmp_path / "go").touch()
    ray.get(ref)
    wait_until(lambda: ray.available_resources().get("CPU") == 2)


def test_nodes_lists_this_machine(ray_shared):
    (node,) = ray.nodes()
    assert node["Alive"] is True
    assert node["NodeID"] == ray.get_runtime_context().get_node_id()
    assert node["Resources"]["CPU"] == 2


def test_nodes_have_the_fields_that_programs_read(ray_shared):
    (node,) = ray.nodes()
    assert node["alive"] is node["Alive"] is True and node["DeathReasonMessage"] == ""
    assert node["NodeManagerPort"] == node["ObjectManagerPort"] == node["MetricsExportPort"] == 0
    assert os.path.exists(node["RayletSocketName"]) and os.path.exists(node["ObjectStoreSocketName"])
    assert {"NodeManagerHostname", "NodeManagerAddress", "NodeName", "Labels"} <= node.keys()
