"""ray/_node/heartbeat.py: a head that says nothing is noticed, whatever else the process has open."""

from __future__ import annotations

import os
import resource
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ray._native.channel import Connection, ConnectionClosed, TcpListener
from ray._node.heartbeat import Heartbeat, Proof
from ray._protocol.frames import FRAME_EVENT, ROLE_NODE
from ray._transport import messages


@pytest.mark.parametrize("others", [0, 1100], ids=["few descriptors", "more than select takes"])
def test_a_silent_head_is_noticed(others: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < others + 200:
        pytest.skip(f"only {hard} descriptors may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, others + 200), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(others)]
    said: list[str] = []
    noticed = threading.Event()

    def call(function: Any, why: str) -> None:
        function(why)
        noticed.set()

    node: Any = SimpleNamespace(
        node_id=os.urandom(16),
        session=SimpleNamespace(token=os.urandom(32)),
        settings=SimpleNamespace(tls=False),
        loop=SimpleNamespace(call_soon_threadsafe=call),
    )
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        heartbeat = Heartbeat(node, deaf.getsockname(), bytes(16), 0.02, 0.2, said.append, noticed.set, 17.0)
        try:
            assert noticed.wait(60)
        finally:
            heartbeat.close()
            heartbeat._thread.join(60)
            for fd in opened:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "has been silent" in said[0] and heartbeat.confirmed_s == 17.0


@pytest.mark.parametrize("who", ["the head", "another node"])
def test_only_the_heads_own_answers_count(who: str) -> None:
    token, head_id = os.urandom(32), os.urandom(16)
    listener = TcpListener("127.0.0.1", 0)
    stop, noticed = threading.Event(), threading.Event()

    def answer() -> None:
        """As a node's gate and its process do."""
        connections: list[Connection] = []
        while not stop.wait(0.005):
            fd = listener.accept()
            if fd is not None:
                os.set_blocking(fd, True)
                assert len(os.read(fd, 32)) == 32  # the preamble
                os.set_blocking(fd, False)
                tag = head_id if who == "the head" else os.urandom(16)
                connections.append(Connection.adopt(fd, token, tag, ROLE_NODE))
            for connection in list(connections):
                try:
                    for _ in connection.receive_frames():
                        connection.append(FRAME_EVENT, messages.encode_event("heard", ()))
                    connection.flush()
                except ConnectionClosed:
                    connections.remove(connection)
        for connection in connections:
            connection.close()

    node: Any = SimpleNamespace(
        node_id=os.urandom(16),
        session=SimpleNamespace(token=token),
        settings=SimpleNamespace(tls=False),
        loop=SimpleNamespace(call_soon_threadsafe=lambda function, *args: (function(*args), noticed.set())),
    )
    said: list[str] = []
    head = threading.Thread(target=answer)
    head.start()
    heartbeat = Heartbeat(node, ("127.0.0.1", listener.port), head_id, 0.05, 0.5, said.append, lambda: None, 17.0)
    heartbeat.wanted = True
    try:
        assert noticed.wait(60)
    finally:
        heartbeat.close()
        heartbeat._thread.join(60)
        stop.set()
        head.join()
        listener.close()
    if who == "the head":
        assert not said and heartbeat.confirmed_s > 17.0
    else:
        assert "has been silent" in said[0] and heartbeat.confirmed_s == 17.0


def test_an_answer_proves_only_what_was_true_when_its_beat_was_sent() -> None:
    """The answer to an old beat may come after this node has stood still for long, and be read before anything else."""
    proof = Proof(1.0)
    for now in (2.0, 3.0, 4.0):
        proof.sent(now)
    proof.answered(2)
    assert proof.confirmed_s == 3.0
    proof.begin()  # what was not answered on the old connection never will be
    proof.sent(20.0)
    assert proof.confirmed_s == 3.0
    proof.answered(1)
    assert proof.confirmed_s == 20.0
