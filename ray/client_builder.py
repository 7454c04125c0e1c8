"""ray.client("host:port"): the way to connect that came before ray.init("ray://host:port"), and is the same.

with ray.client("head:10001").namespace("mine").env({"env_vars": {"A": "1"}}).connect():
    ...
"""

from __future__ import annotations

from typing import Any

from ray.context import ClientContext, RayContext

__all__ = ["ClientBuilder", "ClientContext"]


class ClientBuilder:
    """Collects what is to be said to `ray.init`; `connect()` says it."""

    def __init__(self, address: str | None) -> None:
        """address: "host:port", with or without "ray://"; None: what ray.init finds on this machine.

        Raises: TypeError.
        """
        if address is not None and not isinstance(address, str):
            raise TypeError(f"ray.client: address={address!r}: expected 'host:port', or None")
        self._address = address
        self._options: dict[str, Any] = {}

    def env(self, env: dict[str, Any]) -> ClientBuilder:
        """The job's runtime environment. Checked by connect()."""
        self._options["runtime_env"] = env
        return self

    def namespace(self, namespace: str) -> ClientBuilder:
        """Where named actors are looked for. Checked by connect()."""
        self._options["namespace"] = namespace
        return self

    def connect(self) -> RayContext | ClientContext:
        """Connects; the context's disconnect(), or the end of a `with` block, undoes it. Raises: as ray.init."""
        from ray._driver import init

        address = self._address
        if address is not None and address not in ("local", "auto") and "://" not in address:
            address = "ray://" + address
        return init(address, **self._options)

    def __repr__(self) -> str:
        return f"ClientBuilder({self._address!r})"
