"""A session ends while other threads are in the middle of anything: they hear of it, and nothing crashes or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import ray
from tests.leaks import Snapshot

SEEDS = [int(os.environ["RAY_SHUTDOWN_SEED"])] if "RAY_SHUTDOWN_SEED" in os.environ else [1, 2]
SHUTDOWNS = int(os.environ.get("RAY_SHUTDOWNS", "8"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_may_end_under_threads_that_use_it(seed: int) -> None:
    ray.shutdown()
    before = Snapshot.take()
    command = [sys.executable, "-m", "tests.stress.shutdowns", str(seed), str(SHUTDOWNS)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60 + 10 * SHUTDOWNS)
    assert ended.returncode == 0, ended.stderr[-5000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["threads that hang"] == said["futures that never finished"] == 0
    assert not [name for name in said["raised"] if name.startswith("unexpected")], said
    assert sum(said["raised"].values()) > 0, "nothing was in the middle"
    assert not before.wait_until_clean(10.0)
