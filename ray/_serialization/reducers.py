"""How exceptions are pickled: without calling their `__init__` again, and with what they keep in `__slots__`.

`BaseException.__reduce__` has the copy made by `cls(*args)`. That fails for each class whose `__init__` takes other
arguments than it hands to `super().__init__`, which is the commonest reason for an error to be lost on its way home.
Called by the native pickler for each exception met; `_rebuild` and `_fill` run wherever one is unpickled.
"""

from __future__ import annotations

from types import FunctionType, MemberDescriptorType
from typing import Any

from ray.exceptions import RayTaskError, is_picklable_with, new_exception, rebuild_task_error


def reduce_exception(error: BaseException) -> Any:
    """What to pickle error as, or NotImplemented where its own way is right."""
    cls = type(error)
    if isinstance(error, RayTaskError):
        cause = error.cause if error.cause is not None and is_picklable_with(_try_pickle, error.cause) else None
        return rebuild_task_error, error.fields(cause)
    if cls.__reduce__ is not BaseException.__reduce__ or cls.__reduce_ex__ is not object.__reduce_ex__:
        return NotImplemented
    slots = [name for base in cls.__mro__ for name in _slots(base) if hasattr(error, name)]
    if not slots and not isinstance(cls.__init__, FunctionType):
        return NotImplemented
    return (
        _rebuild,
        (cls, error.args),
        (error.__dict__, {name: getattr(error, name) for name in slots}),
        None,
        None,
        _fill,
    )


def _slots(cls: type) -> list[str]:
    return [name for name, member in vars(cls).items() if isinstance(member, MemberDescriptorType) and _is_python(cls)]


def _is_python(cls: type) -> bool:
    return cls.__flags__ & (1 << 9) != 0  # Py_TPFLAGS_HEAPTYPE; fields of classes written in C come out of args


def _rebuild(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    error: BaseException = new_exception(cls, args)
    return error


def _fill(error: BaseException, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    # A step of its own, so that an exception may refer to itself.
    error.__dict__.update(state[0])
    for name, value in state[1].items():
        setattr(error, name, value)


def _try_pickle(value: object) -> None:
    from ray._native import serialization

    serialization.pickler(NullFile()).dump(value)


class NullFile:
    """Takes what a pickler writes and forgets it: pickling only to see whether it works."""

    def write(self, data: bytes) -> int:
        return len(data)
