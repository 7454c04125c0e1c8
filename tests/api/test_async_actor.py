"""Actors with coroutine methods, and refs, waits and errors in event loops: of actors and of the driver."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import signal
import threading
import time

import pytest

import ray
from ray.exceptions import RayTaskError, TaskCancelledError
from tests.wait import wait_until

user_variable: contextvars.ContextVar[str] = contextvars.ContextVar("user_variable", default="unset")


@ray.remote
def echo(value, delay_s=0.0):
    time.sleep(delay_s)
    return value


def wrapped(method):
    """A decorator that hides the coroutine function behind a plain one."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        return method(*args, **kwargs)

    return call


@ray.remote
class Worker:
    def __init__(self):
        self.gate = asyncio.Event()
        self.here = 0
        self.log: list[str] = []

    async def wait_for_the_gate(self, name=""):
        self.here += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.log.append(f"cancelled {name}")
            raise
        finally:
            self.here -= 1
        return name

    async def stubborn(self):
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            return "went on"

    async def open_the_gate(self):
        self.gate.set()

    async def inside(self):
        return self.here

    async def logged(self):
        return self.log

    async def waits_for(self, refs):
        return await refs[0]

    async def gathers(self, n):
        return await asyncio.gather(*[echo.remote(i) for i in range(n)])

    async def task_id_twice(self):
        first = ray.get_runtime_context().get_task_id()
        await asyncio.sleep(0.01)
        return first, ray.get_runtime_context().get_task_id()

    def plain(self, value):
        self.log.append(f"plain {value}")
        return value, ray.get_runtime_context().get_task_id()

    async def note(self, value):
        self.log.append(f"async {value}")

    @wrapped
    async def decorated(self, value):
        await asyncio.sleep(0)
        return value

    async def fails(self):
        raise KeyError("gone")

    def fails_at_once(self):
        raise KeyError("gone")

    async def sets_variable(self):
        seen = user_variable.get()
        user_variable.set("changed")
        return seen

    async def blocks_the_loop(self, refs):
        return ray.get(refs[0])

    async def submits(self, started, cancelled):
        return await child.remote(started, cancelled)

    async def thread(self):
        return threading.current_thread() is threading.main_thread(), asyncio.get_running_loop().is_running()


@ray.remote
def child(started, cancelled):
    started.touch()
    try:
        while True:
            time.sleep(0.01)
    finally:
        cancelled.touch()


# --- many calls on one loop ------------------------------------------------------------------------------------------


def test_thousands_of_calls_are_in_flight_on_one_loop(ray_shared):
    actor = Worker.options(max_concurrency=6000).remote()
    refs = [actor.wait_for_the_gate.remote(i) for i in range(5000)]
    wait_until(lambda: ray.get(actor.inside.remote(), timeout=30) == 5000)
    assert ray.get(actor.thread.remote(), timeout=30) == (True, True)
    ray.get(actor.open_the_gate.remote(), timeout=30)
    assert ray.get(refs, timeout=60) == list(range(5000))


def test_a_thousand_at_a_time_is_the_default(ray_shared):
    actor = Worker.options(concurrency_groups={"ask": 1}).remote()
    refs = [actor.wait_for_the_gate.remote(i) for i in range(1100)]
    inside = actor.inside.options(concurrency_group="ask")
    wait_until(lambda: ray.get(inside.remote(), timeout=30) == 1000)
    ray.get(actor.open_the_gate.options(concurrency_group="ask").remote(), timeout=30)
    assert ray.get(refs, timeout=60) == list(range(1100))


def test_calls_begin_in_the_order_of_their_arrival_plain_ones_too(ray_shared):
    actor = Worker.remote()
    for i in range(50):
        actor.note.remote(i)
        actor.plain.remote(i)
    assert ray.get(actor.logged.remote(), timeout=30) == [
        f"{kind} {i}" for i in range(50) for kind in ("async", "plain")
    ]


def test_plain_methods_and_decorated_ones_run_on_the_loop(ray_shared):
    actor = Worker.remote()
    ref = actor.plain.remote(7)
    assert ray.get(ref, timeout=30) == (7, ref.task_id().hex())
    assert ray.get([actor.decorated.remote(i) for i in range(5)], timeout=30) == list(range(5))


@pytest.mark.parametrize("method", ["fails", "fails_at_once"])
def test_an_error_of_a_method_is_the_caller_s(ray_shared, method):
    actor = Worker.remote()
    with pytest.raises(KeyError, match="gone") as caught:
        ray.get(getattr(actor, method).remote(), timeout=30)
    assert isinstance(caught.value, RayTaskError)


# --- contexts ------------------------------------------------------------------------------------------------------


def test_each_coroutine_has_its_own_runtime_context(ray_shared):
    actor = Worker.remote()
    refs = [actor.task_id_twice.remote() for _ in range(50)]
    for ref, (before, after) in zip(refs, ray.get(refs, timeout=30)):
        assert before == after == ref.task_id().hex()


def test_a_context_variable_set_in_one_call_is_not_seen_in_the_next(ray_shared):
    actor = Worker.options(max_concurrency=1).remote()
    assert ray.get([actor.sets_variable.remote() for _ in range(10)], timeout=30) == ["unset"] * 10


# --- cancelling ----------------------------------------------------------------------------------------------------


def test_cancel_raises_cancelled_error_inside_and_task_cancelled_error_at_the_caller(ray_shared):
    actor = Worker.remote()
    refs = [actor.wait_for_the_gate.remote(name) for name in "abc"]
    wait_until(lambda: ray.get(actor.inside.remote(), timeout=30) == 3)
    ray.cancel(refs[1])
    with pytest.raises(TaskCancelledError):
        ray.get(refs[1], timeout=30)
    assert ray.get(actor.logged.remote(), timeout=30) == ["cancelled b"]
    ray.get(actor.open_the_gate.remote(), timeout=30)
    assert ray.get([refs[0], refs[2]], timeout=30) == ["a", "c"]


def test_a_call_cancelled_before_it_began_is_never_run(ray_shared):
    actor = Worker.options(max_concurrency=1, concurrency_groups={"ask": 1}).remote()
    first = actor.wait_for_the_gate.remote("first")
    inside = actor.inside.options(concurrency_group="ask")
    wait_until(lambda: ray.get(inside.remote(), timeout=30) == 1)
    queued = [actor.note.remote(i) for i in range(3)]
    for ref in queued:
        ray.cancel(ref)
    for ref in queued:
        with pytest.raises(TaskCancelledError):
            ray.get(ref, timeout=30)
    ray.cancel(first)
    with pytest.raises(TaskCancelledError):
        ray.get(first, timeout=30)
    assert ray.get(actor.logged.remote(), timeout=30) == ["cancelled first"]


def test_calls_cancelled_at_once_after_they_were_made_all_end(ray_shared):
    actor = Worker.remote()
    refs = [actor.wait_for_the_gate.remote(i) for i in range(200)]
    for ref in refs:
        ray.cancel(ref)
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            ray.get(ref, timeout=30)
    assert ray.get(actor.inside.remote(), timeout=30) == 0


def test_a_coroutine_may_go_on_after_it_was_cancelled(ray_shared):
    actor = Worker.remote()
    ref = actor.stubborn.remote()
    ray.get(actor.inside.remote(), timeout=30)
    ray.cancel(ref)
    assert ray.get(ref, timeout=30) == "went on"


def test_cancel_reaches_the_tasks_that_a_coroutine_submitted_and_no_others(ray_start, tmp_path):
    actor = Worker.remote()
    names = [(tmp_path / f"started{i}", tmp_path / f"cancelled{i}") for i in range(2)]
    refs = [actor.submits.remote(*name) for name in names]
    wait_until(lambda: all(started.exists() for started, _ in names))
    ray.cancel(refs[0])
    with pytest.raises(TaskCancelledError):
        ray.get(refs[0], timeout=30)
    wait_until(names[0][1].exists)
    assert not names[1][1].exists()
    ray.cancel(refs[1])
    with pytest.raises(TaskCancelledError):
        ray.get(refs[1], timeout=30)


def test_cancel_reaches_the_tasks_that_a_coroutine_submits_before_it_is_interrupted(ray_start, tmp_path):
    @ray.remote
    def child():
        time.sleep(1000)

    @ray.remote(num_cpus=0)
    class Parent:
        async def submits(self):
            (tmp_path / "started").touch()
            while True:
                self.last = child.remote()
                threading.Event().wait(0.01)  # some hundred children are enough
                await asyncio.sleep(0)  # its next step is due already when the loop receives the cancel

        async def wait_for_the_last(self):
            await self.last

    actor = Parent.remote()
    ref = actor.submits.remote()
    wait_until((tmp_path / "started").exists)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=30)
    with pytest.raises(TaskCancelledError):
        ray.get(actor.wait_for_the_last.remote(), timeout=30)
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


# --- awaiting inside -------------------------------------------------------------------------------------------------


def test_refs_are_awaited_and_gathered_inside(ray_shared):
    actor = Worker.remote()
    assert ray.get(actor.waits_for.remote([echo.remote("inner")]), timeout=30) == "inner"
    assert ray.get(actor.gathers.remote(30), timeout=60) == list(range(30))


def test_a_call_that_arrives_while_a_get_blocks_the_loop_is_run_afterwards(ray_start):
    actor = Worker.remote()
    ray.get(actor.inside.remote(), timeout=30)
    blocked = actor.blocks_the_loop.remote([echo.remote(1, 0.5)])
    time.sleep(0.1)
    behind = actor.note.remote("behind")
    assert ray.get([blocked, behind], timeout=30) == [1, None]


def test_init_may_be_a_coroutine_and_start_tasks(ray_shared):
    @ray.remote
    class Clock:
        async def __init__(self, start):
            await asyncio.sleep(0)
            self.ticks = await start[0]
            self.ticked = asyncio.Event()
            self.task = asyncio.get_running_loop().create_task(self.tick())

        async def tick(self):
            self.ticks += 1
            self.ticked.set()

        async def read(self):
            await self.ticked.wait()
            return self.ticks

    assert ray.get(Clock.remote([echo.remote(41)]).read.remote(), timeout=30) == 42


def test_an_error_in_a_coroutine_init_is_the_actor_s_death(ray_shared):
    @ray.remote
    class Broken:
        async def __init__(self):
            raise KeyError("no")

        async def f(self): ...

    with pytest.raises(ray.exceptions.ActorDiedError, match="KeyError"):
        ray.get(Broken.remote().f.remote(), timeout=30)


# --- the driver's loop -----------------------------------------------------------------------------------------------


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_await_gather_wait_and_as_completed_take_refs(ray_shared):
    async def main():
        assert await echo.remote(1) == 1
        assert await asyncio.gather(*[echo.remote(i) for i in range(20)]) == list(range(20))
        futures = [asyncio.ensure_future(echo.remote(i)) for i in range(3)]
        done, pending = await asyncio.wait(futures)
        assert {future.result() for future in done} == {0, 1, 2} and not pending
        done, _ = await asyncio.wait([asyncio.wrap_future(echo.remote(5).future())])
        assert done.pop().result() == 5
        assert sorted([await one for one in asyncio.as_completed([echo.remote(i) for i in range(5)])]) == list(range(5))

    run(main())


def test_thousands_of_awaits_take_no_thread_each(ray_shared):
    actor = Worker.options(max_concurrency=5000).remote()

    async def main():
        tasks = [asyncio.ensure_future(actor.wait_for_the_gate.remote(i)) for i in range(3000)]
        await asyncio.sleep(0)
        before = threading.active_count()
        await actor.open_the_gate.remote()
        assert await asyncio.gather(*tasks) == list(range(3000))
        return before

    assert run(main()) < 20


def test_cancelling_a_coroutine_that_awaits_leaves_the_ref_as_it_was(ray_shared):
    actor = Worker.remote()
    ref = actor.wait_for_the_gate.remote("value")

    async def main():
        for _ in range(100):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(ref, 0.001)
        waiting = asyncio.ensure_future(ref)
        await actor.open_the_gate.remote()
        return await waiting

    assert run(main()) == "value"
    assert ray.get(ref, timeout=30) == "value"


def test_wait_async_is_wait_without_blocking_the_loop(ray_start):
    actor = Worker.remote()
    quick = [echo.remote(i) for i in range(4)]
    slow = [actor.wait_for_the_gate.remote(i) for i in range(4)]
    refs = [slow[0], quick[0], slow[1], quick[1], quick[2], slow[2], quick[3], slow[3]]

    async def main():
        async def tick():
            for _ in range(6):
                await asyncio.sleep(0.01)

        ready, rest = await ray.wait_async(refs, num_returns=4)
        assert set(ready) == set(quick) and rest == slow
        assert await ray.wait_async(rest, timeout=0.2) == ([], slow)
        assert await ray.wait_async(rest, timeout=0) == ([], slow)
        waiting = asyncio.ensure_future(ray.wait_async(rest, num_returns=4))
        await tick()
        assert not waiting.done()
        given_up = asyncio.ensure_future(ray.wait_async(rest))
        await asyncio.sleep(0)
        given_up.cancel()
        await actor.open_the_gate.remote()
        assert await waiting == (slow, [])
        assert await ray.wait_async(refs, 3) == (refs[:3], refs[3:])
        assert await ray.wait_async([]) == ([], [])

    run(main())


def test_wait_async_refuses_what_wait_refuses(ray_shared):
    ref = ray.put(1)
    for arguments, kind in (
        ((ref,), TypeError),
        (([ref], 2), ValueError),
        (([ref, ref],), ValueError),
        (([1],), TypeError),
    ):
        with pytest.raises(kind):
            run(ray.wait_async(*arguments))
    with pytest.raises(ValueError, match="timeout"):
        run(ray.wait_async([ref], timeout=-1))


# --- where blocking would never end ----------------------------------------------------------------------------------


def test_get_in_a_signal_handler_works_or_refuses_but_does_not_hang(ray_shared):
    outcome = []

    def handler(signum, frame):
        try:
            outcome.append(ray.get(echo.remote("in the handler"), timeout=30))
        except RuntimeError as error:
            outcome.append(str(error))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        ref = echo.remote("outside", 1.0)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert ray.get(ref, timeout=30) == "outside"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert outcome == ["in the handler"]
