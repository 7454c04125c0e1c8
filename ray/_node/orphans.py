"""Large objects whose owner has died are taken out of the store. Node's main thread, but for the store's part of it.

An object's id begins with its owner's tag. Nobody can read an object once its owner is dead (`OwnerDiedError`), and the
store doesn't know owners: in a session that goes on, what each program left would only go when room is short. So the
owners that have died are remembered for a moment, and then the store is asked once for all of them. Asking blocks, and
a store may hang: it is done on a thread that lives for that long, one at a time. Bytes that somebody still has mapped
stay until he lets go, as with every deletion. If the store dies meanwhile, its objects have gone with it.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from ray._protocol.frames import TAG_BYTES

logger = logging.getLogger("ray.node")

GATHER_S = 0.5  # deaths come in bursts, as when a program ends: one look at the store is for all of them
STORE_TIMEOUT_S = 10.0


class OrphanedObjects:
    def __init__(self, loop: Any, plasma_socket: str) -> None:
        self._loop = loop
        self._plasma_socket = plasma_socket
        self._dead: set[bytes] = set()
        self._timer: Any = None
        self._sweeping = False
        self.deleted = 0

    def owner_died(self, tag: bytes) -> None:
        self._dead.add(tag)
        if self._timer is None and not self._sweeping:
            self._timer = self._loop.call_later(GATHER_S, self._sweep)

    def close(self) -> None:
        """The session ends, and the store with it. A thread that is still asking is a daemon."""
        if self._timer is not None:
            self._timer.cancel()
        self._sweeping = True

    def _sweep(self) -> None:
        self._timer = None
        self._sweeping = True
        dead, self._dead = self._dead, set()
        threading.Thread(target=self._ask_store, args=(dead,), name="ray-orphans", daemon=True).start()

    def _ask_store(self, dead: set[bytes]) -> None:
        deleted = 0
        try:
            deleted = delete_owned_by(dead, self._plasma_socket)
        except OSError as error:
            logger.info("the store was not asked for objects of dead owners: %s", error)
        except Exception:  # a bug of ours; the next sweep must not suffer for it
            logger.exception("deleting the objects of dead owners failed")
        try:
            self._loop.call_soon_threadsafe(self._swept, deleted)
        except RuntimeError:
            pass  # the loop is closed: the session has ended

    def _swept(self, deleted: int) -> None:
        self.deleted += deleted
        self._sweeping = False
        if self._dead:
            self._timer = self._loop.call_later(GATHER_S, self._sweep)


def delete_owned_by(dead: set[bytes], plasma_socket: str) -> int:
    """Deletes every object of these owners; returns how many. Any thread. Raises: OSError: the store is gone."""
    from ray._native.plasma import PlasmaClient

    store = PlasmaClient(plasma_socket, STORE_TIMEOUT_S)
    try:
        orphans = [key for key in store.list() if key[:TAG_BYTES] in dead]
        for key in orphans:
            store.delete(key)
        return len(orphans)
    finally:
        store.disconnect()
