"""Writes and reads across the death of a server: nothing lost, nothing done twice, nothing unbounded."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from ray._control import resp, store
from ray._control.redis_server import find_server
from ray._control.resp import Parser, ProtocolError, ReplyError, encode
from ray._control.store import Store, StoreUnavailable
from tests.unit.control_session import control_plane, run, until


def test_writes_queued_before_the_server_is_up_arrive() -> None:
    async def test() -> None:
        async with control_plane() as plane:  # nobody waited for it
            plane.store.write(0, "HSET", "ray:x", "a", "1")
            assert await plane.store.call(0, "HGET", "ray:x", "a") == b"1"

    run(test)


def test_a_read_sees_every_write_before_it() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            for i in range(200):
                plane.store.write(0, "HSET", "ray:x", "n", i)
                if i % 20 == 0:
                    assert await plane.store.call(0, "HGET", "ray:x", "n") == b"%d" % i

    run(test)


def slow_disk_server(folder: Path) -> str:
    """The server's binary, on a disk that takes three seconds to flush a file. Compiled by what has compiled ray."""
    source, library, program = folder / "slow.cc", folder / "slow.so", folder / "redis-server"
    flushes = [f'extern "C" int {name}(int) {{ return usleep(3000000); }}\n' for name in ("fdatasync", "fsync")]
    source.write_text("#include <unistd.h>\n" + "".join(flushes))
    subprocess.run([os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-o", library, source], check=True)
    program.write_text(f'#!/bin/sh\nLD_PRELOAD={library} exec {find_server()} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_no_acknowledged_write_is_lost_when_the_server_is_killed_on_a_slow_disk(tmp_path: Path) -> None:
    async def test() -> None:
        async with control_plane(binary=slow_disk_server(tmp_path)) as plane:
            deadline = time.monotonic() + 2.5  # so the kernel is told to flush the file at some time within it
            written = 0
            while time.monotonic() < deadline:
                written += 1
                plane.store.write(0, "HSET", "ray:hash", written, "x")
                assert await plane.store.call(0, "HLEN", "ray:hash") == written
                await asyncio.sleep(0.01)
            plane.kill()
            assert await plane.store.call(0, "HLEN", "ray:hash") == written

    run(test)


@pytest.mark.parametrize("seed", range(4))
def test_no_write_is_lost_or_doubled_when_the_server_is_killed_again_and_again(seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        async with control_plane() as plane:
            for i in range(3000):
                plane.store.write(0, "XADD", "ray:stream", f"1-{i + 1}", "i", i)
                plane.store.write(0, "HSET", "ray:hash", i, "x" * rng.choice((1, 1000, 20_000)))
                if i in (500, 1500, 2500):
                    await asyncio.sleep(rng.random() * 0.02)
                    if plane.servers.pids:
                        plane.kill()
            entries = await plane.store.call(0, "XRANGE", "ray:stream", "-", "+")
            assert isinstance(entries, list)
            assert [int(entry[1][1]) for entry in entries] == list(range(3000))  # type: ignore[index,arg-type]
            assert await plane.store.call(0, "HLEN", "ray:hash") == 3000
            assert plane.problems == []
            assert plane.store.stats()[0]["refused"] == 0

    run(test)


def test_a_call_waits_for_the_restart_and_one_that_nobody_answers_times_out_by_name(tmp_path: Path) -> None:
    async def test() -> None:
        alone = Store([str(tmp_path / "nobody.sock")], "password", asyncio.get_running_loop())
        with pytest.raises(StoreUnavailable, match=r"HGET: no answer .*nobody\.sock.* within 0\.05 s .*cannot connect"):
            await alone.call(0, "HGET", "ray:x", "a", timeout_s=0.05)
        await alone.close(0)

    run(test)


def test_a_wrong_password_fails_at_once_and_says_so() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            await plane.store.call(0, "PING")
            other = Store(plane.servers.addresses, "wrong", asyncio.get_running_loop())
            with pytest.raises(StoreUnavailable, match="refuses our password"):
                await other.call(0, "PING")
            await other.close(0)

    run(test)


def test_a_full_queue_drops_writes_refuses_calls_and_asks_for_the_tables_once_the_server_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "QUEUE_BYTES_MAX", 10_000)

    async def test() -> None:
        async with control_plane() as plane:
            gaps: list[int] = []
            plane.store.on_gap = gaps.append
            for i in range(1000):
                plane.store.write(0, "HSET", "ray:x", i, "value" * 10)
            with pytest.raises(StoreUnavailable, match="already wait"):
                await plane.store.call(0, "HSET", "ray:x", "more", "value" * 100)
            await until(lambda: gaps == [0], "on_gap")
            stats = plane.store.stats()[0]
            assert stats["dropped"] and stats["connected"]
            kept = await plane.store.call(0, "HLEN", "ray:x")
            assert isinstance(kept, int) and kept + int(str(stats["dropped"])) == 1000

    run(test)


def test_a_refused_write_is_counted_and_told_once_per_reason() -> None:
    async def test() -> None:
        async with control_plane(max_memory_bytes=2_000_000) as plane:
            for i in range(40):
                plane.store.write(0, "HSET", "ray:x", i, b"x" * 100_000)
            await plane.store.drain(5)
            assert plane.store.stats()[0]["refused"]
            assert len(plane.problems) == 1 and "OOM" in plane.problems[0]
            with pytest.raises(ReplyError, match="OOM"):
                await plane.store.call(0, "HSET", "ray:x", "y", b"x" * 100_000)
            plane.store.write(0, "UNLINK", "ray:x")  # what frees memory is let through
            assert await plane.store.call(0, "HSET", "ray:x", "y", b"x" * 1000) == 1

    run(test)


def test_what_was_refused_for_want_of_memory_is_asked_for_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "REPAIR_FIRST_S", 0.05)

    async def test() -> None:
        async with control_plane(max_memory_bytes=2_000_000) as plane:
            with pytest.raises(ReplyError, match="OOM"):
                for i in range(10_000):
                    await plane.store.call(0, "HSET", "ray:junk", i, b"x" * 5000)
            asked: list[int] = []

            def on_gap(shard: int) -> None:
                asked.append(shard)
                plane.store.write(shard, "HSET", "ray:row", "a", b"r" * 20_000)

            plane.store.on_gap = on_gap
            plane.store.write(0, "HSET", "ray:row", "a", b"r" * 20_000)
            await plane.store.call(0, "UNLINK", "ray:junk")
            await until(lambda: asked, "on_gap")
            assert await plane.store.call(0, "HGET", "ray:row", "a") == b"r" * 20_000

    run(test)


def test_a_cancelled_or_late_call_does_not_shift_the_replies_of_others() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            await plane.store.call(0, "HSET", "ray:x", "a", "1")
            calls = [asyncio.ensure_future(plane.store.call(0, "ECHO", f"{i}")) for i in range(50)]
            await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert answers[1::2] == [b"%d" % i for i in range(1, 50, 2)]

    run(test)


def test_a_server_that_speaks_something_else_is_left_and_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        path = str(tmp_path / "fake.sock")
        connections = []

        def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(writer)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        server = await asyncio.start_unix_server(garbage, path)
        client = Store([path], "password", asyncio.get_running_loop())
        await until(lambda: len(connections) > 2, "more attempts")
        assert "not RESP" in str(client.stats()[0]["why_down"]) or not client.stats()[0]["connected"]
        await client.close(0)
        for writer in connections:
            writer.close()
        server.close()
        await server.wait_closed()

    run(test)


def test_closing_leaves_no_descriptor_open() -> None:
    async def test() -> None:
        async with control_plane(shards=2) as plane:
            for shard in range(3):
                await plane.store.call(shard, "PING")
            plane.kill(1)  # a restarted server's descriptors as well
            await plane.store.call(1, "PING")

    before = descriptors()
    run(test)
    assert descriptors() == before


def descriptors() -> list[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if os.path.lexists(link))


# -- the codec ---------------------------------------------------------------------------------------------------


def test_commands_are_encoded_as_the_redis_client_does() -> None:
    from redis._parsers.encoders import Encoder
    from redis.connection import PythonRespSerializer

    for args in (("HSET", "ray:x", b"\x00\r\n\xff", 17), ("PING",), ("SET", "é", b"")):
        theirs = b"".join(PythonRespSerializer(1 << 20, Encoder("utf-8", "strict", False).encode).pack(*args))
        assert encode(args) == theirs


REPLIES = (
    b"+OK\r\n:42\r\n$-1\r\n$0\r\n\r\n$5\r\na\r\nbc\r\n*-1\r\n*0\r\n-OOM no memory\r\n"
    b"*2\r\n*1\r\n:-7\r\n*3\r\n$1\r\nx\r\n$-1\r\n+y\r\n:1\r\n"
)
VALUES = ["OK", 42, None, b"", b"a\r\nbc", None, [], "OOM", [[-7], [b"x", None, "y"]], 1]


@pytest.mark.parametrize("seed", range(20))
def test_replies_come_out_whole_however_the_stream_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    parser, found, at = Parser(), [], 0
    while at < len(REPLIES):
        size = rng.choice((1, 2, 3, 7, 1000))
        found += parser.feed(REPLIES[at : at + size])
        at += size
    assert [reply.code if isinstance(reply, ReplyError) else reply for reply in found] == VALUES


@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"$abc\r\n",
        b"$-2\r\n",
        b"$999999999999\r\n",
        b"*99999999999\r\n",
        b"$1\r\nxyz",
        b":12x\r\n",
        b"*1\r\n" * 20 + b":1\r\n",
        b"+" + b"x" * (resp.LINE_BYTES_MAX + 10),
    ],
)
def test_what_is_not_resp_is_refused(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        Parser().feed(stream)


@pytest.mark.parametrize("seed", range(200))
def test_random_bytes_are_refused_or_waited_for_but_never_crash(seed: int) -> None:
    rng = random.Random(seed)
    stream = bytearray(REPLIES * 3)
    for _ in range(rng.randrange(1, 6)):
        stream[rng.randrange(len(stream))] = rng.randrange(256)
    try:
        Parser().feed(bytes(stream))
    except ProtocolError:
        pass  # refused: what should happen to most of them
