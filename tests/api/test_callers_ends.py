"""The end of a caller's connection to a worker, as a process has it that knows the token and holds no lease: what runs
for it is interrupted, and the worker is no hindrance to others. (The node usually hears of a caller's death first, and
has his calls stopped; but one that was on its way may come after that.)
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

import ray
from ray._native.channel import Connection
from ray._native.serialization import encode, encode_function
from tests.chaos import session
from tests.leaks import has_ended
from tests.wait import wait_until

TASK, FUNCTION = 16, 18


def sleep(started: str) -> None:
    Path(started).write_text(str(os.getpid()))
    time.sleep(600)


@ray.remote
def who() -> int:
    return os.getpid()


def call(tag: str, function: Any, argument: object) -> Connection:
    """Sends one call to the worker with this tag."""
    folder = Path(session.engine().session_dir)
    token = bytes.fromhex((folder / "token").read_text())
    connection = Connection.dial(str(folder / "c" / tag), token, os.urandom(16), 1)
    body, refs = encode_function(function, "sleep")
    assert not refs
    start = struct.pack("<IB16sI", 1, 0, os.urandom(16), 0) + struct.pack("<I", 5) + b"sleep"
    connection.send(FUNCTION, start + struct.pack("<II", 0, 0) + body)
    value = encode(argument).to_bytes()
    header = struct.pack("<QIIIIHHHBB", 1, 0, 0, 1, 0, 1, 1, 0, 0, 0)
    connection.send(TASK, header + struct.pack("<BII", 0, 0, len(value)) + value)
    return connection


def test_what_runs_for_a_caller_whose_connection_ends_is_interrupted_and_others_go_elsewhere(
    engine: Any, tmp_path: Path
) -> None:
    engine.start(num_cpus=1)
    worker = ray.get(who.remote())
    (tag,) = {path.name for path in Path(session.engine().session_dir, "c").iterdir()} - {session.engine().tag.hex()}
    connection = call(tag, sleep, str(tmp_path / "started"))
    wait_until(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text())
    assert int((tmp_path / "started").read_text()) == worker
    behind = who.remote()  # waits for that worker, which is free for all that the node knows
    connection.close()
    assert ray.get(behind, timeout=30) != worker
    wait_until(lambda: has_ended(worker))
