"""Whoever waits for a value when its process leaves the session is told so, and the process ends in order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ray
from tests.wait import wait_until

WAYS = {
    "get": """
        outcome = []
        def wait():
            try: outcome.append(ray.get(slow.remote()))
            except Exception as error: outcome.append(error)
        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until_it_runs()
        ray.shutdown()
        waiting.join(60)
        raise outcome[0]
        """,
    "future": """
        future = slow.remote().future()
        wait_until_it_runs()
        ray.shutdown()
        future.result(timeout=60)
        """,
    "future of a task that waits for another": """
        future = slow.remote(slow.remote()).future()
        wait_until_it_runs()
        ray.shutdown()
        future.result(timeout=60)
        """,
    "await": """
        async def main():
            async def wait(): return await slow.remote()
            waiting = asyncio.ensure_future(wait())
            await asyncio.to_thread(wait_until_it_runs)
            ray.shutdown()
            await asyncio.wait_for(waiting, 60)
        asyncio.run(main())
        """,
    "async for": """
        async def main():
            taken = asyncio.Event()
            async def wait():
                async for ref in slow_items.remote():
                    await ref
                    taken.set()
            waiting = asyncio.ensure_future(wait())
            await taken.wait()
            await asyncio.to_thread(wait_until_it_runs)
            ray.shutdown()
            await asyncio.wait_for(waiting, 60)
        asyncio.run(main())
        """,
}
PROGRAM = """
import asyncio, os, sys, threading, time
import ray
from tests.wait import wait_until

ray.init(num_cpus=1, logging_level="error")

@ray.remote
def slow(*of):
    open(sys.argv[1], "w").close()
    time.sleep(60)

@ray.remote
def slow_items():
    yield 1
    open(sys.argv[1], "w").close()
    time.sleep(60)

def wait_until_it_runs():
    wait_until(lambda: os.path.exists(PATH))

def program():
BODY

try:
    program()
except ray.exceptions.RaySystemError as error:
    print(error)
"""


@pytest.mark.parametrize("way", WAYS)
def test_what_waits_when_the_driver_leaves_is_told_so(way: str, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    program = PROGRAM.replace("BODY", WAYS[way]).replace("sys.argv[1]", "PATH").replace("PATH", repr(str(path)))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("ray was shut down")


@ray.remote
def forever() -> None:
    import threading

    threading.Event().wait()


@ray.remote(num_cpus=0)
class Leaver:
    def __init__(self, path: str) -> None:
        import atexit

        atexit.register(lambda: Path(path).write_text("in order"))

    async def wait(self) -> None:
        await forever.remote()

    async def leave(self) -> None:
        ray.actor.exit_actor()


def test_an_actor_that_leaves_while_a_method_awaits_something_ends_in_order(ray_shared: None, tmp_path: Path) -> None:
    leaver = Leaver.remote(str(tmp_path / "ended"))
    waits, leaves = leaver.wait.remote(), leaver.leave.remote()
    for ref in (leaves, waits):
        with pytest.raises(ray.exceptions.RayError, match=r"exit_actor\(\)"):
            ray.get(ref, timeout=60)
    wait_until((tmp_path / "ended").exists)
    assert wait_until((tmp_path / "ended").read_text) == "in order"
