"""The kernel's word of pressure reaches an asyncio loop, and nothing of it is left. No node."""

from __future__ import annotations

import asyncio
import gc
import os
import socket

from ray._node.memory_shell import PressureTrigger


def test_what_is_ready_with_pollpri_calls_back_until_it_is_closed() -> None:
    """Urgent data of a TCP connection is the one other thing that says POLLPRI, and a test can send it."""

    async def run() -> int:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
            theirs, _ = server.accept()
            with theirs:
                called = asyncio.Event()
                gc.collect()  # what earlier tests have left
                before = len(os.listdir("/proc/self/fd"))
                trigger = PressureTrigger(loop, os.dup(theirs.fileno()), called.set)
                ours.send(b"plain data says nothing of the kind")
                await asyncio.sleep(0.02)
                assert not called.is_set()
                ours.send(b"!", socket.MSG_OOB)
                await asyncio.wait_for(called.wait(), 60)
                trigger.close()
                trigger.close()  # once more does no harm
                return len(os.listdir("/proc/self/fd")) - before

    assert asyncio.run(run()) == 0


def test_a_kernel_that_offers_it_takes_our_trigger_and_another_is_no_error() -> None:
    async def run() -> None:
        trigger = PressureTrigger.open(asyncio.get_running_loop(), lambda: None)
        offered = any(map(os.path.exists, ("/proc/pressure/memory", "/sys/fs/cgroup/memory.pressure")))
        if trigger is not None:
            assert offered
            trigger.close()

    asyncio.run(run())
