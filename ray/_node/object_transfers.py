"""The node's line to the object manager of its store: what only the node can tell it. Node's main thread.

The gate accepts connections of other nodes' stores and hands them over (`adopt`); the object manager must know where
that gate is reached (`reached_at`), so that stores can be referred to ours; and owners on other nodes that have died
must not keep their results here, unless others do (`owner_died`). Each is one small write to a thread that reads
promptly. A store that dies takes its holds and connections with it; the next one is started with where the gate is
(`StoreProcess.reached_at`), and told so when it is back, since the gate may have been opened meanwhile. The rest is not
repeated: other stores dial again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

logger = logging.getLogger("ray.node")


class ObjectTransfers:
    def __init__(self, objects_socket: str) -> None:
        self._socket = objects_socket
        self._line: Any = None  # None until it is needed, and while the store is down
        self._reached_at: tuple[str, int] | None = None

    def reached_at(self, host: str, port: int) -> None:
        """Where the gate of this node listens, in numbers."""
        self._reached_at = (host, port)
        self._tell("reached_at", host, port)

    def adopt(self, fd: int) -> bool:
        """Hands over a connection with destination STORE whose preamble was read. fd stays the caller's to close.

        Returns: False: the store is down, or this session has no object manager; the peer's store will try again.
        """
        return self._tell("adopt", fd)

    def owner_died(self, tag: bytes) -> None:
        """Lets go of what is held here for the process `tag`, or, by the first four bytes, for all of a node."""
        self._tell("owner_dead", tag)

    def free(self, key: bytes) -> None:
        """An object here that nobody wants any more, and its copies elsewhere."""
        self._tell("free", key)

    def peer_down(self, host: str, port: int) -> None:
        """The node whose gate is there is dead: what is fetched from it is fetched elsewhere, or is lost, at once."""
        self._tell("peer_down", host, port)

    async def replicate(self, key: bytes, host: str, port: int, hold: bool) -> None:
        """Has the object fetched from the store of the node whose gate is there. hold: for its owner, who is elsewhere;
        else it's for a process here, and may be evicted until that has pinned it.

        Raises: OSError: our store is down.  RuntimeError: the other has not got it, or there is no room."""
        from ray._native.transfer import TransferLine

        line = TransferLine(self._socket)  # of its own: its end drops the pin of the pull
        try:
            _, _, outcome, text = await _answer(line, line.pull(key, [(_numeric(host), port)]))
            if outcome != "here":
                raise RuntimeError(f"no copy could be made: {text}")
            if hold and not (await _answer(line, line.hold(key)))[2]:
                raise RuntimeError("it was freed before it could be held")
        finally:
            line.close()

    def store_back(self) -> None:
        self.close()
        if self._reached_at is not None:
            self._tell("reached_at", *self._reached_at)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _tell(self, method: str, *args: Any) -> bool:
        if not os.path.exists(self._socket):
            return False  # a session without other nodes, or a store that is about to start
        from ray._native.transfer import TransferLine

        try:
            if self._line is None:
                self._line = TransferLine(self._socket)
                # A new store, perhaps: one that hasn't been told who it is is refused by others.
                if self._reached_at is not None and method != "reached_at":
                    self._line.reached_at(*self._reached_at)
            getattr(self._line, method)(*args)
            self._line.receive()  # answers that nobody waits for
        except OSError as error:
            logger.info("the object manager was not told %s: %s", method, error)
            self.close()
            return False
        return True


async def _answer(line: Any, request: int) -> tuple[Any, ...]:
    """What the object manager says to a request. Raises: OSError: it has ended."""
    loop = asyncio.get_running_loop()
    while True:
        for event in line.receive():
            if event[1] == request:
                return tuple(event)
        readable = asyncio.Event()
        loop.add_reader(line.fd, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(line.fd)


def _numeric(host: str) -> str:
    return "127.0.0.1" if host.startswith("unix:") else host  # a node on this machine: calls take its sockets
