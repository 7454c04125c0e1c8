"""What the actor directory is told (events) and what it wants done (actions). Values only; see `actor_directory.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Union

from ray._control.rows import ActorRow

# -- events -----------------------------------------------------------------------------------------------------------


class Created(NamedTuple):
    """A core wants an actor. spec: as create_actor in wire_format.md says; `job_id` ends it unless spec["detached"]."""

    actor_id: bytes
    spec: Mapping[str, Any]
    job_id: bytes
    owner_tag: bytes


class Assigned(NamedTuple):
    """That node has been asked for a place; it has not answered yet, and if it dies it never will."""

    actor_id: bytes
    node_id: bytes


class Placed(NamedTuple):
    """Its resources are held on node_id; a worker follows."""

    actor_id: bytes
    node_id: bytes
    incarnation: int | None = None  # for which the node was asked; None: not said


class PlacementLost(NamedTuple):
    """The place, or the worker being started there, is gone before the worker could be told anything."""

    actor_id: bytes
    cause: str


class WorkerStarted(NamedTuple):
    actor_id: bytes
    worker_tag: bytes
    worker_pid: int
    gpu_ids: list[int | str]
    incarnation: int | None = None  # as for Placed


class Ready(NamedTuple):
    """__init__ returned, says that worker."""

    actor_id: bytes
    worker_tag: bytes


class InitFailed(NamedTuple):
    actor_id: bytes
    worker_tag: bytes
    error: bytes  # an encoded exception


class EnvFailed(NamedTuple):
    """Its runtime environment can't be set up; the text says why."""

    actor_id: bytes
    cause: str


class Unplaceable(NamedTuple):
    """No node can ever take it: its placement group was removed, or the node that it is bound to is gone."""

    actor_id: bytes
    error: bytes  # encoded, for those who call it


class Exiting(NamedTuple):
    """The worker leaves on purpose (exit_actor, SystemExit): no restart."""

    actor_id: bytes
    worker_tag: bytes
    why: str


class WorkerDied(NamedTuple):
    worker_tag: bytes
    cause: str


class NodeDied(NamedTuple):
    node_id: bytes
    cause: str


class Kill(NamedTuple):
    actor_id: bytes
    no_restart: bool
    why: str = ""


class OutOfScope(NamedTuple):
    """Its owner says: no handle is left anywhere and no call is on its way."""

    actor_id: bytes


class OwnerDied(NamedTuple):
    """Made by the directory out of CoreGone and JobEnded, for each actor concerned."""

    actor_id: bytes
    cause: str


class CoreGone(NamedTuple):
    """A driver or worker process is dead: it subscribes to nothing any more, and what it owned dies."""

    core_tag: bytes
    cause: str


class JobEnded(NamedTuple):
    job_id: bytes
    cause: str


class Subscribe(NamedTuple):
    actor_id: bytes
    core_tag: bytes


class Unsubscribe(NamedTuple):
    actor_id: bytes
    core_tag: bytes


Event = Union[
    Created, Assigned, Placed, PlacementLost, WorkerStarted, Ready, InitFailed, Unplaceable, Exiting, WorkerDied,
    NodeDied, Kill, OutOfScope, OwnerDied, CoreGone, JobEnded, Subscribe, Unsubscribe, EnvFailed,
]  # fmt: skip

# -- actions ----------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Find resources and a worker; answered by Placed and WorkerStarted, or PlacementLost."""

    actor_id: bytes
    spec: dict[str, Any]
    incarnation: int


class CancelPlacement(NamedTuple):
    """It needs no place any more; give back what was taken for it. Also sent when nothing was."""

    actor_id: bytes


class Become(NamedTuple):
    worker_tag: bytes
    actor_id: bytes
    creation: bytes
    incarnation: int
    gpu_ids: list[int | str]


class Publish(NamedTuple):
    core_tag: bytes
    actor_id: bytes
    state: str  # PENDING | ALIVE | RESTARTING | DEAD
    worker_tag: bytes
    incarnation: int
    cause: str | bytes


class KillWorker(NamedTuple):
    worker_tag: bytes
    why: str


class AskToExit(NamedTuple):
    worker_tag: bytes
    why: str


class ExpectExit(NamedTuple):
    """It says that it leaves: kill it if it has not gone in a few seconds."""

    worker_tag: bytes
    why: str


class Release(NamedTuple):
    """Its worker is dead: its resources come back."""

    actor_id: bytes


class SaveRow(NamedTuple):
    row: ActorRow


class SaveCreation(NamedTuple):
    row: ActorRow
    creation: bytes


class SaveName(NamedTuple):
    namespace: str
    name: str
    actor_id: bytes


class DropName(NamedTuple):
    namespace: str
    name: str


class DropRow(NamedTuple):
    row: ActorRow


Action = Union[
    Place, CancelPlacement, Become, Publish, KillWorker, AskToExit, ExpectExit, Release, SaveRow, SaveCreation,
    SaveName, DropName, DropRow,
]  # fmt: skip
