"""A driver for tests of the node alone: starts a real node process and talks to it as the engine would. LIBRARY."""

from __future__ import annotations

import os
import pickle
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from ray._launch import node_process, session
from ray._native.channel import Connection, ConnectionClosed

EVENT, RPC, REPLY = 3, 1, 2
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CPU1 = {"CPU": 10_000}


class Talk:
    """One connection, used synchronously: events are kept in the order in which they came."""

    def __init__(self, path: str, token: bytes, role: int) -> None:
        self.tag = os.urandom(16)
        self.connection = Connection.dial(path, token, self.tag, role)
        self.events: list[tuple[str, tuple[Any, ...]]] = []
        self.seen = 0
        self._replies: dict[int, tuple[bool, Any]] = {}
        self._next = 1

    def tell(self, name: str, *args: Any) -> None:
        self.connection.send(EVENT, pickle.dumps((name, args)))

    def rpc(self, method: str, *args: Any, timeout_s: float = 60.0) -> Any:
        request_id, self._next = self._next, self._next + 1
        self.connection.send(RPC, pickle.dumps((request_id, method, args)))
        self.until(lambda: request_id in self._replies, timeout_s, f"an answer to {method}")
        ok, result = self._replies.pop(request_id)
        if not ok:
            raise result
        return result

    def event(
        self, name: str, matching: Callable[..., bool] = lambda *_: True, timeout_s: float = 60.0
    ) -> tuple[Any, ...]:
        """The next event of that name that nobody has taken yet; those of other names stay."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [i for i, (n, args) in enumerate(self.events) if n == name and matching(*args)][:1]
            return bool(found)

        self.until(look, timeout_s, f"event {name}")
        return self.events.pop(found[0])[1]

    def until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"no {what} within {timeout_s} s; got {[n for n, _ in self.events]}"
            self.listen(left)

    def listen(self, timeout_s: float) -> None:
        """Takes what comes within timeout_s, at the first that comes."""
        if select.select([self.connection.fileno()], [], [], timeout_s)[0]:
            for kind, body in self.connection.receive():
                if kind == REPLY:
                    request_id, ok, result = pickle.loads(body)
                    self._replies[request_id] = (ok, result)
                else:
                    self.events.append(pickle.loads(body))

    def lines(self, count: int, timeout_s: float = 60.0) -> list[tuple[str, int, str, str]]:
        """The next count lines of log_lines."""
        got: list[Any] = []

        def enough() -> bool:
            rest = []
            for name, args in self.events:
                if name == "log_lines":
                    got.extend(args[0])
                else:
                    rest.append((name, args))
            self.events[:] = rest
            return len(got) >= count

        self.until(enough, timeout_s, f"{count} lines; got {got}")
        return got

    def close(self) -> None:
        self.connection.close()


class Worker(Talk):
    """Dials a stand-in worker."""

    def __init__(self, driver: Driver, tag: bytes, pid: int) -> None:
        super().__init__(driver.session.core_socket(tag), driver.session.token, 0)
        self.pid = pid
        self.worker_tag = tag

    def run(self, source: str) -> None:
        self.tell("run", source)

    def value(self, source: str) -> Any:
        return self.rpc("call", source)


class Driver(Talk):
    """Starts a node and registers with it. `resources` are whole numbers by name."""

    def __init__(self, temp_dir: str, resources: dict[str, float] | None = None, **config: Any) -> None:
        self.session = session.create(temp_dir)
        settings = {"worker_main": "tests.node.standin_worker", "prestart_workers": 0, **config.pop("settings", {})}
        self.surroundings = {"sys_path": [ROOT, *sys.path], "cwd": temp_dir, "env": {"RAY_TEST": "yes"}}
        amounts = resources or {"CPU": 2}
        self.node = node_process.start_node(
            self.session,
            {
                "resources": {name: round(10_000 * amount) for name, amount in amounts.items()},
                "object_store_memory": 64 * 2**20,
                "job": self.surroundings,
                "settings": settings,
                **config,
            },
        )
        self.ready = self.node.wait_ready(60.0)
        super().__init__(self.session.node_socket, self.session.token, 0)
        self.info = self.register(self)
        self._requests = 0

    def register(self, talk: Talk, **more: Any) -> Any:
        info = {"kind": "driver", "tag": talk.tag, "pid": os.getpid(), "entrypoint": "test", "namespace": "",
                "log_to_driver": True, **self.surroundings, **more}  # fmt: skip
        return talk.rpc("register", info)

    def ask(self, resources: dict[str, int], name: str = "f") -> int:
        self._requests += 1
        self.tell(
            "lease_request", self._requests, resources, {"name": name, "strategy": None, "exclusive_worker": False}
        )
        return self._requests

    def lease(self, resources: dict[str, int] = CPU1) -> tuple[int, Worker, list[int]]:
        """Asks and waits. Returns: lease id, its worker, GPU ids."""
        req_id = self.ask(resources)
        _, lease_id, tag, pid, gpu_ids = self.event("lease_grant", lambda granted, *_: granted == req_id)
        return lease_id, Worker(self, tag, pid), gpu_ids

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.rpc("stats")
        return stats

    def pids(self) -> list[int]:
        pids = self.stats()["pids"]
        return [pids["node"], pids["fork_server"], pids["plasma_store"], *pids["redis"], *pids["workers"]]

    def shutdown(self) -> None:
        self.rpc("shutdown")
        self.close()
        assert self.node.wait_exit(60.0) == 0
        self.node.close()


def wait_gone(pids: list[int], timeout_s: float = 60.0) -> float:
    """Waits until none of pids runs. Returns: seconds it took."""
    started = time.monotonic()
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            left = timeout_s - (time.monotonic() - started)
            assert select.select([pidfd], [], [], max(0.0, left))[0], f"pid {pid} still runs after {timeout_s} s"
        finally:
            os.close(pidfd)
    return time.monotonic() - started


__all__ = ["CPU1", "ConnectionClosed", "Driver", "Talk", "Worker", "wait_gone"]
