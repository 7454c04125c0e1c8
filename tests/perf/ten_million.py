"""Runs millions of tasks through one driver and watches its memory, its workers' and the node's. PROCESS: a driver.

    python -m tests.perf.ten_million                       10,000,000 tasks, 100,000 at a time
    python -m tests.perf.ten_million --tasks 1000000 --chunk 1000000         all of them queued at once

Prints a line for each tenth: tasks a second, and the resident memory of each kind of process in MB. Flat means: the
last tenth's memory is the second's (the first one warms up). Ends with status 1 if it grew by more than --growth MB.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import ray
from ray._core.engine import current


def rss_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def memory() -> dict[str, float]:
    """Resident megabytes by kind of process; workers' summed."""
    engine = current()
    assert engine is not None
    pids = engine.rpc("stats")["pids"]
    found = {"driver": rss_mb(os.getpid())}
    for role, who in pids.items():
        found[role] = sum(rss_mb(pid) for pid in (who if isinstance(who, list) else [who]) if pid)
    return found


@ray.remote
def increment(x: int) -> int:
    return x + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000_000)
    parser.add_argument("--chunk", type=int, default=100_000, help="tasks queued at a time")
    parser.add_argument("--growth", type=float, default=20.0, help="MB that may be gained after the first tenth")
    options = parser.parse_args()
    ray.init(logging_level="error")
    began = last = time.monotonic()
    done = reported = 0
    seen: list[dict[str, float]] = []
    while done < options.tasks:
        n = min(options.chunk, options.tasks - done)
        refs = [increment.remote(i) for i in range(done, done + n)]
        if n == options.tasks:
            print(f"queued in {time.monotonic() - began:.1f} s; " + show(memory()), flush=True)
        results = ray.get(refs)
        assert results == list(range(done + 1, done + n + 1))
        del refs, results
        done += n
        if done - reported >= options.tasks / 10 or done == options.tasks:
            now = time.monotonic()
            seen.append(memory())
            print(f"{done:>10,}  {(done - reported) / (now - last):>9,.0f}/s  {show(seen[-1])}", flush=True)
            last, reported = now, done
    print(f"{options.tasks:,} tasks in {time.monotonic() - began:.1f} s")
    ray.shutdown()
    if len(seen) < 3:
        return 0
    grown = {role: seen[-1][role] - seen[1][role] for role in seen[1]}
    print("grown since the second tenth: " + show(grown))
    return 1 if max(grown.values()) > options.growth else 0


def show(numbers: dict[str, float]) -> str:
    return ", ".join(f"{role} {mb:.1f}" for role, mb in numbers.items()) + " MB"


if __name__ == "__main__":
    sys.exit(main())
