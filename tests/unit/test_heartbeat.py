"""ray/_node/heartbeat.py: a head that says nothing is noticed, whatever else the process has open."""

from __future__ import annotations

import os
import resource
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ray._node.heartbeat import Heartbeat, Proof


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
        heartbeat = Heartbeat(node, deaf.getsockname(), 0.02, 0.2, said.append, noticed.set, 17.0)
        try:
            assert noticed.wait(60)
        finally:
            heartbeat.close()
            heartbeat._thread.join(60)
            for fd in opened:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
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
