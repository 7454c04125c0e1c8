"""The older names, all of them. Pure tables and one function that reads them; no other file knows an old name.

Two vocabularies name one engine: `num_returns`, `ObjectRef`, `GetTimeoutError`, `address=` are the code's own words;
programs written for the first versions say `num_return_vals`, `ObjectID`, `RayTimeoutError`, `redis_address=`. An older
name means exactly what the newer one means today: where the meaning itself has changed (`ray.wait` once counted its
timeout in milliseconds and now in seconds) today's meaning rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names in the ray package: older name -> (module, name there).
EXPORTS: dict[str, tuple[str, str]] = {
    "ObjectID": ("ray.object_ref", "ObjectRef"),
    "PYTHON_MODE": ("ray._aliases", "PYTHON_MODE"),
    "SCRIPT_MODE": ("ray._aliases", "SCRIPT_MODE"),
    "SILENT_MODE": ("ray._aliases", "SILENT_MODE"),
    "WORKER_MODE": ("ray._aliases", "WORKER_MODE"),
    "LOCAL_MODE": ("ray._aliases", "LOCAL_MODE"),
    "error_info": ("ray._aliases", "error_info"),
    "errors": ("ray._aliases", "error_info"),
    "RayTaskError": ("ray.exceptions", "RayTaskError"),
    "RayActorError": ("ray.exceptions", "RayActorError"),
    "RayTimeoutError": ("ray.exceptions", "RayTimeoutError"),
}

# driver_mode= of ray.init.
SCRIPT_MODE = 0  # the ordinary one
WORKER_MODE = 1  # never given by a user
PYTHON_MODE = 2  # everything runs inline in the driver
LOCAL_MODE = PYTHON_MODE
SILENT_MODE = 3  # the ordinary one, but the driver prints nothing of its workers

# Options of @ray.remote, .options() and @ray.method.
OPTIONS: dict[str, str] = {
    "num_return_vals": "num_returns",
    "max_reconstructions": "max_restarts",
    "is_direct_call": "",  # every call is direct now
}

# Keyword arguments of ray.init; an empty new name is an argument that asks for what now always happens, or never.
INIT: dict[str, str] = {
    "redis_address": "address",
    "plasma_store_socket_name": "",
    "redis_password": "_redis_password",
    "redis_max_memory": "_redis_max_memory",
    "_plasma_directory": "plasma_directory",
    "node_ip_address": "_node_ip_address",
    "temp_dir": "_temp_dir",
    "memory": "_memory",
    "driver_object_store_memory": "_driver_object_store_memory",
    "_object_spilling_directory": "object_spilling_directory",
    "webui_host": "dashboard_host",
    "include_webui": "include_dashboard",
}

# Keyword arguments of ray.get, ray.wait and ray.put. `worker=` named the connection; there is one.
CALLS: dict[str, str] = {"object_ids": "object_refs", "object_id": "object_refs", "worker": "", "weakref": ""}

# The name under which num_custom_resource= counts.
CUSTOM_RESOURCE = "CustomResource"


def resolve(table: Mapping[str, str], given: Mapping[str, Any], of: str) -> dict[str, Any]:
    """given, its older names replaced by today's.

    Raises: TypeError: one thing was named twice.
    """
    resolved: dict[str, Any] = {}
    for name, value in given.items():
        today = table.get(name, name)
        if not today or (value is None and resolved.get(today) is not None):
            continue
        if today != name and value is not None and (given.get(today) is not None or resolved.get(today) is not None):
            raise TypeError(f"{of}: {name!r} is the older name of {today!r}, and both were given; give only {today!r}")
        if today == name or value is not None:
            resolved[today] = value
    _custom_resource(resolved, given, of)
    return resolved


def _custom_resource(resolved: dict[str, Any], given: Mapping[str, Any], of: str) -> None:
    if "num_custom_resource" not in resolved:
        return
    amount = resolved.pop("num_custom_resource")
    if amount is not None:
        resources = dict(given.get("resources") or {})
        if CUSTOM_RESOURCE in resources:
            raise TypeError(f"{of}: both num_custom_resource= and resources[{CUSTOM_RESOURCE!r}] were given; give one")
        resolved["resources"] = {**resources, CUSTOM_RESOURCE: amount}


def error_info(worker: Any = None) -> list[dict[str, Any]]:
    """The errors of this job so far, oldest first: each a dict with "type", "message", "job_id" and "timestamp"."""
    from ray import api

    errors: list[dict[str, Any]] = api.errors_of_this_job()
    return errors
