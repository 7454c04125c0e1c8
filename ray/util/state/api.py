"""`ray.util.state`: what there is in the cluster, listed, fetched by id and summarised.

Each function asks the session of this process, or the one at `address` (its folder, or "auto"); in a process without a
session, the current one. What a process holds or waits for is asked of that process itself, so the answer is true at
the moment of asking and costs nothing before.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from ray import _inspect
from ray.util.state.common import (
    DEFAULT_LIMIT,
    DEFAULT_RPC_TIMEOUT,
    RAY_MAX_LIMIT_FROM_API_SERVER,
    ActorState,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    RuntimeEnvState,
    StateSchema,
    TaskState,
    WorkerState,
)
from ray.util.state.exception import RayStateApiException, ServerUnavailable
from ray.util.state.sources import SOURCES, Found

logger: logging.Logger = logging.getLogger("ray")

Filters = Sequence[tuple[str, str, Any]]
Row = TypeVar("Row", bound=StateSchema)


class StateList(list[Row], Generic[Row]):
    """Rows, at most `limit` of them, and how many there are.

    Attributes:
        total: of all things of this kind, exact also where events are only a sample.
        matching: that pass the filters; exact if no row was left out before filtering.
        warnings: what keeps the answer from being whole.
    """

    def __init__(self, rows: Iterable[Row], total: int, matching: int, warnings: list[str]) -> None:
        super().__init__(rows)
        self.total = total
        self.matching = matching
        self.warnings = warnings


# --- listing -----------------------------------------------------------------------------------------------------


def list_tasks(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> StateList[TaskState]:
    """Calls of the living jobs: those that wait, those that run, and of those that have ended the newest.

    Args:
        address: of another session; None: this process's, or the current one.
        filters: (column, "=" or "!=", value), all of which must hold.
        limit: rows at most.  timeout: seconds that processes have for their answer.
        detail: fill all columns.
        raise_on_missing_output: False: what could not be had is left out, with a warning.
    Raises: ValueError, TypeError: about one argument.  RayStateApiException: no session, or no whole answer.
    """
    return _list(TaskState, "tasks", address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_actors(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> StateList[ActorState]:
    """Actors, also dead ones while they are remembered. Arguments as of `list_tasks`."""
    return _list(ActorState, "actors", address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_objects(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> StateList[ObjectState]:
    """References that processes hold to objects, largest object first. Arguments as of `list_tasks`."""
    return _list(ObjectState, "objects", address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_nodes(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> StateList[NodeState]:
    """Machines. Arguments as of `list_tasks`."""
    return _list(NodeState, "nodes", address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_workers(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> StateList[WorkerState]:
    """Processes that run user code, and those that have ended while they are remembered. Arguments as of
    `list_tasks`."""
    return _list(WorkerState, "workers", address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_jobs(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> StateList[JobState]:
    """Drivers' runs. Arguments as of `list_tasks`."""
    return _list(JobState, "jobs", address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_placement_groups(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> StateList[PlacementGroupState]:
    """Placement groups. Arguments as of `list_tasks`."""
    return _list(
        PlacementGroupState,
        "placement_groups",
        address,
        filters,
        limit,
        timeout,
        detail,
        raise_on_missing_output,
        _explain,
    )


def list_runtime_envs(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> StateList[RuntimeEnvState]:
    """Runtime environments that were built, or failed to be. Arguments as of `list_tasks`."""
    return _list(
        RuntimeEnvState, "runtime_envs", address, filters, limit, timeout, detail, raise_on_missing_output, _explain
    )


# --- one by its id -----------------------------------------------------------------------------------------------


def get_task(
    id: Any, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> TaskState | None:
    """The call with this id (hexadecimal, or the ObjectRef of what it returns); None: it is not known (any more)."""
    task_id = id.task_id().hex() if hasattr(id, "task_id") else id
    return _get(TaskState, "tasks", "task_id", task_id, address, timeout, _explain)


def get_actor(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> ActorState | None:
    """The actor with this id, or None."""
    return _get(ActorState, "actors", "actor_id", id, address, timeout, _explain)


def get_objects(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> list[ObjectState]:
    """A row for each process that refers to the object with this id."""
    _check_id(id)
    rows = _list(ObjectState, "objects", address, [("object_id", "=", id)], 10_000, timeout, True, False, _explain)
    return list(rows)


def get_node(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> NodeState | None:
    """The node with this id, or None."""
    return _get(NodeState, "nodes", "node_id", id, address, timeout, _explain)


def get_worker(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> WorkerState | None:
    """The worker with this id, or None."""
    return _get(WorkerState, "workers", "worker_id", id, address, timeout, _explain)


def get_job(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> JobState | None:
    """The job with this id, or None."""
    return _get(JobState, "jobs", "job_id", id, address, timeout, _explain)


def get_placement_group(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> PlacementGroupState | None:
    """The placement group with this id, or None."""
    return _get(PlacementGroupState, "placement_groups", "placement_group_id", id, address, timeout, _explain)


# --- summaries ---------------------------------------------------------------------------------------------------


def summarize_tasks(
    address: str | None = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """Calls by name: {"cluster": {"summary": {name: {"state_counts": {state: number}, ...}}, "total_tasks": ...}}.

    Counts are exact: they include calls of which no row is kept. A retried call counts once for each attempt.
    """
    found = _fetch("tasks", address, timeout, raise_on_missing_output, _explain)
    summary: dict[str, dict[str, Any]] = {}
    totals: Counter[str] = Counter()
    for (name, kind, state), number in sorted(found.counts.items()):
        entry = summary.setdefault(name, {"func_or_class_name": name, "type": kind, "state_counts": {}})
        entry["state_counts"][state] = entry["state_counts"].get(state, 0) + number
        totals[kind] += number
    return {
        "cluster": {
            "summary": summary,
            "total_tasks": totals["NORMAL_TASK"],
            "total_actor_tasks": totals["ACTOR_TASK"],
            "total_actor_scheduled": totals["ACTOR_CREATION_TASK"],
            "summary_by": "func_name",
        }
    }


def summarize_actors(
    address: str | None = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """Actors by class: {"cluster": {"summary": {class: {"state_counts": {state: number}}}, "total_actors": number}}."""
    found = _fetch("actors", address, timeout, raise_on_missing_output, _explain)
    summary: dict[str, dict[str, Any]] = {}
    for row in found.rows:
        entry = summary.setdefault(row["class_name"], {"class_name": row["class_name"], "state_counts": {}})
        entry["state_counts"][row["state"]] = entry["state_counts"].get(row["state"], 0) + 1
    return {"cluster": {"summary": summary, "total_actors": found.total, "summary_by": "class"}}


def summarize_objects(
    address: str | None = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """References by the line of user code that made them (with RAY_record_ref_creation_sites=1).

    A size counts once for each process that refers to the object.
    """
    found = _fetch("objects", address, timeout, raise_on_missing_output, _explain)
    summary: dict[str, dict[str, Any]] = {}
    pids: dict[str, set[int]] = {}
    for row in found.rows:
        site = row["call_site"]
        entry = summary.setdefault(
            site,
            {
                "total_objects": 0,
                "total_size_mb": 0.0,
                "total_num_workers": 0,
                "total_num_nodes": 1,
                "task_state_counts": {},
                "ref_type_counts": {},
            },
        )
        entry["total_objects"] += 1
        entry["total_size_mb"] += row["object_size"] / 2**20
        pids.setdefault(site, set()).add(row["pid"])
        entry["total_num_workers"] = len(pids[site])
        for table, key in (("task_state_counts", "task_status"), ("ref_type_counts", "reference_type")):
            entry[table][row[key]] = entry[table].get(row[key], 0) + 1
    return {
        "cluster": {
            "summary": summary,
            "total_objects": found.total,
            "total_size_mb": sum(entry["total_size_mb"] for entry in summary.values()),
            "callsite_enabled": any(row["call_site"] != "disabled" for row in found.rows),
            "summary_by": "callsite",
        }
    }


# --- how ---------------------------------------------------------------------------------------------------------


def _list(
    kind: type[Row],
    what: str,
    address: str | None,
    filters: Filters | None,
    limit: int,
    timeout: float,
    detail: bool,
    whole: bool,
    explain: bool,
) -> StateList[Row]:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit={limit!r}: expected a whole number")
    if not 0 < limit <= RAY_MAX_LIMIT_FROM_API_SERVER:
        raise ValueError(f"limit={limit}: expected 1 to {RAY_MAX_LIMIT_FROM_API_SERVER}")
    wanted = _checked_filters(kind, filters)
    found = _fetch(what, address, timeout, whole, explain)
    rows = [row for row in found.rows if all(_passes(row[column], sign, value) for column, sign, value in wanted)]
    matching = len(rows) if wanted else found.total
    warnings = list(found.warnings)
    if found.total > len(found.rows):
        warnings.append(f"of {found.total} {what} only {len(found.rows)} are remembered one by one")
    columns = kind.list_columns(detail)
    made = [kind(**{column: row[column] for column in columns}) for row in rows[:limit]]
    return StateList(made, found.total, matching, warnings)


def _get(
    kind: type[Row], what: str, column: str, id: object, address: str | None, timeout: float, explain: bool
) -> Row | None:
    _check_id(id)
    rows = _list(kind, what, address, [(column, "=", id)], 1, timeout, True, False, explain)
    return rows[0] if rows else None


def _check_id(id: object) -> None:
    if not isinstance(id, str) or not id:
        raise TypeError(f"id={id!r}: expected the id as a hexadecimal string")


def _fetch(what: str, address: str | None, timeout: float, whole: bool, explain: bool) -> Found:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout={timeout!r}: expected a number of seconds")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout!r}: expected a number of seconds > 0")
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address={address!r}: expected the folder of a session, 'auto', or None")
    if what not in SOURCES:
        raise NotImplementedError(f"listing {what.replace('_', ' ')} is not built yet in this version of ray")
    try:
        with _inspect.source(address, timeout) as session:
            found = SOURCES[what](session, timeout)
    except ConnectionError as error:
        raise ServerUnavailable(str(error)) from error
    except TimeoutError as error:
        raise RayStateApiException(f"the session did not answer within {timeout} s: {error}") from error
    if found.warnings and whole:
        raise RayStateApiException(
            "; ".join(found.warnings) + ". Pass raise_on_missing_output=False to see what there is"
        )
    if explain or found.warnings:
        for warning in found.warnings:
            logger.warning("ray.util.state: %s", warning)
    return found


def _checked_filters(kind: type[StateSchema], filters: Filters | None) -> list[tuple[str, str, Any]]:
    if filters is None:
        return []
    if not isinstance(filters, (list, tuple)):
        raise TypeError(f"filters={filters!r}: expected a list of (column, '=' or '!=', value)")
    checked = []
    for given in filters:
        if not isinstance(given, (list, tuple)) or len(given) != 3:
            raise ValueError(f"filters: {given!r}: expected (column, '=' or '!=', value)")
        column, sign, value = given
        if sign not in ("=", "!="):
            raise ValueError(f"filters: {given!r}: unsupported filter predicate {sign!r}; expected '=' or '!='")
        if column not in kind.filterable_columns():
            known = ", ".join(sorted(kind.filterable_columns()))
            raise ValueError(f"filters: {given!r}: one can't filter {kind.__name__} by {column!r}, but by {known}")
        checked.append((column, sign, value))
    return checked


def _passes(have: Any, sign: str, want: Any) -> bool:
    """Texts compare without regard to case, and numbers and booleans may be given as text, as on a command line."""
    equal = have == want or (
        have is not None and not isinstance(have, dict) and str(have).casefold() == str(want).casefold()
    )
    return equal is (sign == "=")


__all__ = [
    "StateList",
    "get_actor",
    "get_job",
    "get_node",
    "get_objects",
    "get_placement_group",
    "get_task",
    "get_worker",
    "list_actors",
    "list_jobs",
    "list_nodes",
    "list_objects",
    "list_placement_groups",
    "list_runtime_envs",
    "list_tasks",
    "list_workers",
    "summarize_actors",
    "summarize_objects",
    "summarize_tasks",
]
