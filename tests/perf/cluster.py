"""What many machines cost and bring, each against its bound in the same run. PROCESS a person runs; needs root.

    python -m tests.perf.cluster                    prints the table: three minutes on a quiet machine
    python -m tests.perf.cluster --json FILE        and keeps all rounds of every row
    python -m tests.perf.cluster --write-readme     and puts the table into README.md
    python -m tests.perf.cluster --only tasks --rounds 5

Rows are those of cluster_rows.py, each in a process of its own, so that one that fails costs itself only. Each measures
what it is compared with in the same process; of several rounds the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.perf.compare import ROOT, machine, number, write_readme

BEGIN, END = "<!-- cluster table: begin -->", "<!-- cluster table: end -->"
TIMEOUT_S = 300.0


class Row(NamedTuple):
    name: str  # of cluster_rows.ROWS
    label: str
    bound: str  # what it is compared with; "" if nothing
    aim: str  # what counts, in words: ratio, or value if there is nothing to compare with
    at_least: float = 0.0
    at_most: float = 0.0  # 0: no aim, or at_least


ROWS = (
    Row("transfer", "1 GiB between two hosts, GB/s", "plain TCP there", "≥ 0.8 of it", at_least=0.8),
    Row("broadcast", "256 MiB to 8 hosts of 800 Mbit/s each, s", "to one", "< 3 times", at_most=3.0),
    Row("broadcast here", "the same on one machine's processors alone, s", "to one", ""),
    Row(
        "tasks",
        "tasks of a driver on a 5th node over 4 nodes, a second",
        "4 workers of its own",
        "≥ 0.8 of it",
        at_least=0.8,
    ),
    Row("groups", "placement groups made and removed, 4 nodes, a second", "", "≥ 3,000", at_least=3000),
    Row("actors", "actors created over 4 nodes, a second", "", "≥ 150", at_least=150),
    Row("killed worker", "SIGKILL to a worker on another node until the retry's result, ms", "", "≤ 100", at_most=100),
    Row("killed node", "SIGKILL to a node until the retry's result elsewhere, ms", "", "≤ 1,000", at_most=1000),
    Row(
        "unplugged node", "a host's cable pulled until then, beyond the silence of 2 s, ms", "", "≤ 1,000", at_most=1000
    ),
)


def measure(row: Row) -> tuple[list[float] | None, str]:
    """[value] or [value, bound's value] of one round; None, and why."""
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [sys.executable, "-m", "tests.perf.cluster_rows", row.name, "--json", result.name]
        try:
            done = subprocess.run(
                command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return None, f"took over {TIMEOUT_S:.0f} s"
        text = Path(result.name).read_text()
        return (json.loads(text), "") if text else (None, f"status {done.returncode}: {done.stdout[-800:]}")


def counted(row: Row, rounds: list[list[float]]) -> float:
    """What the aim speaks of: the median of the rounds' ratios, or of their values."""
    return statistics.median(one[0] / one[1] if row.bound else one[0] for one in rounds)


def met(row: Row, rounds: list[list[float]]) -> str:
    if not row.aim:
        return ""
    value = counted(row, rounds)
    return "yes" if (value >= row.at_least if row.at_least else value <= row.at_most) else "no"


def table(found: list[tuple[Row, list[list[float]]]]) -> str:
    lines = ["| | measured | compared with | ratio | aim | met |", "|---|---:|---|---:|---|---|"]
    for row, rounds in found:
        if not rounds:
            lines.append(f"| {row.label} | failed | | | {row.aim} | no |")
            continue
        value = number(statistics.median(one[0] for one in rounds))
        bound = f"{row.bound}: {number(statistics.median(one[1] for one in rounds))}" if row.bound else ""
        ratio = f"{counted(row, rounds):.2f}" if row.bound else ""
        lines.append(f"| {row.label} | {value} | {bound} | {ratio} | {row.aim} | {met(row, rounds)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="keep all rounds there")
    parser.add_argument("--write-readme", action="store_true")
    options = parser.parse_args()
    found: list[tuple[Row, list[list[float]]]] = []
    loads = []
    for row in ROWS:
        if options.only not in row.name:
            continue
        rounds = []
        for _ in range(options.rounds):
            loads.append(os.getloadavg()[0])
            values, why = measure(row)
            print(f"{row.label:70s} {values} {why}", flush=True)
            if values is not None:
                rounds.append(values)
        found.append((row, rounds))
    if not found:
        sys.exit(f"cluster.py: no row's name contains {options.only!r}; there are {', '.join(r.name for r in ROWS)}")
    text = table(found)
    text += (
        f"\n\nMeasured on {machine()}; load average {min(loads):.1f} to {max(loads):.1f}; medians of {options.rounds}."
    )
    print(text)
    if options.json:
        kept = {row.name: {"rounds": rounds, "met": met(row, rounds) if rounds else "no"} for row, rounds in found}
        Path(options.json).write_text(json.dumps({"machine": machine(), "load": loads, "rows": kept}, indent=1))
    if options.write_readme:
        write_readme(text, BEGIN, END)
    return 0 if all(rounds for _, rounds in found) else 1


if __name__ == "__main__":
    sys.exit(main())
