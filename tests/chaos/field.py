"""The nodes that the chaos run works on and attacks: on hosts with addresses of their own, or all on this machine.
LIBRARY; the process that uses it is a driver on the host `home`. Host 0 has the head.

    with open_field(4, 3.0, {}) as field:       HostsField; without root ClusterField, which has no links
        field.join(2)                                 a fresh node, where one has gone
        field.pids(2, "workers")                      asked of the kernel: the node may be paused or dead
"""

from __future__ import annotations

import abc
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import ray
from ray._launch import session as sessions
from ray.cli import node_link
from ray.cluster_utils import Cluster, ClusterNode
from tests.chaos.session import gone
from tests.cluster import netns
from tests.cluster.hosts import ROOT, Hosts
from tests.wait import wait_until

HEARTBEAT_S = 0.2
HEAD_WAIT_S = 40.0
TITLES = {
    "ray worker": "worker",
    "ray fork server": "fork_server",
    "plasma_store": "plasma_store",
    "redis-server": "redis",
}


def open_field(nodes: int, silence_s: float, more: dict[str, Any], store_bytes: int) -> Field:
    """more: of the cluster's settings (docs/config.md). store_bytes: of each node's object store."""
    settings = {"node_silence_s": silence_s, "heartbeat_s": HEARTBEAT_S, "head_restart_wait_s": HEAD_WAIT_S, **more}
    field = ClusterField if netns.why_not() else HostsField
    return field(nodes, settings, store_bytes)


class Field(abc.ABC):
    """hosts: how many, 0 the head's. node_pids: of the node processes, by host."""

    kind = ""  # in words
    network: netns.Network | None = None
    home = 0  # the host of this driver, whose node lives as long as the field does
    head_may_die = False  # somebody starts it again

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self.node_pids: dict[int, int] = {}
        self.node_ids: dict[int, str] = {}

    # what the two kinds of fields do each in its way

    @abc.abstractmethod
    def join(self, host: int) -> None: ...

    @abc.abstractmethod
    def folder(self, host: int) -> str:
        """Of the host's session that lives."""

    @abc.abstractmethod
    def files(self, host: int) -> list[str]:
        """Session folders of the host that there are, whether a node lives in them or not."""

    @abc.abstractmethod
    def command(self, host: int, command: list[str]) -> list[str]: ...

    def wait_head_back(self) -> None:
        """After the death of the head's node process. Only if head_may_die."""
        raise NotImplementedError

    # what they share

    @property
    def losable(self) -> list[int]:
        """Hosts that may lose their node, and get another."""
        return [host for host in range(1, self.hosts) if host != self.home]

    def pids(self, host: int, role: str | None = None) -> list[int]:
        """Of the node's processes; role: as in TITLES, or None for all, the node process first."""
        node = self.node_pids[host]
        found = [node] if role is None else []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):
                title, _, after = Path(f"/proc/{name}/stat").read_text().partition("(")[2].rpartition(")")
                if int(after.split()[1]) == node and (role is None or TITLES.get(title) == role):
                    found.append(int(name))
        return found

    def row(self, host: int) -> dict[str, Any]:
        return next(dict(row) for row in ray.nodes() if row["NodeID"] == self.node_ids[host])

    def stats(self, host: int) -> dict[str, Any]:
        """Of its node process."""
        answer, pidfd = node_link.ask(sessions.open_existing(self.folder(host)), "stats", timeout_s=10.0)
        os.close(pidfd)
        return dict(answer)

    def wait_lost(self, host: int, timeout_s: float) -> str:
        """Until the head has given the node up and none of its processes is left. Returns why."""
        wait_until(lambda: not self.row(host)["Alive"], timeout_s, what=f"the death of the node on host {host}")
        for pid in self.pids(host):
            gone(pid, timeout_s)
        return str(self.row(host)["DeathReasonMessage"])

    def program(self, host: int, output: IO[str], *arguments: str) -> subprocess.Popen[str]:
        """A driver on that host: tests/chaos/program.py. It ends when its stdin does."""
        return subprocess.Popen(
            self.command(host, [sys.executable, "-m", "tests.chaos.program", self.folder(host), *arguments]),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")},
        )


class HostsField(Field):
    kind = "hosts with addresses of their own"
    head_may_die = True  # `ray start --head` has made it, under a supervisor

    def __init__(self, hosts: int, settings: dict[str, Any], store_bytes: int) -> None:
        super().__init__(hosts)
        self.home = 1
        self._inside = Hosts(hosts, settings, home=self.home, store_bytes=store_bytes)
        self.network = self._inside.network

    def __enter__(self) -> HostsField:
        with contextlib.ExitStack() as opening:
            opening.enter_context(self._inside)
            for host in (0, self.home):
                self._look(host)
            for host in self.losable:
                self.join(host)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def join(self, host: int) -> None:
        self._inside.join(host, "--num-cpus=2")
        self._look(host)

    def _look(self, host: int) -> None:
        self.node_pids[host], self.node_ids[host] = self._inside.pid(host), self._inside.node_id(host)

    def wait_head_back(self) -> None:
        self._inside.wait_head_back(self.node_pids[0], HEAD_WAIT_S)
        self._look(0)

    def folder(self, host: int) -> str:
        return self._inside.session_folder(host)

    def files(self, host: int) -> list[str]:
        return [str(path) for path in Path(self._inside.temporary(host)).glob("ray-*/s-*")]

    def command(self, host: int, command: list[str]) -> list[str]:
        assert self.network is not None
        return self.network.command(host, command)


class ClusterField(Field):
    """Without root: nodes on 127.0.0.1, and no faults of links."""

    kind = "nodes on one address, without faults of links"

    def __init__(self, hosts: int, settings: dict[str, Any], store_bytes: int) -> None:
        super().__init__(hosts)
        self._settings, self._store_bytes = settings, store_bytes
        self._nodes: dict[int, ClusterNode] = {}

    def __enter__(self) -> ClusterField:
        self._cluster = Cluster()
        try:
            self._add(0, _system_config=self._settings)
            ray.init(self.folder(0), logging_level="error", log_to_driver=False)
            for host in range(1, self.hosts):
                self.join(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: Any) -> None:
        ray.shutdown()
        self._cluster.shutdown()

    def _add(self, host: int, **more: Any) -> None:
        node = self._cluster.add_node(num_cpus=2 if host else 1, object_store_memory=self._store_bytes, **more)
        self._nodes[host] = node
        self.node_pids[host], self.node_ids[host] = node.pid, node.node_id

    def join(self, host: int) -> None:
        if host in self._nodes:
            self._cluster.remove_node(self._nodes.pop(host), allow_graceful=False)
        self._add(host)
        number = self._nodes[host].number
        wait_until(lambda: number in self.stats(0)["neighbours"])

    def folder(self, host: int) -> str:
        return self._nodes[host].session_dir

    def files(self, host: int) -> list[str]:
        return [self.folder(host)] if host in self._nodes else []

    def command(self, host: int, command: list[str]) -> list[str]:
        return command
