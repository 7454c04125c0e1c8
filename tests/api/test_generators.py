"""Generators: a ref for each value as soon as it was yielded; tasks and actors; who stops whom; deaths."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest

import ray
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    ObjectLostError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from tests.chaos.session import assert_held, held_at_rest, kill, store, stored
from tests.wait import wait_until

BIG = 300_000


class Notes:
    """Lines that workers write and the test reads; and a door that the test opens for them."""

    def __init__(self, folder):
        self.path = str(folder / "notes")
        self.door = str(folder / "door")

    def lines(self):
        return open(self.path).read().split() if os.path.exists(self.path) else []

    def await_line(self, line):
        wait_until(lambda: line in self.lines(), what=f"{line!r} among {self.lines()}")

    def open_door(self):
        open(self.door, "w").close()


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path)


def note(path, line):
    """Appends a line; how often it is there now."""
    with open(path, "a+") as file:
        file.write(f"{line}\n")
        file.flush()
        file.seek(0)
        return file.read().split().count(str(line))


@ray.remote
def count_to(n, fail_at=None):
    for i in range(n):
        if i == fail_at:
            raise ValueError("no further")
        yield i


@ray.remote
def echo(x):
    return x


class Body:
    """What the producers below have in common: they note each value before they yield it, and that they were closed."""

    def noted(self, path, n):
        try:
            for i in range(n):
                note(path, i)
                yield i
        finally:
            note(path, "closed")


@ray.remote
class Plain(Body):
    def ready(self):
        return os.getpid()


@ray.remote(max_concurrency=2)
class Threads(Body):
    def ready(self):
        return os.getpid()


@ray.remote
class Async(Body):
    async def anoted(self, path, n):
        try:
            for i in range(n):
                note(path, i)
                yield i
        finally:
            note(path, "closed")

    async def ready(self):
        return os.getpid()


KINDS = ["task", "actor", "threads", "async actor", "async generator"]
KINDS_AND_WINDOWS = [
    ("task", -1),
    ("task", 1),
    ("actor", 2),
    ("threads", -1),
    *[(kind, w) for kind in KINDS[3:] for w in (-1, 1)],
]


def producer(kind):
    """(the actor or None, what has .options and .remote for (path, n))"""
    if kind == "task":
        return None, noted
    actor = {"actor": Plain, "threads": Threads}.get(kind, Async).remote()
    return actor, actor.anoted if kind == "async generator" else actor.noted


@ray.remote
def noted(path, n):
    yield from Body().noted(path, n)


def drain(generator):
    return [ray.get(ref, timeout=60) for ref in generator]


# -- taking items -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_yielded_is_a_ref_in_order(ray_shared, notes, kind):
    _actor, remote = producer(kind)
    generator = remote.remote(notes.path, 100)
    assert isinstance(generator, ray.ObjectRefGenerator)
    assert drain(generator) == list(range(100))
    with pytest.raises(StopIteration):
        next(generator)
    assert generator.is_finished()


def test_an_item_comes_while_the_task_still_runs(ray_shared, notes):
    @ray.remote
    def wait_at_the_door(door):
        yield "before"
        while not os.path.exists(door):
            time.sleep(0.01)
        yield "after"

    generator = wait_at_the_door.remote(notes.door)
    assert ray.get(next(generator), timeout=60) == "before"
    assert not generator.next_ready() and not generator.is_finished()
    with pytest.raises(GetTimeoutError):
        ray.get(generator.completed(), timeout=0)
    notes.open_door()
    assert ray.get(next(generator), timeout=60) == "after"
    assert ray.get(generator.completed(), timeout=60) is None
    assert list(generator) == []


def test_a_generator_without_values_ends_at_once(ray_shared):
    assert list(count_to.remote(0)) == []


def test_items_are_iterated_with_async_for(ray_shared, notes):
    actor = Async.remote()

    async def use():
        tasks = [ref async for ref in count_to.remote(50)]
        calls = [await ref async for ref in actor.anoted.remote(notes.path, 50)]
        return await asyncio.gather(*tasks), calls

    assert asyncio.run(use()) == (list(range(50)), list(range(50)))


def test_two_generators_are_awaited_side_by_side(ray_shared, notes):
    """Neither blocks the loop: the second must give an item while the first waits for that."""

    @ray.remote
    def at_the_door(door):
        while not os.path.exists(door):
            time.sleep(0.01)
        yield "opened"

    async def use():
        slow, quick = at_the_door.remote(notes.door), count_to.remote(1)
        waiting = asyncio.ensure_future(slow.__anext__())
        assert await (await quick.__anext__()) == 0
        notes.open_door()
        return await (await waiting)

    assert asyncio.run(use()) == "opened"


def test_giving_up_on_an_item_in_asyncio_loses_none(ray_shared, notes):
    async def use():
        generator = at_door.remote(notes.door)
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(generator.__anext__(), 0.01)
        notes.open_door()
        return [await ref async for ref in generator]

    @ray.remote
    def at_door(door):
        while not os.path.exists(door):
            time.sleep(0.01)
        yield 1
        yield 2

    assert asyncio.run(use()) == [1, 2]


def test_wait_sees_a_generator_as_ready_when_it_has_an_item_or_has_ended(ray_shared, notes):
    @ray.remote
    def at_door(door):
        while not os.path.exists(door):
            time.sleep(0.01)
        yield 1

    generator, other = at_door.remote(notes.door), echo.remote(2)
    assert ray.wait([generator, other], timeout=60) == ([other], [generator])
    assert ray.wait([generator], timeout=0) == ([], [generator])
    notes.open_door()
    assert ray.wait([other, generator], num_returns=2, timeout=60) == ([other, generator], [])
    assert ray.get(next(generator)) == 1
    assert ray.wait([generator], timeout=60) == ([generator], [])
    assert list(generator) == []
    with pytest.raises(ValueError, match="twice"):
        ray.wait([generator_again := count_to.remote(1), generator_again])
    with pytest.raises(TypeError, match="element 1"):
        ray.wait([generator, "x"])


def test_an_exception_is_the_last_item(ray_shared):
    generator = count_to.remote(5, fail_at=2)
    refs = list(generator)
    assert ray.get(refs[:2]) == [0, 1] and len(refs) == 3
    with pytest.raises(ValueError, match="no further"):
        ray.get(refs[2])
    assert ray.get(generator.completed()) is None


def test_a_value_that_cannot_be_pickled_is_the_last_item_and_named(ray_shared):
    @ray.remote
    def bad():
        yield 1
        yield threading.Lock()
        yield 3

    refs = list(bad.remote())
    assert len(refs) == 2 and ray.get(refs[0]) == 1
    with pytest.raises(TypeError, match=r"value 1 yielded by bad\(\)"):
        ray.get(refs[1])


def test_the_arguments_of_a_generator_may_be_refs_still_to_come(ray_shared):
    assert drain(count_to.remote(echo.remote(echo.remote(3)))) == [0, 1, 2]

    @ray.remote
    def fails():
        raise KeyError("x")

    refs = list(count_to.remote(fails.remote()))
    assert len(refs) == 1
    with pytest.raises(KeyError):
        ray.get(refs[0])


def test_items_with_refs_inside_and_large_ones(ray_shared):
    @ray.remote
    def mixed(mine):
        yield mine
        yield [ray.put(np.full(BIG, 3, np.uint8))]
        yield np.full(BIG, 4, np.uint8)

    before = held_at_rest()
    mine = ray.put(np.full(BIG, 2, np.uint8))
    first, second, third = list(mixed.remote([mine]))
    assert ray.get(ray.get(first)[0])[0] == 2
    assert ray.get(ray.get(second)[0])[-1] == 3
    assert ray.get(third)[-1] == 4
    assert ray.get(echo.remote(third))[-1] == 4
    del mine, first, second, third
    assert_held(before)


def test_a_task_consumes_a_generator_of_its_own(ray_shared):
    @ray.remote
    def total(n):
        return sum(ray.get(ref) for ref in count_to.remote(n))

    assert ray.get(total.remote(100), timeout=60) == 4950


def test_generators_that_are_not_taken_cost_what_their_items_do(ray_shared):
    """More than may wait unsent in a connection (8 MiB): the producer waits for the socket, not for ever."""

    @ray.remote
    def kilobytes(n):
        for i in range(n):
            yield bytes([i % 256]) * 50_000

    generator = kilobytes.remote(400)
    ray.wait([generator.completed()])
    assert [ray.get(ref)[0] for ref in generator] == [i % 256 for i in range(400)]


# -- back-pressure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_producer_waits_until_its_items_are_taken(ray_shared, notes, kind):
    _actor, remote = producer(kind)
    generator = remote.options(_generator_backpressure_num_objects=2).remote(notes.path, 6)
    taken = []
    for produced in range(2, 7):
        notes.await_line(str(produced - 1))
        ray.get([echo.remote(i) for i in range(20)])  # time enough for one more value, if nothing held it back
        assert len(notes.lines()) == produced
        taken.append(ray.get(next(generator)))
    assert taken + drain(generator) == list(range(6))
    assert notes.lines()[-1] == "closed"


def test_a_producer_that_waits_lends_its_cpu(ray_start, notes):
    generator = noted.options(_generator_backpressure_num_objects=1, num_cpus=2).remote(notes.path, 3)
    notes.await_line("0")
    assert ray.get(echo.options(num_cpus=2).remote(1), timeout=60) == 1
    assert drain(generator) == [0, 1, 2]


# -- who stops whom ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, window", KINDS_AND_WINDOWS)
def test_a_dropped_generator_is_closed_where_it_runs(ray_shared, notes, kind, window):
    actor, remote = producer(kind)
    generator = remote.options(_generator_backpressure_num_objects=window).remote(notes.path, 10**6)
    assert ray.get(next(generator), timeout=60) == 0
    del generator
    notes.await_line("closed")
    assert len(notes.lines()) < 10**6
    if actor is not None:
        ray.get(actor.ready.remote(), timeout=60)  # it lives on


def test_a_dropped_generator_that_has_not_started_never_does(ray_start, notes):
    @ray.remote(num_cpus=2)
    def busy(door):
        while not os.path.exists(door):
            time.sleep(0.01)

    first = busy.remote(notes.door)
    generator = noted.remote(notes.path, 3)
    del generator
    notes.open_door()
    ray.get(first)
    assert drain(count_to.remote(2)) == [0, 1]
    assert notes.lines() == []


def test_a_generator_goes_on_while_somebody_waits_for_its_end(ray_shared, notes):
    generator = noted.options(_generator_backpressure_num_objects=1).remote(notes.path, 20)
    done = generator.completed()
    next(generator)
    del generator
    assert ray.get(done, timeout=60) is None
    assert notes.lines() == [*map(str, range(20)), "closed"]
    generator = noted.remote(notes.path, 10**6)
    done = generator.completed()
    next(generator)
    del generator
    del done
    wait_until(lambda: notes.lines().count("closed") == 2)


def test_close_drops_what_was_not_taken(ray_shared, notes):
    generator = noted.remote(notes.path, 10**6)
    next(generator)
    generator.close()
    assert list(generator) == []
    notes.await_line("closed")
    ray.get(generator.completed(), timeout=60)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_generator_gives_what_it_has_and_then_the_error(ray_shared, notes, kind):
    _actor, remote = producer(kind)
    generator = remote.options(_generator_backpressure_num_objects=3).remote(notes.path, 100)
    notes.await_line("2")
    ray.cancel(generator)
    *refs, last = list(generator)
    assert ray.get(refs) == list(range(len(refs)))
    with pytest.raises(TaskCancelledError):
        ray.get(last)
    with pytest.raises(TaskCancelledError):
        ray.get(generator.completed())
    notes.await_line("closed")


def test_cancel_interrupts_a_task_between_two_yields(ray_shared):
    @ray.remote
    def sleepy():
        yield 1
        time.sleep(60)
        yield 2

    generator = sleepy.remote()
    assert ray.get(next(generator)) == 1
    ray.cancel(generator)
    with pytest.raises(TaskCancelledError):
        ray.get(next(generator), timeout=60)


def test_dropping_an_async_generator_cancels_it_where_it_waits(ray_shared, notes):
    @ray.remote
    class Sleepy:
        async def items(self, path):
            try:
                yield 1
                await asyncio.sleep(600)
            finally:
                note(path, "closed")

    actor = Sleepy.remote()
    generator = actor.items.remote(notes.path)
    ray.get(next(generator))
    del generator
    notes.await_line("closed")


@pytest.mark.parametrize("kind, window", KINDS_AND_WINDOWS)
def test_the_consumers_death_closes_the_generator(ray_shared, notes, kind, window):
    @ray.remote(num_cpus=0)
    class Consumer:
        def take_one(self, actor, path):
            remote = noted if actor is None else getattr(actor, "anoted" if kind == "async generator" else "noted")
            self.generator = remote.options(_generator_backpressure_num_objects=window).remote(path, 10**7)
            return ray.get(next(self.generator))

    actor, _remote = producer(kind)
    consumer = Consumer.remote()
    assert ray.get(consumer.take_one.remote(actor, notes.path), timeout=60) == 0
    ray.kill(consumer)
    notes.await_line("closed")
    if actor is not None:
        ray.get(actor.ready.remote(), timeout=60)


@pytest.mark.parametrize("seconds, lines", [(0.5, ["cleaning", "closed"]), (3600, ["cleaning"])])
def test_an_interrupt_leaves_the_clean_up_of_a_closed_generator_its_time(ray_shared, notes, seconds, lines):
    """A cancel that comes while a generator is being closed waits for its `finally`, but not for ever."""

    @ray.remote
    def slow_to_close(path):
        try:
            while True:
                yield 1
                time.sleep(0.01)
        finally:
            note(path, "cleaning")
            time.sleep(seconds)
            note(path, "closed")

    @ray.remote(num_cpus=0)
    class Consumer:
        def take_one(self, path):
            self.generator = slow_to_close.remote(path)
            ray.get(next(self.generator))

        def close(self):
            self.generator.close()

    consumer = Consumer.remote()
    ray.get(consumer.take_one.remote(notes.path), timeout=60)
    ray.get(consumer.close.remote(), timeout=60)
    notes.await_line("cleaning")
    ray.kill(consumer)  # its worker is reclaimed
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    assert notes.lines() == lines


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [-1, 3])
def test_after_its_workers_death_a_generator_goes_on_where_it_was(ray_shared, notes, window):
    @ray.remote(max_retries=2, _generator_backpressure_num_objects=window)
    def dies_twice(path):
        run = note(path, "started")
        for i in range(10):
            if i == 3 * run and run < 3:
                time.sleep(0.05)  # so that what was yielded has left
                os.kill(os.getpid(), signal.SIGKILL)
            yield (i, np.full(BIG, i, np.uint8) if i % 2 else None)

    items = drain(dies_twice.remote(notes.path))
    assert [i for i, _ in items] == list(range(10))
    assert all(array[7] == i for i, array in items if i % 2)
    assert notes.lines().count("started") == 3


def test_without_retries_left_the_error_follows_the_items_that_came(ray_shared, notes):
    @ray.remote(max_retries=0)
    def dies(door):
        yield 1
        while not os.path.exists(door):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        yield 2

    generator = dies.remote(notes.door)
    assert ray.get(next(generator)) == 1
    notes.open_door()
    (second,) = list(generator)
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        ray.get(second)
    with pytest.raises(WorkerCrashedError):
        ray.get(generator.completed())


def test_a_retried_exception_skips_what_was_delivered(ray_shared, notes):
    @ray.remote(max_retries=1, retry_exceptions=[KeyError])
    def fails_once(path):
        run = note(path, "started")
        for i in range(5):
            if i == 3 and run == 1:
                raise KeyError(i)
            yield i

    assert drain(fails_once.remote(notes.path)) == [0, 1, 2, 3, 4]
    assert notes.lines().count("started") == 2


def test_a_restarted_actor_goes_on_where_it_was(ray_shared, notes):
    @ray.remote(max_restarts=1, max_task_retries=1)
    class Dies:
        def items(self, path):
            run = note(path, "started")
            for i in range(6):
                if i == 3 and run == 1:
                    time.sleep(0.05)
                    os.kill(os.getpid(), signal.SIGKILL)
                yield i

    actor = Dies.remote()
    assert drain(actor.items.remote(notes.path)) == list(range(6))


def test_a_killed_actors_generator_ends_with_its_error(ray_shared, notes):
    actor = Plain.remote()
    n = 100_000  # taking items lets the actor go on until the kill has reached it: it must not be done by then
    generator = actor.noted.options(_generator_backpressure_num_objects=2).remote(notes.path, n)
    notes.await_line("1")
    ray.kill(actor)
    *refs, last = list(generator)
    assert ray.get(refs) == list(range(len(refs))) and len(refs) < n
    with pytest.raises(ActorDiedError):
        ray.get(last)
    with pytest.raises(ActorDiedError):
        ray.get(generator.completed())


@ray.remote(max_retries=5)
def arrays(path, n):
    note(path, "started")
    for i in range(n):
        yield np.full(BIG, i, np.uint8)


def test_items_lost_with_the_store_are_made_again(ray_start, notes):
    refs = list(arrays.remote(notes.path, 5))
    kill("plasma_store")
    del refs[1]
    assert [int(ray.get(ref, timeout=60)[3]) for ref in refs] == [0, 2, 3, 4]
    assert notes.lines().count("started") == 2  # once for all of them
    del refs
    ray.put(None)
    wait_until(lambda: not stored(), what="the items to be freed")


def test_one_get_waits_for_items_that_are_found_lost_while_it_reads(ray_start, notes):
    """Reading the first sends all that are lost back to PENDING, and they come again one by one."""

    @ray.remote
    def slower_each_time(path):
        run = note(path, "started")
        for i in range(4):
            time.sleep(0.05 * (run - 1))
            yield np.full(BIG, i, np.uint8)

    refs = list(slower_each_time.remote(notes.path))
    kill("plasma_store")
    assert [int(value[0]) for value in ray.get(refs, timeout=60)] == [0, 1, 2, 3]


def test_items_between_lost_ones_are_still_there_after_the_run_that_makes_those_again(ray_start, notes):
    """That run yields them too, into the same place, and what nobody waited for was deleted: so each was lost in turn,
    and cost one of the tries. So it was if a store died and the generator went on before its consumer had seen that."""
    before = held_at_rest()
    refs = list(arrays.remote(notes.path, 6))
    assert ray.get(refs[2])[0] == 2
    with store() as client:
        assert all(client.delete(refs[i].binary()) for i in (1, 4))
    assert [int(ray.get(ref, timeout=60)[3]) for ref in refs] == list(range(6))
    assert notes.lines().count("started") == 2
    del refs
    assert_held(before)


def test_items_lost_while_their_generator_runs_are_made_again(ray_start, notes):
    generator = arrays.options(_generator_backpressure_num_objects=3).remote(notes.path, 8)
    first = next(generator)
    ray.wait([generator])
    kill("plasma_store")
    assert int(ray.get(first, timeout=60)[0]) == 0
    assert [int(ray.get(ref, timeout=60)[0]) for ref in generator] == list(range(1, 8))


def test_an_item_lost_from_a_generator_that_was_dropped_is_made_again(ray_start, notes):
    generator = arrays.remote(notes.path, 10**9)
    refs = [next(generator) for _ in range(3)]
    del generator
    ray.get(echo.options(num_cpus=2).remote(1), timeout=60)  # it has stopped
    kill("plasma_store")
    assert [int(ray.get(ref, timeout=60)[0]) for ref in refs] == [0, 1, 2]
    ray.get(echo.options(num_cpus=2).remote(1), timeout=60)  # and so has the second run


def test_an_item_that_is_not_yielded_again_is_lost_with_a_reason(ray_start, notes):
    @ray.remote
    def shrinks(path):
        for i in range(3 if note(path, "started") == 1 else 2):
            yield np.full(BIG, i, np.uint8)

    refs = list(shrinks.remote(notes.path))
    kill("plasma_store")
    assert int(ray.get(refs[1], timeout=60)[0]) == 1
    with pytest.raises(ObjectLostError, match="did not yield it again"):
        ray.get(refs[2], timeout=60)


def test_nothing_is_left_of_generators(ray_shared, notes):
    before = held_at_rest()
    list(count_to.remote(100))
    generator = arrays.remote(notes.path, 50)
    refs = [next(generator), next(generator)]
    del generator, refs
    dynamic = arrays.options(num_returns="dynamic").remote(notes.path, 3)
    ray.get(dynamic)
    del dynamic
    gc.collect()
    assert_held(before)


# -- num_returns ------------------------------------------------------------------------------------------------------


def test_dynamic_gives_one_ref_of_a_generator_of_refs(ray_shared):
    ref = count_to.options(num_returns="dynamic").remote(5)
    assert isinstance(ref, ray.ObjectRef)
    generator = ray.get(ref)
    assert isinstance(generator, ray.DynamicObjectRefGenerator) and len(generator) == 5
    assert ray.get(list(generator)) == [0, 1, 2, 3, 4]
    assert len(generator) == 0


def test_dynamic_keeps_the_exception_as_a_last_ref(ray_shared):
    *refs, last = ray.get(count_to.options(num_returns="dynamic").remote(5, 2))
    assert ray.get(refs) == [0, 1]
    with pytest.raises(ValueError, match="no further"):
        ray.get(last)


def test_dynamic_refs_may_be_passed_on_and_live_as_long_as_their_generator(ray_shared, notes):
    @ray.remote
    def sums(generator):
        return [int(ray.get(ref)[0]) for ref in generator]

    before = held_at_rest()
    ref = arrays.options(num_returns="dynamic").remote(notes.path, 3)
    assert ray.get(sums.remote(ref), timeout=60) == [0, 1, 2]
    inner = list(ray.get(ref))
    del ref
    assert [int(ray.get(r)[0]) for r in inner] == [0, 1, 2]
    del inner
    assert_held(before)


def test_dynamic_methods_of_actors(ray_shared, notes):
    @ray.remote
    class Actor:
        @ray.method(num_returns="dynamic")
        def items(self, n):
            yield from range(n)

        @ray.method(num_returns=2)
        async def two(self):
            yield "a"
            yield "b"

    actor = Actor.remote()
    assert ray.get(list(ray.get(actor.items.remote(3)))) == [0, 1, 2]
    assert ray.get(actor.two.remote()) == ["a", "b"]


def test_a_function_may_return_a_generator_of_its_several_values(ray_shared):
    """It is no generator function, so nobody knows beforehand; modin's tasks do this."""

    @ray.remote(num_returns=2)
    def halves(n):
        return (n // 2 + i for i in range(2))

    @ray.remote
    class Halver:
        @ray.method(num_returns=2)
        def halves(self, n):
            return (n // 2 + i for i in range(2))

    @ray.remote
    class AsyncHalver:
        @ray.method(num_returns=2)
        async def halves(self, n):
            return (n // 2 + i for i in range(2))

    assert ray.get(halves.remote(8)) == [4, 5]
    assert ray.get(Halver.remote().halves.remote(8)) == [4, 5]
    assert ray.get(Halver.options(max_concurrency=2).remote().halves.remote(8)) == [4, 5]
    assert ray.get(AsyncHalver.remote().halves.remote(8)) == [4, 5]


def test_a_fixed_number_of_returns_is_drawn_from_the_generator(ray_shared):
    assert ray.get(count_to.options(num_returns=3).remote(3)) == [0, 1, 2]
    assert ray.get(count_to.options(num_returns=2).remote(3)) == [0, 1]
    assert ray.get(count_to.options(num_returns=1).remote(3)) == 0
    assert count_to.options(num_returns=0).remote(3) is None
    *refs, last = count_to.options(num_returns=4).remote(3)
    assert ray.get(refs) == [0, 1, 2]
    with pytest.raises(ValueError, match="num_returns=4, but yielded only 3"):
        ray.get(last)
    first, *rest = count_to.options(num_returns=3).remote(3, 1)
    assert ray.get(first) == 0
    for ref in rest:
        with pytest.raises(ValueError, match="no further"):
            ray.get(ref)


def test_a_generator_that_a_plain_function_returns_is_a_value_like_any_other(ray_shared):
    @ray.remote
    def plain():
        return (i for i in range(3))

    with pytest.raises(TypeError, match="can't pickle the value returned by plain"):
        ray.get(plain.remote())


# -- what is refused --------------------------------------------------------------------------------------------------


def test_an_iterator_will_do_and_anything_else_is_refused_where_it_returns(ray_shared):
    # Nobody can see from outside what a compiled function returns.
    assert drain(ray.remote(iter).options(num_returns="streaming").remote([1, 2])) == [1, 2]
    (ref,) = list(ray.remote(abs).options(num_returns="streaming").remote(-5))
    with pytest.raises(TypeError, match="must return a generator, but returned a int"):
        ray.get(ref)


@pytest.mark.parametrize("returns", ["streaming", "dynamic"])
def test_num_returns_of_generators_is_refused_for_other_functions(returns):
    def plain():
        return [1]

    with pytest.raises(ValueError, match=f"num_returns='{returns}' is only for generator functions"):
        ray.remote(num_returns=returns)(plain)
    with pytest.raises(ValueError, match="only for generator functions"):
        ray.remote(plain).options(num_returns=returns)
    with pytest.raises(ValueError, match="only for generator functions"):
        ray.method(num_returns=returns)(plain)


@pytest.mark.parametrize("value", [0, -2, 2**32, "x", 1.5, True], ids=repr)
def test_a_wrong_window_is_refused(value):
    with pytest.raises((ValueError, TypeError), match="_generator_backpressure_num_objects"):
        count_to.options(_generator_backpressure_num_objects=value)


def test_a_window_is_only_for_streams():
    with pytest.raises(ValueError, match="only for num_returns='streaming'"):
        count_to.options(_generator_backpressure_num_objects=1, num_returns="dynamic")
    with pytest.raises(ValueError, match="only for num_returns='streaming'"):
        echo.options(_generator_backpressure_num_objects=1)


def test_a_generator_stays_in_its_process(ray_shared):
    generator = count_to.remote(1)
    for use in (ray.put, echo.remote, pickle.dumps):
        with pytest.raises(TypeError, match="can't be passed to another process"):
            use(generator)
    assert ray.get(generator) is generator
    with pytest.raises(ValueError, match="element 0"):
        ray.get([generator])
    with pytest.raises(TypeError, match="made by hand"):
        ray.ObjectRefGenerator()
    with pytest.raises(NotImplementedError, match=r"send\(\)"):
        generator.send(1)


def test_next_with_a_time_limit_gives_a_nil_ref(ray_shared, notes):
    @ray.remote
    def at_door(door):
        while not os.path.exists(door):
            time.sleep(0.01)
        yield 1

    generator = at_door.remote(notes.door)
    assert generator._next_sync(0.01).is_nil()
    assert asyncio.run(generator._next_async(0.01)).is_nil()
    notes.open_door()
    assert ray.get(generator._next_sync(10)) == 1
    with pytest.raises(StopIteration):
        generator._next_sync(10)


def test_a_generator_of_an_ended_session_says_so(ray_start):
    generator = count_to.remote(3)
    assert ray.get(next(generator)) == 0
    list(generator)
    other = noted.options(_generator_backpressure_num_objects=1).remote("/dev/null", 5)
    next(other)
    ray.shutdown()
    assert list(generator) == []
    with pytest.raises((ray.exceptions.RayError, RayTaskError)):
        ray.get(list(other)[-1])
