"""The server's side of a client's objects: carries out in the cluster's store what the client asks (objects.py).

One per client, in the process `ray client server`, on its loop. Its PlasmaClient holds the client's pins: they go with
it when the client ends, however it does. If the store dies, so do its pins and objects; the next request connects to
the store that the node has started since, and meanwhile objects are absent, which the client repairs or reports.
"""

from __future__ import annotations

import functools

from ray._native.plasma import (
    PlasmaBuffer,
    PlasmaClient,
    PlasmaError,
    PlasmaObjectNotFound,
    PlasmaStoreDied,
)
from ray.client import objects
from ray.client.tunnel import Tunnel
from ray.client.wire import Malformed

CREATE_TIMEOUT_S = 10.0  # how long a put waits for room, as a driver's own does (docs/config.md)


class Desk:
    def __init__(self, tunnel: Tunnel, plasma_socket: str) -> None:
        self._tunnel = tunnel
        self._plasma_socket = plasma_socket
        self._client: PlasmaClient | None = None
        self._incoming: dict[int, objects.Incoming] = {}
        self._fetched: dict[int, memoryview] = {}  # announced, not yet wanted
        self.outgoing: objects.Outgoing = objects.Outgoing(tunnel)

    def frame(self, kind: int, number: int, payload: memoryview) -> None:
        """Raises: Malformed."""
        if kind == objects.BYTES:
            self._piece(number, payload)
        elif kind == objects.PIN:
            self._try(PlasmaClient.pin, objects.key_of(payload))
        elif kind == objects.UNPIN:
            self._try(PlasmaClient.unpin, objects.key_of(payload))
        elif kind == objects.DELETE:
            self._try(PlasmaClient.delete, objects.key_of(payload))
        elif kind == objects.CONTAINS:
            there = self._try(PlasmaClient.contains, objects.key_of(payload))
            self._tunnel.send(objects.IS, number, b"\1" if there else b"\0")
        elif kind == objects.PUT:
            self._put(number, *objects.sized_key_of(payload))
        elif kind == objects.FETCH:
            self._fetch(number, objects.key_of(payload))
        elif kind == objects.READY:
            view = self._fetched.pop(number, None)
            if view is not None:
                self.outgoing.add(number, view)
        else:
            raise Malformed(f"a frame of type {kind}")

    def close(self) -> None:
        self.outgoing.clear()
        self._fetched.clear()
        for incoming in self._incoming.values():
            self._try(PlasmaClient.abort, incoming.key)
        self._incoming.clear()
        if self._client is not None:
            self._client.disconnect()
            self._client = None

    # ------------------------------------------------------------------------------------------------------------

    def _store(self) -> PlasmaClient:
        """Raises: OSError, PlasmaStoreDied: it is not there just now."""
        if self._client is None or not self._client.alive:
            self._client = PlasmaClient(self._plasma_socket)
        return self._client

    def _try(self, method: object, key: bytes) -> object:
        """What the store says, or None if it can't: the object, or all of the store, is not there any more."""
        try:
            return method(self._store(), key)  # type: ignore[operator]
        except (PlasmaObjectNotFound, PlasmaStoreDied, OSError):
            return None

    def _fetch(self, number: int, key: bytes) -> None:
        buffer = self._try(PlasmaClient.get, key)
        if not isinstance(buffer, PlasmaBuffer):
            self._tunnel.send(objects.ABSENT, number)
            return
        view = memoryview(buffer)
        self._tunnel.send(objects.SIZE, number, objects.NUMBER.pack(len(view)))
        self._fetched[number] = view

    def _put(self, number: int, key: bytes, size: int) -> None:
        # In a thread: the store may have no room for some seconds, and the other clients must not wait for that.
        creating = self._tunnel.loop.run_in_executor(None, self._create, key, size)
        creating.add_done_callback(functools.partial(self._created, number, key))

    def _create(self, key: bytes, size: int) -> PlasmaBuffer:
        store = self._store()
        if store.contains(key):
            store.delete(key)
        return store.create(key, size, b"", CREATE_TIMEOUT_S)

    def _created(self, number: int, key: bytes, creating: object) -> None:
        try:
            buffer = creating.result()  # type: ignore[attr-defined]
        except (PlasmaError, OSError, ValueError) as error:
            if not self._tunnel.closed:
                self._tunnel.send(objects.FAILED, number, str(error).encode())
            return
        if self._tunnel.closed:
            self._try(PlasmaClient.abort, key)
            return
        incoming = self._incoming[number] = objects.Incoming(key, buffer)
        self._tunnel.send(objects.READY, number)
        if len(memoryview(buffer)) == 0:
            self._whole(number, incoming)

    def _piece(self, number: int, payload: memoryview) -> None:
        incoming = self._incoming.get(number)
        if incoming is None:
            return  # the put has failed, and the client has been told
        if incoming.take(payload):
            self._whole(number, incoming)

    def _whole(self, number: int, incoming: objects.Incoming) -> None:
        del self._incoming[number]
        try:
            store = self._store()
            store.seal(incoming.key)
            store.pin(incoming.key)
        except (PlasmaError, OSError) as error:
            self._tunnel.send(objects.FAILED, number, str(error).encode())
            return
        self._tunnel.send(objects.DONE, number)
