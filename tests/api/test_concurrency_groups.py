"""concurrency_groups= of actor classes, concurrency_group= of methods and calls, and the order of calls."""

from __future__ import annotations

import asyncio
import threading

import pytest

import ray
from tests.wait import wait_until


@ray.remote(concurrency_groups={"io": 2, "compute": 4})
class Threaded:
    """Its methods meet at barriers, which they pass only if as many run at a time as were expected."""

    def __init__(self):
        self.barriers = {n: threading.Barrier(n) for n in (1, 2, 4)}
        self.inside: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.gate = threading.Event()
        self.order: list[int] = []
        self.lock = threading.Lock()

    def _meet(self, group, n):
        with self.lock:
            self.inside[group] = self.inside.get(group, 0) + 1
            self.most[group] = max(self.most.get(group, 0), self.inside[group])
        self.barriers[n].wait(30)
        with self.lock:
            self.inside[group] -= 1

    @ray.method(concurrency_group="io")
    def io(self):
        self._meet("io", 2)

    @ray.method(concurrency_group="compute")
    def compute(self):
        self._meet("compute", 4)

    def default(self):
        self._meet("", 1)

    @ray.method(concurrency_group="io")
    def most_at_a_time(self):
        return self.most

    @ray.method(concurrency_group="io")
    def wait_for_the_gate(self):
        return self.gate.wait(30)

    def open_the_gate(self):
        self.gate.set()

    def note(self, i):
        self.order.append(i)
        return threading.current_thread().name

    def noted(self):
        return self.order


def test_each_group_runs_as_many_calls_at_a_time_as_it_was_given(ray_shared):
    actor = Threaded.remote()
    ray.get([actor.io.remote() for _ in range(4)] + [actor.compute.remote() for _ in range(8)], timeout=60)
    ray.get([actor.default.remote() for _ in range(3)], timeout=60)
    assert ray.get(actor.most_at_a_time.remote(), timeout=30) == {"io": 2, "compute": 4, "": 1}


def test_a_full_group_does_not_hold_up_another(ray_shared):
    actor = Threaded.remote()
    full = [actor.wait_for_the_gate.remote() for _ in range(5)]
    ray.get(actor.open_the_gate.remote(), timeout=30)  # in the default group
    assert ray.get(full, timeout=30) == [True] * 5


def test_a_call_may_choose_another_group_than_its_method_s(ray_shared):
    actor = Threaded.remote()
    blocked = [actor.wait_for_the_gate.remote() for _ in range(2)]
    there = ray.get(actor.note.options(concurrency_group="compute").remote(1), timeout=30)
    assert "compute" in there
    in_io = actor.note.options(concurrency_group="io").remote(2)
    assert ray.wait([in_io], timeout=0.2) == ([], [in_io])
    ray.get(actor.open_the_gate.remote(), timeout=30)
    assert ray.get(blocked, timeout=30) == [True, True]
    assert "io" in ray.get(in_io, timeout=30)


def test_calls_of_a_group_of_one_run_in_the_order_of_the_calls(ray_shared):
    actor = Threaded.remote()
    ray.get([actor.note.remote(i) for i in range(300)], timeout=60)
    assert ray.get(actor.noted.remote(), timeout=30) == list(range(300))


def test_the_default_group_has_max_concurrency(ray_shared):
    @ray.remote(max_concurrency=3, concurrency_groups={"one": 1})
    class Three:
        def __init__(self):
            self.barrier = threading.Barrier(3)

        def meet(self):
            return self.barrier.wait(30) >= 0

        @ray.method(concurrency_group="one")
        def alone(self):
            return threading.current_thread().name

    actor = Three.remote()
    assert ray.get([actor.meet.remote() for _ in range(6)], timeout=60) == [True] * 6
    assert len(set(ray.get([actor.alone.remote() for _ in range(20)], timeout=30))) == 1


@ray.remote(concurrency_groups={"io": 2, "single": 1})
class Coroutines:
    def __init__(self):
        self.inside: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.gate = asyncio.Event()
        self.order: list[int] = []

    async def _stay(self, group):
        self.inside[group] = self.inside.get(group, 0) + 1
        self.most[group] = max(self.most.get(group, 0), self.inside[group])
        await self.gate.wait()
        self.inside[group] -= 1

    @ray.method(concurrency_group="io")
    async def io(self):
        await self._stay("io")

    @ray.method(concurrency_group="single")
    async def single(self, i):
        self.order.append(i)
        await asyncio.sleep(0)
        await self._stay("single")

    async def default(self):
        await self._stay("")

    async def inside_now(self):
        return dict(self.inside)

    async def open_the_gate(self):
        self.gate.set()

    async def seen(self):
        return self.most, self.order


def test_an_asyncio_actor_s_groups_have_their_limits_and_keep_the_order(ray_shared):
    actor = Coroutines.remote()
    calls = [actor.io.remote() for _ in range(7)] + [actor.default.remote() for _ in range(50)]
    calls += [actor.single.remote(i) for i in range(9)]
    wait_until(lambda: ray.get(actor.inside_now.remote(), timeout=30) == {"io": 2, "": 50, "single": 1})
    ray.get(actor.open_the_gate.remote(), timeout=30)
    ray.get(calls, timeout=60)
    assert ray.get(actor.seen.remote(), timeout=30) == ({"io": 2, "": 50, "single": 1}, list(range(9)))


def test_a_queued_call_is_cancelled_at_once_though_its_group_is_full(ray_shared):
    for actor, method, release in (
        (Coroutines.remote(), "io", "open_the_gate"),
        (Threaded.remote(), "wait_for_the_gate", "open_the_gate"),
    ):
        running = [getattr(actor, method).remote() for _ in range(2)]
        queued = [getattr(actor, method).remote() for _ in range(3)]
        ray.cancel(queued[1])
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(queued[1], timeout=30)
        ray.get(getattr(actor, release).remote(), timeout=30)
        ray.get([*running, queued[0], queued[2]], timeout=30)


def test_groups_travel_with_handles(ray_shared):
    @ray.remote
    def use(actor):
        return ray.get(actor.note.options(concurrency_group="compute").remote(1))

    assert "compute" in ray.get(use.remote(Threaded.remote()), timeout=60)


def test_an_unknown_group_is_an_error_that_names_the_known_ones(ray_shared):
    with pytest.raises(ValueError, match=r"method f asks for concurrency_group='io'"):

        @ray.remote
        class A:
            @ray.method(concurrency_group="io")
            def f(self): ...

        A.remote()
    for actor, method in ((Threaded.remote(), "noted"), (Coroutines.remote(), "inside_now")):
        with pytest.raises(ValueError, match=r"concurrency_group='disk'.*'io'"):
            ray.get(getattr(actor, method).options(concurrency_group="disk").remote(), timeout=30)


@pytest.mark.parametrize(
    "given", [{"io": 0}, {"io": "2"}, {"": 1}, {1: 1}, "io", ["io"], [{"name": "io"}], {"io": True}]
)
def test_bad_groups_are_refused(given):
    with pytest.raises((ValueError, TypeError), match="concurrency_groups"):

        @ray.remote(concurrency_groups=given)
        class A:
            pass


def test_ray_s_list_of_groups_is_taken_too(ray_shared):
    @ray.remote(concurrency_groups=[{"name": "io", "max_concurrency": 2}])
    class A:
        @ray.method(concurrency_group="io")
        def f(self):
            return threading.current_thread().name

    assert "io" in ray.get(A.remote().f.remote(), timeout=30)


# --- order and arguments -------------------------------------------------------------------------------------------


@ray.remote
class Valve:
    """Gives its value when it is told to."""

    def __init__(self):
        self.opened = asyncio.Event()

    async def value(self):
        await self.opened.wait()
        return 1

    async def open(self):
        self.opened.set()


class Sync:
    def __init__(self):
        self.order: list[int] = []

    def note(self, i, _=None):
        self.order.append(i)
        return list(self.order)


class Async:
    def __init__(self):
        self.order: list[int] = []

    async def note(self, i, _=None):
        self.order.append(i)
        return list(self.order)


@pytest.mark.parametrize(
    "cls, options, overtakes",
    [
        (Sync, {}, False),
        (Sync, {"allow_out_of_order_execution": True}, True),
        (Sync, {"max_concurrency": 2}, True),
        (Async, {}, True),
        (Async, {"allow_out_of_order_execution": False}, False),
    ],
)
def test_whether_a_call_overtakes_one_that_waits_for_its_arguments(ray_shared, cls, options, overtakes):
    valve = Valve.remote()
    actor = (ray.remote(**options) if options else ray.remote)(cls).remote()
    first = actor.note.remote(1, valve.value.remote())
    second = actor.note.remote(2)
    assert bool(ray.wait([second], timeout=60 if overtakes else 0.3)[0]) is overtakes
    ray.get(valve.open.remote(), timeout=30)
    ray.get([first, second], timeout=30)
    order = [2, 1] if overtakes else [1, 2]
    assert ray.get(actor.note.remote(3), timeout=30) == [*order, 3]
