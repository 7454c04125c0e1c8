"""Detached actors in a session that outlives its drivers: they stay, restart, are found, and end by ray.kill."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.api.test_sessions import Cluster
from tests.wait import wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="rd-", dir="/tmp")  # a short path: sockets must fit below it
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
        cluster.stop()
        assert cluster.is_empty()
    finally:
        shutil.rmtree(folder)


MAKE = """
    import os, time
    ray.init(address="auto", namespace="app")

    @ray.remote
    def double(x):
        return 2 * x

    @ray.remote
    class Counter:
        def __init__(self):
            self.n = 0

        def add(self, k=1):
            self.n += k
            return self.n

        def doubled(self):
            return ray.get(double.remote(self.n))

        def child(self):
            self.held = Counter.options(name="child").remote()
            return ray.get(self.held.add.remote())

        def pid(self):
            return os.getpid()
"""

FIND = """
    import os, time
    ray.init(address="auto", namespace="app")
"""


@pytest.fixture
def keeper(cluster: Cluster) -> Iterator[tuple[int, int]]:
    """Pids of a detached actor "keeper", which has counted to 5, and of a plain one, "mortal"; their driver is gone."""
    made = cluster.run(
        MAKE
        + """
    keeper = Counter.options(name="keeper", lifetime="detached", checkpoint_interval=1, max_restarts=-1).remote()
    mortal = Counter.options(name="mortal").remote()
    print(ray.get(keeper.pid.remote()), ray.get(mortal.pid.remote()), ray.get(keeper.add.remote(5)))
    """
    )
    keeper_pid, mortal_pid, n = map(int, made.split())
    assert n == 5
    yield keeper_pid, mortal_pid
    cluster.run(
        FIND
        + """
    for name in {"keeper"} & set(ray.util.list_named_actors()):
        ray.kill(ray.get_actor(name))
    """
    )


def test_a_detached_actor_lives_on_after_its_driver_and_all_else_of_the_job_ends(cluster, keeper):
    keeper_pid, mortal_pid = keeper
    found = cluster.run(
        FIND
        + """
    keeper = ray.get_actor("keeper")
    print(ray.get(keeper.pid.remote()), ray.get(keeper.add.remote()), ray.get(keeper.doubled.remote()))
    print(ray.get(keeper.child.remote()), ray.util.list_named_actors())
    """
    )
    assert found.splitlines() == [f"{keeper_pid} 6 12", "1 ['keeper', 'child']"]
    wait_until(lambda: not os.path.exists(f"/proc/{mortal_pid}"))


def test_it_restarts_without_its_driver_with_its_state(cluster, keeper):
    said = cluster.run(
        FIND
        + """
    keeper = ray.get_actor("keeper")
    pid = ray.get(keeper.pid.remote())
    os.kill(pid, 9)
    again = keeper.add.options(max_task_retries=-1)
    print(ray.get(again.remote()), ray.get(keeper.pid.remote()) != pid, ray.get(keeper.doubled.remote()))
    """
    )
    assert said.split() == ["6", "True", "12"]


def test_ray_kill_ends_it_with_what_it_owned_and_frees_the_names(cluster, keeper):
    said = cluster.run(
        FIND
        + """
    keeper = ray.get_actor("keeper")
    print(ray.get(keeper.child.remote()))
    ray.kill(keeper)
    while ray.util.list_named_actors(all_namespaces=True):
        time.sleep(0.01)
    """
    )
    assert said.split() == ["1"]
    said = cluster.run(
        MAKE
        + """
    fresh = Counter.options(name="keeper").remote()
    print(ray.get(fresh.add.remote()))
    """
    )
    assert said.split() == ["1"]


def test_a_detached_actor_may_hold_others_by_handles_alone(cluster):
    cluster.run(
        MAKE
        + """
    @ray.remote
    class Holder:
        def take(self, handles):
            self.actor = handles[0]

        def use(self):
            return ray.get(self.actor.add.remote())

    nameless = Counter.options(lifetime="detached").remote()
    holder = Holder.options(name="holder", lifetime="detached").remote()
    ray.get(holder.take.remote([nameless]))
    print(ray.get(nameless.add.remote(10)))
    """
    )
    said = cluster.run(
        FIND
        + """
    holder = ray.get_actor("holder")
    print(ray.get(holder.use.remote()))
    inner = ray.get(holder.__ray_call__.remote(lambda self: [self.actor]))[0]
    print(ray.get(inner.add.remote()))
    ray.kill(inner)
    ray.kill(holder)
    """
    )
    assert said.split() == ["11", "12"]


def test_a_detached_placement_group_outlives_its_driver_and_no_other_does(cluster):
    cluster.run(
        MAKE
        + """
    from ray.util import placement_group

    stays = placement_group([{"CPU": 0.1}], name="stays", lifetime="detached")
    assert stays.wait(60) and placement_group([{"CPU": 0.1}], name="goes").wait(60)
    """
    )
    said = cluster.run(
        FIND
        + """
    from ray.util import get_placement_group, placement_group_table, remove_placement_group

    stays = get_placement_group("stays")
    where = ray.remote(num_cpus=0.1)(lambda: ray.get_runtime_context().get_placement_group_id())
    inside = ray.get(where.options(placement_group=stays).remote(), timeout=60)
    print(placement_group_table(stays)["state"], inside == stays.id.hex())
    remove_placement_group(stays)
    for name in ("stays", "goes"):
        try:
            print(get_placement_group(name))
        except ValueError:
            print(name, "is gone")
    """
    )
    assert said.splitlines() == ["CREATED True", "stays is gone", "goes is gone"]
