"""Libraries whose interfaces may still change, each a module of its own, loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.experimental.locations import get_object_locations

__all__ = ["get_object_locations", "shuffle", "tqdm_ray"]


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'ray.experimental' has no attribute {name!r}")
    if name == "get_object_locations":
        return importlib.import_module("ray.experimental.locations").get_object_locations
    return importlib.import_module(f"ray.experimental.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
