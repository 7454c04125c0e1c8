"""PROCESS of test_shutdowns.py: threads do whatever a program does, and the session ends under them, again and again:
by `ray.shutdown()`, every third time after its node process was killed.

    python -m tests.stress.shutdowns SEED SHUTDOWNS

Prints how often what was raised, and how many futures never finished.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np

import ray
from ray import _driver

THREADS = 4
MAY_BE_RAISED = (ray.exceptions.RayError, RuntimeError)  # RuntimeError: init by two at once


@ray.remote
def echo(x: Any, for_s: float = 0.0) -> Any:
    time.sleep(for_s)
    return x


@ray.remote
def large(n: int) -> np.ndarray:
    return np.full(200_000, n)


@ray.remote
def items(n: int) -> Any:
    for i in range(n):
        yield i
        time.sleep(0.005)


@ray.remote
class Actor:
    def echo(self, x: Any, for_s: float) -> Any:
        time.sleep(for_s)
        return x

    def put(self) -> list[Any]:
        return [ray.put(np.ones(100_000))]


def get(r: random.Random) -> None:
    ray.get(echo.remote(1, r.random() * 0.1))
    ray.get([large.remote(i) for i in range(3)])


def put(r: random.Random) -> None:
    ray.get(ray.put(np.ones(r.randrange(300_000))))


def wait(r: random.Random) -> None:
    ray.wait([echo.remote(i, r.random() * 0.1) for i in range(10)], num_returns=5, timeout=1)


def actor(r: random.Random) -> None:
    made = Actor.remote()
    ray.get([made.echo.remote(i, r.random() * 0.02) for i in range(5)])
    box = ray.get(made.put.remote())
    del made
    ray.get(box[0])


def stream(r: random.Random) -> None:
    for ref in items.remote(r.randrange(10)):
        ray.get(ref)


def gather(r: random.Random) -> None:
    async def one(i: int) -> Any:
        return await echo.remote(i, r.random() * 0.05)

    async def main() -> None:
        await asyncio.gather(*(one(i) for i in range(5)))

    asyncio.run(main())


def async_stream(r: random.Random) -> None:
    async def main() -> None:
        async for ref in items.remote(5):
            await ref

    asyncio.run(main())


class Program:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.over = threading.Event()
        self.raised: Counter[str] = Counter()
        self.futures: list[concurrent.futures.Future[Any]] = []

    def future(self, r: random.Random) -> None:
        self.futures.append(echo.remote(2, r.random() * 0.2).future())

    def work(self, number: int) -> None:
        r = random.Random(self.seed * 100 + number)
        kinds = (get, put, wait, actor, stream, gather, async_stream, self.future)
        while not self.over.is_set():
            try:
                r.choice(kinds)(r)
            except MAY_BE_RAISED as error:
                self.raised[type(error).__name__] += 1
                self.over.wait(0.01)
            except BaseException as error:
                self.raised[f"unexpected: {error!r}"] += 1
                raise


def kill_node() -> None:
    started = _driver._started
    if started is not None and started.node is not None:
        os.kill(started.node.pid, signal.SIGKILL)


def main() -> int:
    faulthandler.enable()
    program = Program(int(sys.argv[1]))
    r = random.Random(program.seed)
    threads = [threading.Thread(target=program.work, args=(i,)) for i in range(THREADS)]
    ray.init(num_cpus=2, logging_level="error", log_to_driver=False)
    for thread in threads:
        thread.start()
    for _ in range(int(sys.argv[2])):
        program.over.wait(r.random())  # meanwhile they work: nothing tells when something is in the middle
        if r.random() < 0.3:
            kill_node()
            program.raised["killed"] += 1
            program.over.wait(r.random() * 0.3)
        ray.shutdown()
        if r.random() < 0.7:  # else one of them begins the next session
            try:
                ray.init(num_cpus=2, logging_level="error", log_to_driver=False)
            except RuntimeError:
                program.raised["init"] += 1  # one of them was first
    program.over.set()
    for thread in threads:
        thread.join(60)
    alive = sum(thread.is_alive() for thread in threads)
    ray.shutdown()
    unfinished = sum(not future.done() for future in program.futures)
    print(json.dumps({"raised": program.raised, "threads that hang": alive, "futures that never finished": unfinished}))
    if alive:
        faulthandler.dump_traceback()
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
