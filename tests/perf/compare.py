"""Ours and the peer side by side: the microbenchmark's rows, starting and idling, with ratios. PROCESS a person runs.

    python -m tests.perf.compare                    installs ray==2.60.0 into build/peer first, then measures (an hour)
    python -m tests.perf.compare --peer PYTHON      measures against what that interpreter has installed
    python -m tests.perf.compare --only "actor calls" --rounds 3
    python -m tests.perf.compare --write-readme     and puts the table into README.md
    python -m tests.perf.compare --show FILE        prints the table of an earlier run again

Both engines take turns row by row, so that whatever else the machine does falls on both; each row runs in a process of
its own, so that one that hangs or crashes costs itself only. Where a row has several rounds, its median counts. All
numbers are kept in build/perf/, with the load average at each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.leaks import describe, mark_this_process, marked_processes
from tests.perf import limits

ROOT = Path(__file__).resolve().parents[2]
PEER_VERSION = "2.60.0"
README_BEGIN, README_END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"
# Four windows, set-up and tear-down of a row take 10 s; a row of the peer that takes this long is stuck.
ROW_TIMEOUT_S = 300.0
# Rows of start.py worth a line in the table: key, what it is, unit. In all of them less is better.
START_ROWS = (
    ("import_s", "`import ray`", "s"),
    ("whole_s", "import, init, first result, shutdown", "s"),
    ("whole_cpu_s", "the same, processor time of all processes", "s"),
    ("idle_processes", "idle: processes", ""),
    ("idle_pss_mib", "idle: memory of all processes (PSS)", "MiB"),
    ("idle_cpu_pct", "idle: processor, of one core", "%"),
    ("idle_wakeups_per_s", "idle: wake-ups a second", ""),
    ("idle_tcp_ports", "idle: listening TCP ports", ""),
)


def peer_python(folder: Path, extras: str = "", needed: str = "ray") -> str:
    """The interpreter of a virtual environment that holds the peer; made, from the network, if it isn't there.

    Without extras it starts the least; its client server wants more.
    """
    python = folder / "bin" / "python"
    check = [str(python), "-c", f"import {needed}, ray; raise SystemExit(ray.__version__ != {PEER_VERSION!r})"]
    if not python.exists() or subprocess.run(check, cwd="/", check=False).returncode != 0:
        print(f"installing ray=={PEER_VERSION} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        wanted = [f"ray{extras}=={PEER_VERSION}", "numpy"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
    return str(python)


class Engine:
    """One of the two: an interpreter that imports its `ray`."""

    def __init__(self, name: str, python: str, from_tree: bool, client_python: str = "") -> None:
        self.name = name
        self.python = python
        self.client_python = client_python or python  # for the rows of ray://
        self.env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
        self.env["RAY_USAGE_STATS_ENABLED"] = "0"
        if not from_tree:
            self.env["RAY_AUTH_MODE"] = "disabled"  # the peer asks for a token that its own client does not send
        if from_tree:
            self.env["PYTHONPATH"] = str(ROOT)

    def run(self, command: list[str], timeout_s: float) -> tuple[int | None, str]:
        """Exit status (None: it took longer than timeout_s) and output. Ends all that the command leaves running."""
        mark = mark_this_process()
        with tempfile.TemporaryFile("w+") as output:
            child = subprocess.Popen(command, cwd="/", env=self.env, stdout=output, stderr=subprocess.STDOUT)
            try:
                status: int | None = child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                child.kill()
                child.wait()
                for pid in marked_processes(mark):
                    print(f"  {self.name} left {describe(pid)}; ended it", flush=True)
                    os.kill(pid, signal.SIGKILL)
            output.seek(0)
            return status, output.read()

    def rate(self, row: str, window_s: float) -> tuple[float | None, str]:
        """The row's rate, or None and why there is none."""
        with tempfile.NamedTemporaryFile(suffix=".json") as result:
            script = str(ROOT / "tests" / "perf" / "microbench.py")
            python = self.client_python if row.startswith("client:") else self.python
            command = [python, script, "--row", row, "--seconds", str(window_s), "--json", result.name]
            status, output = self.run(command, ROW_TIMEOUT_S)
            text = Path(result.name).read_text()
            rate = json.loads(text).get(row) if text else None
        if rate is not None:
            return rate, ""
        lines = [line for line in output.splitlines() if "FAILED" in line] or output.splitlines()[-1:]
        return (
            None,
            f"took over {ROW_TIMEOUT_S:.0f} s" if status is None else f"status {status}: {' '.join(lines)[:300]}",
        )

    def start(self, runs: int, idle_s: float) -> dict[str, float]:
        """The numbers of start.py; {} if it failed."""
        with tempfile.NamedTemporaryFile(suffix=".json") as result:
            command = [sys.executable, "-m", "tests.perf.start", self.python, "--runs", str(runs)]
            command += ["--idle", str(idle_s), "--json", result.name]
            # start.py itself is of this tree (cwd); what it starts finds ours through PYTHONPATH, the peer without it.
            watcher = subprocess.run(command, cwd=ROOT, env=self.env, check=False)
            return json.loads(Path(result.name).read_text()) if watcher.returncode == 0 else {}


def machine() -> str:
    """What a reader must know to judge the numbers, in one line."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    head = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, text=True, stdout=subprocess.PIPE, check=False).stdout.strip() or "unknown"
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, commit {commit}, {time.strftime('%Y-%m-%d')}"
    )


def row_names(engine: Engine) -> list[str]:
    script = str(ROOT / "tests" / "perf" / "microbench.py")
    status, output = engine.run([engine.python, script, "--list"], ROW_TIMEOUT_S)
    if status != 0:
        sys.exit(f"compare.py: {engine.python} can't list the rows:\n{output[-2000:]}")
    return [line for line in output.splitlines() if line]


def machine_limits() -> dict[str, float]:
    """What the machine itself can do, measured now: {name, with its unit at the end: number}."""
    try:
        return limits.measure()
    except RuntimeError as error:
        print(f"the machine's own limits could not be measured: {error}", flush=True)
        return {}


def median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def number(value: float | None) -> str:
    if value is None:
        return "failed"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def times(better: float | None, worse: float | None) -> str:
    """How many times the first is of the second."""
    if better is None or not worse:
        return ""
    ratio = better / worse
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"


def table(results: dict[str, Any]) -> str:
    """Markdown. A ratio above 1 is in our favour in every row."""
    names = results["engines"]
    lines = [f"| {' | '.join(['', *names, 'ratio'])} |", f"|---|{'---:|' * (len(names) + 1)}"]

    def line(label: str, theirs: float | None, ours: float | None, ratio: str) -> None:
        cells = ([number(theirs)] if len(names) == 2 else []) + [number(ours)]
        lines.append(f"| {' | '.join([label, *cells, ratio])} |")

    ours_name, peer_name = names[-1], names[0] if len(names) == 2 else None
    for row, rounds in results["rows"].items():
        ours = median(rounds.get(ours_name, []))
        theirs = median(rounds.get(peer_name, []))
        line(row, theirs, ours, times(ours, theirs))
    for key, label, unit in START_ROWS:
        ours = median([run.get(key) for run in results["start"].get(ours_name, [])])
        theirs = median([run.get(key) for run in results["start"].get(peer_name, [])])
        if ours is not None or theirs is not None:
            line(f"{label}{f', {unit}' if unit else ''}", theirs, ours, times(theirs, ours))
    text = "\n".join(lines)
    if results.get("limits"):
        text += "\n\n| what the machine itself does, in the same run | |\n|---|---:|"
        text += "".join(f"\n| {key.replace('_', ' ')} | {number(value)} |" for key, value in results["limits"].items())
    return f"{text}\n\nMeasured on {results['machine']}. Rates are per second; a ratio above 1 is in our favour."


def write_readme(text: str, begin: str = README_BEGIN, end: str = README_END) -> None:
    """Puts text between those two lines of README.md."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(begin)
    _old, _, after = rest.partition(end)
    if not after:
        sys.exit(f"README.md lacks the lines {begin} and {end}")
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def measure(options: argparse.Namespace, keep: Path) -> dict[str, Any]:
    """Everything, in turns. Kept in the file after each step: an interrupted hour is not lost."""
    engines = []
    if not options.no_peer:
        peer = options.peer or peer_python(ROOT / "build" / "peer")
        client = options.peer or peer_python(ROOT / "build" / "peer-client", "[default,client]", needed="grpc, aiohttp")
        engines.append(Engine(f"Ray {PEER_VERSION}", peer, from_tree=False, client_python=client))
    if not options.no_ours:
        engines.append(Engine("this", options.ours, from_tree=True))
    results: dict[str, Any] = {"machine": machine(), "engines": [e.name for e in engines], "load": [os.getloadavg()[0]]}
    results |= {"limits": machine_limits(), "rows": {}, "start": {e.name: [] for e in engines}, "failures": {}}
    rows = [r for r in row_names(engines[0]) if options.only in r]
    if not rows:
        sys.exit(f"compare.py: no row's name contains {options.only!r}")

    def save() -> None:
        results["load"].append(os.getloadavg()[0])
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.write_text(json.dumps(results, indent=1))

    for round_ in range(options.rounds):
        for row in rows:
            # The order changes with the round: neither always finds the caches as the other left them.
            for engine in engines if round_ % 2 == 0 else engines[::-1]:
                rate, why = engine.rate(row, options.seconds)
                results["rows"].setdefault(row, {}).setdefault(engine.name, []).append(rate)
                if why:
                    results["failures"][f"{engine.name}: {row}"] = why
                print(f"{row:48s} {engine.name:12s} {number(rate):>12s} {why}", flush=True)
            save()
    if not options.only:
        for _ in range(options.rounds):
            for engine in engines:
                print(f"-- starting and idling: {engine.name}", flush=True)
                results["start"][engine.name].append(engine.start(runs=3, idle_s=5.0))
            save()
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Ours and the peer side by side, with ratios.")
    parser.add_argument("--peer", metavar="PYTHON", help="the peer's interpreter; default: build/peer, made if missing")
    parser.add_argument("--ours", metavar="PYTHON", default=sys.executable, help="runs this tree; default: this one")
    parser.add_argument("--no-peer", action="store_true", help="measure only ours")
    parser.add_argument("--no-ours", action="store_true", help="measure only the peer")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="rows whose name contains this; no starting or idling"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each of the four windows of a row")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="where to keep the numbers; default: build/perf/<time>.json")
    parser.add_argument("--show", metavar="FILE", help="measure nothing: print the table of this file")
    parser.add_argument("--write-readme", action="store_true", help="put the table between README.md's markers")
    options = parser.parse_args(arguments)
    if options.no_peer and options.no_ours:
        parser.error("--no-peer and --no-ours together leave nothing to measure")
    if options.show:
        results = json.loads(Path(options.show).read_text())
    else:
        keep = Path(options.json or ROOT / "build" / "perf" / time.strftime("%Y%m%d-%H%M%S.json"))
        results = measure(options, keep)
        print(f"\nkept in {keep}\n")
    text = table(results)
    print(text)
    if options.write_readme:
        write_readme(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
