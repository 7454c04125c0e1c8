"""ray.init("ray://host:port"): makes this process a driver of a session on another machine. Main thread or not.

A folder like a session's is made here, and `ray client` (local_end.py) started to fill it; then the engine connects as
it would on the cluster's own machine. That process ends with ours, by the pipe that is its stdin. If it ends first, the
engine sees the node process gone, and every call fails with the reason.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from ray._launch import session as sessions
from ray._launch.address import Door
from ray.client.tunnel import GRACE_S, GRACE_VARIABLE

if TYPE_CHECKING:
    from ray._core.engine import Engine

STORE_BYTES_MAX = 2 << 30  # of the client's own store: what one object may have, and how much is kept of those read
STORE_BYTES_VARIABLE = "RAY_CLIENT_OBJECT_STORE_BYTES"
END_TIMEOUT_S = 10.0


class Connection:
    """The process `ray client` and its folder."""

    def __init__(self, process: subprocess.Popen[bytes], folder: sessions.Session, info: dict[str, Any]) -> None:
        self.process = process
        self.folder = folder
        self.info = info  # what the server says of itself: ray_version, python_version, protocol_version

    def close(self) -> None:
        """Says goodbye; nothing stays, here or there. Idempotent. Blocks: until the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.folder.remove()


def connect(where: Door, info: dict[str, Any], temp_dir: str | None = None) -> tuple[Connection, Engine]:
    """Joins the session that the server lets into.

    Args: info: what `register` takes (docs/internals/wire_format.md).
    Raises: ConnectionError: nobody there, or one of the two did not prove itself.  ValueError, PermissionError: the
        token here can't be used.  RuntimeError: another Python runs there.
    """
    connection = _start(where, temp_dir)
    try:
        theirs, ours = connection.info["python_version"], platform.python_version()
        if theirs.split(".")[:2] != ours.split(".")[:2]:  # what either pickles the other could not read
            raise RuntimeError(
                f"the session behind {where} runs Python {theirs}, and this is Python {ours}: only the last of the "
                "three numbers may differ"
            )
        return connection, _engine(connection.folder, info)
    except BaseException:
        connection.close()
        raise


def _start(where: Door, temp_dir: str | None) -> Connection:
    folder = sessions.create(temp_dir)
    try:
        config = {
            "folder": folder.folder,
            "host": where.host,
            "port": where.port,
            "lock_fd": folder.lock_fd,
            "memory_bytes": int(os.environ.get(STORE_BYTES_VARIABLE) or STORE_BYTES_MAX),
            "grace_s": float(os.environ.get(GRACE_VARIABLE) or GRACE_S),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.client.local_end"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(folder.lock_fd,),
            start_new_session=True,  # the terminal's Ctrl-C is the program's, not this helper's
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except BaseException:
        folder.release_lock()
        folder.remove()
        raise
    folder.release_lock()  # the process holds it now
    connection = Connection(process, folder, {})
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        said = json.loads(line) if line else {"ready": False, "error": "its process ended", "kind": ""}
        if not said.pop("ready"):
            kinds: dict[object, type[Exception]] = {"ValueError": ValueError, "PermissionError": PermissionError}
            raise kinds.get(said["kind"], ConnectionError)(f"ray.init: can't connect to {where}: {said['error']}")
    except BaseException:
        connection.close()
        raise
    connection.info = said
    return connection


def _engine(folder: sessions.Session, info: dict[str, Any]) -> Engine:
    from ray._core import driver
    from ray.client import door, objects
    from ray.client.store import Asker, RemoteStore

    asker = Asker(door.path_in(folder.folder))
    return driver.start(
        folder.folder,
        folder.node_socket,
        folder.token,
        info,
        open_store=lambda _cluster_socket: RemoteStore(folder.plasma_socket, asker),
        reach=lambda tag: asker.ask(door.REACH, tag.ljust(objects.KEY_BYTES, b"\0")),
    )
