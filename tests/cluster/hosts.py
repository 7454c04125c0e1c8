"""A cluster whose nodes are on machines with addresses of their own (netns.py), started as a person would. LIBRARY.

    with Hosts(3, {"node_silence_s": 2.0}) as hosts:      host 0: the head's, and this process is a driver there
        hosts.join(1, "--num-cpus=2")
    with Hosts(3, home=1) as hosts:                       the driver is on host 1, whose node has joined

For as long as the block lasts, the thread that entered it is on the driver's host, with all threads and processes that
it starts.
A host has at most one node at a time; nodes may come and go. Each has a RAY_TMPDIR of its own and shares nothing with
others but the token.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray._launch import session as sessions
from ray.cli import node_link
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.wait import wait_until

from .netns import Network

ROOT = str(Path(__file__).resolve().parents[2])
TOKEN = "a token for tests, long enough"
STORE_BYTES = 256 * 2**20


class Hosts:
    def __init__(
        self,
        count: int,
        settings: dict[str, Any] | None = None,
        *,
        delays: dict[int, float] | None = None,
        home: int = 0,
        store_bytes: int = STORE_BYTES,
        **init: Any,
    ) -> None:
        """settings: of the cluster. delays: see Network. home: the driver's host. store_bytes: of each node. init: more
        arguments of ray.init."""
        self.network = Network(count, delays=delays)
        self.settings = {"heartbeat_s": 0.2, "node_silence_s": 2.0, "head_restart_wait_s": 0, **(settings or {})}
        self.address = ""
        self._home, self._store_bytes, self._init = home, store_bytes, init
        self._ids: dict[int, str] = {}  # of the latest node of each host
        self._open = contextlib.ExitStack()

    # -- begin and end

    def __enter__(self) -> Hosts:
        with contextlib.ExitStack() as opening:
            self._folder = opening.enter_context(tempfile.TemporaryDirectory(prefix="ray-n-", dir="/tmp"))
            opening.enter_context(self.network)
            opening.callback(self._stop_all)
            said = self.start(0, "--head", "--port=0", "--num-cpus=1", f"--system-config={json.dumps(self.settings)}")
            found = re.search(r"ray start --address=(\S+)`", said)
            assert found is not None, said
            self.address = found[1]
            if self._home:
                self._start_joined(self._home, "--num-cpus=2")
            opening.enter_context(self.network.entered(self._home))
            opening.callback(ray.shutdown)
            ray.init(self.session_folder(self._home), logging_level="error", log_to_driver=False, **self._init)
            for host in {0, self._home}:
                self._keep_id(host)
            self._open = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def _stop_all(self) -> None:
        for host in reversed(range(self.network.hosts)):
            self.stop(host)
        for host in range(self.network.hosts):
            self.wait_gone(host)

    # -- nodes

    def temporary(self, host: int) -> str:
        folder = f"{self._folder}/{host}"
        os.makedirs(folder, exist_ok=True)
        return folder

    def session_folder(self, host: int) -> str:
        (folder,) = sessions.sessions(self.temporary(host))
        return folder

    def ray(self, host: int, *arguments: str) -> str:
        """`ray <arguments>` there: what it printed."""
        done = self.popen(host, sys.executable, "-m", "ray.cli", *arguments)
        out, _ = done.communicate(timeout=60)
        assert done.returncode == 0, out
        return out

    def popen(self, host: int, *command: str) -> subprocess.Popen[str]:
        """A program on that host; its output is to be read."""
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        own = {"RAY_TMPDIR": self.temporary(host), "PYTHONPATH": ROOT, "RAY_AUTH_TOKEN": TOKEN}
        return subprocess.Popen(
            self.network.command(host, command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**kept, **own},
        )

    def start(self, host: int, *options: str) -> str:
        more = ("--include-dashboard=false", f"--object-store-memory={self._store_bytes}")
        return self.ray(host, "start", f"--node-ip-address={self.network.address(host)}", *more, *options)

    def join(self, host: int, *options: str) -> int:
        """A node with one CPU and one of the resource "host<N>". Returns its number, once work may go to it."""
        number = self._start_joined(host, *options)
        self._keep_id(host)
        return number

    def _start_joined(self, host: int, *options: str) -> int:
        own = json.dumps({f"host{host}": 1})
        said = self.start(host, f"--address={self.address}", "--num-cpus=1", f"--resources={own}", *options)
        found = re.search(r"It is node (\d+) of", said)
        assert found is not None, said
        number = int(found[1])
        wait_until(lambda: number in self.stats(0)["neighbours"])
        return number

    def _keep_id(self, host: int) -> None:
        living = [r for r in ray.nodes() if r["Alive"] and r["NodeManagerAddress"] == self.network.address(host)]
        self._ids[host] = str(living[0]["NodeID"])

    def wait_head_back(self, before: int, timeout_s: float) -> None:
        """Until another node process than that with the pid `before` is the head's, and knows every other node."""

        def back() -> bool:
            try:
                stats = self.stats(0)
            except OSError:  # nobody listens, or it ended before it answered
                return False
            living = [row for row in ray.nodes() if row["Alive"]]
            return stats["pids"]["node"] != before and len(stats["neighbours"]) == len(living) - 1

        wait_until(back, timeout_s, what="the head to be back")
        self._keep_id(0)

    def node_id(self, host: int) -> str:
        return self._ids[host]

    def on(self, host: int, soft: bool = False) -> dict[str, Any]:
        """Options of what is to run there."""
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.node_id(host), soft=soft)}

    def row(self, host: int) -> dict[str, Any]:
        return next(row for row in ray.nodes() if row["NodeID"] == self.node_id(host))

    def is_alive(self, host: int) -> bool:
        return bool(self.row(host)["Alive"])

    def stats(self, host: int) -> dict[str, Any]:
        """Of its node process, asked there."""
        answer, pidfd = node_link.ask(sessions.open_existing(self.session_folder(host)), "stats", timeout_s=60.0)
        os.close(pidfd)
        return dict(answer)

    def pid(self, host: int) -> int:
        """Of its node process."""
        return int(self.stats(host)["pids"]["node"])

    def runs(self, host: int) -> bool:
        return bool(sessions.sessions(self.temporary(host)))

    def stop(self, host: int) -> None:
        if self.runs(host):
            self.ray(host, "stop", "--force")

    @contextlib.contextmanager
    def paused(self, host: int) -> Iterator[None]:
        """Its node process does nothing; its workers go on."""
        pid = self.pid(host)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # -- waiting

    def wait_dead(self, host: int, timeout_s: float = 60.0) -> str:
        """Until the head has given the node up; returns why."""
        wait_until(lambda: not self.is_alive(host), timeout_s, what=f"the death of the node on host {host}")
        return str(self.row(host)["DeathReasonMessage"])

    def wait_gone(self, host: int, timeout_s: float = 60.0) -> None:
        """Until nothing is left of a node that has ended: no process, no file."""

        def left() -> list[str]:
            processes = [pid for pid in self.network.pids(host) if pid != os.getpid()]
            return [*map(str, processes), *os.listdir(self.temporary(host))]

        deadline = time.monotonic() + timeout_s
        while found := left():
            assert time.monotonic() < deadline, f"left on host {host}: {found}"
            time.sleep(0.02)
