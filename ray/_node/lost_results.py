"""Large results that nobody will ever ask for: their worker died, and its answer never came. Node's main thread, but
for the store's part of it.

A result for a caller on another node is held by our store until the caller frees it, and the caller hears of it by the
worker's answer. If the connection between the two ends before that has come through, the caller repeats the call, or
fails it, and tells us which results it will not free (`results_lost`). They are looked for among what *that* process
has written: the call may have run again here meanwhile, and its result has the same id. If the store dies meanwhile,
they have gone with it. If this news is lost, they stay until the caller's end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from .orphans import GATHER_S, STORE_TIMEOUT_S

logger = logging.getLogger("ray.node")


class LostResults:
    def __init__(
        self, loop: Any, plasma_socket: str, pid_of_dead: Callable[[bytes], int], free: Callable[[bytes], object]
    ) -> None:
        """pid_of_dead(tag): that a worker had; 0: it lives. free(key): has the object manager free it here, and
        wherever it has sent it. Both are called on the main thread."""
        self._loop, self._plasma_socket, self._pid_of_dead, self._free = loop, plasma_socket, pid_of_dead, free
        self._lost: dict[bytes, bytes] = {}  # key -> tag of its writer
        self._timer: Any = None
        self._asking = False
        self.freed = 0

    def forget(self, tag: bytes, keys: list[bytes]) -> None:
        """keys: of what that worker may have written before it died."""
        self._lost.update(dict.fromkeys(keys, tag))
        if self._lost and self._timer is None and not self._asking:
            # Later: its end, and what it has said to the object manager at last, may still have to be read. One that
            # lives on behind a broken connection may be running the call again for the same caller.
            self._timer = self._loop.call_later(GATHER_S, self._look)

    def close(self) -> None:
        """The session ends, and the store with it. A thread that is still asking is a daemon."""
        if self._timer is not None:
            self._timer.cancel()
        self._asking = True

    def _look(self) -> None:
        self._timer, self._asking = None, True
        lost, self._lost = {key: self._pid_of_dead(tag) for key, tag in self._lost.items()}, {}
        threading.Thread(target=self._ask_store, args=(lost,), name="ray-lost-results", daemon=True).start()

    def _ask_store(self, lost: dict[bytes, int]) -> None:
        found: list[bytes] = []
        try:
            found = written_by(lost, self._plasma_socket)
        except OSError as error:
            logger.info("the store was not asked for results that nobody knows of: %s", error)
        except Exception:  # a bug of ours; the next look must not suffer for it
            logger.exception("looking for results that nobody knows of failed")
        try:
            self._loop.call_soon_threadsafe(self._looked, found)
        except RuntimeError:
            pass  # the loop is closed: the session has ended

    def _looked(self, found: list[bytes]) -> None:
        for key in found:
            self._free(key)
        self.freed += len(found)
        self._asking = False
        self.forget(b"", [])


def written_by(lost: dict[bytes, int], plasma_socket: str) -> list[bytes]:
    """Those of the keys that are in the store, by the process named there. Any thread. Raises: OSError: it is gone."""
    from ray._native.plasma import PlasmaClient

    store = PlasmaClient(plasma_socket, STORE_TIMEOUT_S)
    try:
        rows = store.list()
        return [key for key, pid in lost.items() if key in rows and rows[key]["creator_pid"] == pid]
    finally:
        store.disconnect()
