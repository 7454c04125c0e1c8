"""Work over several nodes whose every result, and every number of executions, is known: of tasks and objects here, of
actors in actor_load.py. LIBRARY of the chaos tests; threads of drivers, on the head's node and on others.

Like load.py: each kind is a function of (random, world) that makes calls and raises AssertionError for what isn't as it
must be. What may fail, and why, is the table in faults.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import ray
from ray.exceptions import TaskCancelledError, WorkerCrashedError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.chaos import actor_load
from tests.chaos.actor_load import Clerk
from tests.chaos.faults import LOST_STORE, NONE
from tests.chaos.session import engine
from tests.chaos.world import BIG, CALL_S, World, double, first_of, get, make, read, write

# -- remote functions -------------------------------------------------------------------------------------------------


@ray.remote(max_retries=-1)
def plus(a: Any, b: Any) -> Any:
    return a + b


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


@ray.remote(max_retries=-1)
def kv_get(key: bytes) -> bytes:
    return bytes(engine().rpc("kv_get", key, timeout=CALL_S))


@ray.remote(max_retries=-1)
def where() -> str:
    return str(ray.get_runtime_context().get_node_id())


@ray.remote(max_retries=-1)
def long(page: str, children: int) -> list[int]:
    """Takes longer than any round, and so do its children."""
    write(page, os.getpid())
    below = [long.remote(page, 0) for _ in range(children)]
    time.sleep(600)
    return list(ray.get(below))


@ray.remote(max_retries=-1)
def leaves(depth: int, width: int, where: list[dict[str, Any]]) -> int:
    """The number of leaves of a tree of calls."""
    if depth == 0:
        time.sleep(0.01)
        return 1
    return sum(ray.get([leaves.options(**where[0]).remote(depth - 1, width, where[1:]) for _ in range(width)]))


@ray.remote(max_retries=-1)
def wrapped(box: list[Any], numbers: int, put: bool) -> list[Any]:
    """The refs in the box in another one, which lies in the store if there are many numbers with them."""
    return [ray.put(box) if put else box, np.zeros(numbers)]


@ray.remote(max_retries=-1)
def unwrapped(box: list[Any], depth: int) -> float:
    inside: Any = box
    for _ in range(depth):
        inside = ray.get(inside[0])[0]
        inside = ray.get(inside) if isinstance(inside, ray.ObjectRef) else inside
    return float(ray.get(inside[0])[0])


@ray.remote(max_retries=-1, retry_exceptions=True, max_calls=2)
def flaky(page: str, i: int, failures: int) -> int:
    """Fails so often, each time in a process of whose calls at most one came before."""
    write(page, i, os.getpid())
    if sum(row[0] == str(i) for row in read(page)) <= failures:
        raise ValueError(f"failure of {i}")
    return i * 2


@ray.remote(max_retries=-1)
def environment(name: str) -> str | None:
    return os.environ.get(name)


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


def hoards(r: random.Random, world: World) -> None:
    """More than a tight store has room for: it lies on disks, and is read from there; half of it is dropped unread."""
    numbers = [r.randrange(1000) for _ in range(r.randint(8, 24))]
    refs = {i: make.options(**world.somewhere(r)).remote(n) for i, n in enumerate(numbers)}
    ray.wait(list(refs.values()), num_returns=len(refs), timeout=CALL_S, fetch_local=r.random() < 0.5)
    chosen = r.sample(sorted(refs), len(refs) // 2)
    read_elsewhere = [first_of.options(**world.somewhere(r)).remote([refs[i]]) for i in chosen]
    for i in set(refs) - set(chosen):
        del refs[i]
    for i in chosen[:3]:
        assert (get(refs[i]) == numbers[i]).all()
    assert get(read_elsewhere) == [numbers[i] for i in chosen]


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


def cancelled_tasks(r: random.Random, world: World) -> None:
    """Whether it runs, waits for a worker or for its argument: it ends soon, and what it has submitted ends too."""
    page = world.page()
    refs = [long.options(**world.somewhere(r)).remote(page, r.choice([0, 0, 1])) for _ in range(r.randint(1, 2))]
    refs.append(double.options(**world.somewhere(r)).remote(refs[0]))
    others = [double.options(**world.somewhere(r)).remote(i) for i in range(5)]
    time.sleep(r.choice([0, 0.01, 0.3]))
    force = r.random() < 0.3
    for ref in refs:
        ray.cancel(ref, force=force)
    for ref in refs:
        try:
            value = get(ref)
        except TaskCancelledError:
            continue
        except WorkerCrashedError:
            assert force
            continue
        raise AssertionError(f"a task that was cancelled has the result {value}")
    ray.cancel(others[0])
    assert get(others[1:]) == [2 * i for i in range(1, 5)]
    try:
        assert get(others[0]) == 0  # it had ended
    except TaskCancelledError:
        pass


def flaky_tasks(r: random.Random, world: World) -> None:
    page, failures = world.page(), [r.choice([0, 1, 2]) for _ in range(r.randint(1, 8))]
    refs = [flaky.options(**world.somewhere(r)).remote(page, i, n) for i, n in enumerate(failures)]
    assert get(refs) == [2 * i for i in range(len(refs))]
    rows = read(page)
    for i, n in enumerate(failures):
        runs = sum(row[0] == str(i) for row in rows)
        assert runs > n, f"task {i} has a result after {runs} runs, of which {n} fail"


def trees(r: random.Random, world: World) -> None:
    """Calls of calls of calls, and some that nobody waits for: all of it is gone at the round's end."""
    depth, width = r.choice([(1, 8), (2, 3), (3, 2)])
    ref = leaves.options(**world.somewhere(r)).remote(depth, width, [world.somewhere(r) for _ in range(depth)])
    leaves.options(**world.somewhere(r)).remote(depth, width, [world.somewhere(r) for _ in range(depth)])
    make.options(**world.somewhere(r)).remote(1)
    assert get(ref) == width**depth


def refs_in_refs(r: random.Random, world: World) -> None:
    """Each box is made by another task, of the driver's or of another's ref; only the last one is kept."""
    number, depth = r.randrange(1000), r.randint(1, 4)
    large, put = r.random() < 0.3, r.random() < 0.3
    box = [make.options(**world.somewhere(r)).remote(number)]
    with world.faults.may_fail("refs that a worker owns") if put else contextlib.nullcontext():
        for _ in range(depth):
            box = [wrapped.options(**world.somewhere(r)).remote(box, BIG if large else 0, put)]
        assert get(unwrapped.options(**world.somewhere(r)).remote(box, depth)) == number


def environments(r: random.Random, world: World) -> None:
    value = str(r.randrange(3))
    env = {"env_vars": {"RAY_CHAOS": value}}
    refs = [environment.options(runtime_env=env, **world.somewhere(r)).remote("RAY_CHAOS") for _ in range(3)]
    assert get(refs) == [value] * 3
    assert get(environment.options(**world.somewhere(r)).remote("RAY_CHAOS")) is None


def awaited(r: random.Random, world: World) -> None:
    numbers = [r.randrange(1000) for _ in range(r.randint(1, 20))]

    async def gather() -> list[Any]:
        refs = [double.options(**world.somewhere(r)).remote(n) for n in numbers]
        big = make.options(**world.somewhere(r)).remote(numbers[0])
        assert ((await asyncio.wait_for(big, CALL_S)) == numbers[0]).all()
        return list(await asyncio.wait_for(asyncio.gather(*refs), CALL_S))

    assert asyncio.run(gather()) == [2 * n for n in numbers]
    future = double.options(**world.somewhere(r)).remote(numbers[0]).future()
    assert future.result(CALL_S) == 2 * numbers[0]


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
    tasks_everywhere, counted_tasks, large_objects, hoards, puts, replicated_puts, small_puts, refs_of_workers,
    refs_in_refs, streams, cancelled_tasks, flaky_tasks, trees, environments, awaited, groups, key_values,
    *actor_load.KINDS,
]  # fmt: skip
