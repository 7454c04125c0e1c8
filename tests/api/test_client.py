"""ray.init("ray://..."): a driver on the other side of one TCP port. Both sides are on this machine; between them may
stand a Relay that a test cuts."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray
from ray._launch import token
from ray.client import proof, tunnel, wire
from ray.exceptions import LocalRayletDiedError
from tests.relay import Relay
from tests.wait import wait_until

TOKEN = "a token that only this test knows"


class Cluster:
    """A session that outlives its drivers, and the server in front of it."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = {**os.environ, **environ}
        said = self._ray("start", "--head", "--num-cpus", "2", "--ray-client-server-port", "0")
        self.folder = re.search(r"ray runs in (\S+),", said)[1]  # type: ignore[index]
        self.port = int(re.search(r"ray://127.0.0.1:(\d+)", said)[1])  # type: ignore[index]

    def _ray(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ray.cli", *arguments], env=self.environ, stdout=subprocess.PIPE, text=True
        )
        assert done.returncode == 0
        return done.stdout

    def close(self) -> None:
        self._ray("stop")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, engine: Any) -> Iterator[Cluster]:
    engine.stop()  # the session that tests share: its end is to leave nothing, and the cluster would be something
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        patch.setenv("RAY_CLIENT_OBJECT_STORE_BYTES", str(300 << 20))
        folder = tmp_path_factory.mktemp("c")
        cluster = Cluster({"RAY_TMPDIR": str(folder), "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "3"})
        yield cluster
        cluster.close()


@pytest.fixture
def client(cluster: Cluster, engine: Any) -> Iterator[Any]:
    yield engine.start(address=f"ray://127.0.0.1:{cluster.port}", logging_level="error")
    engine.stop()


@ray.remote
def plus(a: Any, b: Any) -> Any:
    return a + b


@ray.remote
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self, n: int = 1) -> int:
        self.n += n
        return self.n

    async def later(self) -> str:
        return "done"


def test_init_says_who_is_there(client):
    assert client.ray_version == ray.__version__
    assert client.python_version.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")


def test_tasks_actors_and_refs_work_as_beside_the_session(client):
    assert ray.get(plus.remote(1, plus.remote(2, 3))) == 6
    counter = Counter.remote()
    assert ray.get([counter.add.remote() for _ in range(100)]) == list(range(1, 101))
    refs = [plus.remote(i, i) for i in range(20)]
    ready, rest = ray.wait(refs, num_returns=20, timeout=30)
    assert len(ready) == 20 and not rest

    @ray.remote
    def total(inner: list[Any]) -> int:  # the worker asks this process, which owns them
        return sum(ray.get(inner))

    assert ray.get(total.remote([ray.put(i) for i in range(10)])) == 45
    with pytest.raises(ZeroDivisionError):
        ray.get(ray.remote(lambda: 1 / 0).remote())


def test_large_objects_go_both_ways_and_stay_equal(client):
    array = np.random.default_rng(0).integers(0, 255, 30_000_000, dtype=np.uint8)
    ref = ray.put(array)
    assert (ray.get(ref) == array).all()
    assert (ray.get(plus.remote(ref, 1)) == array + 1).all()
    assert not ray.get(ref).flags.writeable


def test_objects_of_the_client_leave_the_clusters_store_with_their_last_ref(client, cluster):
    from ray._native.plasma import PlasmaClient

    store = PlasmaClient(cluster.folder + "/plasma.sock")
    ref = ray.put(np.ones(2_000_000))
    assert store.contains(ref.binary())
    key = ref.binary()
    del ref
    wait_until(lambda: not store.contains(key))


def test_await_and_async_methods_work(client):
    import asyncio

    counter = Counter.remote()

    async def both() -> list[str]:
        return await asyncio.gather(counter.later.remote(), counter.later.remote())

    assert asyncio.run(both()) == ["done", "done"]


def test_a_connection_that_breaks_before_the_server_has_answered_is_no_refusal(cluster, engine):
    relay = Relay(cluster.port)
    engine.start(address=f"ray://127.0.0.1:{relay.port}", logging_level="error")
    try:
        counter = Counter.remote()
        assert ray.get(counter.add.remote()) == 1
        relay.breaking = 3
        relay.cut()
        assert ray.get(counter.add.remote(), timeout=30) == 2
        assert relay.breaking == 0
    finally:
        ray.shutdown()
        relay.cut()
        relay.close()
        engine.stop()


def test_calls_and_objects_survive_broken_connections(cluster, engine):
    relay = Relay(cluster.port)
    engine.start(address=f"ray://127.0.0.1:{relay.port}", logging_level="error")
    try:
        counter = Counter.remote()
        ray.get(counter.add.remote(0))
        array = np.arange(3_000_000)
        results = []
        for _ in range(8):
            refs = [counter.add.remote() for _ in range(300)]
            ref = ray.put(array)
            relay.cut()
            results += ray.get(refs, timeout=60)
            assert (ray.get(plus.remote(ref, 0), timeout=60) == array).all()
        assert results == list(range(1, 8 * 300 + 1))  # none lost, none twice, in order
    finally:
        ray.shutdown()
        relay.cut()
        relay.close()
        engine.stop()


def test_a_connection_that_does_not_come_back_ends_the_session_here_and_the_job_there(cluster, engine, monkeypatch):
    monkeypatch.setenv("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "0.5")
    relay = Relay(cluster.port)
    engine.start(address=f"ray://127.0.0.1:{relay.port}", logging_level="error")
    try:
        counter = Counter.remote()
        ray.get(counter.add.remote())
        relay.refusing = True
        relay.cut()
        with pytest.raises(LocalRayletDiedError):
            ray.get(ray.remote(lambda: __import__("time").sleep(60)).remote(), timeout=30)
    finally:
        ray.shutdown()
        relay.cut()
        relay.close()
        engine.stop()


def test_a_killed_client_leaves_no_job_behind(cluster):
    program = (
        "import ray, sys\n"
        f"ray.init('ray://127.0.0.1:{cluster.port}', logging_level='error')\n"
        "pid = ray.get(ray.remote(lambda: __import__('os').getpid()).remote())\n"
        "print(pid, flush=True)\n"
        "ray.get(ray.remote(lambda: __import__('time').sleep(100)).remote())\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], env=os.environ, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    assert os.path.exists(f"/proc/{worker}")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    wait_until(lambda: not os.path.exists(f"/proc/{worker}"))


def test_two_clients_do_not_see_each_other(client, cluster):
    program = (
        "import ray\n"
        f"ray.init('ray://127.0.0.1:{cluster.port}', logging_level='error')\n"
        "print(ray.get(ray.remote(lambda: 7).remote()), ray.get_runtime_context().get_job_id())\n"
    )
    out = subprocess.run([sys.executable, "-c", program], env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    seven, job = out.stdout.split()
    assert seven == "7" and job != ray.get_runtime_context().get_job_id()
    assert ray.get(plus.remote(1, 1)) == 2


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n" * 20, os.urandom(400)])
def test_whoever_does_not_prove_the_token_is_dropped_and_harms_nobody(client, cluster, sent):
    with socket.create_connection(("127.0.0.1", cluster.port)) as stranger:
        assert len(stranger.recv(100)) > 0  # the challenge
        try:
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(100) == b""
        except OSError as error:  # closed with bytes of ours unread: as good
            assert error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
    assert ray.get(plus.remote(1, 1)) == 2


def test_a_wrong_token_is_an_error_at_once(cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "some other text, long enough")
    with pytest.raises(ConnectionError, match="token"):
        ray.init(f"ray://127.0.0.1:{cluster.port}")
    assert not ray.is_initialized()


def test_nobody_there_is_an_error_at_once(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"ray://127.0.0.1:{port}"):
        ray.init(f"ray://127.0.0.1:{port}")
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["ray://", "ray://host:0", "ray://host:many", "ray://host:99999"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match="ray://"):
        ray.init(address)
    assert not ray.is_initialized()


def test_the_older_way_to_connect_is_the_same(cluster, engine):
    engine.stop()
    with ray.client(f"127.0.0.1:{cluster.port}").namespace("mine").env({"env_vars": {"GREETING": "hello"}}).connect():
        assert ray.get_runtime_context().namespace == "mine"
        assert ray.get(ray.remote(lambda: os.environ["GREETING"]).remote()) == "hello"
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", [5, b"host:1"])
def test_the_older_way_refuses_what_is_no_address(address):
    with pytest.raises(TypeError, match=r"ray\.client"):
        ray.client(address)


def test_what_only_a_starting_session_takes_is_refused(cluster):
    with pytest.raises(ValueError, match="num_cpus"):
        ray.init(f"ray://127.0.0.1:{cluster.port}", num_cpus=3)
    assert not ray.is_initialized()


def test_what_runtime_environments_name_is_sent_to_the_cluster(cluster, engine, tmp_path):
    (tmp_path / "renv_client.py").write_text("VALUE = 'sent'")
    (tmp_path / "large").write_bytes(os.urandom(3 << 20))

    @ray.remote
    def look() -> tuple[str, int]:
        import renv_client

        return renv_client.VALUE, os.path.getsize("large")

    engine.start(address=f"ray://127.0.0.1:{cluster.port}", runtime_env={"working_dir": str(tmp_path)})
    assert ray.get(look.remote()) == ("sent", 3 << 20)
    env = {"worker_process_setup_hook": lambda: os.environ.update(RENV_HOOKED="1")}
    hooked = ray.remote(lambda: os.environ.get("RENV_HOOKED")).options(runtime_env=env)
    assert ray.get(hooked.remote()) == "1"
    engine.stop()
    with pytest.raises(ValueError, match="/no/such"):
        engine.start(address=f"ray://127.0.0.1:{cluster.port}", runtime_env={"working_dir": "/no/such"})
    engine.stop()


def test_ray_util_client_knows_whether_there_is_a_connection(client):
    from ray.util import client as by_attribute
    from ray.util.client import common, num_connected_contexts
    from ray.util.client import ray as stub

    assert stub is ray.util.client.ray is by_attribute.ray
    assert stub.is_connected() and num_connected_contexts() == 1 and "connected by" in repr(stub)
    ref = stub.put(1)
    assert stub.get(ref) == 1 and isinstance(ref, common.ClientObjectRef)
    stub.disconnect()
    assert not stub.is_connected() and num_connected_contexts() == 0 and not ray.is_initialized()


def nonsense(chance: random.Random) -> bytes:
    """A frame of a client, or something like it. Few streams and few keys, so that some of them mean something."""
    kind = chance.choice((*range(30), 99, 255))
    key = bytes([chance.randrange(3)]) * 28
    payload = chance.choice(
        (
            b"",
            bytes(16),
            tunnel.OBJECTS,
            chance.randbytes(16),
            key,
            key,
            key + struct.pack("<Q", chance.choice((0, 1, 50, 1 << 20, 1 << 40, (1 << 64) - 1))),
            chance.randbytes(8),
            struct.pack("<Q", chance.randrange(5)),
            chance.randbytes(chance.randrange(100)),
        )
    )
    size = len(payload) if chance.random() < 0.97 else chance.choice((0, 1, len(payload) + 1, 2**20 + 1, 2**32 - 1))
    return wire.HEADER.pack(size, kind, chance.choice((0, 1, 2, 3, 5, 2**32 - 1))) + payload


@contextlib.contextmanager
def proved(cluster):
    """A connection whose other end has found that we know the token."""
    with socket.create_connection(("127.0.0.1", cluster.port)) as connection:
        connection.settimeout(10)
        nonce, _ = proof.read_challenge(connection.recv(proof.CHALLENGE_BYTES, socket.MSG_WAITALL))
        connection.sendall(proof.request(token.find(), nonce, bytes(32), proof.NEW, bytes(16), 0))
        assert len(connection.recv(proof.ANSWER_BYTES, socket.MSG_WAITALL)) == proof.ANSWER_BYTES
        yield connection


def test_a_client_leaves_in_order_when_its_node_has_removed_its_socket_already(cluster):
    tag = bytes(4) + os.urandom(12)
    path = Path(cluster.folder, "c", tag.hex())
    with proved(cluster) as connection:
        connection.sendall(wire.HEADER.pack(len(tag), tunnel.LISTEN, 0) + tag)
        wait_until(path.exists)
        path.unlink()
        connection.sendall(wire.HEADER.pack(0, tunnel.GOODBYE, 0))
        while connection.recv(65536):
            pass
    log = Path(cluster.folder, "logs", "client_server.log").read_text()
    assert "Traceback" not in log and "Exception" not in log, log


def test_a_client_that_knows_the_token_and_talks_nonsense_harms_nobody(client, cluster):
    for seed in range(60):
        print(f"seed {seed}")
        chance = random.Random(seed)
        with proved(cluster) as rogue:
            try:
                rogue.sendall(b"".join(nonsense(chance) for _ in range(30)))
                rogue.sendall(wire.HEADER.pack(0, tunnel.GOODBYE, 0))
                while rogue.recv(65536):
                    pass
            except TimeoutError:
                pass  # the end of it was no frame: the server waits for the rest
            except OSError:
                pass  # closed with bytes of ours unread
    assert ray.get(plus.remote(1, 1), timeout=60) == 2
    log = Path(cluster.folder, "logs", "client_server.log").read_text()
    assert "Traceback" not in log and "Exception" not in log, log
