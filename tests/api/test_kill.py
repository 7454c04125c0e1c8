"""ray.kill."""

from __future__ import annotations

import os

import pytest

import ray
from ray.exceptions import ActorDiedError
from tests.wait import wait_until


@ray.remote
class Actor:
    def pid(self):
        return os.getpid()

    def hang(self):
        import time

        time.sleep(1000)


def dies(actor):
    """kill returns at once: a call right behind it may still be answered."""

    def dead():
        try:
            ray.get(actor.pid.remote(), timeout=30)
        except ActorDiedError:
            return True
        return False

    return wait_until(dead)


def test_kill_ends_an_actor_in_the_middle_of_a_call(ray_shared):
    actor = Actor.remote()
    ray.get(actor.pid.remote())
    ref = actor.hang.remote()
    ray.kill(actor)
    with pytest.raises(ActorDiedError):
        ray.get(ref, timeout=30)
    assert dies(actor)


def test_a_killed_actor_stays_dead_whatever_max_restarts_says(ray_shared):
    actor = Actor.options(max_restarts=-1).remote()
    ray.get(actor.pid.remote())
    ray.kill(actor)
    assert dies(actor)


def test_kill_with_no_restart_false_brings_it_back(ray_shared):
    actor = Actor.options(max_restarts=1, max_task_retries=-1).remote()
    pid = ray.get(actor.pid.remote())
    ray.kill(actor, no_restart=False)
    wait_until(lambda: ray.get(actor.pid.remote(), timeout=30) != pid)


def test_kill_before_the_actor_is_there_and_twice_is_fine(ray_shared):
    actor = Actor.remote()
    ray.kill(actor)
    ray.kill(actor)
    assert dies(actor)


@pytest.mark.parametrize("thing", [1, None, "actor", Actor], ids=repr)
def test_kill_of_something_else_is_an_error(ray_shared, thing):
    with pytest.raises(ValueError, match="handle of an actor"):
        ray.kill(thing)


def test_kill_of_a_ref_points_to_cancel(ray_shared):
    with pytest.raises(ValueError, match=r"ray\.cancel"):
        ray.kill(ray.put(1))


def test_no_restart_must_be_a_bool(ray_shared):
    with pytest.raises(TypeError, match="no_restart"):
        ray.kill(Actor.remote(), no_restart="yes")
