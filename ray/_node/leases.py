"""The entities of the local scheduler: a lease, the process that holds some, the lines of those that wait.

No I/O, no decisions: `local_scheduler.py` alone changes them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ray._protocol.resources import Shape
from ray._scheduling.machine import Story
from ray._scheduling.node_resources import Allocation
from ray._scheduling.strategy import DEFAULT, InGroup, Strategy

if TYPE_CHECKING:
    from .bundles import Bundle

QUEUED, STAFFING, HELD, EVICTED, ENDING, GONE = "QUEUED", "STAFFING", "HELD", "EVICTED", "ENDING", "GONE"

TASK, ACTOR, BUNDLES = "task", "actor", "bundles"
# Where a QUEUED lease waits: in the line of its class; aside, since it can never be met; for its group to be placed; or
# nowhere yet: it has just come.
IN_LINE, INFEASIBLE, FOR_GROUP, NOWHERE = "in line", "infeasible", "for its group", "nowhere"


class ClassKey(NamedTuple):
    """What those who wait in one class have in common."""

    shape: Shape
    kind: str = TASK  # | ACTOR | BUNDLES
    env: str = ""  # name of the runtime environment
    group_id: bytes = b""  # of the placement group they are to run in; b"": on the node itself
    bundle: int = -1
    parts: tuple[Shape, ...] = ()  # of BUNDLES: that are to be taken together
    priority: int = 0  # higher is served first


class Lease:
    """One request and what became of it. `tag` is its owner's; an actor's lease has the actor id there instead."""

    __slots__ = (
        "actor_starting", "allocation", "asked_at", "blocked", "bundle", "env", "exclusive", "granted_at", "holds",
        "hops", "is_actor", "job_id", "lease_id", "name", "pid", "place", "priority", "req_id", "retriable", "shape",
        "state", "story", "strategy", "tag", "told_infeasible", "waits", "why", "worker_id",
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
        self.priority = 0
        self.is_actor = False
        self.actor_starting = False  # counts against actors_starting_max
        self.waits = NOWHERE
        self.why = ""  # INFEASIBLE, EVICTED: what is to be said of it
        self.told_infeasible = False  # and it has been said to its owner
        self.blocked = False  # its worker waits in ray.get or ray.wait
        self.strategy: Strategy = DEFAULT
        self.hops = 0  # nodes that have sent it on
        self.holds: Mapping[int, int] | None = None  # bytes of its arguments by node number
        self.place: InGroup | None = None  # in a placement group
        self.bundle: Bundle | None = None  # from which it has its allocation; None: from the node
        self.allocation: Allocation | None = None
        self.retriable = False  # what runs in it runs again if its worker dies
        self.granted_at = 0.0  # since when it has a worker
        self.worker_id = -1
        self.pid = 0  # of the worker
        self.story = Story()

    @property
    def key(self) -> ClassKey:
        kind = ACTOR if self.is_actor else TASK
        if self.place is None:
            return ClassKey(self.shape, kind, self.env, priority=self.priority)
        return ClassKey(self.shape, kind, self.env, self.place.group_id, self.place.bundle, priority=self.priority)

    @property
    def line(self) -> bytes:
        """Actors of one job stand in one line: each has an id of its own and would otherwise be an owner of its own."""
        return self.job_id if self.is_actor else self.tag

    def __repr__(self) -> str:
        return f"Lease({self.lease_id}, {self.state}, {self.name!r}, {dict(self.shape)}, {self.story})"


class Holder:
    __slots__ = ("held", "job_id", "requests", "tag")

    def __init__(self, tag: bytes, job_id: bytes) -> None:
        self.tag = tag
        self.job_id = job_id
        self.requests: dict[int, Lease] = {}  # by req_id: QUEUED and STAFFING
        self.held: dict[int, Lease] = {}  # by lease_id: HELD and EVICTED


class Waiter(Protocol):
    """What stands in a line: a Lease, or a Reservation of bundles."""

    asked_at: float
    job_id: bytes
    name: str

    @property
    def line(self) -> bytes: ...

    @property
    def key(self) -> ClassKey: ...


class SchedulingClass:
    """All that wait for the same: jobs in turn, the owners of a job in turn, a line for each owner. So neither a job of
    many tasks nor one of many owners shuts out another with a few."""

    def __init__(self, key: ClassKey) -> None:
        self.key = key
        self._jobs: OrderedDict[bytes, OrderedDict[bytes, deque[Waiter]]] = OrderedDict()  # next in turn first

    @property
    def shape(self) -> Shape:
        return self.key.shape

    def add(self, waiter: Waiter) -> None:
        self._jobs.setdefault(waiter.job_id, OrderedDict()).setdefault(waiter.line, deque()).append(waiter)

    def remove(self, waiter: Waiter) -> None:
        lines = self._jobs[waiter.job_id]
        line = lines[waiter.line]
        line.remove(waiter)
        if not line:
            del lines[waiter.line]
        if not lines:
            del self._jobs[waiter.job_id]

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._jobs)

    def first(self) -> Waiter:
        return next(iter(next(iter(self._jobs.values())).values()))[0]

    def pop(self) -> Waiter:
        """The first; its job, and in that its owner, are the last in turn now."""
        job_id, lines = self._jobs.popitem(last=False)
        owner, line = lines.popitem(last=False)
        waiter = line.popleft()
        if line:
            lines[owner] = line
        if lines:
            self._jobs[job_id] = lines
        return waiter

    def lines(self) -> list[deque[Waiter]]:
        """One of each owner, none of them empty."""
        return [line for lines in self._jobs.values() for line in lines.values()]

    def is_only_for(self, owner: bytes) -> bool:
        """Whether nobody else waits."""
        return len(self._jobs) == 1 and list(next(iter(self._jobs.values()))) == [owner]

    def oldest(self) -> float:
        return min(line[0].asked_at for line in self.lines())

    def count(self) -> int:
        return sum(map(len, self.lines()))
