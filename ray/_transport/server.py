"""Listening and dialling on the event loop. Who connects is nobody until its hello is right.

A connection without the session's token, with garbage, of another user, or silent for 5 s is dropped with a log line
and counted; the others don't notice. The socket file goes with the Server.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from ray._native.channel import Connection, ConnectionClosed, Listener
from ray._protocol.frames import DESTINATION_NODE, ROLE_NODE, ROLE_TOOL
from ray._transport.peer import Peer

logger = logging.getLogger(__name__)

# Connections that haven't said hello yet. Above it the oldest makes room: strangers can't lock friends out.
GREETING_MAX = 1024
# Connections taken per wake-up, so that a storm of them leaves the loop time for others.
ACCEPTS_MAX = 64


class Server:
    """A listening Unix socket. `peers`: all that are open, in the order in which they came."""

    def __init__(self, listener: Listener, on_peer: Callable[[Peer], None]) -> None:
        self.path: str = listener.path
        self.peers: dict[Peer, None] = {}
        self._greeting: dict[Peer, None] = {}
        self._listener: Listener | None = listener
        self._on_peer = on_peer
        self._name = os.path.basename(self.path)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener.fileno(), self._acceptable)

    def close(self, why: str = "the server closed") -> None:
        """Stops listening, removes the socket file and closes every connection. Twice is fine."""
        self.stop_listening()
        for peer in [*self.peers, *self._greeting]:
            peer.close(why)

    def stop_listening(self) -> None:
        """New connections are refused and the socket file goes; those that are open stay."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def adopt(self, connection: Connection) -> None:
        """Greets a connection that was accepted elsewhere (by the gate), as one of ours; `connection.adopt` made it."""
        self._greet(connection)

    def _acceptable(self) -> None:
        for _ in range(ACCEPTS_MAX):
            connection = self._listener.accept() if self._listener is not None else None
            if connection is None:
                return
            self._greet(connection)

    def _greet(self, connection: Connection) -> None:
        if not connection.is_alive:
            logger.warning(
                "%s: dropped a connection of pid %d: %s", self._name, connection.peer_pid, connection.why_closed
            )
            connection.close()
            return
        if len(self._greeting) >= GREETING_MAX:
            next(iter(self._greeting)).close("too many connections without a hello")
        self._greeting[Peer(connection, self._opened, self._gone, self._name)] = None

    def _opened(self, peer: Peer) -> None:
        self._greeting.pop(peer, None)
        self.peers[peer] = None
        self._on_peer(peer)

    def _gone(self, peer: Peer) -> None:
        self._greeting.pop(peer, None)
        self.peers.pop(peer, None)


def serve_unix(
    path: str, token: bytes, tag: bytes, on_peer: Callable[[Peer], None], *, role: int = ROLE_NODE
) -> Server:
    """Listens at path, in the running event loop.

    `on_peer(peer)` is called for each peer that proved itself, before its first message is dispatched: it sets the
    handlers.

    Raises: ValueError, FileExistsError, FileNotFoundError, PermissionError, OSError.
    """
    return Server(Listener(path, token, tag, role), on_peer)


async def connect_unix(
    path: str, token: bytes, tag: bytes, on_peer: Callable[[Peer], None] | None = None, *, role: int = ROLE_TOOL
) -> Peer:
    """Dials path and waits for the other side's hello; `on_peer` as for `serve_unix`.

    Raises:
        FileNotFoundError, ConnectionRefusedError, TimeoutError, PermissionError: nobody to talk to.
        ConnectionClosed: it refused our token, or wasn't one of ours, or said nothing for 5 s.
    """
    return await _greeted(lambda: Connection.dial(path, token, tag, role), on_peer, os.path.basename(path))


async def connect_tcp(
    host: str,
    port: int,
    token: bytes,
    tag: bytes,
    on_peer: Callable[[Peer], None] | None = None,
    *,
    role: int = ROLE_NODE,
    destination: int = DESTINATION_NODE,
    peer_tag: bytes | None = None,
    tls: bool = False,
) -> Peer:
    """Dials the gate of a node and waits until both sides have proved that they know the token; `on_peer` as above.

    Args:
        host: a numeric address.
        destination: whose the connection becomes: the node process's, or that of one of its cores.
        peer_tag: whose it must be, and anybody else is refused: the core's tag (needed), or the node's id. None:
            whoever proves the token, where the id isn't known yet.
        tls: through TLS, as the cluster's setting says; a peer that has it otherwise is refused.
    Raises:
        ConnectionRefusedError, ConnectionClosed: nobody listens there; it refused our token, or we its; no gate at all;
            no answer within 5 s. `why` says which.
        FileNotFoundError: tls, and there is no OpenSSL here.
        ValueError: an argument of the wrong size or kind. OSError.
    """

    def dial() -> Connection:
        return Connection.dial_tcp(host, port, destination, token, tag, role, peer_tag, tls=tls)

    return await _greeted(dial, on_peer, f"{host}:{port}")


async def _greeted(dial: Callable[[], Connection], on_peer: Callable[[Peer], None] | None, name: str) -> Peer:
    """A peer that has said its hello. Raises what dial does, or ConnectionClosed."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def opened(peer: Peer) -> None:
        if on_peer is not None:
            on_peer(peer)
        if not ready.done():
            ready.set_result(None)

    def gone(peer: Peer) -> None:
        if not ready.done():
            ready.set_exception(ConnectionClosed(peer.why_closed or "closed"))

    peer = Peer(dial(), opened, gone, name)
    try:
        await ready
    except BaseException:
        peer.close()
        raise
    return peer
