"""Handles of actors: what they know, what every actor answers, pickling, of oneself; bounds and retries of calls."""

from __future__ import annotations

import os
import threading

import pytest

import ray
from ray import cloudpickle
from ray.actor import ActorClass, ActorClassInheritanceException, ActorHandle
from ray.exceptions import ActorDiedError, PendingCallsLimitExceeded, RayTaskError
from tests.wait import wait_until


@ray.remote
class Counter:
    def __init__(self):
        self.n = 0

    def add(self, k=1):
        self.n += k
        return self.n

    def pid(self):
        return os.getpid()

    def me(self):
        return ray.get_runtime_context().current_actor

    def keep_me(self):
        self.mine = ray.get_runtime_context().current_actor
        return os.getpid()

    def call_me(self):
        return ray.get_runtime_context().current_actor.pid.remote()

    def put_me(self):
        return ray.put({"me": ray.get_runtime_context().current_actor})


def ended(pid):
    return wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


# --- what a handle knows -----------------------------------------------------------------------------------------


def test_a_handle_shows_class_and_id_and_lists_its_methods(ray_shared):
    counter = Counter.remote()
    hexid = counter._actor_id.hex()
    assert repr(counter) == f"Actor(Counter, {hexid})" and counter._ray_actor_id == counter._actor_id
    assert {"add", "__ray_ready__", "__ray_call__", "__ray_terminate__"} <= set(dir(counter))
    assert isinstance(counter, ActorHandle) and isinstance(Counter, ActorClass)
    assert Counter.__ray_metadata__.class_name == "Counter"
    assert Counter.__ray_metadata__.modified_class is Counter.__ray_actor_class__


def test_ray_ready_is_true_once_init_is_over(ray_shared, tmp_path):
    class Slow:
        def __init__(self, go):
            while not os.path.exists(go):
                threading.Event().wait(0.01)

    slow = ray.remote(Slow).remote(str(tmp_path / "go"))
    ready = slow.__ray_ready__.remote()
    assert ray.wait([ready], timeout=0)[0] == []
    (tmp_path / "go").touch()
    assert ray.get(ready, timeout=30) is True


def test_ray_call_runs_a_function_on_the_actor_itself(ray_shared):
    counter = Counter.remote()
    counter.add.remote(5)
    assert ray.get(counter.__ray_call__.remote(lambda self, k, times=1: self.add(k * times), 2, times=3)) == 11
    assert ray.get(counter.add.remote()) == 12
    with pytest.raises(TypeError, match="fn"):
        counter.__ray_call__.remote()


def test_ray_call_runs_in_asyncio_actors_too(ray_shared):
    @ray.remote
    class Async:
        async def one(self):
            return 1

    async def twice(self):
        return await self.one() + await self.one()

    assert ray.get(Async.remote().__ray_call__.remote(twice)) == 2


def test_ray_terminate_ends_it_after_the_calls_before_and_for_good(ray_shared):
    counter = Counter.options(max_restarts=-1).remote()
    pid = ray.get(counter.pid.remote())
    refs = [counter.add.remote() for _ in range(100)]
    last = counter.__ray_terminate__.remote()
    assert ray.get(refs) == list(range(1, 101))
    with pytest.raises(ActorDiedError):
        ray.get(last)
    assert ended(pid)
    with pytest.raises(ActorDiedError):
        ray.get(counter.add.remote(), timeout=30)


def test_ray_terminate_of_an_asyncio_actor_lets_the_calls_before_it_end(ray_shared):
    @ray.remote
    class Async:
        async def slow(self, i):
            import asyncio

            await asyncio.sleep(0.2)
            return i

    actor = Async.remote()
    refs = [actor.slow.remote(i) for i in range(5)]
    last = actor.__ray_terminate__.remote()
    assert ray.get(refs, timeout=30) == list(range(5))
    with pytest.raises(ActorDiedError):
        ray.get(last, timeout=30)


def test_a_class_that_inherits_from_an_actor_class_is_refused():
    with pytest.raises(ActorClassInheritanceException, match="plain class"):
        exec("class Sub(Counter): pass", {"Counter": Counter})
    assert ray.remote(type("Sub", (Counter.__ray_actor_class__,), {})).__name__ == "Sub"  # its plain class will do


# --- pickling ------------------------------------------------------------------------------------------------------


def test_a_handle_pickled_by_other_means_calls_and_does_not_count(ray_shared):
    counter = Counter.remote()
    data = cloudpickle.dumps({"handle": counter, "method": counter.add})
    copy = cloudpickle.loads(data)
    assert copy["handle"] == counter and ray.get(copy["handle"].add.remote()) == 1
    pid = ray.get(counter.pid.remote())

    @ray.remote
    def use(data):
        return ray.get(cloudpickle.loads(data)["method"].remote(10))

    assert ray.get(use.remote(data)) == 11
    del counter
    assert ended(pid)


def test_an_actor_class_can_be_passed_and_used(ray_shared):
    @ray.remote
    def make(cls):
        counter = cls.remote()
        return ray.get(counter.add.remote(3))

    assert ray.get(make.remote(Counter)) == 3


# --- of oneself ------------------------------------------------------------------------------------------------------


def test_current_actor_is_a_handle_of_oneself(ray_shared):
    counter = Counter.remote()
    assert ray.get(counter.me.remote()) == counter
    assert ray.get(ray.get(counter.call_me.remote())) == ray.get(counter.pid.remote())


def test_current_actor_is_for_actors(ray_shared):
    with pytest.raises(RuntimeError, match="not an actor"):
        _ = ray.get_runtime_context().current_actor


def test_a_handle_that_an_actor_has_of_itself_does_not_keep_it_alive(ray_shared):
    counter = Counter.remote()
    pid = ray.get(counter.keep_me.remote())
    del counter
    assert ended(pid)


@pytest.mark.parametrize("how", ["returned", "put"])
def test_a_handle_of_itself_that_an_actor_gave_away_keeps_it_alive(ray_shared, how):
    counter = Counter.remote()
    pid = ray.get(counter.pid.remote())
    given = ray.get(counter.me.remote()) if how == "returned" else ray.get(ray.get(counter.put_me.remote()))["me"]
    del counter
    other = Counter.remote()  # started after the first would have been asked to exit
    ray.get(other.add.remote())
    assert ray.get(given.pid.remote()) == pid
    del given
    assert ended(pid)


# --- bounds ------------------------------------------------------------------------------------------------------


@ray.remote(max_pending_calls=3)
class Bounded:
    def wait_for(self, path):
        while not os.path.exists(path):
            threading.Event().wait(0.005)


def test_a_call_beyond_max_pending_calls_is_refused_at_the_call(ray_shared, tmp_path):
    go = str(tmp_path / "go")
    actor = Bounded.remote()
    refs = [actor.wait_for.remote(go) for _ in range(3)]
    with pytest.raises(PendingCallsLimitExceeded, match=r"wait_for\(\) was not called: 3 calls") as caught:
        actor.wait_for.remote(go)
    assert caught.value.limit == 3 and caught.value.actor_id == actor._actor_id.hex()
    open(go, "w").close()
    ray.get(refs, timeout=30)
    ray.get(actor.wait_for.remote(go), timeout=30)


def test_max_pending_calls_goes_with_the_handle(ray_shared, tmp_path):
    go = str(tmp_path / "go")
    actor = Bounded.options(name="bounded").remote()

    @ray.remote
    def flood(actor, go):
        refs = []
        try:
            for _ in range(100):
                refs.append(actor.wait_for.remote(go))
        except PendingCallsLimitExceeded:
            open(go, "w").close()
            ray.get(refs)
        return len(refs)

    assert ray.get(flood.remote(actor, go)) == 3
    os.unlink(go)
    found = ray.get_actor("bounded")
    assert ray.get(flood.remote(found, go)) == 3


@pytest.mark.parametrize("value", [0, -2, 1.5, "many"], ids=repr)
def test_max_pending_calls_must_be_a_count(value):
    with pytest.raises((ValueError, TypeError), match="max_pending_calls="):
        Counter.options(max_pending_calls=value)


# --- retries -----------------------------------------------------------------------------------------------------


@ray.remote
class Flaky:
    def __init__(self):
        self.tries = 0

    def fail(self, times, error=ValueError):
        self.tries += 1
        if self.tries <= times:
            raise error(f"try {self.tries}")
        return self.tries

    @ray.method(retry_exceptions=[KeyError], max_task_retries=2)
    def decorated(self, times, error):
        return self.fail(times, error)


@pytest.mark.parametrize("retry", [True, [ValueError, KeyError]], ids=["True", "list"])
def test_retry_exceptions_runs_a_method_again_max_task_retries_times(ray_shared, retry):
    assert ray.get(Flaky.options(max_task_retries=2).remote().fail.options(retry_exceptions=retry).remote(2)) == 3
    with pytest.raises(ValueError, match="try 3"):
        ray.get(Flaky.options(max_task_retries=2).remote().fail.options(retry_exceptions=retry).remote(3))


def test_retry_exceptions_and_max_task_retries_of_one_method_by_decorator(ray_shared):
    assert ray.get(Flaky.remote().decorated.remote(2, KeyError)) == 3
    with pytest.raises(RayTaskError, match="try 1"):
        ray.get(Flaky.remote().decorated.remote(2, ValueError))


def test_without_retry_exceptions_an_error_is_an_answer(ray_shared):
    with pytest.raises(ValueError, match="try 1"):
        ray.get(Flaky.options(max_task_retries=-1).remote().fail.remote(1))


def test_handles_whose_methods_retry_a_class_of_the_programs_own_travel(ray_shared):
    class Mine(Exception):
        pass

    @ray.remote
    class Actor:
        def __init__(self):
            self.tries = 0

        @ray.method(retry_exceptions=[Mine], max_task_retries=5)
        def run(self):
            self.tries += 1
            if self.tries < 3:
                raise Mine
            return self.tries

    @ray.remote
    def use(actor):
        return ray.get(actor.run.remote())

    assert ray.get(use.remote(Actor.remote())) == 3
    keep = Actor.options(name="mine").remote()
    assert ray.get(ray.get_actor("mine").run.remote()) == 3
    del keep


# --- restarts ----------------------------------------------------------------------------------------------------


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Log:
    """Keeps what it was told in a file, which its death doesn't take."""

    def __init__(self, path):
        self.file = open(path, "a")

    def note(self, caller, i, die=False):
        if die and not os.path.exists(f"{self.file.name}.{caller}.{i}"):
            open(f"{self.file.name}.{caller}.{i}", "w").close()
            os.kill(os.getpid(), 9)
        self.file.write(f"{caller} {i}\n")
        self.file.flush()
        return i

    def pid(self):
        return os.getpid()

    def fork(self):
        away, says = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()  # or it would end with the worker's process group
            os.write(says, b"x")
            threading.Event().wait(60)
            os._exit(0)
        os.read(away, 1)
        return child


def in_order(path, caller, n):
    """Each call ran, and first ran after all before it; a retry begins where the answers ended."""
    seen = [int(line.split()[1]) for line in open(path) if line.startswith(f"{caller} ")]
    first = list(dict.fromkeys(seen))
    assert first == list(range(n))
    for before, after in zip(seen, seen[1:]):
        assert after <= before + 1  # it never skips ahead, and what is repeated is repeated as a run


def test_retried_calls_keep_their_order_when_the_actor_dies_in_the_middle(ray_shared, tmp_path):
    path = str(tmp_path / "log")
    log = Log.remote(path)
    refs = [log.note.remote("driver", i, i in (3, 150, 151, 299)) for i in range(300)]
    assert ray.get(refs, timeout=60) == list(range(300))
    in_order(path, "driver", 300)


def test_each_caller_keeps_its_order_when_the_actor_is_killed_from_outside(ray_shared, tmp_path):
    path = str(tmp_path / "log")
    log = Log.remote(path)
    ray.get(log.pid.remote())

    @ray.remote(num_cpus=0.5)
    def call(log, caller, n):
        return ray.get([log.note.remote(caller, i) for i in range(n)])

    refs = [call.remote(log, caller, 500) for caller in "abc"]
    mine = [log.note.remote("me", i) for i in range(500)]
    for _ in range(3):
        os.kill(ray.get(log.pid.remote(), timeout=30), 9)
        mine += [log.note.remote("me", len(mine) + i) for i in range(100)]
    assert ray.get(refs, timeout=60) == [list(range(500))] * 3
    assert ray.get(mine, timeout=60) == list(range(800))
    for caller, n in [("a", 500), ("b", 500), ("c", 500), ("me", 800)]:
        in_order(path, caller, n)


def test_a_child_that_the_dead_actor_forked_does_not_hold_up_the_restart(ray_shared, tmp_path):
    log = Log.remote(str(tmp_path / "log"))
    child = ray.get(log.fork.remote())
    refs = [log.note.remote("x", i, i == 1) for i in range(5)]
    assert ray.get(refs, timeout=60) == list(range(5))
    os.kill(child, 9)  # it has lived until now, and its copy of the socket with it
