"""The bytes that Redis speaks (RESP, version 2): commands out, replies in. No I/O.

Why not the `redis` client's own: importing it costs 58 ms of processor time and 10.5 MB of memory in a process that
must start in a tenth of a second and idle in a few megabytes (docs/internals/control_plane.md has the numbers), and it
cannot repeat the writes that a killed server never acknowledged, which is most of what `store.py` is. The tests use
that client as the judge: what it encodes and decodes, this must too, and it must read our tables.

A reply is `bytes` (bulk), `str` (status), `int`, `None`, `list`, or a `ReplyError` instance, handed out and not raised:
it belongs to one command, not to the connection. Anything that is not RESP, or larger than the bounds, raises
`ProtocolError`: close.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Union

LINE_BYTES_MAX = 64 * 1024
BULK_BYTES_MAX = 512 * 1024 * 1024  # Redis's own bound of a string
ARRAY_ITEMS_MAX = 16 * 1024 * 1024
DEPTH_MAX = 8  # XRANGE nests three deep

Arg = Union[bytes, str, int]
Reply = Union[bytes, str, int, None, "ReplyError", list["Reply"]]


class ProtocolError(Exception):
    """The peer does not speak RESP, or exceeds a bound; the connection cannot be used any further."""


class ReplyError(Exception):
    """An error reply. `code` is its first word, such as NOPERM or OOM."""

    @property
    def code(self) -> str:
        return str(self).split(" ", 1)[0]


def encode(args: Iterable[Arg]) -> bytes:
    """One command as an array of bulk strings."""
    parts: list[bytes] = []
    count = 0
    for arg in args:
        if isinstance(arg, str):
            arg = arg.encode()
        elif isinstance(arg, int):
            arg = b"%d" % arg
        parts.append(b"$%d\r\n%b\r\n" % (len(arg), arg))
        count += 1
    return b"*%d\r\n" % count + b"".join(parts)


class Parser:
    """Whole replies out of a stream cut anywhere. Each byte is looked at once, however the stream is cut: an array that
    is half here is kept on a stack, and a bulk that is half here costs one look at its header per feed."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._stack: list[tuple[list[Reply], int]] = []  # arrays being filled, and how many items each will have

    def feed(self, data: bytes) -> list[Reply]:
        """Takes the next bytes; returns the replies that are now complete. Raises: ProtocolError."""
        buffer = self._buffer
        buffer += data
        replies: list[Reply] = []
        at = 0
        while True:
            end = buffer.find(b"\r\n", at)
            if end < 0:
                if len(buffer) - at > LINE_BYTES_MAX:
                    raise ProtocolError(f"a line of more than {LINE_BYTES_MAX} bytes")
                break
            kind = buffer[at]
            value: Reply
            if kind == 0x24:  # $ bulk
                size = _length(buffer[at + 1 : end], BULK_BYTES_MAX)
                if size < 0:
                    value = None
                    at = end + 2
                else:
                    begin = end + 2
                    if len(buffer) < begin + size + 2:
                        break
                    value = bytes(memoryview(buffer)[begin : begin + size])
                    if buffer[begin + size : begin + size + 2] != b"\r\n":
                        raise ProtocolError("a bulk string without its end")
                    at = begin + size + 2
            elif kind == 0x2A:  # * array
                size = _length(buffer[at + 1 : end], ARRAY_ITEMS_MAX)
                at = end + 2
                if size > 0:
                    if len(self._stack) == DEPTH_MAX:
                        raise ProtocolError(f"arrays nested more than {DEPTH_MAX} deep")
                    self._stack.append(([], size))
                    continue
                value = None if size < 0 else []
            else:
                text = buffer[at + 1 : end]
                at = end + 2
                if kind == 0x2B:  # + status
                    value = text.decode("utf-8", "replace")
                elif kind == 0x3A:  # : integer
                    value = _integer(text)
                elif kind == 0x2D:  # - error
                    value = ReplyError(text.decode("utf-8", "replace"))
                else:
                    raise ProtocolError(f"a reply that begins with byte {kind:#04x}")
            while self._stack:
                items, size = self._stack[-1]
                items.append(value)
                if len(items) < size:
                    break
                value = self._stack.pop()[0]
            else:
                replies.append(value)
        del buffer[:at]
        return replies


def _integer(text: bytearray) -> int:
    try:
        return int(text)
    except ValueError:
        raise ProtocolError(f"not an integer: {bytes(text[:32])!r}") from None


def _length(text: bytearray, limit: int) -> int:
    size = _integer(text)
    if not -1 <= size <= limit:
        raise ProtocolError(f"a length of {size}; the bound is {limit}")
    return size
