"""`connect` and `disconnect`: older words for `ray.init("ray://...")` and `ray.shutdown()`."""

from __future__ import annotations

from typing import Any

import ray


def connect(conn_str: str, **options: Any) -> Any:
    """ray.init("ray://" + conn_str, **options)."""
    if not isinstance(conn_str, str):
        raise TypeError(f"ray.util.connect: conn_str={conn_str!r}: expected 'host:port'")
    return ray.init(conn_str if conn_str.startswith("ray://") else f"ray://{conn_str}", **options)


def disconnect() -> None:
    """Ends the connection, as ray.shutdown() does. Does nothing where there is none."""
    ray.shutdown()
