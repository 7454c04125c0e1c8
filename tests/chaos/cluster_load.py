"""Work over several nodes whose every result, and every number of executions, is known. LIBRARY of the chaos tests;
threads of drivers, on the head's node and on others.

Like load.py: each kind is a function of (random, world) that makes calls and raises AssertionError for what isn't as it
must be. What may fail, and why, is the table in faults.py. Tasks and methods that count write a line into the ledger, a
file per piece of work, as they begin: so it is known how often, and in which order, each has run, whatever became of
the process.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from tests.chaos.faults import LOST_STORE, NONE, Faults
from tests.chaos.session import engine

BIG = 200_000  # float64: 1.6 MB
CALL_S = 45.0  # no call may take longer; a link between two nodes may be dead for 25 s before it is noticed


class World:
    """What a driver's work needs to know of where it runs."""

    def __init__(self, faults: Faults, ledger: str, host: int) -> None:
        self.faults, self.ledger, self.host = faults, ledger, host
        self._numbers = itertools.count()

    def somewhere(self, r: random.Random) -> dict[str, Any]:
        """Options of what is to run on a node of those alive, or elsewhere if it dies."""
        node = r.choice([row["NodeID"] for row in ray.nodes() if row["Alive"]])
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}

    def page(self) -> str:
        """A new file of the ledger."""
        return f"{self.ledger}/{os.getpid()}-{next(self._numbers)}"

    def unique(self) -> str:
        return f"{self.host}-{os.getpid()}-{next(self._numbers)}"

    def __str__(self) -> str:
        return ", ".join(f"{count} x {kind}" for kind, count in self.faults.counts().items()) or "nothing"


def write(page: str, *row: object) -> None:
    fd = os.open(page, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, (" ".join(map(str, row)) + "\n").encode())
    finally:
        os.close(fd)


def read(page: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(page).read_text().splitlines()]
    except FileNotFoundError:
        return []


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=CALL_S)


# -- remote functions -------------------------------------------------------------------------------------------------


@ray.remote(max_retries=-1)
def double(x: Any) -> Any:
    return x * 2


@ray.remote(max_retries=-1)
def make(number: int) -> np.ndarray:
    return np.full(BIG, float(number))


@ray.remote(max_retries=-1)
def plus(a: Any, b: Any) -> Any:
    return a + b


@ray.remote(max_retries=-1)
def first_of(box: list[Any]) -> float:
    return float(ray.get(box[0])[0])


@ray.remote(max_retries=-1)
def first_at(depth: int, box: list[Any], where: list[dict[str, Any]]) -> float:
    """Hands the ref on from node to node, `depth` times."""
    if depth == 0:
        return float(ray.get(box[0])[0])
    return float(ray.get(first_at.options(**where[0]).remote(depth - 1, box, where[1:])))


@ray.remote(max_retries=-1)
def boxed(number: int) -> list[Any]:
    return [make.remote(number), ray.put(np.full(BIG, float(number))), double.remote(number)]


@ray.remote(max_retries=-1)
def items(first: int, n: int) -> Any:
    for i in range(first, first + n):
        yield np.full(BIG, float(i)) if i % 3 == 0 else i


@ray.remote
def counted(page: str, x: int, seconds: float) -> int:
    write(page, x, os.getpid())
    time.sleep(seconds)
    return x * 2


@ray.remote(num_cpus=0)
class Clerk:
    """Writes down each call before it answers."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.me = f"{os.getpid()}-{time.monotonic_ns()}"

    def note(self, i: int) -> int:
        write(self.page, i, self.me)
        return i * 2

    def total(self, array: Any) -> float:
        return float(array.sum())

    def make(self, number: int) -> np.ndarray:
        return np.full(BIG, float(number))

    def items(self, first: int, n: int) -> Any:
        yield from range(first, first + n)


@ray.remote(max_retries=-1)
def ask_by_name(name: str, i: int) -> int:
    return int(ray.get(ray.get_actor(name).note.remote(i)))


@ray.remote(max_retries=-1)
def kv_get(key: bytes) -> bytes:
    return bytes(engine().rpc("kv_get", key, timeout=CALL_S))


@ray.remote(max_retries=-1)
def where() -> str:
    return str(ray.get_runtime_context().get_node_id())


# -- kinds of work ----------------------------------------------------------------------------------------------------


def tasks_everywhere(r: random.Random, world: World) -> None:
    numbers = [r.randrange(1000) for _ in range(r.randint(1, 60))]
    place = world.somewhere(r)
    refs = [double.options(**place).remote(n) if r.random() < 0.5 else double.remote(n) for n in numbers]
    rest = refs
    while rest and r.random() < 0.7:
        ready, rest = ray.wait(rest, num_returns=r.randint(1, len(rest)), timeout=CALL_S)
        assert ready, "ray.wait gave nothing within its timeout"
    assert get(refs) == [2 * n for n in numbers]


def counted_tasks(r: random.Random, world: World) -> None:
    """None is lost, none runs more often than its retries allow."""
    page, retries, began_s = world.page(), r.choice([0, 1, 3]), time.monotonic()
    numbers = list(range(r.randint(1, 12)))
    refs = [
        counted.options(max_retries=retries, **world.somewhere(r)).remote(page, i, r.choice([0, 0, 0.05, 0.3]))
        for i in numbers
    ]
    done = []
    for i, ref in zip(numbers, refs):
        with world.faults.may_fail("a task whose retries may be used up", began_s=began_s):
            assert get(ref) == 2 * i
            done.append(i)
    runs = [int(row[0]) for row in read(page)]
    for i in numbers:
        assert runs.count(i) <= 1 + retries, f"task {i} ran {runs.count(i)} times, max_retries={retries}"
        assert i not in done or i in runs, f"task {i} has a result, but never ran"


def large_objects(r: random.Random, world: World) -> None:
    """Made on one node, used on others; each link of the chain can be made again from the first."""
    numbers = [r.randrange(1000) for _ in range(r.randint(2, 5))]
    ref = make.options(**world.somewhere(r)).remote(numbers[0])
    for n in numbers[1:]:
        ref = plus.options(**world.somewhere(r)).remote(ref, make.options(**world.somewhere(r)).remote(n))
        if r.random() < 0.3:
            ray.wait([ref], timeout=CALL_S)
    value = get(ref)
    assert value.shape == (BIG,) and (value == sum(numbers)).all()
    depth = r.randint(0, 3)
    places = [world.somewhere(r) for _ in range(depth)]
    assert get(first_at.options(**world.somewhere(r)).remote(depth, [ref], places)) == sum(numbers)


def puts(r: random.Random, world: World) -> None:
    number = r.randrange(1000)
    with world.faults.may_fail("a put of this driver", world.host):
        ref = ray.put(np.full(BIG, float(number)))
        assert get([first_of.options(**world.somewhere(r)).remote([ref]) for _ in range(2)]) == [number] * 2
        assert (get(plus.options(**world.somewhere(r)).remote(ref, ref)) == 2 * number).all()
        assert (get(ref) == number).all()
    with (
        world.faults.may_fail("a put of this driver", world.host),
        world.faults.may_fail("the result of a task with a large value as argument"),
    ):
        assert (get(double.options(**world.somewhere(r)).remote(np.full(BIG, float(number)))) == 2 * number).all()


def replicated_puts(r: random.Random, world: World) -> None:
    """Lost with both stores only, if there are two: a node may have been unable to take a copy."""
    number = r.randrange(1000)
    began_s = time.monotonic()
    ref, copies, _ = engine().put_replicated(np.full(r.choice([10, BIG]), float(number)), 2)
    elsewhere = LOST_STORE if copies == 2 else NONE
    with world.faults.may_fail("a put in two stores", world.host, began_s, elsewhere):
        assert get([first_of.options(**world.somewhere(r)).remote([ref]) for _ in range(2)]) == [number] * 2
        assert get(first_at.options(**world.somewhere(r)).remote(1, [ref], [world.somewhere(r)])) == number
        assert (get(ref) == number).all()


def small_puts(r: random.Random, world: World) -> None:
    numbers = [r.randrange(1000) for _ in range(20)]
    place = world.somewhere(r)
    assert get([plus.options(**place).remote(ray.put(n), n) for n in numbers]) == [2 * n for n in numbers]


def refs_of_workers(r: random.Random, world: World) -> None:
    number = r.randrange(1000)
    with world.faults.may_fail("refs that a worker owns"):
        a, b, c = get(boxed.options(**world.somewhere(r)).remote(number))
        assert get(c) == 2 * number
        assert (get(a) == number).all()
        assert get(first_of.options(**world.somewhere(r)).remote([b])) == number
        assert (get(b) == number).all()


def streams(r: random.Random, world: World) -> None:
    """Each item once, in order, whoever dies; some are dropped half taken."""
    first, n = r.randrange(1000), r.randint(1, 12)
    pressure = r.choice([-1, 1, 5])
    if r.random() < 0.7:
        generator = items.options(_generator_backpressure_num_objects=pressure, **world.somewhere(r)).remote(first, n)
    else:
        actor = Clerk.options(max_restarts=-1, max_task_retries=-1, **world.somewhere(r)).remote(world.page())
        generator = actor.items.options(_generator_backpressure_num_objects=pressure).remote(first, n)
    wanted = n if r.random() < 0.7 else r.randint(0, n)
    refs: list[Any] = []
    for _ in range(wanted):
        try:
            refs.append(generator._next_sync(CALL_S))
        except StopIteration:  # too early: the last item is an error, which get raises
            break
        assert not refs[-1].is_nil(), f"no item {len(refs) - 1} within {CALL_S} s"
    if len(refs) == n:
        assert list(generator) == []
    del generator
    assert [int(np.max(value)) for value in get(refs)] == list(range(first, first + wanted))


def calls_in_order(r: random.Random, world: World) -> None:
    """One caller: each incarnation sees its calls in the order of their submission, none oftener than allowed."""
    page, retries, began_s = world.page(), r.choice([-1, -1, 0, 2]), time.monotonic()
    restarts = -1 if retries == -1 else r.choice([-1, 1])
    actor = Clerk.options(max_restarts=restarts, max_task_retries=retries, **world.somewhere(r)).remote(page)
    answered: list[int] = []
    n = r.randint(1, 60)
    refs = [actor.note.remote(i) for i in range(n)]
    for i, ref in enumerate(refs):
        if retries == -1:
            assert get(ref) == 2 * i
            answered.append(i)
            continue
        with world.faults.may_fail("a call of an actor that is not repeated", began_s=began_s):
            assert get(ref) == 2 * i
            answered.append(i)
    rows = read(page)
    runs = [int(i) for i, _ in rows]
    for i in range(n):
        most = 1 + retries if retries >= 0 else len(rows)
        assert runs.count(i) <= most, f"call {i} ran {runs.count(i)} times, max_task_retries={retries}: {rows}"
        assert i not in answered or i in runs, f"call {i} has an answer, but never ran"
    for me in {me for _, me in rows}:
        seen = [int(i) for i, who in rows if who == me]
        assert seen == sorted(set(seen)), f"the actor {me} has seen its calls in this order: {seen}"


def methods_and_objects(r: random.Random, world: World) -> None:
    number = r.randrange(1000)
    actor = Clerk.options(max_restarts=-1, max_task_retries=-1, **world.somewhere(r)).remote(world.page())
    assert get(actor.total.remote(make.options(**world.somewhere(r)).remote(number))) == number * BIG
    with world.faults.may_fail("a large result of a method"):
        ref = actor.make.remote(number)
        assert get(first_of.options(**world.somewhere(r)).remote([ref])) == number
        assert (get(ref) == number).all()


def named_actors(r: random.Random, world: World) -> None:
    name = "clerk-" + world.unique()
    detached = {"lifetime": "detached"} if r.random() < 0.3 else {}
    options = {"name": name, "max_restarts": -1, "max_task_retries": -1, **detached, **world.somewhere(r)}
    actor = Clerk.options(**options).remote(world.page())
    refs = [ask_by_name.options(**world.somewhere(r)).remote(name, i) for i in range(r.randint(1, 6))]
    assert get(refs) == [2 * i for i in range(len(refs))]
    assert get(ray.get_actor(name).note.remote(7)) == 14
    ray.kill(actor)  # not where that has failed: then it is looked at
    try:
        get(actor.note.remote(8))
    except RayError:
        return
    raise AssertionError("an actor that was killed for good has answered")


def groups(r: random.Random, world: World) -> None:
    """A group that loses a node is placed anew, and tasks in it wait for that."""
    strategy = r.choice(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
    n = r.randint(1, 2)
    group = placement_group([{"CPU": 0.5}] * n, strategy=strategy)
    try:
        assert group.wait(CALL_S), f"no place for {n} x CPU 0.5, {strategy}, in {CALL_S} s"
        places = [
            PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=r.choice([i, -1])) for i in range(n)
        ]
        inside = [where.options(num_cpus=0.5, scheduling_strategy=place).remote() for place in places]
        numbers = [r.randrange(100) for _ in range(5)]
        refs = [double.options(num_cpus=0.25, scheduling_strategy=r.choice(places)).remote(i) for i in numbers]
        assert get(refs) == [2 * i for i in numbers]
        assert all(get(inside))
        if r.random() < 0.5:
            actor = Clerk.options(max_restarts=-1, max_task_retries=-1, scheduling_strategy=r.choice(places)).remote(
                world.page()
            )
            assert get([actor.note.remote(i) for i in numbers]) == [2 * i for i in numbers]
            del actor
    finally:
        remove_placement_group(group)


def key_values(r: random.Random, world: World) -> None:
    rpc = engine().rpc
    key, values = world.unique().encode(), [r.randbytes(r.choice([1, 100, 20_000])) for _ in range(2)]
    for value in values:
        rpc("kv_put", key, value, timeout=CALL_S)
    assert rpc("kv_get", key, timeout=CALL_S) == values[1]
    assert get(kv_get.options(**world.somewhere(r)).remote(key)) == values[1]
    assert rpc("kv_del", key, timeout=CALL_S)
    assert rpc("kv_get", key, timeout=CALL_S) is None


KINDS: list[Callable[[random.Random, World], None]] = [
    tasks_everywhere, counted_tasks, large_objects, puts, replicated_puts, small_puts, refs_of_workers, streams,
    calls_in_order, methods_and_objects, named_actors, groups, key_values,
]  # fmt: skip
