"""Spilling and bringing back, against a plain write and read of as many bytes on the same disk. PROCESS a person runs.

    python -m tests.perf.spilling [--mib 512] [--object-mib 4] [--rounds 3] [--folder PATH] [--json FILE]

In turns, round by round: objects are put into a store that is full, then got; and a file of as many bytes is written
and read, a MiB at a time, by one thread that does nothing else. Neither waits for the disk itself where the page
cache has room: what is measured is the way through it, which both have.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import ray
from tests.chaos.session import store
from tests.perf.compare import machine

MIB = 1 << 20


def plain(folder: str, nbytes: int) -> dict[str, float]:
    """GB/s of a file's write and of its read back, page cache and all, as spilling has them."""
    data = np.random.default_rng(1).integers(0, 256, MIB, dtype=np.uint8).tobytes()
    target = bytearray(nbytes)  # as fresh as the extents that objects come back to
    view = memoryview(target)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = time.perf_counter()
        for _ in range(nbytes // MIB):
            file.write(data)
        wrote = time.perf_counter() - began
        file.seek(0)
        began = time.perf_counter()
        for at in range(0, nbytes, MIB):
            file.readinto(view[at : at + MIB])
        read = time.perf_counter() - began
    view.release()
    return {"plain write": nbytes / wrote / 1e9, "plain read": nbytes / read / 1e9}


def spilled(folder: str, nbytes: int, object_bytes: int) -> dict[str, float]:
    """GB/s to disk, of puts into a store that is full; and back, of one get of many refs and of gets one by one."""
    count = nbytes // object_bytes
    ray.init(num_cpus=1, object_store_memory=2 * nbytes, object_spilling_directory=folder, logging_level="error")
    try:
        values = [np.random.default_rng(i).integers(0, 256, object_bytes, dtype=np.uint8) for i in range(4)]

        def put(objects: int = count) -> list[ray.ObjectRef[np.ndarray]]:
            return [ray.put(values[i % 4]) for i in range(objects)]

        with store() as client:
            batches = [put(), put()]  # the store is full, and its pages are real
            before = client.stats()["written_bytes"]
            began = time.perf_counter()
            batches += [put(), put(), put()]
            took = time.perf_counter() - began
            found = {"spill": (client.stats()["written_bytes"] - before) / took / 1e9}
            del batches[3:]  # room for a batch that comes back, without anything having to go for it
            for name in ("get of many", "get one by one"):
                refs = batches.pop(0)
                back = client.stats()["restored_bytes"]
                began = time.perf_counter()
                values_back = ray.get(refs) if name == "get of many" else [ray.get(ref) for ref in refs]
                took = time.perf_counter() - began
                found[name] = (client.stats()["restored_bytes"] - back) / took / 1e9
                assert len(values_back) == count and np.array_equal(values_back[-1], values[(count - 1) % 4])
                del values_back, refs
        return found
    finally:
        ray.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--mib", type=int, default=512, help="how much is put and got; the store has room for twice that"
    )
    parser.add_argument("--object-mib", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to be measured; default: the system's folder for temporary files")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="ray-spill-", dir=options.folder) as folder:
            one = plain(folder, options.mib * MIB) | spilled(folder, options.mib * MIB, options.object_mib * MIB)
        rounds.append(one)
        print("  ".join(f"{name} {speed:.2f}" for name, speed in one.items()), "GB/s", flush=True)
    print("\n| objects of | | GB/s | of the plain one |\n|---|---|---:|---:|")
    for name, bound in (("spill", "plain write"), ("get of many", "plain read"), ("get one by one", "plain read")):
        speed = statistics.median(one[name] for one in rounds)
        ratio = statistics.median(one[name] / one[bound] for one in rounds)
        print(f"| {options.object_mib} MiB | {name} | {speed:.2f} | {ratio:.2f} |")
    print(f"\nMeasured on {machine()}; load average {os.getloadavg()[0]:.1f}.")
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine(), "rounds": rounds}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
