"""Where the rows of the state API come from: of each kind of thing, what the session says, as columns.

Each function takes a session (see `ray._inspect`) and a timeout, and returns `Found`: rows as dicts of all columns, how
many there are in truth, and what keeps the answer from being whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from ray import _inspect

UNITS = 10_000  # of a resource, in what the node says
TASK_TYPES = {"task": "NORMAL_TASK", "actor_task": "ACTOR_TASK", "actor_creation": "ACTOR_CREATION_TASK"}
_ERROR_TYPES = {
    "TaskCancelledError": "TASK_CANCELLED",
    "WorkerCrashedError": "WORKER_DIED",
    "ActorDiedError": "ACTOR_DIED",
    "ActorUnavailableError": "ACTOR_UNAVAILABLE",
    "OwnerDiedError": "OWNER_DIED",
    "ObjectLostError": "OBJECT_LOST",
    "OutOfMemoryError": "OUT_OF_MEMORY",
    "LocalRayletDiedError": "LOCAL_RAYLET_DIED",
}
_PLASMA_WAIT_S = 10.0


class Found(NamedTuple):
    rows: list[dict[str, Any]]
    total: int  # rows that there are, however many of them are here
    warnings: list[str]
    counts: Counter[tuple[str, str, str]] = Counter()  # of tasks: (name, type, state), exact


def tasks(session: _inspect.Source, timeout_s: float) -> Found:
    found = _inspect.tasks(session, timeout_s)
    places = _inspect.Places(session, timeout_s)
    counts: Counter[tuple[str, str, str]] = Counter()
    for (name, kind, state), number in found.counts.items():
        counts[name, TASK_TYPES[kind], "FAILED" if state == "CANCELLED" else state] += number
    return Found(
        [_task(row, places.of(row.get("worker"))[0]) for row in found.rows],
        sum(counts.values()),
        found.warnings,
        counts,
    )


def _task(row: dict[str, Any], node_id: str | None) -> dict[str, Any]:
    state, times, error = row["state"], row.get("times", {}), row.get("error")
    kind = TASK_TYPES[row.get("kind", "task")]
    name = row.get("name", "")
    started = row.get("started_s") or times.get("RUNNING")
    error_type = None
    if state in ("FAILED", "CANCELLED"):
        error_type = _ERROR_TYPES.get((error or "").partition(":")[0], "TASK_EXECUTION_EXCEPTION")
        if state == "CANCELLED":
            error_type = "TASK_CANCELLED"
    events = [{"state": s, "created_ms": _ms(at)} for s, at in sorted(times.items(), key=lambda item: float(item[1]))]
    return {
        "task_id": row["task_id"],
        "attempt_number": row.get("attempt", 0),
        "name": name,
        "state": "FAILED" if state == "CANCELLED" else state,
        "job_id": row["job_id"],
        "actor_id": row.get("actor_id"),
        "type": kind,
        "func_or_class_name": name,
        "parent_task_id": row.get("parent"),
        "node_id": node_id,
        "worker_id": row.get("worker"),
        "worker_pid": row.get("pid"),
        "error_type": error_type,
        "language": "PYTHON",
        "required_resources": _numbers(row.get("resources") or {}),
        "events": events,
        "creation_time_ms": None,
        "start_time_ms": _ms(started),
        "end_time_ms": _ms(times.get(state)) if state in _inspect.FINAL else None,
        "error_message": error,
    }


def actors(session: _inspect.Source, timeout_s: float) -> Found:
    rows = [
        {
            "actor_id": row["actor_id"],
            "class_name": row["class_name"],
            "state": "PENDING_CREATION" if row["state"].startswith("PENDING") else row["state"],
            "job_id": row["job_id"],
            "name": row["name"] or "",
            "node_id": row["node_id"] or None,
            "pid": row["worker_pid"],
            "ray_namespace": row["namespace"],
            "required_resources": _numbers(row["resources"]),
            "death_cause": {"error_message": row["cause"]} if row["state"] == "DEAD" else None,
            "is_detached": row["detached"],
            "placement_group_id": row.get("placement_group_id"),
            "num_restarts": row["restarts"],
            "start_time_ms": _ms(row["created_s"]),
            "end_time_ms": _ms(row["died_s"]),
        }
        for row in session.rpc("actors", timeout=timeout_s)
    ]
    return Found(rows, len(rows), [])


def nodes(session: _inspect.Source, timeout_s: float) -> Found:
    head = _inspect.Places(session, timeout_s).head()
    stores: dict[str, dict[str, int]] = {row["node_id"]: row for row in session.rpc("stores", timeout=timeout_s)}
    rows = [
        {
            "node_id": row["node_id"],
            "node_ip": row["address"],
            "is_head_node": row["node_id"] == head,
            "state": row["state"],
            "state_message": row["cause"] or None,
            "node_name": row.get("name") or row["address"],
            "resources_total": _numbers(row["resources"]),
            "labels": row["labels"],
            "start_time_ms": _ms(row["started_s"]),
            "end_time_ms": _ms(row["died_s"]),
            **{
                column: stores.get(row["node_id"], {}).get(source)
                for column, source in (
                    ("object_store_bytes", "sealed_bytes"),
                    ("spilled_bytes", "spilled_bytes"),
                    ("spilled_objects", "spilled_objects"),
                )
            },
        }
        for row in session.rpc("node_table", timeout=timeout_s)
    ]
    return Found(rows, len(rows), [])


def workers(session: _inspect.Source, timeout_s: float) -> Found:
    rows = []
    for row in session.rpc("workers", timeout=timeout_s):
        dead = row["state"] == "DEAD"
        intended = "exited with code 0" in row.get("cause", "") or "idle" in row.get("cause", "")
        rows.append(
            {
                "worker_id": row["worker_id"],
                "is_alive": not dead,
                "worker_type": row["type"],
                "exit_type": ("INTENDED_SYSTEM_EXIT" if intended else "SYSTEM_ERROR") if dead else None,
                "node_id": row["node_id"],
                "ip": row["ip"],
                "pid": row["pid"],
                "exit_detail": row.get("cause"),
                "job_id": row.get("job_id"),
                "status": row["state"],
            }
        )
    return Found(rows, len(rows), [])


def jobs(session: _inspect.Source, timeout_s: float) -> Found:
    statuses = {"RUNNING": "RUNNING", "ENDING": "SUCCEEDED", "FINISHED": "SUCCEEDED", "DIED": "FAILED"}
    rows = [
        {
            "job_id": row["job_id"],
            "submission_id": None,
            "entrypoint": row["entrypoint"],
            "type": "DRIVER",
            "status": statuses[row["state"]],
            "message": row["cause"] or None,
            "error_type": "DRIVER_DIED" if row["state"] == "DIED" else None,
            "driver_info": {
                "id": row["job_id"],
                "node_ip_address": session.info["node_ip"],
                "pid": str(row["driver_pid"]),
            },
            "start_time": _ms(row["started_s"]),
            "end_time": _ms(row["ended_s"]),
            "metadata": row["metadata"],
        }
        for row in session.rpc("jobs", timeout=timeout_s)
    ]
    return Found(rows, len(rows), [])


def placement_groups(session: _inspect.Source, timeout_s: float) -> Found:
    rows = [
        {
            "placement_group_id": row["group_id"].hex(),
            "name": row["name"],
            "creator_job_id": row["job_id"].hex(),
            "state": "PENDING" if row["state"] == "RESERVING" else row["state"],
            "bundles": [
                {"bundle_index": index, "unit_resources": _numbers(bundle), "node_id": node_id or None}
                for index, (bundle, node_id) in enumerate(zip(row["bundles"], row["nodes"]))
            ],
            "is_detached": row["detached"],
            "stats": {"scheduling_attempt": row["attempts"], "strategy": row["strategy"], "why": row["why"]},
        }
        for row in session.rpc("groups", timeout=timeout_s)
    ]
    return Found(rows, len(rows), [])


def runtime_envs(session: _inspect.Source, timeout_s: float) -> Found:
    rows = [
        {
            "runtime_env": row["env"],
            "success": True,
            "creation_time_ms": None,
            "node_id": row["node_id"],
            "ref_cnt": None,
            "error": None,
        }
        for row in session.rpc("runtime_envs", timeout=timeout_s)
        if row["state"] == "READY"  # one that failed is told to who wanted it, and not kept
    ]
    return Found(rows, len(rows), [])


def objects(session: _inspect.Source, timeout_s: float) -> Found:
    answers = _inspect.ask(session, "objects", timeout_s)
    stored = _inspect.stored_objects(session)
    ip, places = session.info["node_ip"], _inspect.Places(session, timeout_s)
    rows, known = [], set()
    for row in answers.rows:
        known.add(row["object_id"])
        rows.append(_object(row, stored.get(row["object_id"]), places.of(row["by"]["tag"])[1]))
    strays = [(key, place) for key, place in stored.items() if key not in known]
    for key, place in strays[: _inspect.ROWS_MAX]:
        rows.append(
            {
                **dict.fromkeys(("is_owner", "local_references", "borrowers")),
                "object_id": key,
                "object_size": place["data_size"],
                "task_status": "NIL",
                "reference_type": "UNKNOWN_STATUS",
                "call_site": "disabled",
                "type": "WORKER",
                "pid": place["creator_pid"],
                "ip": ip,
                "in_object_store": True,
                "spilled": place["state"] == "spilled",
                "pinned_by_pids": place["pids"],
            }
        )
    total = sum(head["total"] for _, head in answers.heads) + len(strays)
    rows.sort(key=lambda row: int(row["object_size"]), reverse=True)
    return Found(rows, total, answers.warnings())


def _object(row: dict[str, Any], place: dict[str, Any] | None, ip: str | None) -> dict[str, Any]:
    if row["is_handle"]:
        reference = "ACTOR_HANDLE"
    elif row["in_calls"]:
        reference = "USED_BY_PENDING_TASK"
    elif row["local"]:
        reference = "LOCAL_REFERENCE"
    elif row["captured"]:
        reference = "CAPTURED_IN_OBJECT"
    else:
        reference = "PINNED_IN_MEMORY"
    if row["state"] == "PENDING":
        status = "PENDING" if row["owned"] else "NIL"
    else:
        status = "FAILED" if row["is_error"] else "FINISHED"
    return {
        "object_id": row["object_id"],
        "object_size": place["data_size"] if place is not None else row["size"],
        "task_status": status,
        "reference_type": reference,
        "call_site": row["site"] or "disabled",
        "type": row["by"]["kind"].upper(),
        "pid": row["by"]["pid"],
        "ip": ip,
        "is_owner": row["owned"],
        "in_object_store": row["state"] == "PLASMA",
        "spilled": place is not None and place["state"] == "spilled",
        "pinned_by_pids": place["pids"] if place is not None else [],
        "local_references": row["local"],
        "borrowers": row["lent"],
    }


def _numbers(units: dict[str, int]) -> dict[str, float]:
    return {name: amount / UNITS for name, amount in units.items()}


def _ms(seconds: float | None) -> int | None:
    return int(seconds * 1000) if seconds else None


SOURCES: dict[str, Callable[[_inspect.Source, float], Found]] = {
    "tasks": tasks,
    "actors": actors,
    "objects": objects,
    "nodes": nodes,
    "workers": workers,
    "jobs": jobs,
    "placement_groups": placement_groups,
    "runtime_envs": runtime_envs,
}
