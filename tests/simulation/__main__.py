"""Runs simulated clusters, seed after seed, until time or seeds are over.

    python -m tests.simulation --seed 7                    one cluster, from this seed; what happened last, if it fails
    python -m tests.simulation --minutes 10                from seed 0 on, for ten minutes
    python -m tests.simulation --drop view --minutes 1     with a planted bug: messages of this kind never arrive
    python -m tests.simulation --plant NAME --minutes 1    with one of those in planted.py

Prints how many events there were. Ends with status 1 at the first law that does not hold, and prints how to replay it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import sys
import time

from .cluster import OF_HEAD, Broken, Cluster
from .planted import PLANTED, planted

EVENTS = 5_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="the first, or with neither --seeds nor --minutes the only")
    parser.add_argument("--seeds", type=int, default=0, help="how many")
    parser.add_argument("--nodes", type=int, default=6, help="at most at a time")
    parser.add_argument("--events", type=int, default=EVENTS, help="of each seed, before it is left to settle")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on with the next seed until then")
    parser.add_argument("--drop", default="", metavar="KIND", help="the kind of message that never arrives")
    parser.add_argument("--plant", default="", metavar="NAME", choices=["", *PLANTED], help="a bug: see planted.py")
    parser.add_argument("--of-head", type=float, default=OF_HEAD, help="the share of faults that are the head's")
    parser.add_argument("--trace", type=int, default=0, metavar="N", help="print the last N messages before a failure")
    options = parser.parse_args()
    with planted(options.plant) if options.plant else contextlib.nullcontext():
        return play(options)


def play(options: argparse.Namespace) -> int:
    began = time.monotonic()
    events = 0
    for seed in itertools.count(options.seed):
        cluster = Cluster(seed, options.nodes, options.drop, of_head=options.of_head)
        if options.trace:
            cluster.net.trace = collections.deque(maxlen=options.trace)
        try:
            cluster.run(options.events)
            cluster.settle()
        except Broken as broken:
            print("\n".join(cluster.net.trace or ()))
            print(broken, flush=True)
            return 1
        events += cluster.net.events
        seeds, took_s = seed - options.seed + 1, time.monotonic() - began
        if seeds % 1000 == 0:
            print(f"{seeds} seeds, {events} events, {took_s:.0f} s", flush=True)
        if seeds >= options.seeds and took_s >= options.minutes * 60:
            break
    print(f"{seeds} seeds from {options.seed}, {events} events in {took_s:.1f} s: every law held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
