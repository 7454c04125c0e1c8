"""Named actors: ray.get_actor, get_if_exists, namespaces, ray.util.list_named_actors, and how long the named live."""

from __future__ import annotations

import os
import threading

import pytest

import ray
from ray.exceptions import ActorDiedError
from tests.wait import wait_until


@ray.remote
class Counter:
    def __init__(self, n=0):
        self.n = n

    def add(self, k=1):
        self.n += k
        return self.n

    def pid(self):
        return os.getpid()


@ray.remote
class Slow:
    def __init__(self, go):
        while not os.path.exists(go):
            threading.Event().wait(0.01)

    def here(self):
        return True


def gone(name, namespace=None):
    """The name is free again: waits for it."""

    def free():
        try:
            ray.get_actor(name, namespace)
        except ValueError:
            return True
        return False

    return wait_until(free)


def test_an_actor_is_found_by_its_name_and_is_the_same_actor(ray_shared):
    counter = Counter.options(name="counter").remote(5)
    found = ray.get_actor("counter")
    assert found == counter and hash(found) == hash(counter) and repr(found) == repr(counter)
    assert ray.get([counter.add.remote(), found.add.remote(), counter.add.remote()]) == [6, 7, 8]


def test_calls_through_both_handles_run_in_the_order_they_were_made(ray_shared, tmp_path):
    class Log:
        def __init__(self, go):
            while not os.path.exists(go):
                threading.Event().wait(0.01)
            self.seen = []

        def note(self, x):
            self.seen.append(x)
            return self.seen

    go = tmp_path / "go"
    log = ray.remote(Log).options(name="log").remote(str(go))
    found = ray.get_actor("log")
    for i in range(50):
        (log, found)[i % 2].note.remote(i)
    go.touch()
    assert ray.get(log.note.remote(50)) == list(range(51))


def test_get_actor_finds_one_that_is_still_being_made(ray_shared, tmp_path):
    go = tmp_path / "go"
    slow = Slow.options(name="slow").remote(str(go))
    ref = ray.get_actor("slow").here.remote()
    assert ray.wait([ref], timeout=0)[0] == []
    go.touch()
    assert ray.get(ref, timeout=30)
    del slow


@ray.remote
def add_by_name(name, namespace=None):
    return ray.get(ray.get_actor(name, namespace).add.remote())


def test_a_task_finds_an_actor_that_the_driver_named(ray_shared):
    counter = Counter.options(name="shared").remote()
    assert [ray.get(add_by_name.remote("shared")) for _ in range(3)] == [1, 2, 3]
    assert ray.get(counter.add.remote()) == 4


def test_get_actor_says_what_is_not_there(ray_shared):
    with pytest.raises(ValueError, match=r"'nobody'.*list_named_actors"):
        ray.get_actor("nobody")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("",), ValueError, "name"),
        ((3,), TypeError, "name=3"),
        (("x", ""), ValueError, "namespace"),
        (("x", 1), TypeError, "namespace=1"),
    ],
    ids=repr,
)
def test_get_actor_refuses_what_is_no_name(ray_shared, arguments, error, says):
    with pytest.raises(error, match=says):
        ray.get_actor(*arguments)


def test_a_name_that_is_taken_is_a_value_error_at_creation(ray_shared):
    first = Counter.options(name="one").remote()
    with pytest.raises(ValueError, match=r"'one' is taken.*get_actor"):
        Counter.options(name="one").remote()
    assert ray.get(first.add.remote()) == 1
    wait_until(lambda: ray.util.list_named_actors() == ["one"])  # those of tests before are going


@pytest.mark.parametrize("end", ["kill", "terminate", "scope", "init"])
def test_a_name_is_free_again_when_its_actor_is_dead(ray_shared, end):
    actor = Counter.options(name="again").remote(*(["x"] if end == "init" else []))
    if end == "kill":
        ray.kill(actor)
        Counter.options(name="again").remote()  # the node hears of one after the other
        assert gone("again")
    elif end == "terminate":
        with pytest.raises(ActorDiedError):
            ray.get(actor.__ray_terminate__.remote())
        Counter.options(name="again").remote()
        assert gone("again")  # it had no handle left: the next test may have its name
    elif end == "scope":
        ray.get(actor.add.remote())
        del actor
        assert gone("again")
    else:

        class Fails:
            def __init__(self):
                raise RuntimeError("no")

            def f(self):
                pass

        fails = ray.remote(Fails).options(name="fails").remote()
        with pytest.raises(ActorDiedError):
            ray.get(fails.f.remote())
        assert gone("fails")


def test_a_restarting_actor_keeps_its_name(ray_shared):
    actor = Counter.options(name="phoenix", max_restarts=1, max_task_retries=-1).remote()
    pid = ray.get(actor.pid.remote())
    os.kill(pid, 9)
    assert ray.get(ray.get_actor("phoenix").pid.remote(), timeout=30) != pid


def test_a_handle_found_by_name_does_not_keep_the_actor_alive(ray_shared):
    actor = Counter.options(name="weak").remote()
    found = ray.get_actor("weak")
    ray.get(found.add.remote())
    del actor
    assert gone("weak")
    with pytest.raises(ActorDiedError, match="no handle"):
        ray.get(found.add.remote(), timeout=30)


def test_a_handle_found_by_name_may_be_passed_on(ray_shared):
    @ray.remote
    def use(counter):
        return ray.get(counter.add.remote(10))

    keep = Counter.options(name="passed").remote()
    assert ray.get(use.remote(ray.get_actor("passed"))) == 10
    assert ray.get(keep.add.remote()) == 11


def test_an_actor_of_another_namespace_is_found_only_there(ray_shared):
    a = Counter.options(name="n", namespace="a").remote(1)
    b = Counter.options(name="n", namespace="b").remote(2)
    assert ray.get(ray.get_actor("n", namespace="a").add.remote(0)) == 1
    assert ray.get(ray.get_actor("n", namespace="b").add.remote(0)) == 2
    with pytest.raises(ValueError, match="'n'"):
        ray.get_actor("n")
    del a, b


@pytest.mark.parametrize("ray_start", [{"namespace": "mine"}], indirect=True)
def test_list_named_actors(ray_start):
    assert ray.util.list_named_actors() == []
    keep = [Counter.options(name=n).remote() for n in ("x", "y")]
    keep.append(Counter.options(name="z", namespace="other").remote())
    keep.append(Counter.remote())
    assert ray.util.list_named_actors() == ["x", "y"]
    assert ray.util.list_named_actors(all_namespaces=True) == [
        {"name": "x", "namespace": "mine"},
        {"name": "y", "namespace": "mine"},
        {"name": "z", "namespace": "other"},
    ]
    ray.kill(keep[0])
    assert ray.util.list_named_actors() == ["y"]
    with pytest.raises(TypeError, match="all_namespaces"):
        ray.util.list_named_actors("mine")


def test_get_if_exists_makes_it_once(ray_shared):
    made = Counter.options(name="lazy", get_if_exists=True).remote(100)
    again = Counter.options(name="lazy", get_if_exists=True).remote(200)
    assert made == again and ray.get(again.add.remote()) == 101
    del again
    assert ray.get(made.add.remote()) == 102


def test_many_processes_that_ask_at_once_get_one_actor(ray_shared):
    @ray.remote(num_cpus=0.25)
    def ask():
        # Detached, since whoever happens to make it is gone soon.
        actor = Counter.options(name="common", get_if_exists=True, lifetime="detached").remote()
        ray.get(actor.add.remote())
        return actor._actor_id.hex()

    assert len(set(ray.get([ask.remote() for _ in range(8)]))) == 1
    found = ray.get_actor("common")
    assert ray.get(found.add.remote(0)) == 8
    ray.kill(found)


def test_a_detached_actor_outlives_its_handles_and_its_creator(ray_shared):
    @ray.remote
    class Creator:
        def make(self):
            made = Counter.options(name="survivor", lifetime="detached").remote(7)
            return ray.get(made.pid.remote())

    creator = Creator.remote()
    pid = ray.get(creator.make.remote())
    ray.kill(creator)
    with pytest.raises(ActorDiedError):
        while True:
            ray.get(creator.make.remote(), timeout=30)
    found = ray.get_actor("survivor")
    assert ray.get(found.pid.remote()) == pid and ray.get(found.add.remote()) == 8
    ray.kill(found)
    assert gone("survivor")


def test_a_detached_actor_needs_no_name_and_ends_by_kill(ray_shared):
    actor = Counter.options(lifetime="detached").remote()
    pid = ray.get(actor.pid.remote())
    ray.kill(actor)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_the_handle_of_a_named_actor_can_be_used_after_restarts_of_its_worker(ray_shared):
    actor = Counter.options(name="r", max_restarts=-1, max_task_retries=-1).remote()
    found = ray.get_actor("r")
    pids = set()
    for _ in range(3):
        pid = ray.get(found.pid.remote(), timeout=30)
        pids.add(pid)
        ray.kill(found, no_restart=False)
        wait_until(lambda pid=pid: ray.get(actor.pid.remote(), timeout=30) != pid)
    assert len(pids) == 3
