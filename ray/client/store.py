"""The object store as a `ray://` client's engine sees it. Runs in the client's process, any thread.

A `RemoteStore` is a PlasmaClient of the client's own store (where values are written and read in place, as everywhere)
whose further steps reach the cluster's: sealing copies the object there before it returns, a get copies one here that
isn't yet, pins and deletions are told. `ray client` (door.py) does the copying. If that process is gone, so is the
session: every call raises PlasmaStoreDied.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

from ray._native.plasma import PlasmaClient, PlasmaStoreDied, PlasmaStoreFull
from ray.client import door, objects


class Asker:
    """This process's connection to the door. One question at a time; what needs no answer only waits for the socket."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(path)

    def tell(self, what: int, key: bytes) -> None:
        with self._lock:
            self._send(what, 0, key, 0)

    def ask(self, what: int, key: bytes, size: int = 0) -> tuple[int, str]:
        """(status, text). Raises: PlasmaStoreDied. Blocks: until it is done."""
        with self._lock:
            self._number = (self._number + 1) & 0xFFFFFFFF
            self._send(what, self._number, key, size)
            try:
                _number, status, nbytes = door.ANSWER.unpack(self._receive(door.ANSWER.size))
                return status, self._receive(nbytes).decode("utf-8", "replace")
            except OSError as error:
                raise PlasmaStoreDied(f"the connection to the cluster is over: {error}") from None

    def _send(self, what: int, number: int, key: bytes, size: int) -> None:
        try:
            self._sock.sendall(door.REQUEST.pack(what, number, key, size))
        except OSError as error:
            raise PlasmaStoreDied(f"the connection to the cluster is over: {error}") from None

    def _receive(self, nbytes: int) -> bytes:
        message = b""
        while len(message) < nbytes:
            piece = self._sock.recv(nbytes - len(message))
            if not piece:
                raise ConnectionError("the process `ray client` has ended")
            message += piece
        return message

    def close(self) -> None:
        self._sock.close()


class RemoteStore(PlasmaClient):
    """See above. `create`, `abort` and `copy` are the client's own store's."""

    def __new__(cls, plasma_socket: str, asker: Asker) -> RemoteStore:
        return super().__new__(cls, plasma_socket)  # type: ignore[call-arg]  # a compiled class connects in __new__

    def __init__(self, plasma_socket: str, asker: Asker) -> None:
        self._asker = asker
        self._pinned_by_put: set[bytes] = set()  # sealed just now: the pin that follows is there already

    def disconnect(self) -> None:
        super().disconnect()
        self._asker.close()

    def seal(self, key: bytes) -> None:
        super().seal(key)
        buffer = super().get(key)
        size = len(buffer) if buffer is not None else 0
        status, text = self._asker.ask(objects.PUT, key, size)
        if status != door.YES:
            super().delete(key)
            raise PlasmaStoreFull(text) if status == door.FULL else PlasmaStoreDied(text)
        self._pinned_by_put.add(key)

    def get(self, key: bytes, give_up_ns: int = 2**63 - 1) -> Any:
        """give_up_ns: for this machine's disk; how long the server may take, its own settings say."""
        found = super().get(key, give_up_ns)
        if found is not None:
            return found
        status, text = self._asker.ask(objects.FETCH, key)
        if status == door.NO:
            return None
        if status != door.YES:
            raise PlasmaStoreFull(text)
        return super().get(key, give_up_ns)

    def pin(self, key: bytes) -> bool:
        if key in self._pinned_by_put:
            self._pinned_by_put.discard(key)
        else:
            # Not waited for: whether it is there, the get finds out. Nobody can delete it before the pin arrives, since
            # whoever holds it for us hears that we have it through the same connection, later.
            self._asker.tell(objects.PIN, key)
        return True

    def unpin(self, key: bytes) -> None:
        self._asker.tell(objects.UNPIN, key)

    def contains(self, key: bytes) -> bool:
        return self._asker.ask(objects.CONTAINS, key)[0] == door.YES

    def delete(self, key: bytes) -> bool:
        super().delete(key)
        self._asker.tell(objects.DELETE, key)
        return True
