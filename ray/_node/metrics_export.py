"""Lets the node's metrics out: to whoever asks over node.sock, and, if the session was started so, over HTTP.

Node's main thread. Before it answers, every core is asked to hand over what it measured last, and the node's machines
are asked what they know. HTTP listens on loopback only and serves GET /metrics and nothing else, to a few connections
at a time, each with a deadline; it asks for no token, since it shows numbers only, but refuses requests that name
another host than this machine (a web page whose name was pointed at 127.0.0.1 sends those).
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

from ray._protocol.resources import to_numbers

from .cores import Core
from .metrics import Metrics
from .store_row import store_row

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")

HOSTS = ("127.0.0.1", "localhost", "[::1]")
CORES_ANSWER_S = 2.0  # of a scrape: what a busier process measured since its last report comes with the next
_REQUEST_BYTES_MAX = 8192
_REQUEST_TIMEOUT_S = 5.0
_CONNECTIONS_MAX = 16


class MetricsExport:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._metrics = Metrics()
        self._server: asyncio.AbstractServer | None = None
        self._connections = 0
        self.port: int | None = None

    def take(self, core: Core, kinds: dict[str, Any], items: list[Any]) -> None:
        """The event `metrics` of a core."""
        self._metrics.take(core.tag, kinds, items)

    def core_lost(self, core: Core) -> None:
        self._metrics.core_lost(core.tag)

    async def text(self, timeout_s: float = CORES_ANSWER_S) -> str:
        """Everything, in Prometheus's text format."""
        answers = await self._node.inspection.ask("tasks", 0, timeout_s)
        return self._metrics.text() + (await self._system(answers)).text()

    async def _system(self, answers: dict[str, Any]) -> Metrics:
        """What the node itself knows."""
        node, shown = self._node, Metrics()
        tasks: Counter[tuple[str, str]] = Counter()
        leads = node.uplink is None  # another node shows only what is its own
        for row in node.head.jobs.all() if leads else ():
            for (name, _, state), number in node.head.events.totals(row.job_id).items():
                tasks[name, state] += number
        for report in answers["reports"]:
            for (name, _, state), number in pickle.loads(report["head"])["counts"].items():
                tasks[name, state] += number
                if state == "RUNNING":  # its owner counts it as submitted
                    tasks[name, "SUBMITTED_TO_WORKER"] -= number
        shown.show(
            "tasks",
            "Calls of the living jobs by name and state; ended ones by attempt.",
            {(("Name", name), ("State", state)): float(n) for (name, state), n in tasks.items() if n > 0},
        )
        actors = node.head.stats()["actors"] if leads else {}
        shown.show("actors", "Actors by state.", {(("State", state),): float(n) for state, n in actors.items()})
        workers = Counter(worker.state for worker in node.pool.workers.values())
        shown.show("workers", "Worker processes by state.", {(("State", s),): float(n) for s, n in workers.items()})
        total = to_numbers(node.scheduler.resources.total)
        free = {name: max(0.0, x) for name, x in to_numbers(node.scheduler.resources.available).items()}
        shown.show(
            "resources",
            "Resources of the node by name and state.",
            {
                (("Name", name), ("State", state)): amount
                for name, all_of_it in total.items()
                for state, amount in (("AVAILABLE", free.get(name, 0.0)), ("USED", all_of_it - free.get(name, 0.0)))
            },
        )
        store = await store_row(node.session.plasma_socket)
        if store is not None:
            held, left = float(store["sealed_bytes"]), float(store["pool_bytes"] - store["sealed_bytes"])
            shown.show("object_store_used_memory", "Bytes of objects in the store.", {(): held})
            shown.show("object_store_available_memory", "Bytes that are free in the store.", {(): left})
            shown.show("object_store_num_local_objects", "Objects in the store.", {(): float(store["sealed_objects"])})
            spilled = float(store["spilled_bytes"])
            shown.show("object_store_spilled_bytes", "Bytes of objects on disk, and not in memory.", {(): spilled})
        return shown

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    async def listen(self, port: int) -> None:
        """port: 0 takes any that is free. Raises: OSError: it is taken."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=_REQUEST_BYTES_MAX)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > _CONNECTIONS_MAX:
                return
            status, body = await asyncio.wait_for(self._answer(reader), _REQUEST_TIMEOUT_S)
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await asyncio.wait_for(writer.drain(), _REQUEST_TIMEOUT_S)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError, ConnectionError) as error:
            logger.info("metrics: a request came to nothing: %r", error)
        finally:
            self._connections -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        headers = dict(line.lower().split(":", 1) for line in lines[1:] if ":" in line)
        host = headers.get("host", "").strip()
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return "403 Forbidden", b"this is for clients on this machine: ask for 127.0.0.1\n"
        if path != "/metrics":
            return "404 Not Found", b"metrics are at /metrics\n"
        if method != "GET":
            return "405 Method Not Allowed", b"GET /metrics\n"
        return "200 OK", (await self.text()).encode()
