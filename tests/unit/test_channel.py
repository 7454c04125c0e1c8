"""ray/_native/channel.pyx: the wrappers' own promises. What the channel does below them: cpp_tests/channel."""

from __future__ import annotations

import gc
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray._native import channel
from ray._native.channel import Connection, ConnectionClosed, Listener

TOKEN = bytes(range(32))
HELLO_BYTES = 64


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def listener(path: str) -> Iterator[Listener]:
    listener = Listener(path, TOKEN, b"L" * 16, 2)
    yield listener
    listener.close()


def dial(path: str) -> Connection:
    return Connection.dial(path, TOKEN, b"D" * 16, 1)


def accept(listener: Listener) -> Connection:
    connection = listener.accept()
    assert connection is not None
    return connection


def receive(connection: Connection, count: int) -> list[tuple[int, bytes]]:
    frames: list[tuple[int, bytes]] = []
    while len(frames) < count:
        assert select.select([connection], [], [], 60)[0], "no frame within a minute"
        frames += connection.receive()
    return frames


def test_frames_travel_both_ways_and_the_ends_know_each_other(listener: Listener, path: str) -> None:
    dialled = dial(path)
    assert dialled.send(20, b"right behind the hello") == 0
    accepted = accept(listener)
    assert not accepted.is_open and accepted.is_alive and accepted.hello_deadline_s is not None
    assert accepted.receive() == [(20, b"right behind the hello")]
    assert accepted.is_open and accepted.hello_deadline_s is None
    assert (accepted.peer_tag, accepted.peer_role, accepted.peer_pid) == (b"D" * 16, 1, os.getpid())
    accepted.append(21, bytearray(b"one"))
    accepted.append(22, memoryview(b"two"), flags=9)
    assert accepted.pending_bytes > 0
    assert accepted.flush() == 0
    assert dialled.receive_frames() == [(21, 0, b"one"), (22, 9, b"two")]
    assert dialled.receive() == []
    assert (dialled.peer_tag, dialled.peer_role) == (b"L" * 16, 2)


def test_what_does_not_fit_is_pending_until_the_peer_reads(listener: Listener, path: str) -> None:
    dialled, payload = dial(path), os.urandom(16 << 20)
    accepted = accept(listener)
    assert dialled.send(20, payload) > 0
    assert dialled.wants_write
    frames: list[tuple[int, bytes]] = []
    while not frames:
        frames = accepted.receive()
        if dialled.pending_bytes:
            dialled.flush()
    assert frames == [(20, payload)]
    assert not dialled.wants_write and dialled.pending_bytes == 0


def test_the_last_frames_of_a_closed_peer_come_before_connection_closed(listener: Listener, path: str) -> None:
    dialled = dial(path)
    accepted = accept(listener)
    dialled.send(20, b"last")
    dialled.close()
    dialled.close()
    with pytest.raises(ConnectionClosed, match="closed by this process"):
        dialled.send(20, b"more")
    assert accepted.receive() == [(20, b"last")]
    for _ in range(2):
        with pytest.raises(ConnectionClosed) as closed:
            accepted.receive()
    assert closed.value.why == "the peer closed the connection"
    assert not accepted.broke_protocol
    assert isinstance(closed.value, ConnectionError)


def test_one_receive_is_bounded_and_the_rest_comes_with_the_next(listener: Listener, path: str) -> None:
    dialled = dial(path)
    accepted = accept(listener)
    sent = received = 0
    payload = b"x" * 1000
    largest = 0
    while sent < 5000 or received < sent:
        while sent < 5000 and dialled.pending_bytes == 0:
            dialled.send(20, payload)
            sent += 1
        frames = accepted.receive()
        largest = max(largest, len(frames))
        received += len(frames)
        dialled.flush()
    assert received == 5000
    assert largest < 2000


def test_a_wrong_token_is_refused_and_counted(listener: Listener, path: str) -> None:
    before = channel.stats()["hellos_refused"]
    stranger = Connection.dial(path, b"?" * 32, b"D" * 16, 1)
    accepted = accept(listener)
    with pytest.raises(ConnectionClosed, match="token"):
        accepted.receive()
    assert accepted.broke_protocol and not accepted.greeted
    assert channel.stats()["hellos_refused"] == before + 1
    with pytest.raises(ConnectionClosed, match="before its hello"):
        stranger.receive()


def test_garbage_after_the_hello_ends_the_connection_and_is_counted(listener: Listener, path: str) -> None:
    before = channel.stats()["frames_malformed"]
    dialled = dial(path)
    accepted = accept(listener)
    os.write(dialled.fileno(), b"\xff" * 8)
    with pytest.raises(ConnectionClosed, match="malformed"):
        accepted.receive()
    assert accepted.broke_protocol
    assert channel.stats()["frames_malformed"] == before + 1


def test_a_silent_peer_is_late_after_five_seconds_and_not_before(listener: Listener, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(path)
        accepted = accept(listener)
        assert accepted.hello_deadline_s is not None
        assert channel.HELLO_DEADLINE_S - 1 < accepted.hello_deadline_s - time.monotonic() <= channel.HELLO_DEADLINE_S
        assert not accepted.close_if_late()
        assert accepted.is_alive


def test_a_peer_without_the_token_is_sent_nothing(listener: Listener, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(path)
        accepted = accept(listener)
        accepted.send(20, b"secret")
        stranger.send(b"x" * HELLO_BYTES)
        with pytest.raises(ConnectionClosed):
            accepted.receive()
        accepted.close()
        assert stranger.recv(1000) == b""


@pytest.mark.parametrize(
    ("token", "tag", "role", "message"),
    [
        (b"short", b"D" * 16, 0, "token must be 32 bytes .* not 5 bytes"),
        ("x" * 32, b"D" * 16, 0, "token must be 32 bytes .* not str"),
        (TOKEN, b"D" * 15, 0, "tag must be 16 bytes, not 15 bytes"),
        (TOKEN, b"D" * 16, 4, "role must be .* not 4"),
        (TOKEN, b"D" * 16, None, "role must be .* not None"),
    ],
)
def test_a_wrong_identity_is_named_without_showing_it(
    path: str, token: bytes, tag: bytes, role: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Listener(path, token, tag, role)
    with pytest.raises(ValueError, match=message):
        Connection.dial(path, token, tag, role)
    assert not os.path.exists(path)


def test_what_can_not_be_sent_is_refused_by_name(listener: Listener, path: str) -> None:
    dialled = dial(path)
    with pytest.raises(ValueError, match="256"):
        dialled.send(256, b"")
    with pytest.raises(TypeError):
        dialled.send(20, "text")  # type: ignore[arg-type]
    assert dialled.pending_bytes == 0


def test_listening_and_dialling_say_what_is_in_the_way(listener: Listener, path: str, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        Listener(path, TOKEN, b"L" * 16, 2)
    with pytest.raises(FileNotFoundError):
        Listener(str(tmp_path / "no" / "s"), TOKEN, b"L" * 16, 2)
    with pytest.raises(FileNotFoundError):
        dial(str(tmp_path / "nobody"))
    with pytest.raises(ValueError, match="107"):
        dial(str(tmp_path / ("x" * 200)))
    with pytest.raises(TypeError, match=r"Connection\.dial"):
        Connection()


def test_the_socket_is_this_users_only_and_goes_with_its_listener(listener: Listener, path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert listener.accept() is None
    listener.close()
    listener.close()
    assert not os.path.exists(path)
    assert listener.fileno() == -1
    with pytest.raises(ValueError, match="closed"):
        listener.accept()


def test_dropped_objects_leave_no_descriptor(path: str) -> None:
    gc.collect()  # what earlier tests have left
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        listener = Listener(path, TOKEN, b"L" * 16, 2)
        dialled = dial(path)
        accepted = accept(listener)
        dialled.send(20, b"x" * 100_000)
        accepted.receive()
        del listener, dialled, accepted
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not os.path.exists(path)


def test_repr_says_who_and_how_it_is(listener: Listener, path: str) -> None:
    dialled = dial(path)
    assert "greeting" in repr(dialled) and f"peer_pid={os.getpid()}" in repr(dialled)
    accepted = accept(listener)
    accepted.receive()
    assert "open" in repr(accepted)
    accepted.close()
    assert "closed: closed by this process" in repr(accepted)
