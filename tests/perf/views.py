"""What it costs the head that nodes know of each other's room. PROCESS a person runs; a minute.

    python -m tests.perf.views [--nodes 50 200] [--rounds 20]

A real head, and nodes that are only connections: each joins, and then says twenty times a second that something else is
free there, as often as a node may. Prints, for each number of nodes: processor time of the head's node process for a
second of that (above 1 s it can't keep up), and how many frames and bytes came to a node in that second.
"""

from __future__ import annotations

import argparse
import os
import selectors
import sys
import time
from pathlib import Path
from typing import Any

from ray import cluster_utils
from ray._native.channel import Connection
from ray._node.cluster_view import REPORT_S
from ray._protocol.frames import DESTINATION_NODE, FRAME_EVENT, FRAME_REPLY, FRAME_RPC, ROLE_NODE
from ray._transport import messages
from ray._version import __version__

CPUS = 16
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class FakeNode:
    def __init__(self, address: tuple[str, int], token: bytes) -> None:
        self.node_id = os.urandom(16)
        self.connection = Connection.dial_tcp(*address, DESTINATION_NODE, token, self.node_id, ROLE_NODE)
        self.number = -1
        self.opened = False
        self.frames = self.nbytes = self.replies = 0
        self.asked = 0

    def ask(self, method: str, *args: Any) -> None:
        self.asked += 1
        self.connection.append(FRAME_RPC, messages.encode_rpc(self.asked, method, args))

    def tell(self, name: str, *args: Any) -> None:
        self.connection.append(FRAME_EVENT, messages.encode_event(name, args))

    def join(self) -> None:
        about = {"node_id": self.node_id, "host": "127.0.0.1", "port": 1, "total": {"CPU": CPUS * 10_000}}
        here: dict[str, Any] = {
            "hostname": "here",
            "name": None,
            "pid": os.getpid(),
            "labels": {},
            "time_s": time.time(),
        }
        version = {"version": __version__, "python_version": tuple(sys.version_info[:3])}
        self.ask("join", {**about, **here, **version})

    def receive(self, look: bool) -> None:
        """look: at what is said; else it is only counted."""
        for type, _, payload in self.connection.receive_frames():
            self.frames += 1
            self.nbytes += len(payload)
            if type == FRAME_REPLY:
                self.replies += 1
                if self.number < 0:
                    self.number = messages.decode_reply(payload)[2]["number"]
            elif look:
                name, args = messages.decode_event(payload)
                if name == "node_up":
                    self.tell("known", args[0]["number"])
                self.opened = self.opened or name == "opened"
        self.connection.flush()


class Cluster:
    def __init__(self) -> None:
        settings = {"node_silence_s": 600.0, "prestart_workers": 0}
        self.cluster = cluster_utils.Cluster(True, head_node_args={"num_cpus": 1, "_system_config": settings})
        assert self.cluster.head_node is not None
        self.head = self.cluster.head_node
        self.selector = selectors.DefaultSelector()
        self.nodes: list[FakeNode] = []

    def add(self) -> None:
        node = FakeNode(self.head._address, self.cluster._token)
        self.selector.register(node.connection.fileno(), selectors.EVENT_READ, node)
        self.nodes.append(node)
        node.join()
        while not node.opened:
            self.pump(0.01, True)

    def pump(self, seconds: float, look: bool = False) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for node in self.nodes if look else ():
                node.connection.flush()
            for key, _ in self.selector.select(left):
                key.data.receive(look)

    def used_s(self) -> float:
        """Processor time of the head's node process."""
        fields = Path(f"/proc/{self.head.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def measure(self, rounds: int) -> tuple[float, float, float]:
        """For a second: of the head's processor, frames to a node, bytes to a node."""
        self.pump(0.5)
        for node in self.nodes:
            node.frames = node.nbytes = 0
        before = self.used_s()
        for n in range(rounds):
            began = time.monotonic()
            for node in self.nodes:
                available = {"CPU": (n % CPUS) * 10_000, "memory": 2**33, "object_store_memory": 2**31}
                node.tell("resources", {"available": available, "queued": n % 3, "bundles": {}})
                node.connection.flush()
            self.pump(max(0.001, REPORT_S - (time.monotonic() - began)))
        expected = [node.replies + 1 for node in self.nodes]
        for node in self.nodes:  # behind all reports
            node.ask("job_goes_on", b"none")
            node.connection.flush()
        while [node.replies for node in self.nodes] != expected:
            self.pump(0.01)
        self.pump(3 * REPORT_S)
        seconds = rounds * REPORT_S
        frames, nbytes = (sum(getattr(node, what) for node in self.nodes) for what in ("frames", "nbytes"))
        per_node = len(self.nodes) * seconds
        return (self.used_s() - before) / seconds, frames / per_node, nbytes / per_node

    def close(self) -> None:
        self.selector.close()
        for node in self.nodes:
            node.connection.close()
        self.cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print("nodes | head's processor, s a second | frames to a node a second | KB to a node a second")
    for number in options.nodes:
        cluster = Cluster()
        try:
            for _ in range(number):
                cluster.add()
            used_s, frames, nbytes = cluster.measure(options.rounds)
            print(f"{number} | {used_s:.2f} | {frames:.0f} | {nbytes / 1000:.0f}", flush=True)
        finally:
            cluster.close()


if __name__ == "__main__":
    main()
