"""Sizes that small benchmarks don't reach, on whatever `ray` the interpreter imports. PROCESS: a driver.

    PYTHON tests/perf/scale_rows.py ROW [--size N] [--json FILE]

Run as a script, like microbench.py, so that `import ray` is the interpreter's own. Each row prints, and writes, how
many a second, or how many seconds; `scale.py` runs the rows of both engines in turns. Only the public API is used.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ray

OBJECT_BYTES = 120_000  # above 100 KiB: in the object store with both engines, whatever else they keep elsewhere
TRIES = 5


def median_s(what: Callable[[], float]) -> float:
    return statistics.median(what() for _ in range(TRIES))


def ref_arguments(size: int) -> float:
    """Seconds of one task with that many refs as arguments, from the call to its result."""

    @ray.remote
    def count(*values: int) -> int:
        return len(values)

    refs = [ray.put(n) for n in range(size)]
    ray.get(count.remote(*refs[:10]))

    def once() -> float:
        began = time.perf_counter()
        assert ray.get(count.remote(*refs)) == size
        return time.perf_counter() - began

    return median_s(once)


def returns(size: int) -> float:
    """Seconds of one task with that many returns, from the call until all are there."""

    @ray.remote
    def many(n: int) -> list[int]:
        return list(range(n))

    ray.get(many.options(num_returns=10).remote(10))

    def once() -> float:
        began = time.perf_counter()
        assert ray.get(many.options(num_returns=size).remote(size)) == list(range(size))
        return time.perf_counter() - began

    return median_s(once)


def get_objects(size: int) -> float:
    """Seconds of one get of that many objects in the store, which another process has put there."""

    maker = ray.remote(num_cpus=0)(Maker).remote()
    refs = ray.get(maker.make.remote(size))

    def once() -> float:
        began = time.perf_counter()
        values = ray.get(refs)
        took = time.perf_counter() - began
        assert len(values) == size and int(values[-1][0]) == size - 1
        return took

    return median_s(once)


class Maker:
    """Owns objects, as long as it lives."""

    def make(self, n: int) -> list[ray.ObjectRef[Any]]:
        self.refs = [ray.put(np.full(OBJECT_BYTES // 8, i)) for i in range(n)]
        return self.refs


def queued_tasks(size: int) -> float:
    """Tasks a second, from the first call to the last result, when all are submitted before any result is taken."""

    @ray.remote
    def nothing() -> None:
        pass

    ray.get([nothing.remote() for _ in range(100)])
    began = time.perf_counter()
    refs = [nothing.remote() for _ in range(size)]
    queued = time.perf_counter() - began
    ray.get(refs)
    took = time.perf_counter() - began
    print(f"submitted in {queued:.1f} s, done after {took:.1f} s")
    return size / took


def killed_worker(size: int) -> float:
    """Seconds from SIGKILL to the worker of a task to the result of its retry, median of that many."""

    @ray.remote(max_retries=3)
    def wait_to_be_killed(mark: str) -> float:
        if os.path.exists(mark):
            return time.time()
        Path(mark + ".new").write_text(str(os.getpid()))
        os.rename(mark + ".new", mark)
        time.sleep(600)
        return 0.0

    def once() -> float:
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder) / "mark"
            ref = wait_to_be_killed.remote(str(mark))
            while not mark.exists():
                time.sleep(0.005)
            began = time.perf_counter()
            os.kill(int(mark.read_text()), signal.SIGKILL)
            ray.get(ref)
            return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(size))


def wait_loop(size: int) -> float:
    """Seconds to take that many results one at a time, each with a `ray.wait` of those that are left."""

    @ray.remote
    def nothing(n: int) -> int:
        return n

    def once() -> float:
        rest = [nothing.remote(n) for n in range(size)]
        ray.wait(rest, num_returns=size)
        began = time.perf_counter()
        while rest:
            _, rest = ray.wait(rest)
        return time.perf_counter() - began

    once()
    return once()


def environment(size: int) -> float:
    """Seconds that env_vars add to the start of an actor, until its first answer: median of that many with, less the
    median without. Each environment is a new one."""

    made: Any = ray.remote(num_cpus=0)(Answers)

    def start_s(env: dict[str, Any] | None, name: str) -> float:
        began = time.perf_counter()
        actor = made.options(runtime_env=env).remote() if env else made.remote()
        assert ray.get(actor.answer.remote(name)) is (env is not None)
        took = time.perf_counter() - began
        ray.kill(actor)
        return took

    start_s(None, "NONE_SUCH")
    pairs = []
    for turn in range(size):
        plain = start_s(None, f"NONE_SUCH_{turn}")
        pairs.append((start_s({"env_vars": {f"OF_TURN_{turn}": "1"}}, f"OF_TURN_{turn}"), plain))
    return statistics.median(pair[0] for pair in pairs) - statistics.median(pair[1] for pair in pairs)


class Answers:
    """Whether a name is in its environment."""

    def answer(self, name: str) -> bool:
        return name in os.environ


ROWS: dict[str, tuple[Callable[[int], float], int]] = {
    "ref arguments": (ref_arguments, 10_000),
    "returns": (returns, 3_000),
    "get objects": (get_objects, 10_000),
    "queued tasks": (queued_tasks, 1_000_000),
    "killed worker": (killed_worker, 11),
    "wait loop": (wait_loop, 10_000),
    "environment": (environment, 11),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("row", choices=[*ROWS])
    parser.add_argument("--size", type=int, default=0, help="default: the row's own")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    row, size = ROWS[options.row]
    size = options.size or size
    ray.init(num_cpus=2, object_store_memory=2_000_000_000, include_dashboard=False, logging_level="error")
    value = row(size)
    ray.shutdown()
    print(f"{options.row} ({size:,}): {value:.4g}")
    if options.json:
        Path(options.json).write_text(json.dumps(value))


if __name__ == "__main__":
    main()
