"""A store with its object manager and a stand-in for the gate of its node, for tests of transfers. LIBRARY of tests."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ray._native.plasma import PlasmaClient
from ray._native.transfer import TransferLine
from ray.plasma.server import launch

TOKEN = bytes(range(32))
PREAMBLE_BYTES = 32


class Gate:
    """A node's gate, in a thread: accepts on 127.0.0.1, reads the preamble, hands over to the object manager.

    host: a numeric address of this machine or network namespace."""

    def __init__(self, objects_socket: str, host: str = "127.0.0.1") -> None:
        self._line = TransferLine(objects_socket)
        self._listener = socket.create_server((host, 0), backlog=64)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._stop_read, self._stop_write = os.pipe()
        self._line.reached_at(*self.address)
        self._line.wait(self._line.ask_stats())  # it has heard so
        self._thread = threading.Thread(target=self._pass_on, name="test-gate")
        self._thread.start()

    def _pass_on(self) -> None:
        listener = self._listener.fileno()
        while True:
            ready = select.select([listener, self._stop_read], [], [])[0]
            if self._stop_read in ready:
                return
            connection = self._listener.accept()[0]
            with connection:
                if len(connection.recv(PREAMBLE_BYTES, socket.MSG_WAITALL)) == PREAMBLE_BYTES:
                    try:
                        self._line.adopt(connection.fileno())
                    except ConnectionError:
                        self._line = self._next_line()
                        self._line.adopt(connection.fileno())

    def _next_line(self) -> TransferLine:
        """To the store that was started in the place of one that died."""
        line = TransferLine(self._line.socket_path)
        line.reached_at(*self.address)  # before anybody is handed over, as a node does: it must know who it is
        return line

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join()
        for fd in (self._stop_read, self._stop_write):
            os.close(fd)
        self._listener.close()
        self._line.close()


class TransferNode:
    """address: where other stores reach this one. kill() is kill -9 of the store."""

    def __init__(
        self, folder: str, memory_bytes: int, token: bytes = TOKEN, host: str = "127.0.0.1", tls: bool = False
    ) -> None:
        self.objects_socket = folder + "/objects.sock"
        Path(folder + "/token").write_text(token.hex())
        self._folder, self._memory_bytes, self._tls = folder, memory_bytes, tls
        self._known: tuple[str, int] | None = None
        self._start_store()
        self._gate = Gate(self.objects_socket, host)
        self.address = self._known = self._gate.address

    def _start_store(self) -> None:
        folder = self._folder
        self.process, self._lifeline = launch(
            self._memory_bytes,
            folder + "/plasma.sock",
            objects_socket=self.objects_socket,
            token_file=folder + "/token",
            tls=self._tls,
            reached_at=self._known,
        )
        self.client = PlasmaClient(folder + "/plasma.sock")
        self.line = TransferLine(self.objects_socket)

    def restart_store(self) -> None:
        """Kills the store and starts another, which other stores reach at the same address."""
        self.kill()
        os.close(self._lifeline)
        self.line.close()
        self.client.disconnect()
        self._start_store()

    def fetch(self, key: bytes, sources: list[tuple[str, int]], timeout_s: float = 30.0) -> tuple[str, str, int]:
        """(outcome, text, request)."""
        request = self.line.pull(key, sources)
        _, _, outcome, text = self.line.wait(request, timeout_s)
        return outcome, text, request

    def stats(self) -> dict[str, int]:
        answer: tuple[Any, ...] = self.line.wait(self.line.ask_stats())
        counts: dict[str, int] = answer[2]
        return counts

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self._gate.close()
        self.line.close()
        self.client.disconnect()
        os.close(self._lifeline)
        self.process.wait(60)


@contextmanager
def transfer_nodes(count: int, memory_bytes: int, tls: bool = False) -> Iterator[list[TransferNode]]:
    with ExitStack() as stack:
        nodes = []
        for _ in range(count):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-transfer-"))
            node = TransferNode(folder, memory_bytes, tls=tls)
            stack.callback(node.close)
            nodes.append(node)
        yield nodes
