"""Large objects whose owner has died go, unless somebody keeps them. Node's main thread, but for asking the store.

An object's id begins with its owner's tag, of which the first four bytes are the node's number; the store doesn't
know owners. So the owners that have died are remembered for a moment - in which whoever was handed their objects says
that it keeps them (`ray/_core/heirs.pxi`) - and then the object manager is told, and the store asked once for all of
them: each object lapses, that is, it is freed as soon as nobody pins it. Later deaths and releases are the store's own
affair. Asking blocks, and a store may hang: it is done on a thread that lives for that long, one at a time. If the
store dies meanwhile, its objects have gone with it.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from ray._protocol.frames import TAG_BYTES
from ray._protocol.ids import NODE_NUMBER_BYTES

from .object_transfers import ObjectTransfers

logger = logging.getLogger("ray.node")

GATHER_S = 0.5  # deaths come in bursts, as when a program ends: one look at the store is for all of them
STORE_TIMEOUT_S = 10.0


class OrphanedObjects:
    def __init__(self, loop: Any, plasma_socket: str, transfers: ObjectTransfers) -> None:
        self._loop = loop
        self._plasma_socket = plasma_socket
        self._transfers = transfers
        self._dead: set[bytes] = set()
        self._timer: Any = None
        self._sweeping = False
        self.lapsed = 0

    def owner_died(self, prefix: bytes) -> None:
        """prefix: the tag of a process, or the four bytes with which those of a node begin."""
        self._dead.add(prefix)
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
        for prefix in dead:
            self._transfers.owner_died(prefix)
        threading.Thread(target=self._ask_store, args=(dead,), name="ray-orphans", daemon=True).start()

    def _ask_store(self, dead: set[bytes]) -> None:
        lapsed = 0
        try:
            lapsed = let_lapse(dead, self._plasma_socket)
        except OSError as error:
            logger.info("the store was not asked for objects of dead owners: %s", error)
        except Exception:  # a bug of ours; the next sweep must not suffer for it
            logger.exception("freeing the objects of dead owners failed")
        try:
            self._loop.call_soon_threadsafe(self._swept, lapsed)
        except RuntimeError:
            pass  # the loop is closed: the session has ended

    def _swept(self, lapsed: int) -> None:
        self.lapsed += lapsed
        self._sweeping = False
        if self._dead:
            self._timer = self._loop.call_later(GATHER_S, self._sweep)


def let_lapse(dead: set[bytes], plasma_socket: str) -> int:
    """Of every object of these owners; returns how many there are. Any thread. Raises: OSError: the store is gone."""
    from ray._native.plasma import PlasmaClient

    store = PlasmaClient(plasma_socket, STORE_TIMEOUT_S)
    try:
        orphans = [key for key in store.list() if key[:TAG_BYTES] in dead or key[:NODE_NUMBER_BYTES] in dead]
        for key in orphans:
            store.lapse(key)
        return len(orphans)
    finally:
        store.disconnect()
