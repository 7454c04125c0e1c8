"""The plasma store by itself: immutable objects in shared memory, found by id, read without copying by every process.

    with ray.plasma.start_plasma_store(1 << 30) as (path, process):
        client = ray.plasma.connect(path)
        object_id = client.put({"weights": array})
        client.get(object_id)["weights"]            # a read-only view on the store's memory

The names and calls are those of `pyarrow.plasma`, which Arrow has removed: a program written for it changes its import.
Nothing of the engine is imported. Start a store by hand with `python -m ray.plasma --memory 1GB --socket PATH`.
"""

from ray._native.plasma import (
    ObjectID,
    PlasmaBuffer,
    PlasmaError,
    PlasmaObjectExists,
    PlasmaObjectNotFound,
    PlasmaStoreDied,
    PlasmaStoreFull,
)
from ray.plasma.client import ObjectNotAvailable, PlasmaClient, connect
from ray.plasma.server import start_plasma_store, store_binary

PlasmaObjectNonexistent = PlasmaObjectNotFound  # the name in pyarrow before 0.15

__all__ = [
    "ObjectID",
    "ObjectNotAvailable",
    "PlasmaBuffer",
    "PlasmaClient",
    "PlasmaError",
    "PlasmaObjectExists",
    "PlasmaObjectNonexistent",
    "PlasmaObjectNotFound",
    "PlasmaStoreDied",
    "PlasmaStoreFull",
    "connect",
    "start_plasma_store",
    "store_binary",
]
