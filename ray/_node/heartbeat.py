"""Tells the head every second that this machine is there, and notices when the head is silent. A thread of its own.

A connection of its own, too: so neither a busy event loop nor a long queue of messages makes a node look dead. The head
answers each beat at once. If nothing has come from it for `silence_s`, this machine is cut off, or the head's is: the
head gives up this node after the same time, so the node must not go on alone. The connection's end means nothing here:
the uplink, to the same process, sees it as well.

A connection on which nothing comes back is given up for a new one after REDIAL_PART of the silence. TCP sends what was
lost again after 0.2 s, then after twice as long, and so on: when a link has been down for 6 of 10 s, the next attempt
on the old connection may be due 6 s later, and the node would be declared dead over a link that works. Not sooner: on a
slow link making a connection takes four round trips.
"""

from __future__ import annotations

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


class Heartbeat:
    def __init__(
        self, node: Node, head: tuple[str, int], period_s: float, silence_s: float, cut_off: Callable[[str], None]
    ) -> None:
        """cut_off(why): called on the node's loop, once, after silence_s."""
        self._node_id = node.node_id
        self._token = node.session.token
        self._tls = bool(node.settings.tls)
        self._head = head
        self._period_s, self._silence_s = period_s, silence_s
        self._cut_off = cut_off
        self._loop = node.loop
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Its thread ends within a period; nobody waits for it."""
        self._stop.set()

    def _run(self) -> None:
        connection = None
        heard_s = dialled_s = time.monotonic()
        next_s = heard_s + self._period_s
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
                    connection = Connection.dial_tcp(
                        *self._head, DESTINATION_NODE, self._token, self._node_id, ROLE_NODE, tls=self._tls
                    )
                connection.append(FRAME_EVENT, messages.encode_event("heartbeat", ()))
                if self._answered(connection, next_s):
                    heard_s = time.monotonic()
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

    def _answered(self, connection: Connection, until_s: float) -> bool:
        """Whether anything has come by then. Greets meanwhile, if the connection is new: it takes some messages."""
        connection.flush()
        while (left_s := until_s - time.monotonic()) > 0:
            poll = select.poll()  # not select(): a node of many workers has descriptors above its 1,024
            poll.register(connection.fileno(), select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
            for _, events in poll.poll(left_s * 1000):
                if events & select.POLLOUT:
                    connection.flush()
                if events & ~select.POLLOUT and connection.receive_frames():
                    return True
        return False
