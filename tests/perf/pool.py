"""`Pool.map` over 100,000 small items: ray.util.multiprocessing beside the standard library's. PROCESS a person runs.

    python -m tests.perf.pool [--rounds 15] [--json FILE]

Both pools have two processes, live at the same time and take turns, so that whatever else the machine does falls on
both. A row's numbers are medians; a ratio above 1 is in our favour. "driver" is the processor time of this process for
a map.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ITEMS = 100_000
PROCESSES = 2


def square(x: int) -> int:
    return x * x


ROWS: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {
    "ints": (square, list(range(ITEMS))),
    "a range": (square, range(ITEMS)),
    "short strings": (len, [f"item {i}" for i in range(ITEMS)]),
}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """{row: {"ray_ms", "std_ms", "ratio", "ray_driver_ms", "std_driver_ms"}}"""
    import ray
    from ray.util.multiprocessing import Pool

    std = multiprocessing.get_context("fork").Pool(PROCESSES)  # before ray's threads are there
    ray.init(num_cpus=PROCESSES, logging_level="error")
    ours = Pool(PROCESSES)
    results = {}
    try:
        for row, (function, values) in ROWS.items():
            assert ours.map(function, values) == std.map(function, values)
            walls: dict[str, list[float]] = {"ray": [], "std": []}
            driver = {"ray": 0.0, "std": 0.0}
            for _ in range(rounds):
                for name, pool in (("ray", ours), ("std", std)):
                    cpu, began = time.process_time(), time.perf_counter()
                    pool.map(function, values)
                    walls[name].append(1e3 * (time.perf_counter() - began))
                    driver[name] += 1e3 * (time.process_time() - cpu) / rounds
            mine, theirs = (statistics.median(walls[name]) for name in ("ray", "std"))
            results[row] = {
                "ray_ms": mine,
                "std_ms": theirs,
                "ratio": theirs / mine,
                **{f"{name}_driver_ms": spent for name, spent in driver.items()},
            }
    finally:
        ours.terminate()
        std.terminate()
        ray.shutdown()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments.rounds)
    for row, numbers in results.items():
        print(f"map of {ITEMS} {row}: " + ", ".join(f"{name} {value:.2f}" for name, value in numbers.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
