"""`ray debug`: attaches to a `breakpoint()` in a task or an actor. PROCESS of a shell: it owns nothing."""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import time
from typing import Any

from ray.cli.state import complain, expected, table


def add(commands: Any) -> None:
    """Adds the command to argparse's `commands`."""
    command = commands.add_parser("debug", help="attaches to a breakpoint() in a task or an actor")
    command.add_argument("pid", nargs="?", type=int, help="of the worker; not needed if one breakpoint waits")
    command.add_argument("--list", action="store_true", help="only shows what waits")
    command.add_argument("--address", default=None, help="the folder of a session; by default the current one")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ray import _inspect
    from ray.util import pdb

    try:
        found = list(pdb.waiting(_inspect.find_session(options.address).folder))
    except expected() as error:
        return complain("debug", error)
    if options.pid is not None:
        found = [item for item in found if item[1]["pid"] == options.pid]
    if not found:
        return complain("debug", ValueError("no breakpoint waits" + (f" in {options.pid}" if options.pid else "")))
    if options.list or len(found) > 1:
        print("\n".join(table([_line(note) for _, note in found], 200)))
        if not options.list:
            print("several wait: `ray debug PID` attaches to one of them", file=sys.stderr)
        return 0 if options.list else 1
    try:
        attach(found[0][0])
    except ConnectionError as error:
        return complain("debug", ConnectionError(f"the breakpoint is gone: {error}"))
    return 0


def _line(note: dict[str, Any]) -> dict[str, Any]:
    return {
        "pid": note["pid"],
        "function": note["function"],
        "place": note["place"],
        "waits": f"{time.time() - note['since']:.0f} s",
        "task": note["task_id"],
    }


def attach(path: str) -> None:
    """Joins this terminal and the debugger, until either ends. An end of input lets the program go on.

    Raises: ConnectionError, FileNotFoundError: nobody is there.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        sources: list[Any] = [connection, sys.stdin.fileno()]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if connection in ready:
                text = connection.recv(65536)
                if not text:
                    return
                sys.stdout.write(text.decode(errors="replace"))
                sys.stdout.flush()
            if sys.stdin.fileno() in ready:
                typed = os.read(sys.stdin.fileno(), 65536)
                if typed:
                    connection.sendall(typed)
                else:
                    connection.shutdown(socket.SHUT_WR)
                    sources.remove(sys.stdin.fileno())
