"""ray.init(local_mode=True) and driver_mode=ray.PYTHON_MODE: everything runs in the driver, and looks the same.

What a program sees is tried twice, inline and with workers, by the same test: `session` is both.
"""

from __future__ import annotations

import asyncio
import os
import threading

import numpy as np
import pytest

import ray
from tests.wait import wait_until


@pytest.fixture(scope="module", params=[True, False], ids=["inline", "workers"])
def session(request, engine):
    engine.start(num_cpus=2, local_mode=request.param)
    yield request.param
    engine.stop()


@pytest.fixture(scope="module")
def inline(engine):
    engine.start(num_cpus=2, driver_mode=ray.PYTHON_MODE)
    yield
    engine.stop()


@ray.remote
def add(a, b=1):
    return a + b


@ray.remote
def pid():
    return os.getpid(), threading.get_ident()


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.n = start

    def add(self, by=1):
        self.n += by
        return self.n

    def fail(self):
        raise KeyError("no such thing")

    def who(self):
        context = ray.get_runtime_context()
        return context.get_actor_id(), context.get_actor_name() if hasattr(context, "get_actor_name") else None

    def leave(self):
        ray.actor.exit_actor()

    async def later(self, value):
        await asyncio.sleep(0)
        return value


@ray.remote
class Sync:
    def __init__(self, what=None):
        if what is not None:
            raise what

    def pid(self):
        return os.getpid()

    def itself(self):
        return ray.get_runtime_context().current_actor

    def leave(self):
        ray.actor.exit_actor()


# --- where it runs -----------------------------------------------------------------------------------------------


def test_calls_run_in_the_driver_and_in_the_thread_that_makes_them(inline):
    assert ray.get(pid.remote()) == (os.getpid(), threading.get_ident())
    assert ray.get(Sync.remote().pid.remote()) == os.getpid()


def test_a_call_has_run_when_remote_returns(inline):
    seen = []

    @ray.remote
    def note():
        seen.append(1)

    note.remote()
    assert seen == [1]


def test_keyboard_interrupt_is_the_drivers_own(inline):
    @ray.remote
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.remote()


def test_what_needs_a_process_of_its_own_is_refused(inline):
    with pytest.raises(NotImplementedError, match="runtime_env"):
        add.options(runtime_env={"env_vars": {"A": "1"}}).remote(1)
    with pytest.raises(NotImplementedError, match="num_returns='streaming' is not built in local mode"):
        ray.remote(lambda: (yield 1)).remote()


def test_after_shutdown_the_same_functions_run_in_workers_again(engine):
    for local in (True, False, True):
        engine.start(num_cpus=1, local_mode=local)
        actor = Sync.remote()
        assert (ray.get(pid.remote())[0] == os.getpid()) is local
        assert (ray.get(actor.pid.remote()) == os.getpid()) is local
        del actor
        engine.stop()


def test_an_address_beside_it_is_refused(engine):
    engine.stop()
    for options in ({"local_mode": True}, {"driver_mode": ray.PYTHON_MODE}):
        with pytest.raises(ValueError, match="address='auto': with local_mode=True"):
            ray.init("auto", **options)


# --- what it looks like: the same as with workers ---------------------------------------------------------------------


def test_values_arguments_and_refs(session):
    ref = add.remote(1)
    assert isinstance(ref, ray.ObjectRef) and ray.get(ref) == 2
    assert ray.get(add.remote(ref, b=ray.put(10))) == 12
    assert ray.get([add.remote(i) for i in range(3)]) == [1, 2, 3]
    ready, rest = ray.wait([add.remote(1), add.remote(2)], num_returns=2, timeout=60)
    assert len(ready) == 2 and not rest
    assert ref.task_id().binary() == ref.binary()[:24]


def test_several_returns(session):
    @ray.remote(num_returns=2)
    def pair(n):
        return [1] * n

    @ray.remote(num_returns=0)
    def none():
        return 5

    assert ray.get(pair.remote(2)) == [1, 1]
    assert none.remote() is None
    with pytest.raises(
        ValueError, match="num_returns=2 and must return a tuple or list of that length, but returned 3"
    ):
        ray.get(pair.remote(3)[0])


def test_nothing_mutable_is_shared(session):
    @ray.remote
    def grow(values):
        values.append(1)
        return values

    mine = [0]
    ref = grow.remote(mine)
    assert ray.get(ref) == [0, 1] and mine == [0]
    ray.get(ref).append(2)
    assert ray.get(ref) == [0, 1]
    array = ray.get(add.remote(np.zeros(200_000)))
    assert not array.flags.writeable


def test_exceptions_come_as_they_do_from_workers(session):
    @ray.remote
    def divide(x):
        return 1 / x

    with pytest.raises(ZeroDivisionError) as caught:
        ray.get(divide.remote(0))
    error = caught.value
    assert isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, ZeroDivisionError)
    assert "divide()" in str(error) and "return 1 / x" in str(error) and "ray/_" not in str(error)
    with pytest.raises(ZeroDivisionError):
        ray.get(add.remote(divide.remote(0)))
    with pytest.raises(KeyError, match="no such thing"):
        ray.get(Counter.remote().fail.remote())


def test_an_argument_that_can_not_be_pickled_is_an_error(session):
    with pytest.raises(TypeError, match="lock"):
        ray.get(add.remote(threading.Lock()))


def test_wrong_arguments_are_a_type_error_at_once(session):
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments but 3 were given"):
        add.remote(1, 2, 3)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        Counter.remote().add.remote(of=1)


def test_tasks_within_tasks(session):
    @ray.remote
    def fib(n):
        return n if n < 2 else sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert ray.get(fib.remote(5)) == 5


def test_exceptions_are_retried_as_the_options_say(session, tmp_path):
    @ray.remote(max_retries=2, retry_exceptions=[OSError])
    def flaky(path, kind):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise kind("again")
        return os.path.getsize(path)

    assert ray.get(flaky.remote(str(tmp_path / "a"), OSError)) == 3
    with pytest.raises(ValueError):
        ray.get(flaky.remote(str(tmp_path / "b"), ValueError))


def test_actors_keep_state_and_are_reached_through_copies_of_the_handle(session):
    counter = Counter.remote(5)
    assert ray.get([counter.add.remote(), counter.add.remote(by=10)]) == [6, 16]

    @ray.remote
    def use(handles):
        return ray.get(handles[0].add.remote(100))

    assert ray.get(use.remote([counter])) == 116
    assert ray.get(counter.add.remote(0)) == 116
    assert ray.get(counter.later.remote("x")) == "x"
    assert ray.get(counter.__ray_ready__.remote()) is True
    assert ray.get(counter.__ray_call__.remote(lambda self, by: self.n + by, 4)) == 120


def test_an_actor_knows_who_it_is(session):
    actor = Sync.remote()
    assert ray.get(actor.itself.remote()) == actor
    assert ray.get(Counter.remote().who.remote())[0] is not None
    assert ray.get_runtime_context().get_actor_id() is None


def test_a_constructor_that_raises(session):
    broken = Sync.remote(ValueError("broken"))
    with pytest.raises(ray.exceptions.ActorDiedError, match="died in its constructor") as caught:
        ray.get(broken.pid.remote())
    assert isinstance(caught.value.cause, ValueError)


def test_kill_and_exit_actor(session):
    for end in (lambda a: ray.kill(a), lambda a: ray.wait([a.leave.remote()]), lambda a: a.__ray_terminate__.remote()):
        actor = Sync.remote()
        ray.get(actor.pid.remote())
        end(actor)
        with pytest.raises(ray.exceptions.ActorDiedError):
            for _ in range(1000):  # with workers the news takes a moment
                ray.get(actor.pid.remote())


def test_a_killed_actor_comes_back_if_it_may(session):
    counter = Counter.options(max_restarts=1, max_task_retries=-1).remote(3)
    ray.get(counter.add.remote())
    ray.kill(counter, no_restart=False)
    wait_until(lambda: ray.get(counter.add.remote(0)) == 3)
    assert ray.get(counter.add.remote()) == 4


def test_named_actors(session):
    counter = Counter.options(name="counter").remote(1)
    assert ray.get(ray.get_actor("counter").add.remote()) == 2
    assert ray.util.list_named_actors() == ["counter"]
    with pytest.raises(ValueError, match="counter"):
        Counter.options(name="counter").remote()
    again = Counter.options(name="counter", get_if_exists=True).remote()
    assert ray.get(again.add.remote()) == 3
    other = Counter.options(name="counter", namespace="elsewhere", lifetime="detached").remote(10)
    del other
    assert ray.get(ray.get_actor("counter", namespace="elsewhere").add.remote()) == 11
    ray.kill(ray.get_actor("counter", namespace="elsewhere"))
    ray.kill(counter)
    with pytest.raises(ValueError, match="no actor is named 'counter'"):
        ray.get_actor("counter")


def test_futures_and_await(session):
    assert add.remote(1).future().result(60) == 2

    async def main():
        counter = Counter.remote()
        return await asyncio.gather(add.remote(1), counter.later.remote("y"), add.remote(2))

    assert asyncio.run(main()) == [2, "y", 3]


def test_a_finished_task_can_be_cancelled_to_no_effect(session):
    ref = add.remote(1)
    ray.get(ref)
    ray.cancel(ref)
    assert ray.get(ref) == 2


def test_the_runtime_context_names_the_call(session):
    @ray.remote
    def about():
        context = ray.get_runtime_context()
        return context.get_task_id() is not None, context.get_assigned_resources()

    known, resources = ray.get(about.remote())
    assert known and resources == {"CPU": 1.0}
    assert ray.get_runtime_context().get_task_id() is None
