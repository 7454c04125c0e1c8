"""A cluster of several nodes through the public API: joining, actors, groups, drivers on any node, deaths."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ray
from ray import exceptions
from ray._launch import node_process
from ray._transport import connect_tcp
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from tests.wait import wait_until, within

from .nodes import Nodes


def here() -> str:
    return str(ray.get_runtime_context().get_node_id())


@ray.remote
def where() -> str:
    return here()


@ray.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def add(self) -> int:
        self.n += 1
        return self.n

    def where(self) -> str:
        return here()

    def pid(self) -> int:
        return os.getpid()


def refuses(actor: Any) -> bool:
    try:
        ray.get(actor.add.remote(), timeout=60)
    except exceptions.RayActorError:
        return True
    return False


def on(nodes: Nodes, number: int, soft: bool = False) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(nodes.node_id(number), soft=soft)}


def run_driver(address: str, program: str, code: int = 0, options: str = "") -> str:
    """Runs a program in a process of its own; returns what it wrote."""
    text = f"import ray\nray.init(address={address!r}, {options}logging_level='error')\n" + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def test_nodes_and_resources_of_the_whole_cluster_are_seen(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 2, "special": 3}, labels={"zone": "far"}, _node_name="second")
    rows = {row["NodeID"]: row for row in ray.nodes()}
    assert set(rows) == {nodes.node_id(0), nodes.node_id(1)}
    row = rows[nodes.node_id(1)]
    assert row["Alive"] and row["Resources"]["special"] == 3 and row["Labels"]["zone"] == "far"
    assert row["NodeName"] == "second"
    assert ray.cluster_resources()["CPU"] == 3 and ray.cluster_resources()["special"] == 3

    holder = Counter.options(num_cpus=2, **on(nodes, 1)).remote()
    ray.get(holder.add.remote())
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 1)  # that node's report is on its way


def test_a_node_that_is_removed_is_dead_for_everybody(nodes: Nodes) -> None:
    number = nodes.add_node({"CPU": 2})
    nodes.kill(number)
    nodes.cluster.wait_for_nodes(60)
    (dead,) = [row for row in ray.nodes() if not row["Alive"]]
    assert dead["NodeID"] == nodes.node_id(number) and dead["DeathReasonMessage"]
    assert ray.cluster_resources()["CPU"] == 1
    again = nodes.add_node({"CPU": 2})
    assert again == 2, "a number is never given again"
    assert ray.get(where.options(**on(nodes, again)).remote(), timeout=60) == nodes.node_id(again)


def test_actors_live_on_any_node_and_call_one_another(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    near, far = Counter.options(**on(nodes, 0)).remote(), Counter.options(**on(nodes, 1)).remote(10)
    assert ray.get([near.where.remote(), far.where.remote()], timeout=60) == [nodes.node_id(0), nodes.node_id(1)]
    assert ray.get([far.add.remote() for _ in range(100)], timeout=60) == list(range(11, 111))

    @ray.remote(num_cpus=0)
    def through(counter: Any) -> int:
        return int(ray.get(counter.add.remote()))

    assert ray.get(through.options(**on(nodes, 1)).remote(near), timeout=60) == 1
    assert ray.get(through.options(**on(nodes, 0)).remote(far), timeout=60) == 111
    ray.kill(far)
    with pytest.raises(exceptions.RayActorError):
        ray.get(far.add.remote(), timeout=60)


def test_more_actors_than_one_node_holds_are_spread_over_those_there_are(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 2})
    actors = [Counter.options(num_cpus=1).remote() for _ in range(3)]
    found = ray.get([actor.where.remote() for actor in actors], timeout=60)
    assert sorted(found) == sorted([nodes.node_id(0), nodes.node_id(1), nodes.node_id(1)])


def test_an_actor_restarts_on_another_node_when_its_own_dies(nodes: Nodes) -> None:
    number = nodes.add_node({"CPU": 1})
    actor = Counter.options(max_restarts=1, max_task_retries=-1, **on(nodes, number, soft=True)).remote()
    assert ray.get(actor.where.remote(), timeout=60) == nodes.node_id(number)
    nodes.kill(number)
    assert ray.get(actor.where.remote(), timeout=60) == nodes.node_id(0)
    assert ray.get(actor.add.remote(), timeout=60) == 1


def test_an_actor_whose_worker_is_killed_restarts_and_the_caller_on_another_node_hears_of_it(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    actor = Counter.options(max_restarts=1, max_task_retries=-1, **on(nodes, 1)).remote()
    os.kill(ray.get(actor.pid.remote(), timeout=60), signal.SIGKILL)
    assert ray.get(actor.add.remote(), timeout=60) == 1
    os.kill(ray.get(actor.pid.remote(), timeout=60), signal.SIGKILL)
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.add.remote(), timeout=60)


def test_an_actor_dies_with_its_owner_on_another_node(nodes: Nodes) -> None:
    number = nodes.add_node({"CPU": 1})

    @ray.remote
    class Parent:
        def make(self, options: dict[str, Any]) -> Any:
            self.child = Counter.options(**options).remote()
            return ray.get(self.child.pid.remote())

    parent = Parent.options(**on(nodes, number)).remote()
    pid = ray.get(parent.make.remote(on(nodes, 0)), timeout=60)
    nodes.kill(number)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_the_end_of_a_group_takes_no_worker_of_another_node_that_had_nothing_left_to_do_in_it(nodes: Nodes) -> None:
    """It had been granted just then, or given back on another way than the group's end came: chaos, seed 50037."""
    nodes.add_node({"CPU": 1})

    @ray.remote
    def keep() -> Any:
        return os.getpid(), [ray.put("kept")]

    @ray.remote
    def pid() -> int:
        return os.getpid()

    there = NodeAffinitySchedulingStrategy(nodes.node_id(1), soft=False)
    owner, refs = ray.get(keep.options(scheduling_strategy=there).remote(), timeout=60)
    group = placement_group([{"CPU": 1}], bundle_label_selector=[{"ray.io/node-id": nodes.node_id(1)}])
    assert group.wait(60)
    inside = pid.options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
    assert ray.get(inside.remote(), timeout=60) == owner
    remove_placement_group(group)
    wait_until(lambda: nodes.stats(1)["scheduler"]["bundles"] == 0)
    assert ray.get(refs[0], timeout=60) == "kept"


@pytest.mark.parametrize("strategy", ["STRICT_SPREAD", "SPREAD", "STRICT_PACK", "PACK"])
def test_placement_groups_over_nodes(nodes: Nodes, strategy: str) -> None:
    nodes.add_node({"CPU": 2})
    count = 2
    group = placement_group([{"CPU": 1}] * count, strategy=strategy)
    assert group.wait(60)
    found = ray.get(
        [
            where.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
            ).remote()
            for i in range(count)
        ],
        timeout=60,
    )
    assert len(set(found)) == (2 if "SPREAD" in strategy else 1)
    actor = Counter.options(
        num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1)
    ).remote()
    assert ray.get(actor.where.remote(), timeout=60) == found[1]
    remove_placement_group(group)  # the node of a bundle hears of it a moment later
    wait_until(lambda: refuses(actor))
    wait_until(lambda: ray.available_resources().get("CPU") == 3)


def test_a_group_moves_when_the_node_of_a_bundle_dies(nodes: Nodes) -> None:
    number = nodes.add_node({"CPU": 1})
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    assert group.wait(60)
    nodes.kill(number)
    wait_until(lambda: ray.util.placement_group_table(group)["state"] == "RESCHEDULING")
    other = nodes.add_node({"CPU": 1})
    assert group.wait(60)
    in_group = PlacementGroupSchedulingStrategy(group)
    found = {ray.get(where.options(scheduling_strategy=in_group).remote(), timeout=60) for _ in range(4)}
    assert found <= {nodes.node_id(0), nodes.node_id(other)}


def test_a_driver_on_a_node_that_has_joined_uses_the_whole_cluster(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    out = run_driver(
        nodes.folder(1),
        """
        import numpy as np, os
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
        ids = [row["NodeID"] for row in ray.nodes()]
        @ray.remote
        def where(): return ray.get_runtime_context().get_node_id()
        @ray.remote
        class Named:
            def total(self, a): return int(a.sum())
        found = [ray.get(where.options(scheduling_strategy=On(i, soft=False)).remote()) for i in ids]
        assert found == ids, found
        big = ray.put(np.ones(500_000, dtype=np.int64))
        for i in ids:
            actor = Named.options(scheduling_strategy=On(i, soft=False), num_cpus=0).remote()
            assert ray.get(actor.total.remote(big)) == 500_000
        Named.options(name="kept", namespace="ns", lifetime="detached", num_cpus=0).remote()
        print("own node", ray.get_runtime_context().get_node_id(), ray.cluster_resources()["CPU"])
        """,
    )
    assert f"own node {nodes.node_id(1)} 2.0" in out
    kept = ray.get_actor("kept", namespace="ns")
    import numpy as np

    assert ray.get(kept.total.remote(np.ones(3, dtype=np.int64)), timeout=60) == 3
    ray.kill(kept)


def test_a_program_that_is_killed_on_its_node_leaves_nothing_on_the_others(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    out = run_driver(
        nodes.folder(1),
        f"""
        import os, signal, time
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
        @ray.remote(num_cpus=0)
        class Held:
            def pid(self): return os.getpid()
            def sleep(self): time.sleep(600)
        held = Held.options(scheduling_strategy=On({nodes.node_id(0)!r}, soft=False)).remote()
        print("pid", ray.get(held.pid.remote()), flush=True)
        held.sleep.remote()
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        code=-signal.SIGKILL,
    )
    found = re.search(r"pid (\d+)", out)
    assert found is not None
    wait_until(lambda: not os.path.exists(f"/proc/{found[1]}"))
    wait_until(lambda: ray.available_resources().get("CPU") == 2)


def test_output_of_workers_on_other_nodes_reaches_the_driver(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1, "far": 1})
    program = """
        @ray.remote(resources={"far": 1})
        def say():
            print("said far away")
        ray.get(say.remote())
    """
    for folder in (nodes.cluster.address, nodes.folder(1)):
        assert "said far away" in run_driver(folder, program)
    assert "ip=127.0.0.1) said far away" in run_driver(nodes.cluster.address, program)


def test_a_node_of_another_version_or_with_another_clock_is_refused(nodes: Nodes) -> None:
    for odd, said in (("version=0.1", "install the same"), ("time_s=4000", "set the clocks")):
        with pytest.raises(RuntimeError, match=said):
            nodes.add_node({"CPU": 1}, odd=odd)
    assert len(ray.nodes()) == 1


def test_nobody_ends_a_node_by_saying_that_he_is_its_new_connection(nodes: Nodes) -> None:
    """Once, whoever named its number in `rejoin` had it declared dead before he was looked at."""
    number = nodes.add_node({"CPU": 1})
    host, _, port = nodes.cluster.address.rpartition(":")
    tag = os.urandom(16)

    async def speak_for_it() -> None:
        peer = await connect_tcp(host, int(port), nodes.cluster._token, tag)
        said = {"number": number, "cluster_id": os.path.basename(nodes.folder(0)), "node_id": tag}
        with pytest.raises(ValueError):
            await peer.rpc("rejoin", said, timeout_s=60)
        peer.event("heartbeat")  # of a node that is none of the cluster's: the connection ends
        closed = asyncio.get_running_loop().create_future()
        peer.on_close = closed.set_result
        await asyncio.wait_for(closed, 60)

    asyncio.run(speak_for_it())
    assert ray.get(where.options(**on(nodes, number)).remote(), timeout=60) == nodes.node_id(number)
    assert all(row["Alive"] for row in ray.nodes())


def test_cluster_says_what_is_wrong_with_its_arguments() -> None:
    with pytest.raises(ValueError, match="initialize_head=True"):
        Cluster(connect=True)
    cluster = Cluster()
    with pytest.raises(RuntimeError, match="no node yet"):
        _ = cluster.address
    with pytest.raises(TypeError, match=r"unknown argument 'num_cpu'.*num_cpus"):
        cluster.add_node(num_cpu=1)
    cluster.shutdown()


def test_the_end_of_the_head_is_the_end_of_all_nodes(engine: Any) -> None:
    engine.watch()
    cluster = Cluster(initialize_head=True)
    node = cluster.add_node()
    assert cluster.head_node is not None
    with within(5):
        os.kill(cluster.head_node.pid, signal.SIGKILL)
        wait_until(lambda: not node.is_alive())
    cluster.shutdown()
    engine.stop()


def test_working_dirs_and_hooks_of_a_program_are_there_on_every_node(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add_node({"CPU": 1})
    (tmp_path / "data.txt").write_text("brought along")
    (tmp_path / "helper.py").write_text("ANSWER = 42\n")
    (tmp_path / "big.bin").write_bytes(os.urandom(3_000_000))
    program = f"""
        import os
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
        @ray.remote(num_cpus=0)
        class Reads:
            def read(self):
                import helper
                return open("data.txt").read(), helper.ANSWER, os.path.getsize("big.bin"), os.environ.get("HOOKED")
        def hook(): os.environ["HOOKED"] = "yes"
        env = {{"working_dir": {str(tmp_path)!r}, "worker_process_setup_hook": hook}}
        for row in ray.nodes():
            actor = Reads.options(scheduling_strategy=On(row["NodeID"], soft=False), runtime_env=env).remote()
            print(*ray.get(actor.read.remote(), timeout=30))
            task = ray.remote(lambda: open("data.txt").read()).options(
                scheduling_strategy=On(row["NodeID"], soft=False), runtime_env={{"working_dir": {str(tmp_path)!r}}}
            )
            print(ray.get(task.remote(), timeout=30))
    """
    for folder in (nodes.folder(0), nodes.folder(1)):  # the packages lie there, and are fetched by the other
        lines = run_driver(folder, program).splitlines()
        assert lines == ["brought along 42 3000000 yes", "brought along"] * 2


def test_a_job_environment_applies_on_every_node(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    program = """
        import os
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
        @ray.remote
        def value(): return os.environ.get("OF_THE_JOB")
        there = [On(row["NodeID"], soft=False) for row in ray.nodes()]
        print([ray.get(value.options(scheduling_strategy=strategy).remote()) for strategy in there])
    """
    options = "runtime_env={'env_vars': {'OF_THE_JOB': 'set'}}, "
    for folder in (nodes.folder(0), nodes.folder(1)):
        assert run_driver(folder, program, options=options) == "['set', 'set']\n"


@pytest.mark.parametrize("driver_at", [0, 1])
def test_what_workers_of_another_node_print_to_the_last_reaches_a_driver_that_ends(
    nodes: Nodes, driver_at: int
) -> None:
    nodes.add_node({"CPU": 1})
    program = f"""
        import atexit
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
        @ray.remote
        def say(n):
            atexit.register(print, "goodbye")
            for i in range(n):
                print(f"line {{i:06}}")
        ray.get(say.options(scheduling_strategy=On({nodes.node_id(1 - driver_at)!r}, soft=False)).remote(5000))
    """
    printed = run_driver(nodes.folder(driver_at), program)
    assert re.findall(r"line (\d{6})", printed) == [f"{i:06}" for i in range(5000)]
    assert printed.count("goodbye") == 1


@pytest.mark.parametrize("driver_at", [0, 1])
def test_a_driver_that_does_not_read_for_a_while_loses_no_line_of_another_node(nodes: Nodes, driver_at: int) -> None:
    nodes.add_node({"CPU": 1})
    there = nodes.node_id(1 - driver_at)
    code = f"""
import ray, sys
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address={nodes.folder(driver_at)!r}, logging_level="error")
@ray.remote
def say(n):
    for i in range(n):
        print(f"line {{i:06}}" + 90 * "-")
say = say.options(scheduling_strategy=On({there!r}, soft=False))
ray.get(say.remote(100_000))
ray.get(say.remote(1))
sys.stdin.read()  # at its end a driver waits for no terminal
"""
    program = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdin is not None and program.stdout is not None

    def waiting() -> int:
        return int.from_bytes(fcntl.ioctl(program.stdout, termios.FIONREAD, bytes(4)), sys.byteorder)

    wait_until(lambda: waiting() > 40_000)  # of 65,536, but pages may be in it that are not full
    time.sleep(0.5)  # its pipe is full, and soon what waits for it is, too
    lines: list[str] = []
    with program.stdout:
        while len(lines) < 100_001:
            text = program.stdout.readline()
            assert text, f"it ended after {len(lines)} lines"
            lines += re.findall(r"line (\d{6})-", text)
        program.stdin.close()
    assert program.wait(60) == 0
    assert lines == [f"{i:06}" for i in range(100_000)] + ["000000"]


def test_the_state_api_says_on_which_node_everything_is(nodes: Nodes) -> None:
    from ray.util import state

    nodes.add_node({"CPU": 1}, labels={"zone": "b"})
    actor = Counter.options(**on(nodes, 1)).remote()
    pid = ray.get(actor.pid.remote(), timeout=60)
    assert ray.get(where.options(**on(nodes, 0)).remote(), timeout=60) == nodes.node_id(0)
    heads = {row["node_id"]: row["is_head_node"] for row in state.list_nodes()}
    assert heads == {nodes.node_id(0): True, nodes.node_id(1): False}
    workers = {row["pid"]: row["node_id"] for row in state.list_workers()}
    assert workers[pid] == nodes.node_id(1) and workers[os.getpid()] == nodes.node_id(0)

    def finished() -> dict[str, str]:
        return {row["name"]: row["node_id"] for row in state.list_tasks(filters=[("state", "=", "FINISHED")])}

    wait_until(lambda: {"Counter.pid", "where"} <= finished().keys())
    tasks = finished()
    assert tasks["Counter.pid"] == nodes.node_id(1) and tasks["where"] == nodes.node_id(0)
    names = {row["args"]["name"] for row in ray.timeline() if row["name"] == "process_name"}
    assert names == {f"node 127.0.0.1 {nodes.node_id(number)[:8]}" for number in (0, 1)}


def test_a_node_that_dies_while_it_joins_holds_nobody_up(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.add_node({"CPU": 1})
    busy = nodes.by_number[1].pid
    starting: list[Any] = []
    start_node = node_process.start_node

    def remembered(*args: Any) -> Any:
        starting.append(start_node(*args))
        return starting[-1]

    monkeypatch.setattr(node_process, "start_node", remembered)
    os.kill(busy, signal.SIGSTOP)  # it says to nobody that it knows the newcomer
    try:
        with ThreadPoolExecutor(1) as thread:
            joining = thread.submit(nodes.cluster.add_node)
            wait_until(lambda: nodes.stats(0)["joining"] == 1)
            os.kill(starting[0].pid, signal.SIGKILL)
            with pytest.raises(RuntimeError):
                joining.result(60)
            wait_until(lambda: nodes.stats(0)["joining"] == 0)
    finally:
        os.kill(busy, signal.SIGCONT)
    number = nodes.add_node({"CPU": 1})
    assert ray.get(where.options(**on(nodes, number)).remote(), timeout=60) == nodes.node_id(number)
    assert len([row for row in ray.nodes() if row["Alive"]]) == 3


def test_wait_for_nodes_says_how_many_are_missing(nodes: Nodes) -> None:
    number = nodes.add_node({"CPU": 1})
    nodes.cluster.wait_for_nodes(60)
    os.kill(nodes.by_number[number].pid, signal.SIGKILL)
    wait_until(lambda: not all(row["Alive"] for row in ray.nodes()))
    with pytest.raises(TimeoutError, match=r"after 0\.1 s 1 of 2 nodes are alive, and 0 that were removed"):
        nodes.cluster.wait_for_nodes(0.1)
    nodes.kill(number)
    nodes.cluster.wait_for_nodes(60)
    ray.shutdown()
    with pytest.raises(RuntimeError, match="no driver"):
        nodes.cluster.wait_for_nodes(1)
