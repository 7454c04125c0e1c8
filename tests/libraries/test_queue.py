"""ray.util.queue.Queue."""

from __future__ import annotations

import asyncio
import queue

import pytest

import ray
from ray.exceptions import RayActorError
from ray.util.queue import Empty, Full, Queue
from tests.wait import wait_until


@ray.remote
def take(q, n):
    return [q.get() for _ in range(n)]


@ray.remote
def add(q, items):
    for item in items:
        q.put(item)


def has_a_waiter(q):
    """Whether a put or a get waits in the actor. Calls of one caller begin in the order in which they were made:
    `quiet` has looked when `qsize` answers."""
    quiet = q.actor.quiet.remote()
    ray.get(q.actor.qsize.remote())
    return not ray.wait([quiet], timeout=0)[0]


def test_items_come_out_in_the_order_in_which_they_went_in(ray_shared):
    q = Queue()
    for i in range(10):
        q.put(i)
    assert (q.qsize(), q.size(), len(q), q.empty(), q.full()) == (10, 10, 10, False, False)
    assert [q.get() for _ in range(10)] == list(range(10))
    assert q.empty()


def test_tasks_share_it(ray_shared):
    q = Queue(maxsize=3)
    taken = take.remote(q, 100)
    ray.get(add.remote(q, list(range(100))))
    assert ray.get(taken) == list(range(100))


def test_a_get_that_waits_is_woken_by_a_put(ray_shared):
    q = Queue()
    taken = take.remote(q, 1)
    wait_until(lambda: has_a_waiter(q))
    q.put("item")
    assert ray.get(taken) == ["item"]


def test_more_gets_may_wait_than_an_actor_runs_by_default(ray_shared):
    q = Queue()

    async def main():
        gets = [asyncio.ensure_future(q.get_async()) for _ in range(1500)]
        await asyncio.sleep(0)
        for i in range(1500):
            await q.put_async(i)
        return await asyncio.gather(*gets)

    assert sorted(asyncio.run(main())) == list(range(1500))


def test_full_and_empty_are_those_of_the_standard_library(ray_shared):
    q = Queue(maxsize=1)
    with pytest.raises(queue.Empty):
        q.get_nowait()
    with pytest.raises(Empty):
        q.get(timeout=0.01)
    q.put(1)
    assert q.full()
    with pytest.raises(queue.Full):
        q.put_nowait(2)
    with pytest.raises(Full):
        q.put(2, timeout=0.01)
    assert q.get(timeout=30) == 1
    q.put(3, timeout=30)
    assert q.get(block=False) == 3


def test_coroutines_may_use_it(ray_shared):
    q = Queue(maxsize=2)

    async def main():
        with pytest.raises(Empty):
            await q.get_async(block=False)
        with pytest.raises(Empty):
            await q.get_async(timeout=0.01)
        putting = asyncio.gather(*(q.put_async(i) for i in range(5)))
        got = [await q.get_async() for _ in range(5)]
        await putting
        await q.put_async(1)
        await q.put_async(2)
        with pytest.raises(Full):
            await q.put_async(3, block=False)
        with pytest.raises(Full):
            await q.put_async(3, timeout=0.01)
        return got

    assert sorted(asyncio.run(main())) == [0, 1, 2, 3, 4]


def test_batches_go_in_and_out_whole_or_not_at_all(ray_shared):
    q = Queue(maxsize=4)
    q.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full, match="2 more items"):
        q.put_nowait_batch([4, 5])
    assert q.qsize() == 3
    with pytest.raises(Empty, match="holds 3"):
        q.get_nowait_batch(4)
    assert q.get_nowait_batch(2) == [1, 2]
    assert q.get_nowait_batch(0) == []
    assert q.get_nowait_batch(1) == [3]


def test_a_ref_in_a_list_stays_a_ref(ray_shared):
    q, ref = Queue(), ray.put([1, 2])
    q.put([ref])
    del ref
    assert ray.get(q.get()[0]) == [1, 2]


def test_shutdown_lets_what_waits_end_first(ray_shared):
    q = Queue()
    other = ray.get(ray.put([q]))[0]  # another handle of the same queue
    taken = take.remote(q, 1)
    wait_until(lambda: has_a_waiter(q))
    q.put("last")
    q.shutdown(grace_period_s=30)
    assert ray.get(taken) == ["last"]
    with pytest.raises(RuntimeError, match="shut down"):
        q.put(1)
    with pytest.raises(RayActorError):
        other.get()


def test_shutdown_by_force_fails_what_waits(ray_shared):
    q = Queue()
    taken = take.remote(q, 1)
    wait_until(lambda: has_a_waiter(q))
    q.shutdown(force=True)
    with pytest.raises(RayActorError):
        ray.get(taken)


def test_shutdown_waits_no_longer_than_the_grace_period(ray_shared):
    q = Queue()
    taken = take.remote(q, 1)
    wait_until(lambda: has_a_waiter(q))
    q.shutdown(grace_period_s=0.1)
    with pytest.raises(RayActorError):
        ray.get(taken)


def test_the_actor_takes_options(ray_shared):
    q = Queue(actor_options={"num_cpus": 0.5})
    q.put(1)
    wait_until(lambda: ray.available_resources()["CPU"] == 1.5)
    q.shutdown(force=True)
    wait_until(lambda: ray.available_resources()["CPU"] == 2)


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda q: Queue(maxsize="3"), TypeError, "maxsize='3'"),
        (lambda q: Queue(actor_options={"nonsense": 1}), ValueError, "nonsense"),
        (lambda q: q.put(1, timeout=-1), ValueError, "timeout=-1"),
        (lambda q: q.get(timeout="1"), TypeError, "timeout='1'"),
        (lambda q: q.put_nowait_batch(3), TypeError, "items=3"),
        (lambda q: q.get_nowait_batch(-1), ValueError, "num_items=-1"),
        (lambda q: q.get_nowait_batch(1.0), TypeError, "num_items=1.0"),
    ],
    ids=["maxsize", "actor_options", "put timeout", "get timeout", "batch", "negative batch", "float batch"],
)
def test_wrong_arguments_are_named(ray_shared, use, error, says):
    with pytest.raises(error, match=says):
        use(Queue())
