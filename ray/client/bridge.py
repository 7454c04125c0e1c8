"""Connections between a `ray://` client and processes of other nodes: joined here, in `ray client server`. Its loop.

The client speaks as on a Unix socket, and its session's token stays where it is; nodes speak over TCP, each connection
with a proof of its own. So between the two somebody has to stand who greets both: a `Bridge` is two connections, each
greeted by itself, whose frames are passed on as they are. `dial` makes one for a process that the client wants to
reach, `take` one for a process that has reached this node's gate, which handed its connection over (gate.py).

If one side ends, the other is closed when it has what came before. What one side doesn't take stops the reading of the
other, so a bridge holds UNTAKEN_BYTES_MAX and a read's worth at most. A process that is gone is a connection that ends
at once, which is what the client sees of it on one node, too. One that only can't be reached is none: what the client
has said to it is kept, and it is dialled again until it answers, is said to be gone, or its node is (as the engine does
for itself, ray/_core/redial.pxi).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import socket
from collections.abc import Callable

from ray._launch import cluster_file
from ray._launch import session as sessions
from ray._native.channel import Connection, ConnectionClosed
from ray._protocol.frames import DESTINATION_CORE, DESTINATION_NODE, ROLE_DRIVER, ROLE_WORKER
from ray._protocol.ids import NODE_NUMBER_BYTES, node_number

logger: logging.Logger = logging.getLogger("ray.client.server")

UNTAKEN_BYTES_MAX = 4 << 20
REDIAL_FIRST_S, REDIAL_MAX_S = 0.02, 1.0  # pauses between attempts; doubles
_numbers = itertools.count(1)


class Gone(ConnectionError):
    """Whom one would dial is no more."""


class Bridge:
    """Frames of each of two connections go to the other. `ended()` is called once, when both are closed."""

    def __init__(
        self, a: Connection, b: Connection | Callable[[], Connection], ended: Callable[[Bridge], None]
    ) -> None:
        """b: a connection, or what begins one; then it is begun again until somebody has greeted there. Such a call
        raises OSError if it can't now, Gone or ConnectionRefusedError if it never can."""
        self._sides = (_Side(self, a), _Side(self, b) if isinstance(b, Connection) else _Far(self, b))
        self._ended = ended
        self.closed: bool = False
        for side, other in zip(self._sides, reversed(self._sides)):
            side.other = other
        for side in self._sides:
            side.begin()

    def close(self) -> None:
        """Idempotent."""
        if self.closed:
            return
        self.closed = True
        for side in self._sides:
            side.close()
        self._ended(self)


class _Side:
    def __init__(self, bridge: Bridge, connection: Connection | None) -> None:
        self.other: _Side
        self._connection = connection  # None: of a _Far that is to be dialled
        self._bridge = bridge
        self._loop = asyncio.get_running_loop()
        self._fd = -1  # of the connection, once begun: of one that has ended it can't be asked for any more
        self._reading = self._writing = False
        self._last = False  # the other side has ended: close when this one has all
        self._late: asyncio.TimerHandle | None = None

    @property
    def connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    @property
    def unsent_bytes(self) -> int:
        return self.connection.pending_bytes

    @property
    def may_read(self) -> bool:
        return self._fd >= 0 and self.connection.is_alive

    def begin(self) -> None:
        self._fd = self.connection.fileno()
        deadline_s = self.connection.hello_deadline_s
        if deadline_s is not None:
            self._late = self._loop.call_at(deadline_s, self._hello_late)
        self._read(True)
        self._flush()

    def close(self) -> None:
        self._let_go()

    def take(self, frames: list[tuple[int, int, bytes]]) -> None:
        """Frames of the other side. Raises: ConnectionClosed."""
        for kind, flags, payload in frames:
            self.connection.append(kind, payload, flags)
        self._flush()

    def finish(self) -> None:
        """Nothing more comes from the other side."""
        self._last = True
        if self.connection.pending_bytes == 0 or not self.connection.is_alive:
            self._bridge.close()

    def _let_go(self) -> None:
        """Of its connection."""
        self._read(False)
        self._write(False)
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self.connection.close()

    def _readable(self) -> None:
        try:
            frames = self.connection.receive_frames()
            if self.connection.wants_write:  # the greeting goes on
                self._flush()
        except ConnectionClosed as gone:
            self._has_ended(gone)
            return
        if frames:
            self._passed_on(frames)

    def _has_ended(self, gone: ConnectionClosed) -> None:
        """It has said all that it will say."""
        logger.debug("bridge: %s", gone)
        self._read(False)
        self.other.finish()

    def _passed_on(self, frames: list[tuple[int, int, bytes]]) -> None:
        try:
            self.other.take(frames)
        except ConnectionClosed:
            self._bridge.close()
            return
        if self.other.unsent_bytes > UNTAKEN_BYTES_MAX:
            self._read(False)

    def _flush(self) -> None:
        if self._bridge.closed:
            return
        try:
            unsent = self.connection.flush()
        except ConnectionClosed as gone:
            self._cannot_send(gone)
            return
        self._write(self.connection.wants_write)
        if self._last and unsent == 0:
            self._bridge.close()
        elif unsent <= UNTAKEN_BYTES_MAX // 2 and self.other.may_read and not self._last:
            self.other._read(True)

    def _cannot_send(self, gone: ConnectionClosed) -> None:
        self._bridge.close()

    def _hello_late(self) -> None:
        if self.connection.close_if_late():
            self._bridge.close()

    def _read(self, wanted: bool) -> None:
        if wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._fd, self._readable)
            else:
                self._loop.remove_reader(self._fd)

    def _write(self, wanted: bool) -> None:
        if wanted is not self._writing:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._fd, self._flush)
            else:
                self._loop.remove_writer(self._fd)


class _Far(_Side):
    """The side that is dialled. Until somebody has greeted there, what it is to take is kept here."""

    def __init__(self, bridge: Bridge, dial: Callable[[], Connection]) -> None:
        super().__init__(bridge, None)
        self._dial = dial
        self._kept: list[tuple[int, int, bytes]] = []
        self._kept_bytes = 0
        self._greeted = False
        self._pause_s = REDIAL_FIRST_S
        self._again: asyncio.TimerHandle | None = None  # while it has no connection

    @property
    def unsent_bytes(self) -> int:
        return super().unsent_bytes if self._greeted else self._kept_bytes

    def begin(self) -> None:
        self._again = None
        try:
            self._connection = self._dial()
        except (Gone, ConnectionRefusedError) as gone:
            logger.debug("bridge: %s", gone)
            self._loop.call_soon(self._bridge.close)
        except OSError as error:
            self._begin_later(error)
        else:
            super().begin()

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._connection is not None:
            self._let_go()

    def take(self, frames: list[tuple[int, int, bytes]]) -> None:
        if self._greeted:
            super().take(frames)
            return
        self._kept += frames
        self._kept_bytes += sum(len(payload) for _, _, payload in frames)

    def finish(self) -> None:
        if self._greeted:
            super().finish()
        else:
            self._bridge.close()

    def _readable(self) -> None:
        super()._readable()
        if not self._greeted and self.may_read and self.connection.greeted and not self._bridge.closed:
            self._greeted = True
            kept, self._kept = self._kept, []
            try:
                self.take(kept)
            except ConnectionClosed as gone:
                self._cannot_send(gone)

    def _has_ended(self, gone: ConnectionClosed) -> None:
        if not self._ends_for_now(gone):
            super()._has_ended(gone)

    def _cannot_send(self, gone: ConnectionClosed) -> None:
        if not self._ends_for_now(gone):
            super()._cannot_send(gone)

    def _hello_late(self) -> None:
        if self.connection.close_if_late():
            self._cannot_send(ConnectionClosed(self.connection.why_closed))

    def _ends_for_now(self, gone: ConnectionClosed) -> bool:
        """Nobody has heard anything of it yet, nor said that there is nobody: it is dialled again."""
        if self.connection.greeted or self.connection.no_such_process or self._bridge.closed:
            return False
        self._let_go()
        self._connection, self._fd = None, -1
        self._begin_later(gone)
        return True

    def _begin_later(self, why: Exception) -> None:
        logger.debug("bridge: %s; again in %g s", why, self._pause_s)
        self._again = self._loop.call_later(self._pause_s, self.begin)
        self._pause_s = min(2 * self._pause_s, REDIAL_MAX_S)


def is_away(session: sessions.Session, target: bytes) -> bool:
    """Whether the process with that tag is on another node than the session's."""
    said = cluster_file.read(session.folder)
    return node_number(target) != (said["number"] if said is not None else 0)


def node_tag(number: int) -> bytes:
    """What stands for the node process of that number where the tag of a process is expected."""
    return number.to_bytes(NODE_NUMBER_BYTES, "big") + bytes(12)


def dial(
    session: sessions.Session, client_tag: bytes, target: bytes, ended: Callable[[Bridge], None]
) -> tuple[socket.socket, Bridge]:
    """Joins the client to a process of another node, or to that node's own. Returns: (the client's side, for a stream;
    the bridge). A node's own process is dialled once: who waits there for a lease asks elsewhere.

    Raises: OSError: that node's process can't be reached."""
    ask = functools.partial(_dial, session, client_tag, target)
    far: Connection | Callable[[], Connection] = ask
    if target == node_tag(node_number(target)):
        far = ask()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near = Connection.adopt(theirs.detach(), session.token, target, ROLE_WORKER)
    return ours, Bridge(near, far, ended)


def _dial(session: sessions.Session, client_tag: bytes, target: bytes) -> Connection:
    """Raises: Gone: its node is dead, as ours has heard. OSError: it can't be reached."""
    said = cluster_file.read(session.folder)
    rows = said["nodes"] if said is not None else ()
    row = next((row for row in rows if row["number"] == node_number(target)), None)
    if said is None or row is None:
        raise Gone(f"node {node_number(target)} is gone")
    to_node = target == node_tag(row["number"])
    return Connection.dial_tcp(
        row["host"],
        row["port"],
        DESTINATION_NODE if to_node else DESTINATION_CORE,
        session.token,
        client_tag,
        ROLE_DRIVER,
        row["node_id"] if to_node else target,
        tls=said["tls"],
    )


class Taking:
    """A connection that was handed over: greets its far end, then joins it to the client."""

    def __init__(
        self,
        session: sessions.Session,
        client_tag: bytes,
        fd: int,
        opened: Callable[[socket.socket], None],
        ended: Callable[[Bridge], None],
    ) -> None:
        """opened(socket): the client's side, for a stream."""
        self._session = session
        self._opened, self._ended = opened, ended
        self._loop = asyncio.get_running_loop()
        said = cluster_file.read(session.folder)
        tls = said is not None and said["tls"]
        self._far = Connection.adopt(fd, session.token, client_tag, ROLE_DRIVER, tls=tls)
        self._fd = self._far.fileno()
        deadline_s = self._far.hello_deadline_s
        self._late = self._loop.call_at(deadline_s if deadline_s is not None else 0, self._hello_late)
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            frames = self._far.receive_frames()
            self._far.flush()
        except ConnectionClosed as gone:
            logger.warning("dropped a connection from another node: %s", gone)
            self._stop()
            self._far.close()
            return
        if not self._far.greeted:
            return
        self._stop()
        try:
            ours, near = self._near()
        except (OSError, ConnectionClosed) as error:
            logger.warning("a connection from another node could not be passed on: %s", error)
            self._far.close()
            return
        bridge = Bridge(near, self._far, self._ended)
        self._opened(ours)
        if frames:
            bridge._sides[1]._passed_on(frames)

    def _near(self) -> tuple[socket.socket, Connection]:
        """A connection that says to the client what the far end has said of itself."""
        path = f"{self._session.cores}/bridge-{os.getpid()}-{next(_numbers)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            try:
                listener.listen(1)
                near = Connection.dial(path, self._session.token, self._far.peer_tag, self._far.peer_role)
                ours, _ = listener.accept()
            finally:
                os.unlink(path)
        return ours, near

    def _stop(self) -> None:
        self._loop.remove_reader(self._fd)
        self._late.cancel()

    def _hello_late(self) -> None:
        if self._far.close_if_late():
            self._stop()
