"""A node's uplink when the head is back: what it says again, and in which order."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ray._node import uplink as uplinks
from ray._node.uplink import ORDERS, Uplink
from ray._protocol.frames import FRAME_EVENT
from ray._transport import messages


class Line:
    """In place of a Peer: what is said over it."""

    closed = False
    tag = bytes(16)
    why_closed = ""

    def __init__(self) -> None:
        self.said: list[tuple[str, tuple[Any, ...]]] = []

    def send(self, kind: int, frame: bytes) -> None:
        assert kind == FRAME_EVENT
        self.said.append(messages.decode_event(frame))

    def told(self) -> list[tuple[int, str]]:
        return [(args[0], args[1]) for name, args in self.said if name == "told"]


@pytest.fixture
def uplink(monkeypatch: pytest.MonkeyPatch) -> Uplink:
    """Of a node whose head is away."""
    monkeypatch.setattr(uplinks, "Heartbeat", lambda *args: SimpleNamespace(close=lambda: None))
    loop = asyncio.new_event_loop()
    node = SimpleNamespace(
        loop=loop,
        settings=SimpleNamespace(head_restart_wait_s=60.0, tls=False),
        lines=SimpleNamespace(show=None, taken=None),
        head_port=SimpleNamespace(**dict.fromkeys(ORDERS)),
        cluster_view=SimpleNamespace(repeat=lambda: None),
        ending=None,
    )
    found = Uplink(node, "10.0.0.1", 6379)  # type: ignore[arg-type]
    found._table = SimpleNamespace(replace=lambda rows, cause: None)  # type: ignore[assignment]
    found.lasts = True
    loop.close()
    return found


def test_what_follows_from_the_heads_return_is_said_behind_what_was_said_before(uplink: Uplink) -> None:
    """It was sent at once, with a higher number: so the head took all that was older for heard, and actors that had
    been created meanwhile never were. Found by the simulation, seeds 55 and 64."""
    uplink.event("core_event", None, "create_actor", (b"a",))
    uplink._node.head_port.release_actor = lambda actor_id: uplink.event("actor_placed", b"b", b"node")
    line = Line()
    answer = {"nodes": [], "release": [b"c"], "kept": 0, "silence_s": 10.0, "heartbeat_s": 1.0}
    uplink._come_back(line, {"actors": {b"b": 0, b"c": 0}}, answer)  # type: ignore[arg-type]
    assert line.told() == [(1, "core_event"), (2, "actor_placed")]


def test_what_a_node_was_told_before_it_stood_still_it_does_only_when_the_head_has_answered_since(
    uplink: Uplink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that had been declared dead, and woke, made an actor that had been given to another: it read its socket
    before it noticed that the head had closed it."""
    done: list[str] = []
    uplink._handlers.update({name: lambda *args, name=name: done.append(name) for name in ("become_actor", "view")})  # type: ignore[misc]
    now = 1000.0
    monkeypatch.setattr(uplinks.time, "monotonic", lambda: now)
    uplink._silence_s = 10.0
    beats = SimpleNamespace(confirmed_s=995.0, wanted=False, close=lambda: None)
    uplink._heartbeat, uplink.peer = beats, Line()  # type: ignore[assignment]
    uplink._on_event(uplink.peer, "view", ())  # type: ignore[arg-type]
    assert done == ["view"] and not beats.wanted
    now = 1020.0  # it stood still
    uplink._on_event(uplink.peer, "become_actor", ())  # type: ignore[arg-type]
    beats.confirmed_s = 1001.0
    uplink._confirmed()  # an old answer, read late
    uplink._on_event(uplink.peer, "view", ())  # type: ignore[arg-type]
    assert done == ["view"] and beats.wanted
    beats.confirmed_s = 1020.0
    uplink._confirmed()
    assert done == ["view", "become_actor", "view"] and not beats.wanted


def test_a_reservation_that_is_met_when_the_head_returns_is_not_spoken_of(uplink: Uplink) -> None:
    """The head has begun all anew: it would take the answer to the lost attempt for one to its own first."""
    uplink._node.head_port.release_actor = lambda actor_id: uplink.event("bundles_prepared", b"node", b"group", 1)
    line = Line()
    answer = {"nodes": [], "release": [b"c"], "kept": 0, "silence_s": 10.0, "heartbeat_s": 1.0}
    uplink._come_back(line, {"actors": {b"b": 0, b"c": 0}}, answer)  # type: ignore[arg-type]
    assert line.told() == []


def test_what_a_node_has_said_of_an_actor_that_it_does_not_hold_any_more_is_not_said_again(uplink: Uplink) -> None:
    """Its creation was not written down, and came again, too: the head looked for a place and heard of a worker of the
    old one. Found by the simulation, seed 7002729."""
    for actor_id in (b"gone", b"held", b"released"):
        uplink.event("actor_placed", actor_id, b"node", 0)
        uplink.event("actor_worker_started", actor_id, b"w", 1, [], 0)
    uplink.event("worker_died", b"w", "killed")
    uplink._node.head_port.release_actor = lambda actor_id: None
    line = Line()
    answer = {"nodes": [], "release": [b"released"], "kept": 0, "silence_s": 10.0, "heartbeat_s": 1.0}
    uplink._come_back(line, {"actors": {b"held": 0, b"released": 0}}, answer)  # type: ignore[arg-type]
    assert line.told() == [(3, "actor_placed"), (4, "actor_worker_started"), (7, "worker_died")]
