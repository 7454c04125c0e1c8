"""What starting `ray` costs, and what it holds while idle. PROCESS of its own: it adopts the orphans it makes.

    python -m tests.perf.start PYTHON [--runs 3] [--idle 5] [--json FILE]

PYTHON is any interpreter that can `import ray`. Prints `key value` lines, medians over the runs:

    python_s                   the process `python -c pass`, for subtraction
    import_s, import_cpu_s     the process `import ray`
    whole_s, whole_cpu_s       the process import, init(num_cpus=2), one task, shutdown: wall time, and processor time
                               of it and of all that it started, daemons included
    drain_s                    from the end of that process until the last that it started is gone
    init_s, first_task_s, second_task_s, shutdown_s      the parts of it, seen from inside
    idle_processes, idle_pss_mib, idle_cpu_pct           driver and all it started, after init, doing nothing
    idle_wakeups_per_s         times a second that one of their threads went to sleep again: polling shows here
    idle_tcp_ports             TCP ports they listen on
    after_task_processes, after_task_pss_mib             the same after one task
    left_processes             still there a second after shutdown

Processor time is exact (the kernel's sum for ended children; as their sub-reaper this process waits for orphans too)
and depends little on the machine's load; wall times mean something on a quiet machine only, so the load average is
printed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.leaks import descriptors, mark_this_process, marked_processes

TASK = """
@ray.remote
def add_one(x):
    return x + 1
"""
WHOLE = f"import ray\nray.init(num_cpus=2)\n{TASK}\nassert ray.get(add_one.remote(1)) == 2\nray.shutdown()\n"
PARTS = f"""
import json, sys, time
marks = [time.perf_counter()]
def mark():
    marks.append(time.perf_counter())
import ray
mark()
ray.init(num_cpus=2)
mark()
{TASK}
assert ray.get(add_one.remote(1)) == 2
mark()
assert ray.get(add_one.remote(1)) == 2
mark()
ray.shutdown()
mark()
json.dump(marks, open(sys.argv[1], "w"))
"""
IDLE = f"""
import sys
import ray
ray.init(num_cpus=2)
print("idle", flush=True)
sys.stdin.readline()
{TASK}
assert ray.get(add_one.remote(1)) == 2
print("idle", flush=True)
sys.stdin.readline()
ray.shutdown()
print("idle", flush=True)
sys.stdin.readline()
"""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36
LISTEN = "0A"  # the state's number in /proc/net/tcp


def clean_environment() -> dict[str, str]:
    """Without what would join somebody else's cluster, or make the peer talk to its makers while we measure."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONSTARTUP")}
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0"}


class Starts:
    """Runs one interpreter again and again."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.mark = mark_this_process()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self, code: str, *arguments: str) -> dict[str, float]:
        """Wall time, processor time of the whole tree, and the time until the last of the tree was gone.
        Raises: RuntimeError: the code failed.
        """
        # A file, not a pipe: a daemon that inherited a pipe would keep it open.
        with open(self.folder / "errors", "wb") as errors:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            began = time.perf_counter()
            command = [self.python, "-c", code, *arguments]
            done = subprocess.run(
                command, cwd=self.folder, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=errors, check=False
            )
            ended = time.perf_counter()
        if done.returncode != 0:
            text = (self.folder / "errors").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{self.python} ended with {done.returncode}:\n{text}")
        # Orphans are our children now: ECHILD comes when the last of them has been waited for.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "wall": ended - began,
            "cpu": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
            "drain": time.perf_counter() - ended,
        }

    def costs(self, runs: int) -> dict[str, float]:
        """Medians of the wall times and processor times over the runs."""
        self.run("import ray")  # fills the page cache and __pycache__
        self.run(WHOLE)
        pythons = [self.run("pass") for _ in range(runs)]
        imports = [self.run("import ray") for _ in range(runs)]
        wholes = [self.run(WHOLE) for _ in range(runs)]
        parts: list[list[float]] = []
        for _ in range(runs):
            self.run(PARTS, str(self.folder / "marks"))
            marks = json.loads((self.folder / "marks").read_text())
            parts.append([after - before for before, after in zip(marks, marks[1:])])
        _import_s, init_s, first_s, second_s, shutdown_s = (statistics.median(column) for column in zip(*parts))
        return {
            "python_s": statistics.median(r["wall"] for r in pythons),
            "import_s": statistics.median(r["wall"] for r in imports),
            "import_cpu_s": statistics.median(r["cpu"] for r in imports),
            "whole_s": statistics.median(r["wall"] for r in wholes),
            "whole_cpu_s": statistics.median(r["cpu"] for r in wholes),
            "drain_s": statistics.median(r["drain"] for r in wholes),
            "init_s": init_s,
            "first_task_s": first_s,
            "second_task_s": second_s,
            "shutdown_s": shutdown_s,
        }

    def footprint(self, idle_s: float) -> dict[str, float]:
        """What a session holds and does while nobody uses it."""
        driver = subprocess.Popen(
            [self.python, "-c", IDLE],
            cwd=self.folder,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self._next_stage(driver, first=True)
            began, before = time.perf_counter(), self._tree()
            time.sleep(idle_s)
            passed, after = time.perf_counter() - began, self._tree()
            still = before.keys() & after.keys()
            found: dict[str, float] = {
                "idle_processes": len(after),
                "idle_pss_mib": sum(p["pss_mib"] for p in after.values()),
                "idle_driver_pss_mib": after[driver.pid]["pss_mib"],
                "idle_cpu_pct": 100 * sum(after[p]["cpu_s"] - before[p]["cpu_s"] for p in still) / passed,
                "idle_wakeups_per_s": sum(after[p]["sleeps"] - before[p]["sleeps"] for p in still) / passed,
                "idle_tcp_ports": len(listening_ports(set(after))),
            }
            self._next_stage(driver)
            time.sleep(idle_s)
            tree = self._tree()
            found["after_task_processes"] = len(tree)
            found["after_task_pss_mib"] = sum(p["pss_mib"] for p in tree.values())
            self._next_stage(driver)
            time.sleep(1.0)
            found["left_processes"] = len(self._tree()) - 1
            driver.communicate("\n", timeout=60)
            return found
        finally:
            driver.kill()
            driver.wait()

    def _next_stage(self, driver: subprocess.Popen[str], first: bool = False) -> None:
        assert driver.stdin is not None and driver.stdout is not None
        if not first:
            driver.stdin.write("\n")
            driver.stdin.flush()
        for line in driver.stdout:
            if line.strip() == "idle":
                return
        raise RuntimeError(f"the idle driver ended with {driver.wait()} before its next stage")

    def _tree(self) -> dict[int, dict[str, float]]:
        """Memory, processor time and sleeps of each process that bears our mark."""
        tree = {}
        for pid in marked_processes(self.mark):
            with contextlib.suppress(OSError):  # it may end while we look
                tree[pid] = {
                    "pss_mib": field_of(f"/proc/{pid}/smaps_rollup", "Pss:") / 1024,
                    "cpu_s": cpu_seconds(pid),
                    "sleeps": sum(
                        field_of(f"/proc/{pid}/task/{thread}/status", "voluntary_ctxt_switches:")
                        for thread in os.listdir(f"/proc/{pid}/task")
                    ),
                }
        return tree


def field_of(path: str, name: str) -> int:
    """The number behind a name in one of /proc's tables."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"no {name} in {path}")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def listening_ports(pids: set[int]) -> set[int]:
    """TCP ports on which one of these processes listens."""
    sockets = {to for pid in pids for to in descriptors(pid).values() if to.startswith("socket:")}
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if os.path.exists(table) else ():
            fields = line.split()
            if fields[3] == LISTEN and f"socket:[{fields[9]}]" in sockets:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What starting ray costs, and what it holds while idle.")
    parser.add_argument("python", help="an interpreter that can import ray")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--idle", type=float, default=5.0, help="seconds to watch an idle session")
    parser.add_argument("--json", help="write the numbers to this file too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="perf-start-") as folder:
        starts = Starts(options.python, Path(folder))
        results = {**starts.costs(options.runs), **starts.footprint(options.idle), "load": os.getloadavg()[0]}
    for key, value in results.items():
        print(f"{key} {value:.4g}")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
