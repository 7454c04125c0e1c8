"""Large objects whose owner has died go, unless somebody keeps them. Node's main thread, but for asking the store.

An object's id begins with its owner's tag, of which the first four bytes are the node's number; the store doesn't
know owners. So the owners that have died are remembered for a moment - in which whoever was handed their objects says
that it keeps them (`ray/_core/heirs.pxi`) - and then the object manager is told, and the store asked once for all of
them: each object lapses, that is, it is freed as soon as nobody pins it. Later deaths and releases are the store's own
affair.
"""

from __future__ import annotations

from typing import Any

from ray._protocol.frames import TAG_BYTES
from ray._protocol.ids import NODE_NUMBER_BYTES

from .object_transfers import ObjectTransfers
from .store_errands import Items, StoreErrands


class OrphanedObjects:
    def __init__(self, loop: Any, plasma_socket: str, transfers: ObjectTransfers) -> None:
        self._transfers = transfers
        self._errands = StoreErrands(
            loop, plasma_socket, "objects of dead owners", self._tell_transfers, let_lapse, self._count
        )
        self.lapsed = 0

    def owner_died(self, prefix: bytes) -> None:
        """prefix: the tag of a process, or the four bytes with which those of a node begin."""
        self._errands.add({prefix: None})

    def close(self) -> None:
        self._errands.close()

    def _tell_transfers(self, dead: Items) -> Items:
        for prefix in dead:
            self._transfers.owner_died(prefix)
        return dead

    def _count(self, lapsed: int) -> None:
        self.lapsed += lapsed


def let_lapse(store: Any, dead: Items) -> int:
    """Of every object of these owners; returns how many there are. Any thread. Raises: OSError: the store is gone."""
    orphans = [key for key in store.list() if key[:TAG_BYTES] in dead or key[:NODE_NUMBER_BYTES] in dead]
    for key in orphans:
        store.lapse(key)
    return len(orphans)
