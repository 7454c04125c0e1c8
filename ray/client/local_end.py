"""PROCESS ray client: the near end of a `ray://` connection. Started by ray.init("ray://...") (connect.py), one each.

Its parent is the client's process, which finds in one folder what a driver finds in a session's: `node.sock`, a store
at `plasma.sock`, a folder for its own socket. Behind those this process forwards everything through one TCP connection
to `ray client server` (server.py). It owns that folder's sockets and the client's own plasma_store.

When the client's process ends, stdin does: then this process says goodbye and goes. When the TCP connection breaks it
dials again, for as long as the server waits; if that fails, it ends, and the client sees its session end. When the
server says that the session has ended, likewise.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from typing import Any

from ray._launch import session as sessions
from ray._launch import token
from ray._launch.title import set_title
from ray._native.plasma import PlasmaClient
from ray._node.store_process import binary
from ray.client import door, link, proof, tunnel

logger: logging.Logger = logging.getLogger("ray.client")

CONNECT_TIMEOUT_S = 10.0
GOODBYE_TIMEOUT_S = 2.0
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 2.0


class LocalEnd(tunnel.Tunnel):
    """The tunnel, and the sockets in the client's folder."""

    FIRST_STREAM: int = 1

    def __init__(self, folder: sessions.Session, store: PlasmaClient, dial: Any, grace_s: float) -> None:
        super().__init__(folder.token)
        self.ended: asyncio.Future[str] = self.loop.create_future()
        self.info: asyncio.Future[dict[str, Any]] = self.loop.create_future()
        self._folder = folder
        self._store = store
        self._dial = dial
        self._grace_s = grace_s
        self._announced = False
        self._leaving = False
        self._listeners: list[socket.socket] = []
        self._doors: list[door.Door] = []
        self._redialling: asyncio.Task[None] | None = None
        self._listen(folder.node_socket, lambda sock: self.open(tunnel.NODE, sock))
        self._listen(folder.objects_socket, lambda sock: self.open(tunnel.OBJECTS, sock))
        self._listen(door.path_in(folder.folder), self._open_door)

    # -- from the client's process

    def _listen(self, path: str, on_accept: Any, once: bool = False) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(path)
        listener.listen(64)
        self._listeners.append(listener)

        def accept() -> None:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            if once:
                self._listeners.remove(listener)
                self.loop.remove_reader(listener)
                listener.close()
                os.unlink(path)
            on_accept(sock)

        self.loop.add_reader(listener, accept)

    def _open_door(self, sock: socket.socket) -> None:
        self._doors.append(door.Door(self, sock, self._store, self._reach, self._doors.remove))

    def _reach(self, tag: bytes) -> None:
        path = self._folder.core_socket(tag)
        if not os.path.exists(path):  # else two threads want the same process: one accept queue serves both
            self._listen(path, functools.partial(self.open, tag), once=True)

    def hello_passes(self, tag: bytes) -> None:
        if not self._announced:  # the first to speak is the client's engine, to the node
            self._announced = True
            self.send(tunnel.LISTEN, 0, tag)

    # -- from the server

    def opened(self, stream: int, target: bytes) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._folder.core_socket(target))
        except OSError as error:
            logger.warning("the client's process does not take a connection: %s", error)
            sock.close()
            self.refuse(stream)
            return
        self.join(stream, sock, target)

    def frame(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == tunnel.INFO:
            self.info.set_result(json.loads(bytes(payload)))
            return
        for one in list(self._doors):
            one.frame(kind, stream, payload)

    def may_produce(self) -> None:
        for one in self._doors:
            one.outgoing.go_on()

    # -- the connection

    def lost(self, why: str) -> None:
        if self._leaving:
            self._end("")
            return
        self._redialling = self.loop.create_task(self._redial(why))

    async def _redial(self, why: str) -> None:
        deadline = self.loop.time() + self._grace_s
        pause_s = RETRY_FIRST_S
        while True:
            try:
                sock, received = await asyncio.wait_for(self._dial(self.wire.received), CONNECT_TIMEOUT_S)
            except proof.Refused as error:
                self._end(f"the connection broke ({why}), and then: {error}")
                return
            except (OSError, EOFError, asyncio.TimeoutError) as error:
                # There is no event for a server's coming back: it is asked again, ever more slowly.
                if self.loop.time() + pause_s > deadline:
                    self._end(f"the connection broke ({why}) and was not back within {self._grace_s:g} s: {error}")
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
            else:
                self.attach(sock, received)
                return

    def _end(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result(why)

    def goodbye(self) -> None:
        """The client's process has ended, or wants to. The server answers by closing: then its job has ended there."""
        self.loop.remove_reader(sys.stdin.fileno())
        self._leaving = True
        if self.sock is None:
            self._end("")
        else:
            self.send(tunnel.GOODBYE, 0)
            self.loop.call_later(GOODBYE_TIMEOUT_S, self._end, "")

    def close(self) -> None:
        if self._redialling is not None:
            self._redialling.cancel()
        for one in list(self._doors):
            one.close()
        for listener in self._listeners:
            self.loop.remove_reader(listener)
            listener.close()
        super().close()


class Dialler:
    """Connects to the server and proves the token; remembers which wire goes on."""

    def __init__(self, host: str, port: int, secret: bytes, tls: bool | None) -> None:
        """tls: what this program is told of it; None: nothing, the server decides."""
        self._host, self._port, self._secret, self._tls = host, port, secret, tls
        self._session = bytes(proof.SESSION_BYTES)
        self._kind = proof.NEW

    async def __call__(self, received: int) -> tuple[link.Link, int]:
        """(connection, how many of our frames the server has).

        Raises: proof.Refused.  ValueError: it has TLS and we are told not to, or the reverse.  OSError, EOFError: try
            again.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        sock = socket.socket(found[0][0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await loop.sock_connect(sock, found[0][4])
            their_nonce, tls = proof.read_challenge(await link.read_exactly(sock, proof.CHALLENGE_BYTES))
            at = await link.secured(sock, self._secret, tls, self._tls)
            nonce = secrets.token_bytes(proof.NONCE_BYTES)
            request = proof.request(self._secret, their_nonce, nonce, self._kind, self._session, received)
            await link.send_all(at, request)
            try:
                message = await link.read_exactly(at, proof.ANSWER_BYTES)
            except (EOFError, ConnectionResetError):
                if self._kind == proof.RESUME:
                    raise  # this token was good before: the new connection has broken too
                raise proof.Refused("the server refused this client's token") from None
            verdict, session, received_there = proof.read_answer(message, self._secret, their_nonce, nonce)
            if verdict != proof.WELCOME:
                raise proof.Refused("the server has given this client up")
        except BaseException:
            sock.close()
            raise
        self._kind, self._session = proof.RESUME, session
        return at, received_there


def start_store(folder: sessions.Session, memory_bytes: int) -> subprocess.Popen[bytes]:
    """The client's own plasma_store; ends when this process does. Raises: OSError: with the store's own words."""
    lifeline_read, lifeline = os.pipe2(os.O_CLOEXEC)
    ready, ready_write = os.pipe2(os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            [
                *(binary(), "--memory", str(memory_bytes), "--socket", folder.plasma_socket),
                *("--lifeline-fd", str(lifeline_read), "--ready-fd", str(ready_write)),
            ],
            pass_fds=(lifeline_read, ready_write),
        )
    finally:
        os.close(lifeline_read)
        os.close(ready_write)
    with os.fdopen(ready, "rb") as said_by:
        said = said_by.read(4096)
    if said != b"\1":
        process.kill()
        process.wait()
        raise OSError(f"the client's own object store did not start: {said.decode('utf-8', 'replace')}")
    process.lifeline = lifeline  # type: ignore[attr-defined]  # closed with this process, however it ends
    return process


async def run(config: dict[str, Any], secret: bytes) -> str:
    """Why it ended; "" if the client's process wanted it."""
    loop = asyncio.get_running_loop()
    folder = sessions.open_existing(config["folder"])
    dial = Dialler(config["host"], config["port"], secret, link.wanted(os.environ.get(link.TLS_VARIABLE)))
    sock, received = await asyncio.wait_for(dial(0), CONNECT_TIMEOUT_S)
    store = start_store(folder, config["memory_bytes"])
    end = None
    try:
        end = LocalEnd(folder, PlasmaClient(folder.plasma_socket), dial, config["grace_s"])
        loop.add_reader(sys.stdin.fileno(), end.goodbye)
        end.attach(sock, received)
        info = await asyncio.wait_for(end.info, CONNECT_TIMEOUT_S)
        print(json.dumps({"ready": True, **info}), flush=True)
        return await end.ended
    finally:
        if end is not None:
            end.close()
        store.terminate()
        store.wait()
        folder.remove()  # the client's process does so too, unless it was killed


def main() -> int:
    set_title("ray client")
    for number in (signal.SIGINT, signal.SIGTERM):  # the terminal's, meant for the client's process; whose end is ours
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s ray client: %(message)s")
    config = json.loads(sys.stdin.buffer.readline())
    lock_fd = config.pop("lock_fd")  # held for life: whoever finds it free knows that this client is gone (session.py)
    try:
        why = asyncio.run(run(config, token.find()))
    except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
        text = str(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
        print(json.dumps({"ready": False, "error": text, "kind": type(error).__name__}), flush=True)
        return 1
    finally:
        os.close(lock_fd)
    if why:
        print(f"ray: the session at ray://{config['host']}:{config['port']} is over: {why}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
