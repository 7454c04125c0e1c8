"""breakpoint() in a task or an actor, and `ray debug`, which attaches to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

import ray
from ray import cli
from ray.util import pdb
from tests.wait import wait_until


@pytest.fixture
def session(ray_shared):
    return ray.get_runtime_context().gcs_address


def debug(session, typed, *more):
    done = subprocess.run(
        [sys.executable, "-m", "ray.cli", "debug", "--address", session, *more],
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@ray.remote
def stops(x):
    breakpoint()
    return x + 1


@ray.remote
class Stops:
    def method(self):
        secret = 41
        breakpoint()
        return secret


def one_waits(session):
    wait_until(lambda: len(list(pdb.waiting(session))) == 1)
    ((_, note),) = pdb.waiting(session)
    return note


def test_a_person_sees_and_changes_the_variables_of_a_task(session):
    ref = stops.remote(1)
    note = one_waits(session)
    assert note["function"] == "stops" and note["place"].startswith(__file__)
    assert note["task_id"] == ref.task_id().hex()
    out = debug(session, "p x * 100\nx = 7\nc\n", str(note["pid"]))
    assert "100" in out
    assert ray.get(ref, timeout=30) == 8
    assert list(pdb.waiting(session)) == []


def test_an_end_of_input_lets_the_program_go_on(session):
    actor = Stops.remote()
    ref = actor.method.remote()
    one_waits(session)
    assert "(ray-pdb)" in debug(session, "p secret\n")
    assert ray.get(ref, timeout=30) == 41
    ray.kill(actor)


def test_a_person_who_goes_while_the_program_runs_does_not_hurt_it(session):
    @ray.remote
    def steps():
        breakpoint()
        time.sleep(0.5)
        return "whole"

    ref = steps.remote()
    one_waits(session)
    ((path, _),) = pdb.waiting(session)
    with socket.socket(socket.AF_UNIX) as person:
        person.connect(path)
        person.sendall(b"n\n")
        received = b""
        while received.count(b"(ray-pdb)") < 1:
            received += person.recv(1000)
    assert ray.get(ref, timeout=30) == "whole"


def test_quit_fails_the_task(session):
    ref = stops.remote(1)
    one_waits(session)
    debug(session, "q\n")
    with pytest.raises(ray.exceptions.RayTaskError, match="BdbQuit"):
        ray.get(ref, timeout=30)


def test_a_task_that_waits_for_a_person_can_be_cancelled(session):
    ref = stops.remote(1)
    one_waits(session)
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)
    wait_until(lambda: list(pdb.waiting(session)) == [])


def test_debug_lists_what_waits_and_says_when_nothing_does(session, capsys):
    assert cli.main(["debug", "--address", session]) == 1
    assert "no breakpoint waits" in capsys.readouterr().err
    refs = [stops.remote(i) for i in range(2)]
    wait_until(lambda: len(list(pdb.waiting(session))) == 2)
    assert cli.main(["debug", "--list", "--address", session]) == 0
    assert capsys.readouterr().out.count("test_debug.py") == 2
    assert cli.main(["debug", "--address", session]) == 1  # which of them?
    for _, note in list(pdb.waiting(session)):
        debug(session, "c\n", str(note["pid"]))
    assert ray.get(refs, timeout=30) == [1, 2]
