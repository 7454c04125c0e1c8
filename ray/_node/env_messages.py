"""What the environments are told (events) and what they want done (actions). Values only; see `runtime_envs.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

# Who waits for an environment: ("task", tag of the core, req_id), ("actor", actor_id) or ("job", job_id).
Waiter = tuple[Any, ...]

# -- events ---------------------------------------------------------------------------------------------------


class Requested(NamedTuple):
    waiter: Waiter
    key: str
    text: str


class Withdrawn(NamedTuple):
    waiter: Waiter


class CoreLeft(NamedTuple):  # what it asked for its tasks is of no use any more
    tag: bytes


class Placed(NamedTuple):  # what Granted said has reached the scheduler: from now on `in_use` knows of it
    waiter: Waiter


class Built(NamedTuple):
    key: str
    context: dict[str, Any]
    sizes: dict[str, int]


class BuildFailed(NamedTuple):
    key: str
    cause: str


class LessInUse(NamedTuple):
    """A worker is gone: what is over the cache's size may be free to go now."""


class Tick(NamedTuple):
    """A deadline that `deadline()` gave has passed."""


# -- actions --------------------------------------------------------------------------------------------------


class StartBuild(NamedTuple):
    key: str


class StopBuild(NamedTuple):  # answered by BuildFailed when it has really ended
    key: str


class Granted(NamedTuple):
    waiter: Waiter
    key: str


class Refused(NamedTuple):
    waiter: Waiter
    key: str
    cause: str


class Forgotten(NamedTuple):  # idle workers of it must go
    key: str


class Remove(NamedTuple):
    parts: tuple[str, ...]
