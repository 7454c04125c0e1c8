"""What programs ask about a `ray://` connection: `ray.util.client.ray.is_connected()` and its kin.

In the driver, any thread. A driver behind `ray://` is one like any other here, so there is no second API: `ray` below
is the package itself, with the few questions that only make sense for a connection. Of a dead one nothing is kept.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RayAPIStub", "num_connected_contexts", "ray"]


class RayAPIStub:
    """The ray package, and whether it is connected by `ray://`."""

    def connect(self, conn_str: str, **options: Any) -> Any:
        """Connects to "host:port". Returns and raises: as ray.init."""
        from ray.util.client_connect import connect

        return connect(conn_str, **options)

    def disconnect(self) -> None:
        """Ends the connection; does nothing where there is none."""
        from ray.util.client_connect import disconnect

        if self.is_connected():
            disconnect()

    def is_connected(self) -> bool:
        """Whether this program is the driver of a session behind `ray://`."""
        from ray import _driver

        return _driver.is_client()

    def __getattr__(self, name: str) -> Any:
        import ray as package

        return getattr(package, name)

    def __repr__(self) -> str:
        return f"<ray API, {'connected' if self.is_connected() else 'not connected'} by ray://>"


ray: RayAPIStub = RayAPIStub()


def num_connected_contexts() -> int:
    """How many `ray://` connections this program has: one, or none."""
    return int(ray.is_connected())
