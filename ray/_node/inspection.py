"""Asks every driver and worker of the node what it does and holds, for the state API and the tools. Node's main thread.

A question goes out as the event `inspect` to all cores at once; each answers with `inspected` from the thread that
receives there, whatever its user code does. One that cannot (it holds the GIL in a long call, or an async actor's loop
is blocked) is not waited for longer than the asker wants: it is named among the silent. One that dies meanwhile is left
out. Answers are passed on as the bytes that came; rows are dropped, and counted, beyond ROWS_BYTES_MAX, so that no
question can fill the asker's connection.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from .cores import Core

if TYPE_CHECKING:
    from .shell import Node

ROWS_BYTES_MAX = 32 * 2**20  # of all answers to one question; a connection takes twice this
ROWS_MAX = 10_000  # that one core is asked for
TIMEOUT_S_MAX = 600.0
WHATS = ("events", "tasks", "objects")


class Inspection:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._requests = itertools.count(1)
        self._waiting: dict[tuple[int, bytes], asyncio.Future[tuple[bytes, bytes] | None]] = {}

    async def ask(self, what: str, rows_max: int, timeout_s: float) -> dict[str, Any]:
        """{"reports": [{"tag", "pid", "kind", "job_id", "head", "rows"}], "silent": [{"pid", "kind"}]}.

        head and rows: pickled, as ray/_core/inspect.pxi says; rows is None where they were dropped.
        Raises: ValueError: not a question.
        """
        if what not in WHATS:
            raise ValueError(f"inspect: what must be one of {', '.join(WHATS)}, not {what!r}")
        rows_max = max(0, min(int(rows_max), ROWS_MAX))
        request = next(self._requests)
        asked: dict[Core, asyncio.Future[tuple[bytes, bytes] | None]] = {}
        for core in list(self._node.cores.by_tag.values()):
            asked[core] = self._waiting[request, core.tag] = self._node.loop.create_future()
            core.tell("inspect", request, what, rows_max)
        try:
            if asked:
                await asyncio.wait(asked.values(), timeout=max(0.0, min(float(timeout_s), TIMEOUT_S_MAX)))
        finally:
            for core in asked:
                self._waiting.pop((request, core.tag), None)
        return self._gathered(asked)

    def _gathered(self, asked: dict[Core, asyncio.Future[tuple[bytes, bytes] | None]]) -> dict[str, Any]:
        reports, silent, nbytes = [], [], 0
        for core, answer in asked.items():
            if not answer.done():
                silent.append({"pid": core.pid, "kind": core.kind})
                continue
            found = answer.result()
            if found is None:
                continue
            head, rows = found
            nbytes += len(rows)
            reports.append(
                {
                    "tag": core.tag.hex(),
                    "pid": core.pid,
                    "kind": core.kind,
                    "job_id": core.job_id.hex(),
                    "head": head,
                    "rows": rows if nbytes <= ROWS_BYTES_MAX else None,
                }
            )
        return {"reports": reports, "silent": silent}

    def inspected(self, core: Core, request: int, head: bytes, rows: bytes) -> None:
        """The event of that name. Too late is no error."""
        if not isinstance(head, bytes) or not isinstance(rows, bytes):
            raise TypeError("inspected takes two pickles")
        self._settle(request, core.tag, (head, rows))

    def core_lost(self, core: Core) -> None:
        for request, tag in list(self._waiting):
            if tag == core.tag:
                self._settle(request, tag, None)

    def _settle(self, request: int, tag: bytes, found: tuple[bytes, bytes] | None) -> None:
        answer = self._waiting.get((request, tag))
        if answer is not None and not answer.done():
            answer.set_result(found)

    # -- what the node knows itself -----------------------------------------------------------------------------------

    def runtime_envs(self) -> list[dict[str, Any]]:
        """The runtime environments that are built here."""
        return [
            {"node_id": self._node.node_id.hex(), "env": env.env, "state": env.state, "nbytes": sum(env.sizes.values())}
            for env in self._node.envs.machine.envs.values()
        ]

    def workers(self) -> list[dict[str, Any]]:
        """Every process of the node that runs user code, and those that ended, as far as they are remembered."""
        node = self._node
        rows: list[dict[str, Any]] = [
            {
                "worker_id": core.tag.hex(),
                "pid": core.pid,
                "type": "DRIVER",
                "state": "ALIVE",
                "job_id": core.job_id.hex(),
            }
            for core in node.cores.by_tag.values()
            if core.kind == "driver"
        ]
        rows += [
            {
                "worker_id": worker.tag.hex(),
                "pid": worker.pid,
                "type": "WORKER",
                "state": worker.state,
                "job_id": worker.job_id.hex(),
            }
            for worker in node.pool.workers.values()
        ]
        rows += [
            {"worker_id": tag.hex(), "pid": 0, "type": "WORKER", "state": "DEAD", "cause": cause}
            for tag, cause in node.cores.causes()
        ]
        where = {"node_id": node.node_id.hex(), "ip": node.node_ip}
        return [{**row, **where} for row in rows]
