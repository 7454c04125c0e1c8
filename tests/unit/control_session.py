"""A control plane for a test: real Redis servers in a folder of their own, a store; nothing left. LIBRARY of tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from ray._control.redis_server import RedisServers
from ray._control.store import Store
from ray._control.tables import Tables

ERRORS_KEPT = 50


class ControlPlane:
    def __init__(self, folder: str, **options: Any) -> None:
        self.folder = folder
        self.servers = RedisServers(folder, **options)
        self.problems: list[str] = []
        self.exits: list[tuple[str, str]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.servers.start(loop)
        self.servers.on_exit = lambda name, cause: self.exits.append((name, cause))
        self.store = Store.of_servers(self.servers, loop)
        self.store.on_problem = self.problems.append
        self.tables = Tables(self.store, ERRORS_KEPT)

    def kill(self, index: int = 0) -> None:
        os.kill(self.servers.servers[index].pid, signal.SIGKILL)

    def client(self, index: int = 0, **options: Any) -> Any:
        """The `redis` package's client: the judge of what we wrote."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        given = {"password": self.servers.password, "retry": Retry(NoBackoff(), 0), **options}
        return redis.Redis(unix_socket_path=self.servers.addresses[index], **given)


@asynccontextmanager
async def control_plane(**options: Any) -> AsyncIterator[ControlPlane]:
    folder = tempfile.mkdtemp(prefix="ray-control-")
    plane = ControlPlane(folder, **options)
    plane.start()
    pids: list[int] = []
    try:
        yield plane
        pids = plane.servers.pids
    finally:
        await plane.store.close(0.2)
        await plane.servers.stop()
        left = [name for name in os.listdir(folder) if name != "logs"]
        shutil.rmtree(folder)
    assert not left, f"left in the session folder: {left}"
    assert not alive(pids), "a server outlived stop()"


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 100))


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """For conditions without an event: asks a hundred times a second, a minute long."""
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited 60 s for {what or condition}")
