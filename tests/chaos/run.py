"""Kills each kind of process of a session at random while work goes on in it, and checks that every result is right and
that nothing is left. PROCESS by itself, one driver after another:

    python -m tests.chaos.run --minutes 10            rounds until the time is up; prints the seed of each
    python -m tests.chaos.run --seed 7 --round all    one round, as it was
    python -m tests.chaos.run --nodes 4 --minutes 60  rounds over four nodes: cluster_run.py
        --settings '{"tls": true}'                    with these settings of the cluster

A round `all` kills workers, actors, the fork server, the store and Redis, several times a second, under a load with
known results (load.py). A round `node` kills the node process: everything pending must fail within a second. A round
`driver` kills a driver that is under load, in a process of its own. A round `nodes` does all of this, and more, to
several nodes and the links between them. Each ends with the leak checks. The schedule of
kills follows from the seed; what they hit depends on the machine's timing, so a seed repeats a kind of run rather than
a run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from tests.chaos.load import KINDS, Doubler, Load, Losses, slow_double, some_of
from tests.chaos.remains import look
from tests.chaos.session import KILLS, assert_held, crashes, forget_orphans, gone, held, pids, within
from tests.leaks import Snapshot

ROOT = str(Path(__file__).resolve().parents[2])
STORE_BYTES = 300_000_000
# The node gives up on a store or a Redis that dies again and again without ever having lived for some seconds: that is
# policy, not chaos. No two kills of one of them are nearer than this.
STEADY_S = {"plasma_store": 5.5, "redis": 5.5}
OPTIONS = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "logging_level": "error", "log_to_driver": False}


class Killer(threading.Thread):
    """Kills something of a session every moment, in an order that follows from the seed."""

    def __init__(self, seed: int, losses: Losses) -> None:
        super().__init__(name="killer", daemon=True)
        self.kills: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._random = random.Random(seed)
        self._losses = losses
        self._ending = threading.Event()
        self._spared_until = dict.fromkeys(STEADY_S, 0.0)

    def run(self) -> None:
        try:
            while not self._ending.wait(self._random.uniform(0.05, 0.6)):
                self._kill_one()
        except BaseException as error:
            self.error = error

    def _kill_one(self) -> None:
        role = self._random.choice(
            ["worker", "worker", "worker", "all workers", "fork_server", "plasma_store", "redis"]
        )
        if time.monotonic() < self._spared_until.get(role, 0.0):
            return
        victims = pids("workers" if "worker" in role else role)
        if not victims:
            return
        if role == "worker":
            victims = [self._random.choice(victims)]
        with self._losses.of_a("worker" if "worker" in role else role):
            for pid in victims:
                how = self._random.choice(KILLS) if "worker" in role else signal.SIGKILL
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
            for pid in victims:
                gone(pid)
        self.kills[role] += 1
        if role in STEADY_S:
            self._spared_until[role] = time.monotonic() + STEADY_S[role]

    def end(self) -> None:
        self._ending.set()
        self.join(60)
        assert not self.is_alive(), "the killer itself hangs: the node doesn't answer"
        if self.error is not None:
            raise self.error


def round_all(seed: int, seconds: float) -> str:
    """Every process but node and driver; results must be right."""
    before_all = Snapshot.take()
    ray.init(**OPTIONS)
    try:
        before = held()
        losses = Losses()
        load = Load(seed, 4, losses, some_of(seed, KINDS), look)
        killer = Killer(seed, losses)
        killer.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not load.failed and killer.is_alive():
            time.sleep(0.05)
        with contextlib.ExitStack() as both:  # what the work says comes first
            both.callback(killer.end)
            if load.failed:
                load.stop()
        load.stop()
        assert not crashes(), crashes()
        forget_orphans()
        assert_held(before, 10)
    finally:
        ray.shutdown()
    left = before_all.wait_until_clean(60.0)
    assert not left, "left behind:\n  " + "\n  ".join(left)
    return f"killed {dict(killer.kills)}, done {dict(load.done)}"


def round_node(seed: int, seconds: float) -> str:
    """The node process: everything pending fails within a second, and a new session can be started."""
    before = Snapshot.take()
    r = random.Random(seed)
    ray.init(**OPTIONS)
    try:
        losses = Losses()
        load = Load(seed, 4, losses)
        actor = Doubler.remote()
        pending = [slow_double.remote(1, 60), slow_double.remote(1, 60), actor.call.remote(1)]
        time.sleep(r.uniform(0, seconds))
        assert not load.failed, load.errors
        (node,) = pids("node")
        os.kill(node, signal.SIGKILL)
        gone(node)
        with within():
            for ref in pending:
                with contextlib.suppress(RayError):
                    ray.get(ref, timeout=60)
            with contextlib.suppress(RayError, AssertionError):  # each thread's work fails too, and at once
                load.stop(1.0)
        assert all(
            "LocalRayletDiedError" in e or "ActorDiedError" in e or "RaySystemError" in e for e in load.errors
        ), load.errors
    finally:
        ray.shutdown()
    with within(3.0):
        left = before.wait_until_clean(60.0, inside=False)
    assert not left, "left behind:\n  " + "\n  ".join(left)
    ray.init(**OPTIONS)
    assert ray.get(slow_double.remote(2, 0), timeout=60) == 4
    ray.shutdown()
    return f"after {sum(load.done.values())} pieces of work"


def round_driver(seed: int, seconds: float) -> str:
    """A driver under load, while its session is under attack as well: nothing is left within two seconds."""
    before = Snapshot.take()
    r = random.Random(seed)
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.run", "--seed", str(seed), "--round", "all", "--seconds", "600"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(r.uniform(0.1, 0.5 + seconds))
    assert driver.poll() is None, driver.communicate()[1]
    driver.kill()
    driver.communicate()
    with within(2.0):
        left = before.wait_until_clean(60.0, inside=False)
    assert not left, "left behind:\n  " + "\n  ".join(left)
    return "killed"


def round_nodes(
    seed: int, seconds: float, nodes: int = 4, links: bool = True, settings: dict[str, Any] | None = None
) -> str:
    """Several nodes: see cluster_run.py."""
    from tests.chaos import cluster_run

    return cluster_run.round_nodes(seed, seconds, nodes, links, settings)


ROUNDS = {"all": round_all, "node": round_node, "driver": round_driver, "nodes": round_nodes}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="of the first round; the next ones count up")
    parser.add_argument("--round", choices=sorted(ROUNDS), help="this kind only, once")
    parser.add_argument("--seconds", type=float, default=25.0, help="of a round of kind all, or nodes (20 at most)")
    parser.add_argument("--nodes", type=int, default=1, help="2 or more: rounds of kind nodes, with so many")
    parser.add_argument("--settings", type=json.loads, help='of the cluster, for rounds of nodes: {"tls": true}')
    options = parser.parse_args()
    if options.nodes > 1:
        ROUNDS["nodes"] = functools.partial(round_nodes, nodes=options.nodes, settings=options.settings)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 30)
    if options.round:
        print(f"{options.round}, seed {seed}", flush=True)
        print(ROUNDS[options.round](seed, options.seconds))
        return 0
    one_node = [("all", options.seconds), ("node", 2.0), ("driver", 2.0)]
    kinds = [("nodes", min(options.seconds, 20.0))] if options.nodes > 1 else one_node
    deadline = time.monotonic() + 60 * options.minutes
    while time.monotonic() < deadline:
        for name, seconds in kinds:
            print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}: ", end="", flush=True)
            print(ROUNDS[name](seed, min(seconds, max(2.0, deadline - time.monotonic()))), flush=True)
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
