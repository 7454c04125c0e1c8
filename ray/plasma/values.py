"""Python values as bytes in the store, and back. LIBRARY of ray.plasma; no I/O; any thread.

    u32 magic | u32 n | u64 bytes of the pickle | n x (u64 offset, u64 bytes) | the pickle | buffers, 64-byte aligned

Pickle protocol 5; numpy arrays and whatever else gives its buffers out of band are not copied into the pickle, and come
back as views on the store's memory, read-only. Plain values take C pickle; anything that could hold a function or a
class of `__main__` goes through cloudpickle, which stores those by value.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any

MAGIC = 0x31767072  # "rpv1"
ALIGN = 64
HEAD = struct.Struct("<IIQ")
PLACE = struct.Struct("<QQ")
PLAIN = frozenset({int, float, bool, str, bytes, bytearray, complex, type(None)})

_NOT_OURS = "this object holds no Python value written by put; read it with get_buffers"
_dumps: Callable[..., bytes] | None = None


def _cloudpickle_dumps(value: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> bytes:
    global _dumps
    if _dumps is None:
        import cloudpickle  # late: most programs put arrays and plain values only

        _dumps = cloudpickle.dumps
    return _dumps(value, protocol=5, buffer_callback=buffer_callback)


class Encoded:
    """A value ready to be written: `nbytes` in all, write(view) fills them."""

    __slots__ = ("_head", "_places", "_views", "nbytes")

    def __init__(self, head: bytes, places: list[tuple[int, int]], views: list[memoryview], nbytes: int) -> None:
        self._head, self._places, self._views = head, places, views
        self.nbytes: int = nbytes

    def write(self, dest: memoryview, copy: Callable[[memoryview, memoryview], None]) -> None:
        dest[: len(self._head)] = self._head
        for (offset, nbytes), view in zip(self._places, self._views):
            copy(dest[offset : offset + nbytes], view)


def _is_plain_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject


def encode(value: Any) -> bytes | Encoded:
    """The value's bytes if it has no large parts; else what will write them.
    Raises: whatever pickling raises.
    """
    buffers: list[pickle.PickleBuffer] = []
    if type(value) in PLAIN or _is_plain_array(value):
        body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    else:
        body = _cloudpickle_dumps(value, buffers.append)
    if not buffers:
        return HEAD.pack(MAGIC, 0, len(body)) + body
    views = [b.raw() for b in buffers]
    at = HEAD.size + PLACE.size * len(views) + len(body)
    places = []
    for view in views:
        at = (at + ALIGN - 1) // ALIGN * ALIGN
        places.append((at, view.nbytes))
        at += view.nbytes
    head = b"".join([HEAD.pack(MAGIC, len(views), len(body)), *(PLACE.pack(*p) for p in places), body])
    return Encoded(head, places, views, at)


def decode(buffer: Any) -> Any:
    """The value in a buffer of the store; views in it keep the buffer alive.
    Raises: ValueError: no value of ours is there. Whatever unpickling raises.
    """
    view = memoryview(buffer)
    if view.nbytes < HEAD.size:
        raise ValueError(_NOT_OURS)
    magic, count, nbytes = HEAD.unpack_from(view)
    if magic != MAGIC:
        raise ValueError(_NOT_OURS)
    if count == 0:
        return pickle.loads(view[HEAD.size : HEAD.size + nbytes])
    body_at = HEAD.size + PLACE.size * count
    if body_at + nbytes > view.nbytes:
        raise ValueError(_NOT_OURS)
    places = PLACE.iter_unpack(view[HEAD.size : body_at])
    return pickle.loads(view[body_at : body_at + nbytes], buffers=[view[at : at + n] for at, n in places])
