"""The public nouns RayContext and ClientContext: what `ray.init` returns. Context managers; the first is a mapping."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ray._version import __version__


class BaseContext:
    """What every kind of connection has: `with ray.init(): ...` shuts ray down at the end of the block."""

    def disconnect(self) -> None:
        from ray import api

        api.shutdown()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.disconnect()


class RayContext(BaseContext, Mapping[str, Any]):
    """Of a driver that is itself part of the session.

    As a mapping it holds `address_info`: "address", "node_ip_address", "node_id", "session_dir", "object_store_address"
    (the plasma store's socket), "raylet_socket_name" (the node's), "storage" (what `storage=` or RAY_STORAGE said),
    "metrics_export_port" (None unless asked for), and None for what isn't there: "webui_url" and "redis_address" (Redis
    has no port).
    """

    def __init__(self, address_info: dict[str, Any]) -> None:
        self.address_info = address_info
        self.dashboard_url: str | None = None
        self.python_version: str = "{}.{}.{}".format(*sys.version_info[:3])
        self.ray_version: str = __version__
        self.ray_commit = ""

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    # Mapping makes contexts unhashable and equal by contents; a connection is neither.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"RayContext(address_info={self.address_info!r}, ray_version={self.ray_version!r})"


class ClientContext(BaseContext):
    """Of a driver that reaches its session through a ray:// address.

    `ray_version`, `python_version` and `protocol_version` (what the port speaks) are the server's.
    """

    def __init__(self, address: str, server: dict[str, Any]) -> None:
        self.address = address
        self.dashboard_url: str | None = None
        self.python_version: str = server["python_version"]
        self.ray_version: str = server["ray_version"]
        self.ray_commit = ""
        self.protocol_version: str = server["protocol_version"]

    def __repr__(self) -> str:
        return f"ClientContext(address={self.address!r}, ray_version={self.ray_version!r})"
