"""A node whose processes are killed at random while leases come and go: it must stay right, and leave nothing.

RAY_TEST_CHAOS_SECONDS sets how long (3 s unless told); RAY_TEST_CHAOS_SEED repeats the choices, not the timing.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from .harness import CPU1, Driver, wait_gone

SECONDS = float(os.environ.get("RAY_TEST_CHAOS_SECONDS", "3"))

KILLS_A_SECOND = 8.0


def test_a_node_stays_right_while_everything_below_it_is_killed_at_random(start: Callable[..., Driver]) -> None:
    seed = int(os.environ.get("RAY_TEST_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    choose = random.Random(seed)
    driver = start({"CPU": 4, "GPU": 2}, settings={"idle_worker_timeout_s": 0.2, "idle_workers_kept": 1})
    held: dict[int, int] = {}  # lease -> pid
    waiting: dict[int, None] = {}
    granted = killed = 0
    kill_next = 0.0
    redis_next = time.monotonic() + 1
    ends = time.monotonic() + SECONDS
    while not (over := time.monotonic() >= ends and granted > 10 and killed > 2) or waiting:
        driver.listen(0.01)
        for name, args in driver.events:
            if name == "lease_grant":
                req_id, lease_id, _, pid, _ = args
                granted += 1
                waiting.pop(req_id, None)
                held[lease_id] = pid
            elif name == "lease_lost":
                held.pop(args[0])
        driver.events.clear()
        act = choose.random()
        if act < 0.3 and not over and len(waiting) < 20:
            waiting[
                driver.ask(choose.choice([CPU1, {"CPU": 5_000}, {"GPU": 10_000}, {"CPU": 10_000, "GPU": 5_000}]))
            ] = None
        elif act < 0.6 and held:
            lease = choose.choice(sorted(held))
            del held[lease]
            driver.tell("lease_return", lease, choose.random() < 0.8)
        elif time.monotonic() > kill_next and not over:
            kill_next = time.monotonic() + choose.expovariate(KILLS_A_SECOND)
            pids = driver.stats()["pids"]
            targets = [pids["fork_server"], pids["plasma_store"], *pids["workers"]]
            if time.monotonic() > redis_next:  # one that keeps dying is given up, after 8 deaths in a minute
                targets, redis_next = pids["redis"], time.monotonic() + 10
            _kill(choose.choice(targets) if targets else 0)
            killed += 1
        assert driver.node.wait_exit(0) is None, "the node process has ended"
    for lease in held:
        driver.tell("lease_return", lease, True)
    print(f"{granted} leases granted, {killed} processes killed")
    deadline = time.monotonic() + 60
    while (stats := driver.stats())["scheduler"]["available"] != stats["scheduler"]["total"]:
        assert time.monotonic() < deadline, stats
        driver.listen(0.05)
    assert stats["bugs"] == 0 and stats["scheduler"]["leases"]["HELD"] == 0
    # Whatever was killed last is back, too.
    pids = driver.stats()["pids"]
    while not (pids["fork_server"] and pids["plasma_store"] and pids["redis"]):
        assert time.monotonic() < deadline, pids
        driver.listen(0.05)
        pids = driver.stats()["pids"]
    everything = driver.pids()
    driver.shutdown()
    wait_gone(everything)


def _kill(pid: int) -> None:
    """SIGKILL, unless it has ended: pids are not reused within the seconds of a test."""
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
