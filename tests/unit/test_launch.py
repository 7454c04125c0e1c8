"""Session folders: private, found, swept when dead; settings and resources as a user gives them. No node process."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray import _config
from ray._launch import session as sessions
from ray._protocol import resources
from tests.wait import wait_until


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: socket paths must fit into it."""
    path = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)


def test_a_session_is_private_and_alive_while_its_lock_is_held(tmp_path: Path) -> None:
    session = sessions.create(str(tmp_path))
    for path, mode in (
        (session.folder, 0o700),
        (os.path.dirname(session.folder), 0o700),
        (session.folder + "/token", 0o600),
    ):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode, path
    assert len(session.token) == 32 and sessions.open_existing(session.folder).token == session.token
    assert sessions.alive(session.folder) and sessions.sessions(str(tmp_path)) == [session.folder]
    session.release_lock()
    assert not sessions.alive(session.folder) and sessions.sessions(str(tmp_path)) == []
    session.remove()
    assert os.listdir(tmp_path) == []


def test_a_dead_session_is_swept_by_the_next_one_and_a_living_one_is_not(tmp_path: Path) -> None:
    living, dead = sessions.create(str(tmp_path)), sessions.create(str(tmp_path))
    Path(dead.logs, "worker-1.out").write_text("x")
    os.symlink(living.folder, dead.folder + "/link")  # must not be followed
    dead.release_lock()
    third = sessions.create(str(tmp_path))
    base = os.path.dirname(living.folder)
    assert sorted(os.listdir(base)) == sorted(os.path.basename(s.folder) for s in (living, third))
    assert os.path.exists(living.folder + "/token")
    for session in (living, third):
        session.release_lock()
        session.remove()


@pytest.fixture
def lingering(tmp_path: Path) -> Iterator[tuple[sessions.Session, subprocess.Popen[bytes]]]:
    """A session that has been killed, and a child of its node process that has not come to its exec yet: it has the
    lock, until its standard input ends."""
    session = sessions.create(str(tmp_path))
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[session.lock_fd]
    )
    session.release_lock()
    yield session, child
    child.communicate()
    session.remove()


def test_a_killed_session_is_taken_over_though_a_child_of_its_node_process_still_has_the_lock(
    lingering: tuple[sessions.Session, subprocess.Popen[bytes]],
) -> None:
    session, child = lingering
    assert child.stdin is not None and sessions.alive(session.folder)
    threading.Timer(0.1, child.stdin.close).start()
    sessions.take_over(session.folder).release_lock()


def test_a_living_session_is_not_taken_over(
    lingering: tuple[sessions.Session, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _child = lingering
    monkeypatch.setattr(sessions, "LINGERS_S", 0.05)
    with pytest.raises(BlockingIOError, match="is alive"):
        sessions.take_over(session.folder)


def test_what_is_left_of_a_killed_session_has_ended_once_it_is_cleared(tmp_path: Path) -> None:
    """Its port, for one, is free for the node process that goes on there."""
    session = sessions.create(str(tmp_path))
    with subprocess.Popen(["sleep", "1000"], env={sessions.ENVIRONMENT_MARK: session.folder}) as left:
        wait_until(lambda: left.pid in sessions.marked(session.folder))
        sessions.clear(session.folder)
        assert left.poll() == -signal.SIGKILL
    session.release_lock()
    session.remove()


def test_a_squatted_base_folder_is_not_used(tmp_path: Path) -> None:
    victim = tmp_path / "elsewhere"
    victim.mkdir()
    os.symlink(victim, tmp_path / f"ray-{os.getuid()}")
    first = sessions.create(str(tmp_path))
    second = sessions.create(str(tmp_path))
    assert os.listdir(victim) == []
    assert os.path.dirname(first.folder) == os.path.dirname(second.folder) != str(tmp_path / f"ray-{os.getuid()}")
    for session in (first, second):
        session.release_lock()
        session.remove()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a folder of somebody else")
def test_a_base_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    theirs = tmp_path / "ray-0"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    session = sessions.create(str(tmp_path))
    assert os.listdir(theirs) == [] and os.path.dirname(session.folder) != str(theirs)
    session.release_lock()
    session.remove()


def test_a_temp_dir_too_long_for_sockets_says_how_long_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"_temp_dir=.* too long: .*107 bytes.*at most \d+"):
        sessions.create(str(tmp_path / ("x" * 100)))
    with pytest.raises(ValueError, match="_temp_dir"):
        sessions.create("/proc/1/nothing")


def test_removing_a_session_twice_is_harmless(tmp_path: Path) -> None:
    session = sessions.create(str(tmp_path))
    session.release_lock()
    session.remove()
    session.remove()


def test_settings_come_from_the_table_then_the_environment_then_the_call() -> None:
    assert _config.Settings().idle_worker_timeout_s == 10.0
    environ = {"RAY_IDLE_WORKER_TIMEOUT_S": "3", "RAY_PRESTART_WORKERS": "4"}
    settings = _config.Settings({"prestart_workers": 5}, environ)
    assert (settings.idle_worker_timeout_s, settings.prestart_workers) == (3.0, 5)
    assert _config.Settings(settings.overrides()).overrides() == settings.overrides()
    with pytest.raises(AttributeError, match="read once"):
        settings.prestart_workers = 1


@pytest.mark.parametrize(
    ("given", "says"),
    [({"nonsense": 1}, "no setting named 'nonsense'"), ({"prestart_workers": "x"}, "prestart_workers must be int")],
)
def test_a_wrong_setting_is_named(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _config.Settings(given)


def test_resources_are_counted_in_ten_thousandths() -> None:
    assert resources.parse(num_cpus=0.5, num_gpus=2, memory=1024, resources={"x": 0.0001, "y": 0}) == {
        "CPU": 5_000, "GPU": 20_000, "memory": 10_240_000, "x": 1,
    }  # fmt: skip
    assert resources.to_numbers({"CPU": 5_000}) == {"CPU": 0.5}


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        (ValueError, {"num_cpus": -1}, "num_cpus must be >= 0"),
        (ValueError, {"num_cpus": float("nan")}, "num_cpus must be a finite number"),
        (TypeError, {"num_cpus": "2"}, "num_cpus must be a number, not '2'"),
        (TypeError, {"num_gpus": True}, "num_gpus must be a number"),
        (ValueError, {"num_gpus": 1.5}, "num_gpus=1.5 must be a whole number above 1"),
        (ValueError, {"resources": {"x": 0.00001}}, "finer than 1/10,000"),
        (ValueError, {"resources": {"CPU": 1}}, "argument of its own, num_cpus="),
        (TypeError, {"resources": [1]}, "resources must be a dict"),
        (TypeError, {"resources": {1: 1}}, "a name must be a non-empty string"),
    ],
)
def test_a_wrong_amount_is_named(kind: type[Exception], arguments: dict[str, object], says: str) -> None:
    with pytest.raises(kind, match=says):
        resources.parse(**arguments)  # type: ignore[arg-type]
