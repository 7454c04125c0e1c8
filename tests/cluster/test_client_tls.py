"""`ray://` to a cluster with the setting `tls`: nothing is told to the client, and nobody in between gains anything."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ray.client import proof
from tests.relay import Relay

from .nodes import Nodes
from .test_clients import TOKEN, client, door
from .test_start import Machine, machines
from .test_tls import SECRET, WITH_TLS, listening

__all__ = ["door", "machines"]  # fixtures

WITHOUT = {"num_cpus": 1}
TLS_AT = 10  # in the server's challenge (ray/client/proof.py)


def port_of(door: str) -> int:
    return int(door.rpartition(":")[2])


@contextmanager
def between(door: str, meddle: Callable[[bytes], bytes] | None = None) -> Iterator[tuple[str, Relay]]:
    relay = Relay(port_of(door), meddle)
    try:
        yield f"ray://127.0.0.1:{relay.port}", relay
    finally:
        relay.close()


@pytest.mark.parametrize(("nodes", "tls"), [(WITH_TLS, True), (WITHOUT, False)], indirect=["nodes"])
def test_who_listens_reads_nothing_of_a_client(nodes: Nodes, door: str, tls: bool) -> None:
    seen: set[str] = set()
    with listening({"secret": SECRET, "method": b"echo", "token": TOKEN.encode()}, seen):
        out = client(
            door,
            f"""
            @ray.remote(num_cpus=0)
            class Near:
                def echo(self, what): return what
            near = Near.remote()
            assert ray.get(near.echo.remote({SECRET!r})) == {SECRET!r}
            large = {SECRET!r} * 100_000
            assert ray.get(near.echo.remote(ray.put(large))) == large
            print("same")
            """,
        )
    assert out == "same\n"
    assert seen == (set() if tls else {"secret", "method"})


@pytest.mark.parametrize("nodes", [WITH_TLS], indirect=True)
def test_a_client_goes_on_through_tls_when_its_connection_has_broken(nodes: Nodes, door: str) -> None:
    with between(door) as (address, relay):
        relay.cuts = 8
        out = client(
            address,
            """
            @ray.remote(num_cpus=0)
            class Counter:
                def __init__(self): self.n = 0
                def add(self): self.n += 1; return self.n
            @ray.remote(num_cpus=0)
            def same(x): return x
            counter, array, results = Counter.remote(), np.arange(300_000), []
            for _ in range(8):
                refs = [counter.add.remote() for _ in range(200)]
                assert (ray.get(same.remote(ray.put(array)), timeout=60) == array).all()
                results += ray.get(refs, timeout=60)
            assert results == list(range(1, 1601))
            print("none lost, none twice")
            """,
        )
        assert out == "none lost, none twice\n"
        assert relay.cuts == 0


@pytest.mark.parametrize(("nodes", "tls"), [(WITH_TLS, True), (WITHOUT, False)], indirect=["nodes"])
def test_who_changes_what_the_server_says_of_tls_has_a_client_that_fails(nodes: Nodes, door: str, tls: bool) -> None:
    def changed(challenge: bytes) -> bytes:
        assert challenge[TLS_AT] == tls
        return challenge[:TLS_AT] + bytes([not tls]) + challenge[TLS_AT + 1 :]

    with between(door, changed) as (address, relay):
        out = client(address, "", code=1)
        assert "ConnectionError" in out and "ray.init: can't connect to" in out
        assert relay.passed is not None and TOKEN.encode() not in relay.passed
        if tls:  # a request and no more: it went no further than the proof, which nobody has answered
            assert len(relay.passed) == proof.REQUEST_BYTES


@pytest.mark.parametrize(
    ("nodes", "told", "says"),
    [(WITH_TLS, "0", "speaks TLS, and this program is told to have it off"), (WITHOUT, "1", "does not speak TLS")],
    indirect=["nodes"],
)
def test_a_client_that_is_told_otherwise_than_the_cluster_says_so(
    nodes: Nodes, door: str, told: str, says: str
) -> None:
    out = client(door, "", code=1, RAY_TLS=told)
    assert "ValueError: ray.init: can't connect to ray://" in out and says in out


@pytest.mark.parametrize("nodes", [WITH_TLS], indirect=True)
def test_another_token_or_none_is_not_let_in_through_tls(nodes: Nodes, door: str) -> None:
    out = client(door, "", code=1, RAY_AUTH_TOKEN="another token for tests, as long")
    assert "ConnectionError: ray.init: can't connect to ray://" in out and "another token" in out
    for sent in (b"GET / HTTP/1.1\r\n\r\n" * 20, b"\x16\x03\x01" + bytes(400)):
        with socket.create_connection(("127.0.0.1", port_of(door))) as stranger:
            stranger.settimeout(10)
            assert stranger.recv(proof.CHALLENGE_BYTES, socket.MSG_WAITALL)[TLS_AT] == 1
            stranger.sendall(sent)
            try:
                while stranger.recv(1000):
                    pass
            except ConnectionResetError:
                pass  # closed with bytes of ours unread
    assert client(door, "print(ray.get(ray.put(7)))") == "7\n"


@pytest.mark.parametrize("port", [(), ("--port=0",)], ids=["alone", "cluster"])
def test_one_option_of_ray_start_is_for_clients_too(machines: list[Machine], port: tuple[str, ...]) -> None:
    a, b = machines
    said = a.ray("start", "--head", "--num-cpus=1", "--tls", "--ray-client-server-port=0", *port)
    address = re.search(r"ray://[0-9.:]+", said)
    assert address is not None, said
    program = (
        "import os; os.environ['RAY_TLS'] = '1'\n"
        f"import ray; ray.init({address[0]!r}, logging_level='error'); print(ray.get(ray.put(7)))"
    )
    assert b.python(program) == "7\n"
