"""The words of ray.util.collective: how to reduce, which backend, what went wrong. Pure."""

from __future__ import annotations

from enum import Enum


class ReduceOp(Enum):
    """How the members' tensors become one."""

    SUM = 0
    PRODUCT = 1
    MIN = 2
    MAX = 3


class Backend(str):
    """What carries the tensors. All of these names mean the object store: tensors on a GPU are copied to the host."""

    OBJECT_STORE = "object_store"
    GLOO = "gloo"
    NCCL = "nccl"

    def __new__(cls, name: str = OBJECT_STORE) -> Backend:
        if not isinstance(name, str) or name.lower() not in (cls.OBJECT_STORE, cls.GLOO, cls.NCCL):
            raise ValueError(f"backend={name!r}: expected 'object_store' ('gloo' and 'nccl' are other names for it)")
        return str.__new__(cls, name.lower())


class CollectiveError(RuntimeError):
    """An operation of a group can't be completed: a member died, left, did not come in time or did something else."""


class CoordinatorDied(CollectiveError):
    """The process in which the members of a group met is dead."""
