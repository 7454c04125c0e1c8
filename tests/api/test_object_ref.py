"""ray.ObjectRef."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import pickle

import pytest

import ray
from tests.wait import wait_until


@ray.remote
def echo(x):
    return x


@ray.remote
def fail():
    raise KeyError("gone")


def test_a_ref_has_an_id_that_is_its_own(ray_shared):
    a, b = echo.remote(1), echo.remote(1)
    assert a != b and len({a, b, a}) == 2
    assert a.hex() == a.binary().hex() and len(a.binary()) == 28
    assert a.hex() in repr(a)
    assert sorted([b, a]) == sorted([a, b])
    assert not a.is_nil() and ray.ObjectRef.nil().is_nil()


def test_returns_of_one_task_share_its_id(ray_shared):
    @ray.remote(num_returns=2)
    def two():
        return 1, 2

    a, b = two.remote()
    assert a.task_id() == b.task_id()
    assert a.job_id() == ray.get_runtime_context().job_id


def test_a_ref_can_be_awaited_alone_and_together(ray_shared):
    async def main():
        assert await echo.remote(1) == 1
        assert await ray.put("put") == "put"
        assert await asyncio.gather(*[echo.remote(i) for i in range(20)]) == list(range(20))
        done, pending = await asyncio.wait([asyncio.wrap_future(echo.remote(5).future())])
        assert not pending and done.pop().result() == 5
        with pytest.raises(KeyError, match="gone"):
            await fail.remote()

    asyncio.run(main())


def test_future_gives_a_future_of_the_standard_library(ray_shared):
    future = echo.remote(7).future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=30) == 7
    with pytest.raises(KeyError):
        fail.remote().future().result(timeout=30)


@ray.remote(num_returns=8)
def eight(when):
    """They settle in one round, as soon as that file is there."""
    wait_until(when.exists)
    return range(8)


def test_what_ends_one_callback_keeps_no_other_from_running(ray_shared, tmp_path):
    def interrupted(future):
        raise KeyboardInterrupt  # a Ctrl-C that strikes here

    for i in range(5):  # whichever thread has the round
        futures = [ref.future() for ref in eight.remote(tmp_path / str(i))]
        futures[0].add_done_callback(interrupted)
        (tmp_path / str(i)).touch()
        with contextlib.suppress(KeyboardInterrupt):
            ray.get(echo.remote(1))
        assert [future.result(timeout=30) for future in futures] == list(range(8))


def test_what_a_callback_raises_ends_no_thread_of_ours(ray_shared, tmp_path):
    def leaves(future):
        raise SystemExit

    future = eight.remote(tmp_path / "now")[0].future()
    future.add_done_callback(leaves)
    (tmp_path / "now").touch()
    assert future.result(timeout=30) == 0
    later = echo.remote(2).future()  # nobody but our thread receives this
    assert later.result(timeout=30) == 2


def test_a_ref_can_be_copied_and_compared(ray_shared):
    ref = ray.put(1)
    assert copy.copy(ref) == ref == copy.deepcopy(ref)
    assert ref != 1 and ref != ref.hex()


def test_a_ref_lives_in_objects_closures_and_actors(ray_shared):
    ref = ray.put("value")

    @ray.remote
    def by_closure():
        return ray.get(ref)

    @ray.remote
    class Keeper:
        def keep(self, box):
            self.ref = box[0]

        def read(self):
            return ray.get(self.ref)

    keeper = Keeper.remote()
    ray.get(keeper.keep.remote([ref]))
    outer = ray.put({"inner": ref})
    assert ray.get(by_closure.remote()) == "value"
    ref = None
    assert ray.get(keeper.read.remote()) == "value"
    assert ray.get(ray.get(outer)["inner"]) == "value"


def test_pickling_a_ref_outside_ray_is_refused_with_what_to_do(ray_shared):
    with pytest.raises(TypeError, match="Pass it"):
        pickle.dumps(ray.put("the bytes could outlive the object"))


def test_object_refs_can_be_subscripted_for_type_checkers():
    assert ray.ObjectRef[int] is not None


def test_the_number_of_refs_a_process_keeps_does_not_grow(ray_shared):
    from ray._core.engine import current

    def interned():
        return current().stats()["interned_refs"]

    before = interned()
    for _ in range(3):
        ray.get([echo.remote([ray.put(i)]) for i in range(100)])
    wait_until(lambda: interned() <= before + 5)
