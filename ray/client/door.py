"""What a client's process asks of its own tunnel process, over a Unix socket in the client's folder: the fixed-size
messages, and `Door`, the end of the one who answers. Runs in PROCESS ray client (local_end.py), on its loop.

    request   u8 what, 3 zero, u32 number, key 28 bytes, u64 size      PIN, UNPIN, DELETE: no answer
    answer    u32 number, u8 status, 3 zero, u32 bytes, then a text    CONTAINS, PUT, FETCH, REACH

REACH is about a process, not an object: its tag stands in the key, and afterwards a socket of that process's usual name
is there to be dialled, once. Objects pass through the client's own store: for PUT the door finds the object there, for
FETCH it leaves it there.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import struct
from typing import Any, Callable

from ray._native.plasma import PlasmaClient, PlasmaError
from ray.client import objects
from ray.client.tunnel import TAG_BYTES, Tunnel
from ray.client.wire import Malformed

logger: logging.Logger = logging.getLogger(__name__)

REACH = 32
REQUEST = struct.Struct("<B3xI28sQ")
ANSWER = struct.Struct("<IB3xI")
YES, NO, FULL, LOST = 1, 0, 2, 3  # FULL: the cluster's store; LOST: any other failure; the text says more
CREATE_TIMEOUT_S = 10.0


class Door:
    """One connection of the client's process. Ends with it; requests then under way are forgotten.

    reach(tag): makes a socket of that name.  on_close(door): it has ended.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        sock: socket.socket,
        store: PlasmaClient,
        reach: Callable[[bytes], None],
        on_close: Callable[[Door], None],
    ) -> None:
        self._tunnel = tunnel
        self._sock = sock
        self._store = store
        self._reach = reach
        self._on_close = on_close
        self._partial = b""
        self._unsent = bytearray()
        self.outgoing: objects.Outgoing = objects.Outgoing(tunnel)
        # By the number of the transfer on the wire.
        self._asked: dict[int, tuple[int, bytes]] = {}  # -> (number of the request, key)
        self._incoming: dict[int, objects.Incoming] = {}
        sock.setblocking(False)
        tunnel.loop.add_reader(sock, self._readable)

    # -- from the client's process

    def _readable(self) -> None:
        try:
            data = self._sock.recv(64 << 10)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        data = self._partial + data
        whole = len(data) - len(data) % REQUEST.size
        self._partial = data[whole:]
        for what, number, key, size in REQUEST.iter_unpack(data[:whole]):
            self._request(what, number, key, size)

    def _request(self, what: int, number: int, key: bytes, size: int) -> None:
        if what in (objects.PIN, objects.UNPIN, objects.DELETE):
            self._tunnel.send(what, 0, key)
        elif what == REACH:
            try:
                self._reach(key[:TAG_BYTES])
            except OSError as error:
                self._answer(number, LOST, str(error))
            else:
                self._answer(number, YES)
        elif what in (objects.CONTAINS, objects.PUT, objects.FETCH):
            transfer = self._tunnel.next_number()
            self._asked[transfer] = number, key
            self._tunnel.send(what, transfer, objects.SIZED_KEY.pack(key, size) if what == objects.PUT else key)
        else:
            logger.error("the client's process asked for %d, which is nothing", what)
            self.close()

    def _answer(self, number: int, status: int, text: str = "") -> None:
        words = text.encode()
        self._unsent += ANSWER.pack(number, status, len(words)) + words
        self._flush()

    def _flush(self) -> None:
        if self._sock.fileno() < 0:
            return  # closed: nobody wants the answer any more
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if self._unsent:
            self._tunnel.loop.add_writer(self._sock, self._flush)
        else:
            self._tunnel.loop.remove_writer(self._sock)

    def close(self) -> None:
        self._tunnel.loop.remove_reader(self._sock)
        self._tunnel.loop.remove_writer(self._sock)
        self._sock.close()
        self._asked.clear()
        self.outgoing.clear()
        self._on_close(self)

    # -- from the server

    def frame(self, kind: int, transfer: int, payload: memoryview) -> None:
        """Raises: Malformed."""
        asked = self._asked.get(transfer)
        if asked is None:
            return  # its asker has gone
        _number, key = asked
        if kind == objects.BYTES:
            self._piece(transfer, payload)
        elif kind == objects.IS:
            self._done(transfer, YES if bytes(payload) == b"\1" else NO)
        elif kind == objects.READY:
            self._send_object(transfer, key)
        elif kind == objects.DONE:
            self._done(transfer, YES)
        elif kind == objects.FAILED:
            self._done(transfer, FULL, bytes(payload).decode("utf-8", "replace"))
        elif kind == objects.ABSENT:
            self._done(transfer, NO)
        elif kind == objects.SIZE:
            size = objects.number_of(payload)
            making = self._tunnel.loop.run_in_executor(None, self._store.create, key, size, b"", CREATE_TIMEOUT_S)
            making.add_done_callback(functools.partial(self._made, transfer, key))
        else:
            raise Malformed(f"a frame of type {kind}")

    def _done(self, transfer: int, status: int, text: str = "") -> None:
        number, _key = self._asked.pop(transfer)
        self._answer(number, status, text)

    def _send_object(self, transfer: int, key: bytes) -> None:
        buffer = self._store.get(key)
        if buffer is None:
            self._done(transfer, LOST, "the object is not in the client's own store any more")
            return
        self.outgoing.add(transfer, memoryview(buffer))

    def _made(self, transfer: int, key: bytes, making: Any) -> None:
        try:
            buffer = making.result()
        except (PlasmaError, OSError, ValueError) as error:
            if transfer in self._asked:
                self._done(transfer, LOST, f"no room in the client's own store: {error}")
            return
        if transfer not in self._asked:
            self._store.abort(key)
            return
        incoming = self._incoming[transfer] = objects.Incoming(key, buffer)
        self._tunnel.send(objects.READY, transfer)
        if len(memoryview(buffer)) == 0:
            self._whole(transfer, incoming)

    def _piece(self, transfer: int, payload: memoryview) -> None:
        incoming = self._incoming.get(transfer)
        if incoming is None:
            raise Malformed("bytes of an object that were not asked for")
        if incoming.take(payload):
            self._whole(transfer, incoming)

    def _whole(self, transfer: int, incoming: objects.Incoming) -> None:
        del self._incoming[transfer]
        self._store.seal(incoming.key)
        self._done(transfer, YES)


def path_in(folder: str | os.PathLike[str]) -> str:
    return os.path.join(folder, "door.sock")
