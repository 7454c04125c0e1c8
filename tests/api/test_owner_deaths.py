"""An object outlives its owner where a borrower needs it: on one machine. Each owner is killed with SIGKILL, unless a
test says otherwise; at the end of each test nothing is accounted for that was not before.

What a borrower has been told it keeps (docs/internals/references.md, "Heirs"): it is told within 20 ms of being handed
the ref, so a test waits for that (`told`) before it kills. `tests/cluster/test_owner_deaths.py` does it between nodes.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

import ray
from ray.exceptions import OwnerDiedError, RayError
from tests.chaos.session import assert_held, engine, held_at_rest, kill, store, stored, within
from tests.wait import wait_until

BIG = 300_000  # bytes: goes to the store


def big(number: int) -> np.ndarray:
    return np.full(BIG, number % 251, dtype=np.uint8)


def same(value: Any, number: int) -> bool:
    return bool((value == number % 251).all()) and value.nbytes == BIG


def told(*refs: ray.ObjectRef) -> None:
    """Waits until this process has been told what each of these is; without asking for it."""
    wait_until(lambda: "PENDING" not in engine().states(list(refs)))


@pytest.fixture(autouse=True)
def nothing_held(ray_shared):
    before = held_at_rest()
    yield
    gc.collect()
    assert_held(before)


@ray.remote
def make(number):
    return big(number)


@ray.remote
class Owner:
    def pid(self):
        return os.getpid()

    def put(self, number):
        return [ray.put(big(number))]

    def put_small(self, number):
        return [ray.put([number])]

    def call(self, number):
        ref = make.remote(number)
        ray.wait([ref])
        return [ref]

    def actor_call(self, number):
        self.other = Owner.remote()
        ref = self.other.big.remote(number)
        ray.wait([ref])
        return [ref]

    def big(self, number):
        return big(number)

    def put_nested(self, number):
        return [ray.put([ray.put(big(number)), ray.put([number]), bytes(BIG)])]

    def hang(self):
        @ray.remote
        def pause():
            signal.pause()

        return [pause.remote()]


@ray.remote
class Keeper:
    def keep(self, box):
        self.box = box
        return os.getpid()

    def known(self):
        return "PENDING" not in engine().states(self.box)

    def read(self):
        return ray.get(self.box)

    def give(self):
        return self.box

    def drop(self):
        self.box = None


@ray.remote
def read_inside(box):
    return ray.get(box)


@ray.remote
def keep_and_give(box):
    return box


def borrowed(method: str, number: int = 1) -> list[ray.ObjectRef]:
    """Refs that an actor has made, which is dead now; this process has been told what they are."""
    owner = Owner.remote()
    refs = ray.get(getattr(owner, method).remote(number))
    told(*refs)
    kill(ray.get(owner.pid.remote()))
    return refs


@pytest.mark.parametrize("method", ["put", "call", "actor_call"])
def test_a_large_object_outlives_its_owner_and_is_freed_with_the_last_ref(method):
    (ref,) = borrowed(method)
    with within():
        assert same(ray.get(ref, timeout=10), 1)
    assert ref.binary() in stored()
    del ref
    wait_until(lambda: not stored())


def test_a_small_object_outlives_its_owner():
    (ref,) = borrowed("put_small")
    with within():
        assert ray.get(ref, timeout=10) == [1]


def test_a_function_that_was_a_worker_of_ours_leaves_its_objects_to_us():
    @ray.remote(max_retries=0)
    def put_and_die(keeper):
        refs = [ray.put(big(2)), ray.put([2])]
        ray.get(keeper.keep.remote(refs))
        while not ray.get(keeper.known.remote()):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    keeper = Keeper.remote()
    with pytest.raises(RayError):
        ray.get(put_and_die.remote(keeper))
    large, small = ray.get(keeper.read.remote(), timeout=10)
    assert same(large, 2) and small == [2]
    del large
    ray.get(keeper.drop.remote())
    wait_until(lambda: not stored())


def test_an_owner_that_is_ended_in_order_leaves_its_objects_too():
    owner = Owner.remote()
    (large,) = ray.get(owner.put.remote(3))
    (small,) = ray.get(owner.put_small.remote(3))
    told(large, small)
    with pytest.raises(RayError):
        ray.get(owner.__ray_terminate__.remote())
    assert same(ray.get(large, timeout=10), 3) and ray.get(small, timeout=10) == [3]


def test_refs_inside_an_object_outlive_the_owner_of_both():
    owner = Owner.remote()
    (box,) = ray.get(owner.put_nested.remote(4))
    told(*ray.get(box)[:2])
    kill(ray.get(owner.pid.remote()))
    large, small, _ = ray.get(box, timeout=10)
    assert same(ray.get(large, timeout=10), 4) and ray.get(small, timeout=10) == [4]
    del box, _
    assert same(ray.get(large, timeout=10), 4)
    del large
    wait_until(lambda: not stored())


def test_of_two_borrowers_the_last_one_frees():
    keeper = Keeper.remote()
    owner = Owner.remote()
    refs = ray.get(owner.put.remote(5))
    ray.get(keeper.keep.remote(refs))
    told(*refs)
    wait_until(lambda: ray.get(keeper.known.remote()))
    kill(ray.get(owner.pid.remote()))
    assert same(ray.get(keeper.read.remote(), timeout=10)[0], 5)
    del refs
    assert same(ray.get(keeper.read.remote(), timeout=10)[0], 5)
    ray.get(keeper.drop.remote())
    wait_until(lambda: not stored())


def test_a_borrower_that_dies_next_leaves_it_to_the_other_and_nothing_to_nobody():
    keepers = [Keeper.remote(), Keeper.remote()]
    owner = Owner.remote()
    refs = ray.get(owner.put.remote(6))
    pids = ray.get([keeper.keep.remote(refs) for keeper in keepers])
    del refs
    for keeper in keepers:
        wait_until(lambda keeper=keeper: ray.get(keeper.known.remote()))
    kill(ray.get(owner.pid.remote()))
    kill(pids[0])
    assert same(ray.get(keepers[1].read.remote(), timeout=10)[0], 6)
    kill(pids[1])
    wait_until(lambda: not stored())


@pytest.mark.parametrize("method", ["put", "put_small"])
def test_a_ref_that_is_passed_on_after_its_owners_death_arrives(method):
    refs = borrowed(method, 7)
    assert np.array_equal(ray.get(read_inside.remote(refs), timeout=10)[0], ray.get(refs[0]))
    assert np.array_equal(ray.get(make_sum.remote(refs[0]), timeout=10), int(np.sum(ray.get(refs[0]))))
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote(refs))
    again = ray.get(keep_and_give.remote(refs), timeout=10)
    assert again == refs
    del refs, again
    (back,) = ray.get(keeper.give.remote(), timeout=10)
    assert np.array_equal(ray.get(keeper.read.remote(), timeout=10)[0], ray.get(back, timeout=10))
    ray.get(keeper.drop.remote())
    del back
    wait_until(lambda: not stored())


@ray.remote
def make_sum(value):
    return int(np.sum(value))


def test_it_may_be_handed_on_from_heir_to_heir():
    refs = borrowed("put", 8)
    keepers = [Keeper.remote() for _ in range(3)]
    pids = []
    for keeper in keepers:
        pids.append(ray.get(keeper.keep.remote(refs), timeout=10))
        del refs
        refs = ray.get(keeper.give.remote(), timeout=10)
    told(*refs)
    for pid in pids:
        kill(pid)
    assert same(ray.get(refs[0], timeout=10), 8)


def test_the_constructor_of_an_actor_gets_what_its_owner_left():
    @ray.remote
    class Reader:
        def __init__(self, box):
            (self.value,) = ray.get(box)

        def value_is(self):
            return self.value

    refs = borrowed("put_small", 9)
    assert ray.get(Reader.remote(refs).value_is.remote(), timeout=10) == [9]


def test_a_stored_object_survives_even_if_its_borrower_was_told_nothing():
    owner = Owner.remote()
    pid = ray.get(owner.pid.remote())
    (ref,) = ray.get(owner.put_nested.remote(10))
    kill(pid)
    assert same(ray.get(ray.get(ref, timeout=10)[0], timeout=10), 10)


def test_what_was_not_there_yet_is_lost_and_the_error_says_so():
    owner = Owner.remote()
    pid = ray.get(owner.pid.remote())
    (ref,) = ray.get(owner.hang.remote())
    killer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with within(), pytest.raises(OwnerDiedError, match=r"it had no value yet.*a process make it that lives as long"):
        ray.get(ref, timeout=10)
    killer.join()


def test_a_large_object_that_the_store_loses_after_its_owner_is_lost_by_name():
    (ref,) = borrowed("put", 11)
    with store() as client:
        client.delete(ref.binary())
    with within(), pytest.raises(OwnerDiedError, match=r"lost from the store since then"):
        ray.get(ref, timeout=10)


def test_a_full_store_evicts_nothing_that_an_heir_keeps():
    refs = borrowed("put", 12)
    with store() as client:
        client.evict(1 << 60)
    assert same(ray.get(refs[0], timeout=10), 12)


def test_many_objects_of_one_owner():
    owner = Owner.remote()
    refs = [ref for (ref,) in ray.get([owner.put_small.remote(i) for i in range(300)])]
    told(*refs)
    kill(ray.get(owner.pid.remote()))
    assert ray.get(refs, timeout=10) == [[i] for i in range(300)]
