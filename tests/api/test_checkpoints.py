"""Checkpoints of actors: checkpoint_interval with and without hooks, ray.actor.Checkpointable, deaths in between."""

from __future__ import annotations

import json
import os

import pytest

import ray
from ray.actor import Checkpointable
from ray.exceptions import ActorDiedError
from tests.wait import wait_until


class Counter:
    def __init__(self):
        self.n = 0

    def add(self, k=1):
        self.n += k
        return self.n

    def value(self):
        return self.n

    def fail(self):
        self.n += 100
        raise RuntimeError("after a change")

    def die(self):
        os.kill(os.getpid(), 9)

    def restarted(self):
        return ray.get_runtime_context().was_current_actor_reconstructed


def die(actor):
    """Its process dies, and the next one answers."""
    actor.die.options(max_task_retries=0).remote()
    wait_until(lambda: ray.get(actor.restarted.options(max_task_retries=-1).remote(), timeout=30))


def test_every_answered_call_survives_with_an_interval_of_one(ray_shared):
    counter = ray.remote(checkpoint_interval=1)(Counter).remote()
    for expected in range(1, 4):
        assert ray.get(counter.add.remote()) == expected
        die(counter)
    assert ray.get(counter.value.remote()) == 3


def test_a_state_goes_back_to_the_last_checkpoint_and_no_further(ray_shared):
    counter = ray.remote(checkpoint_interval=5)(Counter).remote()
    assert ray.get([counter.add.remote() for _ in range(7)])[-1] == 7
    die(counter)
    assert ray.get(counter.value.remote()) == 5


def test_without_a_checkpoint_yet_init_is_all_there_is(ray_shared):
    counter = ray.remote(checkpoint_interval=50)(Counter).remote()
    ray.get(counter.add.remote())
    die(counter)
    assert ray.get(counter.value.remote()) == 0


def test_a_call_that_raises_has_changed_the_state_too(ray_shared):
    counter = ray.remote(checkpoint_interval=1)(Counter).remote()
    with pytest.raises(RuntimeError, match="after a change"):
        ray.get(counter.fail.remote())
    die(counter)
    assert ray.get(counter.value.remote()) == 100


class Hooked(Counter):
    def __init__(self):
        super().__init__()
        self.file = open("/dev/null")  # what can't be pickled

    def __ray_save__(self):
        return {"n": self.n}

    def __ray_restore__(self, state):
        self.n = state["n"]
        assert not self.file.closed  # __init__ has run


def test_ray_save_and_ray_restore_say_what_the_state_is(ray_shared):
    counter = ray.remote(checkpoint_interval=2, max_restarts=3)(Hooked).remote()
    ray.get([counter.add.remote() for _ in range(4)])
    die(counter)
    assert ray.get(counter.value.remote()) == 4


def test_calls_in_flight_are_retried_on_the_restored_state(ray_shared, tmp_path):
    @ray.remote(checkpoint_interval=1, max_task_retries=-1)
    class Adder(Counter):
        def add_once_dead(self, mark):
            if not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), 9)
            return self.add()

    adder = Adder.remote()
    refs = [adder.add.remote() for _ in range(10)]
    refs.append(adder.add_once_dead.remote(str(tmp_path / "mark")))
    refs += [adder.add.remote() for _ in range(10)]
    answers = ray.get(refs, timeout=30)
    # Each ran at least once. One that was saved before its answer had left was added twice; never was one lost.
    assert answers == sorted(set(answers)) and len(answers) == 21
    assert ray.get(adder.value.remote()) == answers[-1] >= 21


def test_a_death_in_the_middle_of_a_save_leaves_the_one_before(ray_shared):
    class Unsure(Counter):
        def __ray_save__(self):
            if self.n == 3:
                os.kill(os.getpid(), 9)
            return self.n

        def __ray_restore__(self, n):
            self.n = n

    counter = ray.remote(checkpoint_interval=1)(Unsure).remote()
    assert ray.get([counter.add.remote(), counter.add.remote()]) == [1, 2]
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(counter.add.remote(), timeout=30)
    assert ray.get(counter.value.options(max_task_retries=-1).remote(), timeout=30) == 2


def test_a_state_of_some_megabytes_with_arrays(ray_shared):
    np = pytest.importorskip("numpy")

    class Big(Counter):
        def __init__(self):
            super().__init__()
            self.table = np.zeros(1 << 20)

        def fill(self, x):
            self.table[:] = x

        def total(self):
            return float(self.table.sum())

    big = ray.remote(checkpoint_interval=1)(Big).remote()
    ray.get(big.fill.remote(2.0))
    die(big)
    assert ray.get(big.total.remote()) == 2.0 * (1 << 20)


@pytest.mark.parametrize("ray_start", [{}], indirect=True)
def test_a_checkpoint_that_fails_is_told_and_the_calls_go_on(ray_start):
    class Stubborn(Counter):
        def __ray_save__(self):
            if self.n < 3:
                raise OSError(f"not at {self.n}")
            return self.n

        def __ray_restore__(self, n):
            self.n = n

    counter = ray.remote(checkpoint_interval=1)(Stubborn).remote()
    assert ray.get([counter.add.remote() for _ in range(3)]) == [1, 2, 3]
    told = [e["message"] for e in ray.error_info() if e["type"] == "checkpoint"]
    assert len(told) == 2 and "OSError: not at 1" in told[0] and "Stubborn" in told[0]
    die(counter)
    assert ray.get(counter.value.remote()) == 3


def test_a_restore_that_fails_ends_the_actor_with_the_error(ray_shared):
    class Lost(Counter):
        def __ray_save__(self):
            return self.n

        def __ray_restore__(self, n):
            raise OSError("the disk is gone")

    counter = ray.remote(checkpoint_interval=1)(Lost).remote()
    ray.get(counter.add.remote())
    counter.die.remote()

    def dead():
        with pytest.raises(ray.exceptions.RayActorError) as caught:
            ray.get(counter.value.remote(), timeout=30)
        return isinstance(caught.value, ActorDiedError) and "the disk is gone" in str(caught.value)

    assert wait_until(dead)


def test_a_killed_actor_leaves_no_checkpoint(ray_shared):
    """As seen where it would be: an actor of the same name begins anew."""
    Named = ray.remote(checkpoint_interval=1, name="kept", lifetime="detached")(Counter)
    first = Named.remote()
    ray.get(first.add.remote())
    ray.kill(first)
    second = Named.remote()
    assert ray.get(second.add.remote()) == 1
    die(second)
    assert ray.get(second.value.remote()) == 1
    ray.kill(second)


# --- Checkpointable ----------------------------------------------------------------------------------------------


class Keeper(Checkpointable):
    def __init__(self, folder, bad=False):
        self.folder, self.bad = folder, bad
        self.n = 0
        self.contexts = []

    def add(self):
        self.n += 1
        return self.n

    def story(self):
        return self.contexts, getattr(self, "available", None)

    def die(self):
        os.kill(os.getpid(), 9)

    def restarted(self):
        return ray.get_runtime_context().was_current_actor_reconstructed

    def should_checkpoint(self, checkpoint_context):
        self.contexts.append((checkpoint_context.num_tasks_since_last_checkpoint, self.n))
        assert checkpoint_context.time_elapsed_ms_since_last_checkpoint >= 0
        return self.n % 2 == 0 and checkpoint_context.num_tasks_since_last_checkpoint >= 2

    def save_checkpoint(self, actor_id, checkpoint_id):
        with open(f"{self.folder}/{checkpoint_id.hex()}", "w") as file:
            json.dump(self.n, file)

    def load_checkpoint(self, actor_id, available_checkpoints):
        assert actor_id == ray.get_runtime_context().actor_id
        self.available = [c.timestamp for c in available_checkpoints]
        if self.bad:
            return actor_id
        newest = available_checkpoints[0].checkpoint_id
        with open(f"{self.folder}/{newest.hex()}") as file:
            self.n = json.load(file)
        return newest

    def checkpoint_expired(self, actor_id, checkpoint_id):
        os.unlink(f"{self.folder}/{checkpoint_id.hex()}")


def test_a_checkpointable_keeps_its_own_state_and_says_when(ray_shared, tmp_path):
    keeper = ray.remote(max_restarts=-1)(Keeper).remote(str(tmp_path))
    assert ray.get([keeper.add.remote() for _ in range(5)])[-1] == 5
    assert ray.get(keeper.story.remote())[0][:5] == [(1, 1), (2, 2), (1, 3), (2, 4), (1, 5)]
    assert len(os.listdir(tmp_path)) == 2
    die(keeper)
    _, available = ray.get(keeper.story.remote())
    assert len(available) == 2 and available == sorted(available, reverse=True)
    assert ray.get(keeper.add.remote()) == 5  # the fifth came after the last checkpoint


def test_of_a_checkpointable_s_checkpoints_twenty_are_kept(ray_shared, tmp_path):
    keeper = ray.remote(max_restarts=-1)(Keeper).remote(str(tmp_path))
    ray.get([keeper.add.remote() for _ in range(50)])
    assert len(os.listdir(tmp_path)) == 20
    assert sorted(json.load(open(tmp_path / name)) for name in os.listdir(tmp_path)) == list(range(12, 52, 2))
    die(keeper)
    assert ray.get(keeper.add.remote()) == 51


def test_a_checkpointable_must_choose_one_of_those_that_there_are(ray_shared, tmp_path):
    keeper = ray.remote(max_restarts=-1)(Keeper).remote(str(tmp_path), bad=True)
    ray.get([keeper.add.remote() for _ in range(2)])
    keeper.die.remote()

    def dead():
        with pytest.raises(ray.exceptions.RayActorError) as caught:
            ray.get(keeper.add.remote(), timeout=30)
        return isinstance(caught.value, ActorDiedError) and "load_checkpoint returned" in str(caught.value)

    assert wait_until(dead)


# --- refused -----------------------------------------------------------------------------------------------------


class HalfHooked(Counter):
    def __ray_save__(self):
        return self.n


class Async(Counter):
    async def wait(self):
        pass


@pytest.mark.parametrize(
    ("actor_class", "options", "says"),
    [
        (Counter, {"checkpoint_interval": 1, "max_restarts": 0}, "max_restarts=0"),
        (Counter, {"checkpoint_interval": 1, "max_concurrency": 2}, "one at a time"),
        (Async, {"checkpoint_interval": 1}, "one at a time"),
        (HalfHooked, {"checkpoint_interval": 1}, "__ray_restore__"),
        (Keeper, {"checkpoint_interval": 1}, "Checkpointable"),
        (Keeper, {"max_concurrency": 2}, "one at a time"),
        (Counter, {"checkpoint_interval": -2}, "checkpoint_interval=-2"),
        (Counter, {"checkpoint_interval": 0.5}, "checkpoint_interval=0.5"),
    ],
    ids=repr,
)
def test_options_that_make_no_sense_together_are_refused(actor_class, options, says):
    with pytest.raises((ValueError, TypeError), match=says):
        ray.remote(**options)(actor_class)
    with pytest.raises((ValueError, TypeError), match=says):
        ray.remote(actor_class).options(**options)
