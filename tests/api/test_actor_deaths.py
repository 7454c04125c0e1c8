"""Actors that die: restarts, calls that are tried again, and what callers hear, within a second."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
)
from tests.chaos.session import (
    gone,
    within,
)

from .dying import SAID, WAYS, Counter, attempts, die

__all__ = ["attempts"]


@pytest.mark.parametrize("how", WAYS)
def test_calls_on_an_actor_that_dies_fail_within_a_second_and_say_why(ray_shared, how):
    actor = Counter.remote()
    assert ray.get(actor.add.remote()) == 1
    hung, later = actor.die.remote(how), actor.add.remote()
    with within(), pytest.raises(ActorDiedError, match=SAID[how]):
        ray.get(hung, timeout=60)
    with within(), pytest.raises(ActorDiedError):
        ray.get(later, timeout=60)
    with within(), pytest.raises(ActorDiedError, match=SAID[how]):
        ray.get(actor.add.remote(), timeout=60)


def test_an_actor_is_restarted_as_often_as_it_may_be_with_the_arguments_it_had(ray_shared):
    actor = Counter.options(max_restarts=2).remote(ray.put(10))
    for _ in range(2):
        assert ray.get(actor.add.remote(), timeout=60) == 11
        with pytest.raises(ActorUnavailableError):
            ray.get(actor.die.remote(), timeout=60)
    assert ray.get(actor.add.remote(), timeout=60) == 11
    with pytest.raises(ActorDiedError):
        ray.get(actor.die.remote(), timeout=60)
    with pytest.raises(ActorDiedError):
        ray.get(actor.add.remote(), timeout=60)


def test_a_call_with_tries_left_runs_again_on_the_restarted_actor(ray_shared, attempts):
    actor = Counter.options(max_restarts=-1, max_task_retries=1).remote()
    assert ray.get(actor.die_first.remote(attempts.path), timeout=60) == 2
    with pytest.raises(ActorUnavailableError):
        ray.get(actor.die.remote(), timeout=60)  # twice
    assert ray.get(actor.add.remote(), timeout=60) == 1


def test_calls_made_while_an_actor_restarts_wait_for_it_in_order(ray_shared):
    actor = Counter.options(max_restarts=1).remote()
    pid = ray.get(actor.pid.remote())
    hung = actor.hang.remote()
    os.kill(pid, signal.SIGKILL)
    refs = [actor.add.remote() for _ in range(100)]
    with pytest.raises(ActorUnavailableError):
        ray.get(hung, timeout=60)
    got = []
    for ref in refs:  # those sent before the death was seen may be lost: they were in flight
        with contextlib.suppress(ActorUnavailableError):
            got.append(ray.get(ref, timeout=60))
    assert got == list(range(1, len(got) + 1))
    assert ray.get(actor.add.remote(), timeout=60) == len(got) + 1


def test_with_retries_no_call_is_lost_and_order_is_kept_over_restarts(ray_shared):
    actor = Counter.options(max_restarts=-1, max_task_retries=-1).remote()

    @ray.remote
    class Recorder:
        def __init__(self):
            self.seen = []

        def note(self, i):
            if not self.seen or self.seen[-1] < i:
                self.seen.append(i)

        def all(self):
            return self.seen

    refs = []
    for i in range(300):
        refs.append(actor.add.remote(0))
        if i % 100 == 50:
            os.kill(ray.get(actor.pid.remote(), timeout=60), signal.SIGKILL)
    assert ray.get(refs, timeout=60) == [0] * 300


def test_every_holder_of_a_handle_hears_of_the_actors_death(ray_shared):
    @ray.remote
    def call(actor):
        try:
            ray.get(actor.hang.remote(), timeout=60)
        except ActorDiedError:
            return "died"

    actor = Counter.remote()
    pid = ray.get(actor.pid.remote())
    refs = [call.remote(actor) for _ in range(2)]
    assert ray.wait(refs, num_returns=2, timeout=0.3)[0] == []
    os.kill(pid, signal.SIGKILL)
    with within():
        assert ray.get(refs, timeout=60) == ["died", "died"]


def test_an_actor_whose_constructor_dies_fails_its_calls(ray_shared):
    @ray.remote
    class Stillborn:
        def __init__(self):
            die("killed")

        def f(self):
            return 1

    actor = Stillborn.remote()
    with within(3), pytest.raises(ActorDiedError):
        ray.get(actor.f.remote(), timeout=60)


def test_an_actor_whose_constructor_raises_fails_its_calls_with_that(ray_shared):
    @ray.remote
    class Stillborn:
        def __init__(self):
            raise KeyError("not today")

        def f(self):
            return 1

    with within(3), pytest.raises((ActorDiedError, KeyError), match="not today"):
        ray.get(Stillborn.remote().f.remote(), timeout=60)


def test_an_actor_made_by_a_worker_that_dies_goes_with_it(ray_start):
    @ray.remote
    class Maker:
        def make(self):
            self.actor = Counter.remote()
            return os.getpid(), self.actor, ray.get(self.actor.pid.remote())

    maker = Maker.remote()
    me, actor, child = ray.get(maker.make.remote())
    os.kill(me, signal.SIGKILL)
    gone(child)
    with within(), pytest.raises(ActorDiedError):
        ray.get(actor.pid.remote(), timeout=60)


def leave_a_child_behind():
    """Forks a child that outlives its parent's process group, with the parent's sockets. Returns its pid."""
    away, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.write(says, b"x")
        threading.Event().wait(60)
        os._exit(0)
    os.read(away, 1)
    return child


@ray.remote(max_retries=0)
def leave_and_die(path):
    Path(path).write_text(str(leave_a_child_behind()))
    os.kill(os.getpid(), 9)


@ray.remote
class Leaver:
    def leave(self):
        return leave_a_child_behind()

    def hang(self):
        threading.Event().wait(60)


def test_a_task_fails_at_once_though_its_workers_child_still_holds_the_connection(ray_shared, tmp_path):
    with within(10), pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(leave_and_die.remote(str(tmp_path / "child")))
    os.kill(int((tmp_path / "child").read_text()), 9)


def test_calls_to_an_actor_that_was_killed_fail_though_its_child_still_holds_the_connection(ray_shared):
    actor = Leaver.remote()
    child = ray.get(actor.leave.remote())
    running = actor.hang.remote()
    ray.kill(actor)
    with within(10), pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(running)
    os.kill(child, 9)
