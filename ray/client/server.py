"""PROCESS ray client server: the door through which `ray://` clients reach a session. `python -m ray.client.server`.

Started by `ray start --head` (or by a person) beside a session; listens on one TCP port, loopback unless told
otherwise; through TLS (link.py) if the session's setting `tls` says so. Whoever connects must prove the cluster's token
(proof.py) before a byte of it is looked at. For each client it holds a `ClientEnd`: connections to the session's
processes, a listening socket by which they reach the client's own process (the owner of its objects), and the client's
pins in the store.

When a client says goodbye or its process dies, all of that goes at once, and the node process sees a driver end. When
only the connection breaks, everything waits GRACE_S for the client to come back. When this process dies, its clients'
jobs end. When the session ends, so does this process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import logging
import os
import platform
import secrets
import signal
import socket
import sys

from ray._launch import session as sessions
from ray._launch import token
from ray._launch.address import CLIENT_PORT
from ray._launch.title import set_title
from ray._native.channel import Connection, ConnectionClosed, TlsSocket, check_tls
from ray._protocol.frames import ROLE_DRIVER, ROLE_HANDOFF, ROLE_TOOL
from ray._transport.peer import Peer
from ray._transport.server import connect_unix
from ray._version import __version__
from ray.client import bridge, proof, tunnel
from ray.client.desk import Desk
from ray.client.link import Link, read_exactly, send_all
from ray.client.wire import Malformed

logger: logging.Logger = logging.getLogger("ray.client.server")

PROOF_DEADLINE_S = 5.0
ROLE_AT = 10  # in a hello (cpp/channel/handshake.h)
UNPROVED_MAX = 256
ASK_TIMEOUT_S = 10.0


class ClientEnd(tunnel.Tunnel):
    """One client, from its first connection to its end."""

    FIRST_STREAM: int = 2

    def __init__(self, server: Server, session_id: bytes) -> None:
        super().__init__(server.session.token)
        self.session_id = session_id
        self._server = server
        self._desk = Desk(self, server.session.plasma_socket)
        self._listener: socket.socket | None = None
        self._listens_at = ""
        self._grace: asyncio.TimerHandle | None = None
        self._tag = b""  # of the client's process, once it has said it
        self._bridges: set[bridge.Bridge] = set()
        info = {
            "ray_version": __version__,
            "python_version": platform.python_version(),
            "protocol_version": str(proof.VERSION),
        }
        self.send(tunnel.INFO, 0, json.dumps(info).encode())

    def attach(self, sock: Link, received_there: int) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        super().attach(sock, received_there)

    def lost(self, why: str) -> None:
        if self._grace is not None:
            self._grace.cancel()
        logger.info("client %s: %s; waiting %g s for it to come back", self, why, self._server.grace_s)
        self._grace = self.loop.call_later(self._server.grace_s, self.close)

    def opened(self, stream: int, target: bytes) -> None:
        session = self._server.session
        if target not in (tunnel.NODE, tunnel.OBJECTS) and bridge.is_away(session, target):
            self._open_away(stream, target)
            return
        path = {tunnel.NODE: session.node_socket, tunnel.OBJECTS: session.objects_socket}.get(target)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path or session.core_socket(target))
        except OSError as error:  # that process is gone (or its accept queue of 4096 is full)
            logger.debug("client %s: no connection to %s: %s", self, target.hex() or "the node", error)
            sock.close()
            self.refuse(stream)
            return
        self.join(stream, sock, target)

    def _open_away(self, stream: int, target: bytes) -> None:
        """To a process of another node, or that node's own."""
        try:
            sock, made = bridge.dial(self._server.session, self._tag, target, self._bridge_ended)
        except OSError as error:
            logger.debug("client %s: no connection to %s: %s", self, target.hex(), error)
            self.refuse(stream)
            return
        self._bridges.add(made)
        self.join(stream, sock, target)

    def _bridge_ended(self, ended: bridge.Bridge) -> None:
        self._bridges.discard(ended)

    def frame(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == tunnel.GOODBYE:
            self.loop.call_soon(self.close)
        elif kind == tunnel.LISTEN:
            self._listen(bytes(payload))
        elif kind != tunnel.INFO:
            self._desk.frame(kind, stream, payload)

    def may_produce(self) -> None:
        self._desk.outgoing.go_on()

    def _listen(self, tag: bytes) -> None:
        """Where the session's processes expect the process of that tag to listen."""
        if self._listener is not None or len(tag) != tunnel.TAG_BYTES:
            raise Malformed("LISTEN twice, or of no tag")
        self._tag = tag
        path = self._server.session.core_socket(tag)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(path)
        self._listens_at = path
        self._listener.listen(4096)
        self.loop.add_reader(self._listener, self._accept, tag)

    def _accept(self, tag: bytes) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        self.loop.add_reader(sock, self._sort, tag, sock)

    def _sort(self, tag: bytes, sock: socket.socket) -> None:
        """A connection to the client's process: from one on this node, or handed over by our node's gate."""
        try:
            hello = sock.recv(tunnel.HELLO_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            hello = b""
        self.loop.remove_reader(sock)
        if self.closed:
            sock.close()
            return
        # The hello that brings a connection is sent in one piece, with its descriptor.
        if len(hello) < tunnel.HELLO_BYTES or hello[ROLE_AT] != ROLE_HANDOFF:
            self.open(tag, sock)
            return
        messenger = Connection.adopt(sock.detach(), self._server.session.token, tag, ROLE_DRIVER)
        try:
            messenger.receive_frames()
        except ConnectionClosed as gone:
            logger.debug("client %s: %s", self, gone)
        fd = messenger.take_passed()
        messenger.close()
        if fd is None:
            logger.warning("client %s: dropped a connection that was to bring another, and didn't", self)
            return
        bridge.Taking(
            self._server.session, tag, fd, lambda ours: self._open_taken(tag, ours), self._bridge_ended
        )  # fmt: skip

    def _open_taken(self, tag: bytes, ours: socket.socket) -> None:
        if self.closed:
            ours.close()
        else:
            self.open(tag, ours)

    def close(self) -> None:
        if self.closed:
            return
        if self._grace is not None:
            self._grace.cancel()
        if self._listener is not None:
            self.loop.remove_reader(self._listener)
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):  # our node removes it, too, when it hears of the client's end
                os.unlink(self._listens_at)
        super().close()
        for one in list(self._bridges):
            one.close()
        self._desk.close()
        self._server.ends.pop(self.session_id, None)
        logger.info("client %s has left", self)

    def __str__(self) -> str:
        return self.session_id.hex()[:8]


class Server:
    """The listening port and its clients."""

    def __init__(
        self, session: sessions.Session, listener: socket.socket, secret: bytes, grace_s: float, tls: bool
    ) -> None:
        self.session = session
        self.grace_s = grace_s
        self.ends: dict[bytes, ClientEnd] = {}
        self.refused: int = 0  # connections that did not prove themselves
        self._secret = secret
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._unproved: dict[asyncio.Task[None], None] = {}
        self._loop.add_reader(listener, self._accept)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if len(self._unproved) >= UNPROVED_MAX:  # the oldest makes room: strangers can't lock friends out
            next(iter(self._unproved)).cancel()
        greeting = self._loop.create_task(self._greet(sock, address))
        self._unproved[greeting] = None
        greeting.add_done_callback(lambda task: self._unproved.pop(task, None))

    async def _greet(self, sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setblocking(False)
        try:
            await asyncio.wait_for(self._prove(sock), PROOF_DEADLINE_S)
        except asyncio.CancelledError:
            sock.close()
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            self.refused += 1
            why = f"nothing proved within {PROOF_DEADLINE_S:g} s" if isinstance(error, asyncio.TimeoutError) else error
            logger.warning("dropped a connection from %s: %s", address[0], why)
            sock.close()

    async def _prove(self, sock: socket.socket) -> None:
        nonce = secrets.token_bytes(proof.NONCE_BYTES)
        await send_all(sock, proof.challenge(nonce, self._tls))
        link: Link = TlsSocket(sock, self._secret, dialled=False) if self._tls else sock
        message = await read_exactly(link, proof.REQUEST_BYTES)
        kind, session_id, received, their_nonce = proof.read_request(message, self._secret, nonce)
        answer = functools.partial(proof.answer, self._secret, nonce, their_nonce)
        if kind == proof.NEW:
            session_id = secrets.token_bytes(proof.SESSION_BYTES)
            await send_all(link, answer(proof.WELCOME, session_id, 0))
            end = self.ends[session_id] = ClientEnd(self, session_id)
            end.attach(link, received)
            return
        found = self.ends.get(session_id)
        if found is None:
            await send_all(link, answer(proof.UNKNOWN_SESSION, session_id, 0))
            raise EOFError("it wants to go on with a session that has ended here")
        found.detach()  # first: what the old connection still brought would be sent again by the new one
        try:
            await send_all(link, answer(proof.WELCOME, session_id, found.wire.received))
        except OSError as error:
            found.lost(str(error))
            raise
        found.attach(link, received)

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for greeting in list(self._unproved):
            greeting.cancel()
        for end in list(self.ends.values()):
            end.close()


def listen(host: str, port: int) -> socket.socket:
    """Raises: OSError: the port is in use, or host is no address of this machine."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(1024)
    return listener


async def serve(session: sessions.Session, listener: socket.socket, secret: bytes, grace_s: float) -> None:
    """Until the session ends, or SIGTERM or SIGINT.

    Raises: FileNotFoundError: the session speaks TLS, and this machine has no OpenSSL.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    def watch(node: Peer) -> None:
        node.on_close = lambda why: ended.set()

    # A connection that is never used: its end is the node's.
    node = await connect_unix(session.node_socket, session.token, secrets.token_bytes(16), watch, role=ROLE_TOOL)
    tls = (await node.rpc("session", timeout_s=ASK_TIMEOUT_S))["tls"]  # the cluster's setting
    if tls:
        check_tls()
    server = Server(session, listener, secret, grace_s, tls)
    try:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        await ended.wait()
    finally:
        server.close()
        node.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ray client server", description="Lets ray:// clients into a session.")
    parser.add_argument("--session", required=True, help="the session's folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, default=CLIENT_PORT, help="0: any free one, printed as JSON")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    set_title("ray client server")
    grace_s = float(os.environ.get(tunnel.GRACE_VARIABLE) or tunnel.GRACE_S)
    try:
        session = sessions.open_existing(options.session)
        secret = token.find_or_make()
        listener = listen(options.host, options.port)
        asyncio.run(serve(session, listener, secret, grace_s))
    except (OSError, ValueError) as error:
        print(f"ray client server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
