"""References on one machine: who keeps an object alive, and that it is gone everywhere when nobody does.

Each test ends by asserting that neither this process nor the store accounts for anything any more, so a count too
many anywhere (driver, worker, actor) shows as a failure, as does one too few: the value would be gone too early.
"""

from __future__ import annotations

import copy
import gc
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest

import ray
from ray.exceptions import GetTimeoutError, OwnerDiedError
from tests.chaos.session import assert_held, engine, forget_orphans, held_at_rest, kill, stored, within
from tests.wait import wait_until

BIG = 300_000  # bytes: goes to the store


def big(number: int) -> np.ndarray:
    return np.full(BIG, number % 251, dtype=np.uint8)


def same(value, number: int) -> bool:
    return bool((value == number % 251).all()) and value.nbytes == BIG


@pytest.fixture(autouse=True)
def nothing_held(ray_shared):
    before = held_at_rest()
    yield
    gc.collect()  # a caught error's traceback may hold the test's frame
    assert_held(before)


@ray.remote
def echo(x):
    return x


@ray.remote
def make(number):
    return big(number)


@ray.remote
def total(*values):
    return int(sum(int(v.sum()) if isinstance(v, np.ndarray) else v for v in values))


@ray.remote
def get_inside(box):
    return [ray.get(ref) for ref in box]


@ray.remote
class Keeper:
    def __init__(self, box=None):
        self.box = box

    def keep(self, box):
        self.box = box
        return os.getpid()

    def read(self):
        return [ray.get(ref) for ref in self.box]

    def give(self):
        return self.box

    def drop(self):
        self.box = None

    def put(self, number):
        self.box = [ray.put(big(number))]
        return self.box

    def put_small(self, number):
        self.box = [ray.put([number])]
        return self.box

    def hang(self):
        @ray.remote
        def pause():
            signal.pause()

        self.box = [pause.remote()]
        return self.box


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [7, [1, 2], big(3)], ids=["plain", "encoded", "stored"])
def test_a_ref_as_an_argument_arrives_as_its_value(value):
    assert np.array_equal(ray.get(echo.remote(ray.put(value))), value)
    assert np.array_equal(ray.get(echo.remote(echo.remote(value))), value)


@pytest.mark.parametrize("value", [7, [1, 2], big(3)], ids=["plain", "encoded", "stored"])
def test_a_ref_inside_an_argument_arrives_as_a_ref(value):
    for ref in (ray.put(value), echo.remote(value)):
        (got,) = ray.get(get_inside.remote([ref]))
        assert np.array_equal(got, value)


def test_an_argument_dropped_by_the_caller_lives_until_the_task_has_run():
    refs = [total.remote(ray.put(big(i)), make.remote(i)) for i in range(20)]
    assert ray.get(refs) == [2 * BIG * i for i in range(20)]


def test_a_ref_inside_an_argument_dropped_by_the_caller_lives_until_the_task_has_run():
    refs = [get_inside.remote([ray.put(big(i)), make.remote(i), {"deep": i} and echo.remote(i)]) for i in range(10)]
    for i, (a, b, c) in enumerate(ray.get(refs)):
        assert same(a, i) and same(b, i) and c == i
    del refs, a, b, c


def test_the_same_ref_many_times_in_one_argument_and_in_several():
    for ref in (ray.put(big(5)), echo.remote([5]), ray.put(5)):

        @ray.remote
        def identical(box, again, direct, more):
            return len({id(x) for x in box}) == 1 and box[0] is again["x"], ray.get(box[0]), direct, more

        one, a, b, c = ray.get(identical.remote([ref] * 50, {"x": ref}, ref, ref))
        assert one and np.array_equal(a, b) and np.array_equal(b, c)
        del a, b, c


def test_an_argument_that_is_not_ready_holds_back_its_task_only():
    @ray.remote
    def wait_for(path):
        while not os.path.exists(path):
            time.sleep(0.005)
        return 1

    path = f"/tmp/w-{os.getpid()}-gate"
    gate = wait_for.remote(path)
    behind = total.remote(gate, gate)
    assert ray.get(total.remote(1, 2)) == 3
    assert ray.wait([behind], timeout=0)[0] == []
    open(path, "w").close()
    try:
        assert ray.get(behind) == 2
    finally:
        os.unlink(path)


# -- returns ----------------------------------------------------------------------------------------------------------


def test_a_ref_in_a_return_outlives_the_task_that_put_it():
    @ray.remote
    def put_and_return(number):
        return [ray.put(big(number)), ray.put([number]), ray.put(number)]

    outer = put_and_return.remote(9)
    a, b, c = ray.get(outer)
    del outer
    assert same(ray.get(a), 9) and ray.get(b) == [9] and ray.get(c) == 9


def test_a_ref_to_a_task_in_a_return_outlives_the_task_that_called_it():
    @ray.remote
    def call(number):
        return [make.remote(number), echo.remote([number])]

    a, b = ray.get(call.remote(9))
    assert same(ray.get(a), 9) and ray.get(b) == [9]


def test_a_return_of_refs_that_nobody_gets_is_freed_with_them():
    @ray.remote
    def put_and_return(number):
        return [ray.put(big(number))]

    ref = put_and_return.remote(1)
    ray.wait([ref])
    wait_until(lambda: len(stored()) == 1)
    del ref
    ray.put(None)
    wait_until(lambda: not stored())


def test_an_argument_ref_in_a_return_comes_back_to_its_owner_as_itself():
    ref = ray.put(big(1))
    (back,) = ray.get(echo.remote([ref]))
    assert back is ref
    del ref
    assert same(ray.get(back), 1)


def test_a_ref_dropped_before_its_result_arrives_leaves_nothing():
    for _ in range(20):
        make.remote(1)
        echo.remote([ray.put(big(2))])
    ray.get([echo.remote(1) for _ in range(4)])


def test_several_returns_are_freed_one_by_one():
    @ray.remote(num_returns=3)
    def three():
        return big(1), big(2), big(3)

    a, b, c = three.remote()
    ray.wait([a, b, c], num_returns=3)
    assert len(stored()) == 3
    del b
    ray.put(None)
    wait_until(lambda: len(stored()) == 2)
    assert same(ray.get(a), 1) and same(ray.get(c), 3)


# -- put --------------------------------------------------------------------------------------------------------------


def test_a_put_object_keeps_the_refs_inside_alive():
    inner = ray.put(big(4))
    outer = ray.put({"inner": [inner]})
    del inner
    assert len(stored()) == 1
    inner = ray.get(outer)["inner"][0]
    del outer
    assert same(ray.get(inner), 4)


def test_refs_of_refs_of_refs_are_freed_from_the_outside_in():
    ref = ray.put(big(8))
    for _ in range(30):
        ref = ray.put([ref, big(1)])
    assert len(stored()) == 31
    for _ in range(30):
        ref = ray.get(ref)[0]
    assert same(ray.get(ref), 8)
    ray.put(None)
    wait_until(lambda: len(stored()) == 1)


def test_a_long_chain_of_refs_in_refs_is_freed_without_deep_recursion():
    ref = ray.put([1])
    for _ in range(100_000):
        ref = ray.put([ref])
    del ref


def test_ten_thousand_refs_in_one_object():
    refs = [ray.put(i) if i % 100 else ray.put(big(i)) for i in range(10_000)]
    outer = ray.put(refs)
    assert ray.get(outer) == refs
    del refs
    assert sum(int(v.sum()) // BIG if isinstance(v, np.ndarray) else v for v in ray.get(ray.get(outer))) == sum(
        i if i % 100 else i % 251 for i in range(10_000)
    )


def test_ten_thousand_refs_in_one_return_belong_to_the_worker_and_are_given_back():
    @ray.remote
    def many(n):
        return [ray.put(i) for i in range(n)]

    @ray.remote
    def count(refs):
        return sum(ray.get(refs))

    refs = ray.get(many.remote(10_000))
    assert sum(ray.get(refs)) == sum(range(10_000))
    assert ray.get(count.remote(refs)) == sum(range(10_000))


def test_a_ref_copied_in_every_way_is_one_ref():
    ref = ray.put(big(1))
    assert copy.copy(ref) is ref and copy.deepcopy([ref])[0] is ref
    outer = ray.put([ref, ref])
    a, b = ray.get(outer)
    assert a is ref and b is ref


# -- closures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [7, [1, 2], big(3)], ids=["plain", "encoded", "stored"])
def test_a_ref_in_a_closure_lives_as_long_as_the_function(value):
    ref = ray.put(value)

    @ray.remote
    def look():
        return ray.get(ref)  # noqa: F821 (deleted below)

    assert np.array_equal(ray.get(look.remote()), value)
    assert np.array_equal(ray.get([look.remote() for _ in range(5)])[4], value)
    # The engine and the workers keep a function, and so what it closes over, for the session: it ends here.
    del look, ref
    ray.shutdown()
    ray.init(num_cpus=2)


def test_a_function_passed_as_an_argument_brings_the_refs_it_closes_over():
    ref = make.remote(6)

    @ray.remote
    def call(function):
        return function()

    assert same(ray.get(call.remote(lambda: ray.get(ref))), 6)


# -- workers and actors that keep -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2], ids=["put small", "put big", "task"])
def test_an_actor_keeps_a_ref_after_its_owner_let_go(number):
    keeper = Keeper.remote()
    ref = [lambda: ray.put([5]), lambda: ray.put(big(5)), lambda: make.remote(5)][number]()
    ray.get(keeper.keep.remote([ref]))
    del ref
    for _ in range(3):
        (value,) = ray.get(keeper.read.remote())
        assert value == [5] if number == 0 else same(value, 5)
    del value
    ray.get(keeper.drop.remote())
    assert_given_back(keeper)


def assert_given_back(keeper):
    ray.put(None)
    wait_until(lambda: engine().stats()["lent"] == 0 and not stored() and ray.put(None), what="refs to be given back")


def test_an_actor_keeps_a_ref_given_to_its_constructor():
    keeper = Keeper.remote([ray.put(big(1)), make.remote(2), ray.put(3)])
    a, b, c = ray.get(keeper.read.remote())
    assert same(a, 1) and same(b, 2) and c == 3
    del a, b, c
    ray.get(keeper.drop.remote())


def test_a_worker_keeps_a_ref_in_a_global_after_its_task():
    @ray.remote
    def keep(box):
        import builtins

        builtins.kept_by_test = box
        return os.getpid()

    # Both run on more workers at once than the session has CPUs: earlier tests may have left it more workers than
    # those, and the one that is to be met might be the last in line.
    @ray.remote(num_cpus=0)
    def read():
        import builtins

        time.sleep(0.05)  # long enough for the next one to need another worker
        return os.getpid(), [ray.get(ref) for ref in getattr(builtins, "kept_by_test", [])]

    @ray.remote(num_cpus=0)
    def drop():
        import builtins

        builtins.kept_by_test = []
        time.sleep(0.05)
        return os.getpid()

    pid = ray.get(keep.remote([ray.put(big(5)), make.remote(6)]))
    for _ in range(100):
        values = dict(ray.get([read.remote() for _ in range(8)])).get(pid)
        if values:
            assert same(values[0], 5) and same(values[1], 6)
            break
    else:
        pytest.fail("the worker was never met again")
    values = None
    wait_until(lambda: pid in ray.get([drop.remote() for _ in range(8)]))


def test_refs_go_through_three_processes_to_a_fourth_and_the_first_still_owns_them():
    @ray.remote
    def relay(box, depth):
        if depth == 0:
            return [ray.get(ref) for ref in box]
        return ray.get(relay.remote(box, depth - 1))

    @ray.remote
    def relay_ref(box, depth):
        return box if depth == 0 else [relay_ref.remote(box, depth - 1), box]

    a, b = ray.get(relay.remote([ray.put(big(1)), make.remote(2)], 4))
    assert same(a, 1) and same(b, 2)
    del a, b
    ref = ray.put(big(3))
    nested = ray.get(relay_ref.remote([ref], 3))
    assert nested[1][0] is ref
    while len(nested) == 2:
        nested = ray.get(nested[0])
    assert nested[0] is ref


def test_a_borrower_passes_a_ref_on_and_ends_and_the_last_one_can_still_read_it():
    first, second, third = Keeper.remote(), Keeper.remote(), Keeper.remote()
    box = ray.get(first.put.remote(1))
    ray.get(second.keep.remote(box))
    del box
    box = ray.get(second.give.remote())
    ray.get(second.drop.remote())
    ray.kill(second)
    ray.get(third.keep.remote(box))
    del box
    ray.get(first.drop.remote())
    assert same(ray.get(third.read.remote())[0], 1)
    ray.get(third.drop.remote())
    wait_until(lambda: not stored())


def test_actors_that_hold_refs_to_each_others_objects_give_them_all_back():
    a, b = Keeper.remote(), Keeper.remote()
    from_a, from_b = ray.get([a.put.remote(1), b.put.remote(2)])
    ray.get([a.keep.remote(from_b), b.keep.remote(from_a)])
    del from_a, from_b
    assert len(stored()) == 2
    assert same(ray.get(a.read.remote())[0], 2) and same(ray.get(b.read.remote())[0], 1)
    ray.get([a.drop.remote(), b.drop.remote()])
    wait_until(lambda: not stored())


# -- the owner dies: what is there by then survives it, see test_owner_deaths.py --------------------------------------


def test_get_raises_owner_died_within_a_second_when_the_owner_was_killed():
    owner = Keeper.remote()
    (ref,) = ray.get(owner.hang.remote())
    kill(ray.get(owner.keep.remote([ref])))
    with within(), pytest.raises(OwnerDiedError):
        ray.get(ref, timeout=60)
    forget_orphans()


def test_get_raises_owner_died_when_the_owner_is_killed_while_we_wait():
    @ray.remote
    class Owner:
        def call(self):
            @ray.remote
            def hang():
                signal.pause()

            return os.getpid(), [hang.remote()]

    owner = Owner.remote()
    pid, (ref,) = ray.get(owner.call.remote())
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0.1)
    killer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with within(), pytest.raises(OwnerDiedError):
        ray.get(ref, timeout=60)
    killer.join()


def test_a_task_given_a_ref_of_a_dead_owner_fails_with_owner_died():
    owner = Keeper.remote()
    (ref,) = ray.get(owner.hang.remote())
    pid = ray.get(owner.keep.remote([ref]))
    os.kill(pid, signal.SIGKILL)
    with within(), pytest.raises(OwnerDiedError):
        ray.get(echo.remote(ref), timeout=60)
    with within(), pytest.raises(OwnerDiedError):
        ray.get(get_inside.remote([ref]), timeout=60)
    forget_orphans()


def test_wait_counts_a_ref_of_a_dead_owner_as_ready():
    owner = Keeper.remote()
    (ref,) = ray.get(owner.hang.remote())
    kill(ray.get(owner.keep.remote([ref])))
    with within():
        assert ray.wait([ref], timeout=60) == ([ref], [])


# -- actor handles ----------------------------------------------------------------------------------------------------


@ray.remote
class Selfish:
    """Its own handle is in its state."""

    def __init__(self):
        self.handles = []

    def pid(self):
        return os.getpid()

    def keep(self, handles):
        self.handles = handles

    def call_others(self):
        return [ray.get(h.pid.remote()) for h in self.handles]

    def handles_back(self):
        return self.handles

    def drop(self):
        self.handles = []


def ends(pid):
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 5, what=f"actor process {pid} to end")


def test_an_actor_exits_when_its_last_handle_goes():
    actor = Selfish.remote()
    pid = ray.get(actor.pid.remote())
    again = actor
    del actor
    ray.put(None)
    assert ray.get(again.pid.remote()) == pid
    del again
    ray.put(None)
    ends(pid)


def test_an_actor_exits_only_after_the_calls_made_on_it():
    actor = Selfish.remote()
    refs = [actor.pid.remote() for _ in range(100)]
    del actor
    assert len(set(ray.get(refs))) == 1
    ends(ray.get(refs[0]))


def test_a_handle_lives_on_in_a_task_and_in_another_actor():
    @ray.remote
    def call(handle):
        return ray.get(handle.pid.remote())

    holder, actor = Selfish.remote(), Selfish.remote()
    pid = ray.get(actor.pid.remote())
    assert ray.get(call.remote(actor)) == pid
    ray.get(holder.keep.remote([actor]))
    del actor
    assert ray.get(holder.call_others.remote()) == [pid]
    (actor,) = ray.get(holder.handles_back.remote())
    ray.get(holder.drop.remote())
    assert ray.get(actor.pid.remote()) == pid
    del actor
    ray.put(None)
    ends(pid)


def test_an_actor_whose_handle_is_in_its_own_state_ends_when_nobody_else_has_one():
    actor = Selfish.remote()
    pid = ray.get(actor.pid.remote())
    ray.get(actor.keep.remote([actor]))
    ray.get(actor.drop.remote())
    del actor
    ray.put(None)
    ends(pid)


def test_a_handle_returned_by_the_task_that_made_the_actor_works():
    @ray.remote
    def make_actor():
        actor = Selfish.remote()
        return actor, ray.get(actor.pid.remote())

    actor, pid = ray.get(make_actor.remote())
    assert ray.get(actor.pid.remote()) == pid
    del actor
    ray.put(None)
    ends(pid)


def test_a_put_handle_keeps_the_actor():
    actor = Selfish.remote()
    pid = ray.get(actor.pid.remote())
    box = ray.put([actor])
    del actor
    assert ray.get(ray.get(box)[0].pid.remote()) == pid
    del box
    ray.put(None)
    ends(pid)


# -- views ------------------------------------------------------------------------------------------------------------


def test_a_view_on_a_stored_value_outlives_its_ref():
    ref = ray.put(big(7))
    value = ray.get(ref)
    part = value[10:20]
    del ref, value
    ray.put(None)
    junk = [ray.put(big(i)) for i in range(20)]
    assert (part == 7).all()
    del part, junk


def test_weak_references_to_refs_work():
    ref = ray.put(1)
    weak = weakref.ref(ref)
    assert weak() is ref
    del ref
    assert weak() is None
