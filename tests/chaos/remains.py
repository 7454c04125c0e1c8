"""What is left on each node once all work is done and all attacks are over; and what there is to say when work hangs.
LIBRARY of the chaos tests.

`remains(field)` is a list of lines, empty if nothing is left: held leases, requests, bundles, guests and tickets of
each node, objects and pins of each store, descriptors and threads of the driver, Redis keys of jobs that have ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import redis

from ray._native.plasma import PlasmaClient
from ray._native.transfer import TransferLine
from ray.util import state
from tests.chaos.field import TITLES, Field
from tests.chaos.session import engine
from tests.leaks import descriptors

DUMPS_MAX = 14
DUMP_BYTES_MAX = 3000
# The driver keeps connections to nodes, and to workers that it has called: a node has at most so many of these.
CONNECTIONS_A_WORKER = 2


def remains(field: Field, before: dict[str, int]) -> list[str]:
    """before: what `of_driver` returned when nothing had been done yet."""
    lines: list[str] = []
    living = {host: field.stats(host) for host in range(field.hosts)}
    tags = {tag for stats in living.values() for tag in stats["core_tags"]}
    for host, stats in living.items():
        scheduler, pool = stats["scheduler"], stats["pool"]
        found: dict[str, Any] = {
            "leases": sum(scheduler["leases"].values()),
            "waiting": scheduler["waiting"],
            "infeasible": scheduler["infeasible"],
            "waiting for a group": scheduler["waiting_for_group"],
            "bundles": scheduler["bundles"],
            "tickets waiting": pool["tickets_waiting"],
            "workers that start, work or end": {k: n for k, n in pool["workers"].items() if k != "IDLE" and n},
            "bugs": stats["bugs"],
            "guests that live nowhere": [tag.hex() for tag in stats["guest_tags"] if tag not in tags],
            "resources taken": {
                name: units
                for name, units in scheduler["total"].items()
                if scheduler["available"].get(name, 0) != units
            },
            "session folders": [] if len(field.files(host)) == 1 else field.files(host),
        }
        found.update(_objects(field.folder(host)))
        lines += [f"host {host}: {what}: {value}" for what, value in found.items() if value]
    lines += [f"Redis: {key}" for key in _keys_of_ended_jobs(field)]
    now, workers = of_driver(), sum(len(field.pids(host, "worker")) for host in living)
    if now["descriptors"] > before["descriptors"] + CONNECTIONS_A_WORKER * workers + 2 * field.hosts:
        lines.append(f"the driver's descriptors: {before['descriptors']}, then {now['descriptors']}: {descriptors()}")
    if now["threads"] > before["threads"]:
        lines.append(f"the driver's threads: {[thread.name for thread in threading.enumerate()]}")
    head = engine().rpc("head_stats")
    actors = {state: n for state, n in head["actors"].items() if state not in ("DEAD", "late") and n}
    places = {state: n for state, n in head["placement_groups"].items() if state not in ("REMOVED", "late") and n}
    lines += [f"the head: {what}" for what in (actors, places, {"bugs": head["bugs"]} if head["bugs"] else {}) if what]
    return lines


def wait_until_nothing_remains(field: Field, before: dict[str, int], timeout_s: float = 60.0) -> None:
    """Raises: AssertionError: something does, and what."""
    deadline = time.monotonic() + timeout_s
    while lines := remains(field, before):
        assert time.monotonic() < deadline, f"left after {timeout_s} s:\n  " + "\n  ".join(lines)
        time.sleep(0.2)


def of_driver() -> dict[str, int]:
    return {"descriptors": len(descriptors()), "threads": threading.active_count()}


def _objects(folder: str) -> dict[str, Any]:
    client = PlasmaClient(folder + "/plasma.sock")
    try:
        client.evict(1 << 60)  # what dead owners have left, which room for others would evict
        rows = client.list()
    finally:
        client.disconnect()
    held = _object_manager(folder)["held"]
    return {"objects": [f"{key.hex()}: {row}" for key, row in list(rows.items())[:5]], "held for others": held}


def _object_manager(folder: str) -> dict[str, Any]:
    line = TransferLine(folder + "/objects.sock")
    try:
        return dict(line.wait(line.ask_stats())[2])
    finally:
        line.close()


def _keys_of_ended_jobs(field: Field) -> list[str]:
    folder = field.folder(0)
    password = Path(folder, "redis", "password").read_text().strip()
    living = {row["job_id"] for row in engine().rpc("jobs") if row["state"] == "RUNNING"}
    with redis.Redis(unix_socket_path=folder + "/redis.sock", password=password) as connection:
        keys = [key.decode() for key in connection.scan_iter("ray:job:*")]
        names = [name.decode(errors="replace") for name in connection.hgetall("ray:names")]
        detached = [
            f"detached actor {key.decode()}: {row.decode()}"
            for key, row in connection.hgetall("ray:actors:detached").items()
            if b"DEAD" not in row  # the last that have died are kept, for `ray list actors`
        ]
    return [key for key in keys if key.split(":")[2] not in living] + names + detached


# -- when something hangs, or is left


def _exceptions(folder: str) -> str:
    """What logs/node.err says of the latest ones. The folder's files are gone once the round is over."""
    said = Path(folder, "logs", "node.err").read_text(errors="replace")
    at = said.rfind("Traceback (most recent call last)")
    return said[max(0, at - 1000) : at + DUMP_BYTES_MAX] if at >= 0 else "none"


def look(field: Field | None = None, hung: bool = True) -> str:
    """Why what waits waits; if hung, what this process's threads do, and those of some others. Bounded."""
    parts = []
    with contextlib.suppress(Exception):
        rows = engine().rpc("why_pending", timeout=5.0)
        parts.append("why pending:\n" + "\n".join(f"  {row}" for row in rows[:20]))
    with contextlib.suppress(Exception):
        parts.append(f"this driver: {engine().stats()}")
    if field is not None:
        for host in range(field.hosts):
            with contextlib.suppress(Exception):
                stats = field.stats(host)
                parts.append(f"host {host}: {stats['scheduler']} {stats['pool']} {stats['pids']}")
                parts.append(f"host {host}, its object manager: {_object_manager(field.folder(host))}")
                if stats["bugs"] or host == 0:
                    parts.append(f"host {host}, exceptions of its node process: {_exceptions(field.folder(host))}")
    with contextlib.suppress(Exception):
        rows = [row for row in state.list_tasks(limit=1000) if row["state"] not in ("FINISHED", "FAILED")]
        parts.append("tasks:\n" + "\n".join(f"  {row}" for row in rows[:20]))
    with contextlib.suppress(Exception):
        ended = [row for row in state.list_workers(limit=1000, detail=True) if not row["is_alive"]]
        parts.append("workers that ended:\n" + "\n".join(f"  {row}" for row in ended[-30:]))
    others = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{name}/stat").read_text().partition("(")[2].rpartition(")")[0]
                if TITLES.get(title) == "worker" or title == "ray node":
                    others.append(int(name))
    if not hung:
        return "\n" + "\n".join(parts)
    for pid in [os.getpid(), *sorted(others)[: DUMPS_MAX - 1]]:
        parts.append(dump(pid))
    return "\n" + "\n".join(parts)


def dump(pid: int) -> str:
    """What each thread of a process does, by py-spy, where it is installed."""
    tool = shutil.which("py-spy") or shutil.which("py-spy", path=os.path.dirname(sys.executable))
    if tool is None:
        return f"pid {pid}: no py-spy here (pip install py-spy)"
    try:
        done = subprocess.run(
            [tool, "dump", "--pid", str(pid), "--nonblocking"], capture_output=True, text=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        return f"pid {pid}: py-spy takes longer than 10 s"
    return (done.stdout or done.stderr)[:DUMP_BYTES_MAX]
