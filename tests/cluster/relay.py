"""A cluster on this machine whose head's part in membership is played by the test's process. LIBRARY.

What is decided is decided by ray/_head/membership.py; here it is carried out over a Unix socket.

    relay = Relay(); relay.start_head(num_cpus=2); other = relay.add_node({"CPU": 2}); relay.wait()

`start_head` is ray.init; its node has number 0. A node that dies is told to the others at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray._head.membership import Acknowledged, Admit, Joined, Left, Membership, Reported, Tell
from ray._launch import node_process
from ray._launch import session as sessions

from .relayed_node import RELAY

COMMAND, START = node_process.python_command, node_process.start_node
ADDRESS = ("127.0.0.1", 0)  # where each node's gate listens


class Relay:
    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "relay.sock")
        self._members = Membership()
        self.rows: dict[int, dict[str, Any]] = {}  # of all that ever joined
        self.peers: dict[int, Any] = {}
        self.nodes: dict[int, node_process.NodeProcess] = {}
        self.wrong_addresses: dict[int, str] = {}  # told instead of the right ones: of nodes that can't be reached
        self.jobs_are_over = False  # what nodes that ask for a job are told
        self._token = b""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._thread.start()
        self._server: Any = None

    # -- the test's thread

    def start_head(self, engine: Any, **options: Any) -> None:
        """ray.init(**options): its node will dial us, once we listen; and we listen once its token is known."""
        os.environ[RELAY] = self.path
        node_process.python_command = lambda module, *args: COMMAND(  # type: ignore[assignment]
            "tests.cluster.relayed_node" if module == "ray._node.main" else module, *args
        )

        def listen_and_start(session: sessions.Session, config: dict[str, Any]) -> node_process.NodeProcess:
            self._token = session.token
            self._call(self._listen())
            return START(session, {**config, "cluster_port": ADDRESS})

        node_process.start_node = listen_and_start  # type: ignore[assignment]
        try:
            engine.start(**options)
        finally:
            node_process.start_node = START
        self.wait()

    def add_node(self, resources: dict[str, float], **config: Any) -> int:
        """Starts a node. Returns its number, once every other has a view of it."""
        session = sessions.create()
        session.token = self._token
        with open(session.folder + "/token", "w") as file:
            file.write(self._token.hex())
        units = {name: round(amount * 10_000) for name, amount in resources.items()}
        node = node_process.start_node(
            session, {"resources": units, "object_store_memory": 32 * 2**20, "cluster_port": ADDRESS, **config}
        )
        number = len(self.nodes) + 1
        self.nodes[number] = node
        node.wait_ready()
        self.wait()
        return number

    def wait(self) -> None:
        """Until all nodes have joined, and each knows every other."""
        deadline = time.monotonic() + 10.0
        everybody = {0, *self.nodes}
        while self.rows.keys() != everybody or not all(
            set(self._call(self.peers[number].rpc("view_of"))) == everybody - {number} for number in everybody
        ):
            assert time.monotonic() < deadline, f"joined: {list(self.rows)} of {everybody}"
            time.sleep(0.005)

    def node_id(self, number: int) -> str:
        return str(self.rows[number]["node_id"].hex())

    def kill(self, number: int) -> None:
        self.nodes.pop(number).kill()

    def close(self) -> None:
        node_process.python_command = COMMAND
        os.environ.pop(RELAY, None)
        for node in self.nodes.values():
            node.kill()
        ray.shutdown()
        if self._server is not None:
            self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10.0)

    # -- the relay's thread

    async def _listen(self) -> None:
        from ray._transport import serve_unix

        self._server = serve_unix(self.path, self._token, os.urandom(16), self._met)

    async def _close(self) -> None:
        self._server.close()

    def _met(self, peer: Any) -> None:
        peer.on_rpc = lambda method, args: self._on_rpc(peer, method, args)
        peer.on_event = lambda name, args: self._on_event(peer, name, args)
        peer.on_close = lambda why: self._on_close(peer, why)

    def _on_rpc(self, peer: Any, method: str, args: tuple[Any, ...]) -> Any:
        if method == "job_info":
            return None if self.jobs_are_over else self.peers[0].rpc("job_info", *args)
        about = dict(args[0])
        admit, *rest = self._members.handle(Joined(about.pop("node_id"), about))
        assert isinstance(admit, Admit)
        self.peers[admit.number] = peer
        self.rows[admit.number] = {**args[0], "number": admit.number}
        self._loop.call_soon(self._carry_out, rest)  # behind the answer
        # The first, whose driver is there before anybody else joins, has no table until there is one.
        return {"number": admit.number, "nodes": [*admit.table, self.rows[admit.number]] if admit.table else []}

    def _carry_out(self, actions: list[Any]) -> None:
        for tell in actions:
            assert isinstance(tell, Tell)
            args = tell.args
            if tell.name == "node_up":
                (row,) = args
                args = ({**row, "host": self.wrong_addresses.get(row["number"], row["host"])},)
            if tell.to in self.peers:
                self.peers[tell.to].event(tell.name, *args)

    def _on_event(self, peer: Any, name: str, args: tuple[Any, ...]) -> None:
        (number,) = [n for n, p in self.peers.items() if p is peer]
        event = Reported(number, args[0]) if name == "resources" else Acknowledged(number, args[0])
        self._carry_out(self._members.handle(event))

    def _on_close(self, peer: Any, why: str) -> None:
        for number in [n for n, p in self.peers.items() if p is peer]:
            del self.peers[number]
            self._carry_out(self._members.handle(Left(number, why)))
