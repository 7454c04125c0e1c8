"""How exceptions are pickled: without calling their `__init__` again.

`BaseException.__reduce__` has the copy made by `cls(*args)`. That fails for each class whose `__init__` takes other
arguments than it hands to `super().__init__`, which is the commonest reason for an error to be lost on its way home.
Called by the native pickler for each exception met; rebuild_exception is called wherever one is unpickled.
"""

from __future__ import annotations

from types import FunctionType
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
    if not isinstance(cls.__init__, FunctionType):
        return NotImplemented
    return rebuild_exception, (cls, error.args, error.__dict__ or None)


def rebuild_exception(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any] | None) -> BaseException:
    """An exception with these args and attributes, whose `__init__` (Python code) has not run."""
    error: BaseException = new_exception(cls, args)
    if state:
        error.__dict__.update(state)
    return error


def _try_pickle(value: object) -> None:
    from ray._native import serialization

    serialization.pickler(NullFile()).dump(value)


class NullFile:
    """Takes what a pickler writes and forgets it: pickling only to see whether it works."""

    def write(self, data: bytes) -> int:
        return len(data)
