"""The entities of the local scheduler: a lease, the process that holds some, the lines of those that wait.

No I/O, no decisions: `local_scheduler.py` alone changes them.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from ray._protocol.resources import Shape
from ray._scheduling.machine import Story
from ray._scheduling.node_resources import Allocation

QUEUED, STAFFING, HELD, ENDING, GONE = "QUEUED", "STAFFING", "HELD", "ENDING", "GONE"


class Lease:
    """One request and what became of it. `tag` is its owner's; an actor's lease has the actor id there instead."""

    __slots__ = (
        "actor_starting", "allocation", "asked_at", "env", "exclusive", "feasible", "is_actor", "job_id", "lease_id",
        "name", "req_id", "shape", "state", "story", "tag", "worker_id",
    )  # fmt: skip

    def __init__(
        self, lease_id: int, tag: bytes, req_id: int, job_id: bytes, shape: Shape, name: str, now: float
    ) -> None:
        self.lease_id = lease_id  # also its ticket at the worker pool
        self.tag = tag
        self.req_id = req_id
        self.job_id = job_id
        self.shape = shape
        self.name = name
        self.asked_at = now
        self.env = ""
        self.state = QUEUED
        self.exclusive = False
        self.is_actor = False
        self.actor_starting = False  # counts against actors_starting_max
        self.feasible = True
        self.allocation: Allocation | None = None
        self.worker_id = -1
        self.story = Story()

    def __repr__(self) -> str:
        return f"Lease({self.lease_id}, {self.state}, {self.name!r}, {dict(self.shape)}, {self.story})"


class Holder:
    __slots__ = ("held", "job_id", "requests", "tag")

    def __init__(self, tag: bytes, job_id: bytes) -> None:
        self.tag = tag
        self.job_id = job_id
        self.requests: dict[int, Lease] = {}  # by req_id: QUEUED and STAFFING
        self.held: dict[int, Lease] = {}  # by lease_id: HELD


class SchedulingClass:
    """All queued leases of one shape and environment: a line for each owner, the owners in turn."""

    __slots__ = ("actor_starts", "env", "lines", "shape")

    def __init__(self, shape: Shape, actor_starts: bool, env: str) -> None:
        self.shape = shape
        self.env = env
        self.actor_starts = actor_starts
        self.lines: OrderedDict[bytes, deque[Lease]] = OrderedDict()

    def add(self, lease: Lease) -> None:
        # actors of one job stand in one line: each has an id of its own and would otherwise be an owner of its own
        self.lines.setdefault(lease.job_id if lease.is_actor else lease.tag, deque()).append(lease)

    def remove(self, lease: Lease) -> None:
        key = lease.job_id if lease.is_actor else lease.tag
        line = self.lines[key]
        line.remove(lease)
        if not line:
            del self.lines[key]

    def pop(self) -> Lease:
        key, line = self.lines.popitem(last=False)
        lease = line.popleft()
        if line:
            self.lines[key] = line  # to the end: the next owner comes first now
        return lease

    def oldest(self) -> float:
        return min(line[0].asked_at for line in self.lines.values())
