"""Packages that come in pieces: whole or not there, and nothing is left of a sender that dies. No process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray._node.package_inbox import PackageInbox

TAG, OTHER, URI = b"a" * 16, b"b" * 16, "gcs://_ray_pkg_1.zip"


def test_a_package_is_there_once_its_last_piece_is(tmp_path: Path) -> None:
    inbox = PackageInbox(str(tmp_path), 100)
    inbox.put(TAG, URI, 0, b"abc", 5)
    inbox.put(OTHER, URI, 0, b"ab", 5)  # two that send the same do not mix
    assert not inbox.has(URI)
    inbox.put(TAG, URI, 3, b"de", 5)
    assert inbox.has(URI) and (tmp_path / "packages" / "_ray_pkg_1.zip").read_bytes() == b"abcde"
    inbox.sender_left(OTHER)
    assert os.listdir(tmp_path / "packages") == ["_ray_pkg_1.zip"]


@pytest.mark.parametrize(
    ("uri", "offset", "data", "size"),
    [
        ("gcs://../token", 0, b"x", 1),
        (URI, 0, b"x", 101),
        (URI, 0, b"xx", 1),
        (URI, -1, b"x", 1),
        (URI, 0, "x", 1),
        (URI, 1, b"x", 2),
    ],
    ids=repr,
)
def test_a_piece_that_makes_no_sense_is_refused(tmp_path: Path, uri: str, offset: int, data: bytes, size: int) -> None:
    with pytest.raises((ValueError, FileNotFoundError)):
        PackageInbox(str(tmp_path), 100).put(TAG, uri, offset, data, size)
