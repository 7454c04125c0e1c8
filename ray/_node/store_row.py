"""What this node's object store holds, in memory and on disk, for those who look at the cluster: `ray status`, the
state API, the metrics. Asked of the store itself, on a thread, since that is a round trip to another process.
"""

from __future__ import annotations

import asyncio
from typing import Any

TIMEOUT_S = 1.0
COLUMNS = ("pool_bytes", "sealed_bytes", "sealed_objects", "spilled_bytes", "spilled_objects", "disk_bytes")


async def store_row(plasma_socket: str) -> dict[str, int] | None:
    """COLUMNS, or None while the store is away. spilled: on disk only; disk_bytes: all that is used there."""
    return await asyncio.to_thread(_ask, plasma_socket)


def _ask(plasma_socket: str) -> dict[str, int] | None:
    from ray._native.plasma import PlasmaClient, PlasmaError

    try:
        client = PlasmaClient(plasma_socket, TIMEOUT_S)
        try:
            stats: dict[str, Any] = client.stats()
            return {name: int(stats[name]) for name in COLUMNS}
        finally:
            client.disconnect()
    except (OSError, PlasmaError):
        return None
