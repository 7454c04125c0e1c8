"""What the local scheduler is told (events) and what it wants done (actions). Values only; see `local_scheduler.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ray._scheduling.strategy import DEFAULT, InGroup, Strategy

from .spillback import NodeRow

# -- events ---------------------------------------------------------------------------------------------------


class CoreJoined(NamedTuple):
    tag: bytes
    job_id: bytes


class CoreLeft(NamedTuple):
    tag: bytes


class LeaseRequested(NamedTuple):
    tag: bytes
    req_id: int
    resources: Mapping[str, int]
    name: str = ""
    exclusive: bool = False
    env: str = ""  # name of the runtime environment, which is ready
    strategy: Strategy = DEFAULT
    priority: int = 0  # higher is served first
    hops: int = 0  # nodes that have sent it on
    holds: Mapping[int, int] | None = None  # bytes of its arguments by the number of the node that has them
    retriable: bool = False  # what runs in it runs again if its worker dies: the first to end when memory runs out


class LeaseCancelled(NamedTuple):
    tag: bytes
    req_id: int


class LeaseReturned(NamedTuple):
    tag: bytes
    lease_id: int
    reusable: bool


class LeaseBusy(NamedTuple):  # in answer to LeaseEvicted: something runs there, or is on its way
    tag: bytes
    lease_id: int


class WorkerAssigned(NamedTuple):  # from the pool, for a ticket of AcquireWorker
    ticket: int
    worker_id: int
    worker_tag: bytes
    worker_pid: int


class Reclaimed(NamedTuple):  # from a worker: nothing of its dead owner's runs in it any more
    worker_id: int
    reusable: bool = True  # False: it had to interrupt a task, and may be in any state


class HolderCutOff(NamedTuple):  # a lease's holder has lost its connection to the worker, which lives
    tag: bytes
    worker_id: int


class WorkerLost(NamedTuple):  # from the pool: a worker that was assigned is dead
    worker_id: int
    cause: str


class Blocked(NamedTuple):
    worker_id: int


class Unblocked(NamedTuple):
    worker_id: int


class ActorRequested(NamedTuple):
    actor_id: bytes
    job_id: bytes
    resources: Mapping[str, int]
    placement_resources: Mapping[str, int]
    name: str = ""
    env: str = ""
    place: InGroup | None = None  # everything else about where it runs was the head's to decide
    retriable: bool = False  # it would be started again


class EnvBroken(NamedTuple):  # from the pool: no worker comes up in this environment
    job_id: bytes
    env: str
    cause: str


class ActorStarted(NamedTuple):  # its __init__ is over, well or not
    actor_id: bytes


class ActorReleased(NamedTuple):
    actor_id: bytes


class ShortOfMemory(NamedTuple):  # from the memory watch: start no more beside what runs; False: there is memory again
    short: bool


class PrepareBundles(NamedTuple):  # from the head: hold these together for a placement group
    group_id: bytes
    attempt: int
    bundles: Mapping[int, Mapping[str, int]]
    job_id: bytes
    name: str = ""
    may_wait: bool = True  # in line, until there is room; else refused at once


class CommitBundles(NamedTuple):  # from the head: what was prepared may be used
    group_id: bytes


class ReturnBundles(NamedTuple):  # from the head: give these back, whatever state they are in
    group_id: bytes
    indexes: Iterable[int]
    why: str


class GroupRemoved(NamedTuple):  # from the head: nobody need wait for it
    group_id: bytes
    why: str


class View(NamedTuple):  # what is known of other nodes; of those not named, nothing has changed
    rows: Iterable[NodeRow]


class Tick(NamedTuple):
    """A deadline that `deadline()` gave has passed."""


# -- actions --------------------------------------------------------------------------------------------------


class Grant(NamedTuple):
    tag: bytes
    req_id: int
    lease_id: int
    worker_id: int
    worker_tag: bytes
    worker_pid: int
    gpu_ids: list[int | str]


class Infeasible(NamedTuple):
    tag: bytes
    req_id: int
    message: str


class LeaseFailed(NamedTuple):  # its environment can't be set up: its owner's tasks for it fail
    tag: bytes
    req_id: int
    cause: str


class Spill(NamedTuple):  # its owner is to ask the node of that number instead
    tag: bytes
    req_id: int
    number: int


class LeaseRefused(NamedTuple):
    """It will never be granted: its group was removed (GROUP_REMOVED), or its node is not there (UNSCHEDULABLE)."""

    tag: bytes
    req_id: int
    kind: str
    message: str


class Stuck(NamedTuple):  # what waits, of this job, waits for what nothing that runs will free
    job_id: bytes
    message: str


class LeaseWanted(NamedTuple):
    tag: bytes


class LeaseLost(NamedTuple):
    tag: bytes
    lease_id: int
    cause: str


class LeaseEvicted(NamedTuple):
    """Its holder is to give it back, or to say LeaseBusy, in a worker's grace for ending; else the worker is killed."""

    tag: bytes
    lease_id: int
    worker_id: int
    cause: str


class EvictionOver(NamedTuple):  # it was given back in time
    worker_id: int


class AcquireWorker(NamedTuple):
    ticket: int
    job_id: bytes
    fresh: bool = False  # an actor's
    env: str = ""


class CancelAcquire(NamedTuple):
    ticket: int


class ReleaseWorker(NamedTuple):
    worker_id: int
    reusable: bool


class KillWorker(NamedTuple):
    worker_id: int
    why: str


class ReclaimWorker(NamedTuple):  # it is to stop what it does for this owner, who is dead, and to say Reclaimed
    worker_id: int
    tag: bytes
    why: str


class ActorPlaced(NamedTuple):  # it has its resources; a worker follows
    actor_id: bytes


class ActorWorker(NamedTuple):
    actor_id: bytes
    worker_id: int
    worker_tag: bytes
    worker_pid: int
    gpu_ids: list[int | str]


class ActorInfeasible(NamedTuple):
    actor_id: bytes
    message: str


class ActorEnvBroken(NamedTuple):
    actor_id: bytes
    cause: str


class ActorLost(NamedTuple):
    actor_id: bytes
    cause: str


class ActorRefused(NamedTuple):  # as LeaseRefused
    actor_id: bytes
    kind: str
    message: str


class BundlesPrepared(NamedTuple):
    group_id: bytes
    attempt: int


class BundlesRefused(NamedTuple):
    group_id: bytes
    attempt: int
    available: Mapping[str, int]


GROUP_REMOVED, UNSCHEDULABLE = "group_removed", "unschedulable"
