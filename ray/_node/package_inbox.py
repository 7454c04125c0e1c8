"""Packages of runtime environments that come over a connection: from drivers that can't write to the session's folder.

Node's main thread. A package is sent in pieces, in order, written beside its final name and renamed with the last one:
whoever sees it sees all of it. If its sender dies in between, what is unfinished goes with its connection.
"""

from __future__ import annotations

import os

from ray.runtime_env import _packages


class PackageInbox:
    def __init__(self, session_dir: str, bytes_max: int) -> None:
        self._session_dir = session_dir
        self._bytes_max = bytes_max
        self._unfinished: dict[tuple[bytes, str], str] = {}  # (sender's tag, name) -> path

    def has(self, uri: str) -> bool:
        return os.path.exists(_packages.path_of(self._session_dir, uri))

    def put(self, tag: bytes, uri: str, offset: int, data: bytes, size: int) -> None:
        """Raises: ValueError: no name of a package, too large, or not the piece that comes next."""
        target = _packages.path_of(self._session_dir, uri)
        if not isinstance(data, bytes) or not 0 <= offset <= offset + len(data) <= size <= self._bytes_max:
            raise ValueError(f"{uri}: at most {self._bytes_max} bytes, in pieces that lie inside its size of {size!r}")
        os.makedirs(_packages.folder_of(self._session_dir), mode=0o700, exist_ok=True)
        path = self._unfinished.setdefault((tag, uri), f"{target}.{tag.hex()}")
        with open(path, "wb" if offset == 0 else "r+b") as file:
            if file.seek(0, os.SEEK_END) != offset:
                raise ValueError(f"{uri}: the piece at {offset} does not follow the one before")
            file.write(data)
        if offset + len(data) == size:
            del self._unfinished[tag, uri]
            os.rename(path, target)

    def piece(self, uri: str, offset: int, size: int) -> tuple[int, bytes] | None:
        """(size of the package, at most size bytes of it from offset). None: it is not here."""
        try:
            with open(_packages.path_of(self._session_dir, uri), "rb") as file:
                file.seek(offset)
                return os.fstat(file.fileno()).st_size, file.read(size)
        except FileNotFoundError:
            return None

    def sender_left(self, tag: bytes) -> None:
        for key in [key for key in self._unfinished if key[0] == tag]:
            path = self._unfinished.pop(key)
            if os.path.exists(path):
                os.unlink(path)
