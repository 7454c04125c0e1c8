"""The physical limits that the benchmarks are read against, measured in one run on this machine.

    python tests/perf/limits.py             # all of them, as `key value` lines
    python tests/perf/limits.py futex       # some

    python tests/perf/limits.py --json FILE # also written there, as one object

Rows: unix_socket (round trip between two processes), futex (the same through shared memory), memcpy (GB/s into cold and
warm pages, 1 and 2 threads), streamed_writes (GB/s of zeros written past the cache), channel_round_trip and
channel_one_way (cpp/channel between two processes), send_buffer (what sizes of SO_SNDBUF give; only if named). The
measuring is done by limits.cc beside this file, compiled on first use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROWS = ("unix_socket", "futex", "memcpy", "streamed_writes", "channel_round_trip", "channel_one_way")


def measure(*rows: str) -> dict[str, float]:
    """Runs the named measurements (all of ROWS if none is named); key -> number, the unit being the key's end.

    Raises: RuntimeError: no C++ compiler, or a measurement failed (with its own words).
    Blocks: about a second per row; some seconds more to compile, the first time.
    """
    done = subprocess.run([str(_program()), *(rows or ROWS)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"limits {' '.join(rows)}: exit status {done.returncode}: {done.stderr.strip()}")
    pairs = (line.split() for line in done.stdout.splitlines())
    return {key: float(value) for key, value in pairs}


def unix_socket_round_trip_us() -> float:
    return measure("unix_socket")["unix_socket_round_trip_us"]


def futex_round_trip_us() -> float:
    return measure("futex")["futex_round_trip_us"]


def channel_round_trip_us() -> float:
    return measure("channel_round_trip")["channel_round_trip_us"]


def channel_frames_per_s() -> float:
    """One way, 64-byte frames, 128 per system call."""
    return measure("channel_one_way")["channel_one_way_64_bytes_128_per_flush_frames_per_s"]


def memcpy_gb_per_s(threads: int, warm: bool) -> float:
    """Args: threads: 1 or 2.  warm: into pages touched before, else into fresh ones."""
    if threads not in (1, 2):
        raise ValueError(f"threads is {threads!r}: 1 and 2 are measured")
    return measure("memcpy")[f"memcpy_{threads}_thread_{'warm' if warm else 'cold'}_gb_per_s"]


def _program() -> Path:
    """The compiled limits.cc, in build/perf; its name holds a hash of what it was made from."""
    parts = [ROOT / "cpp" / "channel", ROOT / "cpp" / "common"]
    sources = [HERE / "limits.cc", *(path for part in parts for path in sorted(part.glob("*.cc")))]
    headers = [path for part in parts for path in sorted(part.glob("*.h"))]
    digest = hashlib.blake2b(b"".join(p.read_bytes() for p in sources + headers), digest_size=8).hexdigest()
    program = ROOT / "build" / "perf" / f"limits-{digest}"
    if program.exists():
        return program
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("measuring the limits needs a C++20 compiler: install g++, or set CXX")
    program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(f".{os.getpid()}")
    command = [
        compiler,
        "-O2",
        "-std=c++20",
        f"-I{ROOT / 'cpp'}",
        *map(str, sources),
        "-pthread",
        "-o",
        str(unfinished),
    ]
    compiled = subprocess.run(command, capture_output=True, text=True)
    if compiled.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{compiled.stderr}")
    unfinished.rename(program)
    return program


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Measures what this machine can do at best.")
    parser.add_argument("rows", nargs="*", help=f"{', '.join(ROWS)}, send_buffer; all but the last if none is named")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    options = parser.parse_args(arguments)
    numbers = measure(*options.rows)
    for key, value in numbers.items():
        print(f"{key} {value:g}")
    if options.json:
        Path(options.json).write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(sys.argv[1:])
