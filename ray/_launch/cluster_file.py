"""The file `nodes` in a session's folder: which cluster this node is part of, its number, and the other nodes.

Written by the node process, read by the drivers of this machine: to find the session that belongs to a cluster, to know
the number that their tag begins with, and to find a node of which they have not been told yet. A writer replaces the
file as a whole, so a reader sees an old table or a new one, never half of one. A session without other nodes has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from . import session as sessions

NAME = "nodes"


def write(
    folder: str,
    number: int,
    head: tuple[str, int],
    rows: Iterable[Mapping[str, Any]],
    next_number: int = 0,
    tls: bool = False,
    durable: bool = False,
) -> None:
    """rows: of the other nodes that live: number, node_id, host, port. next_number: on the head's own node: the number
    that the next newcomer gets, for a head that takes over. tls: how they are to be dialled. durable: the file is on
    the disk when this returns, so that not even a power cut has a number given twice.

    Raises: OSError: the disk is full."""
    others = [
        {"number": row["number"], "node_id": row["node_id"].hex(), "host": row["host"], "port": row["port"]}
        for row in rows
    ]
    draft = f"{folder}/{NAME}.new"
    with open(draft, "w") as file:
        json.dump({"number": number, "head": list(head), "next": next_number, "tls": tls, "nodes": others}, file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(draft, f"{folder}/{NAME}")
    if durable:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)  # the name
        finally:
            os.close(fd)


def read(folder: str) -> dict[str, Any] | None:
    """{"number", "head": (host, port), "next", "tls", "nodes": rows as for `write`}. None: it is in no cluster."""
    try:
        with open(f"{folder}/{NAME}") as file:
            said = json.load(file)
    except FileNotFoundError:
        return None
    rows = [{**row, "node_id": bytes.fromhex(row["node_id"])} for row in said["nodes"]]
    head = (said["head"][0], said["head"][1])
    next_number, tls = said.get("next", 0), said.get("tls", False)
    return {"number": said["number"], "head": head, "next": next_number, "tls": tls, "nodes": rows}


def find(host: str, port: int) -> str | None:
    """The folder of this user's live session on this machine that is part of the cluster whose head listens there; of
    several the head's own. host: numeric."""
    found = []
    for folder in sessions.sessions():
        said = read(folder)
        if said is not None and said["head"] == (host, port):
            found.append((not said["next"], said["number"], folder))  # only the head's own node gives numbers
    return min(found)[2] if found else None
