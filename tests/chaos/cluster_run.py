"""A round of kind `nodes`: work with known results over several nodes, whose processes and links are attacked. LIBRARY
of run.py, which is a driver on a node that is never lost.

The cluster is the round's own: it is made, worked on and attacked for some seconds, then everything is mended, the
work ends, and it is looked whether anything is left: on each node while the cluster lives, and on this machine
after its end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import random
import sys
import tempfile
import time
import traceback
from typing import Any

import ray
from tests.chaos.attacker import Attacker
from tests.chaos.cluster_load import KINDS
from tests.chaos.faults import Faults
from tests.chaos.field import Field, open_field
from tests.chaos.load import Load, some_of
from tests.chaos.remains import look, of_driver, wait_until_nothing_remains
from tests.chaos.session import assert_held, crashes, forget_orphans, held
from tests.chaos.world import World, double
from tests.leaks import Snapshot

SILENCE_S = 3.0
THREADS = 4
STORE_BYTES = 256 * 2**20
TIGHT_STORE_BYTES = 40 * 2**20  # 25 values of the load's: what nobody reads at the moment goes to disk
HANGS_S = 300.0  # after so long, whatever it is, all threads' stacks are printed, and the process ends


def variant_of(seed: int) -> tuple[int, dict[str, Any]]:
    """(bytes of each object store, settings) of the round with this seed: some have little room, some encrypt."""
    r = random.Random(f"variant, seed {seed}")
    return (TIGHT_STORE_BYTES if r.random() < 0.3 else STORE_BYTES), ({"tls": True} if r.random() < 0.2 else {})


def round_nodes(
    seed: int, seconds: float, nodes: int = 4, links: bool = True, settings: dict[str, Any] | None = None
) -> str:
    """links: they are attacked too, where there are any. settings: of the cluster, beside the round's own.

    Raises: AssertionError: a result, a count or an order was wrong, work hung, or something is left."""
    before_all = Snapshot.take()
    faulthandler.dump_traceback_later(seconds + HANGS_S, exit=True)
    try:
        with contextlib.ExitStack() as opening:
            folder = opening.enter_context(tempfile.TemporaryDirectory(prefix="ray-chaos-", dir="/tmp"))
            ledger = os.path.join(folder, "ledger")
            os.mkdir(ledger)
            faults = Faults(os.path.join(folder, "faults"))
            store_bytes, more = variant_of(seed)
            more.update(settings or {})
            field = opening.enter_context(open_field(nodes, SILENCE_S, more, store_bytes))
            assert ray.get([double.remote(i) for i in range(4)], timeout=30) == [0, 2, 4, 6]
            before, of_driver_before = held(), of_driver()
            world = World(faults, ledger, field.home)
            load = Load(seed, THREADS, world, some_of(seed, KINDS), functools.partial(look, field))
            attacker = Attacker(field, faults, seed, SILENCE_S, ledger, links)
            attacker.start()
            try:
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline and not load.failed and not attacker.errors:
                    time.sleep(0.05)
                with contextlib.ExitStack() as both:  # what the work says comes first
                    both.callback(attacker.end)
                    if load.failed:
                        load.stop()
                load.stop()
                assert not crashes(), crashes()
                lost = [host for host in range(field.hosts) if not field.row(host)["Alive"]]
                assert not lost, f"nodes that no attack should have cost: {[field.row(host) for host in lost]}"
                forget_orphans()
                assert_held(before, 20)
                wait_until_nothing_remains(field, of_driver_before)
            except BaseException as error:
                _say(field, faults, load, attacker, error)
                # Work that went on would begin a session of its own, after the end of this one.
                with contextlib.suppress(AssertionError):
                    load.stop(5.0)
                with contextlib.suppress(AssertionError):
                    attacker.end(20.0)
                raise
            said = f"{field.kind}, {store_bytes >> 20} MiB of store each, settings {more}; {len(faults.all())} faults: "
            said += f"{faults.counts()}; done {dict(load.done)}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    left = before_all.wait_until_clean(60.0)
    assert not left, "left behind:\n  " + "\n  ".join(left)
    return said


def _say(field: Field, faults: Faults, load: Load, attacker: Attacker, error: BaseException) -> None:
    now = time.monotonic()
    print(f"\nFAILED at {now:.2f}:", file=sys.stderr)
    traceback.print_exception(type(error), error, error.__traceback__)
    print("the faults, by the monotonic clock:", file=sys.stderr)
    for fault in faults.all()[-60:]:
        print(f"  {fault}", file=sys.stderr)
    print("nodes that were lost, and seen to be:\n  " + "\n  ".join(attacker.lost[-20:]), file=sys.stderr)
    with contextlib.suppress(Exception):
        for row in ray.nodes():
            print(f"  {row['NodeID']} {row['NodeName']} {row['Alive']} {row['DeathReasonMessage']}", file=sys.stderr)
    print(f"work: {load.now}, done {dict(load.done)}", file=sys.stderr)
    if not load.failed or attacker.errors:
        hung = "work that never" in str(error) or "Timeout" in str(error)
        print(look(field, hung), file=sys.stderr, flush=True)
