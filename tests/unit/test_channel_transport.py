"""ray/_transport on a real event loop and real sockets: what a shell may rely on when its peer answers, misbehaves,
stops reading or dies. Both ends run in this process, but for the one that is killed."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ray._native import channel
from ray._native.channel import Connection, ConnectionClosed
from ray._protocol.frames import FRAME_EVENT, FRAME_REPLY, FRAME_RPC, ROLE_NODE, ROLE_WORKER
from ray._transport import Peer, connect_unix, serve_unix
from ray._transport import peer as peer_module
from ray._transport import server as server_module
from tests.wait import within

TOKEN = bytes(range(32))
SERVER_TAG = b"S" * 16
CLIENT_TAG = b"C" * 16
ROOT = Path(__file__).resolve().parents[2]


class Pair:
    """A server with an echo service, and what its peers did."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.events: list[tuple[str, tuple[Any, ...]]] = []
        self.frames: list[tuple[int, int, bytes]] = []
        self.closes: list[str] = []
        self.peers: list[Peer] = []
        self.heard = asyncio.Event()  # set at each event, frame and close
        self.server = serve_unix(path, TOKEN, SERVER_TAG, self.on_peer)

    def on_peer(self, peer: Peer) -> None:
        self.peers.append(peer)
        peer.on_rpc = self.on_rpc
        peer.on_event = lambda name, args: self._hear(self.events, (name, args))
        peer.on_frame = lambda type, flags, payload: self._hear(self.frames, (type, flags, payload))
        peer.on_close = lambda why: self._hear(self.closes, why)
        self.heard.set()

    def _hear(self, where: list[Any], what: Any) -> None:
        where.append(what)
        self.heard.set()

    def on_rpc(self, method: str, args: tuple[Any, ...]) -> Any:
        self.heard.set()
        return getattr(self, "do_" + method)(*args)

    def do_echo(self, *args: Any) -> Any:
        return args

    async def do_later(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    async def do_never(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self._hear(self.events, ("cancelled", ()))
            raise

    def do_fail(self, kind: str) -> Any:
        if kind == "plain":
            raise KeyError("missing")
        if kind == "unpicklable":
            raise Local("only here")
        if kind == "stop":
            raise StopIteration(3)
        return lambda: None  # a result that can't be pickled

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.heard.clear()
            await asyncio.wait_for(self.heard.wait(), 60)

    async def client(self, **options: Any) -> Peer:
        return await connect_unix(self.path, TOKEN, CLIENT_TAG, role=ROLE_WORKER, **options)

    def raw(self) -> socket.socket:
        s = socket.socket(socket.AF_UNIX)
        s.connect(self.path)
        return s


class Local(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text, lambda: None)

    def __str__(self) -> str:
        return "text of Local"


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Pair], Awaitable[None]]], None]:
    """Runs an async body against a fresh Pair; afterwards nothing of it is left: no task, socket file or descriptor."""

    def runner(body: Callable[[Pair], Awaitable[None]]) -> None:
        async def main() -> None:
            gc.collect()  # what earlier tests have left
            before = len(os.listdir("/proc/self/fd"))
            pair = Pair(str(tmp_path / "s"))
            try:
                await asyncio.wait_for(body(pair), 100)
            finally:
                pair.server.close()
            for _ in range(3):  # cancelled handlers need a turn to end
                await asyncio.sleep(0)
            assert not pair.server.peers
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert len(os.listdir("/proc/self/fd")) <= before, "a descriptor is left"

        asyncio.run(main())
        assert not os.path.exists(tmp_path / "s")

    return runner


def test_a_request_is_answered_with_the_handlers_result(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        assert await client.rpc("echo", 1, "two", [3]) == (1, "two", [3])
        assert await client.rpc("later", {"k": b"v"}, timeout_s=60) == {"k": b"v"}
        assert client.stats()["rpcs_waiting"] == 0
        client.close()

    run(body)


def test_both_ends_know_each_other_by_tag_role_and_pid(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        await pair.until(lambda: bool(pair.peers))
        (server_side,) = pair.peers
        assert (client.tag, client.role, client.pid) == (SERVER_TAG, ROLE_NODE, os.getpid())
        assert (server_side.tag, server_side.role, server_side.pid) == (CLIENT_TAG, ROLE_WORKER, os.getpid())
        client.close()

    run(body)


def test_many_requests_at_once_each_get_their_own_answer(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        answers = await asyncio.gather(*(client.rpc("later" if i % 2 else "echo", i) for i in range(2000)))
        assert answers == [i if i % 2 else (i,) for i in range(2000)]
        client.close()

    run(body)


def test_events_arrive_in_order_and_whole_also_when_large(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        big = os.urandom(8 << 20)
        for i in range(500):
            client.event("small", i)
        client.event("big", big)
        client.event("last")
        await pair.until(lambda: len(pair.events) == 502)
        assert pair.events[:500] == [("small", (i,)) for i in range(500)]
        assert pair.events[500] == ("big", (big,))
        client.close()

    run(body)


def test_frames_of_other_types_reach_on_frame_with_their_flags(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        client.send(77, b"engine", flags=5)
        await pair.until(lambda: bool(pair.frames))
        assert pair.frames == [(77, 5, b"engine")]
        client.close()

    run(body)


def test_an_exception_of_the_handler_is_raised_at_the_asker(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        with pytest.raises(KeyError, match="missing"):
            await client.rpc("fail", "plain")
        with pytest.raises(RuntimeError, match=r"Local: text of Local"):
            await client.rpc("fail", "unpicklable")
        with pytest.raises(RuntimeError, match="StopIteration: 3"):
            await client.rpc("fail", "stop")
        with pytest.raises(Exception, match="pickle"):
            await client.rpc("fail", "result")
        assert await client.rpc("echo", "still here") == ("still here",)
        client.close()

    run(body)


def test_a_request_times_out_and_its_late_answer_is_dropped(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        with pytest.raises(TimeoutError, match="never: no answer"):
            await client.rpc("never", timeout_s=0.01)
        pair.peers[0].send(FRAME_REPLY, pickle.dumps((1, True, "late")))
        assert await client.rpc("echo") == ()
        client.close()
        await pair.until(lambda: ("cancelled", ()) in pair.events)

    run(body)


def test_waiting_requests_raise_and_on_close_is_called_once_when_the_peer_goes(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        waiting = asyncio.ensure_future(client.rpc("never"))
        await pair.until(lambda: bool(pair.peers))
        await pair.until(lambda: pair.peers[0].stats()["rpcs_served"] == 1)
        pair.peers[0].close("enough")
        with pytest.raises(ConnectionClosed, match="closed"):
            await waiting
        with pytest.raises(ConnectionClosed):
            client.event("too late")
        await pair.until(lambda: bool(pair.closes))
        assert pair.closes == ["enough"]
        assert client.closed

    run(body)


def test_what_a_dying_process_said_is_heard_before_its_end(run: Any) -> None:
    child = """
import os, pickle, signal, sys
from ray._native.channel import Connection
c = Connection.dial(sys.argv[1], bytes(range(32)), b"C" * 16, 1)
for i in range(1000):
    c.append(3, pickle.dumps(("n", (i,))))
assert c.flush() == 0
os.kill(os.getpid(), signal.SIGKILL)
"""

    async def body(pair: Pair) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", child, pair.path, cwd=ROOT)
        assert await process.wait() == -9
        await pair.until(lambda: bool(pair.closes))
        assert pair.events == [("n", (i,)) for i in range(1000)]
        assert pair.peers[0].pid == process.pid
        assert not pair.server.peers

    run(body)


def test_a_wrong_token_is_dropped_with_a_log_line_and_nobody_else_notices(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(pair: Pair) -> None:
        friend = await pair.client()
        refused = channel.stats()["hellos_refused"]
        with caplog.at_level(logging.WARNING), pytest.raises(ConnectionClosed, match="before its hello"):
            await connect_unix(pair.path, b"x" * 32, CLIENT_TAG)
        assert channel.stats()["hellos_refused"] == refused + 1
        assert f"pid {os.getpid()}" in caplog.text and "token" in caplog.text
        assert len(pair.peers) == 1
        assert await friend.rpc("echo", 1) == (1,)
        friend.close()

    run(body)


def test_garbage_is_dropped_at_its_first_byte(run: Any) -> None:
    async def body(pair: Pair) -> None:
        with pair.raw() as s:
            s.setblocking(False)
            s.send(b"G")
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(s, 1), 60) == b""
        assert not pair.peers

    run(body)


def test_a_silent_connection_is_dropped_when_its_hello_is_due(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def body(pair: Pair) -> None:
        with pair.raw() as s:
            friend = await pair.client()  # accepted after the stranger
            (stranger,) = pair.server._greeting
            assert stranger._late is not None and stranger._late.when() <= asyncio.get_running_loop().time() + 5
            stranger._hello_late()  # too early: nothing happens
            assert not stranger.closed
            loop = asyncio.get_running_loop()
            s.setblocking(False)
            assert await asyncio.wait_for(loop.sock_recv(s, 1), 60) == b""  # after the true 5 seconds
            assert await friend.rpc("echo", 1) == (1,)
            friend.close()
        assert "hello in time" in caplog.text

    run(body)


def test_too_many_silent_connections_cost_the_oldest_its_place_and_friends_nothing(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "GREETING_MAX", 2)

    async def body(pair: Pair) -> None:
        with pair.raw() as oldest, pair.raw(), pair.raw():
            friend = await pair.client()
            assert await friend.rpc("echo", 1) == (1,)
            oldest.setblocking(False)
            with within(4):  # before its hello is due
                assert await asyncio.get_running_loop().sock_recv(oldest, 1) == b""
            friend.close()

    run(body)


def test_an_on_peer_that_fails_costs_that_one_connection(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def body(pair: Pair) -> None:
        def fail(peer: Peer) -> None:
            raise ValueError("no room for it")

        pair.server._on_peer = fail
        with pytest.raises(ConnectionClosed):  # at the dial, or at the first request: as the bytes happen to come
            await (await pair.client()).rpc("echo", 1)
        assert "no room for it" in caplog.text
        pair.server._on_peer = pair.on_peer
        friend = await pair.client()
        assert await friend.rpc("echo", 1) == (1,)
        friend.close()

    run(body)


@pytest.mark.parametrize(
    ("type", "payload"),
    [
        (FRAME_RPC, b"no pickle"),
        (FRAME_RPC, pickle.dumps((1, "echo"))),
        (FRAME_RPC, pickle.dumps((1, b"echo", ()))),
        (FRAME_REPLY, pickle.dumps((1, False, "not an exception"))),
        (FRAME_REPLY, pickle.dumps((1, False, KeyboardInterrupt()))),
        (FRAME_EVENT, b""),
        (FRAME_EVENT, pickle.dumps(("name", [1]))),
    ],
)
def test_a_malformed_control_frame_closes_that_one_connection(
    run: Any, caplog: pytest.LogCaptureFixture, type: int, payload: bytes
) -> None:
    async def body(pair: Pair) -> None:
        friend = await pair.client()
        culprit = await pair.client()
        before = peer_module.malformed_frames
        culprit.send(type, payload)
        culprit.event("never dispatched")
        await pair.until(lambda: bool(pair.closes))
        assert peer_module.malformed_frames == before + 1
        assert f"pid {os.getpid()}" in caplog.text
        assert pair.events == []
        assert await friend.rpc("echo", 1) == (1,)
        friend.close()
        culprit.close()

    run(body)


def test_a_failing_event_handler_is_logged_and_costs_nobody_the_connection(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        await pair.until(lambda: bool(pair.peers))

        def fail(name: str, args: tuple[Any, ...]) -> None:
            raise ValueError("handler's own")

        pair.peers[0].on_event = fail
        client.event("boom")
        assert await client.rpc("echo", 1) == (1,)
        assert "handler's own" in caplog.text and "boom" in caplog.text
        client.close()

    run(body)


def test_a_peer_that_does_not_read_is_closed_at_the_bound_and_drain_waits_before(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "UNSENT_BYTES_MAX", 16 << 20)

    async def body(pair: Pair) -> None:
        deaf = Connection.dial(pair.path, TOKEN, CLIENT_TAG, ROLE_WORKER)
        await pair.until(lambda: bool(pair.peers))
        (peer,) = pair.peers
        peer.event("fill", b"x" * (8 << 20))
        drain = asyncio.ensure_future(peer.drain(1 << 20))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not drain.done() and not peer.closed and peer.unsent_bytes > 1 << 20
        while not drain.done():  # it reads after all
            deaf.receive()
            await asyncio.sleep(0)
        await drain
        peer.event("fill", b"x" * (20 << 20))
        blocked = asyncio.ensure_future(peer.drain())
        await pair.until(lambda: bool(pair.closes))
        assert "doesn't read" in pair.closes[0]
        with pytest.raises(ConnectionClosed, match="doesn't read"):
            await blocked
        deaf.close()

    run(body)


def test_drain_then_close_delivers_everything(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        client.event("big", b"x" * (8 << 20))
        await client.drain()
        client.close()
        await pair.until(lambda: bool(pair.closes))
        assert len(pair.events) == 1

    run(body)


def test_closing_from_a_handler_stops_the_dispatch_of_what_came_with_it(run: Any) -> None:
    async def body(pair: Pair) -> None:
        client = await pair.client()
        await pair.until(lambda: bool(pair.peers))
        (peer,) = pair.peers
        heard = []

        def hear(name: str, args: tuple[Any, ...]) -> None:
            heard.append(name)
            peer.close("had enough")

        peer.on_event = hear
        client.event("one")
        client.event("two")
        await pair.until(lambda: bool(pair.closes))
        assert heard == ["one"]
        client.close()

    run(body)


def test_connecting_where_nobody_listens_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        with pytest.raises(FileNotFoundError):
            await connect_unix(str(tmp_path / "none"), TOKEN, CLIENT_TAG)
        s = socket.socket(socket.AF_UNIX)
        s.bind(str(tmp_path / "dead"))
        s.close()
        with pytest.raises(ConnectionRefusedError, match="ended"):
            await connect_unix(str(tmp_path / "dead"), TOKEN, CLIENT_TAG)

    asyncio.run(body())


def test_importing_the_transport_loads_nothing_heavy() -> None:
    heavy = ("numpy", "redis", "pyarrow", "cloudpickle", "multiprocessing")
    code = f"import sys, ray._transport; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
