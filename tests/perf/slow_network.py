"""A network of namespaces in which each host sends at a bounded rate, as in a real one. LIBRARY; needs root.

    with SlowNetwork(9, mbit=1000) as network:
        node = network.inside(0, lambda host: TransferNode(folder, memory_bytes, host=host))

Processes and sockets made in `inside` are that host's. All of it is gone at the end of the block, also after a failure.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from types import TracebackType
from typing import Callable, TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class SlowNetwork:
    def __init__(self, hosts: int, mbit: int) -> None:
        self._hosts, self._mbit = hosts, mbit
        self._mark = f"rs{os.getpid() % 100000}"

    def _name(self, host: int) -> str:
        return f"{self._mark}-{host}"

    def __enter__(self) -> SlowNetwork:
        try:
            _run("ip", "link", "add", self._mark, "type", "bridge")
            _run("ip", "link", "set", self._mark, "up")
            for host in range(self._hosts):
                self._add(host)
        except BaseException:
            self._remove()
            raise
        return self

    def _add(self, host: int) -> None:
        name, outside = self._name(host), f"{self._mark}v{host}"
        inside = ("ip", "netns", "exec", name)
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", outside, "master", self._mark, "up")
        _run(*inside, "ip", "addr", "add", f"{self.address(host)}/16", "dev", "eth0")
        _run(*inside, "ip", "link", "set", "eth0", "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        rate = f"{self._mbit}mbit"
        _run(
            *inside, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "1mb", "latency", "20ms"
        )

    def address(self, host: int) -> str:
        return f"10.77.{host // 250}.{host % 250 + 1}"

    def inside(self, host: int, make: Callable[[str], T]) -> T:
        """make(address) on a thread in the namespace: its sockets, and the processes that it starts, stay there."""
        result: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                fd = os.open(f"/run/netns/{self._name(host)}", os.O_RDONLY)
                try:
                    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(fd)
                result.append(make(self.address(host)))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        for host in range(self._hosts):
            subprocess.run(["ip", "netns", "del", self._name(host)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._mark], check=False, capture_output=True)
