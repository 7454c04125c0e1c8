"""Libraries whose interfaces may still change, each a module of its own, loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.experimental import shuffle, tf_utils, tqdm_ray
    from ray.experimental.locations import get_object_locations
    from ray.experimental.tf_utils import TensorFlowVariables

__all__ = ["TensorFlowVariables", "get_object_locations", "shuffle", "tf_utils", "tqdm_ray"]

_HOME = {"TensorFlowVariables": "tf_utils", "get_object_locations": "locations"}  # the others are modules


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'ray.experimental' has no attribute {name!r}")
    module = importlib.import_module(f"ray.experimental.{_HOME.get(name, name)}")
    return getattr(module, name) if name in _HOME else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
