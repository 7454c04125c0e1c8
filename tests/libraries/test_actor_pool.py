"""ray.util.ActorPool."""

from __future__ import annotations

import os
import threading

import pytest

import ray
from ray.exceptions import ActorDiedError
from ray.util import ActorPool


@ray.remote
class Worker:
    def double(self, x):
        return 2 * x

    def wait_for(self, gates, x):
        """Returns x once its gate is open."""
        ray.get(gates[0].wait.remote(x))
        return x

    def fail(self, x):
        if x % 2:
            raise ValueError(x)
        return x

    def die(self, x):
        if x == 0:
            os._exit(1)
        return x


@ray.remote(max_concurrency=20)
class Gates:
    def __init__(self):
        self.opened = {}
        self.changed = threading.Condition()

    def wait(self, x):
        with self.changed:
            self.changed.wait_for(lambda: x in self.opened)

    def open(self, x):
        with self.changed:
            self.opened[x] = True
            self.changed.notify_all()


def double(actor, x):
    return actor.double.remote(x)


@pytest.fixture
def pool(ray_shared):
    return ActorPool([Worker.remote(), Worker.remote()])


def test_map_gives_the_results_in_order(pool):
    assert list(pool.map(double, range(50))) == [2 * x for x in range(50)]
    assert not pool.has_next()


def test_map_unordered_gives_all_results(pool):
    assert sorted(pool.map_unordered(double, range(50))) == [2 * x for x in range(50)]


def test_map_unordered_gives_what_ends_first_first(pool):
    gates = Gates.remote()
    results = pool.map_unordered(lambda actor, x: actor.wait_for.remote([gates], x), [1, 2])
    gates.open.remote(2)
    assert next(results) == 2
    gates.open.remote(1)
    assert next(results) == 1
    with pytest.raises(StopIteration):
        next(results)


def test_actors_go_on_working_while_the_oldest_call_is_waited_for(pool):
    """Calls 2 and 3 must run on the second actor while get_next waits for call 1; the last of them opens the gate."""
    gates = Gates.remote()

    def work(actor, x):
        return actor.wait_for.remote([gates], 1) if x == 1 else ray.remote(open_gate).remote(gates, actor, x)

    def open_gate(gates, actor, x):
        value = ray.get(actor.double.remote(x))
        if x == 3:
            ray.get(gates.open.remote(1))
        return value

    assert list(pool.map(work, [1, 2, 3])) == [1, 4, 6]


def test_submit_and_get_next_one_by_one(pool):
    for x in range(5):
        pool.submit(double, x)
    assert [pool.get_next() for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_ordered_and_unordered_may_be_mixed(pool):
    for x in range(6):
        pool.submit(double, x)
    taken = [pool.get_next_unordered(), pool.get_next(), pool.get_next_unordered(), pool.get_next(), pool.get_next()]
    assert sorted([*taken, pool.get_next()]) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("get_next", ["get_next", "get_next_unordered"])
def test_a_timeout_leaves_the_call_to_be_got_later(pool, get_next):
    gates = Gates.remote()
    pool.submit(lambda actor, x: actor.wait_for.remote([gates], x), 1)
    with pytest.raises(TimeoutError, match="within 0"):
        getattr(pool, get_next)(timeout=0)
    assert pool.has_next()
    gates.open.remote(1)
    assert getattr(pool, get_next)(timeout=30) == 1


@pytest.mark.parametrize("get_next", ["get_next", "get_next_unordered"])
def test_an_ignored_timeout_forgets_the_call_and_frees_the_actor(ray_shared, get_next):
    pool, gates = ActorPool([Worker.remote()]), Gates.remote()
    pool.submit(lambda actor, x: actor.wait_for.remote([gates], x), 1)
    pool.submit(double, 4)
    with pytest.raises(TimeoutError, match="forgotten"):
        getattr(pool, get_next)(timeout=0, ignore_if_timedout=True)
    gates.open.remote(1)
    assert getattr(pool, get_next)() == 8
    assert not pool.has_next()
    assert pool.has_free()


def test_map_forgets_what_was_not_taken_before(pool):
    for x in range(10):
        pool.submit(double, x)
    assert list(pool.map(double, [7])) == [14]


@pytest.mark.parametrize("name", ["map", "map_unordered"])
def test_an_error_is_raised_in_its_turn_and_costs_no_actor(pool, name):
    results = getattr(pool, name)(lambda actor, x: actor.fail.remote(x), range(6))
    seen = []
    for _ in range(6):
        try:
            seen.append(next(results))
        except ValueError as error:
            seen.append(error.args[0])
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    assert {pool.pop_idle(), pool.pop_idle()} != {None}
    assert pool.pop_idle() is None


def test_an_error_of_the_function_itself_costs_no_actor(ray_shared):
    pool = ActorPool([Worker.remote()])

    def refuse(actor, x):
        raise KeyError(x)

    with pytest.raises(KeyError):
        pool.submit(refuse, 1)
    assert pool.has_free()
    pool.submit(double, 1)
    pool.submit(refuse, 2)  # waits for the actor: its error comes when its turn comes
    pool.submit(double, 3)
    assert pool.get_next() == 2
    with pytest.raises(KeyError):
        pool.get_next()
    assert pool.get_next() == 6


def test_a_dead_actor_leaves_and_the_others_do_the_rest(pool):
    results = pool.map(lambda actor, x: actor.die.remote(x), range(8))
    with pytest.raises(ActorDiedError):
        next(results)
    assert list(results) == [1, 2, 3, 4, 5, 6, 7]
    assert pool.pop_idle() is not None
    assert pool.pop_idle() is None


def test_when_the_last_actor_is_dead_what_waits_fails_and_a_new_one_can_be_pushed(ray_shared):
    pool = ActorPool([Worker.remote()])
    results = pool.map(lambda actor, x: actor.die.remote(x), range(3))
    for _ in range(3):
        with pytest.raises(ActorDiedError):
            next(results)
    pool.push(Worker.remote())
    assert list(pool.map(double, [1])) == [2]


def test_push_and_pop_idle(ray_shared):
    pool = ActorPool([])
    assert not pool.has_free()
    pool.submit(double, 1)
    with pytest.raises(ValueError, match="push one"):
        pool.get_next()
    actor = Worker.remote()
    pool.push(actor)
    with pytest.raises(ValueError, match="in this pool already"):
        pool.push(actor)
    assert pool.pop_idle() is None
    assert pool.get_next() == 2
    assert pool.pop_idle() == actor


def test_wrong_arguments_are_named(pool):
    with pytest.raises(TypeError, match="handles of actors"):
        ActorPool([1])
    with pytest.raises(TypeError, match="fn=3"):
        pool.submit(3, 1)
    with pytest.raises(TypeError, match="expected the ObjectRef"):
        pool.submit(lambda actor, x: x, 1)
    assert pool.has_free()
