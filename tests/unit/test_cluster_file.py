"""The file `nodes`: what is written is read; the head's is on the disk before anybody hears of a number."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ray._launch import cluster_file

HEAD = ("10.0.0.1", 6379)
ROW = {"number": 1, "node_id": b"n" * 16, "host": "10.0.0.2", "port": 7000}


def test_what_was_written_is_read_and_a_session_without_other_nodes_has_no_file(tmp_path: Path) -> None:
    assert cluster_file.read(str(tmp_path)) is None
    cluster_file.write(str(tmp_path), 0, HEAD, [ROW], 2, tls=True)
    assert cluster_file.read(str(tmp_path)) == {"number": 0, "head": HEAD, "next": 2, "tls": True, "nodes": [ROW]}


@pytest.mark.parametrize("durable", [False, True])
def test_only_a_head_that_can_come_back_waits_for_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, durable: bool
) -> None:
    happened: list[tuple[str, Any]] = []
    replace = os.replace

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        happened.append((path, cluster_file.read(str(tmp_path)) if os.path.isdir(path) else Path(path).read_text()))

    def replaced(draft: str, name: str) -> None:
        happened.append(("replaced", Path(draft).read_text()))
        replace(draft, name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    cluster_file.write(str(tmp_path), 0, HEAD, [ROW], 2, durable=durable)
    written = (tmp_path / "nodes").read_text()
    if durable:
        known = cluster_file.read(str(tmp_path))
        assert happened == [(f"{tmp_path}/nodes.new", written), ("replaced", written), (str(tmp_path), known)]
    else:
        assert happened == [("replaced", written)]
