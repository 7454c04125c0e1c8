"""Large calls, long queues and deaths, ours and the peer's in turns. PROCESS a person runs; a quarter of an hour.

    python -m tests.perf.scale                      prints the table
    python -m tests.perf.scale --write-readme       and puts it into README.md
    python -m tests.perf.scale --no-peer --only returns

The rows are those of scale_rows.py, a process each, and two of the microbenchmark to which a promise belongs. The peer
queues a tenth of the tasks: it would take minutes for all of them, and a rate at a shorter queue is in its favour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.perf.compare import PEER_VERSION, ROOT, Engine, machine, number, peer_python, times, write_readme

BEGIN, END = "<!-- scale table: begin -->", "<!-- scale table: end -->"
TIMEOUT_S = 400.0


class Row(NamedTuple):
    label: str
    row: str
    size: int
    more_is_better: bool = False
    peer_size: int = 0  # 0: the same
    rate_of: str = ""  # a row of the microbenchmark instead


ROWS = (
    Row("one task with 10,000 ref arguments, ms", "ref arguments", 10_000),
    Row("one task with 3,000 returns, ms", "returns", 3_000),
    Row("one `get` of 10,000 objects of 120 KB in the store, ms", "get objects", 10_000),
    Row("1,000,000 tasks queued, then run (Ray: 100,000), a second", "queued tasks", 1_000_000, True, 100_000),
    Row("SIGKILL to a worker until the retry's result, ms", "killed worker", 11),
    Row(
        "10,000 results taken one by one, each with a `ray.wait` of those left (Ray: 2,000), ms",
        "wait loop",
        10_000,
        peer_size=2_000,
    ),
    Row("`env_vars` of a new environment: added to an actor's start, ms", "environment", 11),
    Row("placement groups made and removed, a second", "", 0, True, rate_of="placement group create and remove"),
    Row("actors created, a second", "", 0, True, rate_of="actor creation"),
)


def value_of(engine: Engine, row: Row, ours: bool) -> tuple[float | None, str]:
    """What the row's script says, seconds or a rate; None, and why."""
    if row.rate_of:
        return engine.rate(row.rate_of, 1.0)
    size = row.size if ours else row.peer_size or row.size
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        script = str(ROOT / "tests" / "perf" / "scale_rows.py")
        status, output = engine.run(
            [engine.python, script, row.row, "--size", str(size), "--json", result.name], TIMEOUT_S
        )
        text = Path(result.name).read_text()
    if text:
        return float(json.loads(text)), ""
    why = f"took over {TIMEOUT_S:.0f} s" if status is None else f"status {status}: {output[-500:]}"
    return None, why


def table(found: list[tuple[Row, list[float | None]]], names: list[str]) -> str:
    lines = [f"| {' | '.join(['', *names, *(['ratio'] if len(names) == 2 else [])])} |", f"|---|{'---:|' * len(names)}"]
    if len(names) == 2:
        lines[1] += "---:|"
    for row, values in found:
        shown = [number(value if row.more_is_better or value is None else value * 1000) for value in values]
        if len(values) == 2:
            theirs, ours = values
            shown.append(times(ours, theirs) if row.more_is_better else times(theirs, ours))
        lines.append(f"| {' | '.join([row.label, *shown])} |")
    return "\n".join(lines) + f"\n\nMeasured on {machine()}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--peer", metavar="PYTHON", help="the peer's interpreter; default: build/peer, made if missing")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose label contains this")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--write-readme", action="store_true")
    options = parser.parse_args()
    engines = [Engine("this", sys.executable, from_tree=True)]
    if not options.no_peer:
        peer = options.peer or peer_python(ROOT / "build" / "peer")
        engines.insert(0, Engine(f"Ray {PEER_VERSION}", peer, from_tree=False))
    found = []
    for row in ROWS:
        if options.only not in row.label:
            continue
        rounds: list[list[float]] = [[] for _ in engines]
        for turn in range(options.rounds):
            for at in range(len(engines)) if turn % 2 == 0 else reversed(range(len(engines))):
                value, why = value_of(engines[at], row, engines[at].name == "this")
                print(f"{row.label:60s} {engines[at].name:12s} {value} {why}", flush=True)
                if value is not None:
                    rounds[at].append(value)
        found.append((row, [statistics.median(values) if values else None for values in rounds]))
    text = table(found, [engine.name for engine in engines])
    print(text)
    if options.write_readme:
        write_readme(text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
