"""Who may talk to a session: only processes of its user that know its token. Everybody else is dropped and harms
nobody.

Strangers come to each socket of a running session (the node's, a worker's, the driver's, the store's, Redis') without a
token, with a wrong one, with garbage, or in silence; afterwards the session must still work, as must a second session
beside it.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ray
from ray._native.channel import Connection, ConnectionClosed
from ray._native.plasma import PlasmaClient
from tests.chaos.session import engine, pids, within
from tests.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
HELLO_DEADLINE_S = 5.0


@ray.remote
def echo(x):
    return x


@ray.remote
class Resident:
    """Keeps a worker, and so its socket, in place."""

    def add(self, n):
        return n + 1


def folder() -> Path:
    return Path(engine().session_dir)


def sockets() -> dict[str, str]:
    """Every socket of the session by what listens there: node, plasma, redis, core 0, core 1, ..."""
    wait_until(lambda: (folder() / "redis.sock").exists())
    cores = sorted((folder() / "c").iterdir())
    found = {name: str(folder() / f"{name}.sock") for name in ("node", "plasma", "redis")}
    return found | {f"core {i}": str(path) for i, path in enumerate(cores)}


def connect(path: str) -> socket.socket:
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
    return s


def is_dropped(s: socket.socket, timeout_s: float) -> bool:
    """Whether the other side ends the connection within timeout_s; what it says before that is thrown away."""
    s.settimeout(timeout_s)
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if s.recv(65536) == b"":
                return True
    except (ConnectionError, BrokenPipeError):
        return True
    except TimeoutError:
        return False
    return False


def works() -> None:
    """The session does all that it did before."""
    value = np.arange(100_000)
    assert ray.get([echo.remote(i) for i in range(20)], timeout=60) == list(range(20))
    assert (ray.get(echo.remote(ray.put(value)), timeout=60) == value).all()
    assert ray.get(Resident.remote().add.remote(1), timeout=60) == 2
    assert all(pids(role) for role in ("node", "plasma_store", "redis", "workers"))


@pytest.fixture
def session(ray_start) -> Iterator[dict[str, str]]:
    """A session with an actor in it; ends by asserting that it still works and that nobody in it has died."""
    actor = Resident.remote()
    assert ray.get(actor.add.remote(1)) == 2
    before = {role: pids(role) for role in ("node", "fork_server", "plasma_store", "redis")}
    yield sockets()
    works()
    assert ray.get(actor.add.remote(1), timeout=60) == 2, "the actor that was there before"
    assert {role: pids(role) for role in before} == before


def garbage(seed: int) -> list[bytes]:
    r = random.Random(seed)
    print(f"seed {seed}")
    return [
        b"\0" * 4096,
        b"\xff" * 4096,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"*1\r\n$8\r\nSHUTDOWN\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"\x80\x05cos\nsystem\n(S'true'\ntR.",
        struct.pack("<IBBH", 0xFFFFFFFF, 1, 0, 0) + b"x" * 100,
        struct.pack("<IBBH", 16, 16, 0, 0) + b"x" * 16,
        *[r.randbytes(r.choice([1, 7, 64, 1000, 100_000])) for _ in range(20)],
    ]


def test_garbage_is_dropped_and_harms_nobody(session):
    for name, path in session.items():
        for data in garbage(20261122):
            with connect(path) as s:
                try:
                    s.sendall(data)
                    s.shutdown(socket.SHUT_WR)
                except (BrokenPipeError, ConnectionResetError):
                    continue  # dropped already
                assert is_dropped(s, HELLO_DEADLINE_S + 30), f"{name} kept a connection that sent {data[:16]!r}"


def test_a_hello_with_a_wrong_token_is_dropped_at_once_and_nothing_of_it_is_read(session, tmp_path):
    witness = tmp_path / "unpickled"

    class Touch:
        def __reduce__(self):
            return Path.touch, (witness,)

    import pickle

    for name, path in session.items():
        if name in ("plasma", "redis"):
            continue
        for role in range(4):
            connection = Connection.dial(path, os.urandom(32), os.urandom(16), role)
            for kind in (1, 2, 3):
                connection.append(kind, pickle.dumps((1, Touch(), ()), 5))
            connection.append(16, bytes(100))
            with within(), pytest.raises(ConnectionClosed):
                connection.flush()
                while True:
                    select.select([connection.fileno()], [], [], 2)
                    connection.receive()
    assert not witness.exists()


def test_connections_that_say_nothing_are_dropped_after_a_while_and_block_nobody(session):
    silent = [(name, connect(path)) for name, path in session.items() for _ in range(5)]
    with within(3):
        works()
    deadline = time.monotonic() + HELLO_DEADLINE_S + 30
    kept = {
        name
        for name, s in silent
        # Redis answers to the password only, the store to the user's own processes: these may stay.
        if name not in ("redis", "plasma") and not is_dropped(s, max(0.1, deadline - time.monotonic()))
    }
    for _, s in silent:
        s.close()
    assert not kept


def test_a_hello_that_comes_in_single_bytes_and_stops_is_dropped(session):
    for path in (session["node"], session["core 0"]):
        with connect(path) as s:
            began = time.monotonic()
            try:
                while time.monotonic() < began + HELLO_DEADLINE_S + 30:
                    s.sendall(b"R")
                    if select.select([s], [], [], 0.5)[0] and s.recv(65536) == b"":
                        break
                else:
                    pytest.fail(f"{path} kept a connection that never finished its hello")
            except (BrokenPipeError, ConnectionResetError):
                pass


def test_thousands_of_connections_at_once_exhaust_nothing(session):
    for path in (session["node"], session["core 0"], session["plasma"]):
        crowd = []
        try:
            for _ in range(400):
                s = socket.socket(socket.AF_UNIX)
                s.setblocking(False)
                crowd.append(s)
                if s.connect_ex(path) != 0:
                    break  # the accept queue is full: refused, which is fine
            with within(5):
                assert ray.get(echo.remote(1), timeout=60) == 1
        finally:
            for s in crowd:
                s.close()


def test_somebody_with_the_token_who_then_sends_nonsense_loses_the_connection_only(session):
    token = bytes.fromhex((folder() / "token").read_text())
    for name, path in session.items():
        if name in ("plasma", "redis"):
            continue
        for kind in [1, 3, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 99, 255]:
            for payload in (b"", b"\0" * 7, b"\xff" * 64, os.urandom(200)):
                connection = Connection.dial(path, token, os.urandom(16), 3)
                deadline = time.monotonic() + 0.01
                try:
                    connection.send(kind, payload)
                    while time.monotonic() < deadline:
                        select.select([connection.fileno()], [], [], 0.01)
                        connection.receive()
                except ConnectionClosed:
                    continue
                connection.close()


def test_a_stranger_with_the_token_cannot_register_as_a_worker(session):
    import pickle

    token = bytes.fromhex((folder() / "token").read_text())
    tag = os.urandom(16)
    connection = Connection.dial(session["node"], token, tag, 1)
    info = {"kind": "worker", "tag": tag, "pid": pids("workers")[0]}
    answers: list[tuple[int, bytes]] = []
    try:
        connection.send(1, pickle.dumps((1, "register", (info,)), 5))
        wait_until(
            lambda: (
                (select.select([connection.fileno()], [], [], 1) and answers.extend(connection.receive())) or answers
            )
        )
    except ConnectionClosed:
        return
    request, ok, value = pickle.loads(answers[0][1])
    assert request == 1 and not ok and isinstance(value, Exception), value
    connection.close()


# -- Redis ------------------------------------------------------------------------------------------------------------


def ask_redis(path: str, *lines: bytes) -> bytes:
    with connect(path) as s:
        s.sendall(b"".join(line + b"\r\n" for line in lines))
        s.shutdown(socket.SHUT_WR)
        answer = b""
        while data := s.recv(65536):
            answer += data
        return answer


@pytest.mark.parametrize("command", [b"KEYS *", b"GET a", b"FLUSHALL", b"CONFIG GET dir", b"SHUTDOWN NOSAVE", b"INFO"])
def test_redis_does_nothing_without_the_password(session, command):
    assert ask_redis(session["redis"], command).startswith(b"-NOAUTH")
    for password in (b"x", b"0" * 64):
        assert b"-WRONGPASS" in ask_redis(session["redis"], b"AUTH " + password, command)
    assert len(pids("redis")) >= 1


def test_redis_runs_no_script_and_no_dangerous_command_even_with_the_password(session):
    password = (folder() / "redis" / "password").read_text().split()[-1].encode()
    for command in (
        b"EVAL 'return 1' 0",
        b"CONFIG SET dir /tmp",
        b"DEBUG SLEEP 10",
        b"MODULE LIST",
        b"SHUTDOWN NOSAVE",
    ):
        answer = ask_redis(session["redis"], b"AUTH " + password, command)
        assert b"-NOPERM" in answer or b"-ERR" in answer or b"-NOAUTH" in answer or b"-WRONGPASS" in answer, answer


# -- the store --------------------------------------------------------------------------------------------------------


def test_a_reader_cannot_write_to_sealed_objects(session):
    ref = ray.put(np.zeros(200_000, np.uint8))
    value = ray.get(ref)
    with pytest.raises(ValueError):
        value[0] = 1
    program = """
    import ctypes, sys
    import numpy as np
    from ray._native.plasma import PlasmaClient
    view = memoryview(PlasmaClient(sys.argv[1]).get(bytes.fromhex(sys.argv[2])))
    address = np.frombuffer(view, np.uint8).ctypes.data
    print("mapped", flush=True)
    ctypes.memset(address, 1, 1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), session["plasma"], ref.hex()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "mapped\n", done.stderr
    assert done.returncode == -signal.SIGSEGV
    assert (value == 0).all()


# -- files ------------------------------------------------------------------------------------------------------------


def test_everything_in_the_session_folder_is_the_users_own(session):
    assert stat.S_IMODE(folder().stat().st_mode) == 0o700
    assert stat.S_IMODE(folder().parent.stat().st_mode) == 0o700
    for path in [folder(), *folder().rglob("*")]:
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        assert found.st_uid == os.getuid(), path
        assert not stat.S_IMODE(found.st_mode) & 0o077, f"{path} has mode {stat.filemode(found.st_mode)}"
    assert stat.S_IMODE((folder() / "token").stat().st_mode) == 0o600


def test_the_token_is_in_no_command_line_and_no_environment_and_no_log(session):
    token = (folder() / "token").read_text().strip()
    password = (folder() / "redis" / "password").read_text().split()[-1]
    everyone = [*pids("node"), *pids("fork_server"), *pids("plasma_store"), *pids("redis"), *pids("workers")]
    for pid in everyone:
        for name in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace")
            assert token not in text and password not in text, f"{name} of {pid}"
    for path in (folder() / "logs").iterdir():
        text = path.read_bytes().decode("utf-8", "replace")
        assert token not in text and password not in text, path


def test_no_port_is_open(session):
    inodes = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            inodes.add(line.split()[9])
    everyone = [
        os.getpid(), *pids("node"), *pids("fork_server"), *pids("plasma_store"), *pids("redis"), *pids("workers"),
    ]  # fmt: skip
    for pid in everyone:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                assert target[8:-1] not in inodes, f"process {pid} has an internet socket open"


# -- two sessions -----------------------------------------------------------------------------------------------------

OTHER = """
import json, os, sys
import numpy as np
import ray
ray.init(num_cpus=1, logging_level="error")

@ray.remote
def f(x): return int(np.sum(x))

@ray.remote
class Named:
    def pid(self): return os.getpid()

named = Named.remote()
ref = ray.put(np.ones(200_000, np.uint8))
from ray._core.engine import current
print(json.dumps({"session": current().session_dir, "sum": ray.get(f.remote(ref)), "pid": ray.get(named.pid.remote()),
                  "nodes": len(ray.nodes()), "cpus": ray.cluster_resources()["CPU"]}), flush=True)
sys.stdin.readline()
print(json.dumps({"sum": ray.get(f.remote(ref))}), flush=True)
"""


class Other:
    """Another driver with its own session, perhaps another user's."""

    def __init__(self, python: list[str], **options) -> None:
        self.process = subprocess.Popen(
            [*python, "-c", OTHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            pytest.fail("the other driver ended: " + self.process.communicate()[1])
        return json.loads(line)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            assert self.answer()["sum"] == 200_000
        _, error = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, error


def test_two_sessions_of_one_user_do_not_see_each_other(session):
    other = Other([sys.executable], env={**os.environ, "PYTHONPATH": str(ROOT)})
    told = other.answer()
    try:
        assert told["session"] != str(folder())
        assert told["sum"] == 200_000 and told["nodes"] == 1 and told["cpus"] == 1
        assert ray.cluster_resources()["CPU"] == 2 and len(ray.nodes()) == 1
        ours = (folder() / "token").read_text()
        assert ours != Path(told["session"], "token").read_text()
        wrong = Connection.dial(f"{told['session']}/node.sock", bytes.fromhex(ours), os.urandom(16), 3)
        with pytest.raises(ConnectionClosed):
            while True:
                select.select([wrong.fileno()], [], [], 2)
                wrong.receive()
        works()
    finally:
        other.end()
    assert not Path(told["session"]).exists()


def test_the_end_of_one_session_does_not_disturb_the_other(session):
    for how in (signal.SIGKILL, signal.SIGTERM):
        other = Other([sys.executable], env={**os.environ, "PYTHONPATH": str(ROOT)})
        told = other.answer()
        other.process.send_signal(how)
        other.process.communicate(timeout=60)
        wait_until(lambda path=told["session"]: not Path(path).exists())
        works()


# -- two users --------------------------------------------------------------------------------------------------------

STRANGER_UID = 61_234  # no such user needs to exist: to the kernel a user is a number
# Where the stranger finds ray and what it needs; his own home has nothing.
STRANGER_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(np.__file__).parents[1])]),
    "PATH": os.environ["PATH"],
    "HOME": "/tmp",
}


@pytest.fixture(scope="module")
def stranger() -> list[str]:
    """Command that runs Python as another user, who can read the package but owns nothing here."""
    if os.getuid() != 0:
        pytest.skip("becoming another user takes root")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv (util-linux) is not installed")
    able = "import sys, subprocess, ray._core.engine, numpy; subprocess.run([sys.executable, '-c', ''], check=True)"
    why = ""
    for python in (sys.executable, "/usr/bin/python3"):
        command = [setpriv, f"--reuid={STRANGER_UID}", f"--regid={STRANGER_UID}", "--clear-groups", python]
        done = as_stranger(command, able)
        if done.returncode == 0:
            return command
        why = done.stderr.strip().rpartition("\n")[2]
    pytest.skip(f"user {STRANGER_UID} can't run this Python with this checkout: {why}")


def as_stranger(command: list[str], program: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*command, "-c", textwrap.dedent(program), *arguments],
        env=STRANGER_ENVIRONMENT,
        cwd="/tmp",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_another_user_cannot_even_look_into_the_session_folder(session, stranger):
    program = """
    import os, socket, sys
    for path in sys.argv[1:]:
        for act in (os.stat, os.listdir, lambda p: open(p).read(), lambda p: socket.socket(socket.AF_UNIX).connect(p)):
            try:
                act(path)
            except PermissionError:
                continue
            except OSError as error:
                print(path, act, error)
            else:
                print(path, act, "worked")
    """
    done = as_stranger(stranger, program, *session.values(), str(folder()), str(folder() / "token"))
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


def test_another_user_who_got_a_connection_is_refused_by_his_number(session, stranger):
    """The folder's mode is one wall, the kernel's word on who is at the other end another: open the first and try."""
    token = (folder() / "token").read_text()
    opened = [folder().parent, folder(), folder() / "c", *map(Path, session.values())]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in opened}
    program = """
    import os, select, sys
    from ray._native.channel import Connection, ConnectionClosed
    from ray._native.plasma import PlasmaClient
    token = bytes.fromhex(sys.argv[1])
    for path in sys.argv[2:]:
        if path.endswith("redis.sock"):
            continue
        try:
            if path.endswith("plasma.sock"):
                PlasmaClient(path, 2.0)
                print(path, "worked")
                continue
            c = Connection.dial(path, token, os.urandom(16), 3)
            for _ in range(20):
                select.select([c.fileno()], [], [], 3)
                c.receive()
            print(path, "open" if c.is_open else "kept")
        except Exception as error:
            print("refused", type(error).__name__)
    """
    try:
        for path in opened:
            path.chmod(0o777)
        done = as_stranger(stranger, program, token, *session.values())
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(session) - 1, done.stdout + done.stderr
    assert all(line.startswith("refused") for line in lines), done.stdout


def test_another_user_has_a_session_of_his_own_beside_ours(session, stranger):
    other = Other(stranger, env=STRANGER_ENVIRONMENT, cwd="/tmp")
    told = other.answer()
    try:
        assert told["session"].startswith(f"/tmp/ray-{STRANGER_UID}/")
        assert told["sum"] == 200_000 and told["nodes"] == 1
        works()
    finally:
        other.end()
    wait_until(lambda: not Path(told["session"]).exists())


def test_a_squatted_session_folder_name_is_not_used(stranger, engine):
    """Somebody else made /tmp/ray-<uid> first: the stranger's session must not land in it."""
    base = Path(f"/tmp/ray-{STRANGER_UID}")
    if base.exists():
        pytest.skip(f"{base} is in use")
    base.mkdir(0o777)
    base.chmod(0o777)
    try:
        other = Other(stranger, env=STRANGER_ENVIRONMENT, cwd="/tmp")
        told = other.answer()
        other.end()
        assert not told["session"].startswith(f"{base}/")
        assert list(base.iterdir()) == []
    finally:
        shutil.rmtree(base)
        for left in Path("/tmp").glob(f"ray-{STRANGER_UID}-*"):
            shutil.rmtree(left)


def test_an_unknown_client_of_the_store_sees_only_what_the_session_put(session):
    client = PlasmaClient(session["plasma"])
    ref = ray.put(np.ones(150_000, np.uint8))
    assert list(client.list()) == [ref.binary()]
    client.disconnect()
