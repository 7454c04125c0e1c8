"""A head that `ray start` made, killed: it is started again by itself, or by a person who says the same once more."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ray._launch import session as sessions
from ray.cli import node_link
from tests.wait import wait_until

from .test_start import Machine, machines, start_head

__all__ = ["machines"]

ASK = """
import ray
ray.init(logging_level="error")
print(sum(row["Alive"] for row in ray.nodes()), ray.util.list_named_actors(all_namespaces=True))
"""
SAY_WHEN_IT_WAITS = """
import time
sleep = time.sleep
time.sleep = lambda for_s: (print("waits", flush=True), sleep(for_s))
"""
KEEP = """
import ray
ray.init(namespace="n", logging_level="error")
@ray.remote(num_cpus=0, max_restarts=-1)
class Keeper:
    def __init__(self): self.n = 0
    def add(self):
        self.n += 1
        return self.n
keeper = Keeper.options(name="keeper", lifetime="detached").remote()
print(ray.get(keeper.add.remote()))
"""
USE = """
import ray
ray.init(namespace="n", logging_level="error")
print(ray.get(ray.get_actor("keeper").add.remote(), timeout=30))
"""


def folder_of(machine: Machine) -> Path:
    (folder,) = machine.folder.glob("ray-*/s-*")
    return folder


def processes(machine: Machine) -> dict[str, int]:
    """Of the session, by title: supervisor, node. (What the node has just forked still has its title.)"""
    mark = f"RAY_SESSION_DIR={folder_of(machine)}".encode()
    found: dict[str, int] = {}
    for entry in sorted((one for one in Path("/proc").iterdir() if one.name.isdigit()), key=lambda one: int(one.name)):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                title = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
                found.setdefault(title.removeprefix("ray "), int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone; or none of ours, as process 1 may be
            continue
    return found


def node_of(machine: Machine) -> int | None:
    """Its pid, if there is one that answers. Not by its title, which what it has just forked still has."""
    try:
        status, pidfd = node_link.ask(sessions.open_existing(str(folder_of(machine))), "status", timeout_s=60.0)
    except (OSError, LookupError):
        return None
    os.close(pidfd)
    return int(status["pid"])


def kill_node(machine: Machine) -> int:
    pid: int = wait_until(lambda: node_of(machine))
    os.kill(pid, signal.SIGKILL)
    return pid


def supervisor_said(machine: Machine) -> str:
    return (folder_of(machine) / "logs" / "supervisor.err").read_text()


def killed_with_supervisor(machine: Machine) -> None:
    """Both at once: else either would start the other again."""
    node: int = wait_until(lambda: node_of(machine))
    os.kill(node, signal.SIGSTOP)
    os.kill(processes(machine)["supervisor"], signal.SIGKILL)
    os.kill(node, signal.SIGKILL)
    wait_until(lambda: not {"supervisor", "node"} & processes(machine).keys())


def test_a_head_that_is_killed_is_started_again_and_stop_ends_all(machines: list[Machine]) -> None:
    a, b = machines
    address = start_head(a)
    b.ray("start", f"--address={address}", "--num-cpus=1")
    assert b.python(KEEP) == "1\n"
    before = kill_node(a)
    wait_until(lambda: (node_of(a) or before) != before)
    assert a.python(ASK) == "2 [{'name': 'keeper', 'namespace': 'n'}]\n"
    assert b.python(USE) in ("2\n", "1\n"), "it was on the other node, or was made again on this one"
    said = supervisor_said(a)
    assert f"(pid {before}) has died (-9)" in said and "it was started again" in said
    a.ray("stop")
    wait_until(b.is_empty)


@pytest.mark.parametrize("when", ["before it dials", "while it registers"])
def test_a_program_that_begins_while_the_head_is_started_again_waits_for_it(machines: list[Machine], when: str) -> None:
    a, _ = machines
    start_head(a)
    node, supervisor = processes(a)["node"], processes(a)["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(node, signal.SIGKILL if when == "before it dials" else signal.SIGSTOP)
    command = [sys.executable, "-c", SAY_WHEN_IT_WAITS + ASK]
    with subprocess.Popen(command, env=a.environment, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        if when == "while it registers":
            wait_until(lambda: list(folder_of(a).glob("c/*")))  # it listens, and dials next; the node takes no call
            os.kill(node, signal.SIGKILL)
        assert program.stdout.readline() == "waits\n"
        os.kill(supervisor, signal.SIGCONT)
        assert program.communicate(timeout=60)[0].splitlines()[-1] == "1 []"


def test_clients_are_let_in_again_when_the_head_was_started_again(machines: list[Machine]) -> None:
    a, _ = machines
    start_head(a, "--ray-client-server-port=0")
    port = int((folder_of(a) / "client_server").read_text().split()[1])
    client = ASK.replace("ray.init(", f"ray.init('ray://127.0.0.1:{port}', ")
    assert a.python(client) == "1 []\n"
    for _ in range(2):
        before = kill_node(a)
        wait_until(lambda: (node_of(a) or before) != before)  # noqa: B023
        wait_until(lambda: is_listening(port))
        assert a.python(client) == "1 []\n"


def is_listening(port: int) -> bool:
    with socket.socket() as dialling:
        return dialling.connect_ex(("127.0.0.1", port)) == 0


def test_whoever_is_killed_first_the_other_starts_it_again(machines: list[Machine]) -> None:
    a, _ = machines
    start_head(a)
    for _ in range(2):
        supervisor = processes(a)["supervisor"]
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: processes(a).get("supervisor", supervisor) != supervisor)  # noqa: B023
        node = kill_node(a)
        wait_until(lambda: (node_of(a) or node) != node)  # noqa: B023
    assert a.python(ASK) == "1 []\n"
    os.kill(processes(a)["supervisor"], signal.SIGKILL)
    a.ray("stop")
    assert a.is_empty()


def test_stop_by_force_ends_both(machines: list[Machine]) -> None:
    a, _ = machines
    start_head(a)
    a.ray("stop", "--force")
    assert a.is_empty()


def test_a_person_resumes_a_head_that_nobody_started_again(machines: list[Machine]) -> None:
    a, b = machines
    address = start_head(a)
    port = address.rpartition(":")[2]
    b.ray("start", f"--address={address}", "--num-cpus=1")
    assert b.python(KEEP) == "1\n"
    killed_with_supervisor(a)
    folder = folder_of(a)
    # Another session of this user does not sweep it away.
    assert a.python("import ray; ray.init(num_cpus=1, logging_level='error'); print('in between')") == "in between\n"
    said = a.ray("start", "--head", f"--port={port}", "--num-cpus=1")
    assert f"ray in {folder} was killed: it is resumed" in said and f"ray runs in {folder}" in said
    assert a.python(ASK) == "2 [{'name': 'keeper', 'namespace': 'n'}]\n"
    assert b.python(USE) in ("2\n", "1\n")


def test_fresh_begins_anew_and_stop_removes_what_could_be_resumed(machines: list[Machine]) -> None:
    a, b = machines
    port = start_head(a).rpartition(":")[2]
    killed_with_supervisor(a)
    before = folder_of(a)
    said = a.ray("start", "--head", f"--port={port}", "--num-cpus=1", "--fresh")
    assert f"What was left of ray in {before} was removed; this is a new cluster." in said
    assert folder_of(a) != before
    killed_with_supervisor(a)
    said = a.ray("stop")
    assert re.search(r"Removed what was left of ray in \S+: it can't be resumed any more", said)
    assert a.is_empty()
    assert "--fresh belongs to --head" in b.ray("start", "--address=127.0.0.1:1", "--fresh", status=2)


def test_with_block_the_command_ends_with_an_error_and_says_how_to_go_on(machines: list[Machine]) -> None:
    a, _ = machines
    command = [sys.executable, "-m", "ray.cli", "start", "--head", "--port=0", "--num-cpus=1", "--block"]
    with subprocess.Popen(command, env=a.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ray:
        assert ray.stdout is not None
        line = ray.stdout.readline()
        assert line.startswith("ray runs in"), line
        assert "supervisor" not in processes(a)
        kill_node(a)
        _, errors = ray.communicate(timeout=60)
    assert ray.returncode == 1
    assert re.search(r"--port=\d+ resumes it", errors), errors


@pytest.mark.parametrize("times", [5])
def test_a_head_that_dies_again_and_again_is_given_up_and_can_be_resumed(machines: list[Machine], times: int) -> None:
    a, _ = machines
    port = start_head(a).rpartition(":")[2]
    for death in range(times):
        # After the first, the one that the supervisor names: a child of the one before has its title for a moment yet.
        if started := re.findall(r"it was started again \(pid (\d+)\)", supervisor_said(a)):
            os.kill(int(started[-1]), signal.SIGKILL)
        else:
            kill_node(a)
        wait_until(lambda: len(re.findall("started again", supervisor_said(a))) == death + 1)  # noqa: B023
    wait_until(lambda: "supervisor" not in processes(a))
    said = supervisor_said(a)
    assert "5th time within 60 s: it is not started again" in said
    assert f"`ray start --head --port={port}` goes on" in said
    assert "is resumed" in a.ray("start", "--head", f"--port={port}", "--num-cpus=1")
