"""Nodes on machines with addresses of their own: cut, slow and restored links, machines that stand still."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray
from ray._native.plasma import PlasmaClient
from ray._native.transfer import TransferLine
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.wait import wait_until, within

from . import netns
from .hosts import Hosts

pytestmark = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not())

SILENCE_S = 3.0
BIG = 2_000_000  # int64: 16 MB


@pytest.fixture(scope="module")
def running(engine: Any) -> Iterator[Hosts]:
    """Four machines, of which the first has the head."""
    engine.watch()
    with Hosts(4, {"node_silence_s": SILENCE_S}) as hosts:
        yield hosts
    engine.stop()


@pytest.fixture
def hosts(running: Hosts) -> Hosts:
    """All cables plugged, a node on host 1 and none on 2 and 3."""
    get_ready(running, [1])
    return running


@pytest.fixture
def three(running: Hosts) -> Hosts:
    """The same with nodes on 1 and 2."""
    get_ready(running, [1, 2])
    return running


def get_ready(hosts: Hosts, wanted: list[int]) -> None:
    hosts.network.separate([])
    for host in range(1, hosts.network.hosts):
        hosts.network.plug(host)
        if hosts.runs(host) and host not in wanted:
            hosts.stop(host)
            hosts.wait_gone(host)
        elif not hosts.runs(host) and host in wanted:
            hosts.join(host)


@ray.remote(num_cpus=0)
def where() -> str:
    return str(ray.get_runtime_context().get_node_id())


@ray.remote(num_cpus=0, max_retries=-1)
def slow_where(seconds: float) -> str:
    time.sleep(seconds)
    return str(ray.get_runtime_context().get_node_id())


@ray.remote(num_cpus=0)
def make(n: int) -> np.ndarray:
    return np.arange(n)


@ray.remote(num_cpus=0)
def total(array: np.ndarray) -> int:
    return int(array.sum())


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self, by: int = 1) -> int:
        self.n += by
        return self.n

    def total(self, array: np.ndarray) -> int:
        return int(array.sum())

    def pid(self) -> int:
        return os.getpid()

    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def work_everywhere(hosts: Hosts, numbers: list[int]) -> None:
    """Tasks, actors and large objects from every node to every other."""
    ids = [hosts.node_id(i) for i in numbers]
    assert ray.get([where.options(**hosts.on(i)).remote() for i in numbers], timeout=30) == ids
    made = [make.options(**hosts.on(i)).remote(BIG) for i in numbers]
    expected = BIG * (BIG - 1) // 2
    sums = [total.options(**hosts.on(i)).remote(ref) for ref in made for i in numbers]
    assert ray.get(sums, timeout=30) == [expected] * len(sums)
    assert (ray.get(made[-1], timeout=30) == np.arange(BIG)).all()
    mine = ray.put(np.arange(BIG))
    actors = [Counter.options(**hosts.on(i)).remote() for i in numbers]
    assert ray.get([a.total.remote(mine) for a in actors], timeout=30) == [expected] * len(actors)
    for actor in actors:
        assert ray.get([actor.add.remote() for _ in range(50)], timeout=30) == list(range(1, 51))


def test_two_machines_work_as_one(hosts: Hosts) -> None:
    work_everywhere(hosts, [0, 1])
    program = "import ray; ray.init(logging_level='error'); print(len(ray.nodes()), ray.cluster_resources()['CPU'])"
    out, _ = hosts.popen(1, sys.executable, "-c", program).communicate(timeout=30)
    assert out.endswith(" 2.0\n"), out


@pytest.mark.slow
def test_four_machines_work_as_one(running: Hosts) -> None:
    get_ready(running, [1, 2, 3])
    work_everywhere(running, [0, 1, 2, 3])
    group = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
    assert group.wait(60)
    found = ray.get(
        [
            where.options(
                num_cpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
            ).remote()
            for i in range(4)
        ],
        timeout=30,
    )
    assert set(found) == {running.node_id(i) for i in range(4)}
    remove_placement_group(group)


@pytest.mark.parametrize("how", ["unplugged", "stopped"])
def test_a_machine_that_is_cut_off_while_idle_is_given_up_and_ends_itself(hosts: Hosts, how: str) -> None:
    pid = hosts.pid(1)
    began = time.monotonic()
    with within(SILENCE_S + 1.5):
        if how == "unplugged":
            hosts.network.unplug(1)
            assert "silent" in hosts.wait_dead(1)
        else:
            os.kill(pid, signal.SIGSTOP)
            hosts.wait_dead(1)
            os.kill(pid, signal.SIGCONT)  # it hears at once that others have its work
    assert SILENCE_S * 0.8 < time.monotonic() - began
    hosts.wait_gone(1)


def test_the_work_of_a_machine_that_is_cut_off_is_done_elsewhere(three: Hosts) -> None:
    hosts = three
    # It owns nothing; what runs and what is queued there, an actor with restarts left, and a large result are lost.
    actor = Counter.options(max_restarts=1, max_task_retries=-1, **hosts.on(1, soft=True)).remote()
    assert ray.get(actor.where.remote(), timeout=60) == hosts.node_id(1)
    big = make.options(**hosts.on(1, soft=True)).remote(BIG)
    assert ray.get(total.options(**hosts.on(1)).remote(big), timeout=60) == BIG * (BIG - 1) // 2
    tasks = [slow_where.options(**hosts.on(1, soft=True)).remote(1.0) for _ in range(3)]
    ray.get(actor.add.remote(), timeout=60)
    with within(SILENCE_S + 4):
        hosts.network.unplug(1)
        found = ray.get([*tasks, actor.where.remote()], timeout=60)
    assert hosts.node_id(1) not in found
    assert ray.get(total.remote(big), timeout=60) == BIG * (BIG - 1) // 2
    hosts.wait_gone(1)


@pytest.mark.slow
def test_a_transfer_that_a_cut_link_interrupts_is_made_good(hosts: Hosts) -> None:
    N = 5 * 2**20  # 40 MB
    made = make.options(**hosts.on(1, soft=True)).remote(N)
    ray.wait([made], timeout=60, fetch_local=False)
    mine = ray.put(np.arange(N))
    there = total.options(max_retries=-1, **hosts.on(1, soft=True)).remote(mine)
    fetching = total.options(**hosts.on(0)).remote(made)
    hosts.network.unplug(1)
    expected = N * (N - 1) // 2
    assert ray.get([there, fetching], timeout=30) == [expected] * 2
    hosts.wait_dead(1)
    hosts.wait_gone(1)


class Gate:
    """Stops the first that comes by until it is let through; others may be on any host: the files are one machine's."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        os.mkfifo(f"{self.folder}/begun")
        os.mkfifo(f"{self.folder}/go")

    def pass_by(self) -> None:
        with open(f"{self.folder}/passed", "a") as file:
            first = file.tell() == 0
            file.write("x")
        if first:
            with open(f"{self.folder}/begun", "w"), open(f"{self.folder}/go") as go:
                go.read()

    def wait_begun(self) -> None:
        with open(f"{self.folder}/begun"):
            return

    def let_through(self) -> None:
        with open(f"{self.folder}/go", "w"):
            return

    def count(self) -> int:
        """How many have come by."""
        with open(f"{self.folder}/passed") as file:
            return len(file.read())


class Slow:
    """Takes as long to be written as the gate says."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __reduce__(self) -> Any:
        self.gate.pass_by()
        return str, ("written",)


@ray.remote(num_cpus=0, max_retries=-1)
def make_slowly(gate: Gate, n: int) -> tuple[Any, np.ndarray, str]:
    return Slow(gate), np.arange(n), str(ray.get_runtime_context().get_node_id())


@ray.remote(num_cpus=0, max_restarts=1, max_task_retries=-1)
class MadeSlowly:
    def __init__(self, gate: Gate) -> None:
        gate.pass_by()

    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def cut_at(hosts: Hosts, gate: Gate, *, for_good: bool) -> None:
    """Cuts host 1 off when it is at the gate, and lets it go on."""
    gate.wait_begun()
    hosts.network.unplug(1)
    gate.let_through()
    if not for_good:
        time.sleep(SILENCE_S / 3)  # for so long nothing travels
        hosts.network.plug(1)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
def test_a_link_is_cut_while_a_worker_behind_it_writes_its_result(hosts: Hosts, tmp_path: Path, for_good: bool) -> None:
    gate = Gate(tmp_path)
    made = make_slowly.options(**hosts.on(1, soft=True)).remote(gate, BIG)
    cut_at(hosts, gate, for_good=for_good)
    written, array, place = ray.get(made, timeout=30)
    assert written == "written" and (array == np.arange(BIG)).all()
    assert (place == hosts.node_id(0)) is for_good and gate.count() == 1 + for_good
    if for_good:
        hosts.wait_gone(1)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
def test_a_link_is_cut_while_an_actor_is_made_behind_it(hosts: Hosts, tmp_path: Path, for_good: bool) -> None:
    gate = Gate(tmp_path)
    actor = MadeSlowly.options(**hosts.on(1, soft=True)).remote(gate)
    there = hosts.node_id(1)
    cut_at(hosts, gate, for_good=for_good)
    assert (ray.get(actor.where.remote(), timeout=30) == there) is not for_good
    assert gate.count() == 1 + for_good
    if for_good:
        hosts.wait_gone(1)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
def test_a_link_is_cut_while_a_group_reserves_what_is_behind_it(hosts: Hosts, for_good: bool) -> None:
    hosts.network.unplug(1)
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    assert not group.wait(SILENCE_S / 3)
    if for_good:
        hosts.wait_gone(1)
        hosts.network.plug(1)
        hosts.join(1)
    else:
        hosts.network.plug(1)
    assert group.wait(60)
    assert [hosts.stats(i)["scheduler"]["bundles"] for i in (0, 1)] == [1, 1]
    remove_placement_group(group)
    wait_until(lambda: [hosts.stats(i)["scheduler"]["bundles"] for i in (0, 1)] == [0, 0])


@pytest.mark.slow
def test_a_link_that_is_restored_in_time_loses_nothing(hosts: Hosts) -> None:
    # Cause, once: heartbeats went on over a connection that TCP tried again only after 0.2, 0.4, 0.8, 1.6 s, and so
    # came too late although the link had been back for more than a second.
    actor = Counter.options(**hosts.on(1)).remote()
    pid = ray.get(actor.pid.remote(), timeout=60)
    for again in (False, True):
        if again:
            time.sleep(SILENCE_S * 0.5)  # for this time to be one of its own
        running = [actor.add.remote() for _ in range(20)]
        mine = ray.put(np.arange(BIG))
        hosts.network.unplug(1)
        more = [actor.add.remote() for _ in range(20)]
        sums = [total.options(**hosts.on(1)).remote(mine), actor.total.remote(mine)]
        time.sleep(1.8)  # for so long nothing travels
        hosts.network.plug(1)
        ray.get(running + more, timeout=60)
        assert ray.get(sums, timeout=60) == [BIG * (BIG - 1) // 2] * 2
    assert hosts.is_alive(1)
    assert ray.get([actor.add.remote(), actor.pid.remote()], timeout=60) == [81, pid]


@pytest.mark.parametrize("host", [0, 1])
def test_a_node_process_that_stands_still_for_less_than_the_silence_is_not_dead(hosts: Hosts, host: int) -> None:
    actor = Counter.options(**hosts.on(1)).remote()
    pid = ray.get(actor.pid.remote(), timeout=60)
    with hosts.paused(host):
        assert ray.get([actor.add.remote() for _ in range(20)], timeout=60) == list(range(1, 21))
        time.sleep(SILENCE_S * 0.5)  # for so long it stands still
    assert ray.get(where.options(**hosts.on(1)).remote(), timeout=60) == hosts.node_id(1)
    time.sleep(0.5)  # what would be said of its silence had come by now
    assert hosts.is_alive(1) and ray.get(actor.pid.remote(), timeout=60) == pid


@pytest.mark.slow
def test_a_link_between_two_others_is_cut_for_a_while(three: Hosts) -> None:
    hosts = three
    made = make.options(**hosts.on(1)).remote(BIG)
    actor = Counter.options(**hosts.on(1)).remote()
    ray.get(actor.add.remote(), timeout=60)

    @ray.remote(num_cpus=0)
    def through(actor: Any, n: int) -> int:
        return int(ray.get([actor.add.remote() for _ in range(n)])[-1])

    assert ray.get(through.options(**hosts.on(2)).remote(actor, 1), timeout=60) == 2
    hosts.network.separate([1, 2])
    waiting = [
        through.options(**hosts.on(2)).remote(actor, 10),
        total.options(**hosts.on(2)).remote(made),
    ]
    assert ray.get([where.options(**hosts.on(i)).remote() for i in (1, 2)], timeout=60) == [
        hosts.node_id(1),
        hosts.node_id(2),
    ]
    ready, _ = ray.wait(waiting, timeout=SILENCE_S * 1.2)
    assert not ready
    hosts.network.separate([])
    assert ray.get(waiting, timeout=30) == [12, BIG * (BIG - 1) // 2]
    assert hosts.is_alive(1) and hosts.is_alive(2)


@ray.remote(num_cpus=0)
class Owner:
    def put(self) -> list[Any]:
        return [ray.put("its value")]

    def put_large(self) -> list[Any]:
        return [ray.put(np.arange(BIG))]

    def hang(self) -> list[Any]:
        @ray.remote(num_cpus=0)
        def pause() -> None:
            signal.pause()

        return [pause.remote()]

    def items(self) -> Iterator[int]:
        yield from range(3)

    def alive(self) -> bool:
        return True


@ray.remote(num_cpus=0)
class Keeper:
    def keep(self, box: list[Any]) -> None:
        self.box = box

    def read(self) -> str:
        return str(ray.get(self.box[0]))


@ray.remote(num_cpus=0)
def read(box: list[Any]) -> str:
    return str(ray.get(box[0]))


@ray.remote(num_cpus=0)
def call(owner: Any) -> bool:
    return bool(ray.get(owner.alive.remote()))


@ray.remote(num_cpus=0)
def draw(owner: Any) -> list[int]:
    return [ray.get(ref) for ref in owner.items.options(num_returns="streaming").remote()]


@ray.remote(num_cpus=0)
def lease(options: dict[str, Any]) -> str:
    return str(ray.get(where.options(**options).remote()))


@pytest.mark.parametrize("dial", ["for a value", "to be counted", "for a call", "for items", "for a lease"])
def test_a_process_that_cannot_be_dialled_for_a_while_is_not_taken_for_dead(three: Hosts, dial: str) -> None:
    # Cause, once: whom a process could not dial was dead to it: OwnerDiedError, WorkerCrashedError, a call that hung.
    hosts, there = three, three.on(2)
    owner = Owner.options(**hosts.on(1)).remote()
    box = ray.get(owner.put.remote(), timeout=20)
    keeper = Keeper.options(**there).remote()
    ray.get([where.options(**there).remote(), keeper.keep.remote([])], timeout=20)
    with hosts.network.unreachable(2, [1]):
        waiting, expected = {
            "for a value": lambda: (read.options(**there).remote(box), "its value"),
            "to be counted": lambda: (keeper.keep.remote(box), None),
            "for a call": lambda: (call.options(**there).remote(owner), True),
            "for items": lambda: (draw.options(**there).remote(owner), [0, 1, 2]),
            "for a lease": lambda: (lease.options(**there).remote(hosts.on(1)), hosts.node_id(1)),
        }[dial]()
        ready, _ = ray.wait([waiting], timeout=1.0)
        assert not ready, ray.get(ready)
    assert ray.get(waiting, timeout=20) == expected
    if dial == "to be counted":
        del box
        assert ray.get(keeper.read.remote(), timeout=20) == "its value"
    assert hosts.is_alive(1) and hosts.is_alive(2)


def has(hosts: Hosts, host: int, key: bytes) -> bool:
    client = PlasmaClient(hosts.session_folder(host) + "/plasma.sock")
    try:
        return client.contains(key)
    finally:
        client.disconnect()


def test_copies_that_were_read_outlive_a_node_that_stood_still_too_long_and_goes_on(hosts: Hosts) -> None:
    # Its worker's borrowers are gone, and so it frees what it owned; its store, which never stood still, tells others.
    pid = hosts.pid(1)
    owner = Owner.options(**hosts.on(1)).remote()
    box = ray.get(owner.put_large.remote(), timeout=20)
    assert ray.get(box[0], timeout=20)[-1] == BIG - 1
    os.kill(pid, signal.SIGSTOP)
    hosts.wait_dead(1)
    assert ray.get(box[0], timeout=20)[-1] == BIG - 1
    os.kill(pid, signal.SIGCONT)
    hosts.wait_gone(1)
    assert ray.get(box[0], timeout=20)[-1] == BIG - 1
    key = box[0].binary()
    del box
    wait_until(lambda: not has(hosts, 0, key))


def test_a_process_that_is_gone_is_dead_to_whoever_dials_it_later(three: Hosts) -> None:
    # Its node lives, and says so: nobody waits for more.
    hosts = three
    owner = Owner.options(**hosts.on(1)).remote()
    box = ray.get(owner.hang.remote(), timeout=20)  # what is there already outlives it: test_owner_deaths.py
    ray.kill(owner)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(owner.alive.remote(), timeout=20)
    began = time.monotonic()
    with pytest.raises(ray.exceptions.OwnerDiedError):
        ray.get(read.options(**hosts.on(2)).remote(box), timeout=20)
    assert time.monotonic() - began < 5


@ray.remote(num_cpus=0, max_restarts=1)
class Maker:
    def pid(self) -> int:
        return os.getpid()

    def make(self, gate: Gate) -> np.ndarray:
        gate.pass_by()
        return np.arange(BIG)


@ray.remote(num_cpus=0)
class Caller:
    def call(self, maker: Any, gate: Gate) -> str:
        try:
            ray.get(maker.make.remote(gate))
        except ray.exceptions.ActorUnavailableError:
            return "unavailable"
        return "made"

    def pid(self, maker: Any) -> int:
        return int(ray.get(maker.pid.remote()))


def held(hosts: Hosts, host: int) -> int:
    line = TransferLine(hosts.session_folder(host) + "/objects.sock")
    try:
        return int(line.wait(line.ask_stats())[2]["held"])
    finally:
        line.close()


def test_a_result_whose_answer_never_came_is_freed_though_its_owner_lives_on(three: Hosts, tmp_path: Path) -> None:
    # Cause, once: it was held for an owner who did not know of it, and who would never free it.
    hosts, gate = three, Gate(tmp_path)
    maker = Maker.options(**hosts.on(1)).remote()
    caller = Caller.options(**hosts.on(2)).remote()
    pid = ray.get(caller.pid.remote(maker), timeout=20)
    calling = caller.call.remote(maker, gate)
    gate.wait_begun()
    hosts.network.separate([1, 2])
    gate.let_through()
    wait_until(lambda: held(hosts, 1) == 1)
    os.kill(pid, signal.SIGKILL)
    assert ray.get(calling, timeout=20) == "unavailable"
    hosts.network.separate([])
    wait_until(lambda: held(hosts, 1) == 0)
    assert ray.get(caller.pid.remote(maker), timeout=20) != pid


def test_nodes_that_are_told_to_stop_leave_at_once_and_come_again(hosts: Hosts) -> None:
    with within(5):
        hosts.ray(1, "stop")
        hosts.wait_dead(1)
    hosts.wait_gone(1)
    hosts.join(1)
    assert ray.get(where.options(**hosts.on(1)).remote(), timeout=60) == hosts.node_id(1)
