"""Work of actors over several nodes; see cluster_load.py. LIBRARY of the chaos tests."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any

import numpy as np

import ray
from ray.exceptions import RayError, TaskCancelledError
from tests.chaos.world import BIG, CALL_S, World, first_of, get, make, read, write


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


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, checkpoint_interval=1)
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self) -> int:
        self.n += 1
        return self.n


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=50)
class AsyncClerk:
    async def double(self, x: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return x * 2

    async def first(self, box: list[Any]) -> float:
        return float((await box[0])[0])

    async def items(self, first: int, n: int) -> Any:
        for i in range(first, first + n):
            await asyncio.sleep(0)
            yield i


@ray.remote(max_retries=-1)
def note_at(depth: int, box: list[Any], i: int, where: list[dict[str, Any]]) -> int:
    """Hands the handle on from node to node, `depth` times; the last one calls it."""
    if depth == 0:
        return int(ray.get(box[0].note.remote(i)))
    return int(ray.get(note_at.options(**where[0]).remote(depth - 1, box, i, where[1:])))


@ray.remote(max_retries=-1)
def clerk_of_mine(page: str, where: dict[str, Any]) -> list[Any]:
    return [Clerk.options(max_restarts=-1, max_task_retries=-1, **where).remote(page)]  # type: ignore[attr-defined]


# -- kinds of work ----------------------------------------------------------------------------------------------------


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


def async_calls(r: random.Random, world: World) -> None:
    """Many at a time in one actor, which may die under all of them."""
    actor = AsyncClerk.options(**world.somewhere(r)).remote()
    numbers = [r.randrange(1000) for _ in range(r.randint(1, 40))]
    refs = [actor.double.remote(n, r.choice([0, 0, 0.01, 0.2])) for n in numbers]
    number = r.randrange(1000)
    big = make.options(**world.somewhere(r)).remote(number)
    first = actor.first.remote([big])
    del big
    generator = actor.items.remote(number, 5)
    assert get(refs) == [2 * n for n in numbers]
    assert get(first) == number
    items = []
    while len(items) < 5:
        items.append(generator._next_sync(CALL_S))
        assert not items[-1].is_nil(), f"no item {len(items) - 1} within {CALL_S} s"
    assert list(generator) == []
    assert get(items) == list(range(number, number + 5))


def cancelled_calls(r: random.Random, world: World) -> None:
    """Coroutines: those that run and those that wait for their turn end, the others have their results."""
    actor = AsyncClerk.options(max_concurrency=r.choice([2, 50]), **world.somewhere(r)).remote()
    long = [actor.double.remote(i, 600) for i in range(r.randint(1, 6))]
    time.sleep(r.choice([0, 0.01, 0.3]))
    for ref in long:
        ray.cancel(ref)
    numbers = [r.randrange(1000) for _ in range(5)]
    refs = [actor.double.remote(n, 0) for n in numbers]
    for ref in long:
        try:
            get(ref)
        except TaskCancelledError:
            continue
        raise AssertionError("a call that was cancelled has a result")
    assert get(refs) == [2 * n for n in numbers]


def checkpoints(r: random.Random, world: World) -> None:
    """What was answered is in the next incarnation's state, too; a call may have run, and been saved, twice."""
    actor = Counter.options(**world.somewhere(r)).remote()
    answers = []
    for _ in range(r.randint(1, 3)):
        answers += get([actor.add.remote() for _ in range(r.randint(1, 10))])
    assert all(answer > before for before, answer in zip([0, *answers], answers)), answers


def handles_around(r: random.Random, world: World) -> None:
    """Nobody but who was given it has the handle, wherever he is."""
    box = [Clerk.options(max_restarts=-1, max_task_retries=-1, **world.somewhere(r)).remote(world.page())]
    refs = []
    for i in range(r.randint(1, 4)):
        depth = r.randint(0, 3)
        places = [world.somewhere(r) for _ in range(depth)]
        refs.append(note_at.options(**world.somewhere(r)).remote(depth, box, i, places))
    del box
    assert get(refs) == [2 * i for i in range(len(refs))]


def actors_of_workers(r: random.Random, world: World) -> None:
    """They end with the worker that has made them, if it dies: its job goes on, but it was the owner."""
    with world.faults.may_fail("an actor that a worker owns"):
        (actor,) = get(clerk_of_mine.options(**world.somewhere(r)).remote(world.page(), world.somewhere(r)))
        assert get([actor.note.remote(i) for i in range(10)]) == [2 * i for i in range(10)]
        assert get(note_at.options(**world.somewhere(r)).remote(0, [actor], 5, [])) == 10


KINDS = [
    calls_in_order, methods_and_objects, named_actors, async_calls, cancelled_calls, checkpoints, handles_around,
    actors_of_workers,
]  # fmt: skip
