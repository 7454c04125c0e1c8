"""The types that users told us how to pickle (`ray.util.register_serializer`).

One dict for the process, type -> (serializer, deserializer), shared with the native encoder, which looks up exact types
only. It is changed by the user's own call and read while encoding; both hold the GIL. A receiver needs no registration:
the deserializer travels with each value, as any function does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ray._native import serialization

T = TypeVar("T")

_registered: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}

# C pickle never asks about objects of exactly these types, so a serializer for them would silently not be called.
_BUILT_IN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, type}
)


def register_serializer(cls: type[T], *, serializer: Callable[[T], Any], deserializer: Callable[[Any], T]) -> None:
    """Says how objects of a type are pickled wherever ray sends or stores them, in this process from now on.

    Args:
        cls: the exact type; its subclasses are not meant. A second call replaces the first.
        serializer: takes an object, returns something that can be pickled.
        deserializer: takes that, returns the object. It travels with each object, so keep it small.

    Raises:
        TypeError: cls is no class, is a built-in container or scalar, or one of the functions can't be called.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer() takes a class, not {cls!r}")
    if cls in _BUILT_IN:
        raise TypeError(
            f"{cls.__name__} is pickled by the interpreter itself; a serializer for it would never be called"
        )
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"{name} must be callable with one argument, but it is {function!r}")
    _registered[cls] = (serializer, deserializer)
    serialization.registered_changed(_registered)


def deregister_serializer(cls: type) -> None:
    """Forgets what register_serializer was told about cls. Nothing happens if that was nothing."""
    if _registered.pop(cls, None) is not None:
        serialization.registered_changed(_registered)
