"""What judges the chaos runs on one node: which losses a kill excuses, and which worker crashed by itself."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

import ray
from ray.exceptions import OwnerDiedError, WorkerCrashedError
from tests.chaos.load import KINDS, Losses, some_of
from tests.chaos.session import KILLS, crashes
from tests.wait import wait_until


@pytest.fixture
def losses():
    return Losses()


def loses(losses):
    return losses.may_lose(OwnerDiedError, "worker")


def test_a_loss_is_excused_by_a_kill_that_ended_while_the_work_went_on(losses):
    with loses(losses):
        with losses.of_a("worker"):
            pass
        raise OwnerDiedError("lost")


def test_a_loss_is_excused_by_a_kill_that_began_before_the_work_and_whose_killer_has_not_seen_its_end(losses):
    with losses.of_a("worker"), loses(losses):
        raise OwnerDiedError("lost")


def test_a_loss_is_excused_by_a_kill_that_ended_in_the_work_and_had_begun_before(losses):
    with contextlib.ExitStack() as kill:
        kill.enter_context(losses.of_a("worker"))
        with loses(losses):
            kill.close()
            raise OwnerDiedError("lost")


@pytest.mark.parametrize("killed", ["worker", "plasma_store"])
def test_a_kill_that_was_over_and_one_of_another_role_excuse_nothing(losses, killed):
    with losses.of_a("worker"):
        pass
    with pytest.raises(AssertionError, match="lost without a kill"), loses(losses):
        if killed != "worker":
            with losses.of_a(killed):
                pass
        raise OwnerDiedError("lost")


def test_some_rounds_have_all_kinds_of_work_and_others_few_as_their_seeds_say():
    rounds = [some_of(seed, KINDS) for seed in range(100)]
    assert rounds == [some_of(seed, KINDS) for seed in range(100)]
    assert {len(kinds) for kinds in rounds} == {1, 2, 3, len(KINDS)}
    assert {kind for kinds in rounds if len(kinds) == 1 for kind in kinds} == set(KINDS)


@ray.remote(max_retries=0)
def dies(signum):
    os.kill(os.getpid(), signum)


def test_a_worker_that_crashes_is_told_from_those_that_are_killed(engine):
    for how in (*KILLS, signal.SIGSEGV):
        with pytest.raises(WorkerCrashedError):
            ray.get(dies.remote(how))
    wait_until(crashes, what="the crash to be known")
    (crash,) = crashes()
    assert crash.endswith("killed by SIGSEGV")
