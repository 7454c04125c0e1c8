"""Tells the head every second that this machine is there, and notices when the head is silent. A thread of its own.

A connection of its own, too: so neither a busy event loop nor a long queue of messages makes a node look dead. The head
answers each beat at once. If nothing has come from it for `silence_s`, this machine is cut off, or the head's is: the
head gives up this node after the same time, so the node must not go on alone. The connection's end means nothing here:
the uplink, to the same process, sees it as well.

A connection on which nothing comes back is given up for a new one after REDIAL_PART of the silence. TCP sends what was
lost again after 0.2 s, then after twice as long, and so on: when a link has been down for 6 of 10 s, the next attempt
on the old connection may be due 6 s later, and the node would be declared dead over a link that works. Not sooner: on a
slow link making a connection takes four round trips.

What an answer proves is that this node was not given up when the beat that it answers was sent, nor for `silence_s`
after that (`confirmed_s`). A node that has stood still for longer must not do what it was told before: see uplink.py.
"""

from __future__ import annotations

import collections
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ray._native.channel import Connection, ConnectionClosed
from ray._protocol.frames import DESTINATION_NODE, FRAME_EVENT, ROLE_NODE
from ray._transport import messages

if TYPE_CHECKING:
    from .shell import Node

REDIAL_PART = 0.25


class Proof:
    """When this node can't have been given up: an answer belongs to the oldest beat of its connection. Pure."""

    def __init__(self, confirmed_s: float) -> None:
        self.confirmed_s = confirmed_s
        self._sent: collections.deque[float] = collections.deque()  # beats on this connection, not answered yet

    def begin(self) -> None:
        """On a new connection."""
        self._sent.clear()

    def sent(self, now: float) -> None:
        self._sent.append(now)

    def answered(self, beats: int) -> None:
        for _ in range(min(beats, len(self._sent))):
            self.confirmed_s = self._sent.popleft()


class Heartbeat:
    def __init__(
        self,
        node: Node,
        head: tuple[str, int],
        head_id: bytes,
        period_s: float,
        silence_s: float,
        cut_off: Callable[[str], None],
        confirmed: Callable[[], None],
        confirmed_s: float,
    ) -> None:
        """head_id: of its node, as proved on the uplink: nobody else's answers count. cut_off(why): called on the
        node's loop, once, after silence_s. confirmed(): called there whenever confirmed_s has changed while `wanted`.
        confirmed_s: when what the head has answered already was sent."""
        self._node_id = node.node_id
        self._token = node.session.token
        self._tls = bool(node.settings.tls)
        self._head, self._head_id = head, head_id
        self._period_s, self._silence_s = period_s, silence_s
        self._cut_off = cut_off
        self._confirmed = confirmed
        self._proof = Proof(confirmed_s)  # changed by its thread only
        self.wanted = False  # somebody waits for its next change; written by the node's main thread only
        self._loop = node.loop
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray-heartbeat", daemon=True)
        self._thread.start()

    @property
    def confirmed_s(self) -> float:
        """When the last beat was sent that the head has answered."""
        return self._proof.confirmed_s

    def close(self) -> None:
        """Its thread ends within a period; nobody waits for it."""
        self._stop.set()

    def _run(self) -> None:
        connection = None
        heard_s = dialled_s = time.monotonic()
        next_s = heard_s
        redial_s = max(2 * self._period_s, REDIAL_PART * self._silence_s)
        while not self._stop.wait(max(0.0, next_s - time.monotonic())):
            now = time.monotonic()
            next_s = now + self._period_s
            try:
                if connection is not None and now - max(heard_s, dialled_s) > redial_s:
                    connection.close()
                    connection = None
                if connection is None:
                    dialled_s = now
                    self._proof.begin()
                    connection = Connection.dial_tcp(
                        *self._head,
                        DESTINATION_NODE,
                        self._token,
                        self._node_id,
                        ROLE_NODE,
                        self._head_id,
                        tls=self._tls,
                    )
                connection.append(FRAME_EVENT, messages.encode_event("heartbeat", ()))
                self._proof.sent(now)
                answers = self._answers(connection, next_s)
                if answers:
                    heard_s = time.monotonic()
                    self._proof.answered(answers)
                    if self.wanted:
                        self._loop.call_soon_threadsafe(self._confirmed)
            except (ConnectionClosed, OSError):
                if connection is not None:
                    connection.close()
                connection = None
            silent_s = time.monotonic() - heard_s
            if silent_s > self._silence_s and not self._stop.is_set():
                host, port = self._head
                why = f"the cluster's head at {host}:{port} has been silent for {silent_s:.1f} s: this node is cut off"
                self._loop.call_soon_threadsafe(self._cut_off, why)
                break
        if connection is not None:
            connection.close()

    def _answers(self, connection: Connection, until_s: float) -> int:
        """How many come by then; returns with the first. Greets meanwhile, if the connection is new: it takes some
        messages."""
        connection.flush()
        while (left_s := until_s - time.monotonic()) > 0:
            poll = select.poll()  # not select(): a node of many workers has descriptors above its 1,024
            poll.register(connection.fileno(), select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
            for _, events in poll.poll(left_s * 1000):
                if events & select.POLLOUT:
                    connection.flush()
                if events & ~select.POLLOUT:
                    answers = len(connection.receive_frames())
                    if answers:
                        return answers
        return 0
