"""`get_object_locations`: on which machines objects are, and how large.

A library on the public API, in the caller's process and thread. It asks all processes of the session what they hold, so
it is for looking, not for a hot path. A process that does not answer in time is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

# What ray.util.state waits for its answer where timeout_ms does not say.
_TIMEOUT_S = 30.0


def get_object_locations(
    obj_refs: Sequence[ray.ObjectRef[Any]], timeout_ms: int = -1
) -> dict[ray.ObjectRef[Any], dict[str, Any]]:
    """Where objects are, and how large.

    Args: timeout_ms: how long to wait for the answers of the processes; -1 for the usual time.
    Returns: for each ref a dict: "node_ids" (hexadecimal; empty if the object is not in an object store, because it is
        not ready yet or so small that its owner keeps it), "object_size" (bytes; None if not known), "did_spill"
        (whether its bytes are on disk now, and not in memory).
    Raises: TypeError: not refs.  NotImplementedError: the session has more than one machine.
    """
    for ref in obj_refs:
        if not isinstance(ref, ray.ObjectRef):
            raise TypeError(f"get_object_locations: expected a list of ObjectRefs, got {type(ref).__name__} {ref!r}")
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int) or timeout_ms < -1 or timeout_ms == 0:
        raise ValueError(f"get_object_locations: timeout_ms={timeout_ms!r}: expected a number > 0, or -1")
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1:
        raise NotImplementedError("get_object_locations is not built yet for sessions of more than one machine")
    timeout_s = _TIMEOUT_S if timeout_ms == -1 else timeout_ms / 1000
    return {ref: _location(ref, nodes, timeout_s) for ref in obj_refs}


def _location(ref: ray.ObjectRef[Any], nodes: list[str], timeout_s: float) -> dict[str, Any]:
    rows = ray.util.state.list_objects(filters=[("object_id", "=", ref.hex())], detail=True, timeout=timeout_s)
    stored = any(row.in_object_store for row in rows)
    sizes = [row.object_size for row in rows if row.object_size]
    spilled = any(row.spilled for row in rows)
    return {"node_ids": nodes if stored else [], "object_size": max(sizes, default=None), "did_spill": spilled}
