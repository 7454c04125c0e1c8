"""A worker whose task was interrupted, as a process has it that knows the token and holds no lease: the worker runs
nothing more, and is no hindrance to others. The end of a caller's connection interrupts what runs for it. (The node
usually hears of a caller's death first, and has his calls stopped; but one that was on its way may come after that.)
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

TASK, RESULT, FUNCTION, RETURNED, CANCEL = 16, 17, 18, 19, 20
TAKES_NO_OTHERS = 4


def sleep(started: str) -> None:
    Path(started).write_text(str(os.getpid()))
    time.sleep(600)


@ray.remote
def who() -> int:
    return os.getpid()


class Caller:
    """Defines `sleep` and calls it on a worker with one argument."""

    def __init__(self, tag: str) -> None:
        folder = Path(session.engine().session_dir)
        token = bytes.fromhex((folder / "token").read_text())
        self.connection = Connection.dial(str(folder / "c" / tag), token, os.urandom(16), 1)
        body, refs = encode_function(sleep, "sleep")
        assert not refs
        start = struct.pack("<IB16sI", 1, 0, os.urandom(16), 0) + struct.pack("<I", 5) + b"sleep"
        self.connection.send(FUNCTION, start + struct.pack("<II", 0, 0) + body)

    def append(self, seq: int, argument: object) -> None:
        value = encode(argument).to_bytes()
        header = struct.pack("<QIIIIHHHBB", seq, 0, 0, 1, 0, 1, 1, 0, 0, 0)
        self.connection.append(TASK, header + struct.pack("<BII", 0, 0, len(value)) + value)


def the_worker() -> str:
    """The tag of the only one."""
    (tag,) = {path.name for path in Path(session.engine().session_dir, "c").iterdir()} - {session.engine().tag.hex()}
    return tag


def started(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text()))


def test_what_runs_for_a_caller_whose_connection_ends_is_interrupted_and_others_go_elsewhere(
    engine: Any, tmp_path: Path
) -> None:
    engine.start(num_cpus=1)
    worker = ray.get(who.remote())
    caller = Caller(the_worker())
    caller.append(1, str(tmp_path / "1"))
    caller.connection.flush()
    assert started(tmp_path / "1") == worker
    behind = who.remote()  # waits for that worker, which is free for all that the node knows
    caller.connection.close()
    assert ray.get(behind, timeout=30) != worker
    wait_until(lambda: has_ended(worker))


def test_what_waits_behind_an_interrupted_task_goes_back_and_so_does_what_comes_later(
    engine: Any, tmp_path: Path
) -> None:
    engine.start(num_cpus=1)
    ray.get(who.remote())
    caller = Caller(the_worker())
    caller.append(1, str(tmp_path / "1"))
    caller.connection.flush()
    started(tmp_path / "1")
    caller.connection.append(CANCEL, struct.pack("<Q", 1))
    caller.append(2, str(tmp_path / "2"))  # soon it would go back in any case, because the other takes so long
    caller.connection.flush()
    answers: list[tuple[int, int, bytes]] = []

    def is_answered(kind: int, seq: int) -> bool:
        answers.extend(caller.connection.receive_frames())
        return any(frame[0] == kind and struct.pack("<Q", seq) in frame[2] for frame in answers)

    wait_until(lambda: is_answered(RESULT, 1) and is_answered(RETURNED, 2))
    caller.append(3, str(tmp_path / "3"))
    caller.connection.flush()
    wait_until(lambda: is_answered(RETURNED, 3))
    assert [flags for kind, flags, data in answers if kind == RETURNED][-1] == TAKES_NO_OTHERS
    assert not (tmp_path / "2").exists() and not (tmp_path / "3").exists()
    caller.connection.close()
