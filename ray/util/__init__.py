"""Small libraries beside the core, each a module of its own, loaded on first use.

One module has the name of a public function, as users expect both: `_Package` sees to it that
`ray.util.placement_group` is the function, also when the module of that name has been imported.
"""

# (No `from __future__ import annotations`: it would be what `ray.util.annotations` names.)
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.actor import list_named_actors
    from ray.util import (
        annotations,
        client,
        collective,
        iter,
        metrics,
        multiprocessing,
        queue,
        scheduling_strategies,
        state,
    )
    from ray.util.actor_pool import ActorPool
    from ray.util.check_serialize import inspect_serializability
    from ray.util.client_connect import connect, disconnect
    from ray.util.debug import disable_log_once_globally, enable_periodic_logging, log_once
    from ray.util.executor import RayExecutor
    from ray.util.helpers import as_completed, map_unordered
    from ray.util.node_address import get_node_ip_address
    from ray.util.placement_group import (
        get_current_placement_group,
        get_placement_group,
        placement_group,
        placement_group_table,
        remove_placement_group,
    )
    from ray.util.serialization import deregister_serializer, register_serializer

__all__ = [
    "ActorPool",
    "RayExecutor",
    "annotations",
    "as_completed",
    "client",
    "collective",
    "connect",
    "deregister_serializer",
    "disable_log_once_globally",
    "disconnect",
    "enable_periodic_logging",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "iter",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "metrics",
    "multiprocessing",
    "placement_group",
    "placement_group_table",
    "queue",
    "register_serializer",
    "remove_placement_group",
    "scheduling_strategies",
    "state",
]

_HOME = {  # public name: module that has it; "" stands for the submodule of that name
    **dict.fromkeys(["annotations", "client", "collective", "iter", "metrics", "multiprocessing"], ""),
    **dict.fromkeys(["queue", "scheduling_strategies", "state"], ""),
    **dict.fromkeys(["disable_log_once_globally", "enable_periodic_logging", "log_once"], "ray.util.debug"),
    "ActorPool": "ray.util.actor_pool",
    "RayExecutor": "ray.util.executor",
    "as_completed": "ray.util.helpers",
    "connect": "ray.util.client_connect",
    "disconnect": "ray.util.client_connect",
    "get_node_ip_address": "ray.util.node_address",
    "get_current_placement_group": "ray.util.placement_group",
    "get_placement_group": "ray.util.placement_group",
    "placement_group": "ray.util.placement_group",
    "placement_group_table": "ray.util.placement_group",
    "remove_placement_group": "ray.util.placement_group",
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
    if not _HOME[name]:
        return importlib.import_module(f"ray.util.{name}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(types.ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets a package's attribute once it has loaded the module of that name.
        if _HOME.get(name) and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by name, as modules are: cloudpickle does that of itself for those of the plain type only.
        import importlib

        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
