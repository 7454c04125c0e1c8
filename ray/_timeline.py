"""`ray.timeline`: what ran when, as a trace that chrome://tracing and ui.perfetto.dev draw.

Reads the task events that are kept anyway (`task_events_kept` of them for each job), so calls pay nothing for it: of a
burst of very many short calls the events are a sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any, Protocol

from ray import _inspect

_COLORS = {"FAILED": "terrible", "CANCELLED": "grey"}
_FLUSH_WAIT_S = 2.0  # for a core that cannot report what it ran last; the rest is shown


def timeline(filename: str | os.PathLike[str] | None = None) -> list[dict[str, Any]] | None:
    """The tasks and actor calls of this session, in the Chrome trace format.

    Each complete event (`"ph": "X"`) is one call: "name", "ts" and "dur" in microseconds, "pid" the node, "tid" the
    process id of the worker, "args" with "task_id", "state", "attempt", "actor_id" and "error". Events of phase "M"
    name nodes and workers.

    Args: filename: where to write it as JSON; None: it is returned.
    Raises: RaySystemError: ray isn't running.  OSError: the file can't be written.
    """
    from ray._core.engine import current
    from ray.exceptions import RaySystemError

    engine = current()
    if engine is None:
        raise RaySystemError("ray.timeline: ray isn't running in this process; call ray.init() first")
    if filename is not None and not isinstance(filename, (str, os.PathLike)):
        raise TypeError(f"ray.timeline: filename={filename!r}: expected a path, or None")
    trace = of_session(engine)
    if filename is None:
        return trace
    write(trace, filename)
    return None


def write(trace: list[dict[str, Any]], filename: str | os.PathLike[str]) -> None:
    with open(filename, "w") as file:
        json.dump(trace, file)


def of_session(session: _inspect.Source) -> list[dict[str, Any]]:
    """The trace of a session. Blocks until the cores have reported what they ran last."""
    _inspect.ask(session, "events", _FLUSH_WAIT_S, 0)
    rows = [row for job in session.rpc("task_history") for row in _inspect.history_rows(job)]
    return trace_of(rows, _inspect.Places(session))


class Placing(Protocol):
    def of(self, tag: str | None) -> tuple[str | None, str | None]:
        """(node id, address) of the process with that tag, in hexadecimal."""


def trace_of(rows: Iterable[dict[str, Any]], places: Placing) -> list[dict[str, Any]]:
    """Chrome's events for rows of tasks that have ended, by start: a process of the trace is a node, a thread a worker.
    Pure."""
    nodes: dict[tuple[str | None, str | None], int] = {}  # in the trace: its viewers want whole numbers
    calls: list[dict[str, Any]] = []
    workers: dict[tuple[int, int], str] = {}
    for row in rows:
        times = row["times"]
        start, end = times.get("RUNNING"), times.get(row["state"])
        if start is None or end is None or not row.get("pid"):
            continue  # it never ran
        node = nodes.setdefault(places.of(row.get("worker")), len(nodes) + 1)
        worker = row["pid"]
        named = f"{row['name'].partition('.')[0] if 'actor_id' in row else 'worker'} pid={worker}"
        workers.setdefault((node, worker), named)
        event = {
            "cat": row.get("kind", "task"),
            "name": row.get("name", ""),
            "ph": "X",
            "ts": start * 1e6,
            "dur": max(0.0, (end - start) * 1e6),
            "pid": node,
            "tid": worker,
            "id": row["task_id"],
            "args": {
                key: row[key]
                for key in ("task_id", "job_id", "state", "attempt", "actor_id", "error", "worker")
                if key in row
            },
        }
        if row["state"] in _COLORS:
            event["cname"] = _COLORS[row["state"]]
        calls.append(event)
    calls.sort(key=lambda event: float(event["ts"]))
    names: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": node, "tid": 0, "args": {"name": _node_name(*where)}}
        for where, node in nodes.items()
    ]
    names += [
        {"ph": "M", "name": "thread_name", "pid": node, "tid": pid, "args": {"name": name}}
        for (node, pid), name in sorted(workers.items())
    ]
    return names + calls


def _node_name(node_id: str | None, ip: str | None) -> str:
    return "a node that is gone" if node_id is None else f"node {ip} {node_id[:8]}"


__all__ = ["timeline"]
