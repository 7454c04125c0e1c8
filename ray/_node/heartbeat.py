"""Tells the head every second that this machine is there, and notices when the head is silent. A thread of its own.

A connection of its own, too: so neither a busy event loop nor a long queue of messages makes a node look dead. The head
answers each beat at once. If nothing has come from it for `silence_s`, this machine is cut off, or the head's is: the
head gives up this node after the same time, so the node must not go on alone. The connection's end means nothing here:
the uplink, to the same process, sees it as well.
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


class Heartbeat:
    def __init__(
        self, node: Node, head: tuple[str, int], period_s: float, silence_s: float, cut_off: Callable[[str], None]
    ) -> None:
        """cut_off(why): called on the node's loop, once, after silence_s."""
        self._node_id = node.node_id
        self._token = node.session.token
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
        heard_s = time.monotonic()
        while not self._stop.wait(self._period_s):
            try:
                if connection is None:
                    connection = Connection.dial_tcp(
                        *self._head, DESTINATION_NODE, self._token, self._node_id, ROLE_NODE
                    )
                connection.append(FRAME_EVENT, messages.encode_event("heartbeat", ()))
                connection.flush()
                if self._answered(connection):
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

    def _answered(self, connection: Connection) -> bool:
        """Whether anything has come. Waits for it up to a period."""
        ready, _, _ = select.select([connection.fileno()], [], [], self._period_s)
        return bool(ready) and bool(connection.receive_frames())
