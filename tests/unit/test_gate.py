"""The gate of a node: what is passed on to whom, and that strangers have no effect but a count and a log line."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ray._native.channel import Connection, ConnectionClosed, Listener
from ray._node import gate as gates
from ray._node.gate import Gate, Refused, hand_to_core, parse_preamble
from ray._protocol.frames import (
    DESTINATION_CORE,
    DESTINATION_NODE,
    DESTINATION_STORE,
    PREAMBLE_BYTES,
    PREAMBLE_MAGIC,
    ROLE_NODE,
)
from ray._transport import Peer, connect_tcp, serve_unix

TOKEN = bytes(range(32))
NODE, CORE, DIALLER = b"N" * 16, b"C" * 16, b"D" * 16
HOST = "127.0.0.1"


def preamble(destination: int = DESTINATION_NODE, tag: bytes = bytes(16), *, version: int = 1) -> bytes:
    return PREAMBLE_MAGIC + version.to_bytes(2, "little") + bytes([destination]) + bytes(5) + tag


class Place:
    """A gate with a node, a core and a store behind it, in this process."""

    def __init__(self, folder: Path) -> None:
        self.peers: list[Peer] = []
        self.events: list[tuple[Any, ...]] = []
        self.came = asyncio.Event()
        self.stored: list[bytes] = []
        self.server = serve_unix(str(folder / "node.sock"), TOKEN, NODE, self._on_peer)
        self.core = Listener(str(folder / CORE.hex()), TOKEN, CORE, 1)
        self.store_is_up = True
        self.gate = Gate(HOST, 0, self._to_node, hand_to_core(str(folder), TOKEN, NODE), self._to_store)

    def _on_peer(self, peer: Peer) -> None:
        self.peers.append(peer)
        peer.on_rpc = lambda method, args: (method, *args)

    def _to_node(self, fd: int) -> None:
        self.server.adopt(Connection.adopt(fd, TOKEN, NODE, ROLE_NODE))

    def _to_store(self, fd: int) -> bool:
        if self.store_is_up:
            with socket.socket(fileno=os.dup(fd)) as copy:
                self.stored.append(copy.recv(100))
        return self.store_is_up

    def dial(self) -> socket.socket:
        return socket.create_connection((HOST, self.gate.port), timeout=60)

    def close(self) -> None:
        self.gate.close()
        self.server.close()
        self.core.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, f"{condition} did not come true: {self.gate!r}"
            await asyncio.sleep(0.002)

    async def ended(self, dialled: socket.socket) -> bool:
        """Whether the other side closes without a word."""
        dialled.setblocking(False)
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(dialled, 1), 60) == b""
        except ConnectionResetError:
            return True


def with_a_place(scenario: Callable[[Place], Coroutine[Any, Any, None]], folder: Path) -> None:
    async def run() -> None:
        before = set(os.listdir("/proc/self/fd"))
        place = Place(folder)
        try:
            await scenario(place)
        finally:
            place.close()
        await place.until(lambda: set(os.listdir("/proc/self/fd")) <= before | {max(os.listdir("/proc/self/fd"))})

    asyncio.run(run())


def test_a_node_is_reached_through_the_gate(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        peer = await connect_tcp(HOST, place.gate.port, TOKEN, DIALLER)
        assert peer.tag == NODE
        assert await peer.rpc("echo", 7, timeout_s=60) == ("echo", 7)
        assert place.gate.stats() == {
            "reading": 0, "passed_to_node": 1, "passed_to_core": 0, "passed_to_store": 0, "refused": 0,
        }  # fmt: skip
        peer.close()

    with_a_place(scenario, tmp_path)


def test_a_core_gets_what_is_for_it_and_a_dead_one_is_said_to_be_gone(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        dial = connect_tcp(HOST, place.gate.port, TOKEN, DIALLER, destination=DESTINATION_CORE, peer_tag=CORE)
        dialling = asyncio.ensure_future(dial)
        await place.until(lambda: place.gate.passed[DESTINATION_CORE] == 1)
        messenger = place.core.accept()
        assert messenger is not None
        with pytest.raises(ConnectionClosed):
            messenger.receive_frames()
        fd = messenger.take_passed()
        assert fd is not None
        core_side = Peer(Connection.adopt(fd, TOKEN, CORE, 1), lambda peer: None)
        peer = await dialling
        assert peer.tag == CORE
        peer.close()
        core_side.close()
        messenger.close()
        with pytest.raises(ConnectionClosed, match="says that the process is gone"):
            await connect_tcp(HOST, place.gate.port, TOKEN, DIALLER, destination=DESTINATION_CORE, peer_tag=b"X" * 16)
        assert place.gate.refused == 1

    with_a_place(scenario, tmp_path)


def test_the_store_gets_a_connection_that_begins_behind_the_preamble(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        with place.dial() as dialled:
            dialled.sendall(preamble(DESTINATION_STORE) + b"hello of a store")
            await place.until(lambda: place.stored == [b"hello of a store"])
        place.store_is_up = False
        with place.dial() as dialled:
            dialled.sendall(preamble(DESTINATION_STORE))
            assert await place.ended(dialled)
        assert place.gate.passed[DESTINATION_STORE] == 1 and place.gate.refused == 1

    with_a_place(scenario, tmp_path)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "first bytes"),
        (b"\x8fray\r\n\x1a\n" + bytes(24), "first bytes"),
        (os.urandom(7) + b"\0" + os.urandom(4096), "first bytes"),
        (preamble(version=2), "version 2"),
        (preamble(3), "destination 3"),
        (preamble(DESTINATION_NODE, CORE), "isn't one"),
        (preamble()[:11] + b"\1" + preamble()[12:], "must be zero"),
    ],
)
def test_garbage_is_closed_counted_and_logged(
    tmp_path: Path, sent: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(place: Place) -> None:
        with place.dial() as dialled:
            dialled.sendall(sent)
            assert await place.ended(dialled)
        assert place.gate.refused == 1 and not place.peers and not place.stored
        assert place.core.accept() is None

    with_a_place(scenario, tmp_path)
    assert [why in record.getMessage() for record in caplog.records] == [True]


def test_half_a_preamble_is_closed_in_time_and_slow_ones_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "READING_MAX", 8)
    monkeypatch.setattr(gates, "PREAMBLE_S", 1.5)  # until all have dialled, on any machine

    async def scenario(place: Place) -> None:
        slow = [place.dial() for _ in range(20)]
        for dialled in slow:
            dialled.sendall(preamble()[:9])
        await place.until(lambda: place.gate.refused == 12)
        assert place.gate.stats()["reading"] == 8
        slow[-1].sendall(preamble()[9:12])  # a byte now and then buys no time
        peer = await connect_tcp(HOST, place.gate.port, TOKEN, DIALLER)  # and a friend comes through meanwhile
        await place.until(lambda: place.gate.stats()["reading"] == 0)
        assert place.gate.refused == 20
        assert not peer.closed
        peer.close()
        for dialled in slow:
            assert await place.ended(dialled)
            dialled.close()

    with_a_place(scenario, tmp_path)


def test_who_breaks_off_is_forgotten(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        for sent in (b"", preamble()[:5], preamble()[:31]):
            with place.dial() as dialled:
                dialled.sendall(sent)
        await place.until(lambda: place.gate.refused == 3)
        assert place.gate.stats()["reading"] == 0

    with_a_place(scenario, tmp_path)


def test_a_wrong_token_gets_past_the_gate_and_no_further(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        with pytest.raises(ConnectionClosed, match="refused ours"):
            await connect_tcp(HOST, place.gate.port, b"x" * 32, DIALLER)
        assert not place.peers

    with_a_place(scenario, tmp_path)


def test_a_preamble_in_pieces_is_the_same_preamble(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        with place.dial() as dialled:
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in preamble(DESTINATION_STORE) + b"x":
                dialled.sendall(bytes([byte]))
                await asyncio.sleep(0)
            await place.until(lambda: place.stored == [b"x"] or place.stored == [b""])
        assert place.gate.refused == 0

    with_a_place(scenario, tmp_path)


def test_only_what_is_dialled_parses() -> None:
    assert parse_preamble(preamble()) == (DESTINATION_NODE, b"")
    assert parse_preamble(preamble(DESTINATION_CORE, CORE)) == (DESTINATION_CORE, CORE)
    for bit in range(PREAMBLE_BYTES * 8):
        wrong = bytearray(preamble())
        wrong[bit // 8] ^= 1 << bit % 8
        if bytes(wrong) in (preamble(DESTINATION_CORE), preamble(DESTINATION_STORE)):
            continue
        with pytest.raises(Refused):
            parse_preamble(bytes(wrong))


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        with pytest.raises(FileExistsError, match=str(place.gate.port)):
            Gate(HOST, place.gate.port, lambda fd: None, lambda fd, tag: None, lambda fd: False)

    with_a_place(scenario, tmp_path)
