"""What the state API tells: one dataclass for each kind of thing. Vocabulary only, no I/O.

Each column says whether one may filter by it, and whether it is told only with detail=True. A row can be read like a
dict, too. Times are milliseconds since the epoch, sizes bytes, ids hexadecimal.
"""

# ruff: noqa: RUF009  (a column is made by a function, as dataclasses.field is)
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

DEFAULT_RPC_TIMEOUT = 30
DEFAULT_LIMIT = 100
RAY_MAX_LIMIT_FROM_API_SERVER = 10_000
RAY_MAX_LIMIT_FROM_DATA_SOURCE = 10_000


def state_column(*, filterable: bool, detail: bool = False) -> Any:
    """A column. Those told only in detail are None otherwise."""
    metadata = {"filterable": filterable, "detail": detail}
    return dataclasses.field(default=None, metadata=metadata) if detail else dataclasses.field(metadata=metadata)


class StateSchema:
    """A row: attributes, also by key as in a dict."""

    @classmethod
    def list_columns(cls, detail: bool = True) -> list[str]:
        """The names of the columns, in order."""
        return [f.name for f in dataclasses.fields(cls) if detail or not f.metadata["detail"]]  # type: ignore[arg-type]

    @classmethod
    def columns(cls) -> set[str]:
        return set(cls.list_columns())

    @classmethod
    def base_columns(cls) -> set[str]:
        return set(cls.list_columns(detail=False))

    @classmethod
    def filterable_columns(cls) -> set[str]:
        return {f.name for f in dataclasses.fields(cls) if f.metadata["filterable"]}  # type: ignore[arg-type]

    def asdict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    def keys(self) -> list[str]:
        return self.list_columns()

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)

    def __getitem__(self, key: str) -> Any:
        if key not in self.columns():
            raise KeyError(key)
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.columns():
            raise KeyError(key)
        setattr(self, key, value)


@dataclass
class TaskState(StateSchema):
    """A call: of a remote function, of an actor's method, or of an actor's constructor.

    state: PENDING_ARGS_AVAIL (arguments are not made yet), PENDING_NODE_ASSIGNMENT (no worker yet),
    SUBMITTED_TO_WORKER, RUNNING, FINISHED, FAILED (cancelled ones too: error_type TASK_CANCELLED).
    """

    task_id: str = state_column(filterable=True)
    attempt_number: int = state_column(filterable=True)
    name: str = state_column(filterable=True)
    state: str = state_column(filterable=True)
    job_id: str = state_column(filterable=True)
    actor_id: str | None = state_column(filterable=True)
    type: str = state_column(filterable=True)  # NORMAL_TASK | ACTOR_TASK
    func_or_class_name: str = state_column(filterable=True)
    parent_task_id: str | None = state_column(filterable=True)  # not recorded: None
    node_id: str | None = state_column(filterable=True)
    worker_id: str | None = state_column(filterable=True)
    worker_pid: int | None = state_column(filterable=True)
    error_type: str | None = state_column(filterable=True)
    language: str | None = state_column(filterable=True, detail=True)
    required_resources: dict[str, float] | None = state_column(filterable=False, detail=True)
    events: list[dict[str, Any]] | None = state_column(filterable=False, detail=True)
    creation_time_ms: int | None = state_column(filterable=False, detail=True)  # not recorded: None
    start_time_ms: int | None = state_column(filterable=False, detail=True)
    end_time_ms: int | None = state_column(filterable=False, detail=True)
    error_message: str | None = state_column(filterable=False, detail=True)


@dataclass
class ActorState(StateSchema):
    """An actor. state: PENDING_CREATION, ALIVE, RESTARTING, DEAD."""

    actor_id: str = state_column(filterable=True)
    class_name: str = state_column(filterable=True)
    state: str = state_column(filterable=True)
    job_id: str = state_column(filterable=True)
    name: str | None = state_column(filterable=True)
    node_id: str | None = state_column(filterable=True)
    pid: int | None = state_column(filterable=True)
    ray_namespace: str | None = state_column(filterable=True)
    required_resources: dict[str, float] | None = state_column(filterable=False, detail=True)
    death_cause: dict[str, Any] | None = state_column(filterable=False, detail=True)
    is_detached: bool | None = state_column(filterable=False, detail=True)
    placement_group_id: str | None = state_column(filterable=True, detail=True)
    num_restarts: int | None = state_column(filterable=False, detail=True)
    start_time_ms: int | None = state_column(filterable=False, detail=True)
    end_time_ms: int | None = state_column(filterable=False, detail=True)


@dataclass
class ObjectState(StateSchema):
    """A reference that one process holds to an object; an object that two processes refer to has two rows.

    reference_type: why it is held there: LOCAL_REFERENCE (a variable of the program), USED_BY_PENDING_TASK,
    CAPTURED_IN_OBJECT (inside another object), ACTOR_HANDLE, PINNED_IN_MEMORY (for borrowers, a value in use, or to
    make it again), UNKNOWN_STATUS (bytes in the store to which no process that answered refers).
    """

    object_id: str = state_column(filterable=True)
    object_size: int = state_column(filterable=True)
    task_status: str = state_column(filterable=True)  # of the call that makes it: FINISHED | FAILED | PENDING | NIL
    reference_type: str = state_column(filterable=True)
    call_site: str = state_column(filterable=True)  # needs RAY_record_ref_creation_sites=1
    type: str = state_column(filterable=True)  # DRIVER | WORKER
    pid: int = state_column(filterable=True)
    ip: str = state_column(filterable=True)
    is_owner: bool | None = state_column(filterable=True, detail=True)
    in_object_store: bool | None = state_column(filterable=True, detail=True)
    spilled: bool | None = state_column(filterable=True, detail=True)  # its bytes are on disk, and not in memory
    pinned_by_pids: list[int] | None = state_column(filterable=False, detail=True)
    local_references: int | None = state_column(filterable=False, detail=True)
    borrowers: int | None = state_column(filterable=False, detail=True)


@dataclass
class NodeState(StateSchema):
    """A machine. state: ALIVE, DEAD."""

    node_id: str = state_column(filterable=True)
    node_ip: str = state_column(filterable=True)
    is_head_node: bool = state_column(filterable=True)
    state: str = state_column(filterable=True)
    state_message: str | None = state_column(filterable=False)
    node_name: str = state_column(filterable=True)
    resources_total: dict[str, float] = state_column(filterable=False)
    labels: dict[str, str] = state_column(filterable=False)
    start_time_ms: int | None = state_column(filterable=False, detail=True)
    end_time_ms: int | None = state_column(filterable=False, detail=True)
    object_store_bytes: int | None = state_column(filterable=False, detail=True)  # of objects in memory
    spilled_bytes: int | None = state_column(filterable=False, detail=True)  # of those on disk, and not in memory
    spilled_objects: int | None = state_column(filterable=False, detail=True)


@dataclass
class WorkerState(StateSchema):
    """A process that runs user code. exit_type of dead ones: INTENDED_SYSTEM_EXIT, SYSTEM_ERROR."""

    worker_id: str = state_column(filterable=True)
    is_alive: bool = state_column(filterable=True)
    worker_type: str = state_column(filterable=True)  # WORKER | DRIVER
    exit_type: str | None = state_column(filterable=True)
    node_id: str = state_column(filterable=True)
    ip: str = state_column(filterable=True)
    pid: int = state_column(filterable=True)
    exit_detail: str | None = state_column(filterable=False, detail=True)
    job_id: str | None = state_column(filterable=True, detail=True)
    status: str | None = state_column(filterable=True, detail=True)  # STARTING | IDLE | ASSIGNED | EXITING | DEAD


@dataclass
class JobState(StateSchema):
    """A driver's run. status: RUNNING, SUCCEEDED, FAILED."""

    job_id: str = state_column(filterable=True)
    submission_id: str | None = state_column(filterable=True)
    entrypoint: str = state_column(filterable=False)
    type: str = state_column(filterable=True)  # DRIVER
    status: str = state_column(filterable=True)
    message: str | None = state_column(filterable=False)
    error_type: str | None = state_column(filterable=False)
    driver_info: dict[str, Any] | None = state_column(filterable=False)
    start_time: int | None = state_column(filterable=False, detail=True)
    end_time: int | None = state_column(filterable=False, detail=True)
    metadata: dict[str, str] | None = state_column(filterable=False, detail=True)


@dataclass
class PlacementGroupState(StateSchema):
    """A placement group. state: PENDING, CREATED, REMOVED, RESCHEDULING."""

    placement_group_id: str = state_column(filterable=True)
    name: str = state_column(filterable=True)
    creator_job_id: str = state_column(filterable=True)
    state: str = state_column(filterable=True)
    bundles: list[dict[str, Any]] | None = state_column(filterable=False, detail=True)
    is_detached: bool | None = state_column(filterable=True, detail=True)
    stats: dict[str, Any] | None = state_column(filterable=False, detail=True)


@dataclass
class RuntimeEnvState(StateSchema):
    """A runtime environment that a node has built."""

    runtime_env: dict[str, Any] = state_column(filterable=True)
    success: bool = state_column(filterable=True)
    creation_time_ms: float | None = state_column(filterable=False)
    node_id: str = state_column(filterable=True)
    ref_cnt: int | None = state_column(filterable=False, detail=True)
    error: str | None = state_column(filterable=True, detail=True)


__all__ = [
    "ActorState",
    "JobState",
    "NodeState",
    "ObjectState",
    "PlacementGroupState",
    "RuntimeEnvState",
    "StateSchema",
    "TaskState",
    "WorkerState",
]
