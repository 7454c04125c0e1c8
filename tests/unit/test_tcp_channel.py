"""The channel over TCP as Python sees it: proved on both sides, handed over, refused to strangers."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from typing import Any

import pytest

from ray._native.channel import Connection, ConnectionClosed, Listener, TcpListener, hand_over
from ray._protocol.frames import DESTINATION_CORE, FRAME_EVENT, PREAMBLE_BYTES, PREAMBLE_MAGIC, ROLE_HANDOFF, ROLE_NODE
from ray._transport import Peer, connect_tcp, serve_unix

TOKEN = bytes(range(32))
HOST = "127.0.0.1"


async def accept_behind_preamble(listener: TcpListener) -> tuple[int, bytes]:
    """What a gate does: waits for a connection and reads the preamble. Returns (descriptor, preamble)."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(listener.fileno(), came.set)
    await asyncio.wait_for(came.wait(), 60)
    loop.remove_reader(listener.fileno())
    fd = listener.accept()
    assert fd is not None
    with socket.socket(fileno=fd) as accepted:
        preamble = await asyncio.wait_for(loop.sock_recv(accepted, PREAMBLE_BYTES), 60)
        return accepted.detach(), preamble


def test_a_peer_over_tcp_asks_and_is_answered(tmp_path: Any) -> None:
    async def scenario() -> None:
        listener = TcpListener(HOST, 0)
        served: list[Peer] = []

        def on_peer(peer: Peer) -> None:
            peer.on_rpc = lambda method, args: (method, sum(args))
            served.append(peer)

        server = serve_unix(str(tmp_path / "node.sock"), TOKEN, b"N" * 16, on_peer)
        dialling = asyncio.ensure_future(connect_tcp(HOST, listener.port, TOKEN, b"D" * 16))
        fd, preamble = await accept_behind_preamble(listener)
        assert preamble[:8] == PREAMBLE_MAGIC and preamble[10] == 0
        server.adopt(Connection.adopt(fd, TOKEN, b"N" * 16, ROLE_NODE))
        peer = await dialling
        assert peer.tag == b"N" * 16
        assert await peer.rpc("add", 1, 2, timeout_s=60) == ("add", 3)
        assert served[0].tag == b"D" * 16 and served[0].role == ROLE_NODE and served[0].pid == 0
        peer.close()
        server.close()
        listener.close()

    asyncio.run(scenario())


def test_a_wrong_token_is_refused_and_never_seen_on_the_wire(tmp_path: Any) -> None:
    async def scenario() -> None:
        listener = TcpListener(HOST, 0)
        server = serve_unix(str(tmp_path / "node.sock"), TOKEN, b"N" * 16, lambda peer: pytest.fail("it was let in"))
        dialling = asyncio.ensure_future(connect_tcp(HOST, listener.port, b"x" * 32, b"D" * 16))
        fd, _ = await accept_behind_preamble(listener)
        server.adopt(Connection.adopt(fd, TOKEN, b"N" * 16, ROLE_NODE))
        with pytest.raises(ConnectionClosed, match="refused ours"):
            await dialling
        server.close()
        listener.close()

    asyncio.run(scenario())


def test_where_nobody_listens_dialling_says_so() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises((ConnectionRefusedError, ConnectionClosed), match=r"refused|nobody listens"):
        asyncio.run(connect_tcp(HOST, port, TOKEN, b"D" * 16))


def test_a_connection_for_a_core_is_handed_over_to_its_socket(tmp_path: Any) -> None:
    async def scenario() -> None:
        listener, core = TcpListener(HOST, 0), Listener(str(tmp_path / "core"), TOKEN, b"C" * 16, 1)
        arrived: asyncio.Future[tuple[str, tuple[Any, ...]]] = asyncio.get_running_loop().create_future()

        def on_peer(peer: Peer) -> None:
            peer.on_event = lambda name, args: arrived.set_result((name, args))

        dialling = asyncio.ensure_future(
            connect_tcp(HOST, listener.port, TOKEN, b"D" * 16, destination=DESTINATION_CORE, peer_tag=b"C" * 16)
        )
        fd, preamble = await accept_behind_preamble(listener)
        assert preamble[10] == DESTINATION_CORE and preamble[16:] == b"C" * 16
        hand_over(core.path, fd, TOKEN, b"N" * 16)
        os.close(fd)
        messenger = core.accept()
        assert messenger is not None
        with pytest.raises(ConnectionClosed):
            while not messenger.receive_frames():
                continue
        assert messenger.peer_role == ROLE_HANDOFF and messenger.peer_pid == os.getpid()
        passed = messenger.take_passed()
        assert passed is not None and messenger.take_passed() is None
        Peer(Connection.adopt(passed, TOKEN, b"C" * 16, 1), on_peer)
        peer = await dialling
        assert peer.tag == b"C" * 16
        peer.send(FRAME_EVENT, pickle.dumps(("hello", (1,))))
        assert await asyncio.wait_for(arrived, 60) == ("hello", (1,))
        peer.close()
        listener.close()
        core.close()

    asyncio.run(scenario())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="port must be 0 to 65535, not 65536"):
        Connection.dial_tcp(HOST, 65536, 0, TOKEN, b"D" * 16, 2)
    with pytest.raises(ValueError, match="peer_tag is needed"):
        Connection.dial_tcp(HOST, 1, DESTINATION_CORE, TOKEN, b"D" * 16, 2)
    with pytest.raises(ValueError, match="numeric"):
        Connection.dial_tcp("localhost", 1, 0, TOKEN, b"D" * 16, 2)
    with TcpPort() as port, pytest.raises(FileExistsError, match=f"port {port}"):
        TcpListener(HOST, port)


class TcpPort:
    """A port that is taken."""

    def __enter__(self) -> int:
        self._listener = TcpListener(HOST, 0)
        return self._listener.port

    def __exit__(self, *error: object) -> None:
        self._listener.close()
