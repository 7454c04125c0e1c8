"""Small libraries beside the core, each a module of its own, loaded on first use.

No module here has the name of a public function: importing it would put the module in the function's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.actor import list_named_actors
    from ray.util.actor_pool import ActorPool
    from ray.util.check_serialize import inspect_serializability
    from ray.util.client_connect import connect, disconnect
    from ray.util.executor import RayExecutor
    from ray.util.helpers import as_completed, map_unordered
    from ray.util.node_address import get_node_ip_address
    from ray.util.serialization import deregister_serializer, register_serializer

__all__ = [
    "ActorPool",
    "RayExecutor",
    "as_completed",
    "connect",
    "deregister_serializer",
    "disconnect",
    "get_node_ip_address",
    "inspect_serializability",
    "list_named_actors",
    "map_unordered",
    "register_serializer",
]

_HOME = {
    "ActorPool": "ray.util.actor_pool",
    "RayExecutor": "ray.util.executor",
    "as_completed": "ray.util.helpers",
    "connect": "ray.util.client_connect",
    "disconnect": "ray.util.client_connect",
    "get_node_ip_address": "ray.util.node_address",
    "inspect_serializability": "ray.util.check_serialize",
    "list_named_actors": "ray.actor",
    "map_unordered": "ray.util.helpers",
    "register_serializer": "ray.util.serialization",
    "deregister_serializer": "ray.util.serialization",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'ray.util' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
