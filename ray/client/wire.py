"""Frames over a connection that may break and be made again without losing one. Pure: bytes in, frames out, no socket.

Both ends of a `ray://` connection hold one `Wire` for as long as the client lives, over however many TCP connections
that takes. Every frame but ACK counts: the sender keeps it until the other end has acknowledged it, the receiver counts
what came whole. After a break both tell each other their count (`received`), and each sends again what the other lacks
(`resume`); so a frame arrives once and in order, or the whole wire ends.

    header, 12 bytes, little endian:   u32 payload bytes, u8 type, 3 zero bytes, u32 stream

A stream number names whatever the two ends take it for (tunnel.py: a Unix socket, or one transfer of an object).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from typing import Union

Buffer = Union[bytes, memoryview]

HEADER = struct.Struct("<IB3xI")
COUNT = struct.Struct("<Q")
ACK = 0  # payload: u64, how many frames have come whole
FRAME_BYTES_MAX = 1 << 20
# A receiver says how far it is after this much; a sender's memory is bounded by what it sends without hearing that.
ACK_AFTER_BYTES = 1 << 20
ACK_AFTER_FRAMES = 64
UNACKED_BYTES_HIGH = 16 << 20
# Payloads below this are copied behind their header: one buffer less for the kernel to walk.
JOIN_BYTES = 32 << 10
BUFFERS_PER_WRITE = 64
ROOM_BYTES_MIN = 64 << 10  # of a read: what TLS wants at least (TlsSocket.recv_into), and more than a segment
READ_BUFFER_BYTES = 2 * (FRAME_BYTES_MAX + ROOM_BYTES_MIN)


class Malformed(ValueError):
    """The other end sent what no end of ours sends."""


class Wire:
    """One end's memory of what it has sent and heard."""

    def __init__(self) -> None:
        self.received: int = 0  # frames that came whole
        self._buffer = bytearray(READ_BUFFER_BYTES)
        self._parsed = self._filled = 0  # what lies between is the beginning of a frame
        self._queue: deque[Buffer] = deque()  # to be written; a buffer that was written in part stands first
        self._written = 0  # bytes of the first one
        self._unacked: deque[tuple[int, tuple[Buffer, ...]]] = deque()  # (bytes, buffers), oldest first
        self._unacked_bytes = 0
        self._acked = 0  # frames of ours that the other end has
        self._since_ack_bytes = 0
        self._since_ack_frames = 0

    @property
    def congested(self) -> bool:
        """So much is on its way that whoever produces more should wait until the other end has heard of it."""
        return self._unacked_bytes >= UNACKED_BYTES_HIGH

    @property
    def wants_write(self) -> bool:
        return bool(self._queue)

    # -- sending

    def send(self, kind: int, stream: int, payload: Buffer = b"") -> None:
        """Queues a frame. payload stays in use until it is acknowledged: it must not change."""
        size = len(payload)
        if size > FRAME_BYTES_MAX:
            raise ValueError(f"payload has {size} bytes; a frame carries at most {FRAME_BYTES_MAX}")
        header = HEADER.pack(size, kind, stream)
        parts: tuple[Buffer, ...] = (header + bytes(payload),) if size < JOIN_BYTES else (header, payload)
        self._unacked.append((HEADER.size + size, parts))
        self._unacked_bytes += HEADER.size + size
        self._queue.extend(parts)

    def to_write(self) -> list[Buffer]:
        """Buffers for one sendmsg(); `wrote` says how much of them was taken."""
        buffers: list[Buffer] = []
        for buffer in self._queue:
            buffers.append(buffer)
            if len(buffers) == BUFFERS_PER_WRITE:
                break
        if self._written and buffers:
            buffers[0] = memoryview(buffers[0])[self._written :]
        return buffers

    def wrote(self, nbytes: int) -> None:
        nbytes += self._written
        while self._queue and nbytes >= len(self._queue[0]):
            nbytes -= len(self._queue.popleft())
        self._written = nbytes

    # -- receiving

    def room(self) -> memoryview:
        """Where the next bytes that come are to be written, ROOM_BYTES_MIN or more; `feed` says how many did."""
        if self._parsed == self._filled:
            self._parsed = self._filled = 0
        elif len(self._buffer) - self._parsed < HEADER.size + FRAME_BYTES_MAX + ROOM_BYTES_MIN:  # it may not fit here
            begun = bytes(self._buffer[self._parsed : self._filled])
            self._buffer[: len(begun)] = begun
            self._parsed, self._filled = 0, len(begun)
        return memoryview(self._buffer)[self._filled :]

    def feed(self, nbytes: int) -> Iterator[tuple[int, int, memoryview]]:
        """The frames (type, stream, payload) that are whole now that nbytes more came. A payload is valid until the
        next frame is asked for; the iterator must be run to its end.

        Raises: Malformed.
        """
        self._filled += nbytes
        data = memoryview(self._buffer)
        while self._filled - self._parsed >= HEADER.size:
            size, kind, stream = HEADER.unpack_from(data, self._parsed)
            if size > FRAME_BYTES_MAX:
                raise Malformed(f"a frame of {size} bytes")
            start = self._parsed + HEADER.size
            if start + size > self._filled:
                break
            self._parsed = start + size
            payload = data[start : start + size]
            if kind == ACK:
                self._hear_ack(payload)
                continue
            self.received += 1
            self._since_ack_bytes += HEADER.size + size
            self._since_ack_frames += 1
            yield kind, stream, payload
        if self._since_ack_bytes >= ACK_AFTER_BYTES or self._since_ack_frames >= ACK_AFTER_FRAMES:
            self._since_ack_bytes = self._since_ack_frames = 0
            # Not counted itself, so it is not sent again either: the next one says more.
            self._queue.append(HEADER.pack(COUNT.size, ACK, 0) + COUNT.pack(self.received))

    def _hear_ack(self, payload: memoryview) -> None:
        if len(payload) != COUNT.size:
            raise Malformed("an ACK of the wrong size")
        self._forget(COUNT.unpack(payload)[0])

    def _forget(self, acked: int) -> None:
        if not self._acked <= acked <= self._acked + len(self._unacked):
            raise Malformed(f"an acknowledgement of {acked} frames: {self._acked} were acknowledged before")
        for _ in range(acked - self._acked):
            size, _parts = self._unacked.popleft()
            self._unacked_bytes -= size
        self._acked = acked

    # -- a new connection

    def resume(self, received_there: int) -> None:
        """The connection is a new one; the other end says how many of our frames it has. The rest is sent again.

        Raises: Malformed: a number that can't be.
        """
        self._forget(received_there)
        self._parsed = self._filled = 0
        self._queue = deque(part for _size, parts in self._unacked for part in parts)
        self._written = 0
        self._since_ack_bytes = self._since_ack_frames = 0
