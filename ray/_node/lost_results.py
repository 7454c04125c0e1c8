"""Large results that nobody will ever ask for: their worker died, and its answer never came. Node's main thread, but
for asking the store.

A result for a caller on another node is held by our store until the caller frees it, and the caller hears of it by the
worker's answer. If the connection between the two ends before that has come through, the caller repeats the call, or
fails it, and tells us which results it will not free (`results_lost`). They are looked for among what *that* process
has written: the call may have run again here meanwhile, and its result has the same id. If this news is lost, they stay
until the caller's end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .store_errands import Items, StoreErrands


class LostResults:
    def __init__(
        self, loop: Any, plasma_socket: str, pid_of_dead: Callable[[bytes], int], free: Callable[[bytes], object]
    ) -> None:
        """pid_of_dead(tag): that a worker had; 0: it lives. free(key): has the object manager free it here, and
        wherever it has sent it. Both are called on the main thread."""
        self._pid_of_dead, self._free = pid_of_dead, free
        self._errands = StoreErrands(
            loop, plasma_socket, "results that nobody knows of", self._writers, written_by, self._free_all
        )
        self.freed = 0

    def forget(self, tag: bytes, keys: list[bytes]) -> None:
        """keys: of what that worker may have written before it died."""
        self._errands.add(dict.fromkeys(keys, tag))

    def close(self) -> None:
        self._errands.close()

    def _writers(self, lost: Items) -> Items:
        # Only now: its end, and what it has said to the object manager at last, may still have had to be read. One that
        # lives on behind a broken connection may be running the call again for the same caller.
        return {key: self._pid_of_dead(tag) for key, tag in lost.items()}

    def _free_all(self, keys: list[bytes]) -> None:
        for key in keys:
            self._free(key)
        self.freed += len(keys)


def written_by(store: Any, pids: Items) -> list[bytes]:
    """Those of the keys that are in the store, by the process named there. Any thread. Raises: OSError: it is gone."""
    rows = store.list()
    return [key for key, pid in pids.items() if key in rows and rows[key]["creator_pid"] == pid]
