"""`breakpoint()` in a task or an actor, to which a person attaches with `ray debug`. In the worker, the call's thread.

The call stops and listens on a Unix socket in the session's folder (`debug/<pid>-<n>`, beside it a note of where it
stands), until somebody connects or it is cancelled; then that person has the standard debugger. Who ends the connection
lets the program go on. If the worker dies the socket is dead, and goes with the session's folder. In a process that is
no worker this is the standard debugger on its terminal.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pdb
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import ray

FOLDER = "debug"
_counter = itertools.count(1)
_here = threading.local()  # .debugger: the one in which a person steps through this thread


def set_trace(*, header: str | None = None) -> None:
    """Stops here until a person has attached and lets the program go on. Blocks."""
    frame = sys._getframe(1)
    if not ray.is_initialized() or _is_driver():
        pdb.Pdb().set_trace(frame)
        return
    debugger: _RemotePdb | None = getattr(_here, "debugger", None)
    if debugger is None:
        debugger = _here.debugger = _RemotePdb(_wait_for_person(frame))
    if header:
        debugger.message(header)
    debugger.set_trace(frame)


def _is_driver() -> bool:
    context = ray.get_runtime_context()
    return context.get_task_id() is None and context.get_actor_id() is None


def _wait_for_person(frame: FrameType) -> socket.socket:
    context = ray.get_runtime_context()
    folder = f"{context.gcs_address}/{FOLDER}"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = f"{folder}/{os.getpid()}-{next(_counter)}"
    note = {
        "pid": os.getpid(),
        "function": context.get_task_name() or frame.f_code.co_name,
        "place": f"{frame.f_code.co_filename}:{frame.f_lineno}",
        "since": time.time(),
        "task_id": context.get_task_id(),
        "actor_id": context.get_actor_id(),
    }
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path)
        listener.listen(1)
        try:
            with open(path + ".json", "w") as file:
                json.dump(note, file)
            print(
                f"breakpoint at {note['place']}: `ray debug {note['pid']}` attaches to it", file=sys.stderr, flush=True
            )
            connection, _ = listener.accept()
        finally:
            for name in (path + ".json", path):
                with contextlib.suppress(FileNotFoundError):  # the session ends
                    os.unlink(name)
    return connection


class _RemotePdb(pdb.Pdb):
    """The standard debugger over a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # Two files: one for both forgets what it has read ahead when it is written to.
        self._reader = connection.makefile("r", encoding="utf-8", errors="replace")
        self._writer = connection.makefile("w", encoding="utf-8", errors="replace")
        super().__init__(stdin=self._reader, stdout=self._writer, nosigint=True, readrc=False)
        self.prompt = "(ray-pdb) "

    def interaction(self, *where: Any) -> None:
        try:
            super().interaction(*where)
        except ConnectionError:  # the person has gone while the program ran
            self.do_EOF("")

    def do_continue(self, arg: str) -> Any:
        result = super().do_continue(arg)
        if not self.breaks:
            self._end()
        return result

    do_c = do_cont = do_continue

    def do_quit(self, arg: str) -> Any:
        result = super().do_quit(arg)
        self._end()
        return result

    do_q = do_exit = do_quit

    def do_EOF(self, arg: str) -> Any:
        """The person has gone: the program goes on."""
        self.clear_all_breaks()
        self.set_continue()
        self._end()
        return True

    def _end(self) -> None:
        _here.debugger = None
        for end in (self._writer, self._reader, self._connection):
            with contextlib.suppress(OSError, ValueError):  # whom would it be told
                end.close()


def waiting(session_dir: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path of the socket, note) of each breakpoint of a session that waits for a person, oldest first."""
    found = []
    try:
        names = os.listdir(f"{session_dir}/{FOLDER}")
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(".json"):
            path = f"{session_dir}/{FOLDER}/{name}"
            with contextlib.suppress(FileNotFoundError, ValueError):  # attached to, or written, at this moment
                with open(path) as file:
                    found.append((path.removesuffix(".json"), json.load(file)))
    for path, note in sorted(found, key=lambda item: float(item[1]["since"])):
        if os.path.exists(f"/proc/{note['pid']}"):
            yield path, note


__all__ = ["set_trace", "waiting"]
