"""What the worker pool is told (events) and what it wants done (actions). Values only; see `worker_pool.py`."""

from __future__ import annotations

from typing import NamedTuple

# -- events ---------------------------------------------------------------------------------------------------


class JobStarted(NamedTuple):
    job_id: bytes


class JobEnded(NamedTuple):  # its driver is gone: its workers are killed, its tickets are forgotten
    job_id: bytes


class JobLeaving(NamedTuple):  # its driver is about to go: no start any more, and its workers are asked to exit
    job_id: bytes
    why: str


class Prestart(NamedTuple):
    job_id: bytes
    workers: int
    env: str = ""


class Acquire(NamedTuple):
    ticket: int
    job_id: bytes
    fresh: bool = (
        False  # for an actor: a worker that has run nothing yet, and so owns nothing that would die with the actor
    )
    env: str = ""  # name of the runtime environment that the worker must live in


class AcquireCancelled(NamedTuple):
    ticket: int


class Released(NamedTuple):
    worker_id: int
    reusable: bool


class Forked(NamedTuple):  # the fork server made it; it has not registered yet
    worker_id: int
    pid: int


class ForkFailed(NamedTuple):
    worker_id: int
    cause: str


class Registered(NamedTuple):
    worker_id: int
    tag: bytes


class Exited(NamedTuple):
    worker_id: int
    cause: str


class KillAsked(NamedTuple):
    worker_id: int
    why: str


class ReclaimAsked(NamedTuple):  # it has exit_grace_s to say Reclaimed, then it is killed
    worker_id: int
    why: str


class Reclaimed(NamedTuple):
    worker_id: int


class SetupFailed(
    NamedTuple
):  # its environment's setup hook raised: it registers no more, and another would not either
    worker_id: int
    cause: str


class EnvForgotten(NamedTuple):  # what the environment was built of goes: no worker of it may wait for work
    env: str


class ExitPostponed(NamedTuple):  # it owns objects that others refer to, and leaves when they are released
    worker_id: int


class ExitAsked(NamedTuple):
    worker_id: int
    why: str
    ask: bool = True  # False: it said that it exits by itself, and is only watched


class NoMoreStarts(NamedTuple):
    """The session ends: what waits for a worker waits in vain."""


class Tick(NamedTuple):
    """A deadline that `deadline()` gave has passed."""


# -- actions --------------------------------------------------------------------------------------------------


class StartWorker(NamedTuple):
    worker_id: int
    job_id: bytes
    env: str = ""


class Assigned(NamedTuple):
    ticket: int
    worker_id: int
    tag: bytes
    pid: int


class AskToExit(NamedTuple):
    worker_id: int


class Kill(NamedTuple):
    worker_id: int
    pid: int


class WorkerGone(NamedTuple):
    """A worker is dead. was_assigned: a lease has lost it."""

    worker_id: int
    tag: bytes
    cause: str
    was_assigned: bool


class StartsFailing(NamedTuple):
    job_id: bytes
    cause: str
    tries: int


class EnvBroken(NamedTuple):
    """No worker comes up in this environment: who waits for one waits in vain."""

    job_id: bytes
    env: str
    cause: str
