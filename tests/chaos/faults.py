"""What has been done to a cluster, and what its work may therefore fail with. LIBRARY of the chaos tests.

The attacker writes each fault to a file as it begins and as it ends; whoever judges a failure, in whatever process of
this machine, reads it there. Nothing is excused but by the table `ALLOWED`: an error of another class, or of that
class without a fault of those kinds while the work went on, is a failure of the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ray import exceptions as e

# -- kinds of faults

WORKER, WORKERS, FORK_SERVER, STORE, REDIS, DRIVER = "worker", "workers", "fork server", "store", "redis", "driver"
NODE, HOST = "node process", "host"  # killed; HOST: with all its processes, and a fresh node joins in its place
HEAD = "head"  # its node process was killed: all that lived on its node dies with it, and its supervisor starts another
PAUSED = "paused"  # a process, or a whole host, that stands still for less than the silence, or that no silence is of
LONG_PAUSED = "paused for long"  # a node process, for longer than the silence
CUT = "cut"  # a link, one way or both, or slow; less than the silence
LONG_CUT = "cut for long"

LOST_NODE = frozenset((NODE, HOST, HEAD, LONG_PAUSED, LONG_CUT))  # what the head declares dead for it
LOST_WORKER = frozenset((WORKER, WORKERS)) | LOST_NODE
LOST_STORE = frozenset((STORE,)) | LOST_NODE
NONE: frozenset[str] = frozenset()

# What may go wrong -> what it may raise -> because of which faults, while it went on. What isn't here must succeed:
# tasks and generators with retries left, results of tasks (lineage), calls of actors with restarts and retries left,
# small puts, names, placement groups, key-value pairs. By the semantics in docs/internals/fault-tolerance.md.
ALLOWED: dict[str, dict[type[Exception], frozenset[str]]] = {
    # The worker may have run it; it isn't run again than max_retries says.
    "a task whose retries may be used up": {e.WorkerCrashedError: LOST_WORKER, e.NodeDiedError: LOST_NODE},
    # The only copy was in the store of the driver's node, whose node process no attack kills.
    "a put of this driver": {e.ObjectLostError: frozenset((STORE,))},
    # The first copy was there, too; may_fail is also told what must have befallen the second.
    "a put in two stores": {e.ObjectLostError: frozenset((STORE,))},
    # It is a put that nobody refers to any more; the result, lost wherever it was made, would need it to be made again.
    "the result of a task with a large value as argument": {e.ObjectReconstructionFailedError: LOST_STORE},
    # What a method returned isn't made again: it might be another value.
    "a large result of a method": {e.ObjectLostError: LOST_STORE},
    # What a task put, or submitted, is owned by its worker.
    "refs that a worker owns": {
        e.OwnerDiedError: LOST_WORKER,
        e.ObjectLostError: LOST_STORE,
    },
    # The call was on its way, or ran, as the actor died.
    "a call of an actor that is not repeated": {
        e.ActorUnavailableError: LOST_WORKER,
        e.ActorDiedError: LOST_WORKER,  # only where restarts are counted: see load
    },
    # An actor ends with its owner, here the worker of the task that has made it.
    "an actor that a worker owns": {
        e.ActorDiedError: LOST_WORKER,
        e.OwnerDiedError: LOST_WORKER,
    },
    # A program's session ends with the node process of its host.
    "a program on a lost node": {e.LocalRayletDiedError: LOST_NODE, e.RaySystemError: LOST_NODE},
}

# How long after its end a fault may still come to light: a link's end is read, a silence is noticed. The news waits
# where something stands still, or doesn't let it through.
LINGERS_S = 2.0
HOLD_UP_NEWS = frozenset((PAUSED, LONG_PAUSED, CUT, LONG_CUT))


@dataclass
class Fault:
    kind: str
    host: int
    what: str
    began_s: float  # monotonic, the same for all processes of this machine
    ended_s: float | None = None

    def __str__(self) -> str:
        took = "still" if self.ended_s is None else f"{self.ended_s - self.began_s:.2f} s"
        return f"{self.began_s:.2f} host {self.host}: {self.what} ({self.kind}, {took})"


class Faults:
    """What has been done so far. Threads and processes may add and look at the same time."""

    def __init__(self, path: str) -> None:
        self.path = path

    @contextlib.contextmanager
    def during(self, kind: str, host: int, what: str) -> Iterator[None]:
        """Around each fault: whoever begins work in between must see it, too."""
        number = time.monotonic_ns()
        self._write(number, "began", kind, host, what)
        try:
            yield
        finally:
            self._write(number, "ended")

    def _write(self, *row: object) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, (json.dumps([time.monotonic(), *row]) + "\n").encode())
        finally:
            os.close(fd)

    def all(self) -> list[Fault]:
        found: dict[int, Fault] = {}
        with contextlib.suppress(FileNotFoundError), open(self.path) as lines:
            for line in lines:
                at, number, event, *what = json.loads(line)
                if event == "began":
                    found[number] = Fault(*what, began_s=at)
                else:
                    found[number].ended_s = at
        return list(found.values())

    def counts(self) -> Counter[str]:
        return Counter(fault.what for fault in self.all())

    def since(self, began_s: float, kinds: frozenset[str], host: int | None = None) -> list[Fault]:
        """Those that may have met work which began then."""
        every = self.all()
        slow = sorted((fault for fault in every if fault.kind in HOLD_UP_NEWS), key=lambda fault: fault.began_s)
        return [
            fault
            for fault in every
            if fault.kind in kinds and (host is None or fault.host == host) and _comes_to_light_s(fault, slow) > began_s
        ]

    @contextlib.contextmanager
    def may_fail(
        self, what: str, host: int | None = None, began_s: float | None = None, and_elsewhere: frozenset[str] = NONE
    ) -> Iterator[None]:
        """Swallows what the row `what` of ALLOWED allows for faults (on that host) since the block began, or began_s.
        and_elsewhere: a fault of one of these kinds, on another host, is needed as well.

        Raises: AssertionError: an error of the row's classes, but nothing had been done that explains it."""
        row = ALLOWED[what]
        began_s = time.monotonic() if began_s is None else began_s
        try:
            yield
        except tuple(row) as error:
            kinds = frozenset().union(*(kinds for kind, kinds in row.items() if isinstance(error, kind)))
            here = self.since(began_s, kinds, host)
            elsewhere = [fault for fault in self.since(began_s, and_elsewhere) if fault.host != host]
            if not here or (and_elsewhere and not elsewhere):
                raise AssertionError(
                    f"{what} failed, with no fault that explains it ({', '.join(kinds | and_elsewhere)})"
                ) from error


def _comes_to_light_s(fault: Fault, slow: list[Fault]) -> float:
    """The latest moment at which it may; slow: the faults that hold up news, in the order of their beginnings."""
    if fault.ended_s is None:
        return float("inf")
    usually_s = latest_s = fault.ended_s + LINGERS_S
    for other in slow:
        ended_s = other.ended_s or float("inf")
        if fault.began_s < ended_s and other.began_s < usually_s:
            latest_s = max(latest_s, ended_s + LINGERS_S)
    return latest_s
