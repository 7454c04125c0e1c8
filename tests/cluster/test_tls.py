"""A cluster with the setting `tls`: everything works as without it, and who listens on the network reads nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import ray
from ray._native.channel import WHY_WITH_TLS, Connection, ConnectionClosed
from ray.cluster_utils import Cluster

from .nodes import Nodes
from .test_start import Machine, machines, start_head

__all__ = ["machines"]  # a fixture

SECRET = b"what nobody but us may read: "
ALL_PROTOCOLS = socket.htons(3)
STORE_BYTES = 256 << 20
WITH_TLS = {"_system_config": {"tls": True}, "object_store_memory": STORE_BYTES}


@contextmanager
def listening(words: dict[str, bytes], seen: set[str]) -> Iterator[None]:
    """Reads along on the loopback interface, and notes which of the words pass by."""
    try:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ALL_PROTOCOLS)
    except PermissionError:
        pytest.skip("reading along on a network interface needs CAP_NET_RAW")
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    tap.bind(("lo", 0))
    tap.settimeout(0.2)
    stop = threading.Event()

    def read() -> None:
        while True:
            try:
                packet = tap.recv(1 << 17)
            except TimeoutError:  # what came before the end has been looked at
                if stop.is_set():
                    return
                continue
            seen.update(name for name, word in words.items() if word in packet)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()
        tap.close()


@ray.remote(num_cpus=0, resources={"far": 0.1})
class Far:
    def echo(self, what: bytes) -> bytes:
        return what

    def large(self, n: int) -> bytes:
        return SECRET * n


@ray.remote(num_cpus=0, resources={"far": 0.1})
def total(what: bytes) -> int:
    return len(what)


@pytest.mark.parametrize(
    ("nodes", "tls"), [(WITH_TLS, True), ({"object_store_memory": STORE_BYTES}, False)], indirect=["nodes"]
)
def test_who_listens_reads_nothing_of_calls_and_objects(nodes: Nodes, tls: bool) -> None:
    seen: set[str] = set()
    token = nodes.cluster._token
    assert token is not None
    words = {"secret": SECRET, "method": b"echo", "token": token, "token in hexadecimal": token.hex().encode()}
    with listening(words, seen):
        nodes.add_node({"far": 1}, object_store_memory=STORE_BYTES)
        far = Far.remote()
        assert ray.get(far.echo.remote(SECRET), timeout=60) == SECRET
        assert ray.get(total.remote(SECRET * 10), timeout=60) == 10 * len(SECRET)
        n = (100 << 20) // len(SECRET)
        assert ray.get(far.large.remote(n), timeout=60) == SECRET * n  # by the object managers
        assert ray.get(total.remote(ray.put(SECRET * n)), timeout=60) == n * len(SECRET)
    assert seen == (set() if tls else {"secret", "method"})  # without it the ear works


@pytest.mark.parametrize("nodes", [WITH_TLS], indirect=True)
def test_a_peer_without_tls_is_refused_and_told_why(nodes: Nodes) -> None:
    host, port = nodes.by_number[0]._address
    assert nodes.cluster._token is not None
    plain = Connection.dial_tcp(host, port, 0, nodes.cluster._token, b"D" * 16, 3)
    with pytest.raises(ConnectionClosed) as refused:
        while True:
            plain.receive_frames()
            plain.flush()
    assert refused.value.why == WHY_WITH_TLS
    plain.close()


def test_a_wrong_combination_is_said_where_it_was_asked_for(machines: list[Machine]) -> None:
    a, b = machines
    address = start_head(a, "--tls")
    said = b.ray("start", f"--address={address}", '--system-config={"tls": false}', status=2)
    assert "speaks TLS, and this machine is told to have it off" in said and b.is_empty()
    said = b.ray("start", f"--address={address}", status=1, RAY_AUTH_TOKEN="another token for tests, as long")
    assert "another token" in said and b.is_empty()
    said = b.ray("start", f"--address={address}", "--num-cpus=2")
    assert f"It is node 1 of the cluster at {address}." in said
    program = f"import ray; ray.init({address!r}, logging_level='error'); print(ray.cluster_resources()['CPU'])"
    assert b.python(program) == "3.0\n"


def test_a_head_without_tls_refuses_who_insists_on_it(engine: object) -> None:
    cluster = Cluster(initialize_head=True)
    try:
        with pytest.raises(ValueError, match="does not speak TLS, and this machine is told to have it on"):
            cluster.add_node(_system_config={"tls": True})
    finally:
        cluster.shutdown()
