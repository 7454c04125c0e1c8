"""Refs wander at random between a driver and actors, some of which die; a model of who owns what checks every read.

The model is small: a slot holds the number that its object was made of and the processes that own what it needs.
Reading a slot gives that number's value, or OwnerDiedError once an owner has been killed. At the end all slots are
dropped, and the owner's counts and the store must be as they were. A seed that once failed is kept in SEEDS.
"""

from __future__ import annotations

import gc
import os
import random

import numpy as np
import pytest

import ray
from ray.exceptions import ActorDiedError, OwnerDiedError
from tests.chaos.session import assert_held, forget_orphans, held_at_rest, kill, stored
from tests.wait import wait_until

SEEDS = list(range(1, 4))
SLOTS = 6
WHAT = "put make make task take take hand hand give read read wrap drop kill".split()


def value_of(number: int):
    """Plain, encoded or stored, by the number."""
    return [number, [number, "x"], np.full(30_000, number)][number % 3]


def is_value(value, number: int) -> bool:
    return bool(np.array_equal(value, value_of(number)))


@ray.remote(num_cpus=0)
class Trader:
    def __init__(self):
        self.slots = {}

    def pid(self):
        return os.getpid()

    def make(self, slot, number):
        self.slots[slot] = ray.put(value_of(number))

    def make_by_task(self, slot, number):
        self.slots[slot] = make.remote(number)

    def take(self, slot, box):
        self.slots[slot] = box[0]

    def hand_to(self, slot, other, other_slot):
        """Straight to another actor, without waiting for it to have it."""
        return [other.take.remote(other_slot, [self.slots[slot]])]

    def wrap(self, slot):
        """The ref goes into an object of our own, in its place."""
        self.slots[slot] = ray.put([self.slots[slot]])

    def give(self, slot):
        return [self.slots[slot]]

    def read(self, slot):
        return read(self.slots[slot])

    def drop(self, slot):
        self.slots.pop(slot, None)

    def drop_all(self):
        self.slots.clear()


@ray.remote
def make(number):
    return value_of(number)


@ray.remote
def read_in_task(box):
    return read(box[0])


def read(ref):
    """The value behind a ref, however often it was wrapped; None if an owner on the way has died."""
    try:
        value = ray.get(ref, timeout=30)
        while isinstance(value, list) and isinstance(value[0], ray.ObjectRef):
            value = ray.get(value[0], timeout=30)
    except OwnerDiedError:
        return None
    return value


class Trade:
    def __init__(self, seed: int, deadly: bool) -> None:
        self.random = random.Random(seed)
        self.deadly = deadly
        self.next_number = 0
        self.born = 0
        self.traders: dict[int, object] = {}
        self.slots: dict[tuple[int, int], tuple[int, frozenset[int]]] = {}  # (who, slot) -> (number, owners it needs)
        self.mine: list[tuple[object, int, frozenset[int]]] = []
        self.dead: set[int] = set()
        self.sent: list[tuple[int, object, str]] = []  # calls whose answers nobody needs; none may fail but by a kill
        for _ in range(4):
            self.hire()

    def hire(self) -> None:
        self.traders[self.born] = Trader.remote()
        self.born += 1

    def number(self) -> int:
        self.next_number += 1
        return self.next_number

    def step(self) -> None:
        r = self.random
        who = r.choice(list(self.traders))
        actor = self.traders[who]
        slot = r.randrange(SLOTS)
        full = [key for key in self.slots if key[0] in self.traders]
        what = r.choice(WHAT)
        if what == "put":
            n = self.number()
            self.mine.append((ray.put(value_of(n)) if r.random() < 0.5 else make.remote(n), n, frozenset()))
        elif what in ("make", "task"):
            n = self.number()
            self.send(who, what, (actor.make if what == "make" else actor.make_by_task).remote(slot, n))
            self.slots[who, slot] = (n, frozenset([who]))
        elif what == "take" and self.mine:
            ref, n, owners = r.choice(self.mine)
            self.send(who, what, actor.take.remote(slot, [ref]))
            self.slots[who, slot] = (n, owners)
        elif what == "drop" and self.mine and r.random() < 0.5:
            del self.mine[r.randrange(len(self.mine))]
        elif what == "kill":
            if self.deadly and r.random() < 0.5:
                self.kill(who, actor)
        elif full:
            self.step_with_slot(what, *r.choice(full))

    def step_with_slot(self, what: str, who: int, slot: int) -> None:
        r = self.random
        actor = self.traders[who]
        number, owners = self.slots[who, slot]
        if what == "hand":
            to, to_slot = r.choice(list(self.traders)), r.randrange(SLOTS)
            if to != who:
                # Order holds per caller only: what we sent there must be done before another writes to the slot.
                ray.get(self.traders[to].pid.remote(), timeout=30)
                (done,) = ray.get(actor.hand_to.remote(slot, self.traders[to], to_slot), timeout=30)
                if r.random() < 0.5:
                    self.send(who, what, actor.drop.remote(slot))
                    del self.slots[who, slot]
                ray.get(done, timeout=30)
                self.slots[to, to_slot] = (number, owners)
        elif what == "give":
            (ref,) = ray.get(actor.give.remote(slot), timeout=30)
            self.mine.append((ref, number, owners))
        elif what == "wrap":
            self.send(who, what, actor.wrap.remote(slot))
            self.slots[who, slot] = (number, owners | {who})
        elif what == "drop":
            self.send(who, what, actor.drop.remote(slot))
            del self.slots[who, slot]
        elif what == "read":
            try:
                value = ray.get(actor.read.remote(slot), timeout=60)
            except Exception:
                self.settle()  # what went wrong before says more
                raise
            self.check(value, number, owners)
            if self.mine:
                ref, number, owners = r.choice(self.mine)
                self.check(read(ref), number, owners)
                self.check(ray.get(read_in_task.remote([ref]), timeout=60), number, owners)

    def send(self, who: int, what: str, ref) -> None:
        self.sent.append((who, ref, f"{what} on actor {who}"))
        if len(self.sent) > 100:
            self.settle()

    def settle(self) -> None:
        for who, ref, what in self.sent:
            try:
                ray.get(ref, timeout=30)
            except ActorDiedError:
                assert who in self.dead, f"{what}: {who} is dead, but was not killed"
            except Exception as error:
                raise AssertionError(f"{what} failed") from error
        self.sent.clear()

    def check(self, value, number: int, owners: frozenset[int]) -> None:
        if owners & self.dead:
            # What the reader had fetched before the death it may still have.
            assert value is None or is_value(value, number)
        else:
            assert value is not None, f"object {number} of {set(owners)} was lost; dead are {self.dead}"
            assert is_value(value, number)

    def kill(self, who: int, actor) -> None:
        kill(ray.get(actor.pid.remote(), timeout=30))
        del self.traders[who]
        self.dead.add(who)
        self.slots = {key: v for key, v in self.slots.items() if key[0] != who}
        self.hire()

    def end(self) -> None:
        self.settle()
        for ref, number, owners in self.mine:
            self.check(read(ref), number, owners)
        self.mine.clear()
        ray.get([actor.drop_all.remote() for actor in self.traders.values()], timeout=30)

    def dismiss(self) -> None:
        """Only once nothing is in the store any more: an actor that ends while a borrower's word that it has let go is
        still on its way leaves that object to eviction."""
        self.traders.clear()


def check(seed: int, steps: int, deadly: bool) -> None:
    print(f"seed {seed}, {steps} steps, {'deadly' if deadly else 'peaceful'}")
    before = held_at_rest()
    trade = Trade(seed, deadly)
    for _ in range(steps):
        trade.step()
    trade.end()
    gc.collect()

    def emptied() -> bool:
        if deadly:
            forget_orphans()
        return len(stored()) <= before["stored"]

    wait_until(emptied, what="the store to hold no object of the traders")
    trade.dismiss()
    del trade
    gc.collect()
    assert_held(before, 10)


@pytest.mark.parametrize("deadly", [False, True], ids=["peaceful", "deadly"])
@pytest.mark.parametrize("seed", SEEDS)
def test_wandering_refs_keep_their_objects_alive_and_only_as_long_as_they_are(ray_shared, seed, deadly):
    check(seed, 120, deadly)


def test_wandering_refs_of_a_new_seed(ray_shared):
    check(int(os.environ.get("RAY_TEST_SEED", random.SystemRandom().randrange(1 << 32))), 250, True)


if __name__ == "__main__":  # python -m tests.stress.test_borrowing FIRST_SEED HOW_MANY STEPS [deadly]
    import sys

    ray.init(num_cpus=2)
    first, many, length = map(int, sys.argv[1:4])
    for one in range(first, first + many):
        check(one, length, "deadly" in sys.argv[4:])
