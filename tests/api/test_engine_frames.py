"""Frames of the engine (docs/internals/wire_format.md) from a process that knows the token and sends what it likes.

Each round is a connection of a made-up process to a driver or a worker, and frames of every type: built as the page
draws them, of numbers that are on an edge or that mean something here, and then often damaged. A round prints its seed.
What must come of it: the connection may end, but the process lives, works, and meets no exception that it did not plan.
"""

from __future__ import annotations

import os
import pickle
import random
import select
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray
from ray._native.channel import Connection, ConnectionClosed
from ray._native.serialization import encode
from tests.chaos.session import engine

RESULT, RETURNED, GOT, RELEASE, YIELD = 17, 19, 22, 23, 28
TYPES = range(16, 30)
EDGES = (0, 1, 2, 3, 7, 28, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
ROUNDS, FRAMES = 60, 40


@ray.remote
class Resident:
    def add(self, n: int) -> int:
        return n + 1


class Talk:
    """Payloads by type. Whatever names something here names what is there, or nearly."""

    def __init__(self, seed: int, tags: list[bytes]) -> None:
        self.chance = random.Random(seed)
        self.tags = tags  # of the session's processes
        self.blobs = [encode(value).to_bytes() for value in (None, 7, "text", [1, {"a": b"b"}], ValueError("no"))]

    def number(self, nbytes: int) -> bytes:
        chance = self.chance
        value = chance.choice((chance.choice(EDGES), chance.randrange(20), chance.getrandbits(64)))
        return (value % (1 << 8 * nbytes)).to_bytes(nbytes, "little")

    def count(self) -> int:
        return self.chance.choice((0, 0, 0, 1, 2, 3))

    def counted(self, items: list[bytes]) -> bytes:
        n = len(items) if self.chance.random() < 0.9 else self.chance.choice(EDGES) % (1 << 32)
        return struct.pack("<I", n) + b"".join(items)

    def sized(self, data: bytes) -> bytes:
        n = len(data) if self.chance.random() < 0.9 else self.chance.choice(EDGES) % (1 << 32)
        return struct.pack("<I", n) + data

    def object_id(self) -> bytes:
        tag = self.chance.choice((*self.tags, self.chance.randbytes(16)))
        return tag + struct.pack("<QI", self.chance.randrange(30), self.chance.choice((0, 0, 1, 2**32 - 1)))

    def object(self, argument: bool = False) -> bytes:
        how = self.chance.choice((0, 0, 0, 1, 2, 3, 4, 255))
        name = self.object_id() if argument and how in (1, 2) else b""
        refs = self.counted([self.object_id() for _ in range(self.count())])
        rest = self.number(8) + self.number(4) if how == 1 else self.sized(self.chance.choice(self.blobs))
        return bytes([how]) + name + refs + (b"" if how == 2 else rest)

    def task(self) -> bytes:
        arguments = self.count()
        n = arguments if self.chance.random() < 0.8 else self.chance.choice(EDGES) % 65536
        keywords = self.chance.choice((0, 0, arguments, self.chance.randrange(65536)))
        header = self.number(8) + self.number(4) + self.number(4) + struct.pack("<I", self.chance.randrange(3))
        header += self.number(4) + struct.pack("<HHH", self.chance.choice((0, 1, 1, 2, 9)), n, keywords)
        header += bytes([self.chance.choice((0, 0, 1, 2, 3, 9)), self.chance.choice((0, 1, 255))])
        names = b"".join(struct.pack("<H", 1) + b"n" for _ in range(min(keywords, arguments)))
        return header + b"".join(self.object(argument=True) for _ in range(arguments)) + names

    def function(self) -> bytes:
        settings = self.chance.choice((b"", pickle.dumps({}), pickle.dumps({"resources": {"CPU": 10_000}})))
        body = self.chance.choice((b"", self.chance.choice(self.blobs), self.chance.randbytes(40)))
        start = struct.pack("<IB", self.chance.randrange(3), self.chance.choice((0, 1, 2))) + self.chance.randbytes(16)
        name = self.sized(self.chance.choice((b"add", b"f", b"__init__", b"\xff\xfe", b"")))
        refs = self.counted([self.object_id() for _ in range(self.count())])
        return start + self.number(4) + name + self.sized(settings) + refs + body

    def payload(self, kind: int) -> bytes:
        many = range(self.count())
        if kind == 16:
            made = self.task()
        elif kind == RESULT:
            objects = [self.object() for _ in many]
            kept = self.counted([self.object_id() for _ in range(self.count())])
            made = self.number(8) + self.number(4) + struct.pack("<H", len(objects)) + b"".join(objects) + kept
        elif kind == 18:
            made = self.function()
        elif kind == RETURNED:
            made = self.counted([self.number(8) for _ in many])
        elif kind in (21, 24):
            made = self.number(8) + self.object_id() + self.chance.choice((b"", self.number(4)))
        elif kind == GOT:
            made = self.number(8) + self.object()
        elif kind == RELEASE:
            made = self.counted([self.object_id() + self.number(4) for _ in many])
        elif kind == 27:
            made = self.counted([self.number(4) for _ in many])
        elif kind == YIELD:
            made = self.number(8) + self.number(4) + self.object() + self.number(8)
        else:  # CANCEL, ACK, HAVE, TAKEN
            made = self.number(8) + self.number(4)
        return self.damaged(made) if self.chance.random() < 0.4 else made

    def damaged(self, payload: bytes) -> bytes:
        changed = bytearray(payload)
        for _ in range(self.chance.choice((1, 1, 2, 5))):
            at = self.chance.randrange(len(changed) + 1)
            what = self.chance.randrange(3)
            if what == 0:
                del changed[at:]
            elif what == 1:
                changed[at:at] = self.chance.randbytes(self.chance.randrange(9))
            elif at < len(changed):
                changed[at] ^= 1 << self.chance.randrange(8)
        return bytes(changed)


def say(path: str, talk: Talk) -> int:
    """One connection. Returns how many frames went before it ended."""
    token = bytes.fromhex((Path(engine().session_dir) / "token").read_text())
    connection = Connection.dial(path, token, talk.chance.randbytes(16), talk.chance.choice((0, 1)))
    said = 0
    try:
        for _ in range(FRAMES):
            kind = talk.chance.choice(TYPES)
            connection.send(kind, talk.payload(kind), talk.chance.choice((0, 0, 1, 2, 3, 16, 255)))
            said += 1
            connection.receive()
        deadline = time.monotonic() + 0.02  # what comes of the last ones
        while time.monotonic() < deadline:
            select.select([connection.fileno()], [], [], 0.01)
            connection.receive()
    except ConnectionClosed:
        return said
    connection.close()
    return said


@pytest.fixture
def resident(ray_start: object) -> Iterator[object]:
    yield Resident.remote()


@pytest.mark.parametrize("of", ["driver", "worker"])
def test_no_frame_of_a_stranger_who_knows_the_token_does_harm(
    resident: Resident, of: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ray.get(resident.add.remote(1)) == 2  # type: ignore[attr-defined]
    kept = ray.put([1, 2, 3])
    own = engine().tag
    paths = {path.name: str(path) for path in (Path(engine().session_dir) / "c").iterdir()}
    tags = [bytes.fromhex(name) for name in paths]
    chosen = [path for name, path in paths.items() if (bytes.fromhex(name) == own) == (of == "driver")]
    first = int(os.environ.get("RAY_TEST_SEED", "1"))
    said = 0
    for seed in range(first, first + ROUNDS):
        print(f"seed {seed}")
        said += say(chosen[seed % len(chosen)], Talk(seed, tags))
        assert ray.get(resident.add.remote(seed), timeout=30) == seed + 1, seed  # type: ignore[attr-defined]
    assert said > ROUNDS  # some were let through
    assert ray.get(kept) == [1, 2, 3]
    assert ray.get(ray.remote(lambda: 5).remote(), timeout=30) == 5
    out, err = capfd.readouterr()
    for text in (
        out,
        err,
        *(path.read_text(errors="replace") for path in Path(engine().session_dir, "logs").iterdir()),
    ):
        assert "Traceback" not in text, text
