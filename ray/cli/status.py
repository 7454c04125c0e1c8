"""`ray status`: what runs in the current cluster, who uses it, what waits. PROCESS of a person's shell."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from ray._launch import address as addresses
from ray.cli import node_link

ANSWER_TIMEOUT_S = 15.0
_BYTES = ("memory", "object_store_memory")


def add(commands: Any) -> None:
    """Adds the command to argparse's `commands`."""
    command = commands.add_parser("status", help="what the cluster has, who uses it, and what waits")
    command.add_argument(
        "--address", default="auto", help="the folder of a session; by default the one that `ray start` made"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        addresses.check("ray status: --address", options.address)
        session = addresses.resolve_here(options.address, os.environ)
        if session is None:
            raise ConnectionError("--address local names no session that runs")
        answer, pidfd = node_link.ask(session, "status", timeout_s=ANSWER_TIMEOUT_S)
        os.close(pidfd)
    except (ValueError, NotImplementedError, ConnectionError, TimeoutError) as error:
        print(f"ray status: {error}", file=sys.stderr)
        return 1
    print("\n".join(page(answer, time.time())))
    return 0


def page(status: dict[str, Any], now_s: float) -> Iterator[str]:
    """What a person sees of ToolRequests.rpc_status's answer."""
    age_s = int(now_s - status["started_s"])
    age = f"{age_s // 86400} d " * (age_s >= 86400) + f"{age_s // 3600 % 24}:{age_s // 60 % 60:02}:{age_s % 60:02}"
    yield f"ray {status['ray_version']}, Python {status['python_version']}, up {age}, in {status['session_dir']}"
    yield ""
    yield "Nodes"
    spilled = {row["node_id"]: row for row in status["stores"] if row["spilled_objects"]}
    for node in status["nodes"]:
        on_disk = _on_disk(spilled[node["NodeID"]]) if node["NodeID"] in spilled else ""
        yield f"  {node['NodeID']}  {'alive' if node['Alive'] else 'dead'}  {node['NodeManagerAddress']}{on_disk}"
    yield ""
    yield "Resources, in use of all"
    for name, total in sorted(status["resources"].items()):
        used = total - status["available"].get(name, 0.0)
        yield f"  {_amount(name, used)}/{_amount(name, total)} {name}"
    running = [job for job in status["jobs"] if job["state"] == "RUNNING"]
    yield ""
    yield "Programs" if running else "Programs: none"
    for job in running:
        since = time.strftime("%H:%M:%S", time.localtime(job["started_s"]))
        yield f"  pid {job['driver_pid']}  since {since}  {job['entrypoint']}"
    workers, actors = status["pool"]["workers"], status["actors"]
    busy, idle = workers["ASSIGNED"], workers["IDLE"]
    yield ""
    yield f"Workers: {busy} busy, {idle} idle, {workers['STARTING']} starting. Actors: {actors['ALIVE']} alive, " + (
        f"{actors['PENDING_PLACEMENT'] + actors['PENDING_CREATION']} starting, {actors['RESTARTING']} restarting"
    )
    yield "Waiting" if status["demands"] else "Waiting: nothing"
    for demand in status["demands"]:
        amounts = ", ".join(f"{_amount(name, x)} {name}" for name, x in sorted(demand["resources"].items()))
        never = "" if demand["feasible"] else ": more than this cluster has"
        yield f"  {demand['count']} x {{{amounts}}}{never}"


def _on_disk(row: dict[str, int]) -> str:
    return f"  {row['spilled_objects']} objects of {row['spilled_bytes'] / 2**30:.2f} GiB on disk"


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.2f} GiB" if name in _BYTES else f"{amount:g}"
