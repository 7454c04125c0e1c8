"""Small libraries beside the core, each a module of its own, loaded on first use."""

from __future__ import annotations

from typing import Any

_HOME = {
    "inspect_serializability": "ray.util.inspect_serializability",
    "register_serializer": "ray.util.serialization",
    "deregister_serializer": "ray.util.serialization",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'ray.util' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
