"""The running session as those see it who want to kill it or to know that nothing is left in it. LIBRARY of tests; the
process that uses it is the session's driver.

    kill("plasma_store")             SIGKILL, returns once the process is gone
    pids("workers")                  who there is, asked of the node
    store().list(), held()           what is in the object store; what this process still accounts for

Asks over the engine's own connections, so it works only while the node process lives.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import select
import signal
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray._core.engine import current
from ray._native.plasma import PlasmaClient, PlasmaStoreDied
from ray.util import state
from tests import wait
from tests.wait import wait_until

# How workers are killed: at once, and as by a fault of their own, which Python reports on the way (faulthandler). The
# signal is one that no fault of ours raises, so that those can be told: see `crashes`.
KILLS = (signal.SIGKILL, signal.SIGILL)
CRASHES = re.compile("killed by SIG(SEGV|BUS|ABRT|FPE)")
WORKERS_MAX = 10_000  # remembered by all nodes together
DETECTION_S = 1.5  # "within a second", and what a machine with two busy cores may add


def engine() -> Any:
    running = current()
    assert running is not None, "no session runs"
    return running


def pids(role: str) -> list[int]:
    """role: node, fork_server, plasma_store, redis or workers (actors' too)."""
    found = engine().rpc("stats")["pids"][role]
    return [pid for pid in (found if isinstance(found, list) else [found]) if pid]


def gone(pid: int, timeout_s: float = 60.0) -> None:
    """Waits for the process to end; it need not be our child.
    Raises: AssertionError: it lives on."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], timeout_s)[0], f"process {pid} is still there after {timeout_s} s"
    finally:
        os.close(fd)


def kill(role_or_pid: str | int, signum: int = signal.SIGKILL) -> int:
    """Kills one process and waits until it is gone. Returns its pid."""
    pid = pids(role_or_pid)[0] if isinstance(role_or_pid, str) else role_or_pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
    gone(pid)
    return pid


@contextlib.contextmanager
def store() -> Iterator[PlasmaClient]:
    """A client of the session's store, of our own."""
    client = PlasmaClient(engine().info["plasma_socket"])
    try:
        yield client
    finally:
        client.disconnect()


def stored() -> dict[bytes, dict[str, Any]]:
    """What is in the store now, by key."""
    with store() as client:
        return client.list()


def held() -> dict[str, Any]:
    """What this process and the store account for at this moment; all zero in a session where nothing is referred to.

    A put of something small comes first: a driver sends what it has let go of with its next call.
    """
    ray.put(None)
    stats = engine().stats()
    found = {
        name: stats[name] for name in ("calls_in_flight", "tasks_queued", "interned_refs", "lent", "gets", "streams")
    }
    found["stored"] = len(stored())
    return found


NOTHING = {"calls_in_flight": 0, "tasks_queued": 0, "interned_refs": 0, "lent": 0, "gets": 0, "streams": 0, "stored": 0}


def held_at_rest(timeout_s: float = 2.0) -> dict[str, Any]:
    """held(), once what earlier tests let go of is gone. Not always nothing: a test that has failed keeps its variables
    in the report. Then it is what is there after timeout_s."""
    gc.collect()  # a ref in a cycle that an earlier test left would go at some moment after this
    deadline = time.monotonic() + timeout_s
    while (now := held()) != NOTHING and time.monotonic() < deadline:
        time.sleep(0.01)
    return now


def assert_held(expected: dict[str, Any], timeout_s: float = 60.0) -> None:
    """Waits until exactly this (what `held` returned earlier, or some of it) is accounted for.
    Raises: AssertionError: it is not so, with what is too much or too little."""
    deadline = time.monotonic() + timeout_s
    while (now := {name: count for name, count in held().items() if name in expected}) != expected:
        if time.monotonic() > deadline:
            differs = {name: f"{count}, not {expected[name]}" for name, count in now.items() if count != expected[name]}
            rows = [f"{key.hex()}: {row}" for key, row in list(stored().items())[:5]]
            raise AssertionError("accounted for: " + str(differs) + "".join("\n  " + row for row in rows))
        time.sleep(0.01)


def assert_nothing_held(timeout_s: float = 60.0) -> None:
    """Waits until no ref, call or object is accounted for anywhere in the session; see assert_held."""
    assert_held(NOTHING, timeout_s)


def forget_orphans() -> None:
    """Evicts what dead owners have left in the store: objects that nobody pins, which room for others would evict."""
    with store() as client:
        client.evict(1 << 60)


def wait_for_store(timeout_s: float = 60.0) -> None:
    """Until this process is connected to a live store."""

    def back() -> bool:
        try:
            ray.get(ray.put(bytes(200_000)))
        except (PlasmaStoreDied, ray.exceptions.ObjectStoreFullError, ray.exceptions.ObjectLostError):
            return False
        return True

    wait_until(back, timeout_s, what="the object store to be back")


def within(seconds: float = DETECTION_S) -> contextlib.AbstractContextManager[None]:
    """tests.wait.within, with the time in which a death is to be noticed."""
    return wait.within(seconds)


def crashes() -> list[str]:
    """Workers of all living nodes that crashed by themselves: no attack kills them so."""
    ended = state.list_workers(filters=[("is_alive", "=", False)], limit=WORKERS_MAX, detail=True)
    said = {f"{row.worker_id} on {row.ip}": row.exit_detail or "" for row in ended}
    return [f"{worker}: {cause}" for worker, cause in said.items() if CRASHES.search(cause)]
