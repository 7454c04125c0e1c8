"""Exceptions as results: `dump_error` in the worker that caught one, `load_error` in whoever gets it.

A user's exception is pickled by itself inside the payload, so that one which can't be pickled, or can't be unpickled
over there (its module is missing, its constructor fails), costs only itself: the text always arrives. Neither function
raises for what the exception contains.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

from ray import exceptions
from ray._native import serialization
from ray._serialization.tracebacks import format_remote


def dump_error(
    error: BaseException, function_name: str | None, actor: str | None, ip: str | None
) -> tuple[bytes, list[Any] | None]:
    """The payload of an error, and the references met in it.

    Args:
        function_name: what raised it; None if nobody's code did, and error (a RayError) itself is to be the result.
    """
    if function_name is None:
        if not isinstance(error, exceptions.RayError):
            error = exceptions.RaySystemError(f"{type(error).__name__}: {error}")
        try:
            return _pickled(error)
        except Exception as failure:
            return _pickled(exceptions.RaySystemError(f"{error} (lost on the way: {_one_line(failure)})"))
    text = _text(error)
    # Behind a chain of tasks there is one exception that somebody raised; the hops are in the text.
    cause: BaseException | None = error
    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause
    blob, refs = None, None
    if cause is not None:
        try:
            blob, refs = _pickled(cause)
        except Exception as failure:
            text += f"\n(the {type(cause).__name__} itself could not be pickled: {_one_line(failure)}"
            try:
                (blob, refs), missing = _pickled_in_part(cause)
                text += f"; {', '.join(missing)} left out)"
            except Exception:  # its class can't be pickled: the text has to do
                text += ")"
    return pickle.dumps((function_name, text, blob, os.getpid(), ip, actor), 5), refs


def load_error(payload: bytes, refs: list[Any] | None, is_task: bool) -> BaseException:
    """The exception to raise for a payload of dump_error."""
    if not is_task:
        try:
            error = serialization.decode_function(payload, refs)
        except Exception as failure:
            return exceptions.RaySystemError(f"an error came that can't be unpickled here: {_one_line(failure)}")
        return error if isinstance(error, BaseException) else exceptions.RaySystemError(repr(error))
    function_name, text, blob, pid, ip, actor = pickle.loads(payload)
    cause = None
    if blob is not None:
        try:
            cause = serialization.decode_function(blob, refs)
        except Exception as failure:
            text += f"\n(the exception itself could not be unpickled here: {_one_line(failure)})"
    if not isinstance(cause, BaseException):
        cause = None
    return exceptions.RayTaskError(function_name, text, cause, pid=pid, ip=ip, actor_repr=actor).as_instanceof_cause()


def _pickled(error: object) -> tuple[bytes, list[Any] | None]:
    from io import BytesIO

    file = BytesIO()
    pickler = serialization.pickler(file)
    pickler.dump(error)
    return file.getvalue(), pickler.refs


def _pickled_in_part(error: BaseException) -> tuple[tuple[bytes, list[Any] | None], list[str]]:
    """A copy of error with what can be pickled of it, still to be caught by its class; and what is missing."""
    missing = []
    args: list[Any] = []
    for index, arg in enumerate(error.args):
        if exceptions.is_picklable_with(_pickled, arg):
            args.append(arg)
        else:
            args.append(repr(arg))
            missing.append(f"args[{index}]")
    copy = exceptions.new_exception(type(error), tuple(args))
    for name, attribute in error.__dict__.items():
        if exceptions.is_picklable_with(_pickled, attribute):
            copy.__dict__[name] = attribute
        else:
            missing.append(f".{name}")
    return _pickled(copy), missing


def _text(error: BaseException) -> str:
    try:
        return format_remote(error).rstrip("\n")
    except Exception as failure:  # a __str__ or a __cause__ of the user's own that raises
        return f"{type(error).__name__} (its traceback could not be formatted: {_one_line(failure)})"


def _one_line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".splitlines()[0][:500]
    except Exception:  # its __str__ raises; its class is all that can be told
        return type(error).__name__
