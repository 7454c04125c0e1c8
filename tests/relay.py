"""Stands between a `ray://` client and its server in tests: cuts connections, and may meddle. LIBRARY."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from ray.client import proof


def _break(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # has ended by itself


class Relay:
    """Passes bytes between a port of its own and the server's; cut() breaks every connection."""

    def __init__(self, port: int, meddle: Callable[[bytes], bytes] | None = None) -> None:
        """meddle: what becomes of the server's first message, its challenge."""
        self._port = port
        self._meddle = meddle
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.passed = bytearray() if meddle is not None else None  # all that the client has said
        self.refusing = False
        self.breaking = 0  # so many connections break between the client's proof and the server's
        self.cuts = 0  # so many connections are cut, each when it has carried cut_after_bytes
        self.cut_after_bytes = 1 << 20
        self._run(self._accept)

    def _run(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._port))
            self._pairs += [near, far]
            if self._meddle is not None:
                near.sendall(self._meddle(far.recv(proof.CHALLENGE_BYTES, socket.MSG_WAITALL)))
            if self.breaking > 0:
                self.breaking -= 1
                near.sendall(far.recv(proof.CHALLENGE_BYTES, socket.MSG_WAITALL))
                near.recv(proof.REQUEST_BYTES, socket.MSG_WAITALL)
                _break(near)
                _break(far)
                continue
            carried = [0]
            for one, other in ((near, far), (far, near)):
                self._run(self._pass, one, other, carried, one is near)

    def _pass(self, one: socket.socket, other: socket.socket, carried: list[int], of_the_client: bool) -> None:
        try:
            while data := one.recv(65536):
                if of_the_client and self.passed is not None:
                    self.passed += data
                other.sendall(data)
                carried[0] += len(data)
                if self.cuts and carried[0] > self.cut_after_bytes:
                    self.cuts -= 1
                    break
        except OSError:
            pass  # cut
        for sock in (one, other):
            _break(sock)

    def cut(self) -> None:
        for sock in list(self._pairs):  # those of now: who is cut dials again at once
            _break(sock)

    def close(self) -> None:
        self.cut()
        _break(self._listener)
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._pairs):
            sock.close()
