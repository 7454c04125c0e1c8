"""The one TCP port of a node: reads for whom a connection is, and passes it on. Node's main thread.

Strangers may connect here, so this file believes nothing: it takes exactly PREAMBLE_BYTES, compares them with what they
must be, and hands the descriptor to one of three: the node itself, one of its cores, or plasma_store, each of which
demands the proof (cpp/channel/network_proof.h) before it interprets a byte. Whoever sends anything else, or too little
for PREAMBLE_S, is closed, counted and mentioned in the log, at most a line a second. A connection is in exactly one of
*reading* (in `_reading`), passed on (no longer ours) and closed.

Only a node that is part of a cluster has a Gate (`config["cluster_port"]`); a single machine listens on nothing. When
the core at the other end has died, that is said (GONE_MAGIC) before the connection is closed: whoever dialled takes it
for dead then, and dials again after any other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable

from ray._native.channel import TcpListener, hand_over
from ray._protocol.frames import (
    DESTINATION_CORE,
    DESTINATION_NODE,
    DESTINATION_STORE,
    GONE_MAGIC,
    PREAMBLE_BYTES,
    PREAMBLE_MAGIC,
    PREAMBLE_VERSION,
    TAG_BYTES,
)

logger = logging.getLogger("ray.node")

PREAMBLE_S = 5.0  # for the whole preamble, as for a hello: one packet, and a slow network's retransmissions of it
READING_MAX = 256  # connections whose preamble isn't complete; above it the oldest makes room
ACCEPTS_MAX = 64  # taken per wake-up, so that a storm of them leaves the loop time for others
LOG_S = 1.0  # between two lines about strangers: they must not be able to fill the disk


class Refused(Exception):
    """What is wrong with a preamble, or why nobody takes the connection."""


def parse_preamble(preamble: bytes) -> tuple[int, bytes]:
    """Returns (destination, tag; empty unless for a core). Raises Refused for anything but what DialTcp sends."""
    version = int.from_bytes(preamble[8:10], "little")
    destination, zero, tag = preamble[10], preamble[11:16], preamble[16:PREAMBLE_BYTES]
    if preamble[:8] != PREAMBLE_MAGIC:
        raise Refused("its first bytes are not this port's (another program?)")
    if version != PREAMBLE_VERSION:
        raise Refused(f"it speaks version {version} of this port, not {PREAMBLE_VERSION} (two installations?)")
    if any(zero):
        raise Refused("bits of its preamble are set that must be zero")
    if destination == DESTINATION_CORE:
        return destination, tag
    if any(tag):
        raise Refused("it names a process and a destination that isn't one")
    if destination not in (DESTINATION_NODE, DESTINATION_STORE):
        raise Refused(f"it is for destination {destination}, which doesn't exist")
    return destination, b""


class Gone(Refused):
    """The core that a connection is for has ended."""


class Gate:
    """`passed` and `refused` count connections since the start, by destination and in all."""

    def __init__(
        self,
        host: str,
        port: int,
        to_node: Callable[[int], None],
        to_core: Callable[[int, bytes], None],
        to_store: Callable[[int], bool],
    ) -> None:
        """Listens, in the running event loop.

        Args:
            host: the numeric address to listen on. port: 0 takes any free one, see `self.port`.
            to_node: owns the descriptor from then on.
            to_core, to_store: take a copy of the descriptor. Gone: that core has ended. An OSError, or False: it could
                not be passed on.
        Raises: FileExistsError: the port is in use. ValueError: host is no numeric address. OSError.
        """
        self._listener = TcpListener(host, port)
        self.host = host
        self.port: int = self._listener.port
        self.passed = {DESTINATION_NODE: 0, DESTINATION_CORE: 0, DESTINATION_STORE: 0}
        self.refused = 0
        self._to_node, self._to_core, self._to_store = to_node, to_core, to_store
        self._reading: dict[int, _Reading] = {}  # by descriptor, the oldest first
        self._loop = asyncio.get_running_loop()
        self._logged_at = -LOG_S
        self._unlogged = 0
        self._loop.add_reader(self._listener.fileno(), self._acceptable)

    def close(self) -> None:
        """Stops listening; connections that were passed on stay. Twice is fine."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for reading in list(self._reading.values()):
            self._take(reading).close()

    def stats(self) -> dict[str, int]:
        """reading: preambles not complete; passed_to_node, _core, _store; refused."""
        return {
            "reading": len(self._reading),
            "passed_to_node": self.passed[DESTINATION_NODE],
            "passed_to_core": self.passed[DESTINATION_CORE],
            "passed_to_store": self.passed[DESTINATION_STORE],
            "refused": self.refused,
        }

    def __repr__(self) -> str:
        return f"<Gate {self.host}:{self.port} {self.stats()}>"

    def _acceptable(self) -> None:
        for _ in range(ACCEPTS_MAX):
            fd = self._listener.accept()
            if fd is None:
                return
            if len(self._reading) >= READING_MAX:
                self._refuse(next(iter(self._reading.values())), "too many others have not said for whom they are")
            reading = _Reading(socket.socket(fileno=fd))
            self._reading[fd] = reading
            reading.timer = self._loop.call_later(
                PREAMBLE_S, self._refuse, reading, f"it didn't say within {PREAMBLE_S} s for whom it is"
            )
            self._loop.add_reader(fd, self._readable, reading)

    def _readable(self, reading: _Reading) -> None:
        try:
            piece = reading.socket.recv(PREAMBLE_BYTES - len(reading.preamble))
        except BlockingIOError:
            return
        except OSError as error:
            return self._refuse(reading, f"it broke off: {error.strerror}")
        if not piece:
            return self._refuse(reading, "it closed the connection before it had said for whom it is")
        reading.preamble += piece
        # A stranger is shown the door at its first wrong byte: it may never send as many.
        magic = PREAMBLE_MAGIC[: len(reading.preamble)]
        if reading.preamble[: len(magic)] != magic or len(reading.preamble) == PREAMBLE_BYTES:
            self._pass_on(reading)

    def _pass_on(self, reading: _Reading) -> None:
        try:
            destination, tag = parse_preamble(reading.preamble.ljust(PREAMBLE_BYTES, b"\0"))
            if destination == DESTINATION_CORE:
                self._to_core(reading.socket.fileno(), tag)
            elif destination == DESTINATION_STORE and not self._to_store(reading.socket.fileno()):
                raise Refused("this node's plasma_store takes no connections now")
        except Gone as gone:
            with contextlib.suppress(OSError):  # the caller has gone as well, or finds out when it dials again
                reading.socket.send(GONE_MAGIC)
            return self._refuse(reading, str(gone))
        except (Refused, OSError) as error:
            return self._refuse(reading, str(error))
        self.passed[destination] += 1
        connection = self._take(reading)
        if destination == DESTINATION_NODE:
            self._to_node(connection.detach())
        else:
            connection.close()  # they have copies

    def _take(self, reading: _Reading) -> socket.socket:
        """Ends the reading of a connection."""
        del self._reading[reading.socket.fileno()]
        self._loop.remove_reader(reading.socket.fileno())
        if reading.timer is not None:
            reading.timer.cancel()
        return reading.socket

    def _refuse(self, reading: _Reading, why: str) -> None:
        try:
            address = "{}:{}".format(*reading.socket.getpeername()[:2])
        except OSError:  # it has gone
            address = "an address that is gone"
        self._take(reading).close()
        self.refused += 1
        now = time.monotonic()
        if now - self._logged_at < LOG_S:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last line like this)" if self._unlogged else ""
        logger.warning("gate: closed a connection from %s: %s%s", address, why, more)
        self._logged_at, self._unlogged = now, 0


class _Reading:
    """A connection whose preamble is not complete."""

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.preamble = b""
        self.timer: asyncio.TimerHandle | None = None


def hand_to_core(cores_folder: str, token: bytes, node_id: bytes) -> Callable[[int, bytes], None]:
    """What `to_core` of a node is: hands the descriptor to the process that listens at <cores_folder>/<tag in hex>."""

    def to_core(fd: int, tag: bytes) -> None:
        assert len(tag) == TAG_BYTES
        try:
            hand_over(os.path.join(cores_folder, tag.hex()), fd, token, node_id)
        except (FileNotFoundError, ConnectionRefusedError):
            raise Gone(f"process {tag.hex()[8:16]}, for which it is, has ended") from None

    return to_core
