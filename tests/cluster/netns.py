"""A network of machines on this one: namespaces with an address each, joined by a switch. LIBRARY of tests; needs root.

    with Network(3) as network:
        network.run(0, ["ray", "start", "--head", "--port=0", f"--node-ip-address={network.address(0)}"])
        node = network.inside(1, lambda host: TransferNode(folder, memory_bytes, host=host))
        network.unplug(1)               # as if its cable were pulled
        network.separate([1, 2])        # these don't reach one another any more; others still reach both

The switch is a bridge in a namespace of its own, so this machine's network stays as it is. All of it is gone at the
end of the block, also after a failure; processes in it are the caller's to end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from tests.wait import wait_until

from .delay import DelayedCable

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


def why_not() -> str:
    """Why this machine can't have such networks; empty: it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 and util-linux are not installed"
    name = f"rtry{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"the kernel refuses network namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Network:
    def __init__(self, hosts: int, *, mbit: int = 0, delays: dict[int, float] | None = None) -> None:
        """
        Args:
            mbit: how fast each host may send; 0: as fast as the machine can.
            delays: seconds that each frame takes to or from a host, for hosts with a slow cable (see delay.py).
        """
        self.hosts, self._mbit, self._delays = hosts, mbit, delays or {}
        self._mark = f"rt{os.getpid() % 100000}"
        self._switch = f"{self._mark}-switch"
        self.cables: dict[int, DelayedCable] = {}

    def name(self, host: int) -> str:
        """Of its namespace."""
        return f"{self._mark}-{host}"

    def address(self, host: int) -> str:
        return f"10.77.{host // 250}.{host % 250 + 1}"

    # -- begin and end

    def __enter__(self) -> Network:
        try:
            _ip("netns", "add", self._switch)
            _ip_batch(self._switch, "link add switch type bridge", "link set switch up")
            for host in range(self.hosts):
                self._add(host)
        except BaseException:
            self._remove()
            raise
        return self

    def _add(self, host: int) -> None:
        name = self.name(host)
        _ip("netns", "add", name)
        if host in self._delays:
            with self._entered(self._switch):
                outer = DelayedCable.tap(f"port{host}")
            with self._entered(name):
                inner = DelayedCable.tap("eth0")
            self.cables[host] = DelayedCable(outer, inner, self._delays[host])
        else:
            _ip_batch(self._switch, f"link add port{host} type veth peer name eth0 netns {name}")
        _ip_batch(self._switch, f"link set port{host} master switch up")
        _ip_batch(name, f"link set eth0 address {_hardware(host)}")
        _ip_batch(name, f"addr add {self.address(host)}/16 dev eth0", "link set eth0 up", "link set lo up")
        # Known for good: else, after a cable was out, a second or two pass until the kernel asks for addresses again.
        known = [
            f"neigh replace {self.address(i)} lladdr {_hardware(i)} dev eth0 nud permanent" for i in range(self.hosts)
        ]
        _ip_batch(name, *(line for i, line in enumerate(known) if i != host))
        if self._mbit:
            rate = ("rate", f"{self._mbit}mbit", "burst", "1mb", "latency", "20ms")
            _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *rate)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        for cable in self.cables.values():
            cable.close()
        for name in [*map(self.name, range(self.hosts)), self._switch]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    # -- what runs there

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in the host's namespace."""
        return ["nsenter", f"--net=/run/netns/{self.name(host)}", *command]

    def pids(self, host: int) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name(host)], check=True, capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def entered(self, host: int) -> contextlib.AbstractContextManager[None]:
        """Until its end, this thread is on the host, and so are the sockets, threads and processes that it makes."""
        return self._entered(self.name(host))

    @contextlib.contextmanager
    def _entered(self, name: str) -> Iterator[None]:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/run/netns/{name}", os.O_RDONLY)
            try:
                _setns(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _setns(before)
        finally:
            os.close(before)

    def inside(self, host: int, make: Callable[[str], T]) -> T:
        """make(address) on a thread in the namespace: its sockets, and the processes that it starts, stay there."""
        result: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                with self.entered(host):
                    result.append(make(self.address(host)))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    # -- what happens to cables

    def unplug(self, host: int) -> None:
        """Nothing travels to or from the host, and no connection of it hears why."""
        _ip_batch(self._switch, f"link set port{host} down")

    def plug(self, host: int) -> None:
        """Returns once frames travel: the kernel lets go of a device whose cable was out only some moments later."""
        _ip_batch(self._switch, f"link set port{host} up")
        for namespace, device in ((self._switch, f"port{host}"), (self.name(host), "eth0")):
            wait_until(lambda: "state UP" in _run("ip", "-n", namespace, "link", "show", device))  # noqa: B023

    def separate(self, hosts: Sequence[int]) -> None:
        """These hosts don't reach one another, only the others; [] lets all reach all."""
        for host in range(self.hosts):
            isolated = "on" if host in hosts else "off"
            _ip_batch(self._switch, f"link set dev port{host} type bridge_slave isolated {isolated}")

    def mute(self, host: int, to: Sequence[int]) -> None:
        """What the host sends to these is lost; what they send arrives. It addresses its frames to nobody."""
        self._address_frames(host, to, "02:00:00:ff:ff:ff")

    def unmute(self, host: int, to: Sequence[int]) -> None:
        for other in to:
            self._address_frames(host, [other], _hardware(other))

    def _address_frames(self, host: int, to: Sequence[int], hardware: str) -> None:
        lines = [f"neigh replace {self.address(i)} lladdr {hardware} dev eth0 nud permanent" for i in to if i != host]
        _ip_batch(self.name(host), *lines)

    @contextlib.contextmanager
    def unreachable(self, host: int, to: Sequence[int]) -> Iterator[None]:
        """Inside, what the host dials on these fails at once, as if a router on the way had no route."""
        names = [f"unreachable {self.address(i)}/32" for i in to]
        _ip_batch(self.name(host), *(f"route add {name}" for name in names))
        try:
            yield
        finally:
            _ip_batch(self.name(host), *(f"route del {name}" for name in names))

    def slow(self, host: int, mbit: float) -> None:
        """How fast frames travel to and from the host from now on; 0: as fast as the machine can."""
        for namespace, device in ((self._switch, f"port{host}"), (self.name(host), "eth0")):
            if mbit:
                rate = ("rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms")
                _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *rate)
            else:
                _run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")


def _hardware(host: int) -> str:
    return f"02:00:00:00:{host >> 8:02x}:{host & 255:02x}"


def _setns(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _ip_batch(namespace: str, *lines: str) -> None:
    _run("ip", "-n", namespace, "-batch", "-", text="\n".join(lines))


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)} {text!r}: {done.stderr.strip()}")
    return done.stdout
