"""Ways in which workers end, and how often something was tried. LIBRARY of the tests of what dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import ray

ROOT = str(Path(__file__).resolve().parents[2])
BIG = 300_000


def die(how: str) -> None:
    """Ends this process, in one of the ways in which workers end."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        import ctypes

        ctypes.string_at(0)
    elif how == "os._exit":
        os._exit(3)
    elif how == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)  # some signals arrive a moment later


WAYS = ["killed", "segfault", "os._exit"]
SAID = {"killed": "SIGKILL", "segfault": "SIGSEGV", "os._exit": "code 3"}


@pytest.fixture
def attempts(tmp_path):
    """A counter that outlives workers: attempts.path is given to tasks, which call `count`."""

    class Attempts:
        path = str(tmp_path / "attempts")

        def __len__(self):
            return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    return Attempts()


def count(path: str) -> int:
    """Notes one more attempt; how many there have been with this one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, b".")
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


@ray.remote
def echo(x):
    return x


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.value = start

    def pid(self):
        return os.getpid()

    def add(self, n=1):
        self.value += n
        return self.value

    def die(self, how="killed"):
        die(how)

    def hang(self):
        time.sleep(60)

    def die_first(self, path):
        if count(path) == 1:
            die("killed")
        return len(Path(path).read_text())
