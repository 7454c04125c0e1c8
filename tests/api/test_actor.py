"""Actors: creating, calling, handles, restarts, exits."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time

import pytest

import ray
from ray.exceptions import ActorDiedError, RayActorError
from tests.leaks import has_ended
from tests.wait import wait_until


@ray.remote
class Counter:
    """Counts."""

    step = 1

    def __init__(self, start=0, *, step=1):
        self.value = start
        self.step = step

    def increment(self, times=1):
        self.value += times * self.step
        return self.value

    @ray.method(num_returns=2)
    def two(self):
        return self.value, -self.value

    def pid(self):
        return os.getpid()

    def fail(self, text):
        raise ValueError(text)

    def die(self, code=3):
        os._exit(code)

    @staticmethod
    def twice(x):
        return 2 * x

    @classmethod
    def class_name(cls):
        return cls.__name__


# --- calling ---------------------------------------------------------------------------------------------------------


def test_calls_share_state_and_run_in_the_order_they_were_made(ray_shared):
    counter = Counter.remote()
    assert ray.get([counter.increment.remote() for _ in range(100)]) == list(range(1, 101))


def test_each_actor_has_a_process_and_a_state_of_its_own(ray_shared):
    a, b = Counter.remote(10), Counter.remote(start=20, step=5)
    assert ray.get([a.increment.remote(), b.increment.remote()]) == [11, 25]
    assert len({*ray.get([a.pid.remote(), b.pid.remote()]), os.getpid()}) == 3


def test_refs_as_arguments_become_their_values_and_order_is_kept_meanwhile(ray_shared):
    @ray.remote
    def slow():
        time.sleep(0.2)
        return 100

    counter = Counter.remote(ray.put(1))
    assert ray.get([counter.increment.remote(slow.remote()), counter.increment.remote(1)]) == [101, 102]


def test_num_returns_of_a_method_by_decorator_and_by_options(ray_shared):
    counter = Counter.remote(4)
    assert ray.get(counter.two.remote()) == [4, -4]
    assert ray.get(counter.two.options(num_returns=1).remote()) == (4, -4)
    assert ray.get(counter.two._remote(num_return_vals=1)) == (4, -4)
    assert counter.increment.options(num_returns=0).remote() is None
    assert ray.get(counter.increment.remote(0)) == 5


def test_static_and_class_methods_are_methods_too(ray_shared):
    counter = Counter.remote()
    assert ray.get([counter.twice.remote(4), counter.class_name.remote()]) == [8, "Counter"]
    assert Counter.twice(3) == 6
    assert Counter.step == 1


def test_an_error_in_a_method_leaves_the_actor_alive(ray_shared):
    counter = Counter.remote()
    with pytest.raises(ValueError, match="just this once"):
        ray.get(counter.fail.remote("just this once"))
    assert ray.get(counter.increment.remote()) == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda c: c.increment.remote(1, 2), r"Counter\.increment\(\) takes from 0 to 1 positional arguments but 2"),
        (lambda c: c.increment.remote(by=2), r"Counter\.increment\(\) got an unexpected keyword argument 'by'"),
        (lambda c: c.fail.remote(), r"Counter\.fail\(\) missing 1 required positional argument: 'text'"),
        (lambda c: Counter.remote(1, 2), r"takes from 0 to 1 positional arguments but 2"),
        (lambda c: Counter.remote(begin=1), r"unexpected keyword argument 'begin'"),
    ],
)
def test_wrong_arguments_are_a_type_error_at_the_call(ray_shared, call, message):
    counter = Counter.remote()
    with pytest.raises(TypeError, match=message):
        call(counter)


def test_arguments_for_a_class_without_init_are_a_type_error_at_the_call(ray_shared):
    @ray.remote
    class Plain: ...

    with pytest.raises(TypeError, match="Plain"):
        Plain.remote(1)


def test_plain_calls_say_remote(ray_shared):
    with pytest.raises(TypeError, match=r"Counter\.remote\("):
        Counter()
    with pytest.raises(TypeError, match=r"\.increment\.remote\("):
        Counter.remote().increment()


def test_a_method_that_is_not_there_is_an_attribute_error_with_a_hint(ray_shared):
    counter = Counter.remote()
    with pytest.raises(AttributeError, match=r"has no method 'incremnt'; did you mean 'increment'"):
        counter.incremnt.remote()
    with pytest.raises(AttributeError, match="'value'"):
        counter.value.remote()
    assert not hasattr(counter, "nonsense")


def test_methods_and_parameters_may_have_any_name(ray_shared):
    @ray.remote
    class Odd:
        def remote(self, args=1, kwargs=2, num_returns=3):
            return args, kwargs, num_returns

        def options(self):
            return "options"

        def __call__(self, x):
            return x + 1

    odd = Odd.remote()
    assert ray.get(odd.remote.remote(args=5, kwargs=6, num_returns=7)) == (5, 6, 7)
    assert ray.get(odd.options.remote()) == "options"
    assert ray.get(odd.__call__.remote(1)) == 2


def test_a_dataclass_can_be_an_actor(ray_shared):
    @ray.remote
    @dataclasses.dataclass
    class Point:
        x: int
        y: int = 2

        def total(self):
            return self.x + self.y

    assert ray.get(Point.remote(1, y=5).total.remote()) == 6
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Point.remote()


def test_an_actor_may_create_actors_and_hold_its_own_handle(ray_shared):
    @ray.remote
    class Parent:
        def child(self):
            return Counter.remote(5)

        def keep(self, handles):
            self.me = handles[0]
            return True

    parent = Parent.remote()
    assert ray.get(ray.get(parent.child.remote()).increment.remote()) == 6
    assert ray.get(parent.keep.remote([parent]))
    assert ray.get(ray.get(parent.child.remote()).increment.remote()) == 6


def test_a_class_cannot_inherit_from_an_actor_class():
    with pytest.raises(TypeError, match="inherit"):

        class Sub(Counter): ...


def test_an_actor_class_may_inherit_from_a_plain_one(ray_shared):
    class Base:
        def hello(self):
            return "base"

        def hidden(self):
            return 1

    @ray.remote
    class Derived(Base):
        hidden = None

        def hello(self):
            return "derived " + super().hello()

    derived = Derived.remote()
    assert ray.get(derived.hello.remote()) == "derived base"
    with pytest.raises(AttributeError):
        derived.hidden.remote()


def test_an_actor_class_keeps_name_docs_and_class():
    assert Counter.__name__ == "Counter"
    assert Counter.__doc__ == "Counts."
    assert Counter.__ray_actor_class__(5).increment() == 6


# --- creating --------------------------------------------------------------------------------------------------------


def test_an_error_in_init_is_raised_by_the_calls(ray_shared):
    @ray.remote
    class Broken:
        def __init__(self):
            raise KeyError("no key")

        def method(self):
            return 1

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(RayActorError, match="no key"):
            ray.get(broken.method.remote(), timeout=30)


@pytest.mark.parametrize(
    "options", [{"max_restarts": -5}, {"max_retries": 1}, {"num_returns": 2}, {"num_cpus": -1}], ids=repr
)
def test_a_wrong_option_is_an_error_where_it_is_given(options):
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        ray.remote(**options)(type("Actor", (), {}))
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        Counter.options(**options)


def test_get_if_exists_needs_a_name():
    with pytest.raises(ValueError, match="name="):
        Counter.options(get_if_exists=True)


def test_method_options_are_checked_where_they_are_given(ray_shared):
    with pytest.raises((ValueError, TypeError), match="num_returns"):
        ray.method(num_returns="two")(lambda self: 1)
    with pytest.raises(TypeError, match="keyword"):
        ray.method()
    with pytest.raises(ValueError, match="num_retruns"):
        Counter.remote().increment.options(num_retruns=2)


@pytest.mark.parametrize("ray_start", [{"num_cpus": 2, "resources": {"slot": 2}}], indirect=True)
def test_an_actor_holds_its_resources_until_it_ends(ray_start):
    actor = Counter.options(num_cpus=1, resources={"slot": 2}).remote()
    ray.get(actor.pid.remote())
    available = ray.available_resources()
    assert (available.get("slot", 0), available["CPU"]) == (0, 1)
    del actor
    wait_until(lambda: ray.available_resources().get("slot") == 2)


def test_any_number_of_actors_that_ask_for_nothing_fit(ray_shared):
    actors = [Counter.remote(i) for i in range(8)]
    assert ray.get([a.increment.remote(0) for a in actors], timeout=60) == list(range(8))


# --- handles ---------------------------------------------------------------------------------------------------------


def test_a_handle_works_in_tasks_in_actors_and_inside_objects(ray_shared):
    @ray.remote
    def use(counter):
        return ray.get(counter.increment.remote())

    @ray.remote
    class User:
        def __init__(self, counters):
            self.counters = counters

        def use(self):
            return ray.get(self.counters["one"].increment.remote())

    counter = Counter.remote()
    user = User.remote({"one": counter})
    assert ray.get(use.remote(counter)) == 1
    assert ray.get(user.use.remote()) == 2
    (same,) = ray.get(ray.put([counter]))
    assert ray.get(same.increment.remote()) == 3


def test_handles_of_one_actor_are_equal_and_of_two_are_not(ray_shared):
    a, b = Counter.remote(), Counter.remote()
    (copy,) = ray.get(ray.put([a]))
    assert copy == a and hash(copy) == hash(a)
    assert a != b
    assert a._actor_id.hex() in repr(a)


def test_calls_of_a_caller_keep_their_order_through_a_passed_handle(ray_shared):
    @ray.remote
    class Log:
        def __init__(self):
            self.lines = []

        def add(self, line):
            self.lines.append(line)

        def read(self):
            return self.lines

    @ray.remote
    def write(log, name):
        ray.get([log.add.remote((name, i)) for i in range(50)])

    log = Log.remote()
    ray.get([write.remote(log, name) for name in "ab"])
    lines = ray.get(log.read.remote())
    for name in "ab":
        assert [i for n, i in lines if n == name] == list(range(50))


def test_an_actor_exits_when_its_last_handle_is_gone_and_finishes_first(ray_shared, tmp_path):
    @ray.remote
    class Writer:
        def write(self, path):
            time.sleep(0.1)
            path.write_text("done")

        def pid(self):
            return os.getpid()

    writer = Writer.remote()
    pid = ray.get(writer.pid.remote())
    writer.write.remote(tmp_path / "file")
    del writer
    wait_until(lambda: has_ended(pid))
    assert (tmp_path / "file").read_text() == "done"


def test_a_handle_inside_an_object_keeps_the_actor_alive(ray_shared):
    ref = ray.put([Counter.remote(41)])
    assert ray.get(ray.get(ref)[0].increment.remote()) == 42


def test_a_method_can_be_passed_on(ray_shared):
    @ray.remote
    def call(method):
        return ray.get(method.remote(5))

    counter = Counter.remote()
    assert ray.get(call.remote(counter.increment)) == 5


# --- concurrency -----------------------------------------------------------------------------------------------------


def test_an_asyncio_actor_runs_calls_at_the_same_time(ray_shared):
    @ray.remote
    class Meeting:
        def __init__(self):
            self.everybody = asyncio.Event()
            self.here = 0

        async def join(self, expected):
            self.here += 1
            if self.here == expected:
                self.everybody.set()
            await self.everybody.wait()
            return self.here

    meeting = Meeting.remote()
    assert ray.get([meeting.join.remote(20) for _ in range(20)], timeout=30) == [20] * 20


def test_a_threaded_actor_runs_max_concurrency_calls_at_the_same_time(ray_shared):
    @ray.remote(max_concurrency=3)
    class Meeting:
        def __init__(self):
            import threading

            self.barrier = threading.Barrier(3)

        def join(self):
            return self.barrier.wait(30) >= 0

    meeting = Meeting.remote()
    assert ray.get([meeting.join.remote() for _ in range(6)], timeout=60) == [True] * 6


# --- ends ------------------------------------------------------------------------------------------------------------


def test_exit_actor_ends_it_on_purpose(ray_shared):
    @ray.remote(max_restarts=5)
    class Quitter:
        def pid(self):
            return os.getpid()

        def quit(self):
            ray.actor.exit_actor()

    quitter = Quitter.remote()
    pid = ray.get(quitter.pid.remote())
    ref = quitter.quit.remote()
    wait_until(lambda: has_ended(pid))
    with pytest.raises(ActorDiedError):
        ray.get(quitter.pid.remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        ray.get(ref, timeout=30)


def test_exit_actor_outside_an_actor_is_an_error(ray_shared):
    with pytest.raises(TypeError, match="outside an actor"):
        ray.actor.exit_actor()


@pytest.mark.parametrize("how", ["exit", "kill -9"])
def test_calls_to_an_actor_that_died_fail_with_the_cause(ray_shared, how):
    counter = Counter.remote()
    pid = ray.get(counter.pid.remote())
    if how == "exit":
        ref = counter.die.remote(9)
    else:
        os.kill(pid, signal.SIGKILL)
        ref = counter.increment.remote()
    with pytest.raises(ActorDiedError, match=r"9|SIGKILL"):
        ray.get(ref, timeout=30)
    with pytest.raises(RayActorError):
        ray.get(counter.increment.remote(), timeout=30)


def test_an_actor_is_restarted_max_restarts_times_with_a_fresh_state(ray_shared):
    counter = Counter.options(max_restarts=1, max_task_retries=-1).remote(100)
    assert ray.get(counter.increment.remote()) == 101
    os.kill(ray.get(counter.pid.remote()), signal.SIGKILL)
    assert ray.get(counter.increment.remote(), timeout=30) == 101
    os.kill(ray.get(counter.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        ray.get(counter.increment.remote(), timeout=30)


def test_an_actor_knows_that_it_was_restarted(ray_shared):
    @ray.remote(max_restarts=1, max_task_retries=-1)
    class Phoenix:
        def reborn(self):
            return os.getpid(), ray.get_runtime_context().was_current_actor_reconstructed

    phoenix = Phoenix.remote()
    pid, reborn = ray.get(phoenix.reborn.remote())
    assert not reborn
    os.kill(pid, signal.SIGKILL)
    pid_now, reborn = ray.get(phoenix.reborn.remote(), timeout=30)
    assert pid_now != pid and reborn


def test_a_handle_may_be_used_elsewhere_before_the_actor_is_known(ray_shared):
    """A task that is handed a new handle asks the head over a connection of its own, and may be there first."""

    @ray.remote
    def add(counter):
        return ray.get(counter.increment.remote())

    ray.get(add.remote(Counter.remote(0)))  # a worker is warm now
    for start in range(5):
        counter = Counter.remote(start)
        assert ray.get(add.remote(counter), timeout=30) == start + 1
        ray.kill(counter)  # which keeps the head busy while the next one comes
