"""`ray start --head --port`, `ray start --address`: nodes as a person starts them, and what goes wrong."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.wait import wait_until

TOKEN = "a token for tests, long enough"


class Machine:
    """A place of its own for sessions, so that each is what another machine would be."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.environment = {**kept, "RAY_TMPDIR": str(folder), "PYTHONPATH": os.getcwd(), "RAY_AUTH_TOKEN": TOKEN}

    def ray(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """`ray <arguments>`: what it printed, both streams."""
        return self._run([sys.executable, "-m", "ray.cli", *arguments], status, environment)

    def python(self, program: str) -> str:
        return self._run([sys.executable, "-c", program], 0, {})

    def _run(self, command: list[str], status: int, environment: dict[str, str]) -> str:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env={**self.environment, **environment},
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def is_empty(self) -> bool:
        return not os.listdir(self.folder)


@pytest.fixture
def machines(tmp_path_factory: pytest.TempPathFactory, engine: object) -> Iterator[list[Machine]]:
    root = Path(os.path.realpath("/tmp")) / f"ray-test-{os.getpid()}"
    root.mkdir()
    machines = [Machine(root / name) for name in ("a", "b")]
    yield machines
    for machine in reversed(machines):
        machine.ray("stop")
        wait_until(machine.is_empty)
        machine.folder.rmdir()
    root.rmdir()


def start_head(machine: Machine, *options: str) -> str:
    """Returns HOST:PORT."""
    said = machine.ray("start", "--head", "--port=0", "--num-cpus=1", *options)
    found = re.search(r"ray start --address=(\S+)`", said)
    assert found is not None, said
    return found[1]


def test_a_second_machine_joins_and_its_programs_use_both(machines: list[Machine]) -> None:
    a, b = machines
    address = start_head(a, '--system-config={"heartbeat_s": 0.5}')
    said = b.ray("start", f"--address={address}", "--num-cpus=2", '--resources={"far": 1}', "--labels=zone=b")
    assert f"It is node 1 of the cluster at {address}." in said
    program = """
import ray
ray.init(logging_level="error")
@ray.remote(num_cpus=0, resources={"far": 1})
def far(): return ray.get_runtime_context().get_node_id()
print(ray.cluster_resources()["CPU"], ray.get(far.remote()) == ray.get_runtime_context().get_node_id())
"""
    assert a.python(program) == "3.0 False\n"
    assert b.python(program) == "3.0 True\n"
    joined = program.replace("ray.init(", f"ray.init({address!r}, ")
    assert b.python(joined) == "3.0 True\n"
    for machine in machines:
        wait_until(lambda: "0/3 CPU" in machine.ray("status"))  # noqa: B023
        assert machine.ray("status").count("alive") == 3
    assert "Stopped" in b.ray("stop")
    wait_until(lambda: "0/1 CPU" in a.ray("status"))
    assert a.python(program.replace(', resources={"far": 1}', "")) == "1.0 True\n"


def test_older_spellings_do_the_same(machines: list[Machine]) -> None:
    a, b = machines
    address = start_head(a)
    b.ray("start", f"--redis-address={address}", "--object-manager-port=0", "--num-cpus=1")
    assert "0/2 CPU" in a.ray("status")


def test_what_keeps_a_machine_from_joining_is_said_and_leaves_nothing(machines: list[Machine]) -> None:
    a, b = machines
    address = start_head(a)
    host, _, port = address.rpartition(":")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        too_large = ["--plasma-directory=/dev/shm", "--object-store-memory=10000000000000"]
        deaf = f"127.0.0.1:{listening.getsockname()[1]}"
        cases: list[tuple[list[str], dict[str, str], int, str]] = [
            (["--address=127.0.0.1:1"], {}, 1, "can't be joined"),
            ([f"--address={deaf}"], {}, 1, "can't be joined"),
            (["--address=nonsense"], {}, 2, "expected HOST:PORT"),
            (["--address=no.such.host.invalid:6379"], {}, 2, "no such host"),
            ([f"--address={address}"], {"RAY_AUTH_TOKEN": "another token, also long enough"}, 1, "token"),
            ([f"--address={address}"], {"RAY_AUTH_TOKEN": "short"}, 2, "at least 16 are needed"),
            ([f"--address={address}", f"--node-manager-port={port}"], {}, 2, "can't be listened on"),
            ([f"--address={address}", "--head"], {}, 2, "give either --head"),
            ([f"--address={address}", "--port=7"], {}, 2, "--port belongs to the cluster's head"),
            ([f"--address={address}", *too_large], {}, 1, "plasma_directory /dev/shm has"),
        ]
        with ThreadPoolExecutor() as pool:  # at once: one of them waits for five seconds
            answers = [pool.submit(b.ray, "start", *options, status=status, **env) for options, env, status, _ in cases]
        for answer, (options, _, _, says) in zip(answers, cases):
            assert says in answer.result(), (options, answer.result())
        assert b.is_empty()
    said = b.ray("start", "--head", f"--port={port}", status=2)
    assert "can't be listened on" in said and host in said
    assert b.is_empty()
    said = a.ray("start", "--head", "--port=0", status=1)
    assert "a cluster of this user runs already" in said


def test_a_program_that_names_a_cluster_that_no_node_here_belongs_to_hears_how_to_join(machines: list[Machine]) -> None:
    a, b = machines
    address = start_head(a)
    said = b.python(
        f"import ray\ntry: ray.init({address!r})\nexcept ConnectionError as error: print(error)",
    )
    assert f"`ray start --address={address}` makes this machine one of its nodes" in said
    assert "no node" in b.python("import ray\ntry: ray.init('127.0.0.1:1')\nexcept ConnectionError as e: print(e)")
