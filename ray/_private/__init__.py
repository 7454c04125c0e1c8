"""The few names behind Ray's own `ray._private` and `ray._raylet` that well-known libraries reach for, and who does.

Nothing else is here: of a library's private parts only what real programs import is promised. All are public elsewhere.

    ray._private.services.get_node_ip_address    modin (lazy execution)      = ray.util.get_node_ip_address
    ray._private.worker.global_worker.mode       daft (which runner to take)
    ray._private.worker.blocking_get_inside_async_warned    daft (its runner blocks in an async actor, and knows)
    ray._raylet.ObjectRef                        hamilton (RayGraphAdapter)  = ray.ObjectRef (ray/_raylet.py)
"""

import sys
from types import ModuleType

from ray._private import worker as worker
from ray.util.node_address import get_node_ip_address

services = ModuleType("ray._private.services", "See ray._private.")
services.get_node_ip_address = get_node_ip_address  # type: ignore[attr-defined]
sys.modules[services.__name__] = services

__all__ = ["services", "worker"]
