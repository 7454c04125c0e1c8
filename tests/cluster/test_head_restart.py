"""The head's node process is killed, and started again on the same folder: the cluster goes on. PROCESS: pytest, a
driver on a node that has joined."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray
from ray._launch import session as sessions
from ray.cli import node_link
from ray.cluster_utils import Cluster, ClusterNode
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.wait import wait_until, within


class Restarting:
    """A head without CPUs and two more nodes; this process is a driver on the first of these."""

    def __init__(self, **settings: Any) -> None:
        args = {"num_cpus": 0, "_system_config": {"node_silence_s": 3.0, **settings}}
        self.cluster = Cluster(initialize_head=True, head_node_args=args, head_restarts=True)
        self.nodes = [self.cluster.add_node(num_cpus=2, resources={"body": 100}) for _ in range(2)]
        ray.init(address=self.nodes[0].session_dir, log_to_driver=False)
        self.cluster.wait_for_nodes()

    @property
    def head(self) -> ClusterNode:
        assert self.cluster.head_node is not None
        return self.cluster.head_node

    def kill_head(self) -> None:
        os.kill(self.head.pid, signal.SIGKILL)
        wait_until(lambda: not self.head.is_alive())

    def restart(self) -> float:
        """How long it took."""
        began = time.monotonic()
        self.cluster.restart_head()
        return time.monotonic() - began

    def on(self, index: int) -> dict[str, Any]:
        return {"scheduling_strategy": On(self.nodes[index].node_id, soft=False)}

    def check(self) -> None:
        """Everybody lives, each scheduler has a view of every other, and nothing met a bug."""
        ray.get(ray.remote(lambda: None).remote(), timeout=60)
        self.cluster.wait_for_nodes()
        numbers = {node.number for node in self.cluster.list_all_nodes()}
        for node in self.cluster.list_all_nodes():
            wait_until(lambda: set(self.stats(node)["neighbours"]) == numbers - {node.number})  # noqa: B023
            assert self.stats(node)["bugs"] == 0

    def stats(self, node: ClusterNode) -> dict[str, Any]:
        answer, pidfd = node_link.ask(sessions.open_existing(node.session_dir), "stats", timeout_s=60.0)
        os.close(pidfd)
        return dict(answer)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture
def restarting(engine: Any, request: pytest.FixtureRequest) -> Iterator[Restarting]:
    engine.watch()
    made = Restarting(**getattr(request, "param", {}))
    try:
        yield made
    finally:
        made.close()
    engine.stop()


def later(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs it beside the test; what it returns, or raises, is in the list."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, out


@ray.remote(num_cpus=0, resources={"body": 1})  # not on the head's node, which dies
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self) -> tuple[int, int]:
        self.n += 1
        return self.n, os.getpid()


def test_an_idle_cluster_goes_on_under_a_head_that_was_killed_and_started_again(restarting: Restarting) -> None:
    before = restarting.head
    restarting.kill_head()
    restarting.restart()
    assert restarting.head.number == 3 and restarting.head.node_id != before.node_id
    restarting.check()
    rows = {row["NodeID"]: row["Alive"] for row in ray.nodes()}
    assert rows[before.node_id] is False and sum(rows.values()) == 3


def test_what_a_head_that_may_be_resumed_has_written_is_flushed_to_its_disk(restarting: Restarting) -> None:
    wait_until(lambda: restarting.stats(restarting.head)["control_plane_syncs"] > 0)  # that it has these nodes
    joined = restarting.cluster.list_all_nodes()[-1]
    assert restarting.stats(joined)["control_plane_syncs"] == 0


def test_calls_between_living_nodes_go_on_while_there_is_no_head(restarting: Restarting) -> None:
    counter = Counter.options(**restarting.on(1)).remote()
    _, pid = ray.get(counter.add.remote(), timeout=60)

    @ray.remote
    def length(data: bytes) -> int:
        return len(data)

    big = ray.put(b"x" * 1_000_000)
    there = [length.options(**restarting.on(i)) for i in (0, 1)]
    assert ray.get([task.remote(big) for task in there], timeout=60) == [1_000_000] * 2
    restarting.kill_head()
    assert ray.get([counter.add.remote() for _ in range(100)], timeout=60)[-1] == (101, pid)
    assert ray.get([task.remote(ray.put(b"y" * n)) for n in (10, 2_000_000) for task in there], timeout=60)
    restarting.restart()
    assert ray.get(counter.add.remote(), timeout=60) == (102, pid)
    restarting.check()


def test_a_function_is_used_for_the_first_time_while_there_is_no_head(restarting: Restarting) -> None:
    """Its bytes come from the caller."""
    known = [ray.remote(num_cpus=0)(os.getpid).options(**restarting.on(i)) for i in (0, 1)]
    ray.get([task.remote() for task in known], timeout=60)  # each node knows this program
    restarting.kill_head()
    table = {n: n**2 for n in range(10_000)}

    @ray.remote(num_cpus=1)
    def inner(n: int) -> int:
        return table[n]

    @ray.remote(num_cpus=0)
    def outer(n: int) -> int:
        return int(ray.get(inner.remote(n)))

    assert ray.get([outer.options(**restarting.on(i)).remote(7 + i) for i in (0, 1)], timeout=30) == [49, 64]
    restarting.restart()
    restarting.check()


def test_what_is_asked_of_the_head_while_it_is_away_is_answered_when_it_is_back(restarting: Restarting) -> None:
    from ray._core.engine import current

    driver = current()
    assert driver.rpc("kv_put", b"k", b"before", timeout=60) is True
    keeper = Counter.options(name="keeper", lifetime="detached", **restarting.on(1)).remote()
    _, pid = ray.get(keeper.add.remote(), timeout=60)
    restarting.kill_head()

    def named_is_found() -> bool:
        young = Counter.options(name="young").remote()
        return ray.get_actor("young") is not None and young is not None

    asked = [
        later(lambda: driver.rpc("kv_get", b"k", timeout=30)),
        later(lambda: driver.rpc("kv_put", b"new", b"v", False, timeout=30)),
        later(lambda: ray.get(Counter.remote().add.remote(), timeout=30)[0]),
        later(lambda: ray.get(ray.get_actor("keeper").add.remote(), timeout=30)),
        later(named_is_found),
    ]
    restarting.restart()
    for thread, _ in asked:
        thread.join(60)
    assert [out for _, out in asked] == [[b"before"], [True], [1], [(2, pid)], [True]]
    restarting.check()


def test_tasks_that_run_while_the_head_dies_and_comes_back_run_once(restarting: Restarting, tmp_path: Any) -> None:
    runs = tmp_path / "runs"

    @ray.remote(num_cpus=0.5)
    def slow(i: int) -> int:
        with open(runs, "a") as file:
            file.write(f"{i}\n")
        while not os.path.exists(tmp_path / "go"):
            time.sleep(0.01)
        return i

    refs = [slow.options(**restarting.on(i % 2)).remote(i) for i in range(8)]
    wait_until(lambda: runs.exists() and len(runs.read_text().split()) == 8)
    restarting.kill_head()
    restarting.restart()
    (tmp_path / "go").touch()
    assert ray.get(refs, timeout=60) == list(range(8))
    assert sorted(map(int, runs.read_text().split())) == list(range(8))
    restarting.check()


@pytest.mark.parametrize("delay_s", [0.0, 0.01])
def test_actors_that_are_being_made_while_the_head_is_killed_are_made_once(
    restarting: Restarting, tmp_path: Any, delay_s: float
) -> None:
    @ray.remote(num_cpus=0, resources={"body": 1})
    class Made:
        def __init__(self, i: int) -> None:
            with open(tmp_path / f"{i}-{os.getpid()}", "x"):
                time.sleep(0.05)

        def pid(self) -> int:
            return os.getpid()

    ray.get(Counter.options(**restarting.on(0)).remote().add.remote(), timeout=60)
    made = [Made.options(name=f"named-{i}" if i % 2 else None).remote(i) for i in range(8)]
    time.sleep(delay_s)
    restarting.kill_head()
    time.sleep(0.1)
    restarting.restart()
    pids = ray.get([actor.pid.remote() for actor in made], timeout=30)
    assert len(set(pids)) == 8
    assert sorted(os.listdir(tmp_path)) == sorted(f"{i}-{pid}" for i, pid in enumerate(pids))
    assert sorted(ray.util.list_named_actors()) == [f"named-{i}" for i in (1, 3, 5, 7)]
    restarting.check()


@pytest.mark.parametrize("delay_s", [0.001, 0.01])
def test_groups_that_are_being_reserved_while_the_head_is_killed_get_their_place(
    restarting: Restarting, delay_s: float
) -> None:
    placement_group, remove = ray.util.placement_group, ray.util.remove_placement_group
    made = [placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD") for _ in range(2)]
    time.sleep(delay_s)
    restarting.kill_head()
    restarting.restart()
    for group in made:
        assert group.wait(60)
    third = placement_group([{"CPU": 1}])
    assert not third.wait(0.2), "both are whole, and hold all four CPUs"
    remove(made[0])
    assert third.wait(60)
    remove(made[1])
    remove(third)
    wait_until(lambda: ray.available_resources().get("CPU") == 4)
    restarting.check()


def test_a_group_that_was_there_is_used_while_the_head_is_away_and_afterwards(restarting: Restarting) -> None:
    group = ray.util.placement_group([{"CPU": 1, "body": 1}] * 2, strategy="STRICT_SPREAD")
    assert group.wait(60)
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, 0)
    inside = Counter.options(num_cpus=1, scheduling_strategy=strategy).remote()
    assert ray.get(inside.add.remote(), timeout=60)[0] == 1
    restarting.kill_head()
    assert ray.get(inside.add.remote(), timeout=60)[0] == 2
    restarting.restart()
    assert group.wait(60)
    ray.util.remove_placement_group(group)

    def ended() -> bool:
        try:
            return not ray.get(inside.add.remote(), timeout=60)
        except ray.exceptions.ActorDiedError:
            return True

    wait_until(ended)
    wait_until(lambda: ray.available_resources().get("CPU") == 4)
    restarting.check()


def test_a_node_that_dies_while_the_head_is_away_is_dead_when_it_is_back(restarting: Restarting) -> None:
    mover = Counter.options(max_restarts=1, max_task_retries=-1, **restarting.on(1)).remote()
    free = Counter.options(max_restarts=1, max_task_retries=-1, name="free").remote()
    assert ray.get([mover.add.remote(), free.add.remote()], timeout=60)
    restarting.kill_head()
    gone = restarting.nodes.pop()
    restarting.cluster.remove_node(gone, allow_graceful=False)
    took = restarting.restart()
    assert took > 2.5, "it was waited for, as long as silence is borne"
    restarting.check()
    assert gone.node_id in [row["NodeID"] for row in ray.nodes() if not row["Alive"]]
    assert ray.get(free.add.remote(), timeout=60)
    with pytest.raises(ray.exceptions.ActorUnschedulableError):
        ray.get(mover.add.remote(), timeout=60)


def test_a_worker_and_a_driver_that_end_while_the_head_is_away_are_told_of_with_their_cause(
    restarting: Restarting,
) -> None:
    mortal = Counter.options(**restarting.on(1)).remote()
    _, pid = ray.get(mortal.add.remote(), timeout=60)
    restarting.kill_head()
    os.kill(pid, signal.SIGKILL)
    restarting.restart()
    with pytest.raises(ray.exceptions.ActorDiedError, match="SIGKILL"):
        ray.get(mortal.add.remote(), timeout=60)
    restarting.check()


def test_a_head_that_is_killed_again_and_again_loses_nothing(restarting: Restarting) -> None:
    counter = Counter.options(name="keeper", lifetime="detached", **restarting.on(1)).remote()
    for time_of in range(3):
        assert ray.get(counter.add.remote(), timeout=60)[0] == time_of + 1
        restarting.kill_head()
        restarting.restart()
        assert restarting.head.number == 3 + time_of
    fresh = Counter.remote()
    assert ray.get(fresh.add.remote(), timeout=60)[0] == 1
    assert ray.util.list_named_actors() == ["keeper"]
    restarting.check()


def test_redis_killed_together_with_the_head_has_forgotten_nothing(restarting: Restarting) -> None:
    from ray._core.engine import current

    driver = current()
    for i in range(100):
        driver.rpc("kv_put", b"%d" % i, b"value", timeout=60)
    Counter.options(name="keeper", lifetime="detached", **restarting.on(1)).remote()
    for pid in restarting.stats(restarting.head)["pids"]["redis"]:
        os.kill(pid, signal.SIGKILL)
    restarting.kill_head()
    restarting.restart()
    assert len(driver.rpc("kv_keys", b"", timeout=60)) == 100
    assert ray.get(ray.get_actor("keeper").add.remote(), timeout=60)[0] == 1
    restarting.check()


FORGOTTEN_JOB = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
never = ray.remote(lambda: __import__("time").sleep(3600)).remote()
print(ray.get_runtime_context().get_job_id(), flush=True)
try: ray.get(never)
except ray.exceptions.LocalRayletDiedError as error: print(error, flush=True)
"""


def test_a_job_that_the_heads_disk_has_lost_ends_with_a_reason_and_its_number_is_not_used_again(
    restarting: Restarting, tmp_path: Any
) -> None:
    """As after a power cut: of what was written last the disk has nothing, and here there is a copy of before."""
    counter = Counter.remote()
    ray.get(counter.add.remote(), timeout=60)
    redis = Path(restarting.head.session_dir, "redis")
    wait_until(lambda: restarting.stats(restarting.head)["control_plane_syncs"] > 0)
    shutil.copytree(redis, tmp_path / "redis")
    command = [sys.executable, "-c", FORGOTTEN_JOB, restarting.nodes[1].session_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forgotten:
        try:
            assert forgotten.stdout is not None
            assert forgotten.stdout.readline() == "02000000\n"
            restarting.kill_head()
            shutil.rmtree(redis)
            shutil.copytree(tmp_path / "redis", redis)
            restarting.restart()
            said, _ = forgotten.communicate(timeout=60)
        finally:
            forgotten.kill()
    assert "the cluster's head has no record of this job" in said
    program = "import sys, ray; ray.init(address=sys.argv[1]); print(ray.get_runtime_context().get_job_id())"
    command = [sys.executable, "-c", program, restarting.nodes[1].session_dir]
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout == "03000000\n"
    assert ray.get(counter.add.remote(), timeout=60)[0] == 2
    restarting.check()


def test_a_group_that_the_heads_disk_has_lost_is_removed_for_all_who_wait_for_its_bundles(
    restarting: Restarting, tmp_path: Any
) -> None:
    redis = Path(restarting.head.session_dir, "redis")
    wait_until(lambda: restarting.stats(restarting.head)["control_plane_syncs"] > 0)
    shutil.copytree(redis, tmp_path / "redis")
    group = ray.util.placement_group([{"CPU": 1}])
    ray.get(group.ready(), timeout=60)
    inside = ray.remote(time.sleep).options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
    ray.get(inside.remote(0), timeout=60)
    running, waiting = inside.remote(3600), inside.remote(0)
    restarting.kill_head()
    shutil.rmtree(redis)
    shutil.copytree(tmp_path / "redis", redis)
    restarting.restart()
    for ref in (running, waiting, inside.remote(0)):
        with pytest.raises(ray.exceptions.TaskPlacementGroupRemoved, match="no record of it"):
            ray.get(ref, timeout=60)
    restarting.check()


def test_nobody_hears_that_an_actor_has_left_before_redis_has_written_it(restarting: Restarting) -> None:
    @ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=On(restarting.head.node_id, soft=True))
    class Leaver:
        def pid(self) -> int:
            return os.getpid()

        def leave(self) -> None:
            ray.actor.exit_actor()

    leaver = Leaver.remote()
    pid = ray.get(leaver.pid.remote(), timeout=60)
    for redis in restarting.stats(restarting.head)["pids"]["redis"]:
        os.kill(redis, signal.SIGSTOP)  # it ends with the head
    left = leaver.leave.remote()
    assert not ray.wait([left], timeout=0.3)[0]
    restarting.kill_head()
    restarting.restart()
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        ray.get(left, timeout=60)
    assert "exit_actor" not in str(caught.value)

    def back() -> bool:
        try:
            return ray.get(leaver.pid.remote(), timeout=60) not in (0, pid)
        except ray.exceptions.ActorUnavailableError:
            return False

    wait_until(back)
    restarting.check()


@pytest.mark.parametrize("restarting", [{"head_restart_wait_s": 1.0}], indirect=True)
def test_nodes_end_if_the_head_does_not_come_back_in_time(restarting: Restarting) -> None:
    began = time.monotonic()
    with within(5):
        restarting.kill_head()
        wait_until(lambda: not any(node.is_alive() for node in restarting.nodes))
    assert time.monotonic() - began > 0.9
    with pytest.raises(ray.exceptions.LocalRayletDiedError):
        ray.get(ray.remote(lambda: 1).remote(), timeout=60)


@pytest.mark.parametrize("restarting", [{"node_silence_s": 1.5, "heartbeat_s": 0.3}], indirect=True)
def test_a_node_that_a_living_head_has_given_up_is_refused_and_ends_itself(restarting: Restarting) -> None:
    silent = restarting.nodes.pop()
    with open(f"{silent.session_dir}/logs/node.err") as log:
        os.kill(silent.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: [row["NodeID"] for row in ray.nodes() if not row["Alive"]] == [silent.node_id])
        finally:
            os.kill(silent.pid, signal.SIGCONT)
        wait_until(lambda: not silent.is_alive())
        assert (
            "would not have this node: it was declared dead meanwhile, and its work was given to others" in log.read()
        )
    restarting.cluster.remove_node(silent, allow_graceful=False)
    restarting.check()
