"""The leak check finds each kind of thing that can be left behind, and takes nobody else's things for ours."""

from __future__ import annotations

import mmap
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks
from tests.wait import wait_until

SLEEPER = "import signal; print('up', flush=True); signal.pause()"
# Starts a sleeper in a session of its own, with another title and no environment, and ends before it: a daemon.
DAEMON = """
import os, signal, subprocess, sys
if os.fork() == 0:
    os.setsid()
    os.execve(sys.executable, ["renamed", "-c", {sleeper!r}], {{}})
""".format(sleeper="import os, signal; print(os.getpid(), flush=True); signal.pause()")


@pytest.fixture
def before() -> leaks.Snapshot:
    return leaks.Snapshot.take()


@pytest.fixture
def daemon() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.wait(60)
        yield pid
        os.kill(pid, signal.SIGKILL)


def test_nothing_is_reported_when_nothing_happened(before: leaks.Snapshot) -> None:
    assert before.leftovers() == []


def test_a_daemon_is_found_though_it_left_its_parent_its_session_and_its_environment(daemon: int) -> None:
    assert leaks.mark_of(daemon) == leaks.mark_this_process()
    assert daemon in leaks.marked_processes(leaks.mark_this_process())


def test_a_living_child_is_reported_until_it_has_ended(before: leaks.Snapshot) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert any(line.startswith(f"process {child.pid} ") for line in before.leftovers(inside=False))
        child.kill()
    assert before.wait_until_clean() == []


def test_a_child_that_nobody_waits_for_is_reported(before: leaks.Snapshot) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert any("not waited for" in line and str(pid) in line for line in before.leftovers())
    os.waitpid(pid, 0)
    assert before.leftovers() == []


def test_a_process_without_the_mark_is_a_stranger(before: leaks.Snapshot) -> None:
    def unmark() -> None:
        hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[1]
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (leaks.MARKS.start - 1, hard))

    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, preexec_fn=unmark) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert not any(line.startswith(f"process {child.pid} ") for line in before.leftovers(inside=False))
        child.kill()


def test_a_segment_in_dev_shm_is_reported(before: leaks.Snapshot) -> None:
    path = leaks.SHM / f"plasma-test-{secrets.token_hex(4)}"
    path.write_bytes(b"x")
    try:
        assert f"file {path}" in before.leftovers()
    finally:
        path.unlink()
    assert before.leftovers() == []


def test_a_session_folder_is_reported_unless_a_stranger_holds_its_lock(before: leaks.Snapshot) -> None:
    session = Path(f"/tmp/ray-test-{secrets.token_hex(4)}") / "s-12345678"
    session.mkdir(parents=True)
    lock = session / "lock"
    lock.touch()
    try:
        assert f"file {session}" in before.leftovers()
        holder = (
            f"import resource, signal; resource.setrlimit(resource.RLIMIT_MSGQUEUE, (7, 7)); f = open({str(lock)!r}); "
        )
        with subprocess.Popen([sys.executable, "-c", holder + SLEEPER], stdout=subprocess.PIPE) as stranger:
            assert stranger.stdout is not None
            stranger.stdout.readline()
            assert f"file {session}" not in before.leftovers()
            stranger.kill()
    finally:
        lock.unlink()
        session.rmdir()
        session.parent.rmdir()


def test_descriptors_mappings_threads_and_sockets_of_this_process_are_reported(
    before: leaks.Snapshot, tmp_path: Path
) -> None:
    fd = os.memfd_create("ray-test")
    os.ftruncate(fd, 4096)
    mapping = mmap.mmap(fd, 4096)
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait, name="left-running")
    thread.start()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "plasma.sock"))
    try:
        text = "\n".join(before.leftovers())
        assert f"descriptor {fd} -> /memfd:ray-test" in text
        assert "shared memory mapped: /memfd:ray-test" in text
        assert "thread left-running" in text
        assert f"socket {tmp_path / 'plasma.sock'}" in text
    finally:
        listener.close()
        ending.set()
        thread.join()
        mapping.close()
        os.close(fd)
    assert before.leftovers() == []


def test_the_watcher_of_a_command_fails_and_lists_what_is_left(tmp_path: Path) -> None:
    command = [sys.executable, leaks.__file__, "--watch", "--grace", "0.2", "--", sys.executable, "-c", DAEMON]
    # Files, since the daemon would hold pipes open.
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
        status = subprocess.run(command, stdout=out, stderr=err, check=False).returncode
        # The daemon may have come to its first line only after the watcher had seen it.
        pid = int(wait_until(lambda: (tmp_path / "out").read_text()))
        os.kill(pid, signal.SIGKILL)
    assert status == 1
    assert f"process {pid} " in (tmp_path / "err").read_text()


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("pass", 0), ("import os; os.abort()", 134)])
def test_the_watcher_passes_on_the_exit_status_of_a_clean_command(code: str, status: int) -> None:
    command = [sys.executable, leaks.__file__, "--watch", "--", sys.executable, "-c", code]
    assert subprocess.run(command, check=False).returncode == status


def test_a_whole_pytest_run_fails_if_a_process_outlives_it(tmp_path: Path) -> None:
    root = Path(leaks.__file__).parent.parent
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(root)!r})\nfrom tests.conftest import *\n"
    )
    (tmp_path / "test_one.py").write_text(
        f"import subprocess, sys\ndef test_one():\n    subprocess.run([sys.executable, '-c', {DAEMON!r}], check=True)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", str(tmp_path)]
    with open(tmp_path / "out", "w+") as out:
        environment = {**os.environ, "RAY_TEST_LEFT_AFTER_S": "0.2"}
        status = subprocess.run(command, stdout=out, stderr=out, cwd=tmp_path, env=environment, check=False).returncode
    text = (tmp_path / "out").read_text()
    found = re.search(r"LEFT BEHIND by this run: process (\d+) ", text)
    assert found, text
    os.kill(int(found[1]), signal.SIGKILL)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "1 passed" in text
