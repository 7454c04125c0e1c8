"""Makes this process a driver: one call from ray.init, main thread or not, once the node process is ready."""

from __future__ import annotations

from typing import Any

from ray import _driver_output
from ray._core.engine import Engine
from ray._native import serialization
from ray._native.references import ObjectRef

serialization.set_ref_type(ObjectRef)


def start(session_dir: str, node_socket: str, token: bytes, info: dict[str, Any], **ways: Any) -> Engine:
    """Connects this process to the node process as a driver of the session.

    Args: info: what `register` takes (docs/internals/wire_format.md), with our tag.
        ways: open_store and reach of Engine.connect.
    Raises: ConnectionError: the node process does not answer.
    """
    engine = Engine(session_dir, token, info["tag"], True)
    engine.connect(
        node_socket,
        {**info, "kind": "driver"},
        on_log_lines=_driver_output.on_log_lines,
        on_error=_driver_output.on_error,
        **ways,
    )
    return engine
