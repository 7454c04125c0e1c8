"""Objects of a `ray://` client: the frames by which they move between the store of the cluster and the client's own.

The client has a plasma store of its own, where its process writes and reads as any driver does; what it puts there is
copied to the cluster's store before the put returns, and what it reads of the cluster's is copied here first (and kept,
until memory is needed). The cluster's store is the truth: pins, deletions and "is it still there?" go to it.

    PIN UNPIN DELETE     key                          nothing comes back
    CONTAINS, IS         key; u8 1 or 0
    PUT                  key, u64 bytes               READY (or FAILED), BYTES ..., DONE (or FAILED): it is pinned
    FETCH                key                          SIZE u64 (or ABSENT), READY, BYTES ...

The stream number of a frame is that of its request. Transfers share the wire in pieces of PIECE_BYTES, so that calls
pass between them; they stop while it is congested.
"""

from __future__ import annotations

import struct
from typing import Any

from ray.client.tunnel import Tunnel
from ray.client.wire import Malformed

PIN, UNPIN, DELETE, CONTAINS, IS = 16, 17, 18, 19, 20
PUT, READY, BYTES, DONE, FAILED = 21, 22, 23, 24, 25
FETCH, SIZE, ABSENT = 26, 27, 28

KEY_BYTES = 28
SIZED_KEY = struct.Struct("<28sQ")
NUMBER = struct.Struct("<Q")
PIECE_BYTES = 256 << 10


class Outgoing:
    """Objects that leave through a tunnel, in turns."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._turns: dict[int, memoryview] = {}

    def add(self, number: int, data: memoryview) -> None:
        """data is sent as BYTES of that number; the view keeps its object pinned until it has arrived."""
        if len(data):
            self._turns[number] = data
            self.go_on()

    def go_on(self) -> None:
        while self._turns and not self._tunnel.wire.congested:
            number, data = next(iter(self._turns.items()))
            del self._turns[number]
            self._tunnel.send(BYTES, number, data[:PIECE_BYTES])
            if len(data) > PIECE_BYTES:
                self._turns[number] = data[PIECE_BYTES:]

    def clear(self) -> None:
        self._turns.clear()


class Incoming:
    """An object of which pieces arrive. target: the writable view of it in a store."""

    def __init__(self, key: bytes, buffer: Any) -> None:
        self.key = key
        self.buffer = buffer
        self._target = memoryview(buffer)
        self._filled = 0

    def take(self, piece: memoryview) -> bool:
        """Whether it is whole now. Raises: Malformed."""
        end = self._filled + len(piece)
        if end > len(self._target):
            raise Malformed("more bytes than were announced of an object")
        self._target[self._filled : end] = piece
        self._filled = end
        return end == len(self._target)


def key_of(payload: memoryview) -> bytes:
    if len(payload) != KEY_BYTES:
        raise Malformed("an object's key of the wrong size")
    return bytes(payload)


def sized_key_of(payload: memoryview) -> tuple[bytes, int]:
    if len(payload) != SIZED_KEY.size:
        raise Malformed("an object's key and size of the wrong size")
    key, size = SIZED_KEY.unpack(payload)
    return key, size


def number_of(payload: memoryview) -> int:
    if len(payload) != NUMBER.size:
        raise Malformed("a number of the wrong size")
    return int(NUMBER.unpack(payload)[0])
