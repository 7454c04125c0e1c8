"""A node that is part of a cluster listens on one TCP port, any other on none."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from ray._launch.node_process import NodeStartError
from ray._native.channel import ConnectionClosed
from ray._transport import connect_tcp

from .harness import Driver

Start = Callable[..., Driver]
HOST = "127.0.0.1"
LISTENING = "0A"


def ports_of(pid: int) -> list[int]:
    """TCP ports on which that process listens."""
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    ports = []
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}") as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == LISTENING and f"socket:[{fields[9]}]" in inodes:
                    ports.append(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_a_single_machine_listens_on_no_port(start: Start) -> None:
    driver = start()
    assert driver.ready["cluster_port"] is None
    assert ports_of(driver.ready["pid"]) == []


def test_a_node_of_a_cluster_is_reached_by_who_knows_the_token(start: Start) -> None:
    driver = start(cluster_port=(HOST, 0))
    port = driver.ready["cluster_port"]
    assert ports_of(driver.ready["pid"]) == [port]

    async def visit() -> None:
        with socket.create_connection((HOST, port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.settimeout(60)
            assert stranger.recv(1) == b""
        with pytest.raises(ConnectionClosed, match="refused ours"):
            await connect_tcp(HOST, port, bytes(32), b"D" * 16)
        peer = await connect_tcp(HOST, port, driver.session.token, b"D" * 16)
        assert peer.tag == driver.info["node_id"]
        peer.close()

    asyncio.run(visit())
    driver.lease()  # and the node is none the worse for it


def test_a_port_in_use_is_an_error_that_names_it_and_leaves_nothing(start: Start) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NodeStartError, match=f"{HOST}:{port} can't be listened on"):
            start(cluster_port=(HOST, port))
