"""Small puts and gets: ray.plasma beside pyarrow 11's plasma, in one run. PROCESS a person runs.

    python -m tests.perf.plasma_peer                             ours only
    python -m tests.perf.plasma_peer --peer PYTHON               PYTHON: an environment with pyarrow==11.0.0 and numpy<2
    python -m tests.perf.plasma_peer --seconds 2 --json FILE

Each row runs in turns, ours then the peer's, in processes of their own, so that whatever else the machine does falls on
both. Large puts stand beside a warm memcpy of the same bytes with as many threads, which is the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 2_000_000_000
LARGE_BYTES = 800_000_000
CHILD_TIMEOUT_S = 300.0

# Row: (name, how to prepare, what one call does). `plasma` is the module, `c` the client, `ids` a list to use.
VALUE = {"name": "a", "n": 3, "list": [1, 2.5, None]}
ROWS = ("put an int", "get an int", "put a dict", "get a dict", "put 1 KB of bytes", "get a buffer of 1 KB", "contains")


def rate(call: Callable[[int], Any], seconds: float) -> float:
    """Calls a second, best of three windows; call gets a running number."""
    best, at = 0.0, 0
    for _ in range(3):
        n, started = 0, time.perf_counter()
        ends = started + seconds / 3
        while time.perf_counter() < ends:
            for _ in range(200):
                call(at)
                at += 1
            n += 200
        best = max(best, n / (time.perf_counter() - started))
    return best


def measure(row: str, path: str, plasma: Any, seconds: float) -> float:
    """One row's rate, against a store that serves path."""
    c = plasma.connect(path)
    data = b"x" * 1024
    if row == "put an int":
        return rate(lambda i: c.put(i), seconds)
    if row == "put a dict":
        return rate(lambda i: c.put(VALUE), seconds)
    if row == "put 1 KB of bytes":
        return rate(lambda i: c.put_raw_buffer(data), seconds)
    if row == "get a buffer of 1 KB":
        buffers = [c.put_raw_buffer(data) for _ in range(1000)]
        return rate(lambda i: c.get_buffers([buffers[i % 1000]]), seconds)
    ids = [c.put(VALUE if row == "get a dict" else i) for i in range(1000)]
    if row == "contains":
        return rate(lambda i: c.contains(ids[i % 1000]), seconds)
    return rate(lambda i: c.get(ids[i % 1000]), seconds)


def large_puts(path: str) -> dict[str, float]:
    """GB/s of our put of 800 MB, and of a warm memcpy with the same number of threads."""
    import threading

    import numpy as np

    from ray._native.plasma import PlasmaClient, copy_threads

    client = PlasmaClient(path)
    source = np.ones(LARGE_BYTES // 8)
    target = np.empty_like(source)
    threads = copy_threads(LARGE_BYTES)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads)))

    def memcpy() -> None:
        helpers = [threading.Thread(target=np.copyto, args=part) for part in parts[1:]]
        for h in helpers:
            h.start()
        np.copyto(*parts[0])
        for h in helpers:
            h.join()

    best = {"memcpy": 0.0, "put": 0.0}
    for i in range(6):
        started = time.perf_counter()
        memcpy()
        middle = time.perf_counter()
        client.put(b"large", source)
        ended = time.perf_counter()
        client.delete(b"large")
        if i == 0:
            continue  # pages are touched for the first time
        best["memcpy"] = max(best["memcpy"], LARGE_BYTES / (middle - started) / 1e9)
        best["put"] = max(best["put"], LARGE_BYTES / (ended - middle) / 1e9)
    best["threads"] = threads
    return best


def child(which: str, row: str, seconds: float) -> None:
    """Measures one row in this interpreter and prints it as JSON. PROCESS of its own; `pyarrow` is the peer."""
    if which == "pyarrow":
        import warnings

        warnings.simplefilter("ignore")
        import pyarrow.plasma as plasma  # type: ignore[import-not-found]
    else:
        from ray import plasma
    with plasma.start_plasma_store(STORE_BYTES) as (path, _process):
        result: Any = large_puts(path) if row == "large" else measure(row, path, plasma, seconds)
    print("\n" + json.dumps(result))


def run_child(python: str, which: str, row: str, seconds: float) -> Any:
    environment = dict(os.environ, PYTHONWARNINGS="ignore")
    if which == "ray":
        environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [python, str(Path(__file__)), "--child", which, "--row", row, "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=CHILD_TIMEOUT_S,
        cwd=tempfile.gettempdir(),
    )
    if done.returncode != 0:
        raise RuntimeError(f"{which}, {row}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Prints the table; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter with pyarrow==11.0.0")
    parser.add_argument("--seconds", type=float, default=1.5, help="per row")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--child", choices=["ray", "pyarrow"], help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.row, given.seconds)
        return
    numbers: dict[str, Any] = {}
    print(f"{'calls a second':<24}{'ray.plasma':>14}" + (f"{'pyarrow 11':>14}{'ratio':>9}" if given.peer else ""))
    for row in ROWS:
        ours = run_child(sys.executable, "ray", row, given.seconds)
        line, numbers[row] = f"{row:<24}{ours:>14,.0f}", {"ray.plasma": ours}
        if given.peer:
            theirs = run_child(given.peer, "pyarrow", row, given.seconds)
            numbers[row]["pyarrow"] = theirs
            line += f"{theirs:>14,.0f}{ours / theirs:>8.1f}x"
        print(line, flush=True)
    large = run_child(sys.executable, "ray", "large", given.seconds)
    numbers["large"] = large
    print(
        f"put of 800 MB: {large['put']:.1f} GB/s; warm memcpy with {large['threads']:.0f} threads: "
        f"{large['memcpy']:.1f} GB/s; ratio {large['put'] / large['memcpy']:.2f}"
    )
    if given.json:
        Path(given.json).write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
