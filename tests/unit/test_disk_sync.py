"""What the control plane wrote is flushed to the disk a moment later; never while nothing is written."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from ray._control import disk_sync
from ray._control.disk_sync import DiskSync, sync_files
from tests.unit.control_session import ControlPlane, control_plane, run, until


class Disk:
    """Stands in for os.fsync: notes which file was flushed and how long it was; refuses while `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: list[tuple[str, int]] = []
        self.error = 0
        self.open = threading.Event()
        self.open.set()
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(disk_sync, "SYNC_AFTER_S", 0.02)

    def fsync(self, fd: int) -> None:
        name, length = os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size
        assert self.open.wait(60)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.flushed.append((name, length))

    def holds(self, plane: ControlPlane) -> bool:
        """Whether all of every append-only file is on it, and the folder in which it has its name."""
        files = [path for path in Path(plane.servers.folder).rglob("appendonly*") if path.is_file()]
        assert files
        on_disk = dict(self.flushed)
        return all(on_disk.get(str(f)) == f.stat().st_size and str(f.parent) in on_disk for f in files)


def test_what_was_acknowledged_is_flushed_soon_and_many_writes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        disk = Disk(monkeypatch)
        async with control_plane(shards=1) as plane:
            sync = DiskSync(plane.servers.folder, asyncio.get_running_loop(), plane.problems.append)
            plane.store.on_answered = sync.soon
            for i in range(1000):
                plane.store.write(i % 2, "HSET", "ray:x", i, "x" * 100)
            await plane.store.drain(60)
            await until(lambda: disk.holds(plane))
            assert sync.syncs < 20
            assert plane.problems == []

    run(test)


def test_what_is_written_during_a_flush_is_flushed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        disk = Disk(monkeypatch)
        async with control_plane() as plane:
            sync = DiskSync(plane.servers.folder, asyncio.get_running_loop(), plane.problems.append)
            plane.store.on_answered = sync.soon
            disk.open.clear()
            try:
                await plane.store.call(0, "HSET", "ray:x", "a", "1")
                await until(lambda: sync._running)
                await plane.store.call(0, "HSET", "ray:x", "b", "2")  # goes on though the disk stands still
                assert sync.syncs == 0
            finally:
                disk.open.set()
            await until(lambda: disk.holds(plane))
            await until(lambda: sync.syncs == 2)

    run(test)


def test_a_disk_that_refuses_is_reported_once_and_tried_again_with_the_next_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        disk = Disk(monkeypatch)
        async with control_plane() as plane:
            sync = DiskSync(plane.servers.folder, asyncio.get_running_loop(), plane.problems.append)
            plane.store.on_answered = sync.soon
            disk.error = errno.EIO
            for times in (1, 2):
                await plane.store.call(0, "HSET", "ray:x", "a", times)
                await until(lambda: sync.syncs == times)  # noqa: B023
            assert len(plane.problems) == 1 and "Input/output error" in plane.problems[0]
            assert plane.servers.folder in plane.problems[0]
            disk.error = 0
            await plane.store.call(0, "HSET", "ray:x", "a", "3")
            await until(lambda: disk.holds(plane))

    run(test)


def test_only_append_only_files_are_flushed_and_one_that_goes_meanwhile_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = Disk(monkeypatch)
    folder = tmp_path / "shard-1" / "appendonlydir"
    folder.mkdir(parents=True)
    (tmp_path / "password").write_text("secret")
    (folder / "appendonly.aof.1.incr.aof").write_text("12345")
    (folder / "appendonly.aof.0.incr.aof").symlink_to("gone")  # listed, and not there when it is opened
    sync_files(str(tmp_path))
    assert disk.flushed == [(str(folder / "appendonly.aof.1.incr.aof"), 5), (str(folder), disk.flushed[1][1])]
