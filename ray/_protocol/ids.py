"""Ids as values that a user may hold: bytes of a fixed length with a kind. No I/O, no state.

Inside the engine ids are plain bytes; they become one of these where they are handed out. Two ids are equal if they are
of one kind and their bytes are. What the bytes mean is in docs/internals/wire_format.md.
"""

from __future__ import annotations

import os
from typing import ClassVar, TypeVar

Self = TypeVar("Self", bound="BaseID")

NODE_NUMBER_BYTES = 4  # at the beginning of each tag, big-endian


def new_tag(number: int = 0) -> bytes:
    """Of a process on the node of that number: 16 bytes, all but the number random."""
    return number.to_bytes(NODE_NUMBER_BYTES, "big") + os.urandom(12)


def node_number(tag: bytes) -> int:
    """Of the node on which the process with this tag lives; 0 is the head's, and the only one on a single machine."""
    return int.from_bytes(tag[:NODE_NUMBER_BYTES], "big")


class BaseID:
    """An id of one kind. The nil id, all bits set, means "none"."""

    SIZE: ClassVar[int] = 0  # bytes

    __slots__ = ("_binary",)

    def __init__(self, binary: bytes) -> None:
        if not isinstance(binary, bytes) or len(binary) != self.SIZE:
            raise ValueError(f"{type(self).__name__}: expected {self.SIZE} bytes, got {binary!r}")
        self._binary = binary

    def binary(self) -> bytes:
        return self._binary

    def hex(self) -> str:
        return self._binary.hex()

    def is_nil(self) -> bool:
        return self._binary == b"\xff" * self.SIZE

    @classmethod
    def size(cls) -> int:
        return cls.SIZE

    @classmethod
    def nil(cls: type[Self]) -> Self:
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def from_random(cls: type[Self]) -> Self:
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def from_binary(cls: type[Self], binary: bytes) -> Self:
        return cls(binary)

    @classmethod
    def from_hex(cls: type[Self], text: str) -> Self:
        return cls(bytes.fromhex(text))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._binary == other._binary  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._binary)

    def __lt__(self: Self, other: Self) -> bool:
        return self._binary < other._binary

    def __reduce__(self) -> tuple[type[BaseID], tuple[bytes]]:
        return type(self), (self._binary,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"


class JobID(BaseID):
    """One driver's run: a counter, little endian."""

    SIZE: ClassVar[int] = 4
    __slots__ = ()

    @classmethod
    def from_int(cls, number: int) -> JobID:
        return cls(number.to_bytes(cls.SIZE, "little"))

    def int(self) -> int:
        return int.from_bytes(self._binary, "little")


class NodeID(BaseID):
    SIZE: ClassVar[int] = 16
    __slots__ = ()


class WorkerID(BaseID):
    """A process that runs tasks, or a driver: the tag under which it speaks."""

    SIZE: ClassVar[int] = 16
    __slots__ = ()


class ActorID(BaseID):
    SIZE: ClassVar[int] = 16
    __slots__ = ()


class ActorCheckpointID(BaseID):
    SIZE: ClassVar[int] = 16
    __slots__ = ()


class FunctionID(BaseID):
    """A hash of the pickled definition."""

    SIZE: ClassVar[int] = 16
    __slots__ = ()


class TaskID(BaseID):
    """The first 24 bytes of the ids of what the task returns."""

    SIZE: ClassVar[int] = 24
    __slots__ = ()
