"""Has the kernel write the append-only files of the Redis servers to the disk, soon after they have grown.

For sessions that can be resumed after the machine has lost its power. Runs in the node process, beside its loop. The
server itself is told not to flush (`redis_server.py` says why). What a death of processes could lose is in the page
cache by the time it is acknowledged; what a power cut can lose is bounded here: SYNC_AFTER_S, and what one flush takes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

SYNC_AFTER_S = 1.0  # a busy control plane is flushed once in so long, an idle one never


class DiskSync:
    """`soon()` after each write; then the files below `folder` are flushed once, by a thread, while the loop goes on.

    on_problem: called as (text) the first time the disk refuses.
    """

    def __init__(self, folder: str, loop: asyncio.AbstractEventLoop, on_problem: Callable[[str], None]) -> None:
        self.folder = folder
        self.syncs = 0
        self._loop = loop
        self._on_problem = on_problem
        self._refused = False
        self._due = self._running = self._again = False

    def soon(self) -> None:
        """Something was acknowledged. Costs nothing while a flush is due."""
        if self._running:
            self._again = True  # it may have come too late for the flush under way
        elif not self._due:
            self._due = True
            self._loop.call_later(SYNC_AFTER_S, self._start)

    def _start(self) -> None:
        self._due, self._running = False, True
        self._loop.run_in_executor(None, sync_files, self.folder).add_done_callback(self._ended)

    def _ended(self, done: asyncio.Future[None]) -> None:
        self._running = False
        self.syncs += 1
        error = None if done.cancelled() else done.exception()
        if error is not None and not self._refused:
            self._refused = True
            self._on_problem(
                f"the control plane's files in {self.folder} could not be written to the disk: {error}; until they "
                "are, a power cut loses what it has written since"
            )
        if self._again:
            self._again = False
            self.soon()


def sync_files(folder: str) -> None:
    """Blocks until every append-only file below folder, and its name, is on the disk. Raises: OSError."""
    for path, _, files in os.walk(folder):
        mine = [os.path.join(path, name) for name in files if name.startswith("appendonly")]
        for file in [*mine, path] if mine else []:
            try:
                fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # rewritten meanwhile, by a server that flushes the new one itself before it gets the name
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
