"""The plasma_store process: how it starts, what it says when it can't, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ray import plasma
from ray._native.plasma import PlasmaClient
from ray.plasma.server import launch


def start(*arguments: str) -> tuple[int, str]:
    """Runs plasma_store with --ready-fd; returns its exit code and what it said there. Only for starts that fail."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [plasma.store_binary(), *arguments, "--ready-fd", str(write)], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    with open(read, "rb") as ready:
        said = ready.read()
    return process.wait(), said.decode()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--socket is missing"),
        (["--socket", "/tmp/x.sock"], "--memory must be"),
        (["--socket", "/tmp/x.sock", "--memory", "many"], "many"),
        (["--socket", "/tmp/x.sock", "--memory", "-1GB"], "-1GB"),
        (["--socket", "/tmp/x.sock", "--memory", "1XB"], "1XB"),
        (["--socket", "/tmp/x.sock", "--memory", "10000TB"], "64 TiB"),
        (["--socket", "/tmp/x.sock", "--memory", "1GB", "extra"], "extra"),
        (["--socket", "/tmp/x.sock", "--memory", "1GB", "--lifeline-fd", "999"], "999"),
        (["--socket", "/no/such/folder/x.sock", "--memory", "8MB"], "/no/such/folder/x.sock"),
        (["--socket", "/tmp/" + "x" * 200, "--memory", "8MB"], "107"),
        (["--socket", "/tmp/x.sock", "--memory", "8MB", "--directory", "/no/such/folder"], "/no/such/folder"),
        (
            ["--socket", "/tmp/x.sock", "--memory", "8MB", "--directory", "/tmp", "--huge-pages"],
            "not a hugetlbfs mount",
        ),
        (["--socket", "/tmp/x.sock", "--memory", "40TB", "--directory", "/tmp"], "bytes available"),
    ],
)
def test_a_store_that_cannot_start_says_why(arguments: list[str], says: str) -> None:
    code, said = start(*arguments)
    assert code != 0 and says in said


def test_huge_pages_that_are_not_there_are_counted() -> None:
    free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    code, said = start("--socket", "/tmp/x.sock", "--memory", f"{(free + 10) * 2}MiB", "--huge-pages")
    assert code != 0 and f"{free + 10} pages" in said and "vm.nr_hugepages" in said


@pytest.mark.parametrize(
    ("text", "size"), [("8MB", 8_003_584), ("8MiB", 8 << 20), ("8m", 8 << 20), ("8388608", 8 << 20)]
)
def test_sizes_are_understood(text: str, size: int, tmp_path: Path) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.plasma", "-m", text, "-s", str(tmp_path / "s"), "--ready-fd", str(write)],
        pass_fds=[write],
    )
    os.close(write)
    with open(read, "rb") as ready:
        assert ready.read() == b"\x01"
    assert PlasmaClient(str(tmp_path / "s")).capacity == size  # of whole pages
    process.terminate()
    assert process.wait() == 0
    assert not (tmp_path / "s").exists()


def test_it_ends_with_its_lifeline(tmp_path: Path) -> None:
    process, lifeline = launch(8 << 20, str(tmp_path / "s"))
    os.close(lifeline)
    assert process.wait(60) == 0
    assert not (tmp_path / "s").exists()


def test_it_ends_when_its_parent_is_killed_even_if_the_lifeline_has_leaked(tmp_path: Path) -> None:
    program = (
        "import os, sys; from ray.plasma.server import launch\n"
        f"p, life = launch(8 << 20, {str(tmp_path / 's')!r})\n"
        "os.set_inheritable(life, True); print(p.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdin is not None
    pid = int(parent.stdout.readline())
    pidfd = os.pidfd_open(pid)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    import select

    assert select.select([pidfd], [], [], 60)[0], "the store outlives its parent"
    os.close(pidfd)


@pytest.mark.parametrize("directory", [None, "/dev/shm"])
def test_a_killed_store_leaves_no_memory_behind_and_its_socket_is_replaced(
    tmp_path: Path, directory: str | None
) -> None:
    path = str(tmp_path / "s")
    before = sorted(os.listdir("/dev/shm"))
    process, lifeline = launch(16 << 20, path, directory)
    client = PlasmaClient(path)
    client.put(b"k", bytes(8 << 20))
    assert sorted(os.listdir("/dev/shm")) == before  # the file has no name, even while in use
    process.kill()
    process.wait()
    os.close(lifeline)
    again, lifeline = launch(16 << 20, path, directory)
    fresh = PlasmaClient(path)
    assert not fresh.contains(b"k") and not client.alive
    os.close(lifeline)
    again.wait(60)


def test_a_second_store_on_a_socket_in_use_is_refused(tmp_path: Path) -> None:
    process, lifeline = launch(8 << 20, str(tmp_path / "s"))
    with pytest.raises(OSError, match="already serves"):
        launch(8 << 20, str(tmp_path / "s"))
    PlasmaClient(str(tmp_path / "s")).put(b"k", b"v")
    os.close(lifeline)
    process.wait(60)


def test_its_socket_is_its_owners_alone_and_garbage_on_it_harms_nobody(tmp_path: Path) -> None:
    path = tmp_path / "s"
    process, lifeline = launch(8 << 20, str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    client = PlasmaClient(str(path))
    client.put(b"k", b"v")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4000), b"\0" * 100, b"\xff" * 65536):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(path))
            s.settimeout(60)
            try:
                s.sendall(garbage)
                s.shutdown(socket.SHUT_WR)
                assert s.recv(100) == b""
            except (BrokenPipeError, ConnectionResetError):
                pass  # dropped while we were still sending
    assert bytes(client.get(b"k") or b"") == b"v"
    assert client.stats()["connections_refused"] >= 1
    os.close(lifeline)
    process.wait(60)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_file_system_that_fills_up_makes_a_smaller_store_and_no_sigbus(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(mount)], check=False).returncode != 0:
        pytest.skip("no right to mount here")
    try:
        with plasma.start_plasma_store(80 << 20, plasma_directory=str(mount)) as (path, process):
            (mount / "other").write_bytes(bytes(50 << 20))
            client = PlasmaClient(path)
            for n in range(20):  # objects that fit are evicted for the next; the one who touches pages never dies
                client.put(b"%d" % n, bytes(10 << 20))
            assert client.stats()["evicted_objects"] > 10
            with pytest.raises(plasma.PlasmaStoreFull, match="No space left"):
                client.create(b"big", 70 << 20, timeout_s=0.0)
            assert process.poll() is None and client.audit() == ""
            del client
        with (
            pytest.raises(OSError, match="bytes available"),
            plasma.start_plasma_store(200 << 20, plasma_directory=str(mount)),
        ):
            pass
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_store_started_twice_in_a_row_ends_at_ctrl_c(tmp_path: Path) -> None:
    process, lifeline = launch(8 << 20, str(tmp_path / "s"))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    os.close(lifeline)
