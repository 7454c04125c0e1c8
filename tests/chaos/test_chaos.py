"""The chaos run, short: about a minute, or as long as RAY_TEST_CHAOS_SECONDS says. See run.py."""

from __future__ import annotations

import os
import random

import pytest

import ray
from tests.chaos import run

SECONDS = float(os.environ.get("RAY_TEST_CHAOS_SECONDS", "40"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(SECONDS + 150)]


@pytest.fixture
def seed(engine):
    engine.stop()
    seed = int(os.environ.get("RAY_TEST_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"seed {seed}: python -m tests.chaos.run --seed {seed} --round ...")
    yield seed
    ray.shutdown()


def test_every_result_is_right_while_workers_fork_server_store_and_redis_are_killed(seed):
    print(run.round_all(seed, SECONDS * 0.7))


def test_everything_pending_fails_at_once_when_the_node_is_killed(seed):
    for i in range(2):
        print(run.round_node(seed + i, SECONDS / 40))


def test_nothing_is_left_when_a_driver_is_killed_under_load(seed):
    for i in range(3):
        print(run.round_driver(seed + i, SECONDS / 20))


def test_every_result_is_right_while_nodes_of_a_cluster_are_attacked(seed):
    print(run.round_nodes(seed, SECONDS * 0.3, nodes=3))
