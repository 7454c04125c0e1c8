"""A `ray://` client and processes of another node that its server can't dial for a while, or that are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray
from tests.wait import wait_until

from . import netns
from .hosts import Hosts

pytestmark = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not())

# argv: the address; a FIFO in which a line comes when it is to go on; what it does.
CLIENT = """
import sys, time
import ray
ray.init(sys.argv[1], namespace="n", logging_level="error")
@ray.remote(num_cpus=0)
def nothing(): pass
ray.get(nothing.remote())
between = ray.get_actor("between")
ray.get(between.nothing.remote())  # who has the owner's handle, or ref, has a connection to it: not yet
print("ready", flush=True)
open(sys.argv[2]).readline()
began = time.monotonic()
if sys.argv[3] == "call":
    print(ray.get(ray.get_actor("owner").alive.remote()))
elif sys.argv[3] == "value":
    print(ray.get(ray.get(between.give.remote())[0]))
else:
    (waiting,) = ray.get(between.give.remote())
    try:
        ray.get(waiting)
    except ray.exceptions.OwnerDiedError:
        print("dead", time.monotonic() - began < 5)
"""


@ray.remote(num_cpus=0)
class Owner:
    def put(self) -> list[Any]:
        return [ray.put("its value")]

    def hang(self) -> list[Any]:
        @ray.remote(num_cpus=0)
        def pause() -> None:
            time.sleep(600)

        return [pause.remote()]

    def alive(self) -> bool:
        return True


@ray.remote(num_cpus=0)
class Between:
    """Has what is the owner's, and tells the client of it, which so has not met the owner yet."""

    def __init__(self, box: list[Any]) -> None:
        self.box = box

    def nothing(self) -> None:
        pass

    def give(self) -> list[Any]:
        return self.box


@pytest.fixture(scope="module")
def hosts(engine: Any) -> Iterator[Hosts]:
    """The owner's node is 1; the client, and its server, are where the head is."""
    engine.watch()
    with Hosts(2, {"node_silence_s": 5.0}, namespace="n") as hosts:
        hosts.join(1)
        yield hosts
    engine.stop()


@pytest.fixture
def door(hosts: Hosts) -> Iterator[str]:
    session = hosts.session_folder(0)
    server = hosts.popen(0, sys.executable, "-m", "ray.client.server", "--session", session, "--port", "0")
    assert server.stdout is not None
    try:
        yield f"ray://127.0.0.1:{json.loads(server.stdout.readline())['port']}"
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.mark.parametrize(("what", "expected"), [("call", "True"), ("value", "its value"), ("gone", "dead True")])
def test_whom_its_server_cannot_dial_for_a_while_a_client_does_not_take_for_dead(
    hosts: Hosts, door: str, tmp_path: Path, what: str, expected: str
) -> None:
    """Once, it was told at the first attempt that the process had died."""
    owner = Owner.options(name="owner", **hosts.on(1)).remote()
    box = ray.get((owner.hang if what == "gone" else owner.put).remote(), timeout=20)
    between = Between.options(name="between", **hosts.on(0)).remote(box)
    del box
    os.mkfifo(tmp_path / "go")
    client = hosts.popen(0, sys.executable, "-c", CLIENT, door, str(tmp_path / "go"), what)
    assert client.stdout is not None
    line = client.stdout.readline()
    assert line == "ready\n", line + client.stdout.read()
    if what == "gone":  # its node lives, and says so
        ray.kill(owner)
        with pytest.raises(ray.exceptions.RayError):
            ray.get(owner.alive.remote(), timeout=20)
        (tmp_path / "go").write_text("\n")
    else:
        with hosts.network.unreachable(0, [1]):
            (tmp_path / "go").write_text("\n")
            with pytest.raises(subprocess.TimeoutExpired):
                client.wait(1.0)
    assert client.communicate(timeout=20)[0] == expected + "\n"
    assert client.returncode == 0 and hosts.is_alive(1)
    for actor in (owner, between):  # the names are the next one's
        ray.kill(actor)
    wait_until(lambda: not ray.util.list_named_actors())
